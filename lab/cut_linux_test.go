package lab

import (
	"strings"
	"testing"
)

func TestCutRules(t *testing.T) {
	const both = `add table bridge imagegen-cut
add chain bridge imagegen-cut forward { type filter hook forward priority 0; }
add rule bridge imagegen-cut forward iifname { port1 } oifname { port0, port2 } drop
`
	if got := cutRules([]string{"port1"}, []string{"port0", "port2"}, true); got != both {
		t.Errorf("one way:\n%s", got)
	}
	if got := cutRules([]string{"port1"}, []string{"port0", "port2"}, false); got != both+"add rule bridge imagegen-cut forward iifname { port0, port2 } oifname { port1 } drop\n" {
		t.Errorf("both ways:\n%s", got)
	}
}

// Ports of different nodes have different names, which are short enough for the kernel.
func TestPortNames(t *testing.T) {
	const long = "a-database-with-a-name-of-its-own"
	seen := map[string]string{}
	for _, node := range []string{"store1", "store2", "removed1", "glusterfs1", "glusterfs12", long + "1", long + "2"} {
		port := port(node)
		if len(port) > maxPort || !strings.HasPrefix(port, "port") {
			t.Errorf("%s: port %q", node, port)
		}
		if other := seen[port]; other != "" {
			t.Errorf("%s and %s have one port: %s", node, other, port)
		}
		seen[port] = node
	}
}

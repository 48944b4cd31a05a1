package lab

import (
	"net/netip"
	"strings"
	"testing"

	"imagegen/cluster"
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

// A node keeps its port when the spec around it changes, and ports of different nodes have different names that the
// kernel takes.
func TestPortKeepsItsNode(t *testing.T) {
	const long = "a-database-with-a-name-of-its-own"
	l := &Lab{spec: testSpec("otus")}
	before := l.port("store1")
	role := &l.spec.Roles[1]
	role.Nodes = append([]cluster.Node{{Name: "store0", Role: "store", IP: netip.MustParseAddr("192.168.10.43")}}, role.Nodes...)
	if after := l.port("store1"); after != before {
		t.Errorf("store1 had port %s; with a node before it, %s", before, after)
	}
	seen := map[string]string{}
	for _, node := range []string{"store1", "store2", "removed1", "glusterfs1", "glusterfs12", long + "1", long + "2"} {
		port := l.port(node)
		if len(port) > maxPort || !strings.HasPrefix(port, "port") {
			t.Errorf("%s: port %q", node, port)
		}
		if other := seen[port]; other != "" {
			t.Errorf("%s and %s have one port: %s", node, other, port)
		}
		seen[port] = node
	}
}

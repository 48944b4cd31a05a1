package lab

import "testing"

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

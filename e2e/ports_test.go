package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// open lists the ports of each role that a machine outside the cluster, but on its network, can reach.
var open = map[string][]int{
	"balancer":     {22, 7373}, // HAProxy listens only on the virtual address
	"web":          {22, 7373},
	"glusterfs":    {22, 7373},
	"backend":      {22, 7373},
	"databalancer": {22, 80, 7373},
	"redis":        {22, 7373},
	"percona":      {22, 7373},
}

// lockedDown tries every listening port from a machine outside the cluster, and some from nodes whose role must not
// reach them.
func (b *bench) lockedDown(t *testing.T) {
	var targets []string
	listening := 0
	for _, n := range b.nodes(t) {
		out, err := b.in(n.Node, "ss -Hltn")
		if err != nil {
			t.Fatal(err)
		}
		var ports []int
		for line := range strings.Lines(out) {
			local := strings.Fields(line)[3]
			if strings.HasPrefix(local, "127.") || strings.HasPrefix(local, "[::1]") {
				continue
			}
			port, err := strconv.Atoi(local[strings.LastIndexByte(local, ':')+1:])
			if err != nil {
				t.Fatalf("ss printed %q", line)
			}
			if !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
		listening += len(ports)
		for _, p := range append(ports, open[n.Role]...) {
			targets = append(targets, fmt.Sprintf("%s %s %s %d", n.Node, n.Role, n.Address, p))
		}
	}
	if listening < 60 {
		t.Errorf("only %d ports are listened on in the whole cluster: the test looks in the wrong place", listening)
	}
	// In parallel, because dropped packets take until the timeout.
	script := `while read node role ip port; do
	(timeout 2 bash -c "</dev/tcp/$ip/$port" 2>/dev/null && echo "$node $role $port") &
done; wait`
	scan := inNetwork(clusterName, "bash", "-c", script)
	scan.Stdin = strings.NewReader(strings.Join(targets, "\n") + "\n")
	out, err := scan.Output()
	if err != nil {
		t.Fatal(err)
	}
	reached := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		port, _ := strconv.Atoi(f[2])
		reached[f[0]+":"+f[2]] = true
		if !slices.Contains(open[f[1]], port) {
			t.Errorf("a machine that is no node reaches port %d of %s", port, f[0])
		}
	}
	for _, n := range b.nodes(t) {
		for _, p := range open[n.Role] {
			if !reached[fmt.Sprintf("%s:%d", n.Node, p)] {
				t.Errorf("port %d of %s cannot be reached", p, n.Node)
			}
		}
	}
	t.Logf("tried %d ports from outside, reached %d", len(targets), len(reached))

	// SSH requires a key, and no account has a password, on the console either.
	for _, n := range b.nodes(t) {
		out, err := b.in(n.Node, `mkdir -p /run/sshd && sshd -T | grep -xE '(passwordauthentication|kbdinteractiveauthentication|permitemptypasswords) yes|permitrootlogin yes'; awk -F: '$2 !~ /^[!*]/' /etc/shadow`)
		if err != nil {
			t.Fatal(err)
		}
		if out != "" {
			t.Errorf("%s: sshd takes more than keys, or an account has a password:\n%s", n.Node, out)
		}
	}

	for _, c := range []struct {
		from, address string
		reaches       bool
	}{
		{"backend1", "192.168.10.53/3306", true},
		{"backend1", "192.168.10.53/6379", true},
		{"web1", "192.168.10.47/9000", true},
		{"web1", "192.168.10.53/3306", false},
		{"web1", "192.168.10.55/3306", false},
		{"web1", "192.168.10.49/6379", false},
		{"balancer1", "192.168.10.47/9000", false},
		{"balancer1", "192.168.10.44/24007", false},
		{"redis1", "192.168.10.55/4567", false},
		{"backend1", "192.168.10.49/26379", false},
	} {
		_, err := b.in(c.from, "timeout 2 bash -c '</dev/tcp/"+c.address+"'")
		if reached := err == nil; reached != c.reaches {
			t.Errorf("%s reaches %s: %v", c.from, c.address, reached)
		}
	}
}

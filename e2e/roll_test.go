package e2e

import (
	"maps"
	"os"
	"strings"
	"testing"
)

// TestRoll makes a roll refuse to begin, stop half-way, and continue, in a cluster of three nodes, which then takes over a change in
// place.
func TestRoll(t *testing.T) {
	t.Parallel() // it mostly waits
	b := newBench(t)
	spec := func(maxmemory string) {
		t.Helper()
		text := "cluster: roll\ndistro: debian12\nnetwork: {cidr: 10.99.0.0/24}\nroles:\n  redis:\n    options: {maxmemory: \"" + maxmemory + "\"}\n" +
			"    nodes: {r1: 10.99.0.11, r2: 10.99.0.12, r3: 10.99.0.13}\n"
		if err := os.WriteFile(b.spec(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		b.lab(t, "build")
	}
	// on returns, per node, the output of a script.
	on := func(script string) map[string]string {
		t.Helper()
		m := map[string]string{}
		for _, n := range []string{"r1", "r2", "r3"} {
			out, err := b.in(n, script)
			if err != nil {
				t.Fatal(err)
			}
			m[n] = strings.TrimSpace(out)
		}
		return m
	}
	roll := func(args ...string) (string, error) {
		return b.try(append([]string{"roll", "-f", b.spec(), "-o", b.dist()}, args...)...)
	}
	const started = "cut -d' ' -f22 /proc/1/stat"

	spec("50")
	b.lab(t, "up")
	b.waitReady(t)
	if out, err := roll(); err != nil || !strings.Contains(out, "replaced 0 nodes; 3 already up to date") {
		t.Errorf("nothing to do: %v %s", err, out)
	}
	on("echo kept >/data/kept")
	before := on(started)

	spec("45")
	b.lab(t, "kill", "r3")
	if _, err := roll("--timeout", "5s"); err == nil || !strings.Contains(err.Error(), " is not replaced") {
		t.Errorf("another node is down: %v", err)
	}
	b.lab(t, "start", "r3")
	b.waitReady(t)
	if now := on(started); now["r1"] != before["r1"] || now["r2"] != before["r2"] {
		t.Errorf("another node was down, and a node was replaced: %v, %v", before, now)
	}

	// No node is ready within a second. (A start uses the latest seed, so r3 would already be up to date.)
	spec("40")
	before = on(started)
	if out, err := roll("--timeout", "1s"); err == nil {
		t.Errorf("it did not stop: %s", out)
	}
	half := on(started)
	first := "" // not the master, which is the last
	for n := range half {
		if half[n] == before[n] {
			continue
		}
		if first != "" {
			t.Errorf("it should have stopped at its first node: %v, %v", before, half)
		}
		first = n
	}
	if first == "" {
		t.Fatalf("no node was replaced: %v", half)
	}
	if out, err := roll(); err != nil || !strings.Contains(out, "replaced 2 nodes; 1 already up to date") {
		t.Errorf("going on: %v %s", err, out)
	}
	b.waitReady(t)
	now := on(started)
	for n := range now {
		if (now[n] == half[n]) != (n == first) {
			t.Errorf("going on from %s: %v, %v", first, half, now)
		}
	}
	for n, kept := range on("cat /data/kept; grep -c '^maxmemory ' /var/lib/redis/redis.conf") {
		if kept != "kept\n1" {
			t.Errorf("%s: %q", n, kept)
		}
	}

	// In place: the nodes take over another seed, and keep running. They keep nothing of the earlier one, nor what cloud-init alone was told.
	const limits = "grep '^maxmemory ' /etc/redis/imagegen-redis.conf"
	spec("35")
	before, had := on(started), on(limits)
	if out, err := b.apply(); err != nil || strings.Count(out, ": take over: /etc/redis/imagegen-redis.conf changed\n") != 3 {
		t.Errorf("apply: %v %s", err, out)
	}
	if now := on(started); !maps.Equal(now, before) {
		t.Errorf("nodes were made anew: %v, %v", before, now)
	}
	now = on(limits)
	for n, kept := range on("ls /var/lib/imagegen/seeds | wc -l; ! grep dsmode /var/lib/imagegen/seed/meta-data") {
		if now[n] == had[n] || kept != "1" {
			t.Errorf("%s: %q was %q; seeds: %q", n, now[n], had[n], kept)
		}
	}

	// systemd starts the agent again, however often it ends.
	if out, err := b.in("r1", `n=0; while [ $n -lt 8 ]; do systemctl kill --signal=KILL imagegen-node; n=$((n + 1))
until systemctl -q is-active imagegen-node; do ! systemctl -q is-failed imagegen-node || exit 1; sleep 0.2; done; done`); err != nil {
		t.Errorf("the agent ends eight times: %v %s", err, out)
	}
}

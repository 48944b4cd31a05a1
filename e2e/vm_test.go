package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

// For emulation on two slow cores.
const (
	threeVMsIn = 8 * time.Minute
	allVMsIn   = 90 * time.Minute
)

// TestVirtualMachines runs the whole reference cluster in QEMU, each node from its image and its seed ISO. It takes
// long if emulated, so it runs only with IMAGEGEN_E2E=vm (make e2e-vm).
func TestVirtualMachines(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("the cluster of virtual machines runs with IMAGEGEN_E2E=vm, as root: make e2e-vm")
	}
	b := newBench(t)
	b.letIn(t)
	b.lab(t, "build")
	start := time.Now()
	b.lab(t, "up", "--site", b.site, "--provider", "qemu")
	t.Logf("the last machine was turned on after %s", time.Since(start).Round(time.Second))
	// A long timeout: cancelled requests continue on the server and slow down the next ones.
	testkit.Eventually(t, allVMsIn, "front page", func() error { return b.titled(siteTitle, 5*time.Minute) })
	t.Logf("page after %s", time.Since(start).Round(time.Second))
	b.lab(t, "status", "--wait", "--timeout", allVMsIn.String())
	t.Logf("all ready after %s", time.Since(start).Round(time.Second))
	nodes := b.nodes(t)
	if len(nodes) != 17 {
		t.Errorf("%d nodes", len(nodes))
	}
	for _, n := range nodes {
		cloudInitDone(t, n.Node, b.on(n.Node))
	}
	t.Run("down leaves nothing", b.downLeavesNothing)
}

// redisInVMs runs the Redis tier in three virtual machines, from the files that build made.
func (b *bench) redisInVMs(t *testing.T) {
	testkit.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	b.letIn(t)
	b.lab(t, "seed")
	names := []string{"redis1", "redis2", "redis3"}
	start := time.Now()
	b.lab(t, "up", append([]string{"--site", b.site, "--provider", "qemu", "--wait", "--timeout", threeVMsIn.String()}, names...)...)
	t.Logf("three virtual machines were ready %s after power-on", time.Since(start).Round(time.Second))
	var masters []string
	watched := map[string]bool{} // masters' addresses, as reported by the Sentinels
	for _, n := range names {
		cloudInitDone(t, n, b.on(n))
		master, err := b.in(n, redisCLI+"-p 26379 sentinel get-master-addr-by-name mymaster | head -n 1")
		if err != nil {
			t.Fatal(err)
		}
		watched[strings.TrimSpace(master)] = true
		out, err := b.in(n, redisRole)
		if err != nil {
			t.Fatal(err)
		}
		switch strings.TrimSpace(out) {
		case "master":
			masters = append(masters, n)
		case "slave":
		default:
			t.Errorf("%s is %q", n, out)
		}
	}
	if len(masters) != 1 {
		t.Fatalf("masters: %q", masters)
	}
	for _, n := range b.nodes(t) {
		if n.Node == masters[0] && (len(watched) != 1 || !watched[n.Address]) {
			t.Errorf("the master is %s, %s; for the Sentinels it is %v", n.Node, n.Address, watched)
		}
	}
	t.Run("down leaves nothing", b.downLeavesNothing)
}

// letIn adds a key to the spec, the only way into a virtual machine, and to an SSH agent of the test.
func (b *bench) letIn(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	key, socket := filepath.Join(dir, "key"), filepath.Join(dir, "agent")
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key)
	agent := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Process.Kill(); agent.Wait() })
	testkit.Eventually(t, 10*time.Second, "ssh-agent", func() error { _, err := os.Stat(socket); return err })
	t.Setenv("SSH_AUTH_SOCK", socket)
	run("ssh-add", "-q", key)
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile(b.spec())
	if err != nil {
		t.Fatal(err)
	}
	spec = fmt.Appendf(spec, "\nssh: {user: jane, keys: [%q]}\n", strings.TrimSpace(string(public)))
	if err := os.WriteFile(b.spec(), spec, 0o644); err != nil {
		t.Fatal(err)
	}
}

// cloudInitDone waits until cloud-init has finished on a node, and checks that it read the node's copy of the CD-ROM
// and reported no errors. in runs a shell line on the node.
func cloudInitDone(t *testing.T, node string, in func(script string) (string, error)) {
	t.Helper()
	testkit.Eventually(t, aVMIn, "cloud-init's end on "+node, func() error {
		_, err := in("test -e /run/cloud-init/result.json")
		return err
	})
	out, err := in("cat /run/cloud-init/result.json")
	if err != nil {
		t.Fatal(err)
	}
	var result struct {
		V1 struct {
			Datasource string
			Errors     []string
		}
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		t.Fatalf("%s: %v: %s", node, err, out)
	}
	if len(result.V1.Errors) > 0 || !strings.Contains(result.V1.Datasource, "NoCloud [seed=/var/lib/cloud/seed/nocloud]") {
		t.Errorf("cloud-init on %s: %+v", node, result.V1)
	}
	log, err := in("cat /var/log/cloud-init.log")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(log) {
		if regexp.MustCompile(`WARNING|ERROR|Traceback`).MatchString(line) {
			t.Errorf("cloud-init.log of %s: %s", node, line)
		}
	}
}

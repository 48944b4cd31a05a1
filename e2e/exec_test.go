//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/internal/libvirthosts"
	"imagegen/internal/testkit"
	"imagegen/operate"
)

// vmReadyIn is what first boots may take, emulated beside others on two slow cores.
const vmReadyIn = 20 * time.Minute

// TestExecOnLibvirt runs the Redis tier on three hosts with a real libvirt, which examples/libvirt drives, with imagegen's commands on a
// computer that reaches hosts and nodes: up, status, kill, replace, down. It runs with IMAGEGEN_E2E=vm.
func TestExecOnLibvirt(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("machines on libvirt hosts run with IMAGEGEN_E2E=vm, as root: make e2e-vm")
	}
	names := []string{"h1", "h2", "h3"}
	hosts := libvirthosts.Start(t, names...)
	if out, err := hosts.InNetwork("h1", "ip", "address", "add", "192.168.10.1/24", "dev", "br0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := filepath.Abs("../examples/libvirt")
	if err != nil {
		t.Fatal(err)
	}
	imagegen, err := filepath.Abs("../bin/imagegen")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{dir: t.TempDir()}
	b.run(t, "init", "--distro", "debian12", b.dir)
	text, err := os.ReadFile(b.spec())
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("cluster: otus"), []byte("cluster: "+clusterName), 1)
	text = fmt.Appendf(text, "\nmachines: {provider: exec, program: %s, hosts: [%s], network: br0}\n", program, strings.Join(names, ", "))
	if err := os.WriteFile(b.spec(), text, 0o644); err != nil {
		t.Fatal(err)
	}
	b.run(t, "build", "-f", b.spec(), "-o", b.dist(), "redis")

	command := func(args ...string) string {
		t.Helper()
		start := time.Now()
		var out, errs bytes.Buffer
		cmd := hosts.InNetwork("h1", append([]string{imagegen, args[0], "-f", b.spec(), "-o", b.dist()}, args[1:]...)...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("imagegen %s: %v: %s%s", strings.Join(args, " "), err, out.String(), errs.String())
		}
		t.Logf("imagegen %s: after %s\n%s%s", strings.Join(args, " "), time.Since(start).Round(time.Second), errs.String(), out.String())
		return out.String()
	}
	status := func() map[string]operate.NodeStatus {
		t.Helper()
		var said struct{ Nodes []operate.NodeStatus }
		out, err := hosts.InNetwork("h1", imagegen, "status", "--json", "-f", b.spec(), "-o", b.dist()).Output()
		if err == nil {
			err = json.Unmarshal(out, &said)
		}
		if err != nil {
			t.Fatalf("status: %v: %s", err, out)
		}
		all := map[string]operate.NodeStatus{}
		for _, s := range said.Nodes {
			all[s.Node] = s
		}
		return all
	}
	// An emulated machine is late with an answer now and then.
	running := func(node string) operate.NodeStatus {
		t.Helper()
		var s operate.NodeStatus
		testkit.Eventually(t, vmReadyIn, node+" is ready", func() error {
			if s = status()[node]; !s.Ready() {
				return errors.New(operate.Describe(s))
			}
			return nil
		})
		if s.Power != operate.PowerOn || s.Build != operate.BuildCurrent {
			t.Errorf("%+v", s)
		}
		return s
	}
	timeout := fmt.Sprint(vmReadyIn)
	command("up", "--wait", "--timeout", timeout, "redis1", "redis2", "redis3")
	on := map[string]bool{}
	for _, n := range []string{"redis1", "redis2", "redis3"} {
		on[running(n).Host] = true
	}
	if len(on) != 3 {
		t.Errorf("placed on %v", on)
	}

	command("kill", "redis1")
	testkit.Eventually(t, vmReadyIn, "the other two are ready without redis1, with one of them as the master", func() error {
		s := status()
		master := strings.Contains(s["redis2"].Is+s["redis3"].Is, "redis: master")
		if s["redis1"].State != operate.Off || !s["redis2"].Ready() || !s["redis3"].Ready() || !master {
			return fmt.Errorf("%s; %s; %s; a master: %t", operate.Describe(s["redis1"]), operate.Describe(s["redis2"]), operate.Describe(s["redis3"]), master)
		}
		return nil
	})
	command("replace", "--timeout", timeout, "redis1")
	running("redis1")

	command("down")
	for _, h := range names {
		left, err := filepath.Glob(filepath.Join(hosts.Storage(h), "*"))
		if err != nil {
			t.Fatal(err)
		}
		if domains := hosts.Virsh(t, h, "list", "--all", "--name"); len(left) > 0 || strings.TrimSpace(domains) != "" {
			t.Errorf("left on %s: %q, %q", h, left, domains)
		}
	}
}

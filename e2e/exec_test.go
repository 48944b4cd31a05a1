//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/internal/libvirthosts"
	"imagegen/machines"
	"imagegen/machines/exec"
	"imagegen/operate"
	"imagegen/roles"
)

// vmReadyIn is the limit for a boot, emulated beside two others on two slow cores.
const vmReadyIn = 20 * time.Minute

// TestExecOnLibvirt runs the Redis tier on three hosts with a real libvirt, driven by examples/libvirt, from the files
// that build made: create, ready, kill, replace, remove. The nodes are asked at their addresses. It runs only with
// IMAGEGEN_E2E=vm.
func TestExecOnLibvirt(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("machines on libvirt hosts run with IMAGEGEN_E2E=vm, as root: make e2e-vm")
	}
	names := []string{"h1", "h2", "h3"}
	hosts := libvirthosts.Start(t, names...)
	if out, err := hosts.Enter("h1", "ip", "address", "add", "192.168.10.1/24", "dev", "br0").CombinedOutput(); err != nil {
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

	all := redisMachines(t, b, names)
	e := all[0]
	p := exec.New(exec.Config{Program: program, Cluster: e.Cluster, ClusterID: e.ClusterID, Hosts: names, Network: "br0",
		Record: filepath.Join(b.dir, "placed.json"), Log: func(line string) { t.Log(line) }})
	ctx := t.Context()
	if err := p.Check(ctx); err != nil {
		t.Fatal(err)
	}
	ready := func(what string, nodes ...string) {
		t.Helper()
		start := time.Now()
		eventually(t, vmReadyIn, what, func() error {
			out, err := hosts.Enter("h1", imagegen, "status", "--json", "-f", b.spec(), "-o", b.dist()).Output()
			var said struct{ Nodes []operate.NodeStatus }
			if json.Unmarshal(out, &said) != nil {
				return fmt.Errorf("status: %w: %s", err, out)
			}
			isReady := map[string]bool{}
			var states []string
			for _, s := range said.Nodes {
				isReady[s.Node] = s.Ready()
				if s.Role == "redis" {
					states = append(states, s.Node+" is "+s.State+": "+s.Detail)
				}
			}
			for _, n := range nodes {
				if !isReady[n] {
					return fmt.Errorf("%s", strings.Join(states, ", "))
				}
			}
			return nil
		})
		t.Logf("%s after %s", what, time.Since(start).Round(time.Second))
	}
	for _, m := range all {
		if err := p.Create(ctx, m); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(ctx, m.Node); err != nil {
			t.Fatal(err)
		}
	}
	ready("three machines are ready", "redis1", "redis2", "redis3")

	if err := p.Stop(ctx, "redis1"); err != nil {
		t.Fatal(err)
	}
	ready("the other two are ready without redis1", "redis2", "redis3")
	if err := p.Start(ctx, "redis1"); err != nil {
		t.Fatal(err)
	}
	ready("redis1 is back", "redis1", "redis2", "redis3")
	if err := machines.Replace(ctx, p, all[1], false); err != nil {
		t.Fatal(err)
	}
	ready("redis2 is replaced", "redis1", "redis2", "redis3")

	if err := machines.RemoveAll(ctx, p, []string{"redis1", "redis2", "redis3"}); err != nil {
		t.Fatal(err)
	}
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

// redisMachines returns the machines of the Redis nodes, each on its own host.
func redisMachines(t *testing.T, b *bench, hosts []string) []machines.Machine {
	t.Helper()
	catalogue, err := roles.Load(filepath.Join(b.dir, "roles"))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Load(b.spec(), catalogue.Rules())
	if err != nil {
		t.Fatal(err)
	}
	made, err := expected.Read(expected.Path(b.dist()))
	if err != nil {
		t.Fatal(err)
	}
	at := machines.Place(spec, hosts, nil)
	role := spec.Role("redis")
	used := map[string]bool{}
	var all []machines.Machine
	for _, n := range role.Nodes {
		want, is := made.Node(n.Name)
		if !is || want.Image == "" || want.Seed == "" || used[at[n.Name]] {
			t.Fatalf("%s: %+v, on %s", n.Name, want, at[n.Name])
		}
		used[at[n.Name]] = true
		all = append(all, machines.Machine{
			Cluster: spec.Cluster, ClusterID: made.ClusterID, Node: n.Name, Role: role.Name, Host: at[n.Name], CPUs: role.CPUs,
			Memory: int64(role.Memory), Data: int64(role.Data), MAC: n.MAC, IP: n.IP.String(),
			Image: machines.File{Path: filepath.Join(b.dist(), "images", "redis.raw"), Identity: want.Image},
			Seed:  machines.File{Path: filepath.Join(b.dist(), "seeds", n.Name+".iso"), Identity: want.Seed},
		})
	}
	return all
}

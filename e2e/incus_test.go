package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/internal/incushosts"
	"imagegen/machines"
	"imagegen/machines/incus"
	"imagegen/operate"
	"imagegen/roles"
)

// dataTier is a cluster that finds its members, elects a master and moves an address: enough to see that hosts may die.
const dataTier = `cluster: e2e-incus
distro: debian12
timezone: UTC
network: {cidr: 192.168.10.0/24}
machines: {provider: incus, hosts: [h1, h2, h3]}
roles:
  redis: {data: 64MiB, nodes: {redis1: 192.168.10.49, redis2: 192.168.10.50, redis3: 192.168.10.51}}
  databalancer: {vip: 192.168.10.53, nodes: {balancer3: 192.168.10.52, balancer4: 192.168.10.54}}
`

// On two slow cores.
const (
	vipBackIn  = 15 * time.Second // after a host's power was cut
	backInCase = 3 * time.Minute  // all is ready again, after the host has returned
)

// onHosts is a cluster on three Incus hosts.
type onHosts struct {
	*incushosts.Cluster
	dir      string
	spec     *cluster.Spec
	expected expected.Expected
}

func (o *onHosts) imagegen(args ...string) *exec.Cmd {
	args = append(args, "-f", filepath.Join(o.dir, "cluster.yaml"), "-o", filepath.Join(o.dir, "dist"))
	// From a fourth place in the network: a program of the user's, which reaches the nodes by their addresses alone.
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + o.Network(), "../bin/imagegen"}, args...)...)
}

func (o *onHosts) build(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(o.dir, "cluster.yaml"), []byte(dataTier), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("../bin/imagegen", "build", "-f", filepath.Join(o.dir, "cluster.yaml"), "-o", filepath.Join(o.dir, "dist"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if o.spec, err = cluster.Load(filepath.Join(o.dir, "cluster.yaml"), catalogue.Rules()); err != nil {
		t.Fatal(err)
	}
	if o.expected, err = expected.Read(expected.Path(filepath.Join(o.dir, "dist"))); err != nil {
		t.Fatal(err)
	}
}

// provider asks a host of choice.
func (o *onHosts) provider(t *testing.T, host string) *incus.Provider {
	m := o.spec.Machines
	return incus.New(incus.Config{Cluster: o.spec.Cluster, ClusterID: o.expected.ClusterID, Hosts: m.Hosts, Network: m.Network, Storage: m.Storage,
		Program: o.Incus(host), Log: t.Logf})
}

func (o *onHosts) machine(n cluster.Node, host string) machines.Machine {
	r := o.spec.Role(n.Role)
	i := slices.IndexFunc(o.expected.Nodes, func(e expected.Node) bool { return e.Node == n.Name })
	return machines.Machine{Cluster: o.spec.Cluster, ClusterID: o.expected.ClusterID, Node: n.Name, Role: n.Role, Host: host, CPUs: r.CPUs, Memory: int64(r.Memory),
		Data: int64(r.Data), MAC: n.MAC, IP: n.IP.String(), Privileged: r.Privileged != "",
		Image: machines.File{Path: filepath.Join(o.dir, "dist", "images", n.Role+".raw"), Identity: o.expected.Nodes[i].Image},
		Seed:  machines.File{Path: filepath.Join(o.dir, "dist", "seeds", n.Name+".iso"), Identity: o.expected.Nodes[i].Seed}}
}

// up makes and starts all machines at once, and returns where they are.
func (o *onHosts) up(t *testing.T, p machines.Provider) map[string]string {
	t.Helper()
	at := machines.Place(o.spec, o.Hosts(), nil)
	var all sync.WaitGroup
	for _, n := range o.spec.Nodes() {
		all.Go(func() {
			if err := errors.Join(p.Create(t.Context(), o.machine(n, at[n.Name])), p.Start(t.Context(), n.Name)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return at
}

// notReady returns the nodes that are not ready, except on one host.
func (o *onHosts) notReady(at map[string]string, except string) error {
	out, err := o.imagegen("status", "--json").Output()
	var status struct{ Nodes []operate.NodeStatus }
	if json.Unmarshal(out, &status) != nil || len(status.Nodes) == 0 {
		return fmt.Errorf("status: %w: %s", err, out)
	}
	var lines []string
	for _, n := range status.Nodes {
		if at[n.Node] != except && !n.Ready() {
			lines = append(lines, operate.Describe(n))
		}
	}
	if lines != nil {
		return errors.New(strings.Join(lines, "; "))
	}
	return nil
}

// master asks the Redis behind the virtual address to speak, in the network where the visitors are. It answers in TLS.
func (o *onHosts) master(vip netip.Addr) error {
	out, err := exec.Command("nsenter", "--net=/run/netns/"+o.Network(), os.Args[0], "-test.run=^TestSpeaksTLS$").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.300s", vip, err, out)
	}
	return nil
}

// tlsAddress names, for a test process in another network, what is to speak TLS.
const tlsAddress = "IMAGEGEN_TLS_ADDRESS"

// TestSpeaksTLS runs in the nodes' network, for TestIncus.
func TestSpeaksTLS(t *testing.T) {
	address := os.Getenv(tlsAddress)
	if address == "" {
		t.Skip("a part of TestIncus")
	}
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // whoever it is, a proxy without a master says nothing
	if err := client.Handshake(); err != nil && !strings.Contains(err.Error(), "certificate required") {
		t.Fatal(err)
	}
}

// holder returns the node that has the virtual address.
func (o *onHosts) holder(t *testing.T) string {
	t.Helper()
	for _, n := range o.spec.Role("databalancer").Nodes {
		out, err := exec.Command(o.Incus("h1"), "exec", "--project", "imagegen-"+o.spec.Cluster, n.Name, "--", "ip", "-brief", "address").Output()
		if err == nil && strings.Contains(string(out), o.spec.Role("databalancer").VIP.String()+"/") {
			return n.Name
		}
	}
	t.Fatal("no node has the virtual address")
	return ""
}

// TestIncus runs a tier on three Incus hosts, and one of them loses its power.
func TestIncus(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "incus" {
		t.Skip("the cluster on three Incus hosts runs with IMAGEGEN_E2E=incus, as root: make e2e-incus")
	}
	o := &onHosts{Cluster: incushosts.Start(t, 3), dir: t.TempDir()}
	o.build(t)
	if out, err := exec.Command("ip", "-n", o.Network(), "address", "add", "192.168.10.254/24", "dev", "br0").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
	vip := o.spec.Role("databalancer").VIP
	t.Setenv(tlsAddress, netip.AddrPortFrom(vip, 6379).String())

	p := o.provider(t, "h1")
	if err := p.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	at := o.up(t, p)
	t.Logf("five machines on three hosts were on after %s: %v", time.Since(start).Round(time.Second), at)
	eventually(t, readyIn, "all nodes", func() error { return o.notReady(at, "") })
	t.Logf("all ready after %s", time.Since(start).Round(time.Second))
	eventually(t, readyIn, "Redis at the virtual address", func() error { return o.master(vip) })

	o.seedsAreSecret(t)

	holder := o.holder(t)
	host := at[holder]
	other := o.Hosts()[0]
	if other == host {
		other = o.Hosts()[1]
	}
	o.CutPower(host)
	took := eventually(t, vipBackIn, "Redis at the virtual address, after the power cut", func() error { return o.master(vip) })
	t.Logf("host %s with %s lost its power: the virtual address led to a master again after %s", host, holder, took.Round(100*time.Millisecond))
	o.lostHostIsUnknown(t, other, at, host)

	o.PowerOn(host)
	took = eventually(t, backInCase, "all nodes, after the host's return", func() error { return o.notReady(at, "") })
	t.Logf("all ready %s after the host's daemon answered", took.Round(time.Second))

	if err := machines.RemoveAll(t.Context(), o.provider(t, "h1"), nil); err != nil {
		t.Fatal(err)
	}
	o.nothingIsLeft(t)
}

// seedsAreSecret makes sure that whoever may only look at the project learns no secret.
func (o *onHosts) seedsAreSecret(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(o.dir, "secrets", "passwords.json"))
	if err != nil {
		t.Fatal(err)
	}
	var passwords map[string]string
	if err := json.Unmarshal(data, &passwords); err != nil || len(passwords) == 0 {
		t.Fatalf("passwords: %v", err)
	}
	shown := o.Run("h1", "query", "/1.0/instances?recursion=2&project=imagegen-"+o.spec.Cluster) + o.Run("h1", "query", "/1.0/operations?recursion=1")
	for name, p := range passwords {
		if strings.Contains(shown, p) {
			t.Errorf("Incus shows the password %s", name)
		}
	}
	for _, n := range o.spec.Nodes() {
		for _, f := range []string{"user-data", "meta-data", "network-config"} {
			out := o.Run("h1", "exec", "--project", "imagegen-"+o.spec.Cluster, n.Name, "--", "stat", "-L", "-c", "%a %u", "/var/lib/cloud/seed/nocloud/"+f)
			if strings.TrimSpace(out) != "600 0" {
				t.Errorf("%s of %s has mode and owner %s", f, n.Name, out)
			}
		}
	}
}

// lostHostIsUnknown: nothing that is asked while a host is dead takes long, and its machines are neither on nor off.
func (o *onHosts) lostHostIsUnknown(t *testing.T, ask string, at map[string]string, lost string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	eventually(t, time.Minute, "the provider's view of the lost host", func() error {
		list, err := o.provider(t, ask).List(ctx)
		if err != nil {
			return err
		}
		if len(list) != len(at) {
			return fmt.Errorf("%d machines are listed: %v", len(list), list)
		}
		for _, s := range list {
			want := machines.On
			if at[s.Node] == lost {
				want = machines.Unknown
			}
			if s.Power != want {
				return fmt.Errorf("%s is %s, want %s", s.Node, s.Power, want)
			}
		}
		return nil
	})
}

func (o *onHosts) nothingIsLeft(t *testing.T) {
	t.Helper()
	for _, path := range []string{"instances", "images", "storage-pools/default/volumes/custom"} {
		if left := strings.TrimSpace(o.Run("h1", "query", "/1.0/"+path+"?all-projects=true")); left != "[]" {
			t.Errorf("left: %s", left)
		}
	}
	if left := o.Run("h1", "query", "/1.0/projects"); strings.Contains(left, "imagegen-") {
		t.Errorf("left: %s", left)
	}
	for _, h := range o.Hosts() {
		for _, kind := range []string{"containers", "custom"} {
			if left, _ := filepath.Glob(filepath.Join(o.Pool(h), kind, "*")); left != nil {
				t.Errorf("left on %s: %q", h, left)
			}
		}
	}
}

//go:build linux

package exec

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/internal/libvirthosts"
	"imagegen/internal/testkit"
	"imagegen/machines"
	"imagegen/machines/conformance"
)

const libvirtProgram = "../../examples/libvirt"

// onLibvirt tests machines that consist of a boot sector, on two hosts.
type onLibvirt struct {
	*libvirthosts.Hosts
	dir string
}

var libvirtHosts = []string{"h1", "h2"}

func startLibvirt(t *testing.T) onLibvirt {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("machines on real libvirt hosts are made with IMAGEGEN_E2E=vm, as root: make e2e-vm")
	}
	l := onLibvirt{libvirthosts.Start(t, libvirtHosts...), t.TempDir()}
	for v := range 2 {
		testkit.OK(t, os.WriteFile(filepath.Join(l.dir, fmt.Sprint("image", v)), testkit.Speaker(1<<20, testkit.COM1, fmt.Sprintf("hello from image %d\r\n", v)), 0o644))
		testkit.OK(t, os.WriteFile(filepath.Join(l.dir, fmt.Sprint("seed", v)), bytes.Repeat([]byte{byte('0' + v)}, 4096), 0o600))
	}
	return l
}

func (l onLibvirt) config(program string) Config {
	return Config{Program: program, Cluster: "otus", ClusterID: clusterID, Hosts: libvirtHosts, Network: "br0", Storage: "default"}
}

func (l onLibvirt) Provider(t *testing.T, step func() error) machines.Provider {
	return New(l.config(stepped(t, libvirtProgram, step)))
}

func (l onLibvirt) host(node string) string { return "h" + strings.TrimPrefix(node, "node") }

func (l onLibvirt) Machine(node string, version int) machines.Machine {
	file := func(name string) machines.File {
		name = fmt.Sprint(name, version)
		return machines.File{Path: filepath.Join(l.dir, name), Identity: name}
	}
	return machines.Machine{Cluster: "otus", ClusterID: clusterID, Node: node, Role: "web", Host: l.host(node), CPUs: 1, Memory: 16 << 20,
		Data: 1 << 20, MAC: "52:54:00:00:00:0" + node[len(node)-1:], Image: file("image"), Seed: file("seed")}
}

// foreignData is another cluster's volume with the same name.
func (l onLibvirt) foreignData(node string) string {
	return filepath.Join(l.Storage(l.host(node)), "otus-"+node+".00000000-0000-4000-8000-000000000000.data")
}

func (l onLibvirt) Foreign(t *testing.T, node string) {
	xml := filepath.Join(l.dir, "foreign.xml")
	testkit.OK(t, os.WriteFile(xml, fmt.Appendf(nil, `<domain type='qemu'><name>otus-%s</name><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os></domain>`, node), 0o600))
	l.Virsh(t, l.host(node), "define", xml)
	l.Virsh(t, l.host(node), "start", "otus-"+node)
	testkit.OK(t, os.WriteFile(l.foreignData(node), []byte("theirs"), 0o600))
	l.Virsh(t, l.host(node), "pool-refresh", "default")
	t.Cleanup(func() {
		l.Virsh(t, l.host(node), "destroy", "otus-"+node)
		l.Virsh(t, l.host(node), "undefine", "otus-"+node)
		l.Virsh(t, l.host(node), "vol-delete", filepath.Base(l.foreignData(node)), "default")
	})
}

func (l onLibvirt) ForeignIntact(t *testing.T, node string) {
	if on := l.Virsh(t, l.host(node), "list", "--name"); !slices.Contains(strings.Fields(on), "otus-"+node) {
		t.Errorf("the foreign domain is off: %q", on)
	}
	if data, err := os.ReadFile(l.foreignData(node)); err != nil || string(data) != "theirs" {
		t.Errorf("the foreign volume: %q, %v", data, err)
	}
}

func (l onLibvirt) Vanish(t *testing.T, node string) {
	l.Virsh(t, l.host(node), "destroy", "otus-"+node)
	l.Virsh(t, l.host(node), "undefine", "otus-"+node, "--storage", "vda,hda")
}

func (l onLibvirt) data(node string) string {
	return filepath.Join(l.Storage(l.host(node)), "otus-"+node+"."+clusterID+".data")
}

func (l onLibvirt) WriteData(t *testing.T, node, text string) {
	f, err := os.OpenFile(l.data(node), os.O_WRONLY, 0)
	testkit.OK(t, err)
	_, err = f.WriteAt([]byte(text), 0)
	testkit.OK(t, err)
	testkit.OK(t, f.Close())
}

func (l onLibvirt) ReadData(t *testing.T, node string) string {
	data, err := os.ReadFile(l.data(node))
	testkit.OK(t, err)
	if len(data) != 1<<20 {
		t.Errorf("the data disk has %d bytes", len(data))
	}
	return string(bytes.TrimRight(data, "\x00"))
}

func (l onLibvirt) Leftovers(t *testing.T) []string {
	var left []string
	for _, h := range libvirtHosts {
		left = append(left, strings.Fields(l.Virsh(t, h, "list", "--all", "--name"))...)
		files, err := filepath.Glob(filepath.Join(l.Storage(h), "*"))
		testkit.OK(t, err)
		left = append(left, files...)
	}
	return left
}

// The libvirt example obeys all rules of a provider with two real libvirts, even when killed before any virsh call that
// changes something.
func TestLibvirt(t *testing.T) {
	l := startLibvirt(t)
	conformance.Run(t, func(*testing.T) conformance.Backend { return l })
}

// Not covered by the suite: consoles, seeds readable only by their owner, images uploaded once, machines that return
// with their host, and messages about a host that does not answer.
func TestLibvirtHosts(t *testing.T) {
	l := startLibvirt(t)
	ctx := t.Context()
	c := l.config(libvirtProgram)
	c.Record = filepath.Join(l.dir, "placed.json")
	uploads := 0
	c.Log = func(line string) {
		if strings.Contains(line, "uploading the image") {
			uploads++
		}
	}
	p := New(c)
	testkit.OK(t, p.Check(ctx))
	bad := c
	bad.Storage = "lost"
	checkError(t, "a pool that is not there", New(bad).Check(ctx), "libvirt check: exit status 1: h1: there is no active storage pool lost")

	one, two := l.Machine("node1", 0), l.Machine("node2", 0)
	three := l.Machine("node3", 0)
	three.Host = "h1"
	for _, m := range []machines.Machine{one, two, three} {
		testkit.OK(t, p.Create(ctx, m))
		testkit.OK(t, p.Start(ctx, m.Node))
	}
	if uploads != 2 {
		t.Errorf("%d uploads of one image to two hosts", uploads)
	}
	testkit.Until(t, time.Minute, "the console", func() bool {
		var console bytes.Buffer
		testkit.OK(t, p.Console(ctx, &console, "node1", false))
		return strings.Contains(console.String(), "hello from image 0\n")
	})
	files, err := filepath.Glob(filepath.Join(l.Storage("h1"), "*"))
	testkit.OK(t, err)
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: others may read it: %v, %v", filepath.Base(f), info.Mode(), err)
		}
	}
	if on := strings.Fields(l.Virsh(t, "h1", "list", "--all", "--autostart", "--name")); !slices.Equal(on, []string{"otus-node1", "otus-node3"}) {
		t.Errorf("with their host start: %q", on)
	}
	if xml := l.Virsh(t, "h1", "dumpxml", "otus-node1"); strings.Contains(xml, "0000000000") {
		t.Error("the seed's content is in the domain")
	}
	// A node is placed where its data disk is.
	testkit.OK(t, p.Remove(ctx, "node2", false))
	two.Host = "h1"
	testkit.OK(t, p.Create(ctx, two))
	list, err := p.List(ctx)
	testkit.OK(t, err)
	if len(list) != 3 || list[1].Node != "node2" || list[1].Host != "h2" {
		t.Errorf("node2 is not at its data disk: %+v", list)
	}
	two.Host = "h2"
	testkit.OK(t, machines.Replace(ctx, p, two, true))

	l.PowerOff(t, "h2")
	list, err = p.List(ctx)
	testkit.OK(t, err)
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprint(s.Node, " ", s.Host, " ", s.Power))
	}
	if want := []string{"node1 h1 on", "node2 h2 unknown", "node3 h1 on"}; !slices.Equal(got, want) {
		t.Errorf("after a host's end: %q, want %q", got, want)
	}
	checkError(t, "a host that does not answer", p.Check(ctx), "libvirt check: exit status 1: h2: virsh domcapabilities: ")
	checkError(t, "a machine that may be there", p.Remove(ctx, "node2", true), "libvirt remove node2: exit status 1: h2: virsh ")
	testkit.OK(t, p.Stop(ctx, "node1")) // h1 is asked first and has the machine
}

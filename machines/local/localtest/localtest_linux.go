// Package localtest runs the conformance suite on providers of machines on this computer. Only tests import it.
package localtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/internal/cgroup"
	"imagegen/internal/netns"
	"imagegen/internal/testkit"
	"imagegen/machines"
	"imagegen/machines/conformance"
	"imagegen/machines/local"
)

const clusterID = "11111111-2222-4333-8444-555555555555"

// Run runs the suite, and looks at the consoles of machines with two images.
func Run(t *testing.T, newProvider func(local.Config) *local.Provider, images [2]Image) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root: it makes namespaces, cgroups and devices")
	}
	if err := newProvider(local.Config{}).CheckRoom(2); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	conformance.Run(t, func(t *testing.T) conformance.Backend { return newBackend(t, newProvider, images) })
	t.Run("Boots", func(t *testing.T) { boots(t, newBackend(t, newProvider, images)) })
}

// A machine boots the image that it was made from, and the console keeps what the machines before it have printed.
func boots(t *testing.T, b *backend) {
	p := b.newProvider(b.config)
	t.Cleanup(func() {
		if err := machines.RemoveAll(context.Background(), p, nil); err != nil {
			t.Error(err)
		}
	})
	var want []string
	for version, image := range b.images {
		testkit.OK(t, machines.Replace(t.Context(), p, b.Machine("node1", version), false))
		want = append(want, image.Says)
		testkit.Eventually(t, time.Minute, "the word of the image on the console", func() error {
			var console bytes.Buffer
			err := p.Console(t.Context(), &console, "node1", false)
			if got := strings.Fields(console.String()); err != nil || !slices.Equal(got, want) {
				return fmt.Errorf("%q, %v", got, err)
			}
			return nil
		})
	}
	if s, err := p.List(t.Context()); err != nil || s[0].Power != machines.On || s[0].Since.IsZero() {
		t.Errorf("listed %+v, %v", s, err)
	}
}

type backend struct {
	config      local.Config
	newProvider func(local.Config) *local.Provider
	images      [2]Image
	seeds       [2]string
}

func newBackend(t *testing.T, newProvider func(local.Config) *local.Provider, images [2]Image) *backend {
	t.Helper()
	name := fmt.Sprint("imagegen-conformance", os.Getpid())
	root, err := cgroup.Root()
	testkit.OK(t, err)
	dir := t.TempDir()
	b := &backend{newProvider: newProvider, config: local.Config{
		ClusterID: clusterID, Dir: filepath.Join(dir, "lab"), Group: root.Sub(name), Network: name, Port: func(node string) string { return "port-" + node }, Log: t.Logf,
	}}
	for v, image := range images {
		b.images[v] = Image{filepath.Join(dir, fmt.Sprint("image", v)), image.Says}
		testkit.OK(t, os.Link(image.Path, b.images[v].Path))
		b.seeds[v] = filepath.Join(dir, fmt.Sprint("seed", v))
		seed := cloudinit.Seed{MetaData: []byte("instance-id: x\n"), UserData: fmt.Appendf(nil, "#cloud-config\n# %d\n", v), NetworkConfig: []byte("version: 1\n")}
		testkit.OK(t, seed.WriteISO(b.seeds[v]))
	}
	t.Cleanup(func() {
		if err := b.config.Group.Kill(context.Background()); err != nil {
			t.Error(err)
		}
		if err := netns.Name(name).Delete(); err != nil {
			t.Error(err)
		}
	})
	testkit.OK(t, netns.Name(name).Create(netip.MustParsePrefix("192.168.10.254/24")))
	return b
}

func (b *backend) Provider(_ *testing.T, step func() error) machines.Provider {
	c := b.config
	c.Step = step
	return b.newProvider(c)
}

func (b *backend) Machine(node string, version int) machines.Machine {
	return machines.Machine{
		Cluster: "otus", ClusterID: clusterID, Node: node, Role: "store", CPUs: 1, Memory: 16 << 20, Data: 1 << 20, MAC: "02:00:5e:00:00:0" + node[len(node)-1:], IP: "192.168.10.1",
		Image: machines.File{Path: b.images[version].Path, Identity: fmt.Sprint("image", version)},
		Seed:  machines.File{Path: b.seeds[version], Identity: fmt.Sprint("seed", version)},
	}
}

func (b *backend) in(node, name string) string {
	return filepath.Join(local.Dir(b.config.Dir, node), name)
}

// foreignFiles are those of a machine of another cluster.
var foreignFiles = map[string]string{"cluster": "99999999-2222-4333-8444-555555555555", "machine.json": `{"Finished": true}`, local.DataDisk: "theirs", local.ImageFile: "theirs"}

func (b *backend) Foreign(t *testing.T, node string) {
	for name, text := range foreignFiles {
		testkit.Write(t, b.in(node, name), text)
	}
	in, err := b.config.Group.Sub(node).Open()
	testkit.OK(t, err)
	defer in.Close()
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.Fd()), Pdeathsig: syscall.SIGKILL}
	testkit.OK(t, cmd.Start())
	go cmd.Wait()
	t.Cleanup(func() { testkit.OK(t, os.RemoveAll(b.in(node, ""))) })
}

func (b *backend) ForeignIntact(t *testing.T, node string) {
	for name, want := range foreignFiles {
		if text, err := os.ReadFile(b.in(node, name)); string(text) != want {
			t.Errorf("%s of the foreign machine: %q, %v", name, text, err)
		}
	}
	if !b.config.Group.Sub(node).Busy() {
		t.Error("the foreign machine was turned off")
	}
}

// Vanish removes the files, and leaves the processes to whoever finds them.
func (b *backend) Vanish(t *testing.T, node string) {
	parts, err := os.ReadDir(b.in(node, ""))
	testkit.OK(t, err)
	for _, part := range parts {
		if !slices.Contains([]string{"cluster", local.DataDisk}, part.Name()) {
			testkit.OK(t, os.RemoveAll(b.in(node, part.Name())))
		}
	}
}

func (b *backend) WriteData(t *testing.T, node, text string) {
	disk, err := os.OpenFile(b.in(node, local.DataDisk), os.O_WRONLY, 0)
	testkit.OK(t, err)
	_, err = disk.WriteString(text)
	testkit.OK(t, err)
	testkit.OK(t, disk.Close())
}

func (b *backend) ReadData(t *testing.T, node string) string {
	data, err := os.ReadFile(b.in(node, local.DataDisk))
	testkit.OK(t, err)
	return string(bytes.TrimRight(data, "\x00"))
}

func (b *backend) Leftovers(t *testing.T) (left []string) {
	t.Helper()
	// The kernel removes a namespace's network cards and mounts a moment after its last process.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if left = b.leftNow(t); len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

func (b *backend) leftNow(t *testing.T) []string {
	var left []string
	for _, g := range b.config.Group.Below() {
		if g != b.config.Group || g.Busy() {
			left = append(left, string(g))
		}
	}
	files, err := filepath.Glob(filepath.Join(b.config.Dir, "*"))
	testkit.OK(t, err)
	left = append(left, files...)
	mounts, err := os.ReadFile("/proc/self/mounts")
	testkit.OK(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, b.config.Dir) {
			left = append(left, "mount "+line)
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range backing {
		if data, _ := os.ReadFile(f); strings.HasPrefix(string(data), b.config.Dir) {
			left = append(left, "loop device of "+string(data))
		}
	}
	testkit.OK(t, netns.Name(b.config.Network).Do(func() error {
		cards, err := net.Interfaces()
		for _, c := range cards {
			if c.Name != "lo" && c.Name != netns.Bridge {
				left = append(left, "network card "+c.Name)
			}
		}
		return err
	}))
	return left
}

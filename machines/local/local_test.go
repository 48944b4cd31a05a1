package local

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imagegen/internal/cgroup"
	"imagegen/internal/testkit"
	"imagegen/machines"
)

// drawer is a driver whose machines are never on; a machine is only its root disk.
type drawer struct{}

func (drawer) Check(int) error { return nil }
func (drawer) Root() string    { return "root" }
func (drawer) Make(_ context.Context, dir string, _ machines.Machine, _ func() error) error {
	f, err := os.OpenFile(filepath.Join(dir, "root"), os.O_CREATE|os.O_WRONLY, 0o600)
	return errors.Join(err, f.Close())
}
func (drawer) Start(string, machines.Machine, *os.File) (func() error, error) {
	return nil, errors.ErrUnsupported
}
func (drawer) Released(string) bool { return true }
func (drawer) Command(string, machines.Machine, cgroup.Group, []string) (*exec.Cmd, error) {
	return nil, errors.ErrUnsupported
}
func (drawer) Emulated(string) bool { return false }

func newDrawer(t *testing.T) (c Config, m machines.Machine) {
	t.Helper()
	dir := t.TempDir()
	m = machines.Machine{ClusterID: "a", Node: "node1", Data: 1 << 20,
		Image: machines.File{Path: filepath.Join(dir, "image"), Identity: "image0"}, Seed: machines.File{Path: filepath.Join(dir, "seed"), Identity: "seed0"}}
	testkit.Write(t, m.Image.Path, "image")
	testkit.Write(t, m.Seed.Path, "seed")
	c = Config{ClusterID: "a", Dir: filepath.Join(dir, "lab"), Group: cgroup.Group(filepath.Join(dir, "groups"))}
	if err := New(c, drawer{}).Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return c, m
}

func list(t *testing.T, p *Provider) machines.State {
	t.Helper()
	all, err := p.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		return machines.State{}
	}
	return all[0]
}

// A machine that is started again gets the current seed, address and data disk, and keeps its image.
func TestUpdate(t *testing.T) {
	c, m := newDrawer(t)
	p := New(c, drawer{})
	was := m.Image
	for name, f := range map[string]*machines.File{"image": &m.Image, "seed": &m.Seed} {
		f.Path, f.Identity = f.Path+"1", name+"1"
		testkit.Write(t, f.Path, "another "+name)
	}
	m.IP, m.Data = "192.168.10.9", 2<<20
	if err := p.Update(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if s := list(t, p); s.Image != "image0" || s.Seed != "seed1" || s.Power != machines.Off {
		t.Errorf("%+v", s)
	}
	if made, ok := p.Made("node1"); !ok || made.IP != m.IP || made.Image != was {
		t.Errorf("%+v", made)
	}
	for name, want := range map[string]string{ImageFile: "image", SeedFile: "another seed"} {
		if got, err := os.ReadFile(p.path("node1", name)); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if info, err := os.Stat(p.path("node1", DataDisk)); err != nil || info.Size() != 2<<20 {
		t.Errorf("%v, %v", info, err)
	}
}

// A machine that lacks a part, or whose record was damaged by a crash, is unfinished. Create makes it again and keeps
// its data.
func TestDamagedMachine(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"root":     os.Remove,
		SeedFile:   os.Remove,
		ImageFile:  os.Remove,
		recordFile: func(path string) error { return os.Truncate(path, 10) },
	} {
		c, m := newDrawer(t)
		p := New(c, drawer{})
		testkit.Write(t, p.path("node1", DataDisk), "precious")
		if err := damage(p.path("node1", name)); err != nil {
			t.Fatal(err)
		}
		if s := list(t, p); s.Power != machines.Unfinished {
			t.Errorf("%s: %+v", name, s)
		}
		if err := p.Start(t.Context(), "node1"); err == nil || errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: a machine that is not finished is started: %v", name, err)
		}
		if err := p.Create(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if s := list(t, p); s.Power != machines.Off || s.Image != "image0" {
			t.Errorf("%s: made again: %+v", name, s)
		}
		if data, err := os.ReadFile(p.path("node1", DataDisk)); !bytes.HasPrefix(data, []byte("precious")) {
			t.Errorf("%s: the data disk holds %.10q, %v", name, data, err)
		}
	}
}

// Without the cluster's secrets, machines can still be listed and removed.
func TestWithoutID(t *testing.T) {
	c, m := newDrawer(t)
	c.ClusterID = ""
	p := New(c, drawer{})
	if s := list(t, p); s.Power != machines.Off {
		t.Errorf("%+v", s)
	}
	m.Node = "node2"
	if err := p.Create(t.Context(), m); err == nil {
		t.Error("a machine without a mark was made")
	}
	if err := machines.RemoveAll(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "*")); left != nil {
		t.Errorf("left: %s", left)
	}
}

func TestGrowFile(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "data.img")
	for _, c := range []struct{ ask, want int64 }{{1 << 20, 1 << 20}, {4 << 20, 4 << 20}, {1 << 20, 4 << 20}} {
		if err := growFile(disk, c.ask); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(disk); err != nil || info.Size() != c.want || info.Mode() != 0o600 {
			t.Errorf("%d bytes asked for: %v, %v", c.ask, info, err)
		}
	}
}

package incus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/internal/incushosts"
	"imagegen/internal/testkit"
	"imagegen/machines"
	"imagegen/machines/conformance"
)

// hosts starts an Incus cluster, or skips the test.
func hosts(t *testing.T, n int) *incushosts.Cluster {
	t.Helper()
	if os.Getenv("IMAGEGEN_E2E") != "incus" {
		t.Skip("tests on real Incus daemons run with IMAGEGEN_E2E=incus, as root: make e2e-incus")
	}
	return incushosts.Start(t, n)
}

const testID = "5c9a9b0e-6e0c-4ea5-9d26-3a1f0c7a2b11"

// tiny makes a bootable image that contains only busybox, and a seed.
func tiny(t *testing.T, c *incushosts.Cluster, text string) (image, seed machines.File) {
	t.Helper()
	return tinyWith(t, c, text, nil)
}

// tinyWith adds programs to the image, by name.
func tinyWith(t *testing.T, c *incushosts.Cluster, text string, programs map[string][]byte) (image, seed machines.File) {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys", "run", "tmp", "etc", "var/lib", "data"} {
		testkit.OK(t, os.MkdirAll(filepath.Join(tree, d), 0o755))
	}
	busybox, err := os.ReadFile(filepath.Join(c.Root(), "usr/bin/busybox"))
	testkit.OK(t, err)
	testkit.OK(t, os.WriteFile(filepath.Join(tree, "bin/busybox"), busybox, 0o755))
	for _, name := range []string{"sh", "poweroff"} {
		testkit.OK(t, os.Symlink("busybox", filepath.Join(tree, "bin", name)))
	}
	for name, program := range programs {
		testkit.OK(t, os.WriteFile(filepath.Join(tree, "bin", name), program, 0o755))
	}
	testkit.OK(t, os.WriteFile(filepath.Join(tree, "sbin/init"), []byte("#!/bin/sh\necho this is "+text+" >/dev/console\nwhile :; do busybox sleep 1000; done\n"), 0o755))
	testkit.OK(t, os.WriteFile(filepath.Join(tree, "etc/version"), []byte(text), 0o644))
	disk := filepath.Join(dir, "disk.raw")
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-d", tree, disk, "64M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	iso := filepath.Join(dir, "seed.iso")
	testkit.OK(t, cloudinit.Seed{MetaData: []byte("instance-id: " + text + "\n"), UserData: []byte("#cloud-config\n{}\n"), NetworkConfig: []byte("version: 1\nconfig: []\n")}.WriteISO(iso))
	return machines.File{Path: disk, Identity: "image-" + text}, machines.File{Path: iso, Identity: "seed-" + text}
}

// backend tests Incus with the conformance suite.
type backend struct {
	*incushosts.Cluster
	images, seeds [2]machines.File
	before        []string // what the hosts have without machines
}

const projectName = "imagegen-suite"

func (b backend) Provider(_ *testing.T, step func() error) machines.Provider {
	p := New(Config{Cluster: "suite", ClusterID: testID, Hosts: b.Hosts(), Program: b.Incus("h1")})
	p.change = step
	return p
}

func (b backend) Machine(node string, version int) machines.Machine {
	h := b.Hosts()[int(node[len(node)-1])%len(b.Hosts())]
	return machines.Machine{Cluster: "suite", ClusterID: testID, Node: node, Role: "role", Host: h, CPUs: 1, Memory: 64 << 20, Data: 1 << 20,
		MAC: "02:00:00:00:00:0" + node[len(node)-1:], Image: b.images[version], Seed: b.seeds[version]}
}

func (b backend) Foreign(t *testing.T, node string) {
	testkit.OK(t, b.Provider(t, func() error { return nil }).(*Provider).ensureProject(t.Context()))
	b.Run("h1", "init", "--empty", "--no-profiles", "--project", projectName, "--storage", "default", "--target", b.Machine(node, 0).Host, node, "-c", "user.owner=somebody")
	t.Cleanup(func() {
		b.Run("h1", "delete", "--force", "--project", projectName, node)
		b.Run("h1", "project", "delete", projectName)
	})
}

func (b backend) ForeignIntact(t *testing.T, node string) {
	t.Helper()
	if got := b.Run("h1", "config", "get", "--project", projectName, node, "user.owner"); strings.TrimSpace(got) != "somebody" {
		t.Errorf("the foreign instance's owner is %q", got)
	}
}

func (b backend) Vanish(t *testing.T, node string) {
	b.Run("h1", "delete", "--force", "--project", projectName, node)
}

func (b backend) dataFile(node string) string {
	return filepath.Join(b.Pool(b.Machine(node, 0).Host), "custom", projectName+"_"+node+"-data", "text")
}

func (b backend) WriteData(t *testing.T, node, text string) {
	testkit.OK(t, os.WriteFile(b.dataFile(node), []byte(text), 0o644))
}

func (b backend) ReadData(t *testing.T, node string) string {
	t.Helper()
	data, err := os.ReadFile(b.dataFile(node))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(b.dataFile(node)))
	}
	testkit.OK(t, err)
	return string(data)
}

func (b backend) Leftovers(t *testing.T) []string {
	return slices.DeleteFunc(b.Holds(), func(s string) bool { return slices.Contains(b.before, s) })
}

// TestIncus runs the conformance suite with real daemons.
func TestIncus(t *testing.T) {
	c := hosts(t, 3)
	var b backend
	b.Cluster, b.before = c, c.Holds()
	for i := range 2 {
		b.images[i], b.seeds[i] = tiny(t, c, fmt.Sprint("version", i))
	}
	t.Run("OldImagesGo", b.oldImagesGo)
	t.Run("StopsWhatCannotFreeze", b.stopsWhatCannotFreeze)
	conformance.Run(t, func(*testing.T) conformance.Backend { return b })
}

// oldImagesGo: an image is removed once its last machine has been replaced by one of a later build.
func (b backend) oldImagesGo(t *testing.T) {
	p := b.Provider(t, func() error { return nil })
	t.Cleanup(func() { testkit.OK(t, machines.RemoveAll(context.Background(), p, nil)) })
	images := func() (identities []string) {
		all, err := p.(*Provider).ownImages(t.Context())
		testkit.OK(t, err)
		for _, i := range all {
			identities = append(identities, i.Properties[imageKey])
		}
		slices.Sort(identities)
		return identities
	}
	for _, node := range []string{"node1", "node2"} {
		testkit.OK(t, p.Create(t.Context(), b.Machine(node, 0)))
	}
	testkit.OK(t, machines.Replace(t.Context(), p, b.Machine("node1", 1), false))
	if got := images(); len(got) != 2 {
		t.Errorf("while node2 has the earlier image: %q", got)
	}
	testkit.OK(t, machines.Replace(t.Context(), p, b.Machine("node2", 1), false))
	if got := images(); len(got) != 1 || got[0] != b.images[1].Identity {
		t.Errorf("after both were replaced: %q", got)
	}
}

// Incus freezes a container before it kills it. A process that waits for a FUSE server in the same container does not freeze, so
// that a forced stop alone never returns.
func (b backend) stopsWhatCannotFreeze(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stuck")
	build := exec.Command("go", "build", "-o", path, "./testdata/stuck")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // the container has no C library
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(path)
	testkit.OK(t, err)
	b.images[0], b.seeds[0] = tinyWith(t, b.Cluster, "stuck", map[string][]byte{"stuck": program})
	p := b.Provider(t, func() error { return nil })
	t.Cleanup(func() { testkit.OK(t, machines.RemoveAll(context.Background(), p, nil)) })
	testkit.OK(t, errors.Join(p.Create(t.Context(), b.Machine("node1", 0)), p.Start(t.Context(), "node1")))
	b.Run("h1", "exec", "--project", projectName, "node1", "--", "sh", "-c", "stuck >/run/stuck 2>&1 &")
	testkit.Eventually(t, 30*time.Second, "a process waits for a file system", func() error {
		if said := b.Run("h1", "exec", "--project", projectName, "node1", "--", "busybox", "cat", "/run/stuck"); !strings.Contains(said, "a request waits") {
			return errors.New(said)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	testkit.OK(t, p.Stop(ctx, "node1"))
	if list, err := p.List(t.Context()); err != nil || len(list) != 1 || list[0].Power != machines.Off {
		t.Errorf("%+v, %v", list, err)
	}
}

// When the operator has removed a lost host from Incus, its nodes are created on other hosts.
func TestHostIsLost(t *testing.T) {
	c := hosts(t, 3)
	b := backend{Cluster: c}
	b.images[0], b.seeds[0] = tiny(t, c, "version0")
	config := Config{Cluster: "suite", ClusterID: testID, Hosts: c.Hosts(), Program: c.Incus("h1")}
	p := New(config)
	m := b.Machine("node1", 0)
	m.Host = "h2"
	testkit.OK(t, errors.Join(p.Create(t.Context(), m), p.Start(t.Context(), m.Node)))
	c.CutPower("h2")
	if err := p.Remove(t.Context(), m.Node, false); err == nil || !strings.Contains(err.Error(), "host h2") {
		t.Fatalf("remove a machine of a dead host: %v", err)
	}
	c.Run("h1", "cluster", "remove", "--force", "--yes", "h2")

	if err := p.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "host h2 is not in the Incus cluster, which has h1, h3") {
		t.Errorf("check: %v", err)
	}
	config.Hosts = []string{"h1", "h3"}
	p = New(config)
	testkit.OK(t, p.Check(t.Context()))
	if list, err := p.List(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	m.Host = "h3"
	testkit.OK(t, errors.Join(p.Create(t.Context(), m), p.Start(t.Context(), m.Node)))
	if list, err := p.List(t.Context()); err != nil || len(list) != 1 || list[0].Host != "h3" || list[0].Power != machines.On {
		t.Fatalf("%+v, %v", list, err)
	}
	testkit.OK(t, machines.RemoveAll(t.Context(), p, nil))
}

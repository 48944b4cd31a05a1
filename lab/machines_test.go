//go:build linux

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/internal/accel"
	"imagegen/internal/testkit"
	"imagegen/machines/local"
	"imagegen/machines/local/localtest"
	"imagegen/operate"
)

// TestMachines uses a lab of minimal machines, which need no distribution's image.
func TestMachines(t *testing.T) {
	t.Run("nspawn", func(t *testing.T) {
		testMachines(t, "labtest8", "nspawn", "qemu", "upper", localtest.Container(t, "booted"))
	})
	t.Run("qemu", func(t *testing.T) {
		testMachines(t, "labtest4", "qemu", "nspawn", "disk.qcow2", localtest.VM(t, "booted"))
	})
}

func needs(t *testing.T, provider string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	if err := testProviders[provider](local.Config{}).CheckRoom(3); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
}

func testMachines(t *testing.T, name, provider, other, root string, image localtest.Image) {
	needs(t, provider)
	ctx := t.Context()
	b := newTestLab(t, name, image.Path)
	for i := range b.spec.Roles {
		b.spec.Roles[i].Memory = 16 * cluster.MiB
	}
	if err := b.Up(ctx, nil, UpOptions{Site: b.site, Provider: provider}); err != nil {
		t.Fatal(err)
	}
	if err := b.Up(ctx, nil, UpOptions{Site: b.site, Provider: other}); err == nil || !strings.Contains(err.Error(), "imagegen down") {
		t.Errorf("up with another provider: %v", err)
	}
	boots := func(node string, times int) {
		t.Helper()
		testkit.Eventually(t, time.Minute, "boot of "+node, func() error {
			var log bytes.Buffer
			if err := b.Console(ctx, &log, node, false); err != nil || strings.Count(log.String(), image.Says) != times {
				return fmt.Errorf("%v, %q", err, &log)
			}
			return nil
		})
	}
	port := func(node string) error {
		return b.network.Do(func() error { _, err := net.InterfaceByName(port(node)); return err })
	}
	for _, n := range b.spec.Nodes() {
		boots(n.Name, 1)
		if err := port(n.Name); err != nil {
			t.Errorf("the network card of %s: %v", n.Name, err)
		}
	}
	if s := b.status(t)["store1"]; s.Power != "on" || s.State != "silent" {
		t.Errorf("a machine without an agent: %+v", s)
	}
	code, err := b.Exec(ctx, "store1", []string{"true"}, nil, nil, nil)
	switch provider {
	case "qemu":
		if err == nil || !strings.Contains(err.Error(), "SSH") {
			t.Errorf("exec without a key: %v", err)
		}
	case "nspawn":
		if code != 127 || err != nil { // the image has no program called true
			t.Errorf("exec: %d, %v", code, err)
		}
	}
	if err := b.Cut(ctx, []string{"store1"}, nil, false); err != nil {
		t.Error(err)
	}
	for _, n := range []int{2, 3} { // repeatedly, without a pause: disk and port must be free again
		if err := b.Kill(ctx, "store1"); err != nil {
			t.Fatal(err)
		}
		if s := b.status(t)["store1"]; s.Power != "off" || s.Detail != "" {
			t.Errorf("after the kill: %+v", s)
		}
		if err := port("store1"); err == nil {
			t.Error("after the kill its network card is still there")
		}
		if err := b.Start(ctx, "store1", "store2"); err != nil { // store2 is already on
			t.Fatal(err)
		}
		boots("store1", n)
	}

	in := func(node, name string) string { return filepath.Join(local.Dir(b.paths.lab(), node), name) }
	disk := in("store1", root)
	old, err := os.Open(disk) // open, so that a new file cannot get its inode
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	before, err := old.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Kill(ctx, "store1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("store1", local.DataDisk), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.newImage(t, "store")
	if s := b.status(t)["store1"]; s.Build != operate.BuildOlder {
		t.Errorf("a node of an old image: %+v", s)
	}
	if err := b.Replace(ctx, "store1", false); err != nil {
		t.Fatal(err)
	}
	boots("store1", 4)
	if after, err := os.Stat(disk); err != nil || os.SameFile(before, after) {
		t.Errorf("the replaced node has its old disk: %v", err)
	}
	if data, err := os.ReadFile(in("store1", local.DataDisk)); err != nil || !bytes.HasPrefix(data, []byte("kept")) {
		t.Errorf("the replaced node's data disk: %.10q, %v", data, err)
	}
	if s := b.status(t)["store1"]; s.Build != operate.BuildCurrent {
		t.Errorf("the new node is of the latest image: %+v", s)
	}

	if err := b.Kill(ctx, "store2"); err != nil {
		t.Fatal(err)
	}
	if provider == "qemu" {
		if err := os.WriteFile(in("store2", root), []byte("no disk"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := b.Start(ctx, "store2"); err == nil || !strings.Contains(err.Error(), "turn on store2: "+accel.QEMU) || !strings.Contains(err.Error(), root) {
			t.Errorf("start with a broken disk: %v", err)
		}
	}
	if err := b.Down(ctx); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t)
}

// newImage replaces a role's image by a copy, as a new build would.
func (b *testLab) newImage(t *testing.T, role string) {
	t.Helper()
	data, err := os.ReadFile(b.made.ImagePath(role))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(b.made.ImagePath(role)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.made.ImagePath(role), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKilledUpOfMachines kills up at different times.
func TestKilledUpOfMachines(t *testing.T) {
	t.Run("nspawn", func(t *testing.T) { killedUpOf(t, "labtest9", "nspawn", localtest.Container(t, "booted")) })
	t.Run("qemu", func(t *testing.T) { killedUpOf(t, "labtest5", "qemu", localtest.VM(t, "booted")) })
}

func killedUpOf(t *testing.T, name, provider string, image localtest.Image) {
	needs(t, provider)
	b := newTestLab(t, name, image.Path)
	b.killedUp(t, provider, 40*time.Millisecond)
	if err := b.Down(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t)
}

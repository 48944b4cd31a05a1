package images

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/internal/accel"
	"imagegen/internal/program"
	"imagegen/internal/testkit"
	"imagegen/internal/vboxtest"
)

// vboxHas lists what VirtualBox has of a kind.
func vboxHas(t *testing.T, kind string) string {
	t.Helper()
	out, err := exec.Command("VBoxManage", "-q", "list", kind).Output()
	if err != nil {
		t.Fatalf("list %s: %v", kind, err)
	}
	return string(out)
}

// TestRunVirtualBox: what a real VirtualBox passes on of a VM's two serial ports, and that nothing of it is left.
func TestRunVirtualBox(t *testing.T) {
	if !vboxtest.Rerun(t, vboxtest.HostNetwork) {
		return
	}
	var v virtualBox
	if err := v.check(); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	for _, tt := range []struct{ port, disk string }{{"console", speaker(t, "hello\n")}, {"bake", speakerAt(t, testkit.COM2, "hello\n")}} {
		ctx, end := context.WithCancelCause(t.Context())
		defer end(nil)
		ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("nothing came"))
		defer cancel()
		ends := &accel.Sign{Text: "hello\n", Seen: func() {
			if got := vboxHas(t, "runningvms"); !strings.Contains(got, `"imagegen-`) {
				t.Errorf("running: %q", got)
			}
			end(stop)
		}}
		ports := map[string]io.Writer{"console": io.Discard, "bake": io.Discard}
		ports[tt.port] = ends
		if err := v.run(ctx, bareVM(t, tt.disk), ports["console"], ports["bake"]); err != stop {
			t.Errorf("%s: %v", tt.port, err)
		}
		if left := vboxHas(t, "vms") + vboxHas(t, "hdds") + vboxHas(t, "dvds"); left != "" {
			t.Errorf("VirtualBox still has %s", left)
		}
	}
	m := bareVM(t, speaker(t, ""))
	m.seed = "/nonexistent/seed.iso"
	if err := v.run(t.Context(), m, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "VBoxManage storageattach: ") {
		t.Errorf("a VM that VirtualBox does not make: %v", err)
	}
	if left := vboxHas(t, "vms"); left != "" {
		t.Errorf("VirtualBox still has %s", left)
	}
}

// TestVBoxLeftovers: the VM of an imagegen that was killed is gone after the next one's start.
func TestVBoxLeftovers(t *testing.T) {
	if !vboxtest.Rerun(t, vboxtest.HostNetwork) {
		return
	}
	c := Config{CacheDir: t.TempDir()}
	m := bareVM(t, speaker(t, ""))
	m.work = filepath.Join(c.CacheDir, "work", "bake-dead")
	folder := filepath.Join(m.work, vboxFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	calls, err := virtualBox{}.steps(m, filepath.Join(folder, "port1"), filepath.Join(folder, "port2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range calls {
		if err := vboxManage(t.Context(), call...); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("VBoxManage", "startvm", "imagegen-bake-dead", "--type", "headless").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := vboxHas(t, "runningvms"); !strings.Contains(got, `"imagegen-bake-dead"`) {
		t.Fatalf("running: %q", got)
	}
	if err := c.removeLeftovers(t.Context()); err != nil {
		t.Error(err)
	}
	if left := vboxHas(t, "vms"); left != "" {
		t.Errorf("VirtualBox still has %s", left)
	}
	if left := files(t, filepath.Join(c.CacheDir, "work")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestBakeInVirtualBox: as far as a VirtualBox without hardware virtualisation gets in minutes: the boot loader has found
// the kernel on the disk. Then it is interrupted, and leaves nothing.
func TestBakeInVirtualBox(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("IMAGEGEN_E2E is not vm: bakes in VirtualBox are NOT tested")
	}
	needBake(t)
	if !vboxtest.Rerun(t, vboxtest.HostNetwork) {
		return
	}
	cache := t.TempDir()
	c := mustConfig(t, testDir(t, redisSpec, nil), cache)
	c.Builder = "virtualbox"
	began := time.Now()
	c.UI = told(func(image, what string) { t.Logf("%5.1f s %s: %s", time.Since(began).Seconds(), image, what) })
	ctx, end := context.WithTimeout(t.Context(), time.Hour)
	defer end()
	ended := make(chan error, 1)
	go func() {
		_, err := Build(ctx, c)
		ended <- err
	}()
	found, look := false, time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			if !found || !errors.Is(err, context.Canceled) {
				t.Errorf("the bake has ended with %v; kernel found: %t", err, found)
			}
			if left := vboxHas(t, "vms") + vboxHas(t, "hdds"); left != "" {
				t.Errorf("VirtualBox still has %s", left)
			}
			if left := append(files(t, filepath.Join(cache, "images")), files(t, filepath.Join(cache, "work"))...); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			return
		case <-look.C:
			console, _ := os.ReadFile(filepath.Join(cache, "log", "redis.log"))
			if !found && strings.Contains(string(console), "\nLoading /boot/vmlinuz-") {
				t.Logf("%5.1f s %s", time.Since(began).Seconds(), program.LastLines(strings.NewReader(string(console)), 1))
				found = true
				end()
			}
		}
	}
}

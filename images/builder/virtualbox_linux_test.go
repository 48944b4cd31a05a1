package builder

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
	"imagegen/internal/testkit"
	"imagegen/internal/vbox"
	"imagegen/internal/vboxtest"
)

// TestRunVirtualBox: a real VirtualBox passes on the output of both serial ports, and nothing of the VM is left.
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
			if got := vboxtest.List(t, "runningvms"); !strings.Contains(got, `"imagegen-`) {
				t.Errorf("running: %q", got)
			}
			end(stop)
		}}
		ports := map[string]io.Writer{"console": io.Discard, "bake": io.Discard}
		ports[tt.port] = ends
		if err := v.run(ctx, bareVM(t, tt.disk), ports["console"], ports["bake"]); err != stop {
			t.Errorf("%s: %v", tt.port, err)
		}
		if left := vboxtest.List(t, "vms") + vboxtest.List(t, "hdds") + vboxtest.List(t, "dvds"); left != "" {
			t.Errorf("VirtualBox still has %s", left)
		}
	}
	m := bareVM(t, speaker(t, ""))
	m.seed = "/nonexistent/seed.iso"
	if err := v.run(t.Context(), m, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "VBoxManage storageattach: ") {
		t.Errorf("a VM that VirtualBox does not make: %v", err)
	}
	if left := vboxtest.List(t, "vms"); left != "" {
		t.Errorf("VirtualBox still has %s", left)
	}
}

// TestVBoxLeftovers: Clean removes the VM that a killed bake left behind.
func TestVBoxLeftovers(t *testing.T) {
	if !vboxtest.Rerun(t, vboxtest.HostNetwork) {
		return
	}
	m := bareVM(t, speaker(t, ""))
	m.work = filepath.Join(t.TempDir(), "bake-dead")
	folder := filepath.Join(m.work, vboxFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	calls, err := virtualBox{}.steps(m, filepath.Join(folder, "port1"), filepath.Join(folder, "port2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range calls {
		if _, err := vbox.Manage(t.Context(), call...); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("VBoxManage", "startvm", "imagegen-bake-dead", "--type", "headless").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := vboxtest.List(t, "runningvms"); !strings.Contains(got, `"imagegen-bake-dead"`) {
		t.Fatalf("running: %q", got)
	}
	if err := Clean(t.Context(), m.work); err != nil {
		t.Error(err)
	}
	if left := vboxtest.List(t, "vms"); left != "" {
		t.Errorf("VirtualBox still has %s", left)
	}
}

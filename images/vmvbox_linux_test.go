package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/internal/program"
	"imagegen/internal/vboxtest"
)

// TestBakeInVirtualBox boots a VM until the boot loader finds the kernel, as far as VirtualBox gets in minutes without
// hardware virtualization. Then it interrupts the bake, which must leave nothing behind.
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
			if left := vboxtest.List(t, "vms") + vboxtest.List(t, "hdds"); left != "" {
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

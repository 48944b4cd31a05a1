package testkit

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// NoKVM makes package accel find that KVM does not work, for this test and the programs that it starts: it would have to boot an
// image to find out, and not every image boots.
func NoKVM(t testing.TB) {
	t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Skipf("SKIPPED: needs Linux: %v", err)
	}
	note, err := json.Marshal(map[string]string{"boot": strings.TrimSpace(string(boot)), "broken": "machines of tests are emulated"})
	if err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	Write(t, filepath.Join(cache, "imagegen", "kvm.json"), string(note))
}

package accel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

func speaker(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a,disk.raw") // the comma would end QEMU's option
	if err := os.WriteFile(path, testkit.Speaker(1<<20, testkit.COM1, text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBootsWith(t *testing.T) {
	if _, err := exec.LookPath(QEMU); err != nil {
		t.Skipf("SKIPPED: %s is missing: make checkers", QEMU)
	}
	boots := speaker(t, "1 systemd[1]: hello\n")
	if err := bootsWith(t.Context(), "tcg", boots, "raw", time.Minute); err != nil {
		t.Errorf("a guest that boots: %v", err)
	}
	for what, c := range map[string]struct {
		disk, accel, want string
		limit             time.Duration
	}{
		"a guest that hangs":           {speaker(t, "systemd[2]: nearly\n"), "tcg", "said nothing within 3s", 3 * time.Second},
		"an accelerator that is not":   {boots, "warp", "warp", time.Minute},
		"a disk that cannot be opened": {boots + "x", "tcg", "No such file", time.Minute},
	} {
		if err := bootsWith(t.Context(), c.accel, c.disk, "raw", c.limit); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

func TestSign(t *testing.T) {
	for pieces := 1; pieces < 12; pieces++ {
		seen := 0
		var all bytes.Buffer
		s := Sign{Text: "KVM internal error", Seen: func() { seen++ }, All: &all}
		text := "warning\nKVM internal errors"
		for rest := text; rest != ""; {
			n := min(pieces, len(rest))
			fmt.Fprint(&s, rest[:n])
			rest = rest[n:]
		}
		if seen == 0 || all.String() != text {
			t.Errorf("written %d bytes at a time: seen %d times, kept %q", pieces, seen, &all)
		}
	}
}

func TestProbeOnce(t *testing.T) {
	note := filepath.Join(t.TempDir(), "imagegen", "kvm.json")
	booted := 0
	var fate, stop error
	ask := func(wantAccel, wantWhy string, wantBooted int) {
		t.Helper()
		accel, why, err := probeOnce(note, func() error { booted++; return fate }, func() error { return stop })
		if accel != wantAccel || !strings.Contains(why, wantWhy) || !errors.Is(err, stop) || booted != wantBooted {
			t.Errorf("%q, %q, %v after %d boots; want %q, %q after %d", accel, why, err, booted, wantAccel, wantWhy, wantBooted)
		}
	}
	stop = errors.New("interrupted")
	ask("", "", 1) // tells nothing, and is not noted
	fate, stop = errors.New("it hangs"), nil
	ask("tcg", "it hangs", 2)
	fate = nil
	ask("tcg", "it hangs (found earlier", 2)
	for _, other := range []string{`{"boot":"another"}`, `{"boot":""}`, `{"bo`, ""} { // of an earlier boot of the machine, or broken
		if err := os.WriteFile(note, []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		booted = 0
		ask("kvm", "has been booted", 1)
		ask("kvm", "found earlier", 1)
	}
	note, booted = "", 0
	ask("kvm", "has been booted", 1)
	ask("kvm", "has been booted", 2)
}

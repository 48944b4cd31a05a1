package images

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
)

// speaker is a disk whose boot sector writes text to the first serial port and halts.
func speaker(t *testing.T, text string) string { return speakerAt(t, 0x3f8, text) }

// speakerAt is one that writes to a serial port.
func speakerAt(t *testing.T, port uint16, text string) string {
	t.Helper()
	lo, hi := byte(port), byte(port>>8)
	code := []byte{
		0xfc,                   // cld
		0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
		0xbe, 0x38, 0x7c, // mov si, the text
		// 115200 baud, 8 bits: without it VirtualBox's port is silent.
		0xba, lo + 3, hi, 0xb0, 0x83, 0xee, // mov dx, port+3; mov al, 83h; out dx, al
		0xba, lo, hi, 0xb0, 0x01, 0xee, // mov dx, port; mov al, 1; out dx, al
		0x42, 0xb0, 0x00, 0xee, // inc dx; mov al, 0; out dx, al
		0xba, lo + 3, hi, 0xb0, 0x03, 0xee, // mov dx, port+3; mov al, 3; out dx, al
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x12, // jz end
		0x88, 0xc4, // mov ah, al
		0xba, lo + 5, hi, // mov dx, port+5
		0xec,       // busy: in al, dx
		0xa8, 0x20, // test al, 20h
		0x74, 0xfb, // jz busy
		0x88, 0xe0, // mov al, ah
		0xba, lo, hi, // mov dx, port
		0xee,       // out dx, al
		0xeb, 0xe9, // jmp next
		0xf4,       // end: hlt
		0xeb, 0xfd, // jmp end
	}
	disk := make([]byte, 1<<20)
	copy(disk, append(code, text...))
	disk[510], disk[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "a,disk.raw") // the comma would end QEMU's option
	if err := os.WriteFile(path, disk, 0o600); err != nil {
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
	for what, c := range map[string]struct{ disk, accel, want string }{
		"a guest that hangs":           {speaker(t, "systemd[2]: nearly\n"), "tcg", "said nothing within 3s"},
		"an accelerator that is not":   {boots, "warp", "warp"},
		"a disk that cannot be opened": {boots + "x", "tcg", "No such file"},
	} {
		if err := bootsWith(t.Context(), c.accel, c.disk, "raw", 3*time.Second); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

func TestSign(t *testing.T) {
	for pieces := 1; pieces < 12; pieces++ {
		seen := 0
		var all bytes.Buffer
		s := sign{text: "KVM internal error", seen: func() { seen++ }, all: &all}
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

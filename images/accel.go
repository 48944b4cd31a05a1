package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// QEMU is the program that an image's machine runs in; Debian's package qemu-system-x86 brings it.
const QEMU = "qemu-system-x86_64"

// probeLimit is how long a guest may take to its first process on a processor that really runs it: three seconds on an
// idle machine.
const probeLimit = 20 * time.Second

// Accelerator returns what QEMU is to run guests with on this machine: "kvm" where a guest has been seen to boot with it,
// else "tcg", emulation; why says what was found, for people. That there is a /dev/kvm proves little: where it is itself
// emulated or nested, QEMU starts and the guest hangs. So the disk, of an image or a base and in the format raw or qcow2,
// is booted as far as its first process. Nothing is written to it. What was found is noted in the user's cache folder and
// holds until the machine is booted anew.
func Accelerator(ctx context.Context, disk, format string) (accel, why string, err error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", fmt.Sprintf("emulated, without KVM: %v", err), nil
	}
	f.Close()
	return probeOnce(probeNote(), func() error { return bootsWith(ctx, "kvm", disk, format, probeLimit) }, ctx.Err)
}

// probe is what a boot with KVM has shown, in the note of it.
type probe struct {
	Boot   string `json:"boot"`             // the machine's, as the kernel names it
	Broken string `json:"broken,omitempty"` // why KVM is of no use; empty: it works
}

// probeNote returns the file of the note; empty when there is no place for one.
func probeNote() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "imagegen", "kvm.json")
}

// probeOnce says what note has of this boot of the machine, or else runs boots and notes what that has shown, unless
// stopped says that it was not left to its end. Without a note the next call boots again, which costs time alone.
func probeOnce(note string, boots, stopped func() error) (accel, why string, err error) {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	boot := string(bytes.TrimSpace(id))
	var p probe
	earlier := ""
	if data, err := os.ReadFile(note); err == nil && json.Unmarshal(data, &p) == nil && boot != "" && p.Boot == boot {
		earlier = fmt.Sprintf(" (found earlier; without %s it is tried again)", note)
	} else {
		p = probe{Boot: boot}
		if err := boots(); err != nil {
			p.Broken = err.Error()
		}
		if err := stopped(); err != nil {
			return "", "", err
		}
		p.write(note)
	}
	if p.Broken != "" {
		return "tcg", fmt.Sprintf("emulated, since a guest does not boot with KVM here: %s%s", p.Broken, earlier), nil
	}
	return "kvm", "with KVM, with which a guest has been booted" + earlier, nil
}

// write replaces the note, if it can.
func (p probe) write(note string) {
	data, err := json.Marshal(p)
	if err != nil || note == "" || os.MkdirAll(filepath.Dir(note), 0o755) != nil {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(note), ".kvm-")
	if err != nil {
		return
	}
	_, err = f.Write(data)
	if errors.Join(err, f.Close()) != nil || os.Rename(f.Name(), note) != nil {
		os.Remove(f.Name())
	}
}

// Processor returns QEMU's arguments for a guest's processors, of which an emulated one has one, whatever cpus says. Its
// clock goes 4 ns for each instruction, which is about what emulation takes: all time limits inside are then in time that
// the guest has had, so that one that gets too little of this machine's is slow, but does not fall apart.
//
// What has been translated is kept in up to 256 MiB of memory. It is found again by its address: where each process has
// its libraries elsewhere, each is translated anew, which takes longer than all else. So systemd is asked to leave them in
// one place (systemd-sysctl.service(8), credential sysctl.extra; systemd 252 or later).
func Processor(accel string, cpus int) []string {
	if accel == "kvm" {
		return []string{"-accel", "kvm", "-cpu", "host", "-smp", strconv.Itoa(cpus)}
	}
	return []string{"-accel", "tcg,tb-size=256", "-icount", "shift=2,sleep=on", "-cpu", "qemu64", "-smp", "1",
		"-smbios", "type=11,value=io.systemd.credential:sysctl.extra=kernel.randomize_va_space=0"}
}

// Signs of what became of a guest: on its serial console, and in what QEMU says.
const (
	firstProcess = "systemd[1]: "
	kvmBroken    = "KVM internal error" // after which QEMU keeps the guest stopped, for debuggers
)

var errBooted = errors.New("booted")

// bootsWith boots a disk until its first process speaks; the error says why it has not.
func bootsWith(ctx context.Context, accel, disk, format string, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("its first process has said nothing within %s", limit))
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, QEMU, "-accel", accel, "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-drive", "file="+strings.ReplaceAll(disk, ",", ",,")+",format="+format+",if=virtio,snapshot=on", "-serial", "stdio")
	cmd.Stdout = &sign{text: firstProcess, seen: func() { end(errBooted) }}
	cmd.Stderr = &sign{text: kvmBroken, seen: func() { end(errors.New(kvmBroken)) }, all: &said}
	err := cmd.Run()
	switch cause := context.Cause(ctx); {
	case cause == errBooted:
		return nil
	case cause != nil:
		return cause
	case err == nil:
		return errors.New("the guest has ended by itself")
	}
	return fmt.Errorf("%w: %s", err, bytes.TrimSpace(said.Bytes()))
}

// sign is a writer that calls seen when text has been written.
type sign struct {
	text string
	seen func()
	all  *bytes.Buffer // if not nil: keeps everything
	tail []byte
}

func (s *sign) Write(p []byte) (int, error) {
	if s.all != nil {
		s.all.Write(p)
	}
	s.tail = append(s.tail, p...)
	if bytes.Contains(s.tail, []byte(s.text)) {
		s.seen()
	}
	s.tail = bytes.Clone(s.tail[max(0, len(s.tail)-len(s.text)):])
	return len(p), nil
}

// Package accel finds out how QEMU can run guests on this computer: with KVM, or emulated.
package accel

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

// QEMU is the program that runs virtual machines, from Debian's package qemu-system-x86.
const QEMU = "qemu-system-x86_64"

// probeLimit is how long a guest may take to its first process with KVM: three seconds on an idle computer.
const probeLimit = 20 * time.Second

// Find returns which accelerator QEMU should use on this computer: "kvm" where a guest boots with it, else "tcg" (emulation); why
// explains it to people. A /dev/kvm proves little: where it is nested or emulated itself, QEMU starts and the guest hangs. So
// disk (raw or qcow2) is booted as far as its first process, without writing to it. The result is cached in the user's cache
// folder until this computer is rebooted.
func Find(ctx context.Context, disk, format string) (accel, why string, err error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", fmt.Sprintf("emulated, without KVM: %v", err), nil
	}
	f.Close()
	return probeOnce(probeNote(), func() error { return bootsWith(ctx, "kvm", disk, format, probeLimit) }, ctx.Err)
}

// probe is the cached result of a boot with KVM.
type probe struct {
	Boot   string `json:"boot"`             // the kernel's boot_id
	Broken string `json:"broken,omitempty"` // why KVM cannot be used; empty: it works
}

// probeNote returns the cache file; empty if there is no cache folder.
func probeNote() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "imagegen", "kvm.json")
}

// probeOnce returns the result that is cached in note for this boot of the computer. Otherwise it calls boots and caches the
// result, unless stopped returns an error: then boots was interrupted, and its result means nothing.
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

// write replaces the cache file. Errors are ignored: the next call then boots a guest again.
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

// Processor returns QEMU's arguments for a guest's processors. An emulated guest has one, whatever cpus says, and its clock advances
// 4 ns per instruction, which is about the speed of emulation: timeouts inside count the guest's own time, so a guest that gets
// too little of this computer's is slow, but its timeouts do not expire.
//
// Translated code is cached in up to 256 MiB of memory, by address. With address space randomisation, every process's libraries
// would be translated again, which dominates a boot. So systemd is told to turn it off (systemd-sysctl.service(8), credential
// sysctl.extra; systemd 252 or later).
func Processor(accel string, cpus int) []string {
	if accel == "kvm" {
		return []string{"-accel", "kvm", "-cpu", "host", "-smp", strconv.Itoa(cpus)}
	}
	return []string{"-accel", "tcg,tb-size=256", "-icount", "shift=2,sleep=on", "-cpu", "qemu64", "-smp", "1",
		"-smbios", "type=11,value=io.systemd.credential:sysctl.extra=kernel.randomize_va_space=0"}
}

// Signs of a guest's fate, on its serial console and in QEMU's messages.
const (
	firstProcess = "systemd[1]: "
	kvmBroken    = "KVM internal error" // QEMU then keeps the guest stopped, for debuggers
)

var errBooted = errors.New("booted")

// bootsWith boots a disk until its first process prints something. The error says why it did not.
func bootsWith(ctx context.Context, accel, disk, format string, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("its first process has said nothing within %s", limit))
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, QEMU, "-accel", accel, "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-drive", "file="+strings.ReplaceAll(disk, ",", ",,")+",format="+format+",if=virtio,snapshot=on", "-serial", "stdio")
	cmd.Stdout = &Sign{Text: firstProcess, Seen: func() { end(errBooted) }}
	cmd.Stderr = &Sign{Text: kvmBroken, Seen: func() { end(errors.New(kvmBroken)) }, All: &said}
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

// Sign is a writer that calls Seen once Text has been written to it.
type Sign struct {
	Text string
	Seen func()
	All  *bytes.Buffer // if not nil: keeps everything
	tail []byte
}

func (s *Sign) Write(p []byte) (int, error) {
	if s.All != nil {
		s.All.Write(p)
	}
	s.tail = append(s.tail, p...)
	if bytes.Contains(s.tail, []byte(s.Text)) {
		s.Seen()
	}
	s.tail = bytes.Clone(s.tail[max(0, len(s.tail)-len(s.Text)):])
	return len(p), nil
}

package builder

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"imagegen/internal/accel"
)

// qemu runs VMs with QEMU, each as a child of this process.
type qemu struct {
	mu    sync.Mutex
	accel string // the accelerator, from accel.Find; empty until it is known
}

func (*qemu) check() error {
	if _, err := exec.LookPath(accel.QEMU); err != nil {
		return fmt.Errorf("%s is not installed: apt-get install qemu-system-x86", accel.QEMU)
	}
	return nil
}

func (q *qemu) prepare(ctx context.Context, disk string, note func(string)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.accel != "" {
		return nil
	}
	found, why, err := accel.Find(ctx, disk, "raw")
	if err != nil {
		return err
	}
	q.accel = found
	note("qemu: " + why)
	return nil
}

// args returns QEMU's arguments. The first serial port is written to file descriptor 3, the second to QEMU's standard
// output.
func (q *qemu) args(m vm) []string {
	path := func(p string) string { return strings.ReplaceAll(p, ",", ",,") } // QEMU's escape for a comma, which separates options
	network := "user,id=net,restrict=on"
	if m.network {
		network = "user,id=net"
	}
	args := append(accel.Processor(q.accel, 2),
		"-m", fmt.Sprint(m.memory), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=,mac="+vmMAC, "-device", "virtio-rng-pci",
		"-chardev", "file,id=console,path=/proc/self/fd/3", "-serial", "chardev:console", "-serial", "stdio",
		"-drive", "file="+path(m.seed)+",format=raw,if=ide,media=cdrom,readonly=on")
	for i, d := range m.disks {
		how := ",readonly=on"
		if i == 0 { // unsafe: the finished disk is flushed as a whole
			how = ",discard=unmap,cache=unsafe"
		}
		args = append(args, "-drive", "file="+path(d)+",format=raw,if=virtio"+how)
	}
	return append(args, "-drive", "file="+path(m.made)+",format=raw,if=virtio,cache=unsafe")
}

// run implements hypervisor. The VM is killed with ctx, or with imagegen even if that is killed.
func (q *qemu) run(ctx context.Context, m vm, console, bake io.Writer) error {
	// The kernel kills the child when the thread that started it ends, so the thread must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	heard, port, err := os.Pipe()
	if err != nil {
		return err
	}
	defer heard.Close()
	var said strings.Builder
	cmd := exec.CommandContext(ctx, accel.QEMU, q.args(m)...)
	cmd.Stdout, cmd.Stderr = bake, &said
	cmd.ExtraFiles = []*os.File{port}
	// Ctrl-C must reach only imagegen, which then kills the VM.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		port.Close()
		return err
	}
	port.Close()
	done := make(chan struct{})
	go func() {
		io.Copy(console, heard) // until the VM ends
		close(done)
	}()
	err = cmd.Wait()
	<-done
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", accel.QEMU, err, strings.TrimSpace(said.String()))
	}
	return nil
}

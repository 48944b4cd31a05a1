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
	accel string // as accel.Find says; empty: not asked yet
}

func (*qemu) check() error {
	if _, err := exec.LookPath(accel.QEMU); err != nil {
		return fmt.Errorf("there is no %s: apt-get install qemu-system-x86", accel.QEMU)
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

// args are QEMU's. File descriptor 3 is where the first serial port goes; the second is QEMU's output.
func (q *qemu) args(m vm) []string {
	path := func(p string) string { return strings.ReplaceAll(p, ",", ",,") } // a comma ends an option
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
		if i == 0 { // what is written is brought to the disk when all of it is there
			how = ",discard=unmap,cache=unsafe"
		}
		args = append(args, "-drive", "file="+path(d)+",format=raw,if=virtio"+how)
	}
	return append(args, "-drive", "file="+path(m.made)+",format=raw,if=virtio,cache=unsafe")
}

// run's VM ends with ctx, and with imagegen however that ends.
func (q *qemu) run(ctx context.Context, m vm, console, bake io.Writer) error {
	// The kernel ends the child when the thread that started it ends, so that has to be one that stays.
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
	// A Ctrl-C is for imagegen, which ends the VM.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		port.Close()
		return err
	}
	port.Close()
	done := make(chan struct{})
	go func() {
		io.Copy(console, heard) // ends with the VM
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

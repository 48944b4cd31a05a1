package builder

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imagegen/internal/program"
	"imagegen/internal/uuid"
	"imagegen/internal/vbox"
)

// virtualBox runs VMs with VirtualBox. While a VM is in use, it is registered in the VirtualBox of the user who runs
// imagegen.
type virtualBox struct{}

// vboxFolder exists in a bake's folder if a VM is or was registered for it.
const vboxFolder = "virtualbox"

func (virtualBox) check() error {
	for _, name := range []string{"VBoxManage", "VBoxHeadless"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%s is not installed: install VirtualBox, see https://www.virtualbox.org", name)
		}
	}
	return nil
}

func (virtualBox) prepare(context.Context, string, func(string)) error { return nil }

// vboxName returns the name of the VM of the bake in folder work.
func vboxName(work string) string { return "imagegen-" + filepath.Base(work) }

// steps returns the VBoxManage calls that create the VM. Its serial ports write to the existing files console and bake.
func (virtualBox) steps(m vm, console, bake string) ([][]string, error) {
	name, folder := vboxName(m.work), filepath.Join(m.work, vboxFolder)
	calls := [][]string{
		{"createvm", "--name", name, "--basefolder", folder, "--ostype", "Linux26_64", "--register"},
		{"modifyvm", name, "--memory", strconv.FormatInt((m.memory+3)/4*4, 10), "--cpus", "2", "--ioapic", "on", "--rtcuseutc", "on", "--boot1", "disk",
			"--bioslogofadein", "off", "--bioslogofadeout", "off", "--bioslogodisplaytime", "0",
			"--nic1", "nat", "--nictype1", "82540EM", "--macaddress1", strings.ReplaceAll(vmMAC, ":", ""),
			"--uart1", "0x3f8", "4", "--uartmode1", "file", console, "--uart2", "0x2f8", "3", "--uartmode2", "file", bake},
		{"storagectl", name, "--name", "SATA", "--add", "sata", "--controller", "IntelAhci", "--portcount", strconv.Itoa(len(m.disks) + 2)},
		{"storageattach", name, "--storagectl", "SATA", "--port", strconv.Itoa(len(m.disks) + 1), "--type", "dvddrive", "--medium", m.seed},
	}
	if m.network { // the NAT router forwards to proxies on this machine's loopback address
		calls[1] = append(calls[1], "--nat-localhostreachable1", "on")
	}
	for i, d := range append(m.disks[:len(m.disks):len(m.disks)], m.made) {
		descriptor, err := flatVMDK(d)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(folder, fmt.Sprintf("disk%d.vmdk", i))
		if err := os.WriteFile(file, descriptor, 0o600); err != nil {
			return nil, err
		}
		calls = append(calls, []string{"storageattach", name, "--storagectl", "SATA", "--port", strconv.Itoa(i), "--type", "hdd", "--medium", file})
	}
	return calls, nil
}

// flatVMDK returns a descriptor that makes VirtualBox use a raw disk without copying it. VirtualBox requires a UUID.
func flatVMDK(disk string) ([]byte, error) {
	info, err := os.Stat(disk)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(disk, "\"\n") {
		return nil, fmt.Errorf("VirtualBox does not accept this file name for a disk: %s", disk)
	}
	sectors := (info.Size() + 512 - 1) / 512
	if err := os.Truncate(disk, sectors*512); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\nRW %d FLAT \"%s\" 0\n\n"+
		"ddb.virtualHWVersion = \"4\"\nddb.adapterType=\"ide\"\nddb.geometry.cylinders=\"%d\"\nddb.geometry.heads=\"16\"\nddb.geometry.sectors=\"63\"\n"+
		"ddb.uuid.image=\"%s\"\n",
		info.Size()&0xffffffff|1, sectors, disk, min(sectors/(16*63), 16383), uuid.Of(rand.Text())), nil
}

// run implements hypervisor. The VM is killed with ctx or with imagegen, unless VBoxHeadless is setuid (which clears
// PDEATHSIG): then the next build stops it.
func (v virtualBox) run(ctx context.Context, m vm, console, bake io.Writer) (err error) {
	folder := filepath.Join(m.work, vboxFolder)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	defer func() {
		if left := v.forget(context.WithoutCancel(ctx), m.work); left != nil {
			err = errors.Join(err, left)
		}
	}()
	ports := make([]string, 2)
	for i, to := range []io.Writer{console, bake} {
		ports[i] = filepath.Join(folder, fmt.Sprintf("port%d", i+1))
		end, err := listen(ports[i], to)
		if err != nil {
			return err
		}
		defer end()
	}
	calls, err := v.steps(m, ports[0], ports[1])
	if err != nil {
		return err
	}
	for _, c := range calls {
		if _, err := vbox.Manage(ctx, c...); err != nil {
			return cmpCause(ctx, err)
		}
	}
	// The kernel kills the child when the thread that started it ends, so the thread must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var said strings.Builder
	cmd := exec.CommandContext(ctx, "VBoxHeadless", "--startvm", vboxName(m.work), "--vrde", "off")
	cmd.Stdout, cmd.Stderr = &said, &said
	// On SIGTERM, VBoxHeadless powers the VM off.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Second
	// Ctrl-C must reach only imagegen, which then stops the VM.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Run(); err != nil {
		return cmpCause(ctx, fmt.Errorf("VBoxHeadless: %w: %s", err, program.LastLines(strings.NewReader(said.String()), 4)))
	}
	return context.Cause(ctx)
}

// cmpCause returns the cause of ctx's end, or err if ctx has not ended.
func cmpCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// listen makes a FIFO for a serial port and copies what VirtualBox writes into it. end waits until the rest is copied.
func listen(path string, to io.Writer) (end func(), err error) {
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	// A reader and a writer that stay open: VirtualBox never blocks on opening, and its closing the FIFO is not the end
	// of the stream.
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		r.Close()
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		io.Copy(to, r)
		close(done)
	}()
	return func() {
		w.Close()
		<-done
		r.Close()
	}, nil
}

// forget stops the VM of the bake in folder work, if it runs, and removes the VM and its seed from VirtualBox's
// registry.
func (virtualBox) forget(ctx context.Context, work string) error {
	name := vboxName(work)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := vbox.Manage(ctx, "showvminfo", name, "--machinereadable"); vbox.IsCode(err, "VBOX_E_OBJECT_NOT_FOUND") {
			vbox.Manage(ctx, "closemedium", "dvd", filepath.Join(work, seedName)) // ignore the error: it may not be registered
			return nil
		} else if err != nil {
			return err
		}
		vbox.Manage(ctx, "controlvm", name, "poweroff") // ignore the error: it may be off
		_, err := vbox.Manage(ctx, "unregistervm", name)
		if err == nil {
			continue
		}
		// VirtualBox reports a VM as running for a moment after its process has ended.
		select {
		case <-ctx.Done():
			return fmt.Errorf("the VM %s is still in VirtualBox's list: %w", name, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

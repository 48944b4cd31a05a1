package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"imagegen/cluster"
	"imagegen/internal/accel"
	"imagegen/internal/cgroup"
	"imagegen/internal/netns"
	"imagegen/internal/program"
	"imagegen/machines"
	"imagegen/machines/local"
)

// New returns the provider of a cluster's virtual machines.
func New(c local.Config) *local.Provider { return local.New(c, &driver{c: c}) }

type driver struct {
	c    local.Config
	tell sync.Once // says how machines run
}

// In a machine's folder.
const (
	changesDisk = "disk.qcow2"  // what the machine has changed on its root disk
	accelFile   = "accelerator" // kvm or tcg: a machine keeps the one that it was made with
	knownHosts  = "known_hosts" // of SSH; the machine's key is made at its first boot
)

func (*driver) Check(int) error {
	return program.Lacks([][2]string{{accel.QEMU, "qemu-system-x86"}, {"qemu-img", "qemu-utils"}, {"ip", "iproute2"}}, [][2]string{{netns.TunDevice, "tun"}})
}

func (*driver) Emulated(dir string) bool { return accelerator(dir) == "tcg" }

func accelerator(dir string) string {
	data, _ := os.ReadFile(filepath.Join(dir, accelFile)) // without it, the machine is not finished
	return string(data)
}

func (*driver) Root() string { return changesDisk }

func (*driver) Released(string) bool { return true } // with the process

func (d *driver) Make(ctx context.Context, dir string, _ machines.Machine, step func() error) error {
	if accelerator(dir) == "" {
		if err := step(); err != nil {
			return err
		}
		found, why, err := accel.Find(ctx, filepath.Join(dir, local.ImageFile), "raw")
		if err != nil {
			return err
		}
		d.tell.Do(func() { d.c.Log("virtual machines run %s", why) })
		if err := replace(filepath.Join(dir, accelFile), func(aside string) error { return os.WriteFile(aside, []byte(found), 0o600) }); err != nil {
			return err
		}
	}
	disk := filepath.Join(dir, changesDisk)
	if _, err := os.Stat(disk); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := step(); err != nil {
		return err
	}
	return replace(disk, func(aside string) error {
		cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", local.ImageFile, filepath.Base(aside))
		cmd.Dir = dir
		runtime.LockOSThread() // Pdeathsig kills qemu-img when the thread that started it ends
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make the root disk: qemu-img: %w: %s", err, bytes.TrimSpace(out))
		}
		return os.Chmod(aside, 0o600)
	})
}

// replace renames what write has written.
func replace(path string, write func(aside string) error) error {
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := write(aside); err != nil {
		return err
	}
	return os.Rename(aside, path)
}

func (d *driver) Start(dir string, m machines.Machine, in *os.File) (started func() error, err error) {
	cable, err := netns.Name(d.c.Network).Plug(d.c.Port(m.Node))
	if err != nil {
		return nil, err
	}
	defer cable.Close()
	var said bytes.Buffer
	cmd := exec.Command(accel.QEMU, d.args(m, accelerator(dir))...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + program.Path}
	cmd.Stderr = &said
	cmd.ExtraFiles = []*os.File{cable}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(in.Fd()), Unshareflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		if err := cmd.Wait(); err != nil { // QEMU goes to the background once it has opened everything
			return fmt.Errorf("%s: %w: %s", accel.QEMU, err, bytes.TrimSpace(said.Bytes()))
		}
		return nil
	}, nil
}

// args are QEMU's. Files are in the machine's folder, where it is started; file descriptor 3 is the cable.
func (d *driver) args(m machines.Machine, accelerator string) []string {
	args := append([]string{"-name", d.c.Network + ":" + m.Node, "-machine", "pc"}, accel.Processor(accelerator, m.CPUs)...)
	args = append(args,
		"-m", strconv.FormatInt((m.Memory+int64(cluster.MiB)-1)/int64(cluster.MiB), 10),
		"-nodefaults", "-no-user-config", "-display", "none", "-rtc", "base=utc", "-daemonize",
		"-device", "virtio-rng-pci",
		"-drive", "file="+changesDisk+",format=qcow2,if=virtio,discard=unmap")
	if m.Data > 0 {
		args = append(args, "-drive", "file="+local.DataDisk+",format=raw,if=virtio,discard=unmap")
	}
	return append(args,
		"-drive", "file="+local.SeedFile+",format=raw,if=ide,media=cdrom,readonly=on",
		"-chardev", "file,id=console,path="+local.Console+",append=on", "-serial", "chardev:console",
		"-netdev", "tap,id=lan,fd=3", "-device", "virtio-net-pci,netdev=lan,romfile=,mac="+m.MAC)
}

// Command uses SSH, the only way into a virtual machine. The caller must have one of the keys that the nodes accept.
func (d *driver) Command(dir string, m machines.Machine, _ cgroup.Group, argv []string) (*exec.Cmd, error) {
	if len(d.c.SSH.Keys) == 0 {
		return nil, fmt.Errorf("%s is a virtual machine, into which the only way is SSH, and the spec lets nobody in: "+
			"put your public key into ssh.keys, then imagegen seed, imagegen kill %[1]s and imagegen start %[1]s", m.Node)
	}
	if err := program.Lacks([][2]string{{"ssh", "openssh-client"}, {"nsenter", "util-linux"}}, nil); err != nil {
		return nil, err
	}
	home, _ := os.UserHomeDir() // without one there is ssh-agent
	cmd := exec.Command("nsenter", d.execArgs(m, keyFiles(filepath.Join(home, ".ssh"), d.c.SSH.Keys), argv)...)
	cmd.Dir = dir
	return cmd, nil
}

// execArgs are the arguments of nsenter for running a command on a machine by SSH, from inside the cluster's network.
func (d *driver) execArgs(m machines.Machine, keys, argv []string) []string {
	args := []string{"--net=" + netns.Name(d.c.Network).Path(), "--", "ssh", "-F", "none", "-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "ConnectTimeout=30", "-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile=" + knownHosts}
	for _, k := range keys {
		args = append(args, "-i", k)
	}
	args = append(args, d.c.SSH.User+"@"+m.IP, "--")
	if d.c.SSH.User != "root" {
		args = append(args, "sudo", "-n", "-H", "--")
	}
	for _, a := range argv { // ssh joins them into one line for a shell
		args = append(args, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
	}
	return args
}

// keyFiles returns the private keys in a folder whose public keys are among keys.
func keyFiles(dir string, keys []string) []string {
	var files []string
	names, _ := filepath.Glob(filepath.Join(dir, "*.pub")) // no folder: no key
	for _, name := range names {
		have, _ := os.ReadFile(name)
		for _, k := range keys {
			if h, w := strings.Fields(string(have)), strings.Fields(k); len(h) > 1 && len(w) > 1 && h[1] == w[1] {
				files = append(files, strings.TrimSuffix(name, ".pub"))
				break
			}
		}
	}
	return files
}

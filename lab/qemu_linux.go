package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"imagegen/cluster"
	"imagegen/internal/accel"
)

// qemu runs nodes as virtual machines: the image's file with the node's changes in a disk over it, the seed as a CD-ROM,
// the data disk as a second disk, a network card whose cable ends in the cluster's network, and the serial port as
// console. All of a machine is one process, which holds the cable: both go together.
type qemu struct {
	*Lab
	accel string // as accel.Find says
}

// In a node's folder.
const (
	changesDisk = "disk.qcow2"
	knownHosts  = "known_hosts" // of SSH; the node's key is made with the node
)

func (q qemu) check(int) error {
	return lacks([][2]string{{accel.QEMU, "qemu-system-x86"}, {"qemu-img", "qemu-utils"}}, [][2]string{{tunDevice, "tun"}})
}

// atOnce keeps emulated nodes from taking each other's processor time for so long that systemd gives up on units.
func (q qemu) atOnce() int {
	if q.accel == "kvm" {
		return 0
	}
	return runtime.NumCPU()
}

func (q qemu) changes() []string { return []string{changesDisk, knownHosts} }

func (q qemu) makeNode(ctx context.Context, n cluster.Node) error {
	disk := q.paths.in(n.Name, changesDisk)
	if _, err := os.Stat(disk); err == nil {
		return nil
	}
	const aside = changesDisk + ".new"
	group := q.helper("qemu-img")
	if err := group.kill(ctx); err != nil { // what a killed imagegen has left at work
		return err
	}
	in, err := group.open()
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", imageFile, aside)
	cmd.Dir = q.paths.node(n.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.Fd())}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make its disk: qemu-img: %w: %s", err, bytes.TrimSpace(out))
	}
	if err := os.Chmod(q.paths.in(n.Name, aside), 0o600); err != nil {
		return err
	}
	return os.Rename(q.paths.in(n.Name, aside), disk)
}

func (q qemu) start(n cluster.Node, in *os.File) (started func() error, err error) {
	cable, err := q.network.plug(q.port(n.Name))
	if err != nil {
		return nil, err
	}
	defer cable.Close()
	var said bytes.Buffer
	cmd := exec.Command(accel.QEMU, q.args(n)...)
	cmd.Dir = q.paths.node(n.Name)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stderr = &said
	cmd.ExtraFiles = []*os.File{cable}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(in.Fd()), Unshareflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	// It goes to the background when all that it was given is in use.
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	return func() error {
		if err := <-gone; err != nil {
			return fmt.Errorf("%s: %w: %s", accel.QEMU, err, bytes.TrimSpace(said.Bytes()))
		}
		return nil
	}, nil
}

// args are QEMU's. Files are in the node's folder, where it is started; file descriptor 3 is the cable.
func (q qemu) args(n cluster.Node) []string {
	role := q.spec.Role(n.Role)
	args := append([]string{"-name", string(q.network) + ":" + n.Name, "-machine", "pc"}, accel.Processor(q.accel, role.CPUs)...)
	args = append(args,
		"-m", strconv.FormatInt(int64((role.Memory+cluster.MiB-1)/cluster.MiB), 10),
		"-nodefaults", "-no-user-config", "-display", "none", "-rtc", "base=utc", "-daemonize",
		"-device", "virtio-rng-pci",
		"-drive", "file="+changesDisk+",format=qcow2,if=virtio,discard=unmap")
	if role.Data > 0 {
		args = append(args, "-drive", "file="+dataDisk+",format=raw,if=virtio,discard=unmap")
	}
	return append(args,
		"-drive", "file="+seedFile+",format=raw,if=ide,media=cdrom,readonly=on",
		"-chardev", "file,id=console,path="+filepath.Base(q.paths.console(n.Name))+",append=on", "-serial", "chardev:console",
		"-netdev", "tap,id=lan,fd=3", "-device", "virtio-net-pci,netdev=lan,romfile=,mac="+n.MAC)
}

// exec goes by SSH, the only way into a virtual machine. Whoever runs imagegen must have one of the keys that the spec
// lets in.
func (q qemu) exec(n cluster.Node, argv []string) (*exec.Cmd, error) {
	if len(q.spec.SSH.Keys) == 0 {
		return nil, fmt.Errorf("%s is a virtual machine, into which the only way is SSH, and the spec lets nobody in: "+
			"put your public key into ssh.keys, then imagegen seed, imagegen kill %[1]s and imagegen start %[1]s", n.Name)
	}
	if err := lacks([][2]string{{"ssh", "openssh-client"}, {"nsenter", "util-linux"}}, nil); err != nil {
		return nil, err
	}
	home, _ := os.UserHomeDir() // without one there is ssh-agent
	cmd := exec.Command("nsenter", q.execArgs(n, keyFiles(filepath.Join(home, ".ssh"), q.spec.SSH.Keys), argv)...)
	cmd.Dir = q.paths.node(n.Name)
	return cmd, nil
}

// execArgs are the arguments of nsenter for running a command on a node by SSH, out of the cluster's network.
func (q qemu) execArgs(n cluster.Node, keys, argv []string) []string {
	args := []string{"--net=" + q.network.path(), "--", "ssh", "-F", "none", "-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "ConnectTimeout=30", "-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile=" + knownHosts}
	for _, k := range keys {
		args = append(args, "-i", k)
	}
	args = append(args, q.spec.SSH.User+"@"+n.IP.String(), "--")
	if q.spec.SSH.User != "root" {
		args = append(args, "sudo", "-n", "-H", "--")
	}
	for _, a := range argv { // ssh makes one line of them, for a shell
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

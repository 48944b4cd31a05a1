package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"imagegen/cloudinit"
	"imagegen/cluster"
)

// A node's folder, beside its console's log.
const (
	imageFile = "image.raw" // hard link: the node keeps the image that it was made from
	dataDisk  = "data.img"
	seedDir   = "seed"
	turnedOn  = "turned-on" // empty; its time says when
)

// rootOffset is where the root partition of an image begins, in bytes.
const rootOffset = 1 << 20

//go:embed poweron.sh
var powerOnScript string

// powerOn starts a node that is off, and returns without waiting. The function that it returns waits until the node is
// on, which means that its init is about to run, or tells why it is not.
func (l *Lab) powerOn(ctx context.Context, n cluster.Node) (started func() error, err error) {
	group := l.group.sub(n.Name)
	if err := group.remove(); err != nil { // of the last time
		return nil, err
	}
	if err := l.released(ctx, n.Name); err != nil {
		return nil, err
	}
	if err := l.makeNode(n); err != nil {
		return nil, err
	}
	image, err := openLoop(l.paths.in(n.Name, imageFile), rootOffset, true)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	disks, data := []*os.File{image}, ""
	if l.spec.Role(n.Role).Data > 0 {
		d, err := openLoop(l.paths.in(n.Name, dataDisk), 0, false)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		disks, data = append(disks, d), d.Name()
	}
	console, err := os.OpenFile(l.paths.console(n.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer console.Close()
	in, err := group.open()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	messages, stderr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	cmd := exec.Command("/bin/sh", slices.Concat([]string{"-c", powerOnScript, "poweron"}, l.powerOnArgs(n, image.Name(), data))...)
	cmd.Dir = l.paths.node(n.Name)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = console, stderr
	cmd.ExtraFiles = disks // until they are in use
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, UseCgroupFD: true, CgroupFD: int(in.Fd()),
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
	}
	if err := cmd.Start(); err != nil {
		messages.Close()
		return nil, err
	}
	go cmd.Wait() // for as long as this process lives
	if err := os.WriteFile(l.paths.in(n.Name, turnedOn), nil, 0o600); err != nil {
		l.log("%s: %v", n.Name, err) // for status alone
	}
	return func() error {
		defer messages.Close()
		said, err := io.ReadAll(messages) // ends when the script does, or hands over to nspawn
		if err != nil {
			return err
		}
		if why, failed := strings.CutSuffix(strings.TrimSpace(string(said)), "not on"); failed {
			return errors.New(strings.TrimSpace(why))
		}
		return nil
	}, nil
}

// powerOnArgs are the arguments of poweron.sh.
func (l *Lab) powerOnArgs(n cluster.Node, image, data string) []string {
	return []string{n.Name, n.MAC, string(l.network), l.port(n.Name), image, data}
}

// makeNode makes a node's folder, with its disks if it has none yet, and its seed as it is now.
func (l *Lab) makeNode(n cluster.Node) error {
	for _, dir := range []string{"image", "upper", "work", "root", seedDir} {
		if err := os.MkdirAll(l.paths.in(n.Name, dir), 0o700); err != nil {
			return err
		}
	}
	// The node's root folder shows the mode of this one.
	if err := os.Chmod(l.paths.in(n.Name, "upper"), 0o755); err != nil {
		return err
	}
	if err := os.Link(l.paths.image(n.Role), l.paths.in(n.Name, imageFile)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if size := l.spec.Role(n.Role).Data; size > 0 {
		if err := growFile(l.paths.in(n.Name, dataDisk), int64(size)); err != nil {
			return err
		}
	}
	seed, err := cloudinit.ReadISO(l.paths.seed(n.Name))
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"user-data": seed.UserData, "meta-data": seed.MetaData, "network-config": seed.NetworkConfig} {
		path := l.paths.in(n.Name, seedDir+"/"+name)
		// A file that an interrupted run left short is different, too.
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
			continue
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// growFile makes a file of this size that takes no space yet, or makes it larger. A smaller size changes nothing.
func growFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() >= size {
		return nil
	}
	return f.Truncate(size)
}

// Exec runs a command on a node and returns its exit code: 128 and the signal's number when a signal ended it.
func (l *Lab) Exec(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	if _, err := l.pick([]string{node}); err != nil {
		return 0, err
	}
	if len(argv) == 0 {
		return 0, errors.New("no command to run")
	}
	owner, err := currentOwner(l.spec.Cluster)
	if err != nil {
		return 0, err
	}
	group := l.group.sub(node)
	if owner != l.paths.lab() || !group.busy() {
		return 0, fmt.Errorf("%s is off: imagegen start %s turns it on", node, node)
	}
	init, ok := initOf(group)
	if !ok {
		return 0, fmt.Errorf("%s has only just been turned on: try again", node)
	}
	// In a cgroup of the node's, so that a power cut ends the command, too.
	in, err := group.sub("exec").open()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	bound, err := boundingSet(init)
	if err != nil {
		return 0, fmt.Errorf("%s has just gone off: %w", node, err)
	}
	cmd := exec.CommandContext(ctx, "setpriv", execArgs(init, bound, argv)...)
	cmd.Env = execEnv(os.Getenv("TERM"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.Fd())}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			return 128 + int(status.Signal()), ctx.Err()
		}
		return exit.ExitCode(), ctx.Err()
	}
	return 0, err
}

// initOf returns the first process of the container in a node's cgroup, by its process id on this machine.
func initOf(group cgroup) (pid int, ok bool) {
	for _, c := range group.below() {
		for _, pid := range c.pids() {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // it may have ended
			for line := range strings.Lines(string(status)) {
				if ids, is := strings.CutPrefix(line, "NSpid:"); is {
					if f := strings.Fields(ids); len(f) == 2 && f[1] == "1" {
						return pid, true
					}
				}
			}
		}
	}
	return 0, false
}

// execArgs are the arguments of setpriv for running a command as the node's own root, who may do less than ours.
func execArgs(init int, bound uint64, argv []string) []string {
	caps := "-all"
	for n := range 64 {
		if bound>>n&1 != 0 {
			caps += ",+cap_" + strconv.Itoa(n)
		}
	}
	return append([]string{"--bounding-set=" + caps, "nsenter", "--target=" + strconv.Itoa(init), "--all", "--root", "--wd", "--"}, argv...)
}

// boundingSet returns the capabilities that a process and its children can have at most, a bit each.
func boundingSet(pid int) (uint64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if hex, is := strings.CutPrefix(line, "CapBnd:"); is {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, errors.New("no CapBnd in its status")
}

func execEnv(term string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LANG=C.UTF-8"}
	if term != "" {
		env = append(env, "TERM="+term)
	}
	return env
}

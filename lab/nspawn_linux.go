package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"imagegen/cloudinit"
	"imagegen/cluster"
)

// nspawn runs nodes in system containers, on the root file system in the image and with the files on the seed.
type nspawn struct{ *Lab }

// In a node's folder, beside the mount points.
const (
	upperDir = "upper" // the node's changes
	workDir  = "work"  // overlayfs's own
	seedDir  = "seed"  // the files on the seed
)

// rootOffset is where the root partition of an image begins, in bytes.
const rootOffset = 1 << 20

//go:embed poweron.sh
var powerOnScript string

func (s nspawn) check(nodes int) error {
	err := lacks([][2]string{{"systemd-nspawn", "systemd-container"}, {"nsenter", "util-linux"}, {"setpriv", "util-linux"}, {"mount", "mount"}},
		[][2]string{{"/dev/fuse", "fuse"}, {loopControl, "loop"}})
	return errors.Join(err, checkInotify(nodes))
}

func (nspawn) atOnce() int { return 0 }

func (nspawn) changes() []string { return []string{upperDir, workDir} }

func (s nspawn) start(n cluster.Node, in *os.File) (started func() error, err error) {
	console, err := os.OpenFile(s.paths.console(n.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer console.Close()
	image, err := openLoop(s.paths.in(n.Name, imageFile), rootOffset, true)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	disks, data := []*os.File{image}, ""
	if s.spec.Role(n.Role).Data > 0 {
		d, err := openLoop(s.paths.in(n.Name, dataDisk), 0, false)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		disks, data = append(disks, d), d.Name()
	}
	messages, stderr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	cmd := exec.Command("/bin/sh", slices.Concat([]string{"-c", powerOnScript, "poweron"}, s.powerOnArgs(n, image.Name(), data))...)
	cmd.Dir = s.paths.node(n.Name)
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
	// On means that the node's init is about to run.
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
func (s nspawn) powerOnArgs(n cluster.Node, image, data string) []string {
	return []string{n.Name, n.MAC, string(s.network), s.port(n.Name), image, data}
}

// makeNode makes the mount points, and puts the seed's files where they are looked for.
func (s nspawn) makeNode(_ context.Context, n cluster.Node) error {
	for _, dir := range []string{"image", upperDir, workDir, "root", seedDir} {
		if err := os.MkdirAll(s.paths.in(n.Name, dir), 0o700); err != nil {
			return err
		}
	}
	// The node's root folder shows the mode of this one.
	if err := os.Chmod(s.paths.in(n.Name, upperDir), 0o755); err != nil {
		return err
	}
	seed, err := cloudinit.ReadISO(s.paths.in(n.Name, seedFile))
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"user-data": seed.UserData, "meta-data": seed.MetaData, "network-config": seed.NetworkConfig} {
		path := s.paths.in(n.Name, seedDir+"/"+name)
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

func (s nspawn) exec(n cluster.Node, argv []string) (*exec.Cmd, error) {
	init, ok := initOf(s.group.sub(n.Name))
	if !ok {
		return nil, fmt.Errorf("%s has only just been turned on: try again", n.Name)
	}
	bound, err := boundingSet(init)
	if err != nil {
		return nil, fmt.Errorf("%s has just gone off: %w", n.Name, err)
	}
	cmd := exec.Command("setpriv", execArgs(init, bound, argv)...)
	cmd.Env = execEnv(os.Getenv("TERM"))
	return cmd, nil
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

// inotifyPerNode is how many inotify instances a node keeps: systemd 3, D-Bus 1, and one for a role's own daemon.
const inotifyPerNode = 5

// checkInotify makes sure that the kernel has inotify instances left for that many nodes. They are counted for each
// user of the machine, and nodes have no users of their own; without one, a node's systemd hangs.
func checkInotify(nodes int) error {
	const file = "/proc/sys/fs/inotify/max_user_instances"
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	used := inotifyInUse()
	if used+nodes*inotifyPerNode <= limit {
		return nil
	}
	return fmt.Errorf("%d nodes need %d inotify instances; of the %d that this machine allows, %d are in use: allow more with sysctl -w fs.inotify.max_user_instances=%d",
		nodes, nodes*inotifyPerNode, limit, used, 1024)
}

// inotifyInUse counts root's inotify instances.
func inotifyInUse() (n int) {
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, p := range processes {
		if info, err := os.Stat(p); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
			continue
		}
		fds, _ := os.ReadDir(p + "/fd") // it may have ended
		for _, fd := range fds {
			if target, _ := os.Readlink(p + "/fd/" + fd.Name()); target == "anon_inode:inotify" {
				n++
			}
		}
	}
	return n
}

package nspawn

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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/internal/cgroup"
	"imagegen/internal/loop"
	"imagegen/internal/netns"
	"imagegen/internal/program"
	"imagegen/machines"
	"imagegen/machines/local"
)

// New returns the provider of a cluster's containers.
func New(c local.Config) *local.Provider { return local.New(c, driver{c.Network, c.Port}) }

type driver struct {
	network string
	port    func(node string) string
}

// In a machine's folder, beside the mount points.
const (
	upperDir = "upper" // what the machine has changed on its root disk
	workDir  = "work"  // overlayfs's own
	seedDir  = "seed"  // the files of the seed
)

// rootOffset is the offset of an image's root partition, in bytes.
const rootOffset = 1 << 20

//go:embed poweron.sh
var powerOnScript string

func (driver) Check(machines int) error {
	err := program.Lacks([][2]string{{"systemd-nspawn", "systemd-container"}, {"ip", "iproute2"}, {"nsenter", "util-linux"}, {"setpriv", "util-linux"}, {"mount", "mount"}},
		[][2]string{{"/dev/fuse", "fuse"}, {loop.Control, "loop"}})
	return errors.Join(err, checkInotify(machines))
}

func (driver) Emulated(string) bool { return false }

func (driver) Root() string { return upperDir }

func (driver) Released(dir string) bool { return !loop.Attached(filepath.Join(dir, local.DataDisk)) }

// Make makes the mount points, and the files of the seed.
func (driver) Make(_ context.Context, dir string, _ machines.Machine, step func() error) error {
	// The container's root folder has the mode of the first one.
	for name, mode := range map[string]fs.FileMode{upperDir: 0o755, workDir: 0o700, "image": 0o700, "root": 0o700, seedDir: 0o700} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().Perm() == mode {
			continue
		}
		if err := step(); err != nil {
			return err
		}
		if err := os.MkdirAll(path, mode); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	seed, err := cloudinit.ReadISO(filepath.Join(dir, local.SeedFile))
	if err != nil {
		return err
	}
	files := seed.FilesOnISO()
	if _, ok := files[nocloud.GenerationFile]; !ok { // an earlier seed's
		if err := os.Remove(filepath.Join(dir, seedDir, nocloud.GenerationFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for name, data := range files {
		path := filepath.Join(dir, seedDir, name)
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) { // not one that an interrupted run left short
			continue
		}
		if err := step(); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (d driver) Start(dir string, m machines.Machine, in *os.File) (started func() error, err error) {
	console, err := os.OpenFile(filepath.Join(dir, local.Console), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer console.Close()
	image, err := loop.Open(filepath.Join(dir, local.ImageFile), rootOffset, true)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	disks, data := []*os.File{image}, ""
	if m.Data > 0 {
		disk, err := loop.Open(filepath.Join(dir, local.DataDisk), 0, false)
		if err != nil {
			return nil, err
		}
		defer disk.Close()
		disks, data = append(disks, disk), disk.Name()
	}
	messages, stderr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	cmd := exec.Command("/bin/sh", slices.Concat([]string{"-c", powerOnScript, "poweron"}, d.powerOnArgs(m, image.Name(), data))...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + program.Path}
	cmd.Stdout, cmd.Stderr = console, stderr
	cmd.ExtraFiles = disks // until they are mounted
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, UseCgroupFD: true, CgroupFD: int(in.Fd()),
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
	}
	if err := cmd.Start(); err != nil {
		messages.Close()
		return nil, err
	}
	go cmd.Wait() // for as long as this process lives
	// The machine is on when its init is about to run.
	return func() error {
		defer messages.Close()
		said, err := io.ReadAll(messages) // ends when the script does, or becomes nspawn
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
func (d driver) powerOnArgs(m machines.Machine, image, data string) []string {
	return []string{m.Node, m.MAC, d.network, d.port(m.Node), netns.Bridge, image, data}
}

func (driver) Command(_ string, m machines.Machine, group cgroup.Group, argv []string) (*exec.Cmd, error) {
	init, ok := initOf(group)
	if !ok {
		return nil, fmt.Errorf("%s has only just been turned on: try again", m.Node)
	}
	bound, err := boundingSet(init)
	if err != nil {
		return nil, fmt.Errorf("%s has just gone off: %w", m.Node, err)
	}
	cmd := exec.Command("setpriv", execArgs(init, bound, argv)...)
	cmd.Env = execEnv(os.Getenv("TERM"))
	return cmd, nil
}

// initOf returns the process id, on this computer, of the first process of the container in a cgroup.
func initOf(group cgroup.Group) (pid int, ok bool) {
	for _, c := range group.Below() {
		for _, pid := range c.Pids() {
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

// execArgs are the arguments of setpriv for running a command as the container's root, who has fewer capabilities than ours.
func execArgs(init int, bound uint64, argv []string) []string {
	caps := "-all"
	for n := range 64 {
		if bound>>n&1 != 0 {
			caps += ",+cap_" + strconv.Itoa(n)
		}
	}
	return append([]string{"--bounding-set=" + caps, "nsenter", "--target=" + strconv.Itoa(init), "--all", "--root", "--wd", "--"}, argv...)
}

// boundingSet returns the most capabilities that a process and its children can have, a bit each.
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
	env := []string{"PATH=" + program.Path, "HOME=/root", "USER=root", "LANG=C.UTF-8"}
	if term != "" {
		env = append(env, "TERM="+term)
	}
	return env
}

// inotifyPerNode is how many inotify instances a node uses: systemd 3, D-Bus 1, and one for a role's own daemon.
const inotifyPerNode = 5

// checkInotify fails when there are not enough inotify instances left for that many nodes. The kernel counts them by user of the
// host, so all nodes share root's. A systemd that gets none hangs.
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

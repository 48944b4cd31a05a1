// Package cgroup starts processes in folders of the cgroup2 file system and kills all of them at once. What runs is read from the
// kernel, so no process id is ever remembered.
package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"imagegen/internal/poll"
)

// Group is a folder of the cgroup2 file system.
type Group string

// KillLimit is how long killed processes may take to be gone: mostly file systems that are written out.
const KillLimit = 30 * time.Second

// Root returns where cgroup2 is mounted.
func Root() (Group, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return Group(f[1]), nil
		}
	}
	return "", errors.New("no cgroup2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

// Sub returns the group called name in c.
func (c Group) Sub(name string) Group { return Group(filepath.Join(string(c), name)) }

// Exists tells whether c is there.
func (c Group) Exists() bool {
	_, err := os.Stat(string(c))
	return err == nil
}

// Busy tells whether there is a process in c or below it.
func (c Group) Busy() bool {
	data, err := os.ReadFile(filepath.Join(string(c), "cgroup.events"))
	return err == nil && bytes.Contains(data, []byte("populated 1"))
}

// Open makes c if it is missing, and opens it for starting processes in it.
func (c Group) Open() (*os.File, error) {
	if err := os.MkdirAll(string(c), 0o755); err != nil {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	return os.Open(string(c))
}

// Pids returns the processes in c itself.
func (c Group) Pids() []int {
	data, _ := os.ReadFile(filepath.Join(string(c), "cgroup.procs")) // no such cgroup: no process
	var pids []int
	for f := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Below returns c and all cgroups below it, parents first.
func (c Group) Below() []Group {
	var all []Group
	filepath.WalkDir(string(c), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, Group(path))
		}
		return nil // what is gone needs no visit
	})
	return all
}

// Kill kills every process in c and below it at once, waits until they are gone, and removes c.
func (c Group) Kill(ctx context.Context) error {
	err := os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) && !c.Exists() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill all in %s: %w", c, err)
	}
	ctx, cancel := context.WithTimeout(ctx, KillLimit)
	defer cancel()
	if !poll.Until(ctx, func() bool { return !c.Busy() }) {
		var left []int
		for _, s := range c.Below() {
			left = append(left, s.Pids()...)
		}
		return fmt.Errorf("killed, but not gone yet: processes %v (%w)", left, context.Cause(ctx))
	}
	return c.Remove()
}

// Remove removes c, which has no processes left.
func (c Group) Remove() error {
	all := c.Below()
	for i := range all {
		if err := os.Remove(string(all[len(all)-1-i])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a cgroup: %w", err)
		}
	}
	return nil
}

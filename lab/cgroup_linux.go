package lab

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
)

// cgroup is a folder of the cgroup2 file system. Every process that the lab starts is in one, so none is ever looked
// for by a remembered process id, and all of them can be killed at once.
type cgroup string

const (
	killLimit = 30 * time.Second // for file systems to be written out, mostly
	pollEvery = 5 * time.Millisecond
)

// cgroupRoot returns where cgroup2 is mounted.
func cgroupRoot() (cgroup, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return cgroup(f[1]), nil
		}
	}
	return "", errors.New("no cgroup2 is mounted, which the lab needs: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

func (c cgroup) sub(name string) cgroup { return cgroup(filepath.Join(string(c), name)) }

func (c cgroup) exists() bool {
	_, err := os.Stat(string(c))
	return err == nil
}

// busy tells whether there is a process in c or below it.
func (c cgroup) busy() bool {
	data, err := os.ReadFile(filepath.Join(string(c), "cgroup.events"))
	return err == nil && bytes.Contains(data, []byte("populated 1"))
}

// open makes c, if need be, and returns it for starting processes in it.
func (c cgroup) open() (*os.File, error) {
	if err := os.MkdirAll(string(c), 0o755); err != nil {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	return os.Open(string(c))
}

// pids returns the processes in c itself.
func (c cgroup) pids() []int {
	data, _ := os.ReadFile(filepath.Join(string(c), "cgroup.procs")) // no such cgroup: no process
	var pids []int
	for f := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// below returns c and all cgroups below it, parents first.
func (c cgroup) below() []cgroup {
	var all []cgroup
	filepath.WalkDir(string(c), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, cgroup(path))
		}
		return nil // what is gone needs no visit
	})
	return all
}

// kill kills every process in c and below it at once, waits until they are gone, and removes c.
func (c cgroup) kill(ctx context.Context) error {
	err := os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) && !c.exists() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill all in %s: %w", c, err)
	}
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	if !poll(ctx, func() bool { return !c.busy() }) {
		var left []int
		for _, s := range c.below() {
			left = append(left, s.pids()...)
		}
		return fmt.Errorf("killed, but not gone yet: processes %v (%w)", left, context.Cause(ctx))
	}
	return c.remove()
}

// remove removes c, in which no process is left.
func (c cgroup) remove() error {
	all := c.below()
	for i := range all {
		if err := os.Remove(string(all[len(all)-1-i])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a cgroup: %w", err)
		}
	}
	return nil
}

// poll asks until the answer is yes; false when ctx ends first.
func poll(ctx context.Context, done func() bool) bool {
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pollEvery):
		}
	}
	return true
}

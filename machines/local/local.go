// Package local keeps machines on this computer: what the containers of package nspawn and the virtual machines of package qemu
// have in common. A machine is a folder and a cgroup.
//
// In its folder, DIR/nodes/NODE:
//
//	cluster       the id of the cluster that the folder belongs to; a folder without it is foreign
//	machine.json  what the machine was made from; without "Finished": true it is being made or removed
//	image.raw     a hard link: the machine keeps the image that it was made from
//	seed.iso      a hard link: the seed that the machine was last turned on with
//	data.img      the data disk, sparse
//	console.log   what the node's machines have printed; it survives replacement
//	turned-on     empty; its modification time says when
//
// and what the driver keeps of a machine. All processes of a machine are in its cgroup, so what runs is read from the kernel, and
// killing the cgroup is a power cut.
package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"imagegen/cluster"
	"imagegen/internal/cgroup"
	"imagegen/internal/poll"
	"imagegen/machines"
)

// Config is what a provider of machines on this computer is made of.
type Config struct {
	// ClusterID marks machines. Empty, because the cluster's secrets are lost: machines in Dir can be listed, stopped and removed,
	// whatever their mark, but not made.
	ClusterID string
	Dir       string
	Group     cgroup.Group // has a group for each machine
	// Network is the name of the network namespace, with a bridge (package netns), that machines are connected to.
	Network string
	Port    func(node string) string         // name of a node's port on the bridge
	SSH     cluster.SSH                      // who may log in to the nodes
	Log     func(format string, args ...any) // prints a line
	Step    func() error                     // for tests: is called before every change, and ends the operation by an error; may be nil
}

// Driver is how machines run.
type Driver interface {
	// Check fails when this computer lacks something for running that many more machines.
	Check(machines int) error
	// Root names the part of a machine's folder that holds its root disk, or what the machine has changed on it.
	Root() string
	// Make adds to a machine's folder, which has the image, the seed and the data disk, what else it takes. What is there
	// already stays, except for what comes from the seed. step is called before every change.
	Make(ctx context.Context, dir string, m machines.Machine, step func() error) error
	// Start starts a machine that is off in its cgroup, which is open as in, and returns without waiting. The function that it
	// returns waits until the machine is on, or tells why it is not.
	Start(dir string, m machines.Machine, in *os.File) (started func() error, err error)
	// Released tells whether the kernel has let go of the disks of a machine that is off.
	Released(dir string) bool
	// Command returns the command that runs argv as root on a machine that is on.
	Command(dir string, m machines.Machine, group cgroup.Group, argv []string) (*exec.Cmd, error)
	// Emulated tells whether the machine runs on an emulated processor.
	Emulated(dir string) bool
}

// Names in a machine's folder. Drivers use those that are exported.
const (
	ImageFile  = "image.raw"
	SeedFile   = "seed.iso"
	DataDisk   = "data.img"
	Console    = "console.log"
	markFile   = "cluster"
	recordFile = "machine.json"
	turnedOn   = "turned-on"
)

// Provider is a [machines.Provider]. Its methods may be called at the same time for different nodes.
type Provider struct {
	c      Config
	driver Driver
}

var _ machines.Provider = (*Provider)(nil)

// New returns the provider of the machines that driver runs.
func New(c Config, driver Driver) *Provider {
	return &Provider{c, driver}
}

// record is what recordFile holds.
type record struct {
	machines.Machine
	Finished bool
}

// Dir returns the folder of a node's machine, below the folder that a provider was given.
func Dir(dir, node string) string { return filepath.Join(dir, "nodes", node) }

// Nodes returns the names of the nodes that have a folder below a provider's, sorted; none where we may not look.
func Nodes(dir string) []string {
	var names []string
	folders, _ := os.ReadDir(Dir(dir, "")) // sorted
	for _, f := range folders {
		if f.IsDir() && !strings.HasPrefix(f.Name(), ".") {
			names = append(names, f.Name())
		}
	}
	return names
}

func (p *Provider) dir(node string) string         { return Dir(p.c.Dir, node) }
func (p *Provider) path(node, name string) string  { return filepath.Join(p.dir(node), name) }
func (p *Provider) group(node string) cgroup.Group { return p.c.Group.Sub(node) }
func (p *Provider) exists(node string, name string) bool {
	_, err := os.Lstat(p.path(node, name))
	return err == nil
}

// step comes before every change.
func (p *Provider) step(ctx context.Context) error {
	if err := ctx.Err(); err != nil || p.c.Step == nil {
		return err
	}
	return p.c.Step()
}

// own tells whether a node has a folder. It fails when that is another cluster's.
func (p *Provider) own(node string) (bool, error) {
	id, err := os.ReadFile(p.path(node, markFile))
	if err == nil {
		if p.c.ClusterID != "" && string(id) != p.c.ClusterID {
			return false, machines.Foreign("folder " + p.dir(node))
		}
		return true, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	left, err := os.ReadDir(p.dir(node))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && len(left) > 0 {
		err = machines.Foreign("folder " + p.dir(node))
	}
	return false, err
}

// read returns what a node's machine was made from; nil: there is none.
func (p *Provider) read(node string) (*record, error) {
	if own, err := p.own(node); err != nil || !own {
		return nil, err
	}
	data, err := os.ReadFile(p.path(node, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil { // after a crash of this computer
		r = &record{Machine: machines.Machine{Node: node}}
	}
	// Somebody may have removed a part.
	for _, part := range []string{ImageFile, SeedFile, p.driver.Root()} {
		r.Finished = r.Finished && p.exists(node, part)
	}
	return r, nil
}

// write replaces a machine's record.
func (p *Provider) write(ctx context.Context, node string, r record) error {
	if err := p.step(ctx); err != nil {
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(p.path(node, recordFile)); err == nil && bytes.Equal(have, data) {
		return nil
	}
	aside := p.path(node, recordFile+".new")
	if err := os.WriteFile(aside, data, 0o600); err != nil {
		return err
	}
	return os.Rename(aside, p.path(node, recordFile))
}

// Check fails when this computer lacks something that a machine needs.
func (p *Provider) Check(context.Context) error { return p.driver.Check(1) }

// CheckRoom fails when this computer cannot run that many more machines.
func (p *Provider) CheckRoom(machines int) error { return p.driver.Check(machines) }

// Emulated tells whether there is a machine with an emulated processor.
func (p *Provider) Emulated() bool {
	return slices.ContainsFunc(Nodes(p.c.Dir), func(node string) bool { return p.driver.Emulated(p.dir(node)) })
}

// Made returns what a node's machine was made from and, as to its hardware and seed, last turned on with; ok is false if there is
// none, or a foreign one.
func (p *Provider) Made(node string) (m machines.Machine, ok bool) {
	r, err := p.read(node)
	if err != nil || r == nil {
		return machines.Machine{}, false
	}
	return r.Machine, true
}

// List returns the machines in Dir.
func (p *Provider) List(context.Context) ([]machines.State, error) {
	var list []machines.State
	for _, node := range Nodes(p.c.Dir) {
		r, err := p.read(node)
		if errors.Is(err, machines.ErrForeign) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r == nil {
			continue
		}
		s := machines.State{Node: node, Power: machines.Unfinished, Image: r.Image.Identity, Seed: r.Seed.Identity}
		switch {
		case !r.Finished:
		case p.group(node).Busy():
			s.Power = machines.On
			if info, err := os.Stat(p.path(node, turnedOn)); err == nil {
				s.Since = info.ModTime()
			}
		default:
			s.Power = machines.Off
		}
		list = append(list, s)
	}
	return list, nil
}

// Create makes a machine, off.
func (p *Provider) Create(ctx context.Context, m machines.Machine) error {
	r, err := p.read(m.Node)
	if err != nil {
		return err
	}
	if r != nil && r.Finished {
		return nil
	}
	if err := p.mark(ctx, m.Node); err != nil {
		return err
	}
	if err := p.off(ctx, m.Node); err != nil {
		return err
	}
	if err := p.write(ctx, m.Node, record{Machine: m}); err != nil {
		return err
	}
	if err := p.discard(ctx, m.Node); err != nil {
		return err
	}
	if err := p.step(ctx); err != nil {
		return err
	}
	if err := os.Link(m.Image.Path, p.path(m.Node, ImageFile)); err != nil {
		return err
	}
	return p.fit(ctx, m)
}

// mark makes a node's folder, if there is none.
func (p *Provider) mark(ctx context.Context, node string) error {
	if own, err := p.own(node); err != nil || own {
		return err
	}
	if p.c.ClusterID == "" {
		return errors.New("the cluster's id is not known: its secrets are missing")
	}
	if err := p.step(ctx); err != nil {
		return err
	}
	// Renamed when it has its mark: a folder without one is foreign.
	aside := p.dir(".new-" + node)
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(aside, markFile), []byte(p.c.ClusterID), 0o600); err != nil {
		return err
	}
	return os.Rename(aside, p.dir(node))
}

// Update gives a machine that is off the seed, the hardware and the size of the data disk that m has. The image and the content of
// the disks stay.
func (p *Provider) Update(ctx context.Context, m machines.Machine) error {
	r, err := p.finished(m.Node)
	if err != nil {
		return err
	}
	m.Image = r.Image
	return p.fit(ctx, m)
}

// finished returns what a machine was made from that can be turned on.
func (p *Provider) finished(node string) (*record, error) {
	r, err := p.read(node)
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, fmt.Errorf("%s has no machine", node)
	case !r.Finished:
		return nil, fmt.Errorf("the machine of %s is not finished", node)
	}
	return r, nil
}

// fit makes everything but the image of a machine as m says.
func (p *Provider) fit(ctx context.Context, m machines.Machine) error {
	if err := p.step(ctx); err != nil {
		return err
	}
	if err := p.insertSeed(m); err != nil {
		return err
	}
	if m.Data > 0 {
		if err := p.step(ctx); err != nil {
			return err
		}
		if err := growFile(p.path(m.Node, DataDisk), m.Data); err != nil {
			return err
		}
	}
	if err := p.driver.Make(ctx, p.dir(m.Node), m, func() error { return p.step(ctx) }); err != nil {
		return err
	}
	return p.write(ctx, m.Node, record{Machine: m, Finished: true})
}

func (p *Provider) insertSeed(m machines.Machine) error {
	aside := p.path(m.Node, SeedFile+".new")
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) { // an interrupted run's
		return err
	}
	if err := os.Link(m.Seed.Path, aside); err != nil {
		return err
	}
	if err := os.Rename(aside, p.path(m.Node, SeedFile)); err != nil {
		return err
	}
	// Renaming a file to another name of itself does nothing.
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// growFile makes a sparse file of this size, or makes it larger. A smaller size changes nothing.
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

// Start turns a machine on, and waits until it is.
func (p *Provider) Start(ctx context.Context, node string) error {
	started, err := p.Begin(ctx, node)
	if err != nil {
		return err
	}
	return started()
}

// Begin starts to turn a machine on. The function that it returns waits until the machine is on, or tells why it is not; if ctx ends
// before that, the machine is turned off again.
func (p *Provider) Begin(ctx context.Context, node string) (started func() error, err error) {
	r, err := p.finished(node)
	if err != nil {
		return nil, err
	}
	group := p.group(node)
	if group.Busy() {
		return func() error { return nil }, nil
	}
	if err := p.off(ctx, node); err != nil { // removes the cgroup of the last time
		return nil, err
	}
	if err := p.step(ctx); err != nil {
		return nil, err
	}
	in, err := group.Open()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	wait, err := p.driver.Start(p.dir(node), r.Machine, in)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- wait() }()
	if err := p.step(ctx); err != nil {
		return nil, err
	}
	if err := os.WriteFile(p.path(node, turnedOn), nil, 0o600); err != nil {
		p.c.Log("%s: %v", node, err) // only List wants it
	}
	return func() error {
		select {
		case err := <-done: // even if ctx has ended since
			return err
		default:
		}
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return errors.Join(ctx.Err(), group.Kill(context.WithoutCancel(ctx)))
		}
	}, nil
}

// Stop cuts the power of a machine: all its processes are killed at once.
func (p *Provider) Stop(ctx context.Context, node string) error {
	if _, err := p.own(node); err != nil {
		return err
	}
	if !p.group(node).Exists() {
		return nil
	}
	return p.off(ctx, node)
}

// off kills what runs of a machine, and waits until its disks are free.
func (p *Provider) off(ctx context.Context, node string) error {
	if p.group(node).Exists() {
		if err := p.step(ctx); err != nil {
			return err
		}
		if err := p.group(node).Kill(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, cgroup.KillLimit)
	defer cancel()
	if !poll.Until(ctx, func() bool { return p.driver.Released(p.dir(node)) }) {
		return fmt.Errorf("%s is off, but its data disk is still attached (see losetup): %w", node, context.Cause(ctx))
	}
	return nil
}

// Remove removes a machine. What it has printed stays until Purge or Forget.
func (p *Provider) Remove(ctx context.Context, node string, data bool) error {
	r, err := p.read(node)
	if err != nil {
		return err
	}
	if r != nil && r.Finished {
		r.Finished = false
		if err := p.write(ctx, node, *r); err != nil {
			return err
		}
	}
	if err := p.off(ctx, node); err != nil {
		return err
	}
	if err := p.discard(ctx, node); err != nil {
		return err
	}
	if data {
		if err := p.remove(ctx, node, DataDisk); err != nil {
			return err
		}
	}
	return p.remove(ctx, node, recordFile)
}

// discard removes all that makes up a machine but its data disk and its record.
func (p *Provider) discard(ctx context.Context, node string) error {
	parts, err := os.ReadDir(p.dir(node))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, part := range parts {
		if slices.Contains([]string{markFile, recordFile, DataDisk, Console}, part.Name()) {
			continue
		}
		if err := p.remove(ctx, node, part.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (p *Provider) remove(ctx context.Context, node, part string) error {
	if !p.exists(node, part) {
		return nil
	}
	if err := p.step(ctx); err != nil {
		return err
	}
	return os.RemoveAll(p.path(node, part))
}

// Forget removes what Remove has left of a node.
func (p *Provider) Forget(ctx context.Context, node string) error {
	r, err := p.read(node)
	if err != nil || r != nil || p.exists(node, DataDisk) {
		return err
	}
	if err := p.discard(ctx, node); err != nil {
		return err
	}
	for _, part := range []string{Console, markFile} { // a folder without its mark is foreign, unless it is empty
		if err := p.remove(ctx, node, part); err != nil {
			return err
		}
	}
	if err := os.Remove(p.dir(node)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Purge removes what the removed machines of this cluster have left.
func (p *Provider) Purge(ctx context.Context) error {
	for _, node := range Nodes(p.c.Dir) {
		if err := p.Forget(ctx, node); err != nil && !errors.Is(err, machines.ErrForeign) {
			return err
		}
	}
	half, err := filepath.Glob(p.dir(".new-*"))
	if err != nil {
		return err
	}
	for _, dir := range half {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	os.Remove(p.dir("")) // unless there are others
	return nil
}

// followEvery is how often a console that is followed is read.
const followEvery = 200 * time.Millisecond

// Console writes what the node's machines have printed to w.
func (p *Provider) Console(ctx context.Context, w io.Writer, node string, follow bool) error {
	if _, err := p.own(node); err != nil {
		return err
	}
	f, err := os.Open(p.path(node, Console))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s has no console log: it has not been turned on since the cluster is up", node)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := io.Copy(w, f); err != nil {
			return fmt.Errorf("console of %s: %w", node, err)
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// Command returns the command, to be run in a cgroup of the machine's, that runs argv as root on a machine that is on.
func (p *Provider) Command(node string, argv []string) (*exec.Cmd, error) {
	r, err := p.finished(node)
	if err != nil {
		return nil, err
	}
	return p.driver.Command(p.dir(node), r.Machine, p.group(node), argv)
}

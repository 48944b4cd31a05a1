package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"imagegen/cluster"
	"imagegen/machines"
	"imagegen/operate"
)

// CheckFiles makes sure that build has made what the nodes with these names are turned on with, and from this spec.
func (l *Lab) CheckFiles(names ...string) error {
	nodes, err := l.pick(names)
	if err != nil {
		return err
	}
	return l.made.Check(nodes)
}

// machine is what a node's machine is to be.
func (l *Lab) machine(n cluster.Node) (machines.Machine, error) {
	m, err := l.made.Machine(l.clusterID, n)
	if err != nil {
		return m, err
	}
	if m.Image.Identity, err = l.imageIdentity(n.Role); err != nil {
		return m, err
	}
	id, err := l.made.SeedIdentity(n.Name)
	m.Seed.Identity = id.Digest
	return m, err
}

// imageIdentity returns the identity in the manifest of a role's image. An image without a manifest is known by its file.
func (l *Lab) imageIdentity(role string) (string, error) {
	id, err := l.made.ImageIdentity(role)
	if !errors.Is(err, fs.ErrNotExist) && (err != nil || id != "") {
		return id, err
	}
	info, err := os.Stat(l.made.ImagePath(role))
	if err != nil {
		return "", err
	}
	s := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("file %d:%d of %s", s.Dev, s.Ino, info.ModTime().UTC().Format("2006-01-02T15:04:05.999999999Z")), nil
}

// build is operate.Machine.Build of a node that has a machine, or that the spec no longer has.
func (l *Lab) build(n cluster.Node, s machines.State) string {
	if !l.inSpec(n.Name) {
		return operate.BuildRemoved
	}
	now, err := l.machine(n)
	if err == nil && s.Image == now.Image.Identity && s.Seed == now.Seed.Identity {
		return operate.BuildCurrent
	}
	return operate.BuildOlder // also where what build made last is gone
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"imagegen/cluster"
	"imagegen/internal/cgroup"
	"imagegen/internal/netns"
	"imagegen/internal/poll"
)

// claim is the right to change the lab of one cluster name. One process at a time has it. The locked file says which folder owns the
// cluster.
type claim struct {
	lab   *Lab
	file  *os.File
	owner owner
}

// owner is the lab folder that a running cluster belongs to. It is identified by its inode, since it may be moved while the cluster
// runs. The zero value means that nobody owns the cluster.
type owner struct {
	dir   string // where it was when the cluster was last turned on
	inode string // device and inode
}

// parseOwner reads what String wrote.
func parseOwner(text string) owner {
	inode, dir, _ := strings.Cut(text, " ")
	return owner{dir: dir, inode: inode}
}

func (o owner) String() string { return o.inode + " " + o.dir }

// is tells whether the folder dir is the owner. If dir does not exist, its path decides, so that the leftovers of a deleted folder
// can be ended from there.
func (o owner) is(dir string) bool {
	if now := inodeOf(dir); now != "" {
		return now == o.inode
	}
	return o.dir == dir
}

// inodeOf returns a folder's device and inode, or "" when there is none.
func inodeOf(dir string) string {
	info, err := os.Stat(dir)
	if err != nil {
		return ""
	}
	s := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}

// leftBehind tells whether a cluster still runs whose lab folder was here and has been deleted.
func leftBehind(spec *cluster.Spec, dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	o, err := currentOwner(spec.Cluster)
	return err == nil && o.dir == paths{dir}.lab()
}

const registry = "/run/imagegen"

func currentOwner(clusterName string) (owner, error) {
	data, err := os.ReadFile(filepath.Join(registry, clusterName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return owner{}, err
	}
	return parseOwner(string(data)), nil
}

// named returns this lab as if its cluster had another name.
func (l *Lab) named(clusterName string) *Lab {
	other, spec := *l, *l.spec
	spec.Cluster = clusterName
	root := cgroup.Group(filepath.Dir(string(l.group)))
	other.spec, other.network, other.group = &spec, netns.Name("imagegen-"+clusterName), root.Sub("imagegen-"+clusterName)
	return &other
}

// former returns this lab under those former names of its cluster that still run.
func (l *Lab) former() []*Lab {
	var labs []*Lab
	files, _ := os.ReadDir(registry) // none: nothing runs
	for _, f := range files {
		o, err := currentOwner(f.Name())
		if other := l.named(f.Name()); err == nil && f.Name() != l.spec.Cluster && o.is(l.paths.lab()) && other.group.Exists() {
			labs = append(labs, other)
		}
	}
	return labs
}

// endFormer ends what runs from this folder under former names of its cluster.
func (l *Lab) endFormer(ctx context.Context) error {
	for _, other := range l.former() {
		c, err := other.claim(ctx)
		if err != nil {
			return err
		}
		err = other.group.Kill(ctx)
		if err == nil {
			err = other.network.Delete()
		}
		if err == nil {
			c.owner = owner{}
		}
		c.release()
		if err != nil {
			return fmt.Errorf("end cluster %s: %w", other.spec.Cluster, err)
		}
	}
	return nil
}

// claim waits for the right to change the lab. It fails if a cluster of that name runs from another folder.
func (l *Lab) claim(ctx context.Context) (*claim, error) {
	if err := os.MkdirAll(registry, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(registry, l.spec.Cluster)
	var c *claim
	var failed error
	ok := poll.Until(ctx, func() bool {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			failed = err
			return !errors.Is(err, fs.ErrNotExist) // release has just removed the folder
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			f.Close()
			return false
		}
		// The previous holder of the lock may have removed the file.
		have, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 != nil || err2 != nil || !os.SameFile(have, there) {
			f.Close()
			return false
		}
		c, failed = &claim{lab: l, file: f}, nil
		return true
	})
	if failed != nil {
		return nil, failed
	}
	if !ok {
		return nil, fmt.Errorf("another imagegen is at work on cluster %s: %w", l.spec.Cluster, context.Cause(ctx))
	}
	text, err := io.ReadAll(c.file)
	if err != nil {
		c.release()
		return nil, err
	}
	c.owner = parseOwner(string(text))
	if c.owner != (owner{}) && !c.owner.is(l.paths.lab()) && l.group.Exists() {
		c.release()
		return nil, l.othersCluster(c.owner)
	}
	return c, nil
}

// othersCluster is the error that a running cluster of this name belongs to another folder.
func (l *Lab) othersCluster(o owner) error {
	switch {
	case o.is(o.dir):
		return fmt.Errorf("a cluster called %s is running from %s: end it there (imagegen down -o %s), or give this one another name",
			l.spec.Cluster, o.dir, filepath.Dir(o.dir))
	case o.dir == l.paths.lab():
		return fmt.Errorf("a cluster called %s is running whose folder was %s and has been moved: end it where that is now. If it is nowhere any more, remove what is at %[2]s, and imagegen down ends the cluster",
			l.spec.Cluster, o.dir)
	}
	return fmt.Errorf("a cluster called %s is running whose folder was %s and has been moved: end it where that is now, or give this one another name", l.spec.Cluster, o.dir)
}

// take makes this folder the owner of the cluster.
func (c *claim) take() error {
	l := c.lab
	if former := l.former(); len(former) > 0 {
		return fmt.Errorf("cluster %s still runs from this folder, by the name it had before: imagegen down ends it", former[0].spec.Cluster)
	}
	if err := os.MkdirAll(l.paths.lab(), 0o700); err != nil {
		return err
	}
	if err := os.Chmod(l.paths.lab(), 0o700); err != nil { // whatever it was before: seeds hold secrets
		return err
	}
	now := owner{dir: l.paths.lab(), inode: inodeOf(l.paths.lab())}
	if c.owner == now {
		return nil
	}
	// Written over the old text and truncated after, so that a running cluster always has an owner.
	text := now.String()
	if _, err := c.file.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	if err := c.file.Truncate(int64(len(text))); err != nil {
		return err
	}
	c.owner = now
	return nil
}

// release gives the claim up. The file of a cluster that nobody owns is removed.
func (c *claim) release() {
	if c.owner == (owner{}) {
		os.Remove(c.file.Name())
		os.Remove(registry) // unless there are others
	}
	c.file.Close()
}

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
)

// claim is the right to change the lab of one cluster name, which one process at a time has. The file says whose the
// cluster is.
type claim struct {
	lab   *Lab
	file  *os.File
	owner owner
}

// owner is the folder of the lab that a running cluster belongs to. The folder may be moved while the cluster runs, so
// it is known by its inode. The zero value is nobody.
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

// is tells whether the folder dir is the owner. One that is not there is, where the owner was: what its cluster has left
// behind can be ended from there.
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

// leftBehind tells whether a cluster that was run from a lab folder which is gone still runs.
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

// named is the lab under another name of its cluster.
func (l *Lab) named(clusterName string) *Lab {
	other, spec := *l, *l.spec
	spec.Cluster = clusterName
	root := cgroup(filepath.Dir(string(l.group)))
	other.spec, other.network, other.group = &spec, netns("imagegen-"+clusterName), root.sub("imagegen-"+clusterName)
	return &other
}

// former returns this lab under the names that its cluster has had before, and still runs by.
func (l *Lab) former() []*Lab {
	var labs []*Lab
	files, _ := os.ReadDir(registry) // none: nothing runs
	for _, f := range files {
		o, err := currentOwner(f.Name())
		if other := l.named(f.Name()); err == nil && f.Name() != l.spec.Cluster && o.is(l.paths.lab()) && other.group.exists() {
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
		err = other.group.kill(ctx)
		if err == nil {
			err = other.network.delete()
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

// claim waits for its turn. It fails when another folder's cluster of that name is there.
func (l *Lab) claim(ctx context.Context) (*claim, error) {
	if err := os.MkdirAll(registry, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(registry, l.spec.Cluster)
	var c *claim
	var failed error
	ok := poll(ctx, func() bool {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			failed = err
			return !errors.Is(err, fs.ErrNotExist) // the folder has just been removed
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			f.Close()
			return false
		}
		// Whoever had the lock may have removed the file.
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
	if c.owner != (owner{}) && !c.owner.is(l.paths.lab()) && l.group.exists() {
		c.release()
		return nil, l.othersCluster(c.owner)
	}
	return c, nil
}

// othersCluster says that a running cluster of this name is another folder's.
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

// take makes the cluster this folder's.
func (c *claim) take() error {
	l := c.lab
	if former := l.former(); len(former) > 0 {
		return fmt.Errorf("cluster %s still runs from this folder, by the name it had before: imagegen down ends it", former[0].spec.Cluster)
	}
	if err := os.MkdirAll(l.paths.lab(), 0o700); err != nil {
		return err
	}
	if err := os.Chmod(l.paths.lab(), 0o700); err != nil { // whatever it was: seeds hold secrets
		return err
	}
	now := owner{dir: l.paths.lab(), inode: inodeOf(l.paths.lab())}
	if c.owner == now {
		return nil
	}
	// Over what is there, and cut then: a cluster that runs is somebody's at any moment.
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

// release lets the next process have its turn. The file of a cluster that is nobody's goes.
func (c *claim) release() {
	if c.owner == (owner{}) {
		os.Remove(c.file.Name())
		os.Remove(registry) // unless there are others
	}
	c.file.Close()
}

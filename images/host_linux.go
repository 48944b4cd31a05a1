package images

import (
	known "imagegen/distro"
	"imagegen/images/builder"

	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"imagegen/internal/filelock"
)

// chooseBuilder returns the builder for the spec's images, and for people which and why.
func (c *Config) chooseBuilder() (_ builder.Builder, why string, err error) {
	d := c.distro()
	return builder.Choose(builder.Options{Name: c.Builder, Limit: c.Limit, Tools: d.Tools(), Local: !d.IsDisk()})
}

// checkSpace refuses to begin what cannot end.
func (c *Config) checkSpace(plans []*plan, by builder.Builder) error {
	space := known.Named(c.Spec.Distro).Space
	each := space.Image
	if by.VM() {
		each += space.VM
	}
	need := int64(len(plans)) * each
	what := fmt.Sprintf("%d images", len(plans))
	if len(plans) == 1 {
		what = "an image"
	}
	if _, err := os.Stat(c.baseDir(plans[0].inputs.Base)); err != nil {
		need += space.Base
	}
	if free, ok := freeBytes(c.CacheDir); ok && free < need {
		return fmt.Errorf("baking %s takes about %d MiB in %s, and %d MiB are free: free some space there, or name another folder with --cache", what, need>>20, c.CacheDir, free>>20)
	}
	return nil
}

func freeBytes(dir string) (int64, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * st.Bsize, true
}

// A bake works in a folder of its own below work/, which it keeps locked. All its mounts are in a private mount
// namespace, so a bake that is killed leaves nothing but that folder, and a loop device if it was killed in the moment
// between attaching and mounting it.

// workDir makes and locks a folder for a bake; release removes it.
func (c *Config) workDir(ctx context.Context) (dir string, release func(), err error) {
	making, err := c.lockWork(ctx)
	if err != nil {
		return "", nil, err
	}
	defer making.Close()
	dir, err = os.MkdirTemp(filepath.Join(c.CacheDir, "work"), "bake-")
	if err != nil {
		return "", nil, err
	}
	lock, err := filelock.Lock(ctx, filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, func() {
		os.RemoveAll(dir)
		lock.Close()
	}, nil
}

// lockWork is held while folders are made and looked through, so that none is seen before it is locked.
func (c *Config) lockWork(ctx context.Context) (*os.File, error) {
	return filelock.Lock(ctx, filepath.Join(c.CacheDir, "work", "lock"), syscall.LOCK_EX)
}

// removeLeftovers removes the folders of bakes that are no more.
func (c *Config) removeLeftovers(ctx context.Context) error {
	looking, err := c.lockWork(ctx)
	if err != nil {
		return err
	}
	defer looking.Close()
	dirs, err := filepath.Glob(filepath.Join(c.CacheDir, "work", "bake-*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		lock, err := filelock.Lock(ctx, filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // somebody else's, at work
		}
		if err != nil {
			return fmt.Errorf("remove what a killed bake left: %w", err)
		}
		err = errors.Join(builder.Clean(ctx, dir), os.RemoveAll(dir))
		lock.Close()
		if err != nil {
			return fmt.Errorf("remove what a killed bake left: %w", err)
		}
	}
	return nil
}

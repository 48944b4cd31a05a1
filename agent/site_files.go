package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// link makes wp-content of the image's WordPress lead to the volume, for plug-ins that look for it there. WordPress itself
// knows wp-content by its place on the volume, as PHP does: a plug-in's __FILE__ is never behind a link.
func (s *site) link(ctx context.Context) error {
	path := filepath.Join(s.params.Core, contentName)
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		if err := s.keepContent(ctx, path); err != nil {
			return fmt.Errorf("keep the image's wp-content: %w", err)
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := filepath.Join(s.params.Core, ".imagegen-"+contentName)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(s.content(""), tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// keepContent keeps the image's wp-content beside the link that is to be in its place. It is copied: a container's root may be
// an overlay, in which the image's folders cannot be renamed.
func (s *site) keepContent(ctx context.Context, path string) error {
	kept := filepath.Join(s.params.Core, imageContent)
	if _, err := os.Lstat(kept); !errors.Is(err, fs.ErrNotExist) {
		return err // complete: it was renamed
	}
	tmp := filepath.Join(s.params.Core, ".imagegen-"+imageContent)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	pool := newWorkers(ctx, 1, 0, 0)
	if err := errors.Join(siteWriter{root: tmp, pool: pool}.folder(path, "."), pool.wait()); err != nil {
		return err
	}
	// The original is removed next, so the copy must be on the disk.
	err := filepath.WalkDir(tmp, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err != nil {
		return err
	}
	return os.Rename(tmp, kept)
}

// configure replaces the seed's files on the volume.
func (s *site) configure() error {
	uid, gid, err := lookupOwner(s.params.Owner)
	if err != nil {
		return err
	}
	files, err := s.seedFiles(s.seen.Old)
	if err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(s.params.Target, name)
		tmp := filepath.Join(filepath.Dir(path), ".imagegen-"+filepath.Base(name)+"."+s.node.Facts.Node.Name)
		if err := os.WriteFile(tmp, data, 0o640); err != nil {
			return err
		}
		if err := os.Chown(tmp, uid, gid); err != nil {
			return err
		}
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
	}
	return nil
}

// clear removes this node's unfinished copy. A folder's files are removed at once, not one after the other.
func (s *site) clear(ctx context.Context) error {
	var dirs []string
	pool := newWorkers(ctx, copyWorkers, 0, 0)
	err := filepath.WalkDir(s.staging(), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, path)
			return nil
		}
		return pool.do(func() error { return os.Remove(path) })
	})
	if err := errors.Join(err, pool.wait()); err != nil {
		return fmt.Errorf("remove the unfinished copy: %w", err)
	}
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil {
			return fmt.Errorf("remove the unfinished copy: %w", err)
		}
	}
	return nil
}

// stage fills this node's folder on the volume.
func (s *site) stage(ctx context.Context, without map[string][]byte, fill func(siteWriter) error) error {
	uid, gid, err := lookupOwner(s.params.Owner)
	if err != nil {
		return err
	}
	staging := s.staging()
	if err := os.Mkdir(staging, 0o755); err != nil {
		return err
	}
	if err := os.Chown(staging, uid, gid); err != nil {
		return err
	}
	pool := newWorkers(ctx, copyWorkers, uid, gid)
	stop := s.progress(&pool.done)
	defer stop()
	return errors.Join(fill(siteWriter{root: staging, pool: pool, without: without}), pool.wait())
}

// copy puts the image's wp-content and the seed's files into this node's folder, and the folder in its place.
func (s *site) copy(ctx context.Context) error {
	seed, err := s.seedFiles(false)
	if err != nil {
		return err
	}
	err = s.stage(ctx, seed, func(out siteWriter) error {
		if err := out.folder(filepath.Join(s.params.Core, imageContent), contentName); err != nil {
			return err
		}
		for name, data := range seed {
			if err := out.file(name, 0o640, io.NopCloser(bytes.NewReader(data))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("copy wp-content: %w", err)
	}
	err = os.Rename(s.staging(), s.params.Target)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		if _, err := os.Stat(s.content("")); err != nil {
			return fmt.Errorf("%s is not empty, but holds no wp-content; move away what is in it: %w", s.params.Target, err)
		}
		return nil // another node was faster; this copy is removed next
	}
	return err
}

// addTheme adds the default theme of a newer WordPress. Nothing that is there is replaced.
func (s *site) addTheme(ctx context.Context) error {
	err := s.stage(ctx, nil, func(out siteWriter) error {
		return out.folder(filepath.Join(s.params.Core, imageContent, "themes", s.core.Theme), ".")
	})
	if err == nil {
		err = os.Rename(s.staging(), s.content("themes/"+s.core.Theme))
		if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
			return nil // another node was faster; this copy is removed next
		}
	}
	if err != nil {
		return fmt.Errorf("add the theme %s: %w", s.core.Theme, err)
	}
	return nil
}

// progress shows how many files have been copied, until the returned function is called.
func (s *site) progress(done *atomic.Int64) (stop func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				s.node.Working(fmt.Sprintf("copying wp-content: %d files", done.Load()))
			}
		}
	}()
	return func() { close(quit); <-gone }
}

package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"imagegen/images/builder"
	"imagegen/internal/filelock"
	"imagegen/internal/sparse"
)

// open prepares the cache for bakes and returns its path without symbolic links.
func (k cache) open(ctx context.Context) (real string, err error) {
	for _, dir := range []string{"images", "base", "work", "log", "packages"} {
		if err := os.MkdirAll(filepath.Join(k.dir, dir), 0o755); err != nil {
			return k.dir, fmt.Errorf("make the cache: %w", err)
		}
	}
	// The kernel reports the files of loop devices by their real paths.
	real, err = filepath.EvalSymlinks(k.dir)
	if err != nil {
		return k.dir, err
	}
	k.dir = real
	return real, k.removeLeftovers(ctx)
}

// lockResult locks a result, so that only one of several imagegens makes it.
func (k cache) lockResult(ctx context.Context, image, dir string) (*os.File, error) {
	lock, err := filelock.Lock(ctx, dir+".lock", syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		k.ui.Step(image, "wait for another imagegen, which is baking it")
		lock, err = filelock.Lock(ctx, dir+".lock", syscall.LOCK_EX)
	}
	return lock, err
}

// keep moves a finished result into the cache: it flushes the files to disk, then renames the folder.
func keep(ctx context.Context, result, dir string) error {
	entries, err := os.ReadDir(result)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			continue // the base's tree, flushed by its script
		}
		f, err := os.Open(filepath.Join(result, e.Name()))
		if err != nil {
			return err
		}
		err = errors.Join(f.Chmod(0o444), sparse.Flush(ctx, f), f.Close())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("write %s to the disk: %w", e.Name(), err)
		}
	}
	return os.Rename(result, dir)
}

func freeBytes(dir string) (int64, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * st.Bsize, true
}

// A bake works in its own folder below work/ and keeps it locked. All its mounts are in a private mount namespace. A
// killed bake therefore leaves only that folder, and a loop device if it was killed between attaching and mounting it.

// workDir makes and locks a folder for a bake; release removes it.
func (k cache) workDir(ctx context.Context) (dir string, release func(), err error) {
	making, err := k.lockWork(ctx)
	if err != nil {
		return "", nil, err
	}
	defer making.Close()
	dir, err = os.MkdirTemp(filepath.Join(k.dir, "work"), "bake-")
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

// lockWork is held while work folders are created or searched, so that a search never finds one that is not locked yet.
func (k cache) lockWork(ctx context.Context) (*os.File, error) {
	return filelock.Lock(ctx, filepath.Join(k.dir, "work", "lock"), syscall.LOCK_EX)
}

// removeLeftovers removes the folders of bakes that were killed.
func (k cache) removeLeftovers(ctx context.Context) error {
	looking, err := k.lockWork(ctx)
	if err != nil {
		return err
	}
	defer looking.Close()
	dirs, err := filepath.Glob(filepath.Join(k.dir, "work", "bake-*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		lock, err := filelock.Lock(ctx, filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // in use by another imagegen
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

// unusedFor is how long the cache keeps what no build uses. Images, other formats and bases are removed, since they can be made again
// without a network. Packages and downloads are kept, since they may no longer be available.
const unusedFor = 30 * 24 * time.Hour

// hold keeps the cache from being trimmed until release is called, which trims it when nobody else holds it.
func (k cache) hold(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	path := filepath.Join(k.dir, "lock")
	held, err := filelock.Lock(ctx, path, syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() {
		held.Close()
		if ctx.Err() != nil {
			return
		}
		alone, err := filelock.Lock(ctx, path, syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			return // the other imagegen trims it when it is done
		}
		defer alone.Close()
		if n, err := k.trim(ctx); err != nil {
			k.ui.Note(fmt.Sprintf("cache: not trimmed: %v", err)) // not an error: the images are finished
		} else if n > 0 {
			k.ui.Note(fmt.Sprintf("cache: removed what no build has used for %d days: %d folders", unusedFor/(24*time.Hour), n))
		}
	}, nil
}

// trim removes folders that have not been used for unusedFor, and returns their number.
func (k cache) trim(ctx context.Context) (removed int, err error) {
	var old []string
	for _, kind := range []string{"images", "formats", "base"} {
		entries, err := os.ReadDir(filepath.Join(k.dir, kind))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		for _, e := range entries {
			dir := filepath.Join(k.dir, kind, e.Name())
			if info, err := e.Info(); err == nil && info.IsDir() && time.Since(info.ModTime()) > unusedFor && !linked(dir) {
				old = append(old, dir)
			}
		}
	}
	if len(old) == 0 {
		return 0, nil
	}
	// Folders are renamed before they are removed, so that none is ever incomplete. The next bake removes leftovers.
	work, release, err := k.workDir(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	for i, dir := range old {
		if err := os.Rename(dir, filepath.Join(work, fmt.Sprint(i))); err != nil {
			return i, err
		}
		os.Remove(dir + ".lock") // formats have no lock
	}
	return len(old), nil
}

// linked reports whether a file in a folder has another hard link, in an output folder: removing it would free nothing.
func linked(dir string) bool {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			return true
		}
	}
	return false
}

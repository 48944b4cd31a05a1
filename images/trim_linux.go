package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"imagegen/internal/filelock"
)

// unusedFor is how long the cache keeps what no build uses. Only what can be made again without a network goes then:
// images, their other formats and bases, but no packages and downloads, which may not be had any more.
const unusedFor = 30 * 24 * time.Hour

// hold keeps the cache from being trimmed until release is called, which trims it when nobody else holds it.
func (c *Config) hold(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(c.CacheDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	path := filepath.Join(c.CacheDir, "lock")
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
			return // whoever holds it trims it
		}
		defer alone.Close()
		if n, err := c.trim(ctx); err != nil {
			c.UI.Note(fmt.Sprintf("cache: not trimmed: %v", err)) // the images are there all the same
		} else if n > 0 {
			c.UI.Note(fmt.Sprintf("cache: removed what no build has used for %d days: %d folders", unusedFor/(24*time.Hour), n))
		}
	}, nil
}

// trim removes what has not been used for long, and returns how many folders that were.
func (c *Config) trim(ctx context.Context) (removed int, err error) {
	var old []string
	for _, kind := range []string{"images", "formats", "base"} {
		entries, err := os.ReadDir(filepath.Join(c.CacheDir, kind))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		for _, e := range entries {
			dir := filepath.Join(c.CacheDir, kind, e.Name())
			if info, err := e.Info(); err == nil && info.IsDir() && time.Since(info.ModTime()) > unusedFor && !linked(dir) {
				old = append(old, dir)
			}
		}
	}
	if len(old) == 0 {
		return 0, nil
	}
	// Nothing is ever half there: what is renamed away and not removed, the next bake removes.
	work, release, err := c.workDir(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	for i, dir := range old {
		if err := os.Rename(dir, filepath.Join(work, fmt.Sprint(i))); err != nil {
			return i, err
		}
		os.Remove(dir + ".lock") // formats have none
	}
	return len(old), nil
}

// linked tells whether a file in a folder has another name, as an image in an output folder has. Removing it would free nothing.
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

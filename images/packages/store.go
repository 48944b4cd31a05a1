package packages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"imagegen/internal/ctxio"
	"imagegen/internal/sparse"
)

// Store is the folder of packages and downloads that all bakes share. A file's name is the SHA-256 of its content. Files are renamed into
// the store once they are complete on disk.
type Store string

// Path returns where the file with a SHA-256 is, or will be.
func (s Store) Path(sum string) string { return filepath.Join(string(s), sum) }

// Has reports whether the store has a file.
func (s Store) Has(sum string) bool {
	_, err := os.Stat(s.Path(sum))
	return err == nil
}

// Add checks a file's hash and moves the file, which must be on the same file system, into the store. what names it in errors.
func (s Store) Add(ctx context.Context, path, sum, what string) error {
	got, err := sparse.SHA256(ctx, path)
	if err != nil {
		return err
	}
	if got != sum {
		return fmt.Errorf("%s: its SHA-256 is %s and should be %s", what, got, sum)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o444), sparse.Flush(ctx, f), f.Close()); err != nil {
		return err
	}
	return os.Rename(path, s.Path(sum))
}

// Take copies a file of the store to path and checks its hash. It copies, so that programs of a bake cannot change the store. what names
// the file in errors.
func (s Store) Take(ctx context.Context, sum, path, what string) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return s.TakeBelow(ctx, sum, dir, filepath.Base(path), what)
}

// TakeBelow is Take to a path below dir, which symbolic links cannot leave.
func (s Store) TakeBelow(ctx context.Context, sum string, dir *os.Root, path, what string) (err error) {
	from, err := os.Open(s.Path(sum))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := dir.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	got, err := hashCopy(ctx, to, from)
	if err != nil {
		return fmt.Errorf("copy %s from the cache: %w", what, err)
	}
	if got != sum {
		return fmt.Errorf("%s is damaged in the cache: the SHA-256 of %s is %s; remove that file, and imagegen fetch downloads it again", what, s.Path(sum), got)
	}
	return nil
}

// hashCopy copies, and returns the SHA-256 of what it copied.
func hashCopy(ctx context.Context, to io.Writer, from io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(to, h), ctxio.Reader(ctx, from)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

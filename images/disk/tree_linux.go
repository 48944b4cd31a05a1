package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Tree is a tree as overlayfs shows it, read without mounting it: what is in upper, and below it what is in lower.
type Tree struct{ Lower, Upper string }

// real returns where a path of the tree is.
func (t Tree) real(path string) string {
	upper := filepath.Join(t.Upper, path)
	if _, err := os.Lstat(upper); err == nil {
		return upper
	}
	return filepath.Join(t.Lower, path)
}

// list returns what a directory of the tree is, and what it holds, sorted by name.
func (t Tree) list(path string) (fs.FileInfo, []fs.FileInfo, error) {
	info, err := os.Lstat(t.real(path))
	if err != nil {
		return nil, nil, err
	}
	all := map[string]fs.FileInfo{}
	add := func(dir string) error {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				return err
			}
			if st := info.Sys().(*syscall.Stat_t); st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 0 {
				delete(all, e.Name()) // it was removed
				continue
			}
			all[e.Name()] = info
		}
		return nil
	}
	if !t.hidden(path) && isFolder(t.Lower, path) {
		if err := add(filepath.Join(t.Lower, path)); err != nil {
			return nil, nil, err
		}
	}
	if err := add(filepath.Join(t.Upper, path)); err != nil {
		return nil, nil, err
	}
	list := make([]fs.FileInfo, 0, len(all))
	for _, info := range all {
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b fs.FileInfo) int { return strings.Compare(a.Name(), b.Name()) })
	return info, list, nil
}

// isFolder says whether a path below a tree is a folder, and no part of it a link, which would lead to this machine's files.
func isFolder(tree, path string) bool {
	for ; path != "."; path = filepath.Dir(path) {
		if info, err := os.Lstat(filepath.Join(tree, path)); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// hidden says whether nothing of what lower has in a directory is seen: it, or one above it, was removed and made anew.
func (t Tree) hidden(path string) bool {
	for ; ; path = filepath.Dir(path) {
		info, err := os.Lstat(filepath.Join(t.Upper, path))
		if err == nil && !info.IsDir() {
			return true
		}
		var v [1]byte
		if n, err := lgetxattr(filepath.Join(t.Upper, path), "trusted.overlay.opaque", v[:]); err == nil && n == 1 && v[0] == 'y' {
			return true
		}
		if path == "." {
			return false
		}
	}
}

package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"imagegen/internal/xattr"
)

// Tree is a merged overlayfs tree, upper on lower, that is read without mounting it.
type Tree struct{ Lower, Upper string }

// real returns the path of a file in upper or lower.
func (t Tree) real(path string) string {
	upper := filepath.Join(t.Upper, path)
	if _, err := os.Lstat(upper); err == nil {
		return upper
	}
	return filepath.Join(t.Lower, path)
}

// list returns the information about a directory, and about its entries sorted by name.
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
				delete(all, e.Name()) // a whiteout
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

// isFolder reports whether a path in a tree is a directory, and no part of it a symbolic link, which would lead to this
// machine's files.
func isFolder(tree, path string) bool {
	for ; path != "."; path = filepath.Dir(path) {
		if info, err := os.Lstat(filepath.Join(tree, path)); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// hidden reports whether upper hides lower's directory: it, or one above it, is opaque or no directory.
func (t Tree) hidden(path string) bool {
	for ; ; path = filepath.Dir(path) {
		info, err := os.Lstat(filepath.Join(t.Upper, path))
		if err == nil && !info.IsDir() {
			return true
		}
		var v [1]byte
		if n, err := xattr.Lget(filepath.Join(t.Upper, path), "trusted.overlay.opaque", v[:]); err == nil && n == 1 && v[0] == 'y' {
			return true
		}
		if path == "." {
			return false
		}
	}
}

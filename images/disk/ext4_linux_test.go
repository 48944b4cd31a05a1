package disk

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/internal/sparse"
	"imagegen/internal/testkit"
	"imagegen/internal/xattr"
)

// newTree writes a tree with every kind of file, in an order that depends on the seed, partly in the lower and partly
// in the upper layer.
func newTree(t *testing.T, seed uint64) Tree {
	t.Helper()
	tree := Tree{Lower: t.TempDir(), Upper: t.TempDir()}
	both := func(path string) (string, string) {
		return filepath.Join(tree.Lower, path), filepath.Join(tree.Upper, path)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	xattr := func(path, name string, value []byte) { must(syscall.Setxattr(path, name, value, 0)) }
	const size = 3 << 20
	lower, upper := both("")
	var make []func()
	file := func(path string, data []byte) {
		make = append(make, func() { must(os.MkdirAll(filepath.Dir(path), 0o755)); must(os.WriteFile(path, data, 0o640)) })
	}
	for i := range 400 { // more names than fit into a block
		file(filepath.Join(lower, "many", fmt.Sprintf("a-name-that-takes-some-room-%d", i)), bytes.Repeat([]byte{byte(i)}, i*37))
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	copy(big[1<<20:], bytes.Repeat([]byte{0}, 1<<20))
	file(filepath.Join(lower, "etc/big"), big)
	file(filepath.Join(lower, "etc/replaced"), []byte("below"))
	file(filepath.Join(upper, "etc/replaced"), []byte("above"))
	file(filepath.Join(lower, "etc/removed"), []byte("below"))
	file(filepath.Join(lower, "opaque/below"), nil)
	file(filepath.Join(upper, "opaque/above"), nil)
	file(filepath.Join(upper, "new dir/with \"quotes\"\n/file"), []byte("x"))
	file(filepath.Join(upper, "boot/extlinux/ldlinux.sys"), big[:70000])
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(make), func(i, j int) { make[i], make[j] = make[j], make[i] })
	for _, f := range make {
		f()
	}
	must(syscall.Mknod(filepath.Join(upper, "etc/removed"), syscall.S_IFCHR, 0))
	xattr(filepath.Join(upper, "opaque"), "trusted.overlay.opaque", []byte("y"))
	must(os.Symlink("short", filepath.Join(lower, "etc/short")))
	must(os.Symlink(strings.Repeat("long/", 30), filepath.Join(lower, "etc/long")))
	must(syscall.Mknod(filepath.Join(lower, "etc/null"), syscall.S_IFCHR|0o666, 1<<8|3))
	must(syscall.Mknod(filepath.Join(lower, "etc/disk"), syscall.S_IFBLK|0o660, 259<<8|7))
	must(syscall.Mkfifo(filepath.Join(lower, "etc/fifo"), 0o600))
	must(os.Link(filepath.Join(lower, "etc/big"), filepath.Join(lower, "big-again")))
	must(os.Chmod(filepath.Join(lower, "etc/big"), 0o4755))
	must(syscall.Chmod(filepath.Join(lower, "etc/big"), 0o4755))
	must(os.Chown(filepath.Join(lower, "many"), 70000, 70001))
	xattr(filepath.Join(lower, "etc/big"), "security.capability", []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	xattr(filepath.Join(lower, "etc/big"), "user.origin", []byte("test"))
	acl := []byte{2, 0, 0, 0}
	for _, e := range [][3]byte{{0x01, 7}, {0x04, 5}, {0x08, 5, 4}, {0x10, 5}, {0x20, 5}} {
		id := uint32(0xffffffff)
		if e[2] != 0 {
			id = uint32(e[2])
		}
		acl = le.AppendUint32(append(acl, e[0], 0, e[1], 0), id)
	}
	xattr(filepath.Join(lower, "many"), "system.posix_acl_default", acl)
	for _, dir := range []string{lower, upper} {
		must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Type()&fs.ModeSymlink != 0 {
				return err
			}
			at := time.Unix(1500000000+int64(len(path)-len(dir)), 0)
			return os.Chtimes(path, at, at)
		}))
	}
	return tree
}

// TestExt4 writes a file system, and checks it with e2fsck and the kernel.
func TestExt4(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: the file system is NOT tested")
	}
	testkit.Program(t, "mkfs.ext4", "e2fsprogs")
	var first string
	for seed := range uint64(2) {
		tree := newTree(t, seed)
		path := filepath.Join(t.TempDir(), "disk")
		const size = 300 << 20 // several groups, the last one shorter
		e, err := newDisk(t.Context(), path, size, "6ba7b810-9dad-81d1-80b4-00c04fd430c8")
		if err != nil {
			t.Fatal(err)
		}
		if err := e.fill(tree); err != nil {
			t.Fatal(err)
		}
		if err := e.disk.Close(); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "e2fsck", "-f", "-n", path+"?offset=1048576")
		sum, err := sparse.SHA256(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if seed == 0 {
			first = sum
			sameTree(t, path, tree)
		} else if sum != first {
			t.Error("the same tree, written in a different order, makes a different disk")
		}
	}
}

// sameTree compares the mounted disk with the mounted layers.
func sameTree(t *testing.T, disk string, tree Tree) {
	t.Helper()
	root, overlay, work := t.TempDir(), t.TempDir(), filepath.Join(filepath.Dir(tree.Upper), "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "mount", "-o", "ro,loop,offset=1048576", disk, root)
	defer testkit.Run(t, "umount", root)
	testkit.Run(t, "mount", "-t", "overlay", "overlay", "-o", "lowerdir="+tree.Lower+",upperdir="+tree.Upper+",workdir="+work, overlay)
	defer testkit.Run(t, "umount", overlay)
	list := func(dir string) []string {
		var all []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == filepath.Join(dir, "lost+found") {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			line := fmt.Sprintf("%q %o %d:%d", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid)
			if path == dir {
				line = fmt.Sprintf("root %o", st.Mode)
			} else if info.Mode().Type() != fs.ModeSymlink {
				line += fmt.Sprintf(" %d", min(st.Mtim.Sec, Newest))
			}
			switch info.Mode().Type() {
			case 0:
				sum, err := sparse.SHA256(t.Context(), path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %d %s links %d", st.Size, sum, st.Nlink)
			case fs.ModeSymlink:
				to, err := os.Readlink(path)
				if err != nil {
					return err
				}
				line += " " + to
			case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
				line += fmt.Sprintf(" device %x", st.Rdev)
			}
			for _, name := range []string{"user.origin", "security.capability", "system.posix_acl_default"} {
				value := make([]byte, 100)
				if n, err := xattr.Lget(path, name, value); err == nil {
					line += fmt.Sprintf(" %s=%x", name, value[:n])
				}
			}
			all = append(all, line)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	got, want := list(root), list(overlay)
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("lacks %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("has   %s", line)
		}
	}
	for _, word := range []string{"security.capability", "posix_acl", "user.origin", "links 2", "device 103", "above"} {
		if !slices.ContainsFunc(want, func(s string) bool { return strings.Contains(s, word) }) {
			t.Errorf("the tree has no %s", word)
		}
	}
}

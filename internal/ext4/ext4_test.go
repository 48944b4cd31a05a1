package ext4

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/internal/testkit"
)

// mkfs creates a disk with a folder's contents in its first partition, with the real mkfs.ext4.
func mkfs(t *testing.T, tree string, args ...string) string {
	t.Helper()
	program := testkit.Program(t, "/sbin/mkfs.ext4", "e2fsprogs")
	const start = 1 << 20
	disk := filepath.Join(t.TempDir(), "disk.raw")
	args = append([]string{"-q", "-F", "-d", tree, "-E", fmt.Sprint("offset=", start)}, append(args, disk, "64M")...)
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	testkit.OK(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 2, 0}, 446)
	testkit.OK(t, err)
	_, err = f.WriteAt([]byte{0x55, 0xAA}, 510)
	testkit.OK(t, err)
	return disk
}

// TestReadsWhatMkfsWrites reads file systems of several kinds back.
func TestReadsWhatMkfsWrites(t *testing.T) {
	tree := t.TempDir()
	large := make([]byte, 5<<20)
	rand.Read(large)
	long := strings.Repeat("long/", 40)
	want := map[string]string{"empty": "", "dir/small": "hello", "large": string(large), "sparse": string(make([]byte, 1<<20)) + "end"}
	for i := range 600 { // more than one block of names
		want[fmt.Sprintf("many/a-file-with-quite-a-long-name-%04d", i)] = fmt.Sprint(i)
	}
	for name, text := range want {
		testkit.OK(t, os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		f, err := os.Create(filepath.Join(tree, name))
		testkit.OK(t, err)
		if name == "sparse" {
			_, err = f.WriteAt([]byte("end"), 1<<20)
		} else {
			_, err = f.WriteString(text)
		}
		testkit.OK(t, err)
		testkit.OK(t, f.Close())
	}
	testkit.OK(t, os.Chmod(filepath.Join(tree, "dir"), 0o777|os.ModeSticky))
	testkit.OK(t, os.Symlink("dir/small", filepath.Join(tree, "short")))
	testkit.OK(t, os.Symlink(long, filepath.Join(tree, "far")))
	testkit.OK(t, os.Link(filepath.Join(tree, "large"), filepath.Join(tree, "other")))
	want["other"] = want["large"]
	for _, args := range [][]string{nil, {"-O", "^64bit"}, {"-b", "1024"}, {"-I", "128"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			f, err := os.Open(mkfs(t, tree, args...))
			testkit.OK(t, err)
			defer f.Close()
			fs, err := Open(f)
			testkit.OK(t, err)
			got, links, inodes := map[string]string{}, map[string]string{}, map[string]uint32{}
			testkit.OK(t, fs.Walk(func(path string, n *Node) error {
				inodes[path] = n.Inode
				switch n.Mode & TypeMask {
				case Regular:
					data, err := io.ReadAll(n.Open())
					got[path] = string(data)
					return err
				case Symlink:
					links[path] = n.Target
				}
				if path == "dir" && n.Mode != Directory|0o1777 {
					t.Errorf("the mode of dir is %o", n.Mode)
				}
				return nil
			}))
			for name, text := range want {
				if got[name] != text {
					t.Errorf("%s: %d bytes, want %d", name, len(got[name]), len(text))
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d files, want %d", len(got), len(want))
			}
			if links["short"] != "dir/small" || links["far"] != long {
				t.Errorf("links: %q", links)
			}
			if inodes["large"] != inodes["other"] {
				t.Error("two names of one file are two files")
			}
		})
	}
}

// Capabilities of programs are attributes: without them, a root file system does not work for ordinary users.
func TestAttributes(t *testing.T) {
	tree := t.TempDir()
	file := filepath.Join(tree, "ping")
	testkit.OK(t, os.WriteFile(file, []byte("x"), 0o755))
	if out, err := exec.Command("setfattr", "-n", "user.note", "-v", "some text", file).CombinedOutput(); err != nil {
		t.Skipf("needs setfattr (package attr) and a file system with attributes: %v: %s", err, out)
	}
	f, err := os.Open(mkfs(t, tree))
	testkit.OK(t, err)
	defer f.Close()
	fs, err := Open(f)
	testkit.OK(t, err)
	testkit.OK(t, fs.Walk(func(path string, n *Node) error {
		if path == "ping" && n.Attributes["user.note"] != "some text" {
			t.Errorf("attributes: %q", n.Attributes)
		}
		return nil
	}))
}

func TestNoFileSystem(t *testing.T) {
	if _, err := Open(bytes.NewReader(make([]byte, 1<<20))); !errors.Is(err, ErrNone) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := Open(bytes.NewReader(nil)); err == nil {
		t.Error("an empty file is a disk")
	}
}

// FuzzWalk: damaged file systems give errors, not crashes or endless loops.
func FuzzWalk(f *testing.F) {
	tree := f.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "file"), []byte("hello"), 0o644); err != nil {
		f.Fatal(err)
	}
	disk := filepath.Join(f.TempDir(), "disk")
	program := testkit.Program(f, "/sbin/mkfs.ext4", "e2fsprogs")
	if out, err := exec.Command(program, "-q", "-F", "-O", "^has_journal", "-N", "32", "-b", "1024", "-d", tree, disk, "256K").CombinedOutput(); err != nil {
		f.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	data, err := os.ReadFile(disk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(1024+0x18), uint32(7))
	f.Add(uint32(0), uint32(0))
	f.Fuzz(func(t *testing.T, at, value uint32) {
		damaged := bytes.Clone(data)
		le.PutUint32(damaged[int(at)%(len(damaged)-4):], value)
		fs, err := Open(bytes.NewReader(damaged))
		if err != nil {
			return
		}
		fs.Walk(func(_ string, n *Node) error { // errors are allowed
			_, err := io.CopyN(io.Discard, n.Open(), 1<<20)
			if err == io.EOF {
				err = nil
			}
			return err
		})
	})
}

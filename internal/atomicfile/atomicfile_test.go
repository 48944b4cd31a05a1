package atomicfile

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	defer syscall.Umask(syscall.Umask(0o777))
	path := filepath.Join(dir, "file")
	for _, mode := range []os.FileMode{0o600, 0o644, 0o755} {
		data := []byte(mode.String())
		if err := Write(path, data, mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != mode {
			t.Errorf("mode %v, want %v (%v)", info.Mode(), mode, err)
		}
		if mode == 0o600 || mode == 0o644 {
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%q, want %q (%v)", got, data, err)
			}
		}
	}
	only(t, dir, "file")
}

// A folder in the way, a missing folder, a full disk: the old content stays and nothing else is left.
func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "folder", "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "folder"), []byte("x"), 0o644); err == nil {
		t.Error("wrote over a folder")
	}
	if err := Write(filepath.Join(dir, "none", "file"), []byte("x"), 0o644); err == nil {
		t.Error("wrote into no folder")
	}
	only(t, dir, "folder")
}

func TestWriteFileFullDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k", "imagegen-test", dir).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, a small file system is needed and only root can mount one: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "file")
	if err := Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Write(path, make([]byte, 1<<20), 0o600)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v, want no space left", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("%d bytes where the old file was (%v)", len(got), err)
	}
	only(t, dir, "file")
}

// only checks that dir contains nothing but name.
func only(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != name {
			t.Errorf("%s is left over", e.Name())
		}
	}
}

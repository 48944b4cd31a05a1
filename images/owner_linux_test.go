package images

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// An image in the output folder belongs to the user who ran sudo, whether it is a link or a copy.
func TestPlacedImageBelongsToSudoUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root can give files away")
	}
	t.Setenv("SUDO_UID", "12345")
	t.Setenv("SUDO_GID", "12346")
	dir := t.TempDir()
	from := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(from, []byte("disk"), 0o444); err != nil {
		t.Fatal(err)
	}
	to := []string{filepath.Join(dir, "web.raw")}
	if other, err := os.MkdirTemp("/dev/shm", "imagegen-test-"); err == nil { // another file system, so no links
		defer os.RemoveAll(other)
		to = append(to, filepath.Join(other, "web.raw"))
	}
	for _, path := range to {
		if err := place(t.Context(), from, path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if s := info.Sys().(*syscall.Stat_t); s.Uid != 12345 || s.Gid != 12346 {
			t.Errorf("%s belongs to %d:%d", path, s.Uid, s.Gid)
		}
	}
}

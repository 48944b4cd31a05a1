package format

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imagegen/internal/testkit"
)

func packGzip(t *testing.T, data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packTar(t *testing.T, data []byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range map[string][]byte{"README": []byte("read me"), "disk.raw": data} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		w.Write(content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func through(t *testing.T, data []byte, pkg string, argv ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("NOT TESTED: no %s on this machine (package %s)", argv[0], pkg)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func qcow2(t *testing.T, data []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	raw, to := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(raw, data, 0o644); err != nil {
		t.Fatal(err)
	}
	through(t, nil, "qemu-utils", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, to)
	out, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnpack(t *testing.T) {
	want := testkit.Disk()
	xz := func(t *testing.T, data []byte) []byte { return through(t, data, "xz-utils", "xz", "-c") }
	for name, pack := range map[string]func(*testing.T) []byte{
		"raw": func(*testing.T) []byte { return want }, "raw.gz": func(t *testing.T) []byte { return packGzip(t, want) },
		"raw.tar.gz": func(t *testing.T) []byte { return packGzip(t, packTar(t, want)) }, "raw.xz": func(t *testing.T) []byte { return xz(t, want) },
		"raw.tar.xz": func(t *testing.T) []byte { return xz(t, packTar(t, want)) },
		"qcow2":      func(t *testing.T) []byte { return qcow2(t, want) }, "qcow2.xz": func(t *testing.T) []byte { return xz(t, qcow2(t, want)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
			packed := pack(t)
			if err := os.WriteFile(from, packed, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := Unpack(t.Context(), from, to); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 || len(got) >= len(want)+64<<10 {
				t.Errorf("the disk has %d bytes that are not the %d that it should have (%v)", len(got), len(want), err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 2 {
				t.Errorf("left: %v", entries)
			}
			if name == "raw" || name == "qcow2" {
				return // Unpack cannot see that these are truncated; their hash tells
			}
			if err := os.WriteFile(from, packed[:len(packed)*3/4], 0o644); err != nil {
				t.Fatal(err)
			}
			if err := Unpack(t.Context(), from, to+"2"); err == nil {
				t.Error("three quarters of the file were accepted")
			}
		})
	}
	path := filepath.Join(t.TempDir(), "x")
	for _, data := range [][]byte{nil, []byte("<html>not found</html>"), testkit.Noise(4 << 10), packGzip(t, packTar(t, []byte("small")))} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Unpack(t.Context(), path, path+".raw"); err == nil {
			t.Errorf("%.20q was accepted as a disk", data)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := unpackStream(ctx, io.MultiReader(bytes.NewReader(want)), "", path+".raw", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled unpacking ends in %v", err)
	}
}

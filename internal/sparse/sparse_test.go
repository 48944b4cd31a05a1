package sparse

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/internal/testkit"
)

// sparse writes a file of a size that has data in a few places, and returns its content.
func sparse(t *testing.T, path string, size int64, data map[int64]string) []byte {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := make([]byte, size)
	for at, text := range data {
		copy(content[at:], text)
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return content
}

var sparseFiles = []struct {
	name string
	size int64
	data map[int64]string
}{
	{"empty", 0, nil},
	{"a hole", 5<<20 + 17, nil},
	{"data", 11, map[int64]string{0: "hello world"}},
	{"data, hole", 8 << 20, map[int64]string{0: strings.Repeat("x", 70000)}},
	{"hole, data", 8<<20 + 5, map[int64]string{8 << 20: "hello"}},
	{"holes and data", 33 << 20, map[int64]string{1 << 20: "one", 9<<20 - 3: "two and over", 20 << 20: strings.Repeat("three", 1000)}},
}

func TestHashFile(t *testing.T) {
	for _, c := range sparseFiles {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x")
			content := sparse(t, path, c.size, c.data)
			got, err := SHA256(t.Context(), path)
			if want := fmt.Sprintf("%x", sha256.Sum256(content)); err != nil || got != want {
				t.Errorf("%v: %s, want %s", err, got, want)
			}
		})
	}
}

// BenchmarkHashFile hashes a disk that is an eighth data; bytes are those of the disk.
func BenchmarkHashFile(b *testing.B) {
	const size = 1 << 30
	path := filepath.Join(b.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		b.Fatal(err)
	}
	for _, start := range []int64{0, size / 2} {
		if _, err := f.WriteAt(bytes.Repeat([]byte("data"), size/64), start); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := SHA256(b.Context(), path); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCopySparse(t *testing.T) {
	for _, c := range sparseFiles {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
			content := sparse(t, from, c.size, c.data)
			if err := Copy(t.Context(), from, to); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(to)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%v: the copy has %d bytes and differs from %d", err, len(got), len(content))
			}
			if a, b := testkit.Blocks(t, from), testkit.Blocks(t, to); b > a+16 {
				t.Errorf("the copy takes %d blocks, the original %d", b, a)
			}
			if err := Copy(t.Context(), from, to); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a file was written over: %v", err)
			}
		})
	}
}

// TestHashData: the digest is that of what a disk holds, wherever a file of it has holes, and what the documentation says.
func TestHashData(t *testing.T) {
	for _, c := range sparseFiles {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			content := sparse(t, filepath.Join(dir, "sparse"), c.size, c.data)
			testkit.Write(t, filepath.Join(dir, "full"), string(content))
			a, errA := Digest(t.Context(), filepath.Join(dir, "sparse"))
			b, errB := Digest(t.Context(), filepath.Join(dir, "full"))
			if a != b || errA != nil || errB != nil {
				t.Errorf("with holes %s (%v), without %s (%v)", a, errA, b, errB)
			}
			if len(content) > 0 {
				content[len(content)/2] ^= 1
				testkit.Write(t, filepath.Join(dir, "other"), string(content))
				if other, err := Digest(t.Context(), filepath.Join(dir, "other")); err != nil || other == a {
					t.Errorf("another content has the same digest (%v)", err)
				}
			}
			testkit.Write(t, filepath.Join(dir, "longer"), string(content)+"\x00")
			if other, err := Digest(t.Context(), filepath.Join(dir, "longer")); err != nil || other == a {
				t.Errorf("a longer one has the same digest (%v)", err)
			}
		})
	}
}

// documented is what docs/images.md gives to compute a disk's digest with.
func documented(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/images.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```python\n")
	script, _, ok2 := strings.Cut(rest, "```\n")
	if !ok || !ok2 {
		t.Fatal("docs/images.md has no script in Python")
	}
	return script
}

// TestDocumentedDigest: whoever has no imagegen can check a disk with the script in the docs.
func TestDocumentedDigest(t *testing.T) {
	testkit.Program(t, "python3", "python3")
	for _, c := range sparseFiles {
		path := filepath.Join(t.TempDir(), "disk")
		sparse(t, path, c.size, c.data)
		want, err := Digest(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(testkit.Run(t, "python3", "-c", documented(t), path)); got != want {
			t.Errorf("%s: %s, and the docs' script prints %s", c.name, want, got)
		}
	}
}

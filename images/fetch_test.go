package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bytesOf makes data that no luck puts together.
func bytesOf(n int) []byte {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

func sumOf(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// server serves one file and notes what it was asked for.
type server struct {
	*httptest.Server
	data   []byte
	asked  []string // the Range of each request
	handle func(n int, w http.ResponseWriter, r *http.Request) bool
}

func newServer(t *testing.T, data []byte) *server {
	s := &server{data: data}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked = append(s.asked, r.Header.Get("Range"))
		if s.handle == nil || !s.handle(len(s.asked), w, r) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.data))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// cut sends the first n bytes of the file, and then nothing more.
func (s *server) cut(w http.ResponseWriter, n int) bool {
	w.Header().Set("Content-Length", fmt.Sprint(len(s.data)))
	w.Write(s.data[:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func testFetcher(t *testing.T) *fetcher {
	f := newFetcher(t.TempDir(), func(what string) { t.Log(what) })
	f.pause, f.stall = time.Millisecond, 5*time.Second
	return f
}

func (f *fetcher) mustFetch(t *testing.T, s *server) {
	t.Helper()
	path, err := f.fetch(t.Context(), s.URL+"/disk", sumOf(s.data))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, s.data) {
		t.Fatalf("%s does not hold the file (%v)", path, err)
	}
}

func (f *fetcher) files(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestFetchOnce(t *testing.T) {
	s, f := newServer(t, bytesOf(3<<20)), testFetcher(t)
	f.mustFetch(t, s)
	f.mustFetch(t, s)
	if len(s.asked) != 1 || f.files(t) != sumOf(s.data) {
		t.Errorf("asked %d times; the folder has %s", len(s.asked), f.files(t))
	}
}

// A connection that is cut, or goes silent, is made again, and goes on where it ended: in the same run and in the next.
func TestFetchResumes(t *testing.T) {
	for what, end := range map[string]func(s *server, w http.ResponseWriter, r *http.Request) bool{
		"cut": func(s *server, w http.ResponseWriter, _ *http.Request) bool { return s.cut(w, 1<<20) },
		"silent": func(s *server, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(s.data)))
			w.Write(s.data[:1<<20])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, f := newServer(t, bytesOf(3<<20)), testFetcher(t)
			f.stall = 2 * time.Second // long enough for a busy machine to send what it sends
			s.handle = func(n int, w http.ResponseWriter, r *http.Request) bool { return n == 1 && end(s, w, r) }
			f.mustFetch(t, s)
			if got := strings.Join(s.asked, ","); got != ",bytes=1048576-" {
				t.Errorf("asked for %q", got)
			}
		})
	}
	t.Run("next run", func(t *testing.T) {
		s, f := newServer(t, bytesOf(3<<20)), testFetcher(t)
		ctx, cancel := context.WithCancel(t.Context())
		s.handle = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(s.data)))
			w.Write(s.data[:1<<20])
			w.(http.Flusher).Flush()
			for size(filepath.Join(f.dir, sumOf(s.data)+".part")) < 1<<20 {
				time.Sleep(time.Millisecond)
			}
			cancel()
			<-r.Context().Done()
			return true
		}
		if _, err := f.fetch(ctx, s.URL, sumOf(s.data)); !errors.Is(err, context.Canceled) {
			t.Fatalf("a cancelled download ends in %v", err)
		}
		f.mustFetch(t, s)
		if got := strings.Join(s.asked, ","); got != ",bytes=1048576-" {
			t.Errorf("asked for %q", got)
		}
	})
}

// A server that knows no ranges sends all of it again.
func TestFetchWithoutRanges(t *testing.T) {
	s, f := newServer(t, bytesOf(2<<20)), testFetcher(t)
	s.handle = func(n int, w http.ResponseWriter, _ *http.Request) bool {
		if n == 1 {
			return s.cut(w, 1<<20)
		}
		w.Write(s.data)
		return true
	}
	f.mustFetch(t, s)
}

// What lies in the cache is not believed: a corrupt file is got again, and so is the rest of another one.
func TestFetchCorruptCache(t *testing.T) {
	data := bytesOf(2 << 20)
	for name, left := range map[string][]byte{
		"":      bytes.Repeat([]byte("x"), 2<<20),
		".part": bytes.Repeat([]byte("x"), 1<<20),
	} {
		for _, n := range []int{len(left), 4 << 20} { // also longer than the file
			s, f := newServer(t, data), testFetcher(t)
			if err := os.WriteFile(filepath.Join(f.dir, sumOf(data)+name), bytes.Repeat([]byte("x"), n), 0o644); err != nil {
				t.Fatal(err)
			}
			f.mustFetch(t, s)
			if f.files(t) != sumOf(data) {
				t.Errorf("%s: the folder has %s", name, f.files(t))
			}
		}
	}
	// All of it was there before the run before ended.
	s, f := newServer(t, data), testFetcher(t)
	if err := os.WriteFile(filepath.Join(f.dir, sumOf(data)+".part"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	f.mustFetch(t, s)
	if len(s.asked) != 1 || s.asked[0] != "bytes=2097152-" {
		t.Errorf("asked for %q", s.asked)
	}
}

// What a person has to see when it does not work; and nothing is left that could be taken for the file.
func TestFetchFails(t *testing.T) {
	data := bytesOf(1 << 20)
	other := sumOf([]byte("another"))
	s, f := newServer(t, data), testFetcher(t)
	_, err := f.fetch(t.Context(), s.URL+"/disk", other)
	if want := fmt.Sprintf("%s/disk: its SHA-256 is %s and should be %s", s.URL, sumOf(data), other); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if f.files(t) != "" || len(s.asked) != 1 {
		t.Errorf("asked %d times; the folder has %s", len(s.asked), f.files(t))
	}

	s.handle = func(_ int, w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true }
	s.asked = nil
	if _, err := f.fetch(t.Context(), s.URL+"/disk", other); err == nil || err.Error() != s.URL+"/disk: the server answers 404 Not Found" || len(s.asked) != 1 {
		t.Errorf("after %d requests: %v", len(s.asked), err)
	}

	s.handle = func(_ int, w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }
	s.asked = nil
	if _, err := f.fetch(t.Context(), s.URL+"/disk", other); err == nil || err.Error() != s.URL+"/disk: the server answers 503 Service Unavailable" || len(s.asked) != fetchTries {
		t.Errorf("after %d requests: %v", len(s.asked), err)
	}

	s.handle = func(_ int, w http.ResponseWriter, _ *http.Request) bool { return s.cut(w, 0) }
	s.asked = nil
	if _, err := f.fetch(t.Context(), s.URL+"/disk", other); err == nil || len(s.asked) < fetchTries {
		t.Errorf("after %d requests: %v", len(s.asked), err)
	}

	s.Close()
	if _, err := f.fetch(t.Context(), s.URL+"/disk", other); err == nil || !strings.Contains(err.Error(), s.URL) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("of a server that is gone: %v", err)
	}
}

// disk is a small disk with a boot sector, holes, and an end that is not a whole block.
func rawDisk() []byte {
	data := make([]byte, 5<<20+512)
	copy(data[510:], "\x55\xaa")
	copy(data[1<<20:], bytesOf(1<<20))
	copy(data[len(data)-9:], "the end\r\n")
	return data
}

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
	want := rawDisk()
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
			if err := unpack(t.Context(), from, to); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 || len(got) >= len(want)+64<<10 {
				t.Errorf("the disk has %d bytes that are not the %d that it should have (%v)", len(got), len(want), err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 2 {
				t.Errorf("it leaves %v", entries)
			}
			if name == "raw" || name == "qcow2" {
				return // its length is nobody's to know; its sum is
			}
			if err := os.WriteFile(from, packed[:len(packed)*3/4], 0o644); err != nil {
				t.Fatal(err)
			}
			if err := unpack(t.Context(), from, to+"2"); err == nil {
				t.Error("three quarters of the file are taken for all of it")
			}
		})
	}
	path := filepath.Join(t.TempDir(), "x")
	for _, data := range [][]byte{nil, []byte("<html>not found</html>"), bytesOf(4 << 10), packGzip(t, packTar(t, []byte("small")))} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unpack(t.Context(), path, path+".raw"); err == nil {
			t.Errorf("%.20q is taken for a disk", data)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := unpackStream(ctx, io.MultiReader(bytes.NewReader(want)), "", path+".raw", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled unpacking ends in %v", err)
	}
}

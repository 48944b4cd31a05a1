package packages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

func testFetcher(t *testing.T) *fetcher {
	f := newFetcher(t.TempDir(), func(what string) { t.Log(what) })
	f.pause = time.Millisecond
	return f
}

func (f *fetcher) mustFetch(t *testing.T, s *testkit.FileServer) {
	t.Helper()
	path, err := f.fetch(t.Context(), s.URL+"/disk", testkit.SHA256(s.Data))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, s.Data) {
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
	s, f := testkit.NewFileServer(t, testkit.Noise(3<<20)), testFetcher(t)
	f.mustFetch(t, s)
	f.mustFetch(t, s)
	if len(s.Asked) != 1 || f.files(t) != testkit.SHA256(s.Data) {
		t.Errorf("asked %d times; the folder has %s", len(s.Asked), f.files(t))
	}
}

// A download resumes after its connection is cut or goes silent, in the same run and in the next.
func TestFetchResumes(t *testing.T) {
	for what, end := range map[string]func(s *testkit.FileServer, w http.ResponseWriter, r *http.Request) bool{
		"cut": func(s *testkit.FileServer, w http.ResponseWriter, _ *http.Request) bool { return s.Cut(w, 1<<20) },
		"silent": func(s *testkit.FileServer, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(s.Data)))
			w.Write(s.Data[:1<<20])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, f := testkit.NewFileServer(t, testkit.Noise(3<<20)), testFetcher(t)
			f.stall = 2 * time.Second
			f.say = func(string) { f.stall = time.Minute } // from the first retry on, which a busy server may answer late
			s.Handle = func(n int, w http.ResponseWriter, r *http.Request) bool { return n == 1 && end(s, w, r) }
			f.mustFetch(t, s)
			if got := strings.Join(s.Asked, ","); got != ",bytes=1048576-" {
				t.Errorf("asked for %q", got)
			}
		})
	}
	t.Run("next run", func(t *testing.T) {
		s, f := testkit.NewFileServer(t, testkit.Noise(3<<20)), testFetcher(t)
		ctx, cancel := context.WithCancel(t.Context())
		s.Handle = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(s.Data)))
			w.Write(s.Data[:1<<20])
			w.(http.Flusher).Flush()
			for size(filepath.Join(f.dir, testkit.SHA256(s.Data)+".part")) < 1<<20 {
				time.Sleep(time.Millisecond)
			}
			cancel()
			<-r.Context().Done()
			return true
		}
		if _, err := f.fetch(ctx, s.URL, testkit.SHA256(s.Data)); !errors.Is(err, context.Canceled) {
			t.Fatalf("a cancelled download ends in %v", err)
		}
		f.mustFetch(t, s)
		if got := strings.Join(s.Asked, ","); got != ",bytes=1048576-" {
			t.Errorf("asked for %q", got)
		}
	})
}

// A server without support for ranges sends the whole file again.
func TestFetchWithoutRanges(t *testing.T) {
	s, f := testkit.NewFileServer(t, testkit.Noise(2<<20)), testFetcher(t)
	s.Handle = func(n int, w http.ResponseWriter, _ *http.Request) bool {
		if n == 1 {
			return s.Cut(w, 1<<20)
		}
		w.Write(s.Data)
		return true
	}
	f.mustFetch(t, s)
}

// Files in the cache are verified: a corrupt file is downloaded again, and so is a partial one of another version.
func TestFetchCorruptCache(t *testing.T) {
	data := testkit.Noise(2 << 20)
	for name, left := range map[string][]byte{
		"":      bytes.Repeat([]byte("x"), 2<<20),
		".part": bytes.Repeat([]byte("x"), 1<<20),
	} {
		for _, n := range []int{len(left), 4 << 20} { // the second is longer than the file
			s, f := testkit.NewFileServer(t, data), testFetcher(t)
			if err := os.WriteFile(filepath.Join(f.dir, testkit.SHA256(data)+name), bytes.Repeat([]byte("x"), n), 0o644); err != nil {
				t.Fatal(err)
			}
			f.mustFetch(t, s)
			if f.files(t) != testkit.SHA256(data) {
				t.Errorf("%s: the folder has %s", name, f.files(t))
			}
		}
	}
	// The last run was interrupted after the download was complete.
	s, f := testkit.NewFileServer(t, data), testFetcher(t)
	if err := os.WriteFile(filepath.Join(f.dir, testkit.SHA256(data)+".part"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	f.mustFetch(t, s)
	if len(s.Asked) != 1 || s.Asked[0] != "bytes=2097152-" {
		t.Errorf("asked for %q", s.Asked)
	}
}

// Errors say what went wrong, and no file is left under the final name.
func TestFetchFails(t *testing.T) {
	data := testkit.Noise(1 << 20)
	other := testkit.SHA256([]byte("another"))
	s, f := testkit.NewFileServer(t, data), testFetcher(t)
	_, err := f.fetch(t.Context(), s.URL+"/disk", other)
	if want := fmt.Sprintf("%s/disk: its SHA-256 is %s and should be %s", s.URL, testkit.SHA256(data), other); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if f.files(t) != "" || len(s.Asked) != 1 {
		t.Errorf("asked %d times; the folder has %s", len(s.Asked), f.files(t))
	}

	s.Handle = func(_ int, w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true }
	s.Asked = nil
	if _, err := f.fetch(t.Context(), s.URL+"/disk", other); err == nil || err.Error() != s.URL+"/disk: the server answered 404 Not Found" || len(s.Asked) != 1 {
		t.Errorf("after %d requests: %v", len(s.Asked), err)
	}

	s.Handle = func(_ int, w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }
	s.Asked = nil
	if _, err := f.fetch(t.Context(), s.URL+"/disk", other); err == nil || err.Error() != s.URL+"/disk: the server answered 503 Service Unavailable" || len(s.Asked) != fetchTries {
		t.Errorf("after %d requests: %v", len(s.Asked), err)
	}

	s.Handle = func(_ int, w http.ResponseWriter, _ *http.Request) bool { return s.Cut(w, 0) }
	s.Asked = nil
	if _, err := f.fetch(t.Context(), s.URL+"/disk", other); err == nil || len(s.Asked) < fetchTries {
		t.Errorf("after %d requests: %v", len(s.Asked), err)
	}

	s.Close()
	if _, err := f.fetch(t.Context(), s.URL+"/disk", other); err == nil || !strings.Contains(err.Error(), s.URL) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("of a server that is gone: %v", err)
	}
}

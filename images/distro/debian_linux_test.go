package distro

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/images/packages"
	"imagegen/internal/testkit"
)

// TestMirrorWithoutSuites: if the archive at a plain address lacks a suite of updates, the suite is left out with a
// warning, also from the image's sources. An unreachable suite is an error.
func TestMirrorWithoutSuites(t *testing.T) {
	testkit.Program(t, "apt-get", "apt")
	testkit.Program(t, "gpg", "gnupg")
	www := t.TempDir()
	home := testkit.NewKeys(t, www)
	key := filepath.Join(www, "key.gpg")
	testkit.Must(t, exec.Command("gpg", "--homedir", home, "--batch", "--output", key, "--export", "right"))
	for _, path := range []string{"debian/dists/bookworm", "debian/dists/bookworm-updates", "debian-security/dists/bookworm-security"} {
		dir := filepath.Join(www, path)
		testkit.Write(t, filepath.Join(dir, "main/binary-amd64/Packages"), "")
		testkit.Write(t, filepath.Join(dir, "plain"), fmt.Sprintf("Suite: %[1]s\nCodename: %[1]s\nArchitectures: amd64\nComponents: main\nDate: Sat, 01 Nov 2025 00:00:00 UTC\nSHA256:\n %x 0 main/binary-amd64/Packages\n",
			filepath.Base(path), sha256.Sum256(nil)))
		testkit.Must(t, exec.Command("gpg", "--homedir", home, "--batch", "--local-user", "right", "--output", filepath.Join(dir, "InRelease"), "--clearsign", filepath.Join(dir, "plain")))
	}
	var lacks string // paths that contain it do not exist
	status := http.StatusNotFound
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if lacks != "" && strings.Contains(r.URL.Path, lacks) {
			w.WriteHeader(status)
			return
		}
		http.FileServer(http.Dir(www)).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	open := func(t *testing.T, mirror string) (*packages.Archive, []string, debian, error) {
		t.Helper()
		var said []string
		d := debian{Options{
			Spec: &cluster.Spec{File: "cluster.yaml", Distro: "debian12", Mirror: strings.ReplaceAll(mirror, "URL", server.URL)}, Archives: filepath.Join(t.TempDir(), "archive"),
			Step: func(string) {}, Note: func(text string) { said = append(said, text) },
		}}
		sources, err := d.sources()
		if err != nil {
			t.Fatal(err)
		}
		for i := range sources { // the test's archive is not signed with Debian's key
			sources[i] = strings.Replace(sources[i], "deb http", "deb [signed-by="+key+"] http", 1)
		}
		a, err := d.openSources(t.Context(), sources)
		if err == nil {
			a.Close()
		}
		return a, said, d, err
	}
	t.Run("has all", func(t *testing.T) {
		a, said, _, err := open(t, "URL/debian")
		if err != nil || a.LeftOut != nil || len(said) > 0 {
			t.Errorf("%+v, %q, %v", a, said, err)
		}
	})
	for _, suite := range []string{"bookworm-updates", "bookworm-security"} {
		t.Run("lacks "+suite, func(t *testing.T) {
			lacks = suite
			defer func() { lacks = "" }()
			a, said, d, err := open(t, "URL/debian")
			if err != nil || !slices.Equal(a.LeftOut, []string{suite}) {
				t.Fatalf("%+v, %v", a, err)
			}
			if len(said) != 1 || !strings.HasPrefix(said[0], "WARNING: the images are made WITHOUT "+suite+", which "+d.Spec.File) {
				t.Errorf("%q", said)
			}
			lists, err := filepath.Glob(filepath.Join(d.Archives, "*/sources.list"))
			if err != nil || len(lists) != 1 {
				t.Fatalf("%q, %v", lists, err)
			}
			list, err := os.ReadFile(lists[0])
			if err != nil || strings.Contains(string(list), suite) || strings.Count(string(list), "deb ") != 2 {
				t.Errorf("%s, %v", list, err)
			}
			// The lock records the suite, and the image's sources do not contain it.
			base, err := d.Base()
			if err != nil {
				t.Fatal(err)
			}
			if s := strings.Join((&packages.Lock{LeftOut: a.LeftOut}).Named(base.Sources), "\n"); strings.Contains(s, suite) || strings.Count(s, "deb ") != 2 {
				t.Errorf("the image names\n%s", s)
			}
		})
	}
	t.Run("cannot be reached", func(t *testing.T) {
		lacks, status = "bookworm-security", http.StatusForbidden
		defer func() { lacks = "" }()
		if a, said, _, err := open(t, "URL/debian"); err == nil || len(said) > 0 {
			t.Errorf("%+v, %q", a, said)
		}
	})
	t.Run("is a line without security", func(t *testing.T) {
		_, said, _, err := open(t, "deb URL/debian bookworm main")
		if err != nil || len(said) != 1 || !strings.HasPrefix(said[0], "WARNING: the images are made WITHOUT bookworm-security, which ") {
			t.Errorf("%q, %v", said, err)
		}
	})
}

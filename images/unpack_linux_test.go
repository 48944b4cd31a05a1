package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/internal/testkit"
	"imagegen/roles"
)

func archive(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = 1
		}
		h.Mode = 0o600
		testkit.OK(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte("x"))
			testkit.OK(t, err)
		}
	}
	testkit.OK(t, w.Close())
	testkit.OK(t, z.Close())
	return b.Bytes()
}

// TestDownloadIsUnpacked: the folder at an archive's top becomes the download's path, and nothing lands outside of it.
func TestDownloadIsUnpacked(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	folder := tar.Header{Name: "wordpress/", Typeflag: tar.TypeDir}
	whole := archive(t, folder, file("wordpress/index.php"), file("wordpress/wp-includes/x.php"))
	for name, c := range map[string]struct {
		data []byte
		want string // what the error holds; empty: none
	}{
		"whole":             {whole, ""},
		"without folders":   {archive(t, file("wordpress/index.php"), file("wordpress/wp-includes/x.php")), ""},
		"cut off":           {whole[:len(whole)-9], "EOF"},
		"no archive":        {[]byte("x"), "EOF"},
		"empty":             {archive(t), "it is empty"},
		"two folders":       {archive(t, folder, file("other/x")), "one folder must hold everything"},
		"no folder":         {archive(t, file("index.php")), "one folder must hold everything"},
		"leads out":         {archive(t, file("wordpress/../../x")), "leads out"},
		"a link":            {archive(t, tar.Header{Name: "wordpress/x", Typeflag: tar.TypeSymlink, Linkname: "/etc"}), "neither a file nor a folder"},
		"a file twice":      {archive(t, file("wordpress/x"), file("wordpress/x")), "exists"},
		"over what is left": {archive(t, file("wordpress")), "one folder must hold everything"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := &bake{config: &Config{CacheDir: filepath.Join(dir, "cache")}, plan: &plan{}}
			b.Work = filepath.Join(dir, "work")
			testkit.OK(t, os.MkdirAll(b.Work, 0o755))
			sum := testkit.SHA256(c.data)
			testkit.Write(t, b.config.cache().store().Path(sum), string(c.data))
			b.plan.inputs.Downloads = []roles.Download{{URL: "https://example.com/w.tar.gz", SHA256: sum, Path: "/usr/share/wordpress", Unpack: true}}
			err := b.download(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "unpack https://example.com/w.tar.gz: ")) {
				t.Fatal(err)
			}
			if left, _ := filepath.Glob(filepath.Join(b.Work, "*")); len(left) != 1 || filepath.Base(left[0]) != "files" {
				t.Errorf("left in the bake's folder: %q", left)
			}
			if c.want != "" {
				return
			}
			for _, f := range []string{"index.php", "wp-includes/x.php"} {
				if info, err := os.Stat(filepath.Join(b.Work, "files/usr/share/wordpress", f)); err != nil || info.Mode() != 0o644 {
					t.Errorf("%s: %v, %v", f, info, err)
				}
			}
		})
	}
}

package format

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/internal/testkit"
)

var web = Machine{Name: "web", Distro: "debian12", CPUs: 2, Memory: 768 << 20, ID: "04bea9e2109ec3378561aca35e2abeb4"}

// packages lists the two kinds of tar files, with the files that they must contain, in order.
var packages = []struct {
	name  string
	write func(context.Context, string, *os.File, Machine, int) error
	files []string
}{
	{"web.ova", WriteOVA, []string{"web.ovf", "web.mf", "web-disk1.vmdk"}},
	{"web.box", WriteBox, []string{"metadata.json", "Vagrantfile", "box.ovf", "box.mf", "box-disk001.vmdk"}},
}

func TestPackages(t *testing.T) {
	disk := testDisk(t, 40<<20, part{0, 5 << 20}, part{39 << 20, 1 << 20})
	for _, tt := range packages {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path, again := filepath.Join(dir, tt.name), filepath.Join(dir, "again")
			if err := tt.write(t.Context(), path, disk, web, 1); err != nil {
				t.Fatal(err)
			}
			if err := tt.write(t.Context(), again, disk, web, 4); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if other, err := os.ReadFile(again); err != nil || !bytes.Equal(data, other) {
				t.Errorf("made again, it differs (%v)", err)
			}
			out := testkit.Run(t, testkit.Program(t, "tar", "tar"), "--list", "--file", path)
			if names := strings.Fields(out); !slices.Equal(names, tt.files) {
				t.Errorf("tar lists %q, want %q", names, tt.files)
			}

			files := untar(t, data)
			base := strings.TrimSuffix(tt.files[len(tt.files)-2], ".mf")
			vmdk := tt.files[len(tt.files)-1]
			manifest := fmt.Sprintf("SHA256(%s.ovf)= %x\nSHA256(%s)= %x\n", base, sha256.Sum256(files[base+".ovf"]), vmdk, sha256.Sum256(files[vmdk]))
			if got := string(files[base+".mf"]); got != manifest {
				t.Errorf("the manifest is\n%s, want\n%s", got, manifest)
			}
			var plain bytes.Buffer
			if err := WriteVMDK(t.Context(), &plain, disk, web.ID, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(files[vmdk], plain.Bytes()) {
				t.Error("the VMDK differs from the output of WriteVMDK")
			}
			var envelope struct {
				File struct {
					Name string `xml:"href,attr"`
					Size int    `xml:"size,attr"`
				} `xml:"References>File"`
				Disk struct {
					Capacity int64 `xml:"capacity,attr"`
				} `xml:"DiskSection>Disk"`
			}
			if err := xml.Unmarshal(files[base+".ovf"], &envelope); err != nil {
				t.Fatal(err)
			}
			if f := envelope.File; f.Name != vmdk || f.Size != plain.Len() || envelope.Disk.Capacity != 40<<20 {
				t.Errorf("the OVF names %+v and a disk of %d bytes; the VMDK has %d", f, envelope.Disk.Capacity, plain.Len())
			}
		})
	}
}

// untar returns the files of a tar file, which must be in ustar format, without dates and owners.
func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Format != tar.FormatUSTAR || h.Mode != 0o644 || h.Uid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("header of %s: %+v", h.Name, h)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// The OVF equals the golden file, which was compared with an export of VirtualBox 7.2.
func TestOVF(t *testing.T) {
	for _, distro := range []string{"debian12", "centos7"} {
		m := web
		m.Distro = distro
		got, err := m.ovf(4<<30, "web-disk1.vmdk", math.MaxInt64)
		if err != nil {
			t.Fatal(err)
		}
		testkit.Golden(t, filepath.Join("testdata", "ovf-"+distro+".xml"), got)
	}
	odd := web
	odd.Name = `<a & "b">`
	got, err := odd.ovf(4<<30, "a.vmdk", 1)
	if err != nil {
		t.Fatal(err)
	}
	var envelope struct {
		Name string `xml:"VirtualSystem>Name"`
	}
	if err := xml.Unmarshal(got, &envelope); err != nil || envelope.Name != odd.Name {
		t.Errorf("the name %q is read as %q (%v)", odd.Name, envelope.Name, err)
	}
}

// After an error, the old file is still there and no other file.
func TestPackageFails(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	disk, odd := testDisk(t, 8<<20, part{0, 8 << 20}), testDisk(t, 1000)
	for _, tt := range packages {
		for what, fails := range map[string]struct {
			ctx  context.Context
			disk *os.File
			os   string
		}{
			"interrupted": {cancelled, disk, "debian12"},
			"not a disk":  {t.Context(), odd, "debian12"},
			"no distro":   {t.Context(), disk, "plan9"},
		} {
			dir := t.TempDir()
			path := filepath.Join(dir, tt.name)
			if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			m := web
			m.Distro = fails.os
			if err := tt.write(fails.ctx, path, fails.disk, m, 0); err == nil {
				t.Errorf("%s, %s: no error", tt.name, what)
			}
			old, err := os.ReadFile(path)
			names, listErr := os.ReadDir(dir)
			if err := errors.Join(err, listErr); err != nil || string(old) != "old" || len(names) != 1 {
				t.Errorf("%s, %s: left %q in %v (%v)", tt.name, what, old, names, err)
			}
		}
	}
}

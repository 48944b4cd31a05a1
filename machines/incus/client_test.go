package incus

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
	"strings"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

func TestMissingProgram(t *testing.T) {
	p := New(Config{Cluster: "c", Program: "no-such-incus"})
	if err := p.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "no-such-incus") || !strings.Contains(err.Error(), "package incus-client") {
		t.Errorf("%v", err)
	}
}

// fakeProgram returns a client whose incus program is a shell script.
func fakeProgram(t *testing.T, script string) *client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "incus")
	testkit.OK(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755))
	return &client{program: path, project: "imagegen-c"}
}

// For an empty map, for example of operations, incus query --wait prints nothing.
func TestEmptyMapIsAnAnswer(t *testing.T) {
	var ops map[string]any
	testkit.OK(t, fakeProgram(t, "exit 0").query(t.Context(), "GET", "/1.0/operations", nil, &ops))
}

func TestErrorsAreWhatTheProgramSays(t *testing.T) {
	err := fakeProgram(t, "echo 'Error: Instance is\n busy' >&2; exit 1").query(t.Context(), "GET", "/1.0", nil, nil)
	if err == nil || err.Error() != "Instance is busy" {
		t.Errorf("%v", err)
	}
	err = fakeProgram(t, `echo '{"class": "task", "status_code": 400, "err": "no space left"}'`).query(t.Context(), "POST", "/1.0", nil, nil)
	if err == nil || err.Error() != "no space left" {
		t.Errorf("a failed operation: %v", err)
	}
}

// If reading an image fails, Incus must not take the part that it got for the whole: the program is killed before it
// sees the end of its input.
func TestPartOfAnImageIsNoImage(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "whole")
	c := fakeProgram(t, "cat <&3 >/dev/null\ntouch "+whole+"\n")
	damaged := errors.New("the disk is damaged")
	err := c.importImage(t.Context(), "a=b", func(w io.Writer) error {
		w.Write([]byte("part"))
		return damaged
	})
	if !errors.Is(err, damaged) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(whole); err == nil {
		t.Error("the program took a part for the whole")
	}
	testkit.OK(t, c.importImage(t.Context(), "a=b", func(w io.Writer) error {
		_, err := w.Write([]byte("all"))
		return err
	}))
	if _, err := os.Stat(whole); err != nil {
		t.Error("the program did not see the end of a whole image")
	}
}

// The same disk produces the same image, with every kind of file in a root file system.
func TestImage(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("needs mkfs.ext4: package e2fsprogs")
	}
	tree, disk := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	testkit.OK(t, os.MkdirAll(filepath.Join(tree, "usr/bin"), 0o755))
	testkit.OK(t, os.WriteFile(filepath.Join(tree, "usr/bin/perl"), []byte("program"), 0o755))
	testkit.OK(t, os.Link(filepath.Join(tree, "usr/bin/perl"), filepath.Join(tree, "usr/bin/perl5")))
	testkit.OK(t, os.Symlink("usr/bin", filepath.Join(tree, "bin")))
	testkit.OK(t, os.Chmod(filepath.Join(tree, "usr/bin/perl"), 0o755|os.ModeSetuid))
	if out, err := exec.Command(mkfs, "-q", "-F", "-d", tree, disk, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	var images [2]bytes.Buffer
	for i := range images {
		testkit.OK(t, writeImage(t.Context(), &images[i], disk, map[string]string{"description": "test"}))
	}
	if !bytes.Equal(images[0].Bytes(), images[1].Bytes()) {
		t.Error("two images of one disk differ")
	}
	packed, err := gzip.NewReader(&images[0])
	testkit.OK(t, err)
	archive := tar.NewReader(packed)
	var got []string
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		testkit.OK(t, err)
		switch h.Name {
		case "metadata.yaml":
			if len(got) > 0 {
				t.Error("metadata.yaml is not on top")
			}
			got = append(got, h.Name)
		case "rootfs/usr/bin/perl":
			data, err := io.ReadAll(archive)
			testkit.OK(t, err)
			if string(data) != "program" || h.Mode != 0o4755 {
				t.Errorf("perl is %q, mode %o", data, h.Mode)
			}
		case "rootfs/usr/bin/perl5":
			if h.Typeflag != tar.TypeLink || h.Linkname != "rootfs/usr/bin/perl" {
				t.Errorf("perl5 is %c to %q", h.Typeflag, h.Linkname)
			}
		case "rootfs/bin":
			if h.Typeflag != tar.TypeSymlink || h.Linkname != "usr/bin" {
				t.Errorf("bin is %c to %q", h.Typeflag, h.Linkname)
			}
		}
		got = append(got, h.Name)
	}
	for _, want := range []string{"rootfs/usr/bin/perl", "rootfs/usr/bin/perl5", "rootfs/bin", "rootfs/usr/"} {
		if !strings.Contains(strings.Join(got, "\n")+"\n", want+"\n") {
			t.Errorf("no %s in %q", want, got)
		}
	}
}

func TestFollowedConsole(t *testing.T) {
	line := strings.Repeat("0123456789", 60) + "\n"
	before := []byte("first\n" + line + "second\n" + line + "third\n")
	for _, c := range []struct{ now, want string }{
		{string(before) + "new\n", "new\n"},
		{string(before), ""},
		{string(before[150:]) + "new\n", "new\n"}, // the beginning was dropped, the end was not
		{"another boot\n", "another boot\n"},
	} {
		if got := fresh(before, []byte(c.now)); string(got) != c.want {
			t.Errorf("%.20q…: %.40q, want %q", c.now, got, c.want)
		}
	}
}

// A program that hangs does not block its caller after the context ends.
func TestCancelledQuery(t *testing.T) {
	c := fakeProgram(t, "exec sleep 60")
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.query(ctx, "GET", "/1.0", nil, nil); err == nil || time.Since(start) > 30*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
}

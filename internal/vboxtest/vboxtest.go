//go:build linux

// Package vboxtest runs tests with a real VirtualBox in its own root file system, which IMAGEGEN_VBOX names. It needs
// neither VirtualBox's driver nor hardware virtualisation.
package vboxtest

import (
	_ "embed"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Root returns the root file system, or skips the test.
func Root(t testing.TB) string {
	t.Helper()
	root := os.Getenv("IMAGEGEN_VBOX")
	if root == "" {
		t.Skip("SKIPPED: no real VirtualBox; set IMAGEGEN_VBOX to a folder that is a root file system with VBoxManage inside")
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: changing root to the VirtualBox in IMAGEGEN_VBOX needs root")
	}
	return root
}

// Network says which network a process started by Rerun has.
type Network bool

const (
	HostNetwork Network = false
	OwnNetwork  Network = true // only its own loopback interface
)

// dirVariable names the folder of a test that is rerun.
const dirVariable = "VBOXTEST_DIR"

//go:embed VBoxManage
var manage string

const headless = `#!/bin/sh
exec chroot "$IMAGEGEN_VBOX" env HOME="$VBOXTEST_DIR" VBOX_USER_HOME="$VBOXTEST_DIR/settings" PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/lib/virtualbox/VBoxHeadless "$@"
`

const enter = `set -e
mount -t proc proc /proc
mount -t proc proc "$IMAGEGEN_VBOX/proc"
mount -t tmpfs tmpfs "$IMAGEGEN_VBOX/tmp"
mkdir -p "$IMAGEGEN_VBOX$VBOXTEST_DIR"
mount --bind "$VBOXTEST_DIR" "$IMAGEGEN_VBOX$VBOXTEST_DIR"
ip link set lo up 2>/dev/null || true
VBoxManage setproperty machinefolder "$VBOXTEST_DIR/machines"
VBoxManage setextradata global VBoxInternal/HM/FallbackToIEM 1
exec "$0" -test.run "$1" -test.v -test.timeout 120m`

// Rerun runs the test again in a process whose VBoxManage and VBoxHeadless are those of the root file system; it
// returns true in that process. The test's folders have the same paths there. Everything that it starts ends with the
// process.
//
// Host-only networks need VirtualBox's driver, so they are only recorded, and adapters on them are not connected.
func Rerun(t *testing.T, network Network) bool {
	t.Helper()
	root := Root(t)
	if os.Getenv(dirVariable) != "" {
		return true
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"VBoxManage": manage, "VBoxHeadless": headless} {
		path := filepath.Join(dir, "bin", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--mount", "--pid", "--fork", "--kill-child"}
	if network == OwnNetwork {
		args = append(args, "--net")
	}
	pattern := "^" + t.Name() + "$"
	if asked := flag.Lookup("test.run").Value.String(); strings.HasPrefix(asked, t.Name()+"/") {
		pattern = asked
	}
	cmd := exec.Command("unshare", append(args, "sh", "-c", enter, self, pattern)...)
	cmd.Env = append(os.Environ(), "IMAGEGEN_VBOX="+root, dirVariable+"="+dir, "TMPDIR="+dir, "HOME="+dir, "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // unbuffered: some tests take many minutes
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	return false
}

// Networks returns VBoxManage's list of the host-only networks that were created, in a process started by Rerun.
func Networks(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(os.Getenv(dirVariable), "networks"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// Script runs a shell script in the root file system; the folder dir is mounted at /mnt and keeps VirtualBox's
// settings. Everything that the script starts ends with it.
func Script(t *testing.T, dir, script string) (string, error) {
	t.Helper()
	const enter = `mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/tmp" && mount --bind "$2" "$1/mnt" || exit 99
cd / && exec chroot "$1" env HOME=/mnt VBOX_USER_HOME=/mnt/settings sh -c "$3"`
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter, "sh", Root(t), dir,
		"set -e\nVBoxManage setproperty machinefolder /mnt/machines\n"+script)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 99 {
		t.Fatalf("enter the root file system: %s", out)
	}
	return string(out), err
}

// List lists what VirtualBox has of a kind.
func List(t testing.TB, kind string) string {
	t.Helper()
	out, err := exec.Command("VBoxManage", "-q", "list", kind).Output()
	if err != nil {
		t.Fatalf("list %s: %v", kind, err)
	}
	return string(out)
}

package distro

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/images/packages"
	"imagegen/internal/testkit"
)

func TestKeyringStaysBelow(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key.gpg")
	testkit.Write(t, key, "key")
	work := filepath.Join(dir, "work")
	up := strings.Repeat("../", strings.Count(work, "/"))
	if err := stageKeys(filepath.Join(work, "keys"), []string{"/" + up + strings.TrimPrefix(key, "/")}); err == nil {
		t.Error("a path outside the folder was accepted")
	}
	if got := packages.Keyrings([]string{"deb [signed-by=/usr/../" + up + "etc/k.gpg] http://a.example.com/debian bookworm main"}); !slices.Equal(got, []string{"/etc/k.gpg"}) {
		t.Errorf("%q", got)
	}
	if err := stageKeys(filepath.Join(work, "more"), []string{key, "/nonexistent"}); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(filepath.Join(work, "more", key)); string(data) != "key" {
		t.Errorf("%q, %v", data, err)
	}
	if err := stageKeys(filepath.Join(work, "zero"), []string{"/dev/zero"}); err == nil {
		t.Error("a device was accepted as a keyring")
	}
}

// TestPackageFileName: file names with spaces or a leading dash are errors, since scripts use them as words.
func TestPackageFileName(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a /etc/b.deb", "-oDPkg::Pre-Invoke=x.deb", "a\nb.deb"} {
		if err := StageLocal(t.Context(), filepath.Join(dir, "local"), []LocalPackage{{Name: name, Path: dir}}); err == nil || !strings.Contains(err.Error(), "letters") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestRemoveStaysInside runs the scripts' loop that removes paths in a root with mounts, such as the build host's /dev
// in a bake.
func TestRemoveStaysInside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for mounts: that nothing is removed from them is NOT tested")
	}
	for name, script := range map[string]string{"debian12": debianScript, "centos7": elScript} {
		_, loop, ok := strings.Cut(script, "for p in $REMOVE; do")
		loop, _, ok2 := strings.Cut(loop, "\ndone\n")
		if !ok || !ok2 {
			t.Fatalf("%s: the loop is not in the script", name)
		}
		cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-euc", `
mount -t tmpfs tmpfs "$DIR"
mkdir "$DIR/up" "$DIR/work" "$DIR/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$DIR/up,workdir=$DIR/work" "$DIR/root"
cd "$DIR/root"
mkdir -p opt/gone/sub opt/globbed opt/around/mounted mnt
mount -t tmpfs tmpfs mnt
mount -t tmpfs tmpfs opt/around/mounted
touch mnt/kept opt/around/mounted/kept opt/gone/sub/x opt/globbed/a opt/globbed/b
ln -s /mnt opt/link
ln -s /opt/globbed opt/inside
chroot . sh -euc "$LOOP" || true # rm says what it has left alone
ls -d mnt/kept opt/around/mounted/kept opt/* opt/globbed/* 2>/dev/null || true
`)
		cmd.Env = append(os.Environ(), "DIR="+t.TempDir(), "LOOP=for p in $REMOVE; do"+loop+"\ndone", "REMOVE=/opt/link/* /mnt/* /opt/gone /opt/inside/a /opt/around /opt/absent/x")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for _, want := range []string{"mnt/kept\n", "opt/around/mounted/kept\n", "opt/globbed/b\n"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %s is gone:\n%s", name, want, out)
			}
		}
		for _, bad := range []string{"opt/gone", "opt/globbed/a"} {
			if strings.Contains(string(out), bad) {
				t.Errorf("%s: %s is left:\n%s", name, bad, out)
			}
		}
	}
}

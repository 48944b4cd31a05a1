package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/images/builder"
	"imagegen/images/format"
	"imagegen/internal/program"
	"imagegen/internal/testkit"
)

// A build that cannot bake fails before it downloads anything. Root in a container lacks CAP_SYS_ADMIN.
func TestNoRightToMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: that rights are missed is NOT tested")
	}
	testkit.Program(t, "setpriv", "util-linux")
	if err := builder.CheckTools(program.Path, toolsOf("debian12")); err != nil {
		t.Skipf("needs what a bake needs: that rights are missed is NOT tested: %v", err)
	}
	imagegen := theProgram(t)
	for _, by := range []string{"", "--builder=chroot", "--builder=qemu"} {
		cache := t.TempDir()
		dir := testDir(t, tinySpec, map[string]string{"tiny": tinyRole})
		args := []string{"--bounding-set=-sys_admin", "--inh-caps=-sys_admin", imagegen, "build", "-f", filepath.Join(dir, "cluster.yaml"), "--cache", cache,
			"--agent", filepath.Join(dir, "agent")}
		if by != "" {
			args = append(args, by)
		}
		cmd := exec.Command("setpriv", args...)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "no right to mount (CAP_SYS_ADMIN): run the container with --privileged") {
			t.Errorf("%q: exit code %d\n%s", by, cmd.ProcessState.ExitCode(), out)
		}
		if left := append(files(t, filepath.Join(cache, "packages")), kept(cache, "archive/*")...); len(left) > 0 {
			t.Errorf("%q: it has fetched %q", by, left)
		}
	}
}

func kept(dir, pattern string) []string {
	all, _ := filepath.Glob(filepath.Join(dir, pattern))
	return all
}

// Without qemu-img, a build with qcow2 fails before it bakes.
func TestNoQEMUImg(t *testing.T) {
	c := mustConfig(t, testDir(t, tinySpec, map[string]string{"tiny": tinyRole}), filepath.Join(t.TempDir(), "cache"))
	c.Formats = []string{"ova", "qcow2"}
	t.Setenv("PATH", t.TempDir())
	_, err := Build(t.Context(), c)
	wantError(t, err, "--format qcow2 needs qemu-img, which this machine lacks: apt-get install qemu-utils")
	if _, err := os.Stat(c.CacheDir); err == nil {
		t.Error("the build has started")
	}
	c.Formats = []string{"ova"} // does not need qemu-img
	if err := format.Check(c.Formats); err != nil {
		t.Error(err)
	}
}

// systemAccountsRefused checks that ssh.user cannot be any account or group of the image: cloud-init would give the
// operator's keys and sudo to a service.
func systemAccountsRefused(t *testing.T, root string, rules map[string]cluster.Rules) {
	t.Helper()
	n := 0
	for _, file := range []string{"passwd", "group"} {
		data, err := os.ReadFile(filepath.Join(root, "etc", file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			name, _, _ := strings.Cut(line, ":")
			if name == "app" { // an account of the test's role, which the spec below does not use
				continue
			}
			n++
			spec := fmt.Sprintf("%sssh: {user: %s, keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0S3FzxWr4H0OIqZ3DZ5z7fSgqBpB9GYf2dq3dmJ3cW ops@desk]}\n", tinySpec, name)
			if _, err := cluster.Parse("cluster.yaml", []byte(spec), rules); err == nil || !strings.Contains(err.Error(), "ssh.user") {
				t.Errorf("ssh.user: %s is accepted, although it is in /etc/%s of an image: %v", name, file, err)
			}
		}
	}
	if n < 40 {
		t.Errorf("the image has %d users and groups", n)
	}
}

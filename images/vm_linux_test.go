package images

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/images/builder"
	"imagegen/images/packages"
	"imagegen/internal/accel"
	"imagegen/internal/program"
	"imagegen/internal/sparse"
	"imagegen/internal/testkit"
)

// TestBuilderChoice: a requested builder is used, or is an error; otherwise the first that works is used. The reason is
// reported.
func TestBuilderChoice(t *testing.T) {
	c := mustConfig(t, testDir(t, tinySpec, map[string]string{"tiny": tinyRole}), t.TempDir())
	noChroot := builder.CheckTools(program.Path, toolsOf("debian12"))
	_, noQEMU := exec.LookPath(accel.QEMU)
	for asked, broken := range map[string]error{"chroot": noChroot, "qemu": errors.Join(noChroot, noQEMU)} {
		c.Builder = asked
		if _, why, err := c.chooseBuilder(); (err == nil) != (broken == nil) || err == nil && why != asked+" (as requested)" {
			t.Errorf("%s: %q, %v", asked, why, err)
		}
	}
	c.Builder = ""
	if by, why, err := c.chooseBuilder(); noChroot == nil && (by.VM() || why != "chroot (root on Linux, with all required programs)" || err != nil) {
		t.Errorf("%T, %q, %v", by, why, err)
	}
	// The base of centos7 is a disk, so a VM needs no other programs.
	centos := *c.Spec
	centos.Distro = "centos7"
	c.Spec = &centos
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	c.Builder = "qemu"
	_, _, err := c.chooseBuilder()
	wantError(t, err, "builder qemu: qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
	if err := os.WriteFile(filepath.Join(bin, accel.QEMU), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if by, why, err := c.chooseBuilder(); err != nil || why != "qemu (as requested)" {
		t.Errorf("%T, %q, %v", by, why, err)
	}
	if noChroot := builder.CheckTools(program.Path, toolsOf("centos7")); noChroot != nil {
		c.Builder = ""
		if _, why, err := c.chooseBuilder(); err != nil || why != "qemu (not chroot: "+noChroot.Error()+")" {
			t.Errorf("%q, %v", why, err)
		}
	}
}

// debOf builds a package from files; those in DEBIAN/ are its scripts.
func debOf(t *testing.T, path, name string, content map[string]string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), name)
	testkit.Write(t, filepath.Join(root, "DEBIAN/control"), "Package: "+name+"\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n")
	for file, text := range content {
		testkit.Write(t, filepath.Join(root, file), text)
		if strings.HasPrefix(text, "#!") {
			if err := os.Chmod(filepath.Join(root, file), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", root, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// bakeOnDisk bakes for centos7 in a VM, which boots from the image's disk. The base is Debian with dnf, with packages
// named like CentOS's. Packages are resolved in a VM as well, through a proxy; their files do not come back from there,
// so they are downloaded here.
func bakeOnDisk(t *testing.T, cache string) {
	needCentOSTools(t)
	www := t.TempDir()
	key := testkit.NewKeys(t, www)
	for name, all := range fixtures() {
		buildRPMs(t, filepath.Join(www, name), key, "right", all)
	}
	proxy := httptest.NewServer(http.FileServer(http.Dir(www))) // answers requests for any host
	t.Cleanup(proxy.Close)
	at := func(repo string) string {
		return "{urls: ['http://mirror.example.com/" + repo + "/$basearch/', '" + proxy.URL + "/" + repo + "/$basearch/'], keys: ['http://mirror.example.com/keys/right']}"
	}
	dir := testDir(t, strings.Replace(redisSpec, "{disk", "{packages: [dnf, rpm, standin.deb], disk", 1),
		map[string]string{"tiny": "description: x\ndistros: {centos7: {packages: [nginx], users: [{name: nginx, uid: 2000, gid: 3000}]}}\n"})
	debOf(t, filepath.Join(dir, "standin.deb"), "standin", map[string]string{
		"usr/bin/yum":       "#!/bin/sh\nexec /usr/bin/dnf \"$@\"\n",
		"etc/yum.repos.d/x": "",
		"DEBIAN/postinst":   "#!/bin/sh\nrm -f /etc/systemd/system/sshd.service\n",
	})
	c := mustConfig(t, dir, cache)
	c.Builder = "chroot"
	results, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := sparse.SHA256(t.Context(), results[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(dir, "cluster.yaml"), `{cluster: el, distro: centos7, network: {cidr: 192.168.10.0/24}, base: {file: `+results[0].Path+`, sha256: `+sum+`},
repos: {base: `+at("base")+`, updates: `+at("gluster")+`, extras: `+at("gluster")+`, epel: `+at("epel")+`},
roles: {tiny: {disk: 9GiB, nodes: {tiny1: 192.168.10.60}}}}`)
	t.Setenv("http_proxy", proxy.URL+"/")
	c = mustConfig(t, dir, cache)
	c.Builder = "qemu"
	began := time.Now()
	c.UI = told(func(image, what string) { t.Logf("%5.1f s %s: %s", time.Since(began).Seconds(), image, what) })
	if results, err = Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	// The first mount frees files that were open when they were deleted.
	whole := filepath.Join(t.TempDir(), "disk")
	if err := sparse.Copy(t.Context(), results[0].Path, whole); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "unshare", "--mount", "sh", "-euc", `mount -o loop,offset=1048576 "$1" "$2"; umount "$2"`, "sh", whole, t.TempDir())
	testkit.Run(t, "e2fsck", "-f", "-n", whole+"?offset=1048576")
	state := testkit.Run(t, "unshare", "--mount", "sh", "-euc", `mount -o ro,noload,loop,offset=1048576 "$1" "$2"; cd "$2"
echo "$(df --output=size -BG . | tail -n 1 | tr -d ' ') in all"
stat -c '%s %n' etc/machine-id etc/resolv.conf
readlink etc/systemd/system/multi-user.target.wants/*
ls etc/systemd/network etc/netplan etc/yum.repos.d var/lib/cloud etc/ssh tmp var/tmp 2>&1 || true # not all are there
grep SELINUX= etc/selinux/config
`, "sh", results[0].Path, t.TempDir())
	for _, want := range []string{"9G in all\n", "\n0 etc/machine-id\n0 etc/resolv.conf\n", "/chronyd.service\n", "\nSELINUX=permissive\n"} {
		if !strings.Contains(state, want) {
			t.Errorf("no %q in\n%s", want, state)
		}
	}
	for _, bad := range []string{"10-cloud-init-eth0.network\n", "50-cloud-init.yaml", "ssh_host_", ".repo\n", "systemd-private", "imagegen-bake\n"} {
		if strings.Contains(state, bad) {
			t.Errorf("%q in\n%s", bad, state)
		}
	}
	var m Manifest
	data, err := os.ReadFile(results[0].Manifest)
	if err := errors.Join(err, json.Unmarshal(data, &m)); err != nil || !slices.ContainsFunc(m.Packages, func(p packages.Package) bool {
		return p.Name == "nginx" && p.Version == "1.20.1-1.el7" && p.Architecture == "x86_64"
	}) {
		t.Errorf("packages %v, %v", m.Packages, err)
	}
	wantPins(t, m.Inputs.Pinned, "nginx")
}

// redisSpec uses the role with the smallest image.
const redisSpec = `cluster: vm
distro: debian12
network: {cidr: 192.168.10.0/24}
roles:
  redis: {disk: 2GiB, nodes: {redis1: 192.168.10.49, redis2: 192.168.10.50, redis3: 192.168.10.51}}
`

// TestBakeInVM bakes one role with both builders, and tests failures of VMs. An emulated bake takes minutes.
func TestBakeInVM(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("IMAGEGEN_E2E is not vm: bakes in VMs are NOT tested")
	}
	needBake(t)
	testkit.Program(t, accel.QEMU, "qemu-system-x86")
	cache := t.TempDir()
	dir := testDir(t, redisSpec, nil)
	build := func(by string) (Manifest, Result, error) {
		c := mustConfig(t, dir, cache)
		c.Builder = by
		began := time.Now()
		c.UI = told(func(image, what string) { t.Logf("%5.1f s %s: %s", time.Since(began).Seconds(), image, what) })
		results, err := Build(t.Context(), c)
		if err != nil {
			return Manifest{}, Result{}, err
		}
		var m Manifest
		data, err := os.ReadFile(results[0].Manifest)
		if err := errors.Join(err, json.Unmarshal(data, &m)); err != nil {
			t.Fatal(err)
		}
		return m, results[0], nil
	}
	chrooted, r, err := build("chroot")
	if err != nil {
		t.Fatal(err)
	}
	// Both builders must make the same image.
	forget := func() {
		if err := os.RemoveAll(filepath.Join(cache, "images", r.Identity)); err != nil {
			t.Fatal(err)
		}
	}
	forget()
	booted, _, err := build("qemu")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(chrooted.Packages, func(p packages.Package) bool { return p.Name == "redis-server" }) || !slices.Equal(chrooted.Packages, booted.Packages) {
		t.Errorf("chroot: %v\nqemu: %v", chrooted.Packages, booted.Packages)
	}
	if chrooted.Disk != booted.Disk {
		t.Errorf("the two images differ: chroot: %+v, qemu: %+v", chrooted.Disk, booted.Disk)
	}
	t.Run("base that is a disk", func(t *testing.T) { bakeOnDisk(t, cache) })

	if err := os.RemoveAll(filepath.Join(cache, "images")); err != nil {
		t.Fatal(err)
	}
	kept := func() []string {
		return append(files(t, filepath.Join(cache, "images")), files(t, filepath.Join(cache, "work"))...)
	}
	t.Run("time limit", func(t *testing.T) {
		c := mustConfig(t, dir, cache)
		c.Builder, c.Limit = "qemu", 5*time.Second
		_, err := Build(t.Context(), c)
		wantError(t, err, "bake redis: boot the VM: ", "did not finish within 5s (--time-limit)")
		if left := kept(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("killed", func(t *testing.T) {
		vms := func() bool { return exec.Command("pgrep", "-f", accel.QEMU+".*"+cache).Run() == nil }
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			t.Setenv("IMAGES_TEST_BUILDER", "qemu")
			run := startBuild(t, dir, cache)
			for line := range run.lines {
				if line == "redis: boot the VM" {
					break
				}
			}
			testkit.Until(t, untilLimit, "the VM runs", vms)
			if err := syscall.Kill(-run.cmd.Process.Pid, sig); err != nil {
				t.Fatal(err)
			}
			for range run.lines {
			}
			run.cmd.Wait()
			testkit.Until(t, untilLimit, "no VM is left after "+sig.String(), func() bool { return !vms() })
			if left := files(t, filepath.Join(cache, "images")); len(left) > 0 {
				t.Errorf("%s has left %q", sig, left)
			}
		}
	})
	t.Run("failing step", func(t *testing.T) {
		// The package's own script fails, which no check before the bake can detect.
		debOf(t, filepath.Join(dir, "broken.deb"), "broken", map[string]string{"DEBIAN/postinst": "#!/bin/sh\necho this is not to be had\nexit 7\n"})
		testkit.Write(t, filepath.Join(dir, "cluster.yaml"), strings.Replace(redisSpec, "{disk", "{packages: [broken.deb], disk", 1))
		_, _, err := build("qemu")
		wantError(t, err, "bake redis: install packages: exit status 100; the log ", "Errors were encountered while processing:\n broken")
		if log, err := os.ReadFile(filepath.Join(cache, "log", "redis.log")); err != nil || !strings.Contains(string(log), "\nthis is not to be had\n") {
			t.Errorf("the log does not have what the package said: %v", err)
		}
		if left := kept(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
}

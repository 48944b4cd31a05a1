package images

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagegen/cluster"
	known "imagegen/distro"
	"imagegen/images/builder"
	"imagegen/images/disk"
	"imagegen/images/format"
	"imagegen/images/packages"
	"imagegen/internal/program"
	"imagegen/internal/sparse"
	"imagegen/internal/testkit"
)

// TestMain lets the test binary run itself as a build, which tests can kill.
func TestMain(m *testing.M) {
	if dir := os.Getenv("IMAGES_TEST_BUILD"); dir != "" {
		os.Exit(buildForTest(dir))
	}
	os.Exit(m.Run())
}

// buildForTest builds the project in a folder and prints each step.
func buildForTest(dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c, err := testConfig(dir, os.Getenv("IMAGES_TEST_CACHE"))
	if err == nil {
		c.UI = told(func(image, what string) { fmt.Printf("%s: %s\n", image, what) })
		c.Offline = os.Getenv("IMAGES_TEST_OFFLINE") != ""
		c.Locked = c.Offline
		c.Builder = os.Getenv("IMAGES_TEST_BUILDER")
		if jobs, err := strconv.Atoi(os.Getenv("IMAGES_TEST_JOBS")); err == nil {
			c.Jobs, c.Formats = jobs, format.Names
		}
		_, err = Build(ctx, c)
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// told is a Progress that reports the steps to a function.
type told func(image, what string)

func (f told) Step(image, what string)      { f(image, what) }
func (told) Done(image string, cached bool) {}
func (told) Note(text string)               {}

// needBake skips the test if baking is impossible here.
func needBake(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: bakes are NOT tested")
	}
	if err := builder.CheckTools(program.Path, toolsOf("debian12")); err != nil {
		t.Skipf("bakes are NOT tested: %v", err)
	}
	lines, err := packages.HostSources("/", known.Named("debian12"))
	if err != nil {
		t.Skipf("bakes are NOT tested: %v", err)
	}
	address := packages.Address(lines, "bookworm")
	if !strings.HasPrefix(address, "http") {
		return
	}
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Head(strings.TrimSuffix(address, "/") + "/dists/bookworm/InRelease")
	if err != nil {
		t.Skipf("bakes are NOT tested: this machine's archive cannot be reached: %v", err)
	}
	resp.Body.Close()
}

// run is a build in another process.
type run struct {
	cmd   *exec.Cmd
	lines chan string
}

func startBuild(t *testing.T, dir, cache string) *run {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "IMAGES_TEST_BUILD="+dir, "IMAGES_TEST_CACHE="+cache)
	// A process group of its own, as a shell's for a command, to send Ctrl-C to all its processes.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return start(t, cmd)
}

func start(t *testing.T, cmd *exec.Cmd) *run {
	t.Helper()
	r := &run{cmd: cmd, lines: make(chan string, 1000)}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			r.lines <- s.Text()
		}
		close(r.lines)
	}()
	t.Cleanup(func() { r.cmd.Process.Kill() })
	return r
}

// until waits for a step.
func (r *run) until(t *testing.T, step string) {
	t.Helper()
	for line := range r.lines {
		t.Log(line)
		if line == step {
			return
		}
		if strings.HasPrefix(line, "error:") {
			t.Fatal("the build failed")
		}
	}
	t.Fatalf("the build ended without %q", step)
}

// end waits for a build that must succeed.
func (r *run) end(t *testing.T) {
	t.Helper()
	var said []string
	for line := range r.lines {
		said = append(said, line)
	}
	if err := r.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, strings.Join(said, "\n"))
	}
}

// untilLimit is the limit of testkit.Until for conditions that the kernel fulfils soon, even on a busy machine.
const untilLimit = 2 * time.Minute

// nothingRuns checks that no loop device, process or mount of a bake below dir is left.
func nothingRuns(t *testing.T, dir string) {
	t.Helper()
	testkit.Until(t, untilLimit, "no loop device on "+dir, func() bool {
		files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		return !slices.ContainsFunc(files, func(f string) bool {
			backing, _ := os.ReadFile(f)
			return strings.HasPrefix(string(backing), filepath.Join(dir, "work")+"/")
		})
	})
	testkit.Until(t, untilLimit, "no process works in "+dir, func() bool {
		links, _ := filepath.Glob("/proc/[0-9]*/root")
		return !slices.ContainsFunc(links, func(l string) bool {
			to, _ := os.Readlink(l)
			return strings.HasPrefix(to, filepath.Join(dir, "work")+"/")
		})
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(filepath.Join(dir, "work")+"/")) {
		t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
}

// files lists a folder, without locks.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "lock" && !strings.HasSuffix(e.Name(), ".lock") {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestBake follows a cache: a build is killed while it makes the base, interrupted, killed while it makes an image, and
// then finishes. After that, the base is damaged in several ways.
func TestBake(t *testing.T) {
	needBake(t)
	t.Parallel()
	cache := t.TempDir()
	dir := testDir(t, tinySpec, map[string]string{"tiny": tinyRole})
	baseFiles := func() []string { return files(t, filepath.Join(cache, "base")) }
	lap := time.Now()
	took := func(what string) {
		t.Logf("%s: %s", what, time.Since(lap).Round(10*time.Millisecond))
		lap = time.Now()
	}

	r := startBuild(t, dir, cache)
	r.until(t, "base: install Debian")
	written := func() (bytes int64) {
		trees, _ := filepath.Glob(filepath.Join(cache, "work", "*", "result", treeName))
		if len(trees) == 0 {
			return 0
		}
		filepath.WalkDir(trees[0], func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil {
					bytes += info.Size()
				}
			}
			return nil // files come and go
		})
		return bytes
	}
	before := written()
	testkit.Until(t, untilLimit, "Debian is being written", func() bool { return written() > before+30<<20 })
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.cmd.Wait()
	nothingRuns(t, cache)
	if left := baseFiles(); len(left) > 0 {
		t.Errorf("a killed bake has left a base: %q", left)
	}
	if left := files(t, filepath.Join(cache, "work")); len(left) != 1 {
		t.Errorf("the killed bake should have left its folder, or the rest tests nothing: %q", left)
	}
	took("kill -9 in the base")

	// In a terminal, Ctrl-C also reaches the programs that imagegen runs.
	r = startBuild(t, dir, cache)
	r.until(t, "base: install Debian")
	interrupted := time.Now()
	if err := syscall.Kill(-r.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var last string
	for line := range r.lines {
		last = line
	}
	r.cmd.Wait()
	if since := time.Since(interrupted); since > waitLimit {
		t.Errorf("it took %s to stop", since)
	}
	if last != "error: bake the base of debian12: context canceled" {
		t.Errorf("Ctrl-C shows as %q", last)
	}
	nothingRuns(t, cache)
	if left := append(baseFiles(), files(t, filepath.Join(cache, "work"))...); len(left) > 0 {
		t.Errorf("an interrupted bake has left %q", left)
	}
	took("Ctrl-C in the base")

	r = startBuild(t, dir, cache)
	r.until(t, "base: keep")
	took("base")
	r.until(t, "tiny: install packages")
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.cmd.Wait()
	nothingRuns(t, cache)
	if left := files(t, filepath.Join(cache, "images")); len(left) > 0 {
		t.Errorf("a killed bake has left an image: %q", left)
	}
	took("kill -9 in an image")

	c := mustConfig(t, dir, cache)
	var steps []string
	c.UI = told(func(image, what string) {
		t.Logf("%6.2f s %s: %s", time.Since(lap).Seconds(), image, what)
		steps = append(steps, image+": "+what)
	})
	results, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	took("image")
	if slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, "base") }) {
		t.Errorf("the base was baked again: %q", steps)
	}
	if left := files(t, filepath.Join(cache, "work")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if len(results) != 1 || results[0].Cached {
		t.Fatalf("%+v", results)
	}

	t.Run("sealed", func(t *testing.T) { sealed(t, results[0], c.Catalogue.Rules()) })
	lap = time.Now()

	t.Run("up to date", func(t *testing.T) {
		quiet := mustConfig(t, dir, cache)
		long := time.Now().Add(-unusedFor - time.Hour)
		for _, dir := range []string{quiet.cache().imageDir(results[0].Identity), filepath.Join(cache, "base", files(t, filepath.Join(cache, "base"))[0])} {
			if err := os.Chtimes(dir, long, long); err != nil {
				t.Fatal(err)
			}
		}
		before := testkit.ProcessorTime(t)
		again, err := Build(t.Context(), quiet)
		if err != nil || len(again) != 1 || !again[0].Cached || again[0].Identity != results[0].Identity {
			t.Fatalf("%+v, %v", again, err)
		}
		used := testkit.ProcessorTime(t) - before
		t.Logf("a build with nothing to do: %s of CPU time", used)
		for _, kind := range []string{"images", "base"} {
			if left := files(t, filepath.Join(cache, kind)); len(left) == 0 {
				t.Errorf("trimmed a folder that this build uses: %s", kind)
			}
		}
		if used > 200*time.Millisecond { // reading or hashing an image takes seconds
			t.Errorf("a build with nothing to do took %s of CPU time", used)
		}
	})

	t.Run("offline", func(t *testing.T) { bakedOffline(t, dir, cache) })
	took("offline")

	t.Run("stops at every step", func(t *testing.T) { stopsAtEveryStep(t, dir, cache) })
	took("stops at every step")

	t.Run("unknown package", func(t *testing.T) {
		role := strings.Replace(tinyRole, "cron]", "no-such-package]", 1)
		c := mustConfig(t, testDir(t, tinySpec, map[string]string{"tiny": role}), cache)
		_, err := Build(t.Context(), c)
		wantError(t, err, "roles/tiny/role.yaml:4:16: ", "the archive has no package no-such-package for debian12")
		if left := files(t, filepath.Join(cache, "work")); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		nothingRuns(t, cache)
	})
	took("unknown package")

	t.Run("disk full at work", func(t *testing.T) { fullAtWork(t, dir, cache) })
	took("disk full at work")
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	t.Log(err)
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error does not say %q:\n%v", p, err)
		}
	}
}

// sealed checks the content of an image, and that nothing from the build host is in it.
func sealed(t *testing.T, r Result, rules map[string]cluster.Rules) {
	file := r.Path
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o444 || info.Size() != 4<<30 {
		t.Errorf("%v, %v", info, err)
	}
	data, err := os.ReadFile(r.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(m.Packages, func(p packages.Package) bool { return p.Name == "cron" && p.Version != "" && p.Architecture == "amd64" }) {
		t.Errorf("the manifest does not list cron: %v", m.Packages)
	}
	if !slices.ContainsFunc(m.Packages, func(p packages.Package) bool {
		return p.Name == "libc6" && strings.HasPrefix(p.Source, "glibc@") && strings.Contains(p.Supplier, "Libc Maintainers")
	}) {
		t.Errorf("the manifest lacks the source of libc6: %v", m.Packages)
	}
	root := t.TempDir()
	if out, err := exec.Command("mount", "-o", "ro,noload,loop,offset=1048576", file, root).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	}()
	cat := func(path string) string {
		data, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}
	exists := func(path string) bool {
		_, err := os.Lstat(filepath.Join(root, path))
		return err == nil
	}
	for _, path := range []string{"/etc/machine-id", "/etc/resolv.conf"} {
		if got := cat(path); got != "" {
			t.Errorf("%s should be there and empty: %q", path, got)
		}
	}
	for _, path := range []string{
		"/etc/hostname", "/usr/sbin/policy-rc.d", "/var/lib/systemd/random-seed", "/var/lib/dbus/machine-id", "/var/lib/cloud",
		"/etc/apt/apt.conf.d/90bake", "/etc/apt/apt.conf.d/99mmdebstrap", "/var/cache/apt/pkgcache.bin",
		"/etc/systemd/system/multi-user.target.wants/cron.service", "/etc/cron.daily/dpkg",
	} {
		if exists(path) {
			t.Errorf("the image holds %s", path)
		}
	}
	for _, path := range []string{"/var/lib/apt/lists", "/var/cache/apt/archives", "/tmp", "/var/tmp", "/run", "/proc", "/dev/pts"} {
		entries, err := os.ReadDir(filepath.Join(root, path))
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode().IsRegular() && info.Size() > 0 {
				t.Errorf("the image holds %s/%s", path, e.Name())
			}
		}
	}
	if keys, _ := filepath.Glob(filepath.Join(root, "etc/ssh/ssh_host_*")); len(keys) > 0 {
		t.Errorf("the image holds host keys: %q", keys)
	}
	systemAccountsRefused(t, root, rules)
	if got := cat("/etc/passwd"); !strings.Contains(got, "\napp:x:2000:3000::/nonexistent:/usr/sbin/nologin\n") {
		t.Errorf("there is no user app: %s", got)
	}
	if got := cat("/etc/initramfs-tools/update-initramfs.conf"); !strings.Contains(got, "\nupdate_initramfs=yes\n") {
		t.Errorf("a new kernel would get no initramfs: %s", got)
	}
	var initramfs []string
	for _, path := range strings.Fields(testkit.Run(t, "chroot", root, "sh", "-c", "lsinitramfs /boot/initrd.img-*")) {
		if strings.HasSuffix(path, ".ko") {
			initramfs = append(initramfs, strings.TrimSuffix(filepath.Base(path), ".ko"))
		}
	}
	// For each kind of disk that a hypervisor shows, and a server has.
	for _, module := range strings.Fields("ext4 virtio_pci virtio_mmio virtio_blk virtio_scsi ahci ata_piix nvme vmd sd_mod mptspi mptsas vmw_pvscsi BusLogic hv_storvsc pci-hyperv " +
		"xen-blkfront uas usb-storage xhci-pci megaraid_sas mpt3sas hpsa aacraid smartpqi usbhid hid-generic") {
		if !slices.Contains(initramfs, module) {
			t.Errorf("the initramfs lacks %s", module)
		}
	}
	if slices.Contains(initramfs, "e1000") {
		t.Error("the initramfs has network cards")
	}
	for line := range strings.Lines(cat("/etc/shadow")) {
		if f := strings.Split(line, ":"); f[1] != "" && !strings.HasPrefix(f[1], "!") && f[1] != "*" || f[1] == "" {
			t.Errorf("%s has a password, or needs none", f[0])
		}
	}
	if got := cat("/usr/local/sbin/imagegen-node"); got != testAgent {
		t.Errorf("the agent is %q", got)
	}
	if got := cat("/etc/systemd/journald.conf.d/90-imagegen.conf"); !strings.Contains(got, "\nSystemMaxUse=64M\n") {
		t.Errorf("the journal grows with the disk: %q", got)
	}
	if !exists("/etc/systemd/system/multi-user.target.wants/imagegen-node.service") {
		t.Error("the agent does not start at boot")
	}
	// Boots: boot sector, one active partition from sector 2048 on to the end, the loader's configuration.
	head := make([]byte, 512)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(head); err != nil {
		t.Fatal(err)
	}
	if sector, err := os.ReadFile(disk.BootSector); err != nil || !bytes.Equal(head[:440], append(sector, make([]byte, 440)...)[:440]) {
		t.Errorf("a different boot sector: %v", err)
	}
	if entry := head[446:462]; entry[0] != 0x80 || !bytes.Equal(entry[8:12], []byte{0, 8, 0, 0}) || !bytes.Equal(entry[12:16], []byte{0, 0xf8, 0x7f, 0}) {
		t.Errorf("partition: %x", entry)
	}
	conf := cat("/boot/extlinux/extlinux.conf")
	for _, word := range []string{"LINUX", "INITRD"} {
		_, rest, _ := strings.Cut(conf, word+" ")
		path, _, _ := strings.Cut(rest, "\n")
		if path == "" || !exists(path) {
			t.Errorf("extlinux.conf names a %s that is not there: %s", word, conf)
		}
	}
}

// bakedOffline bakes another image without a network, and then with a damaged package in the cache.
func bakedOffline(t *testing.T, dir, cache string) {
	role := filepath.Join(dir, "roles/tiny/role.yaml")
	testkit.Write(t, role, strings.Replace(tinyRole, "cron.daily/*", "cron.weekly/*", 1))
	defer testkit.Write(t, role, tinyRole)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	offline := func() (string, error) {
		cmd := exec.Command("unshare", "--net", self)
		cmd.Env = append(os.Environ(), "IMAGES_TEST_BUILD="+dir, "IMAGES_TEST_CACHE="+cache, "IMAGES_TEST_OFFLINE=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	c := mustConfig(t, dir, cache)
	l, err := packages.ReadLock(c.LockPath(), c.Spec.Distro)
	if err != nil {
		t.Fatal(err)
	}
	var cron packages.Pin
	for _, p := range l.Roles["tiny"].Packages {
		if p.Name == "cron" {
			cron = p
		}
	}
	whole, err := os.ReadFile(c.cache().store().Path(cron.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	replace := func(data []byte) {
		if err := errors.Join(os.Remove(c.cache().store().Path(cron.SHA256)), os.WriteFile(c.cache().store().Path(cron.SHA256), data, 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	damaged := bytes.Clone(whole)
	damaged[len(damaged)/2] ^= 1
	replace(damaged)
	if out, err := offline(); err == nil || !strings.Contains(out, "package "+cron.String()+" is damaged in the cache") {
		t.Errorf("a damaged package: %v\n%s", err, out)
	}
	replace(whole)
	if out, err := offline(); err != nil || !strings.Contains(out, "tiny: keep\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// mountSmall mounts a new ext4 file system of this size and returns its folder.
func mountSmall(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	file, at := filepath.Join(dir, "disk"), filepath.Join(dir, "small")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.Mkdir(at, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", file}, {"mount", "-o", "loop", file, at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("a full disk is NOT tested: %s: %v: %s", args[0], err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return at
}

// fullAtWork fills the cache's disk during a bake.
func fullAtWork(t *testing.T, dir, cache string) {
	small := mountSmall(t, 3<<30)
	for _, shared := range []string{"base", "packages", "archive"} {
		if err := os.Symlink(filepath.Join(cache, shared), filepath.Join(small, shared)); err != nil {
			t.Fatal(err)
		}
	}
	c := mustConfig(t, dir, small)
	filler := filepath.Join(small, "filler")
	var once sync.Once
	c.UI = told(func(image, what string) {
		if what != "install packages" {
			return
		}
		once.Do(func() {
			f, err := os.Create(filler)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for step := int64(64 << 20); step >= 4096; step /= 2 {
				for info, _ := f.Stat(); syscall.Fallocate(int(f.Fd()), 0, info.Size(), step) == nil; info, _ = f.Stat() {
				}
			}
		})
	})
	_, err := Build(t.Context(), c)
	wantError(t, err, "bake tiny: "+small+" is full, 0 MiB are free", "--cache")
	if left := append(files(t, filepath.Join(small, "work")), files(t, filepath.Join(small, "images"))...); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	nothingRuns(t, small)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c.UI = told(func(string, string) {})
	if _, err := Build(t.Context(), c); err != nil {
		t.Errorf("with space again: %v", err)
	}
}

// TestSmallDisk: a bake fails at once if the cache's disk is too small.
func TestSmallDisk(t *testing.T) {
	if err := builder.CheckTools(program.Path, toolsOf("debian12")); err != nil {
		t.Skipf("a small disk is NOT tested: %v", err)
	}
	small := mountSmall(t, 64<<20)
	spec := tinySpec + "mirror: http://127.0.0.1:9/debian\n"
	_, err := Build(t.Context(), mustConfig(t, testDir(t, spec, map[string]string{"tiny": tinyRole}), small))
	wantError(t, err, "takes about 3648 MiB in "+small, "MiB are free", "--cache")
	if left := files(t, filepath.Join(small, "packages")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestNoBase: archives from which no base can be made.
func TestNoBase(t *testing.T) {
	if err := builder.CheckTools(program.Path, toolsOf("debian12")); err != nil {
		t.Skipf("bases that fail are NOT tested: %v", err)
	}
	t.Parallel()
	empty := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(empty.Close)
	for _, c := range []struct{ name, mirror, say string }{
		{"no such folder", "deb [trusted=yes] file:///nonexistent/debian bookworm main", "/nonexistent/debian"},
		{"unreachable", "http://127.0.0.1:9/debian", "Connection refused"},
		{"no such suite", "deb " + empty.URL + "/debian bookworm main", "bookworm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cache := t.TempDir()
			spec := tinySpec + "mirror: '" + c.mirror + "'\n"
			_, err := Build(t.Context(), mustConfig(t, testDir(t, spec, map[string]string{"tiny": tinyRole}), cache))
			wantError(t, err, "read the archive's lists: ", c.say)
			if left := files(t, filepath.Join(cache, "packages")); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestMissingTools(t *testing.T) {
	if os.Geteuid() != 0 {
		wantError(t, builder.CheckTools(program.Path, toolsOf("debian12")), "needs root", "sudo")
		t.Skip("not root: missing tools are NOT tested")
	}
	bin := t.TempDir()
	for _, tool := range append(toolsOf("debian12"), toolsOf("centos7")...) {
		if filepath.IsAbs(tool.Name) {
			continue
		}
		if tool.Name != "mmdebstrap" && tool.Name != "extlinux" && tool.Name != "e2fsck" {
			if err := os.WriteFile(filepath.Join(bin, tool.Name), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantError(t, builder.CheckTools("/nonexistent:"+bin, toolsOf("debian12")), "baking needs mmdebstrap, extlinux, e2fsck", "apt-get install mmdebstrap extlinux e2fsprogs")
	wantError(t, builder.CheckTools("/nonexistent", toolsOf("centos7")), "xfs_growfs, xfs_repair, qemu-img, e2fsck, ", "xfsprogs qemu-utils mount")
}

// TestLeftovers: folders and loop devices of killed bakes are removed, those of running bakes are not.
func TestLeftovers(t *testing.T) {
	c := Config{CacheDir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(c.CacheDir, "work"), 0o755); err != nil {
		t.Fatal(err)
	}
	var dirs []string
	var releases []func()
	for range 2 {
		dir, release, err := c.cache().workDir(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		dirs, releases = append(dirs, filepath.Base(dir)), append(releases, release)
	}
	dead := filepath.Join(c.CacheDir, "work", "bake-dead")
	if err := os.Mkdir(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dead, diskName)
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/sbin/losetup", "--find", file).CombinedOutput(); err != nil {
		t.Logf("loop devices are NOT tested: %v: %s", err, out)
	}
	if err := c.cache().removeLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(dirs)
	if got := files(t, filepath.Join(c.CacheDir, "work")); !slices.Equal(got, dirs) {
		t.Errorf("%q are left, %q should be", got, dirs)
	}
	nothingRuns(t, c.CacheDir)
	for _, release := range releases {
		release()
	}
	if got := files(t, filepath.Join(c.CacheDir, "work")); len(got) != 0 {
		t.Errorf("%q are left", got)
	}
}

// TestLocks: waiting for a lock is reported, and can be interrupted.
func TestLocks(t *testing.T) {
	var said []string
	c := Config{CacheDir: t.TempDir(), UI: told(func(image, what string) { said = append(said, image+": "+what) })}
	dir := filepath.Join(c.CacheDir, "x")
	first, err := c.cache().lockResult(t.Context(), "web", dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c.UI = told(func(image, what string) {
		said = append(said, image+": "+what)
		cancel()
	})
	if _, err := c.cache().lockResult(ctx, "web", dir); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if want := []string{"web: wait for another imagegen, which is baking it"}; !slices.Equal(said, want) {
		t.Errorf("%q", said)
	}
	first.Close()
	second, err := c.cache().lockResult(t.Context(), "web", dir)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

// TestReproducible bakes an image twice: once with the cache of imagegen on this machine, which may have the base from another day, and once
// from only a lock and its packages. They differ in folders, time zones, languages, umasks and numbers of jobs. All formats must be equal, bit
// for bit.
func TestReproducible(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") == "" {
		t.Skip("IMAGEGEN_E2E is not set: that bakes are repeatable is NOT tested")
	}
	needBake(t)
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	caches, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	first, second := testDir(t, tinySpec, map[string]string{"tiny": tinyRole}), testDir(t, tinySpec, map[string]string{"tiny": tinyRole})
	used, fresh := mustConfig(t, first, filepath.Join(caches, "imagegen")), mustConfig(t, second, filepath.Join(t.TempDir(), "a", "cache"))
	if err := Fetch(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Copy(t.Context(), used.LockPath(), fresh.LockPath()); err != nil {
		t.Fatal(err)
	}
	lock, err := packages.ReadLock(used.LockPath(), used.Spec.Distro)
	if err != nil {
		t.Fatal(err)
	}
	from, to := used.cache().store(), fresh.cache().store()
	if err := os.MkdirAll(string(to), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range append(lock.Base.Packages, lock.Roles["tiny"].Packages...) {
		if err := sparse.Copy(t.Context(), from.Path(p.SHA256), to.Path(p.SHA256)); err != nil {
			t.Fatal(err)
		}
	}
	build := func(c Config, umask string, env ...string) *run {
		t.Helper()
		cmd := exec.Command("unshare", "--net", "sh", "-c", "umask "+umask+"; exec "+self)
		cmd.Env = append(append(os.Environ(), "IMAGES_TEST_BUILD="+filepath.Dir(c.LockPath()), "IMAGES_TEST_CACHE="+c.CacheDir, "IMAGES_TEST_OFFLINE=1"), env...)
		cmd.Stderr = os.Stderr
		return start(t, cmd)
	}
	two := build(fresh, "077", "TZ=Pacific/Kiritimati", "LANG=de_DE.UTF-8", "LC_ALL=de_DE.UTF-8", "IMAGES_TEST_JOBS=7", "TMPDIR="+t.TempDir(), "HOME=/nonexistent")
	// Most of a build takes one processor, so the other runs beside it. It begins later, so that the times differ.
	two.until(t, "base: configure the base")
	one := build(used, "022", "TZ=UTC", "LANG=C", "GOMAXPROCS=1", "IMAGES_TEST_JOBS=1")
	one.end(t)
	two.end(t)
	if t.Failed() {
		return
	}
	sums := func(dir string) map[string]string {
		data, err := os.ReadFile(filepath.Join(dir, "dist/images/tiny.json"))
		if err != nil {
			t.Fatal(err)
		}
		var m Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		all := map[string]string{"raw": m.Disk.Data}
		for _, o := range m.Outputs {
			all[o.Format] = o.SHA256
		}
		return all
	}
	a, b := sums(first), sums(second)
	for _, kind := range format.Names {
		if a[kind] == "" || a[kind] != b[kind] {
			t.Errorf("%s: %q and %q", kind, a[kind], b[kind])
		}
	}
}

package images

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/images/disk"
	"imagegen/images/format"
	"imagegen/images/packages"
	"imagegen/internal/sparse"
	"imagegen/internal/testkit"
)

// TestWorkIsInterrupted: operations that take long for much data end with their context at any time, not only at the
// start.
func TestWorkIsInterrupted(t *testing.T) {
	dir := t.TempDir()
	const size = 50 << 20
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	full := filepath.Join(dir, "full")
	testkit.Write(t, full, string(data))
	sum, err := sparse.SHA256(t.Context(), full)
	if err != nil {
		t.Fatal(err)
	}
	holes := filepath.Join(dir, "holes") // seconds of hashing
	testkit.Write(t, holes, "x")
	if err := os.Truncate(holes, 1<<30); err != nil {
		t.Fatal(err)
	}
	packed := filepath.Join(dir, "packed") // small, but expands to much
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	boot := make([]byte, 128<<20)
	boot[510], boot[511] = 0x55, 0xaa
	z.Write(boot)
	z.Close()
	testkit.Write(t, packed, b.String())
	for _, name := range []string{"store", "tree/bake", "tree/upper"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(full, filepath.Join(dir, "tree/bake/file")); err != nil {
		t.Fatal(err)
	}
	s := packages.Store(filepath.Join(dir, "store"))
	testkit.Write(t, s.Path(sum), string(data))
	out := filepath.Join(dir, "out")
	machine := format.Machine{Name: "tiny", Distro: "debian12", CPUs: 1, Memory: 1 << 30, ID: "x"}
	convert := func(kind string) func(context.Context) error {
		return func(ctx context.Context) error { return format.Write(ctx, out, full, kind, machine) }
	}
	for _, c := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"hash a file", func(ctx context.Context) error { _, err := sparse.SHA256(ctx, full); return err }},
		{"hash holes", func(ctx context.Context) error { _, err := sparse.SHA256(ctx, holes); return err }},
		{"hash a disk's data", func(ctx context.Context) error { _, err := sparse.Digest(ctx, full); return err }},
		{"copy a disk", func(ctx context.Context) error { return sparse.Copy(ctx, full, out) }},
		{"take a package", func(ctx context.Context) error { return s.Take(ctx, sum, out, "it") }},
		{"copy a package file", func(ctx context.Context) error { return sparse.CopyAs(ctx, full, out, sum) }},
		{"bring to the disk", func(ctx context.Context) error {
			f, err := os.Open(full)
			if err != nil {
				return err
			}
			defer f.Close()
			return sparse.Flush(ctx, f)
		}},
		{"unpack a base", func(ctx context.Context) error { return format.Unpack(ctx, packed, out) }},
		{"write a VMDK", convert("vmdk")},
		{"write an OVA", convert("ova")},
		{"write a box", convert("box")},
		{"write the disk", func(ctx context.Context) error {
			testkit.Program(t, "mkfs.ext4", "e2fsprogs")
			tree := disk.Tree{Lower: filepath.Join(dir, "tree"), Upper: filepath.Join(dir, "tree/upper")}
			return disk.Write(ctx, out, tree, disk.Image{Bytes: 300 << 20, UUID: "6ba7b810-9dad-81d1-80b4-00c04fd430c8"})
		}},
	} {
		t.Run(c.name, func(t *testing.T) { testkit.Interrupt(t, out, c.do) })
	}
}

// stopLimit is the maximum processor time that a program uses from SIGTERM to its end: on a machine that is not busy, that takes no longer
// than the 2 s that the docs promise.
const stopLimit = 2 * time.Second

// waitLimit is the maximum time that it takes on the clock: stopLimit, plus an allowance for a busy machine.
const waitLimit = 10 * time.Second

// usedBy returns the processor time that a process and the children it has waited for have used.
func usedBy(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var sum time.Duration
	for _, ticks := range strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[11:15] {
		n, err := strconv.Atoi(ticks)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(n) * (time.Second / 100)
	}
	return sum
}

// theProgram builds imagegen.
func theProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "imagegen")
	if out, err := exec.Command("go", "build", "-o", path, "imagegen/cmd/imagegen").CombinedOutput(); err != nil {
		t.Skipf("needs Go's compiler: that imagegen stops at once is NOT tested: %v: %s", err, out)
	}
	return path
}

// stopAt runs a program, sends it SIGTERM when it prints a line (or, if that is empty, after it has used some CPU
// time), and checks that it ends at once.
func stopAt(t *testing.T, line string, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := make(chan string, 1000)
	go func() {
		for s := bufio.NewScanner(said); s.Scan(); {
			lines <- s.Text()
		}
		close(lines)
	}()
	var all []string
	if line == "" {
		testkit.Until(t, untilLimit, program+" is at work", func() bool {
			return usedBy(t, cmd.Process.Pid) >= 100*time.Millisecond
		})
	} else {
		for l := range lines {
			all = append(all, l)
			if l == line {
				break
			}
		}
		if !slices.Contains(all, line) {
			t.Fatalf("it has not printed %q:\n%s", line, strings.Join(all, "\n"))
		}
	}
	began, before := time.Now(), usedBy(t, cmd.Process.Pid)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for l := range lines {
		all = append(all, l)
	}
	err = cmd.Wait()
	took, used := time.Since(began), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()-before
	t.Logf("%s: ended after %s, with %s of processor time", line, took.Round(time.Millisecond), used.Round(time.Millisecond))
	if took > waitLimit || used > stopLimit {
		t.Errorf("it took %s to end, with %s of processor time", took, used)
	}
	if cmd.ProcessState.ExitCode() != 1 || all[len(all)-1] != "imagegen: interrupted" {
		t.Errorf("%v:\n%s", err, strings.Join(all, "\n"))
	}
}

// TestTermStopsHash: manifests of older versions have the SHA-256 of the whole disk, which takes long to compute.
func TestTermStopsHash(t *testing.T) {
	imagegen := theProgram(t)
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, "web.json"), `{"schema": 1, "role": "web", "disk": {"format": "raw", "bytes": 1, "sha256": "00"}}`)
	testkit.Write(t, filepath.Join(dir, "web.raw"), "x")
	if err := os.Truncate(filepath.Join(dir, "web.raw"), 2<<40); err != nil {
		t.Fatal(err)
	}
	stopAt(t, "", imagegen, "inspect", filepath.Join(dir, "web.raw"))
}

// bakedDir returns a project whose image is in the cache: a disk of this size, with random data.
func bakedDir(t *testing.T, size, data int64) (dir, cache string) {
	t.Helper()
	cache, dir = t.TempDir(), testDir(t, tinySpec, map[string]string{"tiny": tinyRole})
	c := mustConfig(t, dir, cache)
	pinned := &packages.Pins{Requested: []string{"cron"}, Packages: []packages.Pin{{Name: "cron", Version: "1.0", Architecture: "amd64", SHA256: strings.Repeat("0a", 32)}}}
	base := &packages.Pins{Requested: basePackages("debian12"), Packages: []packages.Pin{{Name: "udev", Version: "1.0", Architecture: "amd64", SHA256: strings.Repeat("0b", 32)}}}
	if err := (&packages.Lock{Schema: 1, Distro: "debian12", Base: base, Roles: map[string]*packages.Pins{"tiny": pinned}}).Write(c.LockPath()); err != nil {
		t.Fatal(err)
	}
	plans, err := c.plan(t.Context(), []string{"tiny"})
	if err != nil {
		t.Fatal(err)
	}
	image := c.cache().imageDir(plans[0].identity)
	manifest, err := Manifest{Schema: 1, Role: "tiny", Identity: plans[0].identity, Inputs: plans[0].inputs}.encode()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(image, manifestName), string(manifest))
	f, err := os.Create(filepath.Join(image, diskName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{}), data); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return dir, cache
}

// TestTermStopsFormats interrupts the program while it writes each format.
func TestTermStopsFormats(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: that writing formats can be interrupted is NOT tested")
	}
	imagegen := theProgram(t)
	dir, cache := bakedDir(t, 4<<30, 256<<20) // each format takes seconds
	for _, kind := range format.Names[1:] {
		t.Run(kind, func(t *testing.T) {
			if kind == "qcow2" {
				testkit.Program(t, "qemu-img", "qemu-utils")
			}
			stopAt(t, "tiny: write as "+kind, imagegen, "build", "-f", filepath.Join(dir, "cluster.yaml"), "--cache", cache,
				"--agent", filepath.Join(dir, "agent"), "-o", filepath.Join(dir, "dist"), "--format", kind)
			left, _ := filepath.Glob(filepath.Join(cache, "formats/*/*"))
			more, _ := filepath.Glob(filepath.Join(dir, "dist/*/tiny."+kind+"*"))
			if left = append(left, more...); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// stopsAtEveryStep interrupts the program at each step of a bake.
func stopsAtEveryStep(t *testing.T, dir, cache string) {
	imagegen := theProgram(t)
	role := filepath.Join(dir, "roles/tiny/role.yaml")
	testkit.Write(t, role, strings.Replace(tinyRole, "cron.daily/*", "cron.monthly/*", 1))
	defer testkit.Write(t, role, tinyRole)
	before := files(t, filepath.Join(cache, "images"))
	for _, step := range []string{"tiny: prepare", "tiny: make users", "tiny: install packages", "tiny: seal",
		"tiny: write the disk", "tiny: check", "tiny: write the manifest"} {
		stopAt(t, step, imagegen, "build", "-f", filepath.Join(dir, "cluster.yaml"), "--cache", cache, "--agent", filepath.Join(dir, "agent"), "--builder", "chroot")
		nothingRuns(t, cache)
		if left := files(t, filepath.Join(cache, "work")); len(left) > 0 {
			t.Errorf("%s: left: %q", step, left)
		}
		if now := files(t, filepath.Join(cache, "images")); !slices.Equal(now, before) {
			t.Errorf("%s: images are %q, and were %q", step, now, before)
		}
	}
}

// TestLargeSparseDisk: time and space depend on a disk's data, not on its size.
func TestLargeSparseDisk(t *testing.T) {
	testkit.Program(t, "mkfs.ext4", "e2fsprogs")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	testkit.Write(t, filepath.Join(tree, "etc/data"), strings.Repeat("data\n", 1<<20))
	const size = 200 << 30
	began := testkit.ProcessorTime(t)
	lap := func(what string) {
		now := testkit.ProcessorTime(t)
		t.Logf("%s: %s of processor time", what, (now - began).Round(time.Millisecond))
		if now-began > 20*time.Second { // minutes if it depended on the size
			t.Errorf("%s took %s of processor time", what, now-began)
		}
		began = now
	}
	file := filepath.Join(dir, "disk")
	err := disk.Write(t.Context(), file, disk.Tree{Lower: tree, Upper: filepath.Join(dir, "nothing")}, disk.Image{Bytes: size, UUID: "6ba7b810-9dad-81d1-80b4-00c04fd430c8"})
	if err != nil {
		t.Fatal(err)
	}
	lap("write the disk")
	testkit.Run(t, "e2fsck", "-f", "-n", file+"?offset=1048576")
	lap("check")
	if got := testkit.Blocks(t, file) * 512 >> 20; got > 64+32 { // the journal and other metadata
		t.Errorf("it takes %d MiB", got)
	}
	sum, err := sparse.Digest(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	lap("hash")
	if err := sparse.Copy(t.Context(), file, file+".copy"); err != nil {
		t.Fatal(err)
	}
	lap("copy")
	if got, err := sparse.Digest(t.Context(), file+".copy"); err != nil || got != sum {
		t.Errorf("the copy has the digest %s (%v), not %s", got, err, sum)
	}
	lap("hash the copy")
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(sparse.Flush(t.Context(), f), place(t.Context(), file, filepath.Join(dir, "placed"))); err != nil {
		t.Fatal(err)
	}
	lap("place")
	m := format.Machine{Name: "tiny", Distro: "debian12", CPUs: 1, Memory: 1 << 30, ID: "x"}
	testkit.Program(t, "qemu-img", "qemu-utils")
	for _, kind := range format.Names[1:] {
		if err := format.Write(t.Context(), filepath.Join(dir, "out."+kind), file, kind, m); err != nil {
			t.Fatal(err)
		}
		lap(kind)
	}
}

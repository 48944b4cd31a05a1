package agent

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

var testOwner = marker{CreatedBy: markerSchema, ClusterID: "id1", Cluster: "otus", Role: "redis", Node: "redis1"}

func TestDiskDecisions(t *testing.T) {
	blank := blockDisk{Device: "/dev/vdb", Size: 10 << 30, Serial: "a", Blank: true}
	other := blockDisk{Device: "/dev/vdc", Size: 10 << 30, Serial: "b", Blank: true}
	ours := blockDisk{Device: "/dev/vdb", Size: 10 << 30, Serial: "a", Labelled: true, Holds: "ext4 imagegen-data"}
	foreign := blockDisk{Device: "/dev/vdd", Size: 10 << 30, Serial: "d", Holds: "xfs backup"}
	half := blockDisk{Device: "/dev/vdb", Size: 10 << 30, Serial: "a", Holds: "something unknown"}
	stamped := half
	stamped.Stamp = "u1"
	made := ours
	made.UUID = "u1"
	intend := func(d blockDisk) *formatIntent { return &formatIntent{Disk: d, UUID: "u1"} }
	given := func(d blockDisk) blockDisk { d.Given = true; return d }
	with := func(change func(m *marker)) *marker { m := testOwner; change(&m); return &m }
	same := func(*marker) {}
	for name, c := range map[string]struct {
		seen    diskSeen
		settled bool
		do      diskDo
		device  string
		state   facts.State
		detail  string
	}{
		"nothing attached":         {seen: diskSeen{}, state: facts.Waiting, detail: "none is attached"},
		"only what is in use":      {seen: diskSeen{Others: []string{"/dev/vda: in use"}}, state: facts.Waiting, detail: "there is /dev/vda: in use"},
		"one blank":                {seen: diskSeen{Disks: []blockDisk{blank}}, do: diskIntend, device: "/dev/vdb", state: facts.Working},
		"blank beside a foreign":   {seen: diskSeen{Disks: []blockDisk{foreign, blank}}, do: diskIntend, device: "/dev/vdb", state: facts.Working},
		"two blank":                {seen: diskSeen{Disks: []blockDisk{blank, other}}, state: facts.Stopped, detail: "/dev/vdb (10 GiB), /dev/vdc (10 GiB)"},
		"two blank, one intended":  {seen: diskSeen{Disks: []blockDisk{blank, other}, Intent: intend(other)}, do: diskFormat, device: "/dev/vdc", state: facts.Working},
		"foreign alone":            {seen: diskSeen{Disks: []blockDisk{foreign}}, state: facts.Waiting, detail: "/dev/vdd: holds xfs backup"},
		"given, but foreign":       {seen: diskSeen{Disks: []blockDisk{given(foreign)}}, state: facts.Stopped, detail: "holds xfs backup"},
		"two blank, one stamped":   {seen: diskSeen{Disks: []blockDisk{blank, renamed(blank, "u1")}, Intent: &formatIntent{Disk: blockDisk{Device: "/dev/vdb", Size: 1}, UUID: "u1"}}, do: diskFormat, device: "/dev/vde", state: facts.Working},
		"half formatted, intended": {seen: diskSeen{Disks: []blockDisk{stamped}, Intent: intend(blank)}, do: diskFormat, device: "/dev/vdb", state: facts.Working},
		"half formatted, unknown":  {seen: diskSeen{Disks: []blockDisk{stamped}}, state: facts.Waiting, detail: "something unknown"},
		"another intent's remains": {seen: diskSeen{Disks: []blockDisk{stamped}, Intent: &formatIntent{Disk: blank, UUID: "u2"}}, state: facts.Waiting, detail: "something unknown"},
		"not our remains":          {seen: diskSeen{Disks: []blockDisk{half}, Intent: intend(blank)}, state: facts.Waiting, detail: "something unknown"},
		"intent without a UUID":    {seen: diskSeen{Disks: []blockDisk{half}, Intent: &formatIntent{Disk: blank}}, state: facts.Waiting, detail: "something unknown"},
		"formatted, intended":      {seen: diskSeen{Disks: []blockDisk{made}, Intent: intend(blank)}, do: diskFormat, device: "/dev/vdb", state: facts.Working},
		"formatted by another":     {seen: diskSeen{Disks: []blockDisk{ours}, Intent: intend(blank)}, do: diskMount, device: "/dev/vdb", state: facts.Working},
		"foreign, same name":       {seen: diskSeen{Disks: []blockDisk{given(foreign)}, Intent: intend(foreign)}, state: facts.Stopped, detail: "holds xfs backup"},
		"half made and whole":      {seen: diskSeen{Disks: []blockDisk{renamed(ours, ""), made}, Intent: intend(blank)}, do: diskFormat, device: "/dev/vdb", state: facts.Working},
		"ours":                     {seen: diskSeen{Disks: []blockDisk{other, ours}}, do: diskMount, device: "/dev/vdb", state: facts.Working},
		"ours twice":               {seen: diskSeen{Disks: []blockDisk{ours, renamed(ours, "")}}, state: facts.Stopped, detail: "2 disks carry the label of a data disk"},
		"mounted, new":             {seen: diskSeen{Mounted: "/dev/vdb", Empty: true}, do: diskMark, device: "/dev/vdb", state: facts.Working},
		"mounted, marked":          {seen: diskSeen{Mounted: "/dev/vdb", Marker: with(same)}, do: diskSettle, device: "/dev/vdb", state: facts.Working},
		"mounted, settled":         {seen: diskSeen{Mounted: "/dev/vdb", Marker: with(same)}, settled: true, state: facts.Ready},
		"nearly full":              {seen: diskSeen{Mounted: "/dev/vdb", Marker: with(same), Used: 93}, settled: true, state: facts.Ready, detail: "93 % full"},
		"full":                     {seen: diskSeen{Mounted: "/dev/vdb", Marker: with(same), Used: 100}, settled: true, state: facts.Ready, detail: "is full"},
		"read-only":                {seen: diskSeen{Mounted: "/dev/vdb", Marker: with(same), ReadOnly: true}, settled: true, state: facts.Failed, detail: "read-only"},
		"files, no marker":         {seen: diskSeen{Mounted: "/dev/vdb"}, do: diskRelease, device: "/dev/vdb", state: facts.Stopped, detail: "not this node's marker"},
		"another cluster's":        {seen: diskSeen{Mounted: "/dev/vdb", Marker: with(func(m *marker) { m.ClusterID, m.Cluster = "id2", "prod" })}, do: diskRelease, device: "/dev/vdb", state: facts.Stopped, detail: "another cluster (prod, id id2)"},
		"another node's":           {seen: diskSeen{Mounted: "/dev/vdb", Marker: with(func(m *marker) { m.Node = "redis2" })}, do: diskRelease, device: "/dev/vdb", state: facts.Stopped, detail: "node redis2 (redis)"},
		"another role's":           {seen: diskSeen{Mounted: "/dev/vdb", Marker: with(func(m *marker) { m.Role = "percona" })}, do: diskRelease, device: "/dev/vdb", state: facts.Stopped, detail: "(percona)"},
	} {
		step, status := decideDisk(testOwner, c.seen, c.settled)
		if step.do != c.do || step.disk.Device != c.device || status.State != c.state || !strings.Contains(status.Detail, c.detail) {
			t.Errorf("%s: %q %s, %s: %s", name, step.do, step.disk.Device, status.State, status.Detail)
		}
	}
}

func renamed(d blockDisk, stamp string) blockDisk {
	d.Device, d.Serial, d.Stamp = "/dev/vde", "e", stamp
	return d
}

func FuzzMarker(f *testing.F) {
	good, _ := json.Marshal(testOwner)
	f.Add(good)
	f.Add([]byte(`{"created_by":"imagegen-node"}`))
	f.Add(append(good, "{}"...))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeMarker(data)
		if err != nil {
			return
		}
		if m.ClusterID == "" || m.Node == "" || m.Role == "" {
			t.Errorf("accepted %+v", m)
		}
		again, _ := json.Marshal(m)
		if n, err := decodeMarker(again); err != nil || *n != *m {
			t.Errorf("%+v became %+v, %v", m, n, err)
		}
	})
}

func TestParseMounts(t *testing.T) {
	ms := parseMounts([]byte("22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n" +
		"90 22 7:3 / /data rw,noatime - ext4 /dev/vdb ro,errors=remount-ro\nbroken line\n" +
		"91 22 0:44 / /mnt/my\\040volume rw - fuse.glusterfs gl1:/gv0 rw\n"))
	if m := mountAt(ms, "/data"); m == nil || !m.readOnly || m.source != "/dev/vdb" || m.device != "7:3" {
		t.Errorf("%+v", m)
	}
	if m := mountAt(ms, "/mnt/my volume"); m == nil || m.kind != "fuse.glusterfs" {
		t.Errorf("%+v", m)
	}
	if m := mountAt(ms, "/dat"); m != nil {
		t.Errorf("%+v", m)
	}
}

// loopDisk attaches a sparse file as a loop device.
func loopDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for loop devices and mounts")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4", "e2fsck", "blkid", "resize2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: needs %s (apt-get install e2fsprogs util-linux)", tool)
		}
	}
	file := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.Command("truncate", "-s", size, file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: no loop device: %s", out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "-d", dev).Run() })
	return dev
}

// testDisk returns a disk component for a loop device, as after a boot: nothing is mounted.
func testDisk(t *testing.T, dev, dir string) *disk {
	t.Helper()
	mnt := filepath.Join(t.TempDir(), "data")
	n := Node{Facts: facts.Facts{ClusterID: "id1", Cluster: "otus", Node: facts.Peer{Name: "redis1", Role: "redis"}}, Dir: dir, Log: t.Logf, Working: func(string) {}}
	d := newDisk(n, "disk", &facts.DiskParams{Mount: mnt, Filesystem: "ext4", Dirs: []facts.Dir{
		{Path: filepath.Join(mnt, "redis"), Owner: "www-data:www-data", Mode: "2750", Bind: filepath.Join(t.TempDir(), "bound")},
	}}).(*disk)
	d.lab = dev
	t.Cleanup(func() { unmountDisk(t, d) })
	return d
}

// unmountDisk also waits until the disk is free: a program that another test has just started may have a copy of the mounts.
func unmountDisk(t *testing.T, d *disk) {
	t.Helper()
	mounts, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	m := mountAt(mounts, d.params.Mount)
	syscall.Unmount(d.params.Dirs[0].Bind, 0)
	syscall.Unmount(d.params.Mount, 0)
	if m == nil {
		return
	}
	testkit.Until(t, time.Minute, m.source+" is free", func() bool {
		used, err := inUse(m.source)
		return err != nil || !used // or is not there any more
	})
}

// boot calls Observe and Step three times; after that the state no longer changes.
func boot(t *testing.T, d *disk) facts.Status {
	t.Helper()
	var status facts.Status
	for range 3 {
		if _, err := d.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		var err error
		if status, err = d.Step(t.Context(), World{}); err != nil {
			status = facts.Status{State: facts.Failed, Detail: err.Error()}
		}
	}
	return status
}

func TestDiskForReal(t *testing.T) {
	dev := loopDisk(t, "256M")
	dir := t.TempDir()
	d := testDisk(t, dev, dir)
	if got := boot(t, d); got.State != facts.Ready {
		t.Fatalf("blank disk: %+v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, intentName)); !errors.Is(err, os.ErrNotExist) {
		t.Error("the intent to format outlives the formatting")
	}
	file := filepath.Join(d.params.Dirs[0].Bind, "dump.rdb")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	fi, _ := os.Stat(d.params.Dirs[0].Path)
	if st := fi.Sys().(*syscall.Stat_t); st.Uid != 33 || st.Gid != 33 || st.Mode&0o7777 != 0o2750 {
		t.Errorf("folder: %d:%d %o", st.Uid, st.Gid, st.Mode&0o7777)
	}
	unmountDisk(t, d)

	keeps := func(when string, d *disk) {
		t.Helper()
		if data, _ := os.ReadFile(filepath.Join(d.params.Mount, "redis/dump.rdb")); string(data) != "precious" {
			t.Errorf("%s: the data is gone", when)
		}
		unmountDisk(t, d)
	}
	again := testDisk(t, dev, dir)
	if got := boot(t, again); got.State != facts.Ready {
		t.Errorf("second boot: %+v", got)
	}
	keeps("second boot", again)

	replaced := testDisk(t, dev, t.TempDir()) // a new root disk, which remembers nothing
	if got := boot(t, replaced); got.State != facts.Ready {
		t.Errorf("replaced node: %+v", got)
	}
	keeps("replaced node", replaced)

	// An intent left over after formatting must not cause another formatting.
	stale := testDisk(t, dev, t.TempDir())
	_, err := stale.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	intent, _ := json.Marshal(formatIntent{Disk: stale.seen.Disks[0], UUID: stale.seen.Disks[0].UUID})
	os.WriteFile(filepath.Join(stale.node.Dir, intentName), intent, 0o600)
	if got := boot(t, stale); got.State != facts.Ready {
		t.Errorf("stale intent: %+v", got)
	}
	keeps("stale intent", stale)

	foreign := testDisk(t, dev, t.TempDir())
	foreign.owner.ClusterID = "id2"
	if got := boot(t, foreign); got.State != facts.Stopped || !strings.Contains(got.Detail, "another cluster") {
		t.Errorf("another cluster's disk: %+v", got)
	}
	if ms, _ := readMounts(); mountAt(ms, foreign.params.Mount) != nil {
		t.Error("another cluster's disk stays mounted")
	}
}

func TestDiskGrows(t *testing.T) {
	dev := loopDisk(t, "64M")
	d := testDisk(t, dev, t.TempDir())
	if got := boot(t, d); got.State != facts.Ready {
		t.Fatalf("%+v", got)
	}
	unmountDisk(t, d)
	file := strings.TrimSpace(sh(t, `losetup -n -O BACK-FILE $1`, dev))
	sh(t, `truncate -s 256M $1; losetup -c $2`, file, dev)
	d.settled = false
	if got := boot(t, d); got.State != facts.Ready {
		t.Fatalf("%+v", got)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.params.Mount, &st); err != nil || int64(st.Blocks)*st.Bsize < 200<<20 {
		t.Errorf("%d bytes, %v", int64(st.Blocks)*st.Bsize, err)
	}
}

// A node that loses power while formatting starts over. A node that finds a half-formatted disk of another does not
// touch it.
func TestDiskHalfFormatted(t *testing.T) {
	dev := loopDisk(t, "256M")
	first := testDisk(t, dev, t.TempDir())
	first.Observe(t.Context())
	step, status := decideDisk(first.owner, first.seen, false)
	if step.do != diskIntend {
		t.Fatalf("%+v", step)
	}
	if _, err := first.take(t.Context(), step, status); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := writeStamp(dev, first.seen.Intent.UUID); err != nil {
		t.Fatal(err)
	}
	sh(t, `printf 'remains of mkfs' | dd of=$1 bs=1 seek=4096 conv=notrunc status=none`, dev)
	stranger := testDisk(t, dev, t.TempDir())
	if got := boot(t, stranger); got.State != facts.Stopped || !strings.Contains(got.Detail, "something unknown") {
		t.Errorf("without the intent: %+v", got)
	}
	if got := boot(t, first); got.State != facts.Ready {
		t.Errorf("with the intent: %+v", got)
	}
}

func TestDiskForeignFilesystemIsNotTouched(t *testing.T) {
	dev := loopDisk(t, "64M")
	sh(t, `mkfs.ext4 -q -L imagegen-data $1; m=$(mktemp -d); mount $1 $m; echo mine >$m/file; umount $m; rmdir $m`, dev)
	d := testDisk(t, dev, t.TempDir())
	if got := boot(t, d); got.State != facts.Stopped || !strings.Contains(got.Detail, "not this node's marker") {
		t.Errorf("files without a marker: %+v", got)
	}
	sh(t, `m=$(mktemp -d); mount $1 $m; grep -q mine $m/file; umount $m; rmdir $m`, dev)
}

// TestDiskLabels: the folders get SELinux labels if, and only if, SELinux is on.
func TestDiskLabels(t *testing.T) {
	dir := t.TempDir()
	noted := filepath.Join(dir, "noted")
	if err := os.WriteFile(filepath.Join(dir, "restorecon"), []byte("#!/bin/sh\necho \"$@\" >>"+noted+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	d := newDisk(Node{}, "disk", &facts.DiskParams{Mount: "/data", Dirs: []facts.Dir{{Path: "/data/brick"}, {Path: "/data/mysql", Bind: "/var/lib/mysql"}}}).(*disk)
	d.sys = filepath.Join(dir, "sys")
	for _, on := range []bool{false, true} {
		want := ""
		if on {
			want = "-F /data /data/brick /var/lib/mysql\n"
			if err := os.MkdirAll(filepath.Join(d.sys, "fs/selinux"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(d.sys, "fs/selinux/enforce"), []byte("1"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.label(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(noted); string(got) != want {
			t.Errorf("SELinux %v: restorecon was called as %q, want %q", on, got, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "restorecon"), []byte("#!/bin/sh\necho no policy >&2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.label(t.Context()); err == nil || !strings.Contains(err.Error(), "no policy") {
		t.Errorf("a label that fails: %v", err)
	}
}

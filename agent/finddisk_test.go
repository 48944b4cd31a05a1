package agent

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"imagegen/cluster/facts"
)

// hardware simulates a machine's disks: /sys and /dev are folders of the test, and the disks are loop devices.
type hardware struct{ sys, dev string }

func newHardware(t *testing.T) hardware {
	t.Helper()
	m := hardware{filepath.Join(t.TempDir(), "sys"), filepath.Join(t.TempDir(), "dev")}
	for _, dir := range []string{filepath.Join(m.sys, "block"), m.dev} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// attach adds a block device under a name. attrs are files in its folder below /sys/block, by path.
func (m hardware) attach(t *testing.T, name, dev string, attrs map[string]string) {
	t.Helper()
	real := filepath.Join("/sys/block", filepath.Base(dev))
	all := map[string]string{"removable": "0"}
	for _, a := range []string{"size", "ro"} {
		data, err := os.ReadFile(filepath.Join(real, a))
		if err != nil {
			t.Fatal(err)
		}
		all[a] = string(data)
	}
	for k, v := range attrs {
		all[k] = v
	}
	for k, v := range all {
		path := filepath.Join(m.sys, "block", name, k)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.TrimSpace(v)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dev, filepath.Join(m.dev, name)); err != nil {
		t.Fatal(err)
	}
}

// detach removes all disks.
func (m hardware) detach(t *testing.T) {
	t.Helper()
	for _, dir := range []string{filepath.Join(m.sys, "block"), m.dev} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// disk returns the machine's disk component. dir is its folder on the root disk.
func (m hardware) disk(t *testing.T, dir string) *disk {
	t.Helper()
	d := testDisk(t, "/nonexistent", dir)
	d.sys, d.dev = m.sys, m.dev
	return d
}

// found returns the result of findDisks: the candidates by name, with their content, and the others.
func (m hardware) found(t *testing.T) (candidates map[string]blockDisk, others string) {
	t.Helper()
	disks, out, err := m.disk(t, t.TempDir()).findDisks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	candidates = map[string]blockDisk{}
	for _, d := range disks {
		candidates[filepath.Base(d.Device)] = d
	}
	return candidates, strings.ReplaceAll(strings.Join(out, "; "), m.dev+"/", "")
}

// A disk that is in use, read-only, removable or partitioned is not a candidate until it is none of these.
func TestFindDisksPassesOver(t *testing.T) {
	script := func(use, free string) func(*testing.T, string, string) func() {
		return func(t *testing.T, dev, dir string) func() {
			sh(t, use, dev, dir)
			return func() { sh(t, free, dev, dir) }
		}
	}
	for name, c := range map[string]struct {
		use   func(t *testing.T, dev, dir string) (free func())
		attrs map[string]string
		why   string // empty: not even named
	}{
		"mounted":           {use: script(`mkfs.ext4 -q $1; mount $1 $2`, `umount $2; wipefs -qa $1`), why: "vdb: in use"},
		"mounted elsewhere": {use: mountElsewhere, why: "vdb: in use"},
		"swap":              {use: script(`mkswap $1; chmod 600 $1; swapon $1`, `swapoff $1`), why: "vdb: in use"},
		"read-only":         {use: script(`blockdev --setro $1`, `blockdev --setrw $1`), why: "vdb: read-only"},
		"partitions":        {attrs: map[string]string{"vdb1/partition": "1"}, why: "vdb: has partitions"},
		"removable":         {attrs: map[string]string{"removable": "1"}},
		"no medium":         {attrs: map[string]string{"size": "0"}},
	} {
		t.Run(name, func(t *testing.T) {
			dev, m, dir := loopDisk(t, "64M"), newHardware(t), t.TempDir()
			free := func() {}
			if c.use != nil {
				free = sync.OnceFunc(c.use(t, dev, dir))
			}
			t.Cleanup(free)
			m.attach(t, "vdb", dev, c.attrs)
			if got, others := m.found(t); len(got) != 0 || others != c.why {
				t.Errorf("candidates %+v, others %q, want none and %q", got, others, c.why)
			}
			if status := boot(t, m.disk(t, t.TempDir())); status.State != facts.Waiting {
				t.Errorf("the node does not wait: %+v", status)
			}
			free()
			m.detach(t)
			m.attach(t, "vdb", dev, nil)
			if got, others := m.found(t); len(got) != 1 {
				t.Errorf("free, but not a candidate: others %q", others)
			}
		})
	}
}

// mountElsewhere mounts a disk in a mount namespace of its own, where /proc/self/mountinfo does not show it.
func mountElsewhere(t *testing.T, dev, dir string) func() {
	sh(t, `mkfs.ext4 -q $1`, dev)
	release := holdElsewhere(t, dev, dir)
	return func() {
		release()
		sh(t, `wipefs -qa $1`, dev)
	}
}

// holdElsewhere is mountElsewhere of a disk with a file system.
func holdElsewhere(t *testing.T, dev, dir string) (release func()) {
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("SKIPPED: needs unshare (apt-get install util-linux)")
	}
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", `mount "$1" "$2" && echo mounted && read line; umount "$2"`, "sh", dev, dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	return func() {
		in.Close()
		cmd.Wait()
	}
}

// A disk with any content is not blank, and is not changed.
func TestFindDisksBlank(t *testing.T) {
	for name, c := range map[string]struct {
		make  string
		raid  string // version of the superblock
		needs []string
		holds string
		blank bool
	}{
		"zeros":              {blank: true},
		"ext4":               {make: `mkfs.ext4 -q -L backup $1`, holds: "ext4 backup"},
		"xfs":                {make: `mkfs.xfs -q -f -L backup $1`, needs: []string{"mkfs.xfs"}, holds: "xfs backup"},
		"swap, not in use":   {make: `mkswap $1`, holds: "swap"},
		"LVM":                {make: `pvcreate -qq $1`, needs: []string{"pvcreate"}, holds: "LVM2_member"},
		"RAID 1.2":           {raid: "1.2", holds: "linux_raid_member test:0"},
		"RAID 1.0":           {raid: "1.0", holds: "linux_raid_member test:0"},
		"RAID 0.90":          {raid: "0.90", holds: "linux_raid_member"},
		"a table, GPT":       {make: `echo label:gpt | sfdisk -q $1`, needs: []string{"sfdisk"}, holds: "a partition table (gpt)"},
		"a table, MBR":       {make: `echo ,,83 | sfdisk -q --no-reread --no-tell-kernel $1`, needs: []string{"sfdisk"}, holds: "a partition table (dos)"},
		"two kinds at once":  {make: `mkfs.ext4 -q $1; printf -- '-rom1fs-\0\0\0\020' | dd of=$1 conv=notrunc status=none`, holds: "several kinds of data at once"},
		"unknown, at 512 Ki": {make: `printf precious | dd of=$1 bs=1 seek=524288 conv=notrunc status=none`, holds: "something unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, program := range c.needs {
				if _, err := exec.LookPath(program); err != nil {
					t.Skipf("SKIPPED: needs %s", program)
				}
			}
			size := "64M"
			if name == "xfs" {
				size = "320M" // is the least
			}
			dev, m := loopDisk(t, size), newHardware(t)
			if c.make != "" {
				sh(t, c.make, dev)
			}
			if c.raid != "" {
				writeRAID(t, dev, c.raid)
			}
			m.attach(t, "vdb", dev, nil)
			before := checksum(t, dev)
			got, others := m.found(t)
			if d, ok := got["vdb"]; !ok || d.Blank != c.blank || d.Holds != c.holds {
				t.Errorf("%+v, others %q, want blank %v, holds %q", got, others, c.blank, c.holds)
			}
			d := m.disk(t, t.TempDir())
			status := boot(t, d)
			if c.blank != (status.State == facts.Ready) {
				t.Errorf("%+v", status)
			}
			if !c.blank && (status.State != facts.Waiting || !strings.Contains(status.Detail, c.holds) || checksum(t, dev) != before) {
				t.Errorf("%+v, touched: %v", status, checksum(t, dev) != before)
			}
		})
	}
}

// checksum returns a hash of a loop device's data, without holes.
func checksum(t *testing.T, dev string) string {
	t.Helper()
	f, err := os.Open(strings.TrimSpace(sh(t, `blockdev --flushbufs $1; losetup -n -O BACK-FILE $1`, dev)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const seekData, seekHole = 3, 4
	h := sha256.New()
	for at := int64(0); ; {
		from, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return fmt.Sprintf("%x", h.Sum(nil))
		}
		if err != nil {
			t.Fatal(err)
		}
		if at, err = f.Seek(from, seekHole); err != nil {
			t.Fatal(err)
		}
		for block := make([]byte, 4096); from < at; from += int64(len(block)) {
			n, err := f.ReadAt(block, from)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if len(bytes.Trim(block[:n], "\x00")) > 0 { // a block of zeros is as good as a hole
				fmt.Fprintln(h, from)
				h.Write(block[:n])
			}
		}
	}
}

// writeRAID writes the superblock of a RAID-1 member, as mdadm --create does (which needs the kernel's md driver):
// struct mdp_superblock_s of linux/raid/md_p.h, or struct mdp_superblock_1.
func writeRAID(t *testing.T, dev, version string) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	var offset int64
	switch version {
	case "1.2":
		offset = 4096
	case "1.0":
		offset = (size/512 - 16) &^ 7 * 512
	case "0.90":
		offset = size&^(64<<10-1) - 64<<10
	}
	block := make([]byte, 4096)
	put := func(at int, v uint32) { binary.LittleEndian.PutUint32(block[at:], v) }
	put(0, 0xa92b4efc)
	if version == "0.90" {
		put(4, 0)
		put(8, 90)
		put(32, uint32(offset>>10))
		put(40, 1)
	} else {
		put(4, 1)
		copy(block[16:], "0123456789abcdef")
		copy(block[32:], "test:0")
		put(72, 1)                     // level
		put(80, uint32(size/512-4096)) // sectors
		put(92, 1)                     // raid_disks
		put(128, 2048)                 // data_offset
		put(136, uint32(size/512-4096))
		put(144, uint32(offset/512))
		var sum uint64
		for at := 0; at < 256; at += 4 {
			sum += uint64(binary.LittleEndian.Uint32(block[at:]))
		}
		put(216, uint32(sum)+uint32(sum>>32))
	}
	if _, err := f.WriteAt(block, offset); err != nil {
		t.Fatal(err)
	}
}

// makePrecious boots with a blank disk, leaves a file on it, and unmounts it.
func makePrecious(t *testing.T, d *disk) {
	t.Helper()
	if got := boot(t, d); got.State != facts.Ready {
		t.Fatalf("first boot: %+v", got)
	}
	sh(t, `echo precious >$1/redis/file`, d.params.Mount)
	unmountDisk(t, d)
}

// takesPrecious boots again: the disk with the file is taken, and the blank one beside it is not touched.
func takesPrecious(t *testing.T, d *disk, beside string) {
	t.Helper()
	if got := boot(t, d); got.State != facts.Ready {
		t.Errorf("second boot: %+v", got)
	}
	if data, _ := os.ReadFile(filepath.Join(d.params.Mount, "redis/file")); string(data) != "precious\n" {
		t.Error("second boot: another disk was taken")
	}
	if out, _ := exec.Command("blkid", "-p", beside).Output(); len(out) > 0 {
		t.Errorf("the blank disk is not any more: %s", out)
	}
}

// A blank disk is found under any device name, in every boot. The disk with the label is never confused with the blank
// one beside it.
func TestFindDisksUnderAnyName(t *testing.T) {
	type names struct {
		name  string
		attrs map[string]string
	}
	for controller, boots := range map[string][2]names{
		"virtio":                   {{"vdb", map[string]string{"serial": "data"}}, {"vda", map[string]string{"serial": "data"}}},
		"virtio, no serial":        {{"vdb", map[string]string{"serial": ""}}, {"vdc", map[string]string{"serial": ""}}},
		"NVMe":                     {{"nvme0n1", map[string]string{"device/serial": "ctrl", "wwid": "eui.1"}}, {"nvme1n1", map[string]string{"device/serial": "ctrl", "wwid": "eui.1"}}},
		"SCSI":                     {{"sda", map[string]string{"device/wwid": "naa.5000c500a1b2c3d4"}}, {"sdb", map[string]string{"device/wwid": "naa.5000c500a1b2c3d4"}}},
		"from SCSI to virtio":      {{"sdb", nil}, {"vdb", nil}},
		"from virtio to NVMe, Xen": {{"xvdb", nil}, {"nvme0n1", nil}},
	} {
		t.Run(controller, func(t *testing.T) {
			dev, beside, m, dir := loopDisk(t, "64M"), loopDisk(t, "64M"), newHardware(t), t.TempDir()
			m.attach(t, boots[0].name, dev, boots[0].attrs)
			d := m.disk(t, dir)
			makePrecious(t, d)
			// Another blank disk of the same size now has the old name.
			m.detach(t)
			m.attach(t, boots[0].name, beside, boots[0].attrs)
			m.attach(t, boots[1].name, dev, boots[1].attrs)
			d = m.disk(t, dir)
			takesPrecious(t, d, beside)
		})
	}
}

// A data disk that something else has mounted is not replaced by a blank one, and is taken once it is free.
func TestFindDisksInUse(t *testing.T) {
	dev, beside, m, dir := loopDisk(t, "64M"), loopDisk(t, "64M"), newHardware(t), t.TempDir()
	m.attach(t, "vdb", dev, nil)
	d := m.disk(t, dir)
	makePrecious(t, d)
	m.attach(t, "vdc", beside, nil)
	release := holdElsewhere(t, dev, t.TempDir())
	d = m.disk(t, dir)
	if _, err := d.Observe(t.Context()); err == nil || !strings.Contains(err.Error(), "vdb is the data disk (label imagegen-data), and a program uses it") {
		t.Errorf("while it is in use: %v", err)
	}
	release()
	takesPrecious(t, d, beside)
}

// The power fails while a disk without a serial number is formatted, and on the next boot the device names are swapped.
// The half-formatted disk is formatted again. The disk that now has the name in the intent is not touched.
func TestIntentFollowsItsDisk(t *testing.T) {
	for name, c := range map[string]struct {
		remains string // of the formatting, on $1; $2 is the UUID
	}{
		"before mkfs":  {`true`},
		"within mkfs":  {`printf 'remains of mkfs' | dd of=$1 bs=1 seek=4096 conv=notrunc status=none`},
		"after mkfs":   {`mkfs.ext4 -q -F -L imagegen-data -U $2 $1 65536k`},
		"before mount": {`mkfs.ext4 -q -F -L imagegen-data -U $2 $1 65536k; m=$(mktemp -d); mount $1 $m; umount $m; rmdir $m`},
	} {
		t.Run(name, func(t *testing.T) {
			dev, foreign, m, dir := loopDisk(t, "96M"), loopDisk(t, "96M"), newHardware(t), t.TempDir()
			m.attach(t, "vdb", dev, nil)
			uuid := intend(t, m.disk(t, dir))
			if err := writeStamp(dev, uuid); err != nil {
				t.Fatal(err)
			}
			sh(t, c.remains, dev, uuid)
			sh(t, `mkfs.ext4 -q -F -L backup $1; m=$(mktemp -d); mount $1 $m; echo precious >$m/file; umount $m; rmdir $m`, foreign)
			before := checksum(t, foreign)
			m.detach(t)
			m.attach(t, "vdb", foreign, nil)
			m.attach(t, "vdc", dev, nil)
			d := m.disk(t, dir)
			if got := boot(t, d); got.State != facts.Ready {
				t.Errorf("%+v", got)
			}
			if source := mounted(t, d); filepath.Base(source) != "vdc" {
				t.Errorf("%s is the data disk", source)
			}
			unmountDisk(t, d)
			if checksum(t, foreign) != before {
				t.Error("the disk that has the intended one's name now was written to")
			}
			if got := sh(t, `blkid -p -o value -s UUID $1`, dev); strings.TrimSpace(got) != uuid {
				t.Errorf("the file system's UUID is %s, the intent chose %s", got, uuid)
			}
		})
	}
}

// A disk that was not present when the intent was written is not formatted because of it, even if it looks the same.
func TestDiskIntentWipesNothingForeign(t *testing.T) {
	for name, make := range map[string]string{
		"another's file system":  `mkfs.ext4 -q -F -L backup $1; m=$(mktemp -d); mount $1 $m; echo precious >$m/file; umount $m; rmdir $m`,
		"the same, on the stamp": `mkfs.ext4 -q -F -L backup $1; m=$(mktemp -d); mount $1 $m; echo precious >$m/file; umount $m; rmdir $m`,
		"a file system of ours":  `mkfs.ext4 -q -F -L imagegen-data $1; m=$(mktemp -d); mount $1 $m; echo precious >$m/file; umount $m; rmdir $m`,
		"unknown data":           `printf precious | dd of=$1 bs=1 seek=4096 conv=notrunc status=none`,
		"several kinds":          `mkfs.ext4 -q $1; printf -- '-rom1fs-\0\0\0\020' | dd of=$1 conv=notrunc status=none`,
	} {
		t.Run(name, func(t *testing.T) {
			dev, m, dir := loopDisk(t, "96M"), newHardware(t), t.TempDir()
			m.attach(t, "vdb", dev, nil)
			uuid := intend(t, m.disk(t, dir))
			if name == "the same, on the stamp" || name == "several kinds" {
				if err := writeStamp(dev, uuid); err != nil {
					t.Fatal(err)
				}
			}
			sh(t, make, dev)
			before := checksum(t, dev)
			d := m.disk(t, dir)
			got := boot(t, d)
			if got.State == facts.Ready {
				t.Errorf("%+v", got)
			}
			unmountDisk(t, d)
			if name == "a file system of ours" {
				sh(t, `m=$(mktemp -d); mount $1 $m; grep -q precious $m/file; umount $m; rmdir $m`, dev)
			} else if checksum(t, dev) != before {
				t.Errorf("%+v, and the disk was written to", got)
			}
		})
	}
}

// intend makes a node with one blank disk write the intent to format it, and then lose power.
func intend(t *testing.T, d *disk) (uuid string) {
	t.Helper()
	if _, err := d.Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	step, status := decideDisk(d.owner, d.seen, false)
	if step.do != diskIntend {
		t.Fatalf("%+v, %+v", step, status)
	}
	if _, err := d.take(t.Context(), step, status); err != nil {
		t.Fatal(err)
	}
	intent, err := d.readIntent()
	if err != nil || intent == nil || len(intent.UUID) != 36 {
		t.Fatalf("%+v, %v", intent, err)
	}
	return intent.UUID
}

// mounted returns what is mounted at the component's mount point.
func mounted(t *testing.T, d *disk) string {
	t.Helper()
	ms, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	if m := mountAt(ms, d.params.Mount); m != nil {
		return m.source
	}
	return ""
}

// Before mkfs starts, the intent is on the root disk and its stamp on the data disk. mkfs gets the UUID in the intent.
func TestIntentComesBeforeFormatting(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		program := "mkfs." + kind
		t.Run(program, func(t *testing.T) {
			real, err := exec.LookPath(program)
			if err != nil {
				t.Skipf("SKIPPED: needs %s", program)
			}
			dev, m, dir, bin := loopDisk(t, "512M"), newHardware(t), t.TempDir(), t.TempDir()
			noted := filepath.Join(bin, "noted")
			text := fmt.Sprintf("#!/bin/sh\n{ echo \"$@\"; cat %s; dd if=%s bs=1M skip=511 count=1 status=none | head -n 1; } >%s\nexec %s \"$@\"\n", filepath.Join(dir, intentName), dev, noted, real)
			if err := os.WriteFile(filepath.Join(bin, program), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			m.attach(t, "vdb", dev, nil)
			d := m.disk(t, dir)
			d.params.Filesystem = kind
			if got := boot(t, d); got.State != facts.Ready {
				t.Fatalf("%+v", got)
			}
			data, _ := os.ReadFile(noted)
			lines := strings.Split(string(data), "\n")
			var intent formatIntent
			if len(lines) < 3 || json.Unmarshal([]byte(lines[1]), &intent) != nil {
				t.Fatalf("%q", lines)
			}
			if !strings.Contains(lines[0], intent.UUID) || lines[2] != stampText+intent.UUID {
				t.Errorf("%q", lines)
			}
			unmountDisk(t, d)
			if got := strings.TrimSpace(sh(t, `blkid -p -o value -s UUID $1`, dev)); got != intent.UUID {
				t.Errorf("the file system's UUID is %s, want %s", got, intent.UUID)
			}
			if got, err := readStamp(dev); err != nil || got != intent.UUID {
				t.Errorf("mkfs has written where the stamp is: %q, %v", got, err)
			}
			// With a new root disk, the node recognizes the data disk by its label.
			again := m.disk(t, t.TempDir())
			again.params.Filesystem = kind
			if got := boot(t, again); got.State != facts.Ready {
				t.Errorf("replaced node: %+v", got)
			}
		})
	}
}

// With two blank disks the node must not guess, unless there is an intent for one of them.
func TestTwoBlankDisks(t *testing.T) {
	one, two, m, dir := loopDisk(t, "64M"), loopDisk(t, "64M"), newHardware(t), t.TempDir()
	m.attach(t, "sdb", one, map[string]string{"device/wwid": "1"})
	m.attach(t, "sdc", two, map[string]string{"device/wwid": "2"})
	if got := boot(t, m.disk(t, t.TempDir())); got.State != facts.Stopped || !strings.Contains(got.Detail, "sdb (64 MiB)") || !strings.Contains(got.Detail, "sdc (64 MiB)") {
		t.Errorf("%+v", got)
	}
	only := newHardware(t)
	only.attach(t, "sdb", two, map[string]string{"device/wwid": "2"})
	intend(t, only.disk(t, dir))
	d := m.disk(t, dir)
	if got := boot(t, d); got.State != facts.Ready || filepath.Base(mounted(t, d)) != "sdc" {
		t.Errorf("%+v on %s", got, mounted(t, d))
	}
}

// NVMe disks of one controller have the same serial number: an intent for one must not match the other.
func TestNVMeNamespacesAreTold(t *testing.T) {
	one, two, m := loopDisk(t, "64M"), loopDisk(t, "64M"), newHardware(t)
	m.attach(t, "nvme0n1", one, map[string]string{"device/serial": "ctrl", "wwid": "eui.1"})
	m.attach(t, "nvme0n2", two, map[string]string{"device/serial": "ctrl", "wwid": "eui.2"})
	got, _ := m.found(t)
	if a, b := got["nvme0n1"], got["nvme0n2"]; a.Serial == b.Serial || a.same(b) {
		t.Errorf("%+v and %+v are taken for one", a, b)
	}
}

// Devices that are not local disks are ignored.
func TestFindDisksIgnoresOtherKinds(t *testing.T) {
	m := newHardware(t)
	dev := loopDisk(t, "64M")
	for _, name := range []string{"loop0", "ram0", "zram0", "sr0", "fd0", "nbd0", "dm-0", "md127"} {
		m.attach(t, name, dev, nil)
	}
	if got, others := m.found(t); len(got) != 0 || others != "" {
		t.Errorf("%+v, %q", got, others)
	}
}

package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

const (
	labDisk    = "/dev/imagegen-data" // the lab puts the node's data disk here
	markerName = ".imagegen.json"     // at the root of the file system
	intentName = "formatting.json"    // in the component's own folder, on the root disk

	blankBytes   = 1 << 20 // a blank disk has nothing but zeros here
	stampBytes   = 1 << 20 // at the end of a disk, which a new file system leaves free for the intent's stamp
	nearlyFull   = 90      // percent used, from which on the status warns
	growthSlack  = 4 << 20 // bytes that a file system may be smaller than its disk without being grown
	sectorBytes  = 512     // the unit of /sys/block/*/size
	markerSchema = "imagegen-node"
)

// diskLabels are the labels of data disks' file systems. XFS labels have at most 12 characters.
var diskLabels = map[string]string{"ext4": "imagegen-data", "xfs": "imagegendata"}

// disk finds the node's data disk, formats it if it is blank, marks it as this node's, and mounts it.
//
// Formatting is the one step that cannot be undone. Before it, an intent is written to the root disk, with the UUID of the new
// file system, and a stamp with that UUID near the end of the data disk. The intent is removed, durably, after the marker is
// on the new file system and before anything else may write there. So a disk with the intent's UUID holds nothing but this
// node's own unfinished formatting. Any other disk is formatted only if it is blank, whatever its name, size or serial
// number.
type disk struct {
	node    Node
	params  *facts.DiskParams
	owner   marker
	sys     string // normally /sys
	dev     string // normally /dev
	lab     string // normally labDisk
	seen    diskSeen
	settled bool         // folders and bind mounts are in place
	refused facts.Status // once set, for good
}

// diskSeen is what the agent knows about the data disk.
type diskSeen struct {
	Mounted string `json:"mounted,omitempty"` // the device at the mount point
	// Marker is who owns the mounted file system; nil: no marker.
	Marker   *marker `json:"marker,omitempty"`
	Empty    bool    `json:"empty,omitempty"` // the mounted file system holds no files
	ReadOnly bool    `json:"read_only,omitempty"`
	Used     int     `json:"used"` // percent; inodes count as much as space

	// The rest is looked for only while nothing is mounted.
	Disks  []blockDisk   `json:"disks,omitempty"`  // that may be the data disk
	Others []string      `json:"others,omitempty"` // that may not, and why, for people
	Intent *formatIntent `json:"intent,omitempty"`
}

// formatIntent says that this node is about to format a disk.
type formatIntent struct {
	Disk blockDisk `json:"disk"` // as it was: blank
	UUID string    `json:"uuid"` // of the file system to come
}

// allows tells whether the intent lets d be formatted: the disk must be blank, or carry the UUID that the intent chose.
func (i *formatIntent) allows(d blockDisk) bool {
	if i == nil || i.UUID == "" {
		return false
	}
	if d.Blank {
		return d.same(i.Disk) || d.Stamp == i.UUID
	}
	return d.UUID == i.UUID || d.Stamp == i.UUID
}

// blockDisk is a whole disk.
type blockDisk struct {
	Device string `json:"device"`
	Size   int64  `json:"size"` // bytes
	Serial string `json:"serial,omitempty"`
	// Blank: no signature that blkid knows, and only zeros at the start. Labelled: a file system with our label.
	Blank    bool   `json:"blank,omitempty"`
	Labelled bool   `json:"labelled,omitempty"`
	UUID     string `json:"uuid,omitempty"`  // of the file system
	Stamp    string `json:"stamp,omitempty"` // UUID of an intent to format; looked for only where blkid knows nothing
	Holds    string `json:"holds,omitempty"` // what blkid found, for people
	Given    bool   `json:"given,omitempty"` // by the lab: no need to guess
}

// same tells whether d and o look like the same disk, whatever is on it. Without a serial number this is a guess, since device
// names may change from boot to boot. Use it only to choose between blank disks.
func (d blockDisk) same(o blockDisk) bool {
	return d.Size == o.Size && d.Serial == o.Serial && (d.Serial != "" || d.Device == o.Device)
}

// marker says whose data a file system holds.
type marker struct {
	CreatedBy string `json:"created_by"`
	ClusterID string `json:"cluster_id"`
	Cluster   string `json:"cluster"`
	Role      string `json:"role"`
	Node      string `json:"node"`
}

// decodeMarker reads a marker strictly: one that this agent does not understand belongs to something else.
func decodeMarker(data []byte) (*marker, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var m marker
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows the marker")
	}
	if m.CreatedBy != markerSchema || m.ClusterID == "" || m.Cluster == "" || m.Role == "" || m.Node == "" {
		return nil, errors.New("not a marker of imagegen-node")
	}
	return &m, nil
}

func newDisk(n Node, _ string, p *facts.DiskParams) Component {
	return &disk{
		node: n, params: p, sys: "/sys", dev: "/dev", lab: labDisk,
		owner: marker{CreatedBy: markerSchema, ClusterID: n.Facts.ClusterID, Cluster: n.Facts.Cluster, Role: n.Facts.Node.Role, Node: n.Facts.Node.Name},
	}
}

// diskStep is what to do next.
type diskStep struct {
	do   diskDo
	disk blockDisk
}

type diskDo string

const (
	diskNothing diskDo = ""
	diskIntend  diskDo = "intend" // write the intent to format disk
	diskFormat  diskDo = "format" // make the file system on disk
	diskMount   diskDo = "mount"
	diskMark    diskDo = "mark"   // write the marker
	diskSettle  diskDo = "settle" // remove the intent; make folders and bind mounts
	diskRelease diskDo = "release"
)

// decideDisk chooses the next step. settled: folders and bind mounts are in place since this agent started.
func decideDisk(owner marker, seen diskSeen, settled bool) (diskStep, facts.Status) {
	if seen.Mounted != "" {
		return decideMounted(owner, seen, settled)
	}
	d, status := chooseDisk(seen)
	switch {
	case d == nil:
		return diskStep{}, status
	case seen.Intent.allows(*d):
		return diskStep{diskFormat, *d}, workf("formatting %s (%s)", d.Device, sizeText(d.Size))
	case d.Blank:
		return diskStep{diskIntend, *d}, workf("formatting %s (%s)", d.Device, sizeText(d.Size))
	case !d.Labelled:
		return diskStep{}, stopf("%s holds %s, which this node did not create; attach its own data disk, or wipe this one (wipefs -a) if nothing on it is needed", d.Device, d.Holds)
	}
	return diskStep{diskMount, *d}, workf("mounting %s", d.Device)
}

func decideMounted(owner marker, seen diskSeen, settled bool) (diskStep, facts.Status) {
	d := blockDisk{Device: seen.Mounted}
	m := seen.Marker
	switch {
	case m == nil && !seen.Empty:
		return diskStep{diskRelease, d}, stopf("%s has files on it, but not this node's marker %s; attach the node's own data disk", d.Device, markerName)
	case m != nil && m.ClusterID != owner.ClusterID:
		return diskStep{diskRelease, d}, stopf("%s holds data of node %s of another cluster (%s, id %s); attach the node's own data disk, or a blank one", d.Device, m.Node, m.Cluster, m.ClusterID)
	case m != nil && (m.Role != owner.Role || m.Node != owner.Node):
		return diskStep{diskRelease, d}, stopf("%s holds data of node %s (%s); attach the node's own data disk, or a blank one", d.Device, m.Node, m.Role)
	case seen.ReadOnly:
		return diskStep{}, facts.Status{State: facts.Failed, Detail: d.Device + " is read-only; the kernel makes it so after an error on the disk (see dmesg)"}
	case m == nil:
		return diskStep{diskMark, d}, workf("marking %s as this node's", d.Device)
	case !settled:
		return diskStep{diskSettle, d}, workf("making folders on %s", d.Device)
	case seen.Used >= 100:
		return diskStep{}, ready(d.Device + " is full")
	case seen.Used >= nearlyFull:
		return diskStep{}, ready(fmt.Sprintf("%s is %d %% full", d.Device, seen.Used))
	}
	return diskStep{}, ready("")
}

// chooseDisk returns the data disk among what is attached, or nil and why there is none.
func chooseDisk(seen diskSeen) (*blockDisk, facts.Status) {
	pick := func(what string, fits func(blockDisk) bool) (*blockDisk, facts.Status) {
		var found []blockDisk
		for _, d := range seen.Disks {
			if fits(d) {
				found = append(found, d)
			}
		}
		switch len(found) {
		case 0:
			return nil, facts.Status{}
		case 1:
			return &found[0], facts.Status{}
		}
		var names []string
		for _, d := range found {
			names = append(names, fmt.Sprintf("%s (%s)", d.Device, sizeText(d.Size)))
		}
		return nil, stopf("%d disks %s: %s; which is the data disk? detach the others", len(found), what, strings.Join(names, ", "))
	}
	for _, rule := range []struct {
		what string
		fits func(blockDisk) bool
	}{
		{"are given", func(d blockDisk) bool { return d.Given }},
		// Before the label: mkfs writes it early, and what it had not finished must not be mounted.
		{"were being formatted", seen.Intent.allows},
		{"carry the label of a data disk", func(d blockDisk) bool { return d.Labelled }},
		{"are blank", func(d blockDisk) bool { return d.Blank }},
	} {
		if d, status := pick(rule.what, rule.fits); d != nil || status.State != "" {
			return d, status
		}
	}
	others := slices.Clone(seen.Others)
	for _, d := range seen.Disks {
		others = append(others, d.Device+": holds "+d.Holds)
	}
	if len(others) == 0 {
		return nil, waitf("for a data disk: none is attached")
	}
	return nil, waitf("for a data disk, blank or one that a node has formatted; there is %s", strings.Join(others, ", "))
}

func sizeText(bytes int64) string {
	if bytes < 1<<30 {
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	return fmt.Sprintf("%.4g GiB", float64(bytes)/(1<<30))
}

func (d *disk) Observe(ctx context.Context) (any, error) {
	if d.refused.State != "" {
		return d.seen, nil
	}
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	seen := diskSeen{}
	if m := mountAt(mounts, d.params.Mount); m != nil {
		seen.Mounted, seen.ReadOnly = m.source, m.readOnly
		if err := d.lookInside(&seen); err != nil {
			return nil, err
		}
	} else {
		if seen.Intent, err = d.readIntent(); err != nil {
			return nil, err
		}
		if seen.Disks, seen.Others, err = d.findDisks(ctx); err != nil {
			return nil, err
		}
	}
	d.seen = seen
	return seen, nil
}

// Step takes steps until there is none left: they do not depend on peers, and the whole node waits for them.
func (d *disk) Step(ctx context.Context, _ World) (facts.Status, error) {
	for d.refused.State == "" {
		step, status := decideDisk(d.owner, d.seen, d.settled)
		if status.State == facts.Stopped {
			d.refused = status
		}
		if status, err := d.take(ctx, step, status); err != nil || step.do == diskNothing {
			return status, err
		}
		if _, err := d.Observe(ctx); err != nil {
			return status, err
		}
	}
	return d.refused, nil
}

func (d *disk) take(ctx context.Context, step diskStep, status facts.Status) (facts.Status, error) {
	dev := step.disk.Device
	switch step.do {
	case diskIntend:
		data, _ := json.Marshal(formatIntent{Disk: step.disk, UUID: newUUID()}) // plain structs
		return status, atomicfile.Write(filepath.Join(d.node.Dir, intentName), append(data, '\n'), 0o600)
	case diskFormat:
		d.node.Working(status.Detail)
		return status, d.format(ctx, step.disk)
	case diskMount:
		d.node.Working(status.Detail)
		return status, d.mount(ctx, dev)
	case diskMark:
		data, _ := json.Marshal(d.owner) // a plain struct
		return status, atomicfile.Write(filepath.Join(d.params.Mount, markerName), append(data, '\n'), 0o644)
	case diskSettle:
		if err := removeDurably(filepath.Join(d.node.Dir, intentName)); err != nil {
			return status, err
		}
		for _, dir := range d.params.Dirs {
			if err := makeDir(dir); err != nil {
				return status, err
			}
		}
		if err := d.label(ctx); err != nil {
			return status, err
		}
		d.settled = true
	case diskRelease:
		if err := syscall.Unmount(d.params.Mount, 0); err != nil {
			return status, fmt.Errorf("%s; unmount %s: %w", status.Detail, d.params.Mount, err)
		}
	}
	return status, nil
}

// lookInside completes seen with what the mounted file system says.
func (d *disk) lookInside(seen *diskSeen) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.params.Mount, &st); err != nil {
		return fmt.Errorf("%s: %w", d.params.Mount, err)
	}
	seen.Used = max(usedPercent(st.Blocks-st.Bfree, st.Bavail), usedPercent(st.Files-st.Ffree, st.Ffree))
	data, err := os.ReadFile(filepath.Join(d.params.Mount, markerName))
	if err == nil {
		if seen.Marker, err = decodeMarker(data); err != nil {
			seen.Marker = nil
		}
		return nil // a broken marker counts as data
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(d.params.Mount)
	if err != nil {
		return err
	}
	seen.Empty = !slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		// The temporary file of an interrupted atomicfile.Write is not data.
		return e.Name() != "lost+found" && !strings.HasPrefix(e.Name(), markerName)
	})
	return nil
}

// usedPercent is what df calls Use%, rounded up: 100 means that nothing is left for a user.
func usedPercent(used, left uint64) int {
	if used+left == 0 {
		return 0 // xfs and btrfs have no fixed number of inodes
	}
	return int((used*100 + used + left - 1) / (used + left))
}

func (d *disk) readIntent() (*formatIntent, error) {
	data, err := os.ReadFile(filepath.Join(d.node.Dir, intentName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var i formatIntent
	if err := json.Unmarshal(data, &i); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(d.node.Dir, intentName), err)
	}
	return &i, nil
}

// findDisks returns the disks that may be the data disk, and what else there is with the reason why it may not.
func (d *disk) findDisks(ctx context.Context) (disks []blockDisk, others []string, err error) {
	if fi, err := os.Stat(d.lab); err == nil && fi.Mode()&fs.ModeDevice != 0 {
		dev := fi.Sys().(*syscall.Stat_t).Rdev
		name, err := filepath.EvalSymlinks(filepath.Join(d.sys, "dev/block", fmt.Sprintf("%d:%d", major(dev), minor(dev))))
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", d.lab, err)
		}
		b, err := d.probe(ctx, d.lab, name)
		b.Given = true
		return []blockDisk{b}, nil, err
	}
	entries, err := os.ReadDir(filepath.Join(d.sys, "block"))
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name := e.Name()
		dir := filepath.Join(d.sys, "block", name)
		if slices.ContainsFunc([]string{"loop", "ram", "zram", "sr", "fd", "nbd", "dm-", "md"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		if readNumber(dir, "size") == 0 || readNumber(dir, "removable") == 1 {
			continue
		}
		dev := filepath.Join(d.dev, name)
		used, err := inUse(dev)
		if err != nil {
			return nil, nil, err
		}
		partitions, _ := filepath.Glob(filepath.Join(dir, "*", "partition"))
		switch {
		case readNumber(dir, "ro") == 1:
			others = append(others, dev+": read-only")
		case used:
			others = append(others, dev+": in use")
		case len(partitions) > 0:
			others = append(others, dev+": has partitions")
		default:
			b, err := d.probe(ctx, dev, dir)
			if err != nil {
				return nil, nil, err
			}
			disks = append(disks, b)
		}
	}
	return disks, others, nil
}

// inUse asks the kernel whether a block device, or a partition of it, is claimed: by a mounted file system (in any
// mount namespace), by swap, by LVM, RAID or another device on top of it. O_EXCL without O_CREAT is refused then, see
// open(2).
func inUse(dev string) (bool, error) {
	f, err := os.OpenFile(dev, os.O_RDONLY|syscall.O_EXCL, 0)
	if errors.Is(err, syscall.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, f.Close()
}

// probe looks at what is on a disk; dir is its folder below /sys.
func (d *disk) probe(ctx context.Context, dev, dir string) (blockDisk, error) {
	b := blockDisk{Device: dev, Size: readNumber(dir, "size") * sectorBytes}
	// In this order: an NVMe controller's serial number is that of all of its disks, their wwid is not.
	for _, name := range []string{"serial", "wwid", "device/wwid", "device/serial"} {
		if s, err := os.ReadFile(filepath.Join(dir, name)); err == nil && len(bytes.TrimSpace(s)) > 0 {
			b.Serial = string(bytes.TrimSpace(s))
			break
		}
	}
	out, err := run(ctx, nil, "blkid", "-p", "-o", "export", dev)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 2: // nothing that it knows
		zero, err := startsBlank(dev)
		if err != nil {
			return b, err
		}
		b.Blank = zero
		if !zero {
			b.Holds = "something unknown"
		}
		b.Stamp, err = readStamp(dev)
		return b, err
	case errors.As(err, &exit) && exit.ExitCode() == 8:
		b.Holds = "several kinds of data at once"
		return b, nil
	case err != nil:
		return b, err
	}
	values := map[string]string{}
	for line := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[k] = v
	}
	b.Labelled = values["LABEL"] == diskLabels[d.params.Filesystem] && values["TYPE"] == d.params.Filesystem
	b.UUID = values["UUID"]
	kind := values["TYPE"]
	if kind == "" {
		kind = "a partition table (" + values["PTTYPE"] + ")"
	}
	b.Holds = strings.TrimSpace(kind + " " + values["LABEL"])
	return b, nil
}

// startsBlank tells whether the start of a disk has only zeros.
func startsBlank(dev string) (bool, error) {
	f, err := os.Open(dev)
	if err != nil {
		return false, err
	}
	defer f.Close()
	buf := make([]byte, blankBytes)
	n, err := io.ReadFull(f, buf)
	if err != nil && err != io.ErrUnexpectedEOF {
		return false, fmt.Errorf("read %s: %w", dev, err)
	}
	return len(bytes.Trim(buf[:n], "\x00")) == 0, nil
}

// stampText is the stamp of an intent. It stays on the disk after formatting, and means nothing without the intent.
const stampText = "imagegen-node formats this disk: "

// writeStamp puts the intent's UUID on a disk, durably, where mkfs will not write.
func writeStamp(dev, uuid string) error {
	f, err := os.OpenFile(dev, os.O_WRONLY|syscall.O_EXCL, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	block := make([]byte, 4096)
	copy(block, stampText+uuid+"\n")
	if _, err := f.WriteAt(block, end-stampBytes); err != nil {
		return err
	}
	return f.Sync()
}

// readStamp returns the UUID of the intent whose stamp is on a disk, or "".
func readStamp(dev string) (string, error) {
	f, err := os.Open(dev)
	if err != nil {
		return "", err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || end < stampBytes {
		return "", err
	}
	block := make([]byte, 4096)
	if _, err := f.ReadAt(block, end-stampBytes); err != nil {
		return "", fmt.Errorf("read %s: %w", dev, err)
	}
	line, _, ok := strings.Cut(string(block), "\n")
	uuid, stamped := strings.CutPrefix(line, stampText)
	if !ok || !stamped {
		return "", nil
	}
	return uuid, nil
}

// newUUID returns a random UUID (version 4).
func newUUID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return uuidText(b)
}

// format makes the file system on a disk that the intent allows. It first looks for a marker: one that is already there proves
// that formatting had finished and only the intent was not removed yet. A file system without a marker may be incomplete,
// whatever it looks like.
func (d *disk) format(ctx context.Context, b blockDisk) error {
	dev := b.Device
	if !b.Blank && d.mount(ctx, dev) == nil {
		var seen diskSeen
		if err := d.lookInside(&seen); err == nil && (seen.Marker != nil || !seen.Empty) {
			return nil // mounted: what is on it decides
		}
		if err := syscall.Unmount(d.params.Mount, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", d.params.Mount, err)
		}
	}
	uuid := d.seen.Intent.UUID
	if err := writeStamp(dev, uuid); err != nil {
		return fmt.Errorf("format %s: %w", dev, err)
	}
	if _, err := run(ctx, nil, mkfs(d.params.Filesystem, dev, uuid, b.Size-stampBytes)...); err != nil {
		return fmt.Errorf("format %s: %w", dev, err)
	}
	return d.mount(ctx, dev)
}

// mkfs returns the command that makes a file system of a size, in bytes.
func mkfs(kind, dev, uuid string, size int64) []string {
	if kind == "xfs" {
		return []string{"mkfs.xfs", "-q", "-f", "-K", "-L", diskLabels[kind], "-m", "uuid=" + uuid, "-d", fmt.Sprintf("size=%d", size&^4095), dev}
	}
	return []string{"mkfs.ext4", "-q", "-F", "-L", diskLabels[kind], "-U", uuid, "-m", "1", "-e", "remount-ro", "-I", "512",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", dev, fmt.Sprintf("%dk", size>>10)}
}

// mount checks the file system, lets it grow to the size of its disk, and mounts it.
func (d *disk) mount(ctx context.Context, dev string) error {
	grown, err := d.grown(dev)
	if err != nil {
		return err
	}
	var options string
	if d.params.Filesystem == "ext4" {
		options = "errors=remount-ro"
		argv := []string{"e2fsck", "-p", dev}
		if grown {
			argv = []string{"e2fsck", "-f", "-p", dev} // resize2fs requires it
		}
		_, err := run(ctx, nil, argv...)
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() < 4 {
			err = nil // errors were corrected
		}
		if err != nil {
			return fmt.Errorf("check %s: %w", dev, err)
		}
		if grown {
			if _, err := run(ctx, nil, "resize2fs", dev); err != nil {
				d.node.Log("%s keeps its size: %v", dev, err) // harmless
			}
		}
	}
	if err := os.MkdirAll(d.params.Mount, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(dev, d.params.Mount, d.params.Filesystem, syscall.MS_NOATIME, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", dev, d.params.Mount, err)
	}
	if grown && d.params.Filesystem == "xfs" {
		if _, err := run(ctx, nil, "xfs_growfs", "-d", d.params.Mount); err != nil {
			d.node.Log("%s stays at its size: %v", dev, err)
		}
	}
	return nil
}

// grown tells whether a disk is larger than the file system on it.
func (d *disk) grown(dev string) (bool, error) {
	f, err := os.Open(dev)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	super := make([]byte, 2048)
	if _, err := f.ReadAt(super, 0); err != nil {
		return false, err
	}
	return size-fsBytes(d.params.Filesystem, super) >= growthSlack, nil
}

// fsBytes reads a file system's size from its super block, given the disk's first 2 KiB.
func fsBytes(kind string, start []byte) int64 {
	if kind == "xfs" {
		return int64(binary.BigEndian.Uint64(start[8:])) * int64(binary.BigEndian.Uint32(start[4:]))
	}
	super := start[1024:]
	blocks := uint64(binary.LittleEndian.Uint32(super[4:]))
	if binary.LittleEndian.Uint32(super[0x60:])&0x80 != 0 { // 64bit
		blocks |= uint64(binary.LittleEndian.Uint32(super[0x150:])) << 32
	}
	return int64(blocks << (10 + binary.LittleEndian.Uint32(super[0x18:])&0x1f))
}

// makeDir makes a folder of the data disk with its owner and mode, and its bind mount if it has one.
func makeDir(dir facts.Dir) error {
	uid, gid, err := lookupOwner(dir.Owner)
	if err != nil {
		return fmt.Errorf("folder %s: %w", dir.Path, err)
	}
	mode, err := strconv.ParseUint(dir.Mode, 8, 12)
	if err != nil {
		return fmt.Errorf("folder %s: mode %q is not octal", dir.Path, dir.Mode)
	}
	if err := os.MkdirAll(dir.Path, 0o755); err != nil {
		return err
	}
	if err := os.Chown(dir.Path, uid, gid); err != nil {
		return err
	}
	if err := syscall.Chmod(dir.Path, uint32(mode)); err != nil { // os.Chmod wants set-id bits elsewhere
		return fmt.Errorf("chmod %s: %w", dir.Path, err)
	}
	if dir.Bind == "" {
		return nil
	}
	if err := os.MkdirAll(dir.Bind, 0o755); err != nil {
		return err
	}
	from, err := os.Stat(dir.Path)
	if err != nil {
		return err
	}
	if to, err := os.Stat(dir.Bind); err != nil {
		return err
	} else if os.SameFile(from, to) {
		return nil
	}
	if err := syscall.Mount(dir.Path, dir.Bind, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", dir.Path, dir.Bind, err)
	}
	return nil
}

// label gives the mount point and the folders the SELinux labels that the policy has for their paths. A new file system has no
// labels, and an enforcing policy would keep daemons out. New files inherit the label of their folder.
func (d *disk) label(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(d.sys, "fs/selinux/enforce")); err != nil {
		return nil // a kernel without SELinux, or one that has it off
	}
	argv := []string{"restorecon", "-F", d.params.Mount}
	for _, dir := range d.params.Dirs {
		argv = append(argv, cmp.Or(dir.Bind, dir.Path))
	}
	if _, err := run(ctx, nil, argv...); err != nil {
		return fmt.Errorf("label %s for SELinux: %w", d.params.Mount, err)
	}
	return nil
}

// lookupOwner resolves "user:group".
func lookupOwner(owner string) (uid, gid int, err error) {
	name, group, ok := strings.Cut(owner, ":")
	if !ok {
		return 0, 0, fmt.Errorf("owner %q is not user:group", owner)
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, err
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, 0, err
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(g.Gid)
	return uid, gid, err
}

// removeDurably removes a file, if it exists, and syncs the folder.
func removeDurably(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// mount is a line of /proc/self/mountinfo, see proc(5).
type mount struct {
	device   string // major:minor
	point    string
	readOnly bool // the file system or this mount of it
	kind     string
	source   string
}

func readMounts() ([]mount, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(data), nil
}

func parseMounts(data []byte) []mount {
	var ms []mount
	for line := range strings.Lines(string(data)) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		ro := slices.Contains(strings.Split(l[5], ","), "ro") || slices.Contains(strings.Split(r[2], ","), "ro")
		ms = append(ms, mount{device: l[2], point: unescapeMount(l[4]), readOnly: ro, kind: r[0], source: unescapeMount(r[1])})
	}
	return ms
}

// unescapeMount undoes the kernel's octal escapes of space, tab, newline and backslash.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// mountAt returns what is mounted at path, the topmost, or nil.
func mountAt(ms []mount, path string) *mount {
	for i := range slices.Backward(ms) {
		if ms[i].point == path {
			return &ms[i]
		}
	}
	return nil
}

// readNumber returns the number in a file below /sys, 0 when it cannot be read.
func readNumber(dir, name string) int64 {
	data, _ := os.ReadFile(filepath.Join(dir, name))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n
}

// major and minor take a device number apart as glibc's makedev puts it together.
func major(dev uint64) uint64 { return dev>>8&0xfff | dev>>32&^0xfff }
func minor(dev uint64) uint64 { return dev&0xff | dev>>12&^0xff }

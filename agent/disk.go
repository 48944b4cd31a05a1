package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

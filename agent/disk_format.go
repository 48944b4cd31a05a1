package agent

import (
	"cmp"
	"context"
	"encoding/binary"
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
)

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

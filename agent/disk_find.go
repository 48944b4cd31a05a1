package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

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
		case used && len(partitions) > 0:
			others = append(others, dev+": in use")
		case used: // if it is the data disk, mounted where this process does not see it, no blank one may be taken in its place
			b, err := d.probe(ctx, dev, dir)
			if err != nil {
				return nil, nil, err
			}
			if b.Labelled {
				return nil, nil, fmt.Errorf("%s is the data disk (label %s), and a program uses it in another mount namespace; no other disk is taken instead", dev, diskLabels[d.params.Filesystem])
			}
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

package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"imagegen/internal/program"
)

// Image describes a disk, apart from the file tree on it.
type Image struct {
	Bytes  int64  // size of the disk
	UUID   string // of the file system
	Number uint32 // disk signature in the first sector
	// Boot is the partition's boot sector, which extlinux wrote together with the tree's ldlinux.sys. If it is nil, the disk gets no boot
	// loader.
	Boot []byte
}

// Write makes a disk with one partition, from the first MiB to the end, that contains the tree.
func Write(ctx context.Context, path string, tree Tree, image Image) error {
	e, err := newDisk(ctx, path, image.Bytes, image.UUID)
	if err != nil {
		return err
	}
	defer e.disk.Close()
	if err := e.fill(tree); err != nil {
		return err
	}
	if image.Boot != nil {
		if err := e.install(image.Boot); err != nil {
			return err
		}
		code, err := os.ReadFile(BootSector)
		if err != nil {
			return err
		}
		if _, err := e.disk.WriteAt(partition(code, image.Bytes, image.Number), 0); err != nil {
			return err
		}
	}
	return e.disk.Close()
}

// Check runs e2fsck, without repairs, on the file system of such a disk.
func Check(ctx context.Context, path string) error {
	out, err := program.Command(ctx, "e2fsck", "-f", "-n", fmt.Sprintf("%s?offset=%d", path, partitionStart)).CombinedOutput()
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("e2fsck: %w\n%s", err, program.LastLines(bytes.NewReader(out), 8))
	}
	return ctx.Err()
}

// Newest is the time stamp of files written by a bake. It is fixed, so that bakes are reproducible. Files from packages are older.
const Newest = 1735689600 // 2025-01-01

// journalMiB is the size of the journal. On a large disk, mkfs.ext4 would choose 1 GiB, and write all of it.
const journalMiB = 64

// newDisk makes a disk with an empty file system in one partition, without a boot loader.
func newDisk(ctx context.Context, path string, size int64, uuid string) (_ *ext4, err error) {
	disk, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			disk.Close()
		}
	}()
	if err := disk.Truncate(size); err != nil {
		return nil, err
	}
	// Set everything explicitly that mkfs.ext4 would otherwise configure or choose by itself.
	cmd := program.Command(ctx, "mkfs.ext4", "-q", "-F", "-L", "root", "-U", uuid, "-b", "4096", "-I", "256", "-i", "16384", "-m", "5",
		"-J", fmt.Sprintf("size=%d", journalMiB),
		"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", partitionStart, uuid),
		path, fmt.Sprintf("%dk", (size-partitionStart)/1024))
	cmd.Env = []string{"PATH=" + program.Path, "LC_ALL=C.UTF-8", fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", Newest), "MKE2FS_CONFIG=/dev/null"}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errors.Join(fmt.Errorf("mkfs.ext4: %w", err), errors.New(strings.TrimSpace(string(out))))
	}
	return openExt4(ctx, disk, partitionStart, Newest)
}

// partition returns the first sector of a disk with one active partition, from sector 2048 to the end.
func partition(code []byte, bytes int64, id uint32) []byte {
	mbr := make([]byte, sectorSize)
	copy(mbr[:440], code)
	le.PutUint32(mbr[440:], id)
	p := mbr[446:]
	p[0], p[4] = 0x80, 0x83               // active; Linux
	copy(p[1:], []byte{0x20, 0x21, 0})    // cylinder, head and sector of 2048
	copy(p[5:], []byte{0xfe, 0xff, 0xff}) // of the end: more than fits there
	le.PutUint32(p[8:], partitionStart/sectorSize)
	le.PutUint32(p[12:], uint32((bytes-partitionStart)/sectorSize))
	mbr[510], mbr[511] = 0x55, 0xaa
	return mbr
}

const partitionStart = 1 << 20

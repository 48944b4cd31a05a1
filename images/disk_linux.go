package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"imagegen/internal/program"
)

// newest is the time of files that a bake has written: as it is the same for all bakes, so are they. The packages' own
// files are older.
const newest = 1735689600 // 2025-01-01

// journalMiB is the size of the journal. mkfs.ext4 would give 1 GiB to a large disk, all of which it writes.
const journalMiB = 64

// newDisk makes a disk: a partition with an empty file system in it, and no boot loader.
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
	// All that mkfs.ext4 would look up, or choose by itself, is said.
	cmd := program.Command(ctx, "mkfs.ext4", "-q", "-F", "-L", "root", "-U", uuid, "-b", "4096", "-I", "256", "-i", "16384", "-m", "5",
		"-J", fmt.Sprintf("size=%d", journalMiB),
		"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", partitionStart, uuid),
		path, fmt.Sprintf("%dk", (size-partitionStart)/1024))
	cmd.Env = []string{"PATH=" + program.Path, "LC_ALL=C.UTF-8", fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", newest), "MKE2FS_CONFIG=/dev/null"}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errors.Join(fmt.Errorf("mkfs.ext4: %w", err), errors.New(strings.TrimSpace(string(out))))
	}
	return openExt4(ctx, disk, partitionStart, newest)
}

package sparse

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// Flush writes a file to the disk piece by piece, since one fsync may take many seconds and cannot be interrupted.
func Flush(ctx context.Context, f *os.File) error {
	const waitBefore, write, waitAfter = 1, 2, 4 // sync_file_range(2)
	err := Each(f, func(start, end int64) error {
		for ; start < end; start += copyPiece {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := syscall.SyncFileRange(int(f.Fd()), start, min(end-start, copyPiece), waitBefore|write|waitAfter)
			if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ESPIPE) {
				return nil // fsync does it all
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.Sync()
}

// Each calls do for each part of a sparse file that holds data.
func Each(f *os.File, do func(start, end int64) error) error {
	const seekData, seekHole = 3, 4 // lseek(2)
	for pos := int64(0); ; {
		start, err := f.Seek(pos, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return err
		}
		if err := do(start, end); err != nil {
			return err
		}
		pos = end
	}
}

// Package sparse reads, copies and hashes sparse files, such as disks, without reading their holes.
package sparse

import (
	"context"
	"errors"
	"io"
	"os"
)

// copyPiece is how much is copied, or written to the disk, between two looks at the context.
const copyPiece = 16 << 20

// Copy copies a file to a new one, with its holes.
func Copy(ctx context.Context, from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	return Each(src, func(start, end int64) error {
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(start, io.SeekStart); err != nil {
			return err
		}
		for start < end { // the kernel copies, a piece at a time, so that it can be interrupted
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := io.CopyN(dst, src, min(end-start, copyPiece))
			if err != nil {
				return err
			}
			start += n
		}
		return nil
	})
}

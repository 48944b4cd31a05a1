//go:build !linux

package sparse

import (
	"context"
	"os"
)

func Flush(ctx context.Context, f *os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.Sync()
}

// Each calls do for the whole of a file: where its holes are is not known here.
func Each(f *os.File, do func(start, end int64) error) error {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	return do(0, info.Size())
}

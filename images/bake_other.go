//go:build !linux

package images

import (
	"context"
	"errors"
	"os"
	"os/exec"
)

func (c *Config) bakeAll(context.Context, []*plan) error {
	return errors.New("images are baked on Linux only: baking mounts the disks that it makes")
}

func (c *Config) hold(context.Context) (release func(), err error) {
	return nil, errors.New("images are baked on Linux only: baking mounts the disks that it makes")
}

func (c *Config) stock(context.Context, []string, bool) ([]*plan, error) {
	return nil, errors.New("images are baked on Linux only: baking mounts the disks that it makes")
}

func (c *Config) pin(context.Context, []string, bool) error {
	return errors.New("packages are pinned on Linux only, by APT")
}

func command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, program, args...)
}

func flush(ctx context.Context, f *os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.Sync()
}

// eachExtent calls do for the whole of a file: where its holes are is not known here.
func eachExtent(f *os.File, do func(start, end int64) error) error {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	return do(0, info.Size())
}

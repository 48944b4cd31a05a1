//go:build !linux

package images

import (
	"context"
	"errors"
)

func (c *Config) bakeAll(context.Context, []*plan) error {
	return errors.New("images can be baked only on Linux: baking mounts disks")
}

func (cache) hold(context.Context) (release func(), err error) {
	return nil, errors.New("images can be baked only on Linux: baking mounts disks")
}

func (supply) stock(context.Context, []string, bool) ([]*plan, error) {
	return nil, errors.New("images can be baked only on Linux: baking mounts disks")
}

func (supply) pin(context.Context, []string, bool) error {
	return errors.New("packages can be pinned only on Linux")
}

//go:build !linux

package images

import (
	"context"
	"errors"
)

func (c *Config) bakeAll(context.Context, []*plan) error {
	return errors.New("images are baked on Linux only: baking mounts the disks that it makes")
}

func (cache) hold(context.Context) (release func(), err error) {
	return nil, errors.New("images are baked on Linux only: baking mounts the disks that it makes")
}

func (supply) stock(context.Context, []string, bool) ([]*plan, error) {
	return nil, errors.New("images are baked on Linux only: baking mounts the disks that it makes")
}

func (supply) pin(context.Context, []string, bool) error {
	return errors.New("packages are pinned on Linux only, by APT")
}

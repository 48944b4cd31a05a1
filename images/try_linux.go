package images

import (
	"context"
	"fmt"
	"os"

	"imagegen/images/builder"
	"imagegen/images/distro"
)

// try is a distro.Trial.
func (c *Config) try(ctx context.Context, base distro.Base, bytes int64, do func(context.Context, *builder.Job, func(context.Context) error) error) (log string, err error) {
	by, _, err := c.chooseBuilder()
	if err != nil {
		return "", err
	}
	if c.CacheDir, err = c.cache().open(ctx); err != nil {
		return "", err
	}
	tried := &plan{inputs: distro.Inputs{Base: base, DiskBytes: bytes}, identity: base.Identity()} // not an image, but it needs as much space
	if err := c.checkSpace([]*plan{tried}, by); err != nil {
		return "", err
	}
	if _, err := os.Stat(c.cache().baseDir(base)); err != nil {
		if err := c.supply().fetchBase(ctx, base); err != nil {
			return "", err
		}
	}
	if err := c.bakeBase(ctx, base); err != nil {
		return "", fmt.Errorf("bake the base of %s: %w", c.Spec.Distro, err)
	}
	b := &bake{config: c, name: packagesName, plan: tried, base: base, builder: by}
	b.Network = true
	err = b.run(ctx,
		step{"copy the base", (*bake).copyBase},
		step{"resolve dependencies", func(b *bake, ctx context.Context) error { return do(ctx, &b.Job, b.runBuilder) }})
	if err == nil {
		return "", nil
	}
	said, _ := os.ReadFile(b.Log.Name()) // a missing log is no error: err says enough
	return string(said), fmt.Errorf("packages of %s: %w", c.Spec.Distro, err)
}

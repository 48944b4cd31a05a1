package images

import (
	"fmt"
	"os"

	known "imagegen/distro"
	"imagegen/images/builder"
)

// chooseBuilder returns the builder for the spec's images, and the reason as a text for the user.
func (c *Config) chooseBuilder() (_ builder.Builder, why string, err error) {
	d := c.distro()
	return builder.Choose(builder.Options{Name: c.Builder, Limit: c.Limit, Tools: d.Tools(), Local: !d.IsDisk()})
}

// checkSpace returns an error if the cache has too little free space.
func (c *Config) checkSpace(plans []*plan, by builder.Builder) error {
	space := known.Named(c.Spec.Distro).Space
	each := space.Image
	if by.VM() {
		each += space.VM
	}
	need := int64(len(plans)) * each
	what := fmt.Sprintf("%d images", len(plans))
	if len(plans) == 1 {
		what = "an image"
	}
	if _, err := os.Stat(c.cache().baseDir(plans[0].inputs.Base)); err != nil {
		need += space.Base
	}
	if free, ok := freeBytes(c.CacheDir); ok && free < need {
		return fmt.Errorf("baking %s takes about %d MiB in %s, and %d MiB are free: free some space there, or choose another folder with --cache", what, need>>20, c.CacheDir, free>>20)
	}
	return nil
}

package images

import "imagegen/images/distro"

// maker makes images of the spec's distro.
func (c *Config) maker() distro.Maker { return distro.NewMaker(c.options()) }

package images

import "imagegen/images/distro"

// maker returns the Maker for the spec's distro.
func (c *Config) maker() distro.Maker { return distro.NewMaker(c.options()) }

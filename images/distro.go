package images

import (
	"path/filepath"

	"imagegen/images/distro"
)

// packagesName is what the progress calls the work on packages of all images.
const packagesName = "packages"

// packagesStep tells of the work on packages of all images.
func (c *Config) packagesStep(what string) { c.UI.Step(packagesName, what) }

func (c *Config) options() distro.Options {
	o := distro.Options{
		Spec: c.Spec, Catalogue: c.Catalogue, Lock: c.LockPath(), Store: c.store(), Archives: filepath.Join(c.CacheDir, "archive"),
		Offline: c.Offline, Jobs: c.Jobs, Step: c.packagesStep,
	}
	if c.UI != nil {
		o.Note = c.UI.Note
	}
	return o
}

// distro is how images of the spec's distro are made.
func (c *Config) distro() distro.Distro { return distro.New(c.options()) }

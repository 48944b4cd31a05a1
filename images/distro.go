package images

import (
	"path/filepath"

	"imagegen/images/distro"
	"imagegen/images/packages"
)

// packagesName is what the progress calls the work on packages of all images.
const packagesName = "packages"

// packagesStep tells of the work on packages of all images.
func (c *Config) packagesStep(what string) { c.UI.Step(packagesName, what) }

func (c *Config) options() distro.Options {
	o := distro.Options{
		Spec: c.Spec, Catalogue: c.Catalogue, Lock: c.LockPath(), Store: c.cache().store(), Archives: filepath.Join(c.CacheDir, "archive"),
		Offline: c.Offline, Jobs: c.Jobs, Step: c.packagesStep,
	}
	if c.UI != nil {
		o.Note = c.UI.Note
	}
	return o
}

// distro is how images of the spec's distro are made.
func (c *Config) distro() distro.Distro { return distro.New(c.options()) }

// LockPath is where the lock of the spec is.
func (c *Config) LockPath() string {
	return filepath.Join(filepath.Dir(c.Spec.File), packages.LockName)
}

// supply pins what images are made from, and brings it into the cache.
type supply struct{ *Config }

func (c *Config) supply() supply { return supply{c} }

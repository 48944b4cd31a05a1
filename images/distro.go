package images

import (
	"path/filepath"

	"imagegen/images/distro"
	"imagegen/images/packages"
)

// packagesName is the name of package downloads in progress reports.
const packagesName = "packages"

// packagesStep reports a step of package downloads.
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

// distro returns the implementation for the spec's distro.
func (c *Config) distro() distro.Distro { return distro.New(c.options()) }

// LockPath returns the path of the lock, beside the spec.
func (c *Config) LockPath() string {
	return filepath.Join(filepath.Dir(c.Spec.File), packages.LockName)
}

// supply pins and downloads what images are made from.
type supply struct{ *Config }

func (c *Config) supply() supply { return supply{c} }

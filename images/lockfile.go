package images

import (
	"path/filepath"

	"imagegen/images/packages"
)

// LockPath is where the lock of the spec is.
func (c *Config) LockPath() string {
	return filepath.Join(filepath.Dir(c.Spec.File), packages.LockName)
}

func (c *Config) store() packages.Store { return packages.Store(filepath.Join(c.CacheDir, "packages")) }

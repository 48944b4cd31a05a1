package images

import (
	"os"
	"path/filepath"
	"time"

	"imagegen/images/distro"
	"imagegen/images/packages"
)

// cache is the folder that keeps the results and downloads of builds:
//
//	images/IDENTITY/   a disk and its manifest        base/IDENTITY/  the base of a distro
//	formats/HASH/      an image in another format     packages/       packages and downloads, by SHA-256
//	archive/HASH/      package lists of an archive    work/, log/     running bakes; their output
type cache struct {
	dir string
	ui  Progress
}

func (c *Config) cache() cache { return cache{c.CacheDir, c.UI} }

// Files of an image, or of a base, in the cache.
const (
	diskName     = "disk.raw"
	manifestName = "manifest.json"
	treeName     = "root"
)

func (k cache) imageDir(identity string) string {
	return filepath.Join(k.dir, "images", identity)
}

func (k cache) baseDir(in distro.Base) string {
	return filepath.Join(k.dir, "base", in.Identity())
}

// used records that a build uses a folder of the cache, so that it is not trimmed.
func used(dir string) {
	now := time.Now()
	_ = os.Chtimes(dir, now, now) // without write access nobody can trim the cache either
}

// complete reports whether a folder of the cache contains an image. Folders are renamed into place once everything is on disk, so an
// existing one is complete.
func complete(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, manifestName))
	return err == nil
}

func (k cache) store() packages.Store { return packages.Store(filepath.Join(k.dir, "packages")) }

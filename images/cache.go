package images

import (
	"os"
	"path/filepath"
	"time"

	"imagegen/images/distro"
	"imagegen/images/packages"
)

// cache is the folder that keeps what builds have made and fetched:
//
//	images/IDENTITY/   a disk and its manifest        base/IDENTITY/  the base of a distro
//	formats/HASH/      an image in another format     packages/       packages and downloads, by SHA-256
//	archive/HASH/      lists of an archive            work/           what is being made; log/ what programs printed
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

// used notes that a build uses a folder of the cache, if it is there, so that it is not trimmed.
func used(dir string) {
	now := time.Now()
	_ = os.Chtimes(dir, now, now) // who may not write to a cache cannot trim it either
}

// complete tells whether a folder of the cache holds an image. Such folders are renamed into place when all of it is
// on the disk, so one that exists is whole.
func complete(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, manifestName))
	return err == nil
}

func (k cache) store() packages.Store { return packages.Store(filepath.Join(k.dir, "packages")) }

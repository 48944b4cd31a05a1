package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is the tag or commit that this program was built from; make build sets it. The agent has none: it is part of
// every image, and a new version would change the identities of all images.
var version string

// versionText is what --version prints after the name.
func versionText() string {
	v := version
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version // set by go install; (devel) in a checkout
	}
	return fmt.Sprintf("%s (%s, %s/%s)", cmp.Or(v, "of unknown version"), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

package images

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster"
	known "imagegen/distro"
	"imagegen/images/packages"
	"imagegen/internal/testkit"
)

// TestIdentities compares the identities of the reference cluster's images and of the base, on each distro, with a
// golden file. Agent, archive and pinned packages are fixed, so only imagegen's own inputs change an identity. A change
// that is not meant to make new images must not change the file.
func TestIdentities(t *testing.T) {
	var b strings.Builder
	for _, distro := range known.Names() {
		spec := string(cluster.Reference(distro)) + "\nmirror: https://archive.example.com/archive\n"
		c := mustConfig(t, testDir(t, spec, nil), "")
		names, err := c.prepare()
		if err != nil {
			t.Fatal(err)
		}
		base, err := c.distro().Base()
		if err != nil {
			t.Fatal(err)
		}
		l := &packages.Lock{Schema: 1, Distro: distro, Base: pinned(base.Requested()), Roles: map[string]*packages.Pins{}}
		for _, name := range names {
			in, err := c.inputs(t.Context(), name, base, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			l.Roles[name] = pinned(in.Requested())
		}
		if err := (l).Write(c.LockPath()); err != nil {
			t.Fatal(err)
		}
		ids, err := Identities(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		plans, err := c.plan(t.Context(), names[:1])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s base %s\n", distro, plans[0].inputs.Base.Identity())
		for _, name := range names {
			fmt.Fprintf(&b, "%s %s %s\n", distro, name, ids[name])
		}
	}
	testkit.Golden(t, filepath.Join("testdata", "identities.txt"), []byte(b.String()))
}

// pinned returns an invented package for each requested name.
func pinned(requested []string) *packages.Pins {
	p := &packages.Pins{Requested: slices.Clone(requested)}
	for _, name := range requested {
		sum := sha256.Sum256([]byte(name))
		word, _, _ := strings.Cut(name, " ")
		p.Packages = append(p.Packages, packages.Pin{Name: word, Version: "999.1-1", Architecture: "noarch", SHA256: hex.EncodeToString(sum[:])})
	}
	return p
}

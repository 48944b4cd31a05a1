package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"imagegen/cluster"
	"imagegen/images/distro"
	"imagegen/images/packages"
	"imagegen/internal/jsonhash"
)

// Planned is what Build would do for one image.
type Planned struct {
	Roles    []string `json:"roles"` // that share the image
	Identity string   `json:"identity"`
	Cached   bool     `json:"cached"` // in the cache, so it is not baked
	// Because lists why the image is baked: how its inputs differ from those of the image in the output folder.
	Because []string `json:"because,omitempty"`
}

// Plan returns what Build would do, without doing it.
func Plan(ctx context.Context, c Config) ([]Planned, error) {
	names, err := c.prepare()
	if err != nil {
		return nil, err
	}
	plans, err := c.plan(ctx, names)
	if err != nil {
		return nil, err
	}
	var all []Planned
	for _, p := range plans {
		planned := Planned{Roles: p.roles, Identity: p.identity, Cached: complete(c.cache().imageDir(p.identity))}
		if !planned.Cached {
			if planned.Because, err = c.because(p); err != nil {
				return nil, err
			}
		}
		all = append(all, planned)
	}
	return all, nil
}

// because compares the inputs of an image with those of the image in the output folder.
func (c *Config) because(p *plan) ([]string, error) {
	path := c.output().file(p.roles[0], "json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{"there is no image yet"}, nil
	}
	if err != nil {
		return nil, err
	}
	var old Manifest
	if err := json.Unmarshal(data, &old); err != nil {
		return nil, fmt.Errorf("%s: %w; remove that file", path, err)
	}
	why := differences(old.Inputs, p.inputs)
	if why == nil && p.inputs.Base.Pinned == nil {
		why = []string{"no packages are pinned for it yet"}
	}
	if why == nil {
		why = []string{"it is no longer in the cache"}
	}
	return why, nil
}

// differences describes how the inputs of two images differ.
func differences(old, now distro.Inputs) []string {
	var why []string
	add := func(what, change string) {
		if change != "" {
			why = append(why, what+": "+change)
		}
	}
	changed := func(what string, differs bool) {
		if differs {
			why = append(why, what+" has changed")
		}
	}
	changed("the base disk", old.Base.SHA256 != now.Base.SHA256)
	add("archives", packages.ListChange(old.Base.Sources, now.Base.Sources))
	add("base packages", packages.ListChange(old.Base.Packages, now.Base.Packages))
	changed("imagegen's script for the base", old.Base.Script != now.Base.Script || old.Base.Distro != now.Base.Distro)
	changed("imagegen's script for images", old.Install != now.Install)
	changed("the agent", old.Agent != now.Agent)
	changed("the agent's units", !slices.Equal(old.Units, now.Units))
	if old.DiskBytes != now.DiskBytes {
		add("disk", fmt.Sprintf("%v instead of %v", cluster.Bytes(now.DiskBytes), cluster.Bytes(old.DiskBytes)))
	}
	add("package list", packages.ListChange(old.Packages, now.Packages))
	if now.Base.Pinned != nil {
		add("pinned packages of the base", packages.Change(old.Base.Pinned, now.Base.Pinned))
	}
	if now.Pinned != nil {
		add("pinned packages", packages.Change(old.Pinned, now.Pinned))
	}
	local := func(all []distro.LocalPackage) (names []string) {
		for _, l := range all {
			names = append(names, l.Name+" "+l.SHA256[:12])
		}
		return names
	}
	add("package files", packages.ListChange(local(old.Local), local(now.Local)))
	changed("the list of users", !equal(old.Users, now.Users))
	changed("the list of downloads", !equal(old.Downloads, now.Downloads))
	add("disabled units", packages.ListChange(old.Disable, now.Disable))
	changed("the SELinux configuration", jsonhash.Of(old.SELinux) != jsonhash.Of(now.SELinux))
	add("removed paths", packages.ListChange(old.Remove, now.Remove))
	return why
}

// equal compares slices. nil and empty are equal.
func equal[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || reflect.DeepEqual(a, b)) }

// prepare makes paths absolute, since programs run in other directories, and returns the roles to bake.
func (c *Config) prepare() ([]string, error) {
	for _, path := range []*string{&c.CacheDir, &c.OutDir, &c.Agent} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = abs
	}
	if len(c.Roles) > 0 {
		return c.Roles, nil
	}
	var names []string
	for _, r := range c.Spec.Roles {
		names = append(names, r.Name)
	}
	return names, nil
}

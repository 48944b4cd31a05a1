// Package distro implements how the images of each distribution are made: the base, the packages of every image, where packages come
// from, and the scripts that install them. To add a distribution, implement [Distro]; data about it that other packages need belongs in
// package imagegen/distro. This package does not decide what is baked or cached; package images does.
package distro

import (
	"imagegen/cluster"
	known "imagegen/distro"
	"imagegen/images/packages"
	"imagegen/internal/program"
	"imagegen/roles"
)

// Distro describes how images of a distribution are made, for one spec.
type Distro interface {
	// Tools are the programs needed to make a base, or to bake in a chroot.
	Tools() []program.Tool
	// IsDisk reports whether the base is a downloaded disk.
	IsDisk() bool
	// Base returns the inputs of the base, without pinned packages.
	Base() (Base, error)
	// Complete sets the inputs of an image that are specific to the distro.
	Complete(in *Inputs, role roles.Distro)
	// Script returns the script that a builder runs to make an image.
	Script(in Inputs) string
	// Enter returns the script that prepares the base and runs that script in it.
	Enter() string
}

// Options configure a Distro.
type Options struct {
	Spec      *cluster.Spec
	Catalogue *roles.Catalogue
	Lock      string // path of the lock, for messages
	Store     packages.Store
	Archives  string // folder in the cache for package lists
	Offline   bool   // use only what is in the cache
	Jobs      int    // packages processed in parallel
	Step      func(what string)
	Note      func(text string)
}

// all holds the implementations by distribution name.
var all = map[string]func(Options) Distro{
	"centos7":  newEL,
	"debian12": newDebian,
}

// New returns the implementation for the spec's distro.
func New(o Options) Distro { return all[o.Spec.Distro](o) }

// known returns the data about the distro.
func (o Options) known() known.Distro { return known.Named(o.Spec.Distro) }

// everyTool lists the programs that all distributions need.
var everyTool = []program.Tool{{Name: "e2fsck", Package: "e2fsprogs"}, {Name: "unshare", Package: "util-linux"}, {Name: "losetup", Package: "mount"}, {Name: "mount", Package: "mount"}}

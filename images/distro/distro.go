// Package distro knows how images of each distribution are made: what a base is and what every image holds, where packages come from,
// which scripts install them. A distribution that is unlike those here is another implementation of [Distro]; what others need to know
// of it is data in the package imagegen/distro. When something is made, and what is kept, is not decided here.
package distro

import (
	"imagegen/cluster"
	known "imagegen/distro"
	"imagegen/images/packages"
	"imagegen/internal/program"
	"imagegen/roles"
)

// Distro is how images of a distribution are made, for one spec.
type Distro interface {
	// Tools are the programs that making a base, or an image in a root file system on this machine, takes.
	Tools() []program.Tool
	// IsDisk says whether bases are disks that were made elsewhere.
	IsDisk() bool
	// Base is what a base depends on, but for what is pinned.
	Base() (Base, error)
	// Complete sets what an image depends on because it is of this distro.
	Complete(in *Inputs, role roles.Distro)
	// Script is the script that makes an image, for a builder to run.
	Script(in Inputs) string
	// Enter is the script that makes the base ready, and runs that script in it.
	Enter() string
}

// Options are what images are made from, and where what that takes is kept.
type Options struct {
	Spec      *cluster.Spec
	Catalogue *roles.Catalogue
	Lock      string // path of the lock, for messages
	Store     packages.Store
	Archives  string // folder in the cache, of what archives list
	Offline   bool   // what is in the cache has to do
	Jobs      int    // packages worked on at once
	Step      func(what string)
	Note      func(text string)
}

// all are the implementations, by the names of the distributions.
var all = map[string]func(Options) Distro{
	"centos7":  newEL,
	"debian12": newDebian,
}

// New returns how images of the spec's distro are made.
func New(o Options) Distro { return all[o.Spec.Distro](o) }

// known is what everybody knows of the distro.
func (o Options) known() known.Distro { return known.Named(o.Spec.Distro) }

// everyTool are the programs that all distributions need.
var everyTool = []program.Tool{{Name: "e2fsck", Package: "e2fsprogs"}, {Name: "unshare", Package: "util-linux"}, {Name: "losetup", Package: "mount"}, {Name: "mount", Package: "mount"}}

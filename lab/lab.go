// Package lab runs a cluster on this machine, from what build made: OUTDIR/images/ROLE.raw and OUTDIR/seeds/NODE.iso.
//
// The machines are those of a provider, nspawn or qemu (package local). The lab has what belongs to the host: the network in which
// the nodes meet, its faults, the address that is forwarded to the site, and whose turn it is to change something.
//
// Everything that runs is kept where the kernel cleans up: in namespaces that go with their last process, in loop devices that
// detach themselves, and in cgroups, so that what runs is read from the kernel and never remembered in a file. Three things stay
// until Down: the network namespace imagegen-CLUSTER, the folder of cgroups of the same name, and a file in /run/imagegen with
// the inode of the folder that the cluster is run from. The folder may be moved.
package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/secrets"
	"imagegen/machines/local"
)

const (
	// DefaultSite is the address that is forwarded to the site, unless Up gets another.
	DefaultSite = "127.0.0.1:8080"
	// DefaultProvider is the provider of the machines, unless Up gets another.
	DefaultProvider = "nspawn"
)

// UpOptions are the options of Up.
type UpOptions struct {
	Site     string // address on this machine that is forwarded to the site; empty: as before, or else DefaultSite
	Provider string // name of the provider; empty: as before, or else DefaultProvider
}

// Config is what a lab is made of.
type Config struct {
	Spec      *cluster.Spec
	Secrets   *secrets.Secrets
	Providers map[string]Provider
	Dir       string // output folder of build; the lab keeps its state below it, in lab
	// Seed makes the seed that the spec gives a node. A node is turned on with no other.
	Seed func(cluster.Node) (cloudinit.Seed, error)
	Log  func(format string, args ...any)
}

// Provider makes a provider of machines on this computer.
type Provider func(local.Config) *local.Provider

// paths returns where the lab's files are.
type paths struct{ out string }

func (p paths) lab() string        { return filepath.Join(p.out, "lab") }
func (p paths) site() string       { return filepath.Join(p.lab(), "site") }
func (p paths) provider() string   { return filepath.Join(p.lab(), "provider") }
func (p paths) forwardLog() string { return filepath.Join(p.lab(), "forward.log") }

// Removed returns the sorted names of the nodes that the lab in an output folder has and the spec no longer has; none if we are not
// root and so may not look.
func Removed(spec *cluster.Spec, dir string) []string {
	return slices.DeleteFunc(local.Nodes(paths{dir}.lab()), func(name string) bool {
		_, ok := spec.Node(name)
		return ok
	})
}

// Here tells whether the cluster's nodes run, or have run, in the lab on this machine from this output folder.
func Here(spec *cluster.Spec, dir string) bool {
	if _, err := os.Stat(paths{dir}.lab()); !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	return leftBehind(spec, dir)
}

// Package lab runs a cluster on this machine, from what build made: OUTDIR/images/ROLE.raw and OUTDIR/seeds/NODE.iso.
//
// A provider makes a node run: in a system container (systemd-nspawn), which is as much of a machine as a container can
// be, or as a virtual machine (QEMU). Either way it has the image, read-only, with the node's own changes laid over it, a
// data disk, a network card, a console. Killing it is a power cut: all its processes end at once. Its disks survive
// that, until Down.
//
// Everything that runs is kept where the kernel itself cleans up. A node's mounts and network card are in namespaces of
// its own, and go with its last process; loop devices clear themselves; and every process is in a cgroup of the
// cluster's, so that what is running is asked of the kernel and never remembered in a file. Only three things stay
// until Down: the network namespace in which the nodes meet (imagegen-CLUSTER), the folder of cgroups of the same name,
// and a file in /run/imagegen that says which folder the cluster is run from, by its inode: a folder may be moved.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/secrets"
)

// DefaultSite is where Up forwards the site to when it is not told.
const DefaultSite = "127.0.0.1:8080"

// Names of providers.
const (
	Nspawn = "nspawn" // system containers
	Qemu   = "qemu"   // virtual machines
)

// UpOptions is what Up may be told.
type UpOptions struct {
	Site     string // address on this machine that is forwarded to the site; empty: as before, or else DefaultSite
	Provider string // name of the provider; empty: as before, or else Nspawn
}

// Config is what a lab is made of.
type Config struct {
	Spec    *cluster.Spec
	Secrets *secrets.Secrets
	Dir     string // output folder of build; the lab keeps its state below it, in lab
	// Seed makes the seed that the spec gives a node. A node is turned on with no other.
	Seed func(cluster.Node) (cloudinit.Seed, error)
	Log  func(format string, args ...any)
}

// paths of the files that the lab reads and keeps.
type paths struct{ out string }

func (p paths) image(role string) string    { return filepath.Join(p.out, "images", role+".raw") }
func (p paths) seed(node string) string     { return filepath.Join(p.out, "seeds", node+".iso") }
func (p paths) lab() string                 { return filepath.Join(p.out, "lab") }
func (p paths) site() string                { return filepath.Join(p.lab(), "site") }
func (p paths) provider() string            { return filepath.Join(p.lab(), "provider") }
func (p paths) forwardLog() string          { return filepath.Join(p.lab(), "forward.log") }
func (p paths) node(node string) string     { return filepath.Join(p.lab(), "nodes", node) }
func (p paths) in(node, name string) string { return filepath.Join(p.node(node), name) }
func (p paths) console(node string) string  { return p.in(node, "console.log") }

// Removed returns the names of the nodes that the lab in an output folder has and the spec no longer has, sorted. There
// are none where nobody but root may look and we are not.
func Removed(spec *cluster.Spec, dir string) []string {
	var names []string
	folders, _ := os.ReadDir(filepath.Dir(paths{dir}.node("x"))) // sorted; no folder: no nodes
	for _, f := range folders {
		if _, ok := spec.Node(f.Name()); !ok && f.IsDir() {
			names = append(names, f.Name())
		}
	}
	return names
}

// Here tells whether the cluster's nodes run, or have run, in the lab on this machine from this output folder.
func Here(spec *cluster.Spec, dir string) bool {
	if _, err := os.Stat(paths{dir}.lab()); !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	return leftBehind(spec, dir)
}

// followEvery is how often a console that is followed is looked at.
const followEvery = 200 * time.Millisecond

// copyConsole writes a node's console so far to w and, when follow is set, what comes, until ctx ends.
func copyConsole(ctx context.Context, w io.Writer, p paths, node string, follow bool) error {
	f, err := os.Open(p.console(node))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s has no console log: it has not been turned on since the cluster is up", node)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := io.Copy(w, f); err != nil {
			return fmt.Errorf("console of %s: %w", node, err)
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// Package machines makes the machines that nodes run on: containers, virtual machines, or whatever a user's own program drives.
//
// A [Provider] knows images, seeds and disks. It does not know what runs on a machine, or when it is safe to stop one: that is
// package operate. A machine's seed holds secrets, so a provider never puts its content into arguments, logs or configuration
// that others may read.
package machines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Machine is what one node's machine is to be.
type Machine struct {
	Cluster   string // name
	ClusterID string // UUID: marks what belongs to this cluster
	Node      string
	Role      string
	Host      string // computer it is placed on; empty where the provider has only one
	CPUs      int
	Memory    int64 // bytes
	Data      int64 // size of the data disk in bytes; 0: none
	MAC       string
	IP        string
	Image     File // raw disk, shared by all nodes of the role
	Seed      File // ISO, this node's own; secret
	// Privileged: as a container, the node needs its host's root (role.yaml says why). Without meaning for virtual machines.
	Privileged bool
}

// File is a file that build has made.
type File struct {
	Path     string
	Identity string // changes with the content
}

// Power is whether a machine is on.
type Power string

// The states of power. A machine that is [Unfinished] was being made or removed when something died; Create or Remove finishes it.
const (
	On         Power = "on"
	Off        Power = "off"
	Unfinished Power = "unfinished"
	// Unknown is that of a machine whose host does not answer.
	Unknown Power = "unknown"
)

// State is what a provider knows of a machine.
type State struct {
	Node  string    `json:"node"`
	Host  string    `json:"host,omitempty"`
	Power Power     `json:"power"`
	Since time.Time `json:"since,omitzero"` // when it was last started or stopped; zero: not known
	// Identities of the image and seed that it was made from; empty: not known.
	Image string `json:"image,omitempty"`
	Seed  string `json:"seed,omitempty"`
}

// Provider makes machines of one cluster. Every method may be interrupted at any point, by its context or by the death of the
// process, and called again: it then finishes what was begun. None touches a machine, disk or volume that does not carry the
// cluster's mark, whatever its name ([ErrForeign]). Methods may be called at the same time for nodes that are placed on different
// hosts.
type Provider interface {
	// Check fails when this computer lacks something, or a host cannot be reached. It changes nothing.
	Check(ctx context.Context) error
	// List returns the cluster's machines in the order of their nodes' names, including unfinished ones and those of nodes that
	// are no longer in the spec. Data disks without a machine are not listed.
	List(ctx context.Context) ([]State, error)
	// Create makes a machine, off: a new root disk from m's image, m's seed, and the data disk that the node has already, or
	// else an empty one. A finished machine of the node is left as it is, also when it was made from another image or seed.
	Create(ctx context.Context, m Machine) error
	// Start turns a machine on. It does nothing for one that is on.
	Start(ctx context.Context, node string) error
	// Stop cuts the power. It does nothing for a machine that is off or not there.
	Stop(ctx context.Context, node string) error
	// Remove removes a machine, on or off, and its data disk only if data is set. It does nothing for a machine that is not
	// there; with data it then still removes the data disk.
	Remove(ctx context.Context, node string, data bool) error
	// Console writes what the machine has printed to w: until now or, when follow is set, until ctx ends.
	Console(ctx context.Context, w io.Writer, node string, follow bool) error
	// Purge removes what the cluster's machines shared (images, networks) once all of them are removed.
	Purge(ctx context.Context) error
}

// ErrNoConsole is returned by Console where a provider has none.
var ErrNoConsole = errors.New("this provider has no consoles")

// ErrForeign is wrapped by errors about something of the right name that carries another cluster's mark or none.
var ErrForeign = errors.New("does not belong to this cluster")

// Foreign returns an [ErrForeign] about a thing, such as `instance web1`.
func Foreign(thing string) error {
	return fmt.Errorf("%s %w: it was not made by this cluster's imagegen", thing, ErrForeign)
}

// Replace puts a new machine in the place of a node's old one and turns it on. The data disk is kept, unless blank is set.
// After an interruption, Replace or Create and Start finish it.
func Replace(ctx context.Context, p Provider, m Machine, blank bool) error {
	if err := p.Remove(ctx, m.Node, blank); err != nil {
		return fmt.Errorf("replace %s: remove the old machine: %w", m.Node, err)
	}
	if err := p.Create(ctx, m); err != nil {
		return fmt.Errorf("replace %s: make the new machine: %w", m.Node, err)
	}
	if err := p.Start(ctx, m.Node); err != nil {
		return fmt.Errorf("replace %s: start the new machine: %w", m.Node, err)
	}
	return nil
}

// RemoveAll removes all of the cluster's machines with their data disks, those of the named nodes also where only a data disk is
// left, and then what they shared. What is foreign stays.
func RemoveAll(ctx context.Context, p Provider, nodes []string) error {
	have, err := p.List(ctx)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, n := range nodes {
		names[n] = true
	}
	for _, s := range have {
		names[s.Node] = true
	}
	var errs []error
	for n := range names {
		if err := p.Remove(ctx, n, true); err != nil && !errors.Is(err, ErrForeign) {
			errs = append(errs, fmt.Errorf("remove %s: %w", n, err))
		}
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	return p.Purge(ctx)
}

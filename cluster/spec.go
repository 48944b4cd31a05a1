// Package cluster reads and checks the spec, cluster.yaml, and fills in its defaults.
//
// It knows neither what roles install nor how nodes are made: the rules of the roles are data ([Rules]), provided by
// package roles.
package cluster

import (
	"net/netip"
	"slices"
)

// Spec is a validated cluster.yaml: all defaults are filled in, and all references resolve.
type Spec struct {
	File     string // path it was read from; relative paths in the spec are relative to its folder
	Cluster  string // name: a DNS label of at most 32 characters
	Distro   string // one of distro.Names()
	Timezone string // name in the IANA database, such as Europe/Moscow
	Network  Network
	SQL      string // how the backend reaches the database: "proxysql" or "balancer"
	Site     Site
	SSH      SSH
	// Mirror is the archive that images are baked from, in the format of the distro's package manager; empty means the
	// build host's own configuration (debian12) or the roles' URLs (centos7).
	Mirror string
	Base   *Base  // nil: the distro's own
	Repos  []Repo // in the spec's order; centos7
	// Downloads overrides addresses of the roles' downloads.
	Downloads []Download
	SELinux   string // centos7: "permissive" or "enforcing"
	Machines  Machines
	// Operators are networks that may reach the nodes' agents, in addition to the cluster's own.
	Operators []netip.Prefix
	Roles     []Role // in the spec's order
}

// Network is the one network that all nodes share.
type Network struct {
	CIDR    netip.Prefix
	Gateway netip.Addr   // zero: none on this network (VirtualBox has the default route on another NIC)
	DNS     []netip.Addr // resolvers; may be empty
}

// Site describes the site that is installed at the first boot.
type Site struct {
	Title      string
	AdminUser  string
	AdminEmail string
	// URL is the site's address without a trailing slash. Empty means that the site answers under any host name.
	URL string
	TLS *TLS // nil: plain HTTP
}

// SSH says who may log in to the nodes; without keys, nobody can.
type SSH struct {
	User string
	Keys []string // public keys in authorized_keys format
}

// Role is one role of the cluster and its nodes.
type Role struct {
	Name       string
	VIP        netip.Addr // zero: none
	VRRPID     int        // 1 to 255 where VIP is set
	CPUs       int
	Memory     Bytes
	Disk       Bytes    // size of the root disk
	Data       Bytes    // size of the data disk; 0: none
	Privileged string   // reason why root in a system container of the role must be root on the host; empty: not needed
	Packages   []string // in addition to the role's own; names, or paths of .deb or .rpm files

	packagesAt []Problem         // positions of Packages
	Options    map[string]string // every option the role declares, defaults filled in
	Nodes      []Node            // in the spec's order
}

// Node is a member of the cluster.
type Node struct {
	Name  string
	Role  string
	IP    netip.Addr
	MAC   string // lower case, colons; derived from cluster and node name unless the spec says otherwise
	Index int    // position in its role, from 0; "lowest node" means lowest Index
}

// Bytes is a size in bytes, written in the spec with a binary unit (512MiB, 10GiB).
type Bytes int64

// Role returns the named role, or nil.
func (s *Spec) Role(name string) *Role {
	for i := range s.Roles {
		if s.Roles[i].Name == name {
			return &s.Roles[i]
		}
	}
	return nil
}

// Nodes returns all nodes in the spec's order.
func (s *Spec) Nodes() []Node {
	var all []Node
	for _, r := range s.Roles {
		all = append(all, r.Nodes...)
	}
	return all
}

// Node returns the named node, and whether it exists.
func (s *Spec) Node(name string) (Node, bool) {
	for _, r := range s.Roles {
		for _, n := range r.Nodes {
			if n.Name == name {
				return n, true
			}
		}
	}
	return Node{}, false
}

// PackageFault returns a problem at the position of a package that the spec adds to the role, or false if the spec does
// not add it.
func (r *Role) PackageFault(name, msg string) (Problem, bool) {
	i := slices.Index(r.Packages, name)
	if i < 0 || i >= len(r.packagesAt) {
		return Problem{}, false
	}
	at := r.packagesAt[i]
	at.Msg = msg
	return at, true
}

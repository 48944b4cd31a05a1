// Package roles is the catalogue of roles: what each role installs (role.yaml), and the templates of its nodes'
// configuration. Roles are data; a folder beside the spec adds roles or replaces built-in ones without changing any Go.
//
// Configuration is rendered on the build host into the seed, where it can be read, diffed and checked before anything
// boots. This package does not install packages (images does) and makes no decisions at run time (agent does).
package roles

import (
	"text/template"

	"imagegen/cluster"
	"imagegen/cluster/facts"
)

// Role is a role.yaml. Strings marked T are text/template templates; see Data for what they can use.
type Role struct {
	Name        string `yaml:"-"` // the folder's name
	Description string `yaml:"description"`

	Quorum   bool                      `yaml:"quorum,omitempty"` // odd number of nodes, three or more
	VIP      cluster.VIPRule           `yaml:"vip,omitempty"`
	VRRPID   int                       `yaml:"vrrp_id,omitempty"`
	CPUs     int                       `yaml:"cpus,omitempty"`
	Memory   string                    `yaml:"memory,omitempty"`
	Disk     string                    `yaml:"disk,omitempty"`
	Data     string                    `yaml:"data,omitempty"` // default size of the data disk; empty: none
	MinNodes int                       `yaml:"min_nodes,omitempty"`
	MaxNodes int                       `yaml:"max_nodes,omitempty"`
	Needs    []string                  `yaml:"needs,omitempty"` // roles without which this one cannot work
	Options  map[string]cluster.Option `yaml:"options,omitempty"`
	Secrets  []string                  `yaml:"secrets,omitempty"` // names of the generated passwords that its files or agent use
	TLS      bool                      `yaml:"tls,omitempty"`     // serves the site over HTTPS; its files may hold the site's certificate and key
	Ports    []Port                    `yaml:"ports,omitempty"`

	Container Container `yaml:"container,omitempty"`

	// The rest may differ between distros. Bake inputs are only under distros, so that nothing else rebakes images.
	Distros    map[string]Distro `yaml:"distros"`
	Sysctl     map[string]string `yaml:"sysctl,omitempty"`
	Files      []File            `yaml:"files,omitempty"`
	Components []Component       `yaml:"components,omitempty"`

	file      string              // path of role.yaml, for messages
	packages  map[string]position // positions of package names, by path in role.yaml
	templates *template.Template  // every template of the role, by the names in load.go
}

// Container lists requirements for system containers of the role's nodes. Virtual machines always meet them.
type Container struct {
	// Privileged is the reason why root in the container must be root on the host; empty if not needed.
	Privileged string `yaml:"privileged,omitempty"`
}

// Port is a port that the node listens on, and who may reach it.
type Port struct {
	Port  string   `yaml:"port"`            // "80" or "49152-49160"; for protocol vrrp: empty
	Proto string   `yaml:"proto,omitempty"` // tcp (default), udp or vrrp
	From  []string `yaml:"from"`            // role names, "cluster" (all nodes), "network" or "any"; a role that is not in the spec counts as having no nodes
	// Otherwise, if set, is the source of packets if no other role in From is in the spec: for example, a Redis for
	// clients on the network.
	Otherwise string `yaml:"otherwise,omitempty"` // "network" or "any"
	Why       string `yaml:"why"`
}

// Distro is the content of a role's image on one distro. With the base and the agent, these are all of its bake inputs.
type Distro struct {
	Packages  []string          `yaml:"packages"`
	Minimum   map[string]string `yaml:"minimum,omitempty"` // minimum versions of packages; centos7
	Exclude   []string          `yaml:"exclude,omitempty"` // packages that must not come from the extra repositories
	Repos     []Repo            `yaml:"repos,omitempty"`
	Users     []User            `yaml:"users,omitempty"` // created before packages are installed
	Downloads []Download        `yaml:"downloads,omitempty"`
	Disable   []string          `yaml:"disable,omitempty"` // units that packages enable and the agent starts instead
	Remove    []string          `yaml:"remove,omitempty"`  // paths (globs) to remove after packages are installed
	SELinux   SELinux           `yaml:"selinux,omitempty"` // centos7
	Vars      map[string]string `yaml:"vars,omitempty"`    // paths and names for templates; not a bake input
}

// SELinux is what a role's daemons need in SELinux's policy. It is set in every image, in permissive and in enforcing
// mode.
type SELinux struct {
	Booleans   []string      `yaml:"booleans,omitempty" json:"booleans,omitempty"` // to switch on
	Ports      []SELinuxPort `yaml:"ports,omitempty" json:"ports,omitempty"`
	Permissive []string      `yaml:"permissive,omitempty" json:"permissive,omitempty"` // domains that are permissive even in enforcing mode
}

// SELinuxPort adds a port to an SELinux port type.
type SELinuxPort struct {
	Type  string `yaml:"type" json:"type"`
	Port  string `yaml:"port" json:"port"`
	Proto string `yaml:"proto,omitempty" json:"proto"` // tcp (default) or udp
}

// Repo is a package repository in addition to the distro's own.
type Repo struct {
	Name    string   `yaml:"name"`
	URLs    []string `yaml:"urls"` // tried in order
	Keys    []string `yaml:"keys"` // URLs or file: paths in the image
	Exclude []string `yaml:"exclude,omitempty"`
	// Priority as in yum-plugin-priorities: lower wins; 0: the default.
	Priority int `yaml:"priority,omitempty"`
}

// User is a system user with fixed ids, so that file owners on shared volumes are the same everywhere.
type User struct {
	Name  string `yaml:"name"`
	UID   int    `yaml:"uid"`
	Group string `yaml:"group,omitempty"` // default: Name
	GID   int    `yaml:"gid"`
}

// Download is a file outside any package that is put into the image.
type Download struct {
	Name   string `yaml:"name,omitempty"` // by which the spec may override the address
	URL    string `yaml:"url"`
	SHA256 string `yaml:"sha256"`
	Path   string `yaml:"path"`
	Unpack bool   `yaml:"unpack,omitempty" json:",omitempty"` // a .tar.gz: what is below its one folder becomes the folder Path
}

// File is a configuration file rendered into the seed.
type File struct {
	Path     string   `yaml:"path"`              // T
	Template string   `yaml:"template"`          // a file in the role's folder, or common/NAME for one that several roles share
	Mode     string   `yaml:"mode,omitempty"`    // octal; default 0644
	Owner    string   `yaml:"owner,omitempty"`   // T, user:group; default root:root
	Distros  []string `yaml:"distros,omitempty"` // default: all
	When     string   `yaml:"when,omitempty"`    // T; if it renders to "" or "false", the file is left out
	Check    string   `yaml:"check,omitempty"`   // the program that can check the file, one of Checks
	// Change says how a running node takes over a newer version of the file: "none", "reload UNIT" or "restart UNIT", the
	// unit being one that a component runs. Without it, the node is replaced. T
	Change string `yaml:"change,omitempty"`
	Fixed  string `yaml:"fixed,omitempty"` // T; if it renders to another text than before, the node is replaced
}

// Component is a component of the agent, see facts.Component. Strings in Params are T.
type Component struct {
	Name    string         `yaml:"name"`
	Kind    string         `yaml:"kind"`
	After   []string       `yaml:"after,omitempty"`
	Distros []string       `yaml:"distros,omitempty"`
	When    string         `yaml:"when,omitempty"`
	Params  map[string]any `yaml:"params,omitempty"`
}

// Rendered is everything node-specific about one node.
type Rendered struct {
	Files []RenderedFile // sorted by path, including facts, secrets and keys
	Facts facts.Facts
}

// RenderedFile is a file as it will be on the node.
type RenderedFile struct {
	Path    string
	Mode    uint32
	Owner   string // user:group
	Content []byte
	Secret  bool   // contains a secret: mask it in output
	Check   string // as in File
	Change  string // rendered
	Fixed   string // rendered
}

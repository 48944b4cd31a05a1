package cluster

// Rules are what the spec's checks must know about a role. Package roles derives them from role.yaml.
type Rules struct {
	Name string
	// Quorum roles decide by majority: they need an odd number of nodes, three or more.
	Quorum bool
	VIP    VIPRule
	VRRPID int // default; 0: none
	// Needs lists the roles that this role cannot work without; a node of each must be in the spec.
	Needs []string
	// Distros are the distributions that the role can be baked for.
	Distros []string
	// Repos and Downloads are the names of the role's repositories and downloads, by distro.
	Downloads map[string][]string
	Repos     map[string][]string
	Users     map[string][]string // users and groups that the role creates, by distro
	// Privileged is the reason why root in a system container of the role must be root on the host; empty if not
	// needed.
	Privileged string
	CPUs       int
	Memory     Bytes
	Disk       Bytes
	Data       Bytes // default size; 0: the role has no data disk and the spec may not give it one
	MinNodes   int   // at least 1
	MaxNodes   int   // 0: no limit
	TLS        bool  // the role serves the site over HTTPS if the spec has site.tls
	Options    map[string]Option
}

// VIPRule says whether a role may have a virtual address.
type VIPRule string

// The values of VIPRule.
const (
	VIPNone     VIPRule = "none"
	VIPRequired VIPRule = "required"
	VIPOptional VIPRule = "optional"
)

// Option is a setting of a role that the spec may override.
type Option struct {
	Default string   `yaml:"default"`
	Help    string   `yaml:"help"`
	OneOf   []string `yaml:"one_of,omitempty"`  // allowed values; if empty, Pattern applies
	Pattern string   `yaml:"pattern,omitempty"` // anchored regular expression; empty: anything on one line
}

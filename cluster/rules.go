package cluster

// Rules is what the spec's checks must know about a role. Package roles makes it from role.yaml.
type Rules struct {
	Name string
	// Quorum roles decide by majority: their nodes must be an odd number, three or more.
	Quorum bool
	VIP    VIPRule
	VRRPID int // default; 0: none
	// Needs lists the roles that this role cannot work without; a node of each must be in the spec.
	Needs []string
	// Distros are the distributions that the role can be baked for.
	Distros []string
	// Repos and Downloads name the repositories that the role's packages come from, and its downloads, by distro.
	Downloads map[string][]string
	Repos     map[string][]string
	Users     map[string][]string // users and groups that the role makes, by distro
	// Privileged says why a system container of the role must share its host's root; empty: it need not.
	Privileged string
	CPUs       int
	Memory     Bytes
	Disk       Bytes
	Data       Bytes // default size; 0: the role has no data disk and the spec may not give it one
	MinNodes   int   // at least 1
	MaxNodes   int   // 0: no limit
	Options    map[string]Option
}

// VIPRule says whether a role has a virtual address.
type VIPRule string

// The values of VIPRule.
const (
	VIPNone     VIPRule = "none"
	VIPRequired VIPRule = "required"
	VIPOptional VIPRule = "optional"
)

// Option is a setting of a role that the spec may change.
type Option struct {
	Default string   `yaml:"default"`
	Help    string   `yaml:"help"`
	OneOf   []string `yaml:"one_of,omitempty"`  // permitted values; empty: Pattern decides
	Pattern string   `yaml:"pattern,omitempty"` // anchored regular expression; empty: anything on one line
}

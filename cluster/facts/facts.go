// Package facts is the contract between seed and agent, and between agents: what a node is told about itself and its
// peers, and what it reports. The agent links it, so it uses no YAML, no time zone data and nothing of the spec.
package facts

import (
	"encoding/json"
	"fmt"

	"imagegen/internal/words"
)

// Paths on a node that a seed writes and the agent reads.
const (
	FactsPath   = "/etc/imagegen/node.json"    // Facts, JSON, mode 0644
	SecretsPath = "/etc/imagegen/secrets.json" // map of secret name to value, JSON, mode 0600
	PKIDir      = "/etc/imagegen/pki"          // ca.crt, node.crt, node.key (0600), PEM
	StateDir    = "/var/lib/imagegen"          // the agent's own state, on the root disk
	SeedDir     = StateDir + "/seed"           // the node's copy of its seed (see package nocloud)
	AgentPath   = "/usr/local/sbin/imagegen-node"
	AgentUnit   = "imagegen-node.service"
)

// Ports of the agent on every node.
const (
	APIPort    = 7373 // HTTPS with mutual TLS, for peers and the operator
	HealthPort = 7374 // plain HTTP, read-only: GET /COMPONENT answers 200 (ready) or 503
)

// Names of the components that load the node's packet filter. If a distro has one filter for IPv4 and IPv6, only the
// first exists. Every other component waits for them, whatever its After says.
const (
	Firewall  = "firewall"
	Firewall6 = "firewall6"
)

// FactsVersion increases when an older agent could misread newer facts. An agent also reads the version before.
const (
	FactsVersion  = 2
	factsVersion1 = 1 // without Files and Sysctl: a node with such a seed is only ever replaced
)

// Facts is everything that the agent knows about its node from the seed. It contains no secrets.
type Facts struct {
	Version    int         `json:"version"`
	Cluster    string      `json:"cluster"`
	ClusterID  string      `json:"cluster_id"` // UUID, created with the secrets; distinguishes clusters of the same name
	Distro     string      `json:"distro"`
	Node       Peer        `json:"node"`
	Peers      []Peer      `json:"peers"` // the other nodes of PeerRoles, in the spec's order
	Components []Component `json:"components"`
	// Files are the other files of the seed, sorted by path.
	Files []File `json:"files,omitempty"`
	// Sysctl names the kernel parameters that the seed sets, sorted: one that is no longer set keeps its value until the node
	// is replaced.
	Sysctl []string `json:"sysctl,omitempty"`
}

// Peer is a node as other nodes see it.
type Peer struct {
	Name  string `json:"name"`
	Role  string `json:"role"`
	IP    string `json:"ip"`
	Index int    `json:"index"` // position in its role; where one node must act, it is the lowest
}

// Component is something that the agent brings to ready.
type Component struct {
	Name string `json:"name"` // unique on the node; also its path on the health port
	Kind string `json:"kind"` // key of ParamsFor
	// After lists components of this node that must be ready before this one acts.
	After  []string        `json:"after,omitempty"`
	Params json.RawMessage `json:"params"`
}

// PeerRoles returns the roles whose nodes' reports the components of a node of role own need. Facts list only these
// peers, and the agent asks only them: asking all nodes would cost the square of the cluster's size.
func PeerRoles(own string, components []Component) (map[string]bool, error) {
	roles := map[string]bool{}
	for _, c := range components {
		params, err := DecodeParams(c.Kind, c.Params)
		if err != nil {
			return nil, fmt.Errorf("component %s: %w", words.Quote(c.Name), err)
		}
		switch p := params.(type) {
		case *MountParams:
			roles[p.Role] = true
		case *GaleraParams, *GlusterParams, *RedisParams, *SentinelParams, *SiteParams:
			roles[own] = true
		}
	}
	return roles, nil
}

// ServiceParams run a systemd unit whose configuration needs no decisions (nginx, haproxy, php-fpm, …).
type ServiceParams struct {
	Unit  string `json:"unit"`
	Check *Check `json:"check,omitempty"` // beyond the unit being active; nil: active is enough
	// Alive is a check that the unit passes however busy it is, so it hangs if there is no answer for seconds; nil: there is none.
	Alive *Check `json:"alive,omitempty"`
	// Statistics is the URL of an HAProxy's statistics as CSV; empty: it is not one, or nobody needs to know where it sends what arrives.
	Statistics string `json:"statistics,omitempty"`
	// TrackFile is a file for keepalived's track_file: it has 0 while the service does its work, and 1 once it has not twice in a row; empty: none.
	TrackFile string `json:"track_file,omitempty"`
	// Gate is a component of this node. The unit starts only after that component has observed, and is stopped while that
	// component is stopped; empty: none.
	Gate string `json:"gate,omitempty"`
}

// Check tells whether a service works. Exactly one field is set.
type Check struct {
	TCP     string   `json:"tcp,omitempty"`     // host:port that accepts a connection
	HTTP    string   `json:"http,omitempty"`    // URL that answers with a status below 500
	FastCGI string   `json:"fastcgi,omitempty"` // host:port of PHP-FPM that answers at its ping.path, /ping
	Exec    []string `json:"exec,omitempty"`    // command that exits 0
}

// DiskParams prepare the node's data disk: find it, format it if it is blank, mark it as this cluster's, mount it.
type DiskParams struct {
	Mount      string `json:"mount"`      // such as /data
	Filesystem string `json:"filesystem"` // ext4 or xfs
	Dirs       []Dir  `json:"dirs,omitempty"`
}

// Dir is a folder on the data disk.
type Dir struct {
	Path  string `json:"path"`           // absolute, below the mount point
	Owner string `json:"owner"`          // user:group
	Mode  string `json:"mode"`           // octal, such as 0750
	Bind  string `json:"bind,omitempty"` // a second path (a bind mount), such as /var/lib/mysql
}

// GlusterParams run a GlusterFS server and, with its peers, one replicated volume.
type GlusterParams struct {
	Unit    string            `json:"unit"`
	WorkDir string            `json:"work_dir"` // glusterd's own state, /var/lib/glusterd
	Volume  string            `json:"volume"`
	Brick   string            `json:"brick"` // on the data disk
	Options map[string]string `json:"options,omitempty"`
	UID     int               `json:"uid"` // owner of the volume's root
	GID     int               `json:"gid"`
}

// MountParams mount the GlusterFS volume through a systemd mount unit once its servers report that it is started.
type MountParams struct {
	Unit string `json:"unit"` // such as mnt-gluster.mount; its file is rendered into the seed
	Path string `json:"path"`
	Role string `json:"role"` // the role whose nodes serve the volume
}

// RedisParams run a Redis server as master or replica, as decided by the peers and Sentinel.
type RedisParams struct {
	Unit   string `json:"unit"`
	Port   int    `json:"port"`
	TLS    bool   `json:"tls,omitempty"` // with the node's certificate, on Port; no plain-text port then
	Dir    string `json:"dir"`           // its data, on the data disk
	Config string `json:"config"`        // rendered; the agent copies it to RunConfig and adds the replication role
	// RunConfig is the file that the unit starts Redis with; Redis may rewrite it.
	RunConfig string `json:"run_config"`
	Owner     string `json:"owner"`  // user:group of RunConfig
	Secret    string `json:"secret"` // name of the password
}

// SentinelParams run a Sentinel next to a Redis.
type SentinelParams struct {
	Unit      string `json:"unit"`
	Port      int    `json:"port"`
	TLS       bool   `json:"tls,omitempty"` // for both Redis and Sentinel
	Config    string `json:"config"`        // rendered, without a monitored master
	RunConfig string `json:"run_config"`    // Sentinel's own state, on the data disk; never regenerated
	Owner     string `json:"owner"`
	Master    string `json:"master"` // name of the monitored master
	RedisPort int    `json:"redis_port"`
	Quorum    int    `json:"quorum"`
	// In milliseconds, see the Sentinel documentation.
	DownAfter       int    `json:"down_after"`
	FailoverTimeout int    `json:"failover_timeout"`
	ParallelSyncs   int    `json:"parallel_syncs"`
	Secret          string `json:"secret"` // name of the password of both Redis and Sentinel
}

// GaleraParams run a member of a Galera cluster (MariaDB or Percona XtraDB Cluster).
type GaleraParams struct {
	Unit      string   `json:"unit"`       // joins a running cluster when started
	Bootstrap []string `json:"bootstrap"`  // command that starts a new cluster from this node and returns
	BootUnit  string   `json:"boot_unit"`  // unit that runs mysqld after Bootstrap; often the same as Unit
	InstallDB []string `json:"install_db"` // command that initialises an empty data folder
	Recover   []string `json:"recover"`    // command that prints the recovered position, "… Recovered position: UUID:SEQNO"
	DataDir   string   `json:"data_dir"`
	Owner     string   `json:"owner"`
	Client    []string `json:"client"`   // reads SQL on standard input, as root through the local socket, prints tab-separated rows without headers
	InitSQL   string   `json:"init_sql"` // rendered; users and databases; run once per cluster, safe to repeat
}

// SiteParams install the site once, its wp-content on the volume and its tables in the database, and upgrade the database
// when the image has a newer WordPress.
type SiteParams struct {
	Core        string   `json:"core"`                   // folder of WordPress in the image; the seed's wp-config.php is in it
	Target      string   `json:"target"`                 // folder on the volume that holds wp-content
	DropIn      string   `json:"drop_in,omitempty"`      // rendered wp-content/db.php; empty: none
	ObjectCache string   `json:"object_cache,omitempty"` // rendered wp-content/object-cache.php; empty: none
	Owner       string   `json:"owner"`                  // user:group of the files
	PHP         []string `json:"php"`                    // the command-line interpreter
	Database    string   `json:"database"`               // host:port
	Title       string   `json:"title"`
	URL         string   `json:"url"`
	Timezone    string   `json:"timezone,omitempty"` // of the site; empty: UTC
	AdminUser   string   `json:"admin_user"`
	AdminEmail  string   `json:"admin_email"`
	AdminSecret string   `json:"admin_secret"` // name of the generated password
}

// ParamsFor maps each kind of component to a function that returns its empty parameters.
var ParamsFor = map[string]func() any{
	"service":  func() any { return new(ServiceParams) },
	"disk":     func() any { return new(DiskParams) },
	"gluster":  func() any { return new(GlusterParams) },
	"mount":    func() any { return new(MountParams) },
	"redis":    func() any { return new(RedisParams) },
	"sentinel": func() any { return new(SentinelParams) },
	"galera":   func() any { return new(GaleraParams) },
	"site":     func() any { return new(SiteParams) },
}

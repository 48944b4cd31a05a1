// Package distro holds what several packages need to know of each Linux distribution that images can be made of: names, package
// format, unit names, paths, sizes. A distribution is a file here, with one line that registers it in the list below, and an
// implementation in package images/distro, which knows how an image of it is made. This package is data alone: it imports nothing
// of imagegen, and does nothing.
package distro

// Distro is a distribution in one release.
type Distro struct {
	Name  string // in specs and role.yaml
	Title string // for people
	// Packages is the format of packages, and the extension of their files.
	Packages Format
	// Suites of the archive that packages are taken from: the release, its updates, its security updates; of a distro with Deb
	// packages.
	Suites   []string
	SELinux  bool
	ProxySQL bool // the distro has it, or there are packages for it
	// Firewall is what loads the packet filter's rules at boot.
	Firewall []Ruleset
	Guest    Guest
	PURL     PURL
	Space    Space
}

// Format is a format of packages.
type Format string

const (
	Deb Format = "deb" // from one archive, the spec's mirror; the base is made from it
	RPM Format = "rpm" // from repositories, the roles' and the spec's; the base is a disk that is downloaded
)

// Ruleset is a file of packet filter rules, and the unit that loads it.
type Ruleset struct {
	Syntax Syntax
	Unit   string
	Path   string
	Mode   uint32
}

// Syntax is what a ruleset is written in.
type Syntax string

const (
	NFTables  Syntax = "nft"       // as nft -f reads it: IPv4 and IPv6
	IPTables  Syntax = "iptables"  // as iptables-restore reads it: IPv4
	IP6Tables Syntax = "ip6tables" // as ip6tables-restore reads it: IPv6
)

// Guest is what programs for virtual machines call the distro.
type Guest struct {
	CIM        int    // CIM_OperatingSystem.OSType, in an OVF
	VirtualBox string // known to VirtualBox 5 already, unlike names of a release
}

// PURL has the parts of package URLs, https://github.com/package-url/purl-spec, that are the distro's.
type PURL struct {
	Type   string // with the namespace
	Distro string
}

// Space is how many bytes a bake takes at most.
type Space struct {
	Base  int64 // to make the base. One that is downloaded is there packed as well
	Image int64
	VM    int64 // for an image baked in a VM, beside Image: the VM's disks
}

// all lists the distributions, sorted by name.
var all = []*Distro{centos7, debian12}

// Default is the distribution that a new spec names.
const Default = "debian12"

// Names returns the names of all distributions, sorted.
func Names() []string {
	names := make([]string, len(all))
	for i, d := range all {
		names[i] = d.Name
	}
	return names
}

// Named returns the distribution of a name. An unknown one has no name, and nothing.
func Named(name string) Distro {
	for _, d := range all {
		if d.Name == name {
			return *d
		}
	}
	return Distro{}
}

// WithProxySQL returns the names of those that have ProxySQL.
func WithProxySQL() (names []string) {
	for _, d := range all {
		if d.ProxySQL {
			names = append(names, d.Name)
		}
	}
	return names
}

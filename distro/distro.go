// Package distro holds the data about each supported Linux distribution that several packages need: names, package format, unit
// names, paths, sizes. To add a distribution, add a file here, register it in the list below, and implement how its images are made
// in package images/distro. This package is only data: it imports nothing else of imagegen.
package distro

// Distro is one release of a distribution.
type Distro struct {
	Name  string // in specs and role.yaml
	Title string // for people
	// Packages is the package format, which is also the extension of package files.
	Packages Format
	// Suites of the archive that packages are taken from: the release, its updates, its security updates; of a distro with Deb
	// packages.
	Suites   []string
	SELinux  bool
	ProxySQL bool // packages of ProxySQL are available
	// Firewall lists the packet filter rulesets that are loaded at boot.
	Firewall []Ruleset
	Guest    Guest
	PURL     PURL
	Space    Space
}

// Format is a format of packages.
type Format string

const (
	Deb Format = "deb" // one archive, the spec's mirror; the base is made from it
	RPM Format = "rpm" // repositories of the roles and the spec; the base is a downloaded disk
)

// Ruleset is a file of packet filter rules, and the unit that loads it.
type Ruleset struct {
	Syntax Syntax
	Unit   string
	Path   string
	Mode   uint32
}

// Syntax is the language of a ruleset.
type Syntax string

const (
	NFTables  Syntax = "nft"       // as nft -f reads it: IPv4 and IPv6
	IPTables  Syntax = "iptables"  // as iptables-restore reads it: IPv4
	IP6Tables Syntax = "ip6tables" // as ip6tables-restore reads it: IPv6
)

// Guest is the distro's name in virtualization software.
type Guest struct {
	CIM        int    // CIM_OperatingSystem.OSType, in an OVF
	VirtualBox string // VirtualBox 5 must know it, so it names no release
}

// PURL holds the parts of package URLs (https://github.com/package-url/purl-spec) that depend on the distro.
type PURL struct {
	Type   string // with the namespace
	Distro string
}

// Space is the disk space that a bake needs at most, in bytes.
type Space struct {
	Base  int64 // for making the base, including the download
	Image int64
	VM    int64 // for the VM's disks, in addition to Image
}

// all lists the distributions, sorted by name.
var all = []*Distro{centos7, debian12}

// Default is the distribution of a new spec.
const Default = "debian12"

// Names returns the names of all distributions, sorted.
func Names() []string {
	names := make([]string, len(all))
	for i, d := range all {
		names[i] = d.Name
	}
	return names
}

// Named returns the distribution with a name, or the zero value.
func Named(name string) Distro {
	for _, d := range all {
		if d.Name == name {
			return *d
		}
	}
	return Distro{}
}

// WithProxySQL returns the names of the distributions that have ProxySQL.
func WithProxySQL() (names []string) {
	for _, d := range all {
		if d.ProxySQL {
			names = append(names, d.Name)
		}
	}
	return names
}

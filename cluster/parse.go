package cluster

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // time zones are checked the same way on every build host

	"gopkg.in/yaml.v3"

	"imagegen/distro"
	"imagegen/internal/words"
)

// Defaults of keys that a spec may leave out. Defaults of roles are in role.yaml.
const (
	defaultTimezone   = "UTC"
	defaultUser       = "admin"
	defaultAdminEmail = "admin@example.com"
)

// Limits of a node's sizes.
const (
	maxCPUs   = 256
	minMemory = 64 * MiB
	maxMemory = 16 * TiB
	minDisk   = GiB
	minData   = 64 * MiB
	maxData   = 1024 * TiB
	// An MBR has 32-bit numbers of 512-byte sectors. Root disks are partitioned, data disks are not.
	maxDisk = 2*TiB - MiB
)

// Load reads the spec at path and checks it against the rules of the roles, by role name. If the file is readable but
// invalid, the error is [Problems].
func Load(path string, rules map[string]Rules) (*Spec, error) {
	data, err := readLimited(path)
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("read the spec: there is no %s; imagegen init writes an example", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the spec: %w", err)
	}
	return Parse(path, data, rules)
}

// readLimited reads a file up to one byte beyond the limit for specs, so that a disk image or a device given by mistake
// is refused without being read whole.
func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, SpecLimit+1))
}

// Parse checks data as the spec in the file called name. It reports all errors in one pass, as [Problems] in the order
// of the file. Except for data, it only looks at whether the package files in the spec exist.
func Parse(name string, data []byte, rules map[string]Rules) (*Spec, error) {
	p := parser{
		reader:    reader{file: name},
		rules:     rules,
		spec:      &Spec{File: name},
		nodes:     map[string]holder{},
		addresses: map[netip.Addr]holder{},
		macs:      map[string]holder{},
		vrrpIDs:   map[int]holder{},
	}
	if root, ok := p.document(data); ok {
		p.root(root)
	}
	if len(p.problems) > 0 {
		p.problems.sort()
		return nil, p.problems
	}
	return p.spec, nil
}

// parser builds a Spec from a YAML document. Each method fills in a part and reports what is wrong with it.
type parser struct {
	reader
	rules map[string]Rules
	spec  *Spec
	// whenRead checks what can only be checked when the whole spec has been read; nil: nothing.
	whenRead func()

	// What must be unique, and where it was used.
	nodes     map[string]holder
	addresses map[netip.Addr]holder
	macs      map[string]holder
	vrrpIDs   map[int]holder
}

// holder is the user of a unique value.
type holder struct {
	who  string
	line int
}

const rolesExample = "web: {nodes: {web1: 192.168.10.42}}"

func (p *parser) root(v value) {
	get, ok := p.object(v, "cluster: otus, distro: "+distro.Default+", …",
		"cluster", "distro", "timezone", "network", "sql", "site", "ssh", "mirror", "base", "repos", "downloads", "selinux", "machines", "operators", "roles")
	if !ok {
		return
	}
	p.spec.Cluster = p.name(p.required(get("cluster"), "otus"), 32)
	p.distro(p.required(get("distro"), words.List(distro.Names(), "or")))
	p.timezone(get("timezone"))
	p.network(p.required(get("network"), "{cidr: 192.168.10.0/24}"))
	p.sql(get("sql"))
	p.site(get("site"))
	p.ssh(get("ssh"))
	p.mirror(get("mirror"))
	p.base(get("base"))
	p.repos(get("repos"))
	p.downloads(get("downloads"))
	p.selinux(get("selinux"))
	p.machines(get("machines"))
	p.operators(get("operators"))
	p.roles(p.required(get("roles"), "{"+rolesExample+"}"))
	if p.whenRead != nil {
		p.whenRead()
	}
}

// required reports that v is missing; example is a valid value.
func (p *parser) required(v value, example string) value {
	if v.missing {
		key := v.path[strings.LastIndex(v.path, ".")+1:]
		p.faultf(v, "is missing; write %s: %s", key, example)
	}
	return v
}

var label = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)

// IsLabel reports whether s is a DNS label valid for clusters and nodes: lower case, digits and dashes, starting with a
// letter.
func IsLabel(s string) bool { return label.MatchString(s) }

// name returns the name at v: a DNS label.
func (p *parser) name(v value, longest int) string {
	s, ok := p.text(v, "a name such as otus")
	if ok {
		p.label(v, s, longest)
	}
	return s
}

// label reports whether s is a DNS label valid for a host name.
func (p *parser) label(at value, s string, longest int) bool {
	switch {
	case len(s) > longest:
		p.faultf(at, "the name has %d characters; it may have %d", len(s), longest)
	case label.MatchString(s):
		return true
	case s != strings.ToLower(s) && label.MatchString(strings.ToLower(s)):
		p.faultf(at, "%s has upper-case letters; write %s", words.Quote(s), strings.ToLower(s))
	default:
		p.faultf(at, "%s is not a host name: lower-case letters, digits and hyphens, a letter first and no hyphen last", words.Quote(s))
	}
	return false
}

func (p *parser) distro(v value) {
	s, ok := p.text(v, words.List(distro.Names(), "or"))
	if !ok {
		return
	}
	if !slices.Contains(distro.Names(), s) {
		p.faultf(v, "there is no distro %s%s", words.Quote(s), words.Hint(s, "it may be", distro.Names()))
		return
	}
	p.spec.Distro = s
}

func (p *parser) timezone(v value) {
	p.spec.Timezone = defaultTimezone
	s, ok := p.text(v, "a time zone such as Europe/Moscow")
	if !ok {
		return
	}
	// Some systems' databases contain more than the usual zones, and Local is this machine's zone.
	first, _, _ := strings.Cut(s, "/")
	_, err := time.LoadLocation(s)
	if err != nil || slices.Contains([]string{"Local", "localtime", "posix", "posixrules", "right", "Factory"}, first) {
		p.faultf(v, "there is no time zone %s; write a name of the IANA database, such as Europe/Moscow or UTC", words.Quote(s))
		return
	}
	p.spec.Timezone = s
}

// defaultSQL is proxysql if the distro has it.
func defaultSQL(name string) string {
	if distro.Named(name).ProxySQL {
		return "proxysql"
	}
	return "balancer"
}

func (p *parser) sql(v value) {
	p.spec.SQL = defaultSQL(p.spec.Distro)
	ways := []string{"proxysql", "balancer"}
	s, ok := p.text(v, words.List(ways, "or"))
	if !ok {
		return
	}
	switch {
	case !slices.Contains(ways, s):
		p.faultf(v, "the backend cannot reach the database by %s%s", words.Quote(s), words.Hint(s, "it may be", ways))
	case s == "proxysql" && p.known().Name != "" && !p.known().ProxySQL:
		p.faultf(v, "%s has no ProxySQL; write balancer (HAProxy behind the data tier's VIP), or distro: %s", p.known().Title, words.List(distro.WithProxySQL(), "or"))
	default:
		p.spec.SQL = s
	}
}

var (
	adminUser = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,60}$`)
	loginName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
)

func (p *parser) site(v value) {
	p.spec.Site = Site{Title: p.spec.Cluster, AdminUser: defaultUser, AdminEmail: defaultAdminEmail}
	if v.node == nil {
		return
	}
	get, ok := p.object(v, "{title: My site}", "title", "admin_user", "admin_email", "url", "tls")
	if !ok {
		return
	}
	if s, ok := p.text(get("title"), "a title on one line"); ok {
		p.spec.Site.Title = s
	}
	if s, ok := p.text(get("admin_user"), "a user's name"); ok {
		if !adminUser.MatchString(s) {
			p.faultf(get("admin_user"), "%s is not a user's name: up to 60 letters, digits and _ . @ -", words.Quote(s))
		}
		p.spec.Site.AdminUser = s
	}
	if s, ok := p.text(get("admin_email"), "an e-mail address"); ok {
		if a, err := mail.ParseAddress(s); err != nil || a.Address != s {
			p.faultf(get("admin_email"), "%s is not an e-mail address; write one such as %s", words.Quote(s), defaultAdminEmail)
		}
		p.spec.Site.AdminEmail = s
	}
	if s, ok := p.text(get("url"), "an address such as https://www.example.com"); ok {
		p.siteURL(get("url"), s)
	}
	p.tls(get("tls"))
	p.whenRead = func() { p.tlsHosts(get("tls"), get("url")) }
}

func (p *parser) siteURL(v value, s string) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.ContainsAny(s, " '\"<>\\"):
		p.faultf(v, "%s is not a site's address; write one such as https://www.example.com", words.Quote(s))
	case u.Path == "/" && s == u.Scheme+"://"+u.Host+"/":
		p.faultf(v, "%s ends in a slash; write %s", words.Quote(s), strings.TrimSuffix(s, "/"))
	case s != u.Scheme+"://"+u.Host:
		p.faultf(v, "%s has more than scheme, host and port; write %s", words.Quote(s), u.Scheme+"://"+words.Quote(u.Host))
	default:
		p.spec.Site.URL = s
	}
}

func (p *parser) roles(v value) {
	entries, ok := p.mapping(v, rolesExample)
	if !ok {
		return
	}
	if len(entries) == 0 {
		p.faultf(v, "there is no role; write at least one, such as %s", rolesExample)
	}
	for _, e := range entries {
		p.role(e)
	}
	for _, e := range entries {
		for _, need := range p.rules[e.key].Needs {
			if !slices.ContainsFunc(entries, func(o entry) bool { return o.key == need }) {
				p.faultf(e.at, "the role needs nodes of role %s, and there are none; add the role %s", need, need)
			}
		}
	}
}

func (p *parser) role(e entry) {
	rules, known := p.rules[e.key]
	if !known {
		names := slices.Sorted(maps.Keys(p.rules))
		p.faultf(e.at, "there is no such role, neither built in nor in the folder roles beside the spec%s", words.Hint(e.key, "it may be", names))
	} else if d := p.spec.Distro; d != "" && !slices.Contains(rules.Distros, d) {
		p.faultf(e.at, "the role is not available for %s; it is for %s", d, words.List(rules.Distros, "and"))
	}
	get, ok := p.object(e.value, strings.TrimPrefix(rolesExample, "web: "),
		"vip", "vrrp_id", "cpus", "memory", "disk", "data", "packages", "options", "nodes")
	if !ok {
		return
	}
	r := Role{Name: e.key, CPUs: rules.CPUs, Memory: rules.Memory, Disk: rules.Disk, Data: rules.Data, Privileged: rules.Privileged}
	if known {
		p.vip(&r, e.at, rules, get)
		p.options(&r, get("options"), rules)
	}
	if n, ok := p.number(get("cpus"), 1, maxCPUs); ok {
		r.CPUs = n
	}
	p.size(&r.Memory, get("memory"), minMemory, maxMemory)
	p.size(&r.Disk, get("disk"), minDisk, maxDisk)
	if d := get("data"); known && d.given() && rules.Data == 0 {
		p.faultf(d, "role %s keeps nothing on a data disk; remove it", e.key)
	} else {
		p.size(&r.Data, d, minData, maxData)
	}
	p.packages(&r, get("packages"))
	nodes := p.required(get("nodes"), "{"+e.key+"1: 192.168.10.42}")
	if nodes.given() {
		p.members(&r, nodes, rules)
	}
	p.spec.Roles = append(p.spec.Roles, r)
}

func (p *parser) vip(r *Role, at value, rules Rules, get func(string) value) {
	vip, id := get("vip"), get("vrrp_id")
	if rules.VIP != VIPRequired && rules.VIP != VIPOptional {
		for _, v := range []value{vip, id} {
			if v.given() {
				p.faultf(v, "role %s has no virtual address; remove it", r.Name)
			}
		}
		return
	}
	if !vip.given() {
		switch {
		case rules.VIP == VIPRequired && vip.missing:
			p.faultf(at, "the role needs a virtual address; write vip: and an address of the network that no node has")
		case id.given():
			p.faultf(id, "is for a role with a virtual address; add vip, or remove it")
		}
		return
	}
	r.VIP = p.host(vip, "the VIP of "+r.Name)
	r.VRRPID = rules.VRRPID
	from := vip
	if id.given() {
		from = id
		r.VRRPID, _ = p.number(id, 1, 255)
	} else if r.VRRPID == 0 {
		p.faultf(vip, "a virtual address needs a VRRP id; write vrrp_id: and a number from 1 to 255")
	}
	if r.VRRPID == 0 {
		return
	}
	if h, taken := p.vrrpIDs[r.VRRPID]; taken {
		p.faultf(from, "VRRP id %d is already that of %s, line %d; write another as vrrp_id", r.VRRPID, h.who, h.line)
	}
	p.vrrpIDs[r.VRRPID] = holder{"role " + r.Name, from.line}
}

// size sets b to the size at v, if there is one.
func (p *parser) size(b *Bytes, v value, low, high Bytes) {
	s, ok := p.text(v, "a size such as 512MiB")
	if !ok {
		return
	}
	n, err := ParseBytes(s)
	switch {
	case err != nil:
		p.faultf(v, "%v", err)
	case n < low || n > high:
		p.faultf(v, "%s is out of range; it must be from %s to %s", s, low, high)
	case n%MiB != 0:
		p.faultf(v, "%s is not a whole number of MiB; write %s", s, n/MiB*MiB+MiB)
	default:
		*b = n
	}
}

func (p *parser) options(r *Role, v value, rules Rules) {
	names := slices.Sorted(maps.Keys(rules.Options))
	r.Options = make(map[string]string, len(names))
	for _, name := range names {
		r.Options[name] = rules.Options[name].Default
	}
	if !v.given() {
		return
	}
	entries, _ := p.mapping(v, "{name: value}")
	for _, e := range entries {
		o, known := rules.Options[e.key]
		if !known {
			if len(names) == 0 {
				p.faultf(e.at, "role %s has no options; remove it", r.Name)
			} else {
				p.faultf(e.at, "role %s has no such option%s", r.Name, words.Hint(e.key, "it may be", names))
			}
			continue
		}
		s, ok := p.text(e.value, "a value on one line")
		if !ok {
			continue
		}
		if len(o.OneOf) > 0 && !slices.Contains(o.OneOf, s) {
			p.faultf(e.value, "%s is not allowed%s", words.Quote(s), words.Hint(s, "it may be", o.OneOf))
			continue
		}
		if len(o.OneOf) == 0 && o.Pattern != "" {
			form, err := regexp.Compile(`^(?:` + o.Pattern + `)$`)
			if err != nil {
				p.faultf(e.value, "cannot be checked: the option's pattern in role.yaml is broken: %s", words.Quote(o.Pattern))
				continue
			}
			if !form.MatchString(s) {
				p.faultf(e.value, "%s does not fit; the option is: %s (pattern %s, such as %s)", words.Quote(s), o.Help, o.Pattern, words.Quote(o.Default))
				continue
			}
		}
		r.Options[e.key] = s
	}
}

// packageName matches what apt and yum accept as a package, with an architecture or a version.
var packageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._:~=-]*$`)

// packageFile matches names of package files that scripts in a bake can use unquoted.
var packageFile = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~^:_-]*$`)

func (p *parser) packages(r *Role, v value) {
	seen := map[string]bool{}
	for _, e := range p.list(v, "[tcpdump, ./my.deb]") {
		s, ok := p.text(e, "a package's name or file")
		if !ok {
			continue
		}
		format := strings.TrimPrefix(filepath.Ext(s), ".")
		isFile := strings.Contains(s, "/") || format == "deb" || format == "rpm"
		wants := string(p.known().Packages)
		switch {
		case seen[s]:
			p.faultf(e, "%s is in the list twice; remove one", words.Quote(s))
		case !isFile && !packageName.MatchString(s):
			p.faultf(e, "%s is not a package; write a name, such as tcpdump, or the path of a .deb or .rpm file", words.Quote(s))
		case isFile && wants != "" && format != wants:
			p.faultf(e, "%s cannot be installed on %s; a package file ends in .%s there", words.Quote(s), p.spec.Distro, wants)
		case isFile && !packageFile.MatchString(filepath.Base(s)):
			p.faultf(e, "%s cannot be a package file's name; rename it to letters, digits and .+~_- alone", words.Quote(filepath.Base(s)))
		case isFile:
			p.fileThere(e, s, "a package")
		}
		seen[s] = true
		r.Packages = append(r.Packages, s)
		r.packagesAt = append(r.packagesAt, Problem{File: p.file, Line: max(e.line, 1), Col: max(e.col, 1), Path: e.path})
	}
}

// fileThere reports an error if path, relative to the spec's folder, is not a usable file.
func (p *parser) fileThere(v value, path, what string) {
	full := path
	if !filepath.IsAbs(path) {
		full = filepath.Join(filepath.Dir(p.file), path)
	}
	switch info, err := os.Stat(full); {
	case os.IsNotExist(err):
		p.faultf(v, "there is no file %s; a path is relative to the spec's folder", words.Quote(full))
	case err != nil:
		if pe, ok := err.(*fs.PathError); ok {
			err = pe.Err
		}
		p.faultf(v, "%s cannot be read: %v", words.Quote(full), err)
	case !info.Mode().IsRegular():
		p.faultf(v, "%s is not a file; write the path of %s", words.Quote(full), what)
	}
}

func (p *parser) members(r *Role, v value, rules Rules) {
	entries, ok := p.mapping(v, "{web1: 192.168.10.42}")
	if !ok {
		return
	}
	for _, e := range entries {
		p.node(r, e)
	}
	n := len(entries)
	switch {
	case n == 0:
		p.faultf(v, "the role has no nodes; write at least one, such as %s1: 192.168.10.42, or remove the role", r.Name)
	case rules.Quorum && (n < 3 || n%2 == 0):
		p.faultf(v, "%s; role %s decides by majority and needs an odd number of 3 or more, such as %d", count(n), r.Name, max(3, n+1))
	case n < rules.MinNodes:
		p.faultf(v, "%s; role %s needs at least %d", count(n), r.Name, rules.MinNodes)
	case rules.MaxNodes > 0 && n > rules.MaxNodes:
		p.faultf(v, "%s; role %s can have %d at most", count(n), r.Name, rules.MaxNodes)
	}
}

func count(nodes int) string {
	if nodes == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", nodes)
}

// reserved names have another meaning in /etc/hosts or among the cluster's certificates.
var reserved = []string{"localhost", "ip6-localhost", "ip6-loopback", "ip6-allnodes", "ip6-allrouters", "operator"}

func (p *parser) node(r *Role, e entry) {
	if e.value.node != nil && e.value.node.Tag == "!!null" && strings.Contains(e.key, ":") {
		p.faultf(e.at, "a space is missing after the colon")
		return
	}
	h, taken := p.nodes[e.key]
	if p.label(e.at, e.key, 63) {
		switch {
		case taken:
			p.faultf(e.at, "there is already a node %s in %s, line %d; names are unique in the cluster", e.key, h.who, h.line)
		case slices.Contains(reserved, e.key):
			p.faultf(e.at, "a node cannot be named %s, which is reserved; write another name", e.key)
		case e.key == p.spec.Cluster:
			p.faultf(e.at, "a node cannot have the cluster's name; write another, such as %s1", e.key)
		default:
			p.nodes[e.key] = holder{"role " + r.Name, e.at.line}
		}
	}
	n := Node{Name: e.key, Role: r.Name, Index: len(r.Nodes)}
	ip, mac := e.value, value{}
	if e.value.node != nil && e.value.node.Kind == yaml.MappingNode {
		get, _ := p.object(e.value, "", "ip", "mac")
		ip, mac = p.required(get("ip"), "192.168.10.42"), get("mac")
	}
	n.IP = p.host(ip, e.key)
	if mac.given() || !taken { // a duplicate name would have a duplicate MAC
		n.MAC = p.mac(e, mac)
	}
	r.Nodes = append(r.Nodes, n)
}

// mac returns the node's MAC address: the one at v, or a derived one.
func (p *parser) mac(e entry, v value) string {
	const example = "02:00:c0:a8:0a:2a"
	mac := nodeMAC(p.spec.Cluster, e.key)
	at := e.at
	if v.given() {
		s, ok := p.text(v, "a MAC address such as "+example)
		if !ok {
			return ""
		}
		hw, err := net.ParseMAC(s)
		switch {
		case err != nil || len(hw) != 6:
			p.faultf(v, "%s is not a MAC address; write one such as %s", words.Quote(s), example)
			return ""
		case hw[0]&1 != 0:
			p.faultf(v, "%s is the MAC address of a group, not of a machine; write one such as %s", words.Quote(s), example)
			return ""
		case hw.String() == "00:00:00:00:00:00":
			p.faultf(v, "%s is not a machine's MAC address; write one such as %s", s, example)
			return ""
		}
		mac, at = hw.String(), v
	}
	if h, taken := p.macs[mac]; taken {
		p.faultf(at, "%s is already the MAC address of %s, line %d; write another as {ip: …, mac: …}", mac, h.who, h.line)
	}
	p.macs[mac] = holder{e.key, at.line}
	return mac
}

// nodeMAC derives a locally administered MAC address from the cluster's and the node's name.
func nodeMAC(cluster, node string) string {
	sum := sha256.Sum256([]byte(cluster + "/" + node))
	return net.HardwareAddr(append([]byte{0x02}, sum[:5]...)).String()
}

package roles

import (
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/template"
	"unicode"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/distro"
)

// Each built-in role is a folder; common holds templates that several of them use.
//
//go:embed common balancer web glusterfs backend databalancer redis percona
var builtin embed.FS

const commonDir = "common"

// Catalogue is the set of all roles.
type Catalogue struct {
	roles map[string]*Role
}

// Load returns the built-in roles, overlaid by those in dir: each folder in dir with a role.yaml is a role, and one
// with a built-in role's name replaces it completely. dir may be empty or missing. All errors in all roles are reported
// in one pass, as [cluster.Problems].
func Load(dir string) (*Catalogue, error) {
	c := &Catalogue{roles: map[string]*Role{}}
	common, err := fs.Sub(builtin, commonDir)
	if err != nil {
		return nil, err
	}
	l := loader{common: common, sources: map[string]*source{}}
	if err := l.folder(c, builtin, "roles"); err != nil {
		return nil, err
	}
	if dir != "" {
		switch info, err := os.Stat(dir); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read the roles: %w", err)
		case !info.IsDir():
			return nil, fmt.Errorf("read the roles: %s is not a folder", dir)
		default:
			root, err := os.OpenRoot(dir)
			if err != nil {
				return nil, fmt.Errorf("read the roles: %w", err)
			}
			defer root.Close() // all files are read before Load returns
			if err := l.folder(c, root.FS(), dir); err != nil {
				return nil, err
			}
		}
	}
	// Roles may refer to each other, so check references when all are known.
	for _, name := range c.Names() {
		if s := l.sources[name]; s != nil {
			s.checkNames(l.sources)
		}
	}
	var all cluster.Problems
	for _, name := range slices.Sorted(maps.Keys(l.sources)) {
		all = append(all, l.sources[name].problems...)
	}
	if len(all) > 0 {
		slices.SortStableFunc(all, func(a, b cluster.Problem) int {
			return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
		})
		return nil, all
	}
	return c, nil
}

// Role returns the named role, or nil.
func (c *Catalogue) Role(name string) *Role { return c.roles[name] }

// Names returns the roles' names, sorted.
func (c *Catalogue) Names() []string { return slices.Sorted(maps.Keys(c.roles)) }

// Rules returns what the spec's checks must know about each role.
func (c *Catalogue) Rules() map[string]cluster.Rules {
	m := make(map[string]cluster.Rules, len(c.roles))
	for name, r := range c.roles {
		size := func(s string) cluster.Bytes {
			b, _ := cluster.ParseBytes(s) // validated by Load; empty: 0
			return b
		}
		m[name] = cluster.Rules{
			Name:       name,
			Quorum:     r.Quorum,
			VIP:        r.VIP,
			VRRPID:     r.VRRPID,
			Needs:      r.Needs,
			Distros:    slices.Sorted(maps.Keys(r.Distros)),
			Privileged: r.Container.Privileged,
			CPUs:       r.CPUs,
			Memory:     size(r.Memory),
			Disk:       size(r.Disk),
			Data:       size(r.Data),
			MinNodes:   r.MinNodes,
			MaxNodes:   r.MaxNodes,
			Options:    r.Options,
			Repos:      map[string][]string{}, Downloads: map[string][]string{}, Users: map[string][]string{},
		}
		for distro, d := range r.Distros {
			for _, u := range d.Users {
				m[name].Users[distro] = append(m[name].Users[distro], u.Name, u.Group)
			}
			for _, dl := range d.Downloads {
				if dl.Name != "" {
					m[name].Downloads[distro] = append(m[name].Downloads[distro], dl.Name)
				}
			}
			for _, repo := range d.Repos {
				m[name].Repos[distro] = append(m[name].Repos[distro], repo.Name)
			}
		}
	}
	return m
}

// SecretNames returns the names of the passwords that the roles of spec use, sorted.
func (c *Catalogue) SecretNames(spec *cluster.Spec) []string {
	names := map[string]bool{}
	for _, sr := range spec.Roles {
		if r := c.roles[sr.Name]; r != nil {
			for _, s := range r.Secrets {
				names[s] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

type loader struct {
	common  fs.FS
	sources map[string]*source // by role name; an overlay's replaces the built-in one's
}

// folder loads every role in fsys; shown is its name in messages.
func (l *loader) folder(c *Catalogue, fsys fs.FS, shown string) error {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return fmt.Errorf("read the roles: %w", err)
	}
	var found []*source
	for _, e := range entries {
		// A symbolic link to a folder is a role, too; anything else is ignored. Links out of the roles' folder are not
		// followed (os.Root): a checkout that root builds must not read root's files.
		info, err := fs.Stat(fsys, e.Name())
		if err != nil && e.Type()&fs.ModeSymlink != 0 && !strings.HasPrefix(e.Name(), ".") {
			l.sources[e.Name()] = &source{problems: cluster.Problems{{File: filepath.Join(shown, e.Name()), Line: 1, Col: 1,
				Msg: "is a link out of the folder of roles, or to nothing; copy the role here"}}}
			continue
		}
		if err != nil || !info.IsDir() || strings.HasPrefix(e.Name(), ".") || fsys == builtin && e.Name() == commonDir {
			continue
		}
		// Folders that cannot be roles and have no role.yaml belong to other programs (__MACOSX, node_modules).
		if _, err := fs.Stat(fsys, e.Name()+"/role.yaml"); errors.Is(err, fs.ErrNotExist) && !roleName.MatchString(e.Name()) {
			continue
		}
		sub, err := fs.Sub(fsys, e.Name())
		if err != nil {
			return fmt.Errorf("read the roles: %w", err)
		}
		found = append(found, &source{name: e.Name(), dir: filepath.Join(shown, e.Name()), fsys: sub, common: l.common})
	}
	roles := make([]*Role, len(found))
	var wg sync.WaitGroup
	for i, s := range found { // in parallel; each writes only its own
		wg.Go(func() { roles[i] = s.load() })
	}
	wg.Wait()
	for i, s := range found {
		l.sources[s.name] = s
		if roles[i] != nil {
			c.roles[s.name] = roles[i]
		}
	}
	return nil
}

// source is a role's folder while it is read.
type source struct {
	name     string
	dir      string // for messages
	fsys     fs.FS
	common   fs.FS
	at       map[string]position // of every value in role.yaml, by path
	role     *Role
	broken   []string // paths with a wrong shape; errors below them would be misleading
	problems cluster.Problems
}

type position struct{ line, col int }

// Names of templates in a role's set: a file's path as shown in messages, or, for a string in role.yaml, this prefix
// and its path.
const inline = "role.yaml: "

// fault reports what is wrong with the value at path in role.yaml.
func (s *source) fault(path, format string, args ...any) {
	for _, b := range s.broken {
		if within(path, b) || path != "" && within(b, path) {
			return
		}
	}
	p := s.at[path]
	for parent := path; p.line == 0 && parent != ""; p = s.at[parent] {
		parent = parent[:max(0, strings.LastIndexAny(parent, ".["))]
	}
	s.problems = append(s.problems, cluster.Problem{
		File: filepath.Join(s.dir, "role.yaml"), Line: max(1, p.line), Col: max(1, p.col), Path: path, Msg: fmt.Sprintf(format, args...),
	})
}

// within reports whether path is other or below it.
func within(path, other string) bool {
	rest, ok := strings.CutPrefix(path, other)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

var (
	roleName   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
	secretName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	unitName   = regexp.MustCompile(`^[A-Za-z0-9:_.@-]+\.(service|socket|timer|mount|path|target)$`)
	userName   = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	sysctlKey  = regexp.MustCompile(`^[a-z0-9_-]+(\.[A-Za-z0-9_*-]+)+$`)
	ownerForm  = regexp.MustCompile(`^[a-z_][a-z0-9_-]*:[a-z_][a-z0-9_-]*$`)
	sha256Form = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Checks are the programs that tests can check a rendered file with.
var Checks = []string{"glusterd", "haproxy", "ip6tables", "iptables", "keepalived", "mariadb", "nft", "nginx", "php", "php-fpm", "php-ini", "proxysql", "redis", "sentinel", "sql", "systemd"}

// load reads and checks the role; it returns nil if the role is unusable.
func (s *source) load() *Role {
	data, err := fs.ReadFile(s.fsys, "role.yaml")
	if err != nil {
		msg := err.Error()
		if errors.Is(err, fs.ErrNotExist) {
			msg = "missing; every folder of roles holds one role, described by its role.yaml"
		}
		s.problems = append(s.problems, cluster.Problem{File: filepath.Join(s.dir, "role.yaml"), Line: 1, Col: 1, Msg: msg})
		return nil
	}
	s.role = &Role{Name: s.name, file: filepath.Join(s.dir, "role.yaml")}
	if !s.decode(data, s.role) {
		s.role = nil
		return nil
	}
	r := s.role
	r.VIP = cmp.Or(r.VIP, cluster.VIPNone)
	r.CPUs, r.MinNodes = cmp.Or(r.CPUs, 1), cmp.Or(r.MinNodes, 1)
	r.Memory, r.Disk = cmp.Or(r.Memory, "256MiB"), cmp.Or(r.Disk, "4GiB")
	r.packages = map[string]position{}
	for distro, d := range r.Distros {
		for i := range d.Packages {
			at := packagePath(distro, i)
			r.packages[at] = s.at[at]
		}
	}
	s.checkRole()
	s.checkDistros()
	r.templates = template.New("").Option("missingkey=error").Funcs(unbound)
	s.checkFiles()
	s.checkComponents()
	return r
}

func packagePath(distro string, i int) string { return index("distros."+distro+".packages", i) }

// PackageFault returns a problem at the position of a package in the role's list for a distro, or false if the list
// does not have it.
func (r *Role) PackageFault(distro, name, msg string) (cluster.Problem, bool) {
	i := slices.Index(r.Distros[distro].Packages, name)
	if i < 0 {
		return cluster.Problem{}, false
	}
	path := packagePath(distro, i)
	at := r.packages[path]
	return cluster.Problem{File: r.file, Line: max(1, at.line), Col: max(1, at.col), Path: path, Msg: msg}, true
}

// everywhere are the sources of packets that are not roles.
var everywhere = []string{"any", "network", "cluster"}

func (s *source) checkRole() {
	r := s.role
	if !roleName.MatchString(s.name) || s.name == commonDir || slices.Contains(everywhere, s.name) {
		s.fault("", "%q cannot be a role's name: use lower-case letters, digits and hyphens, and none of any, cluster, common, network", s.name)
	}
	if r.Description == "" {
		s.fault("description", "missing; describe the role in one line")
	}
	switch r.VIP {
	case cluster.VIPNone:
		if r.VRRPID != 0 {
			s.fault("vrrp_id", "is only for roles with a virtual address; set vip: required, or remove it")
		}
	case cluster.VIPRequired, cluster.VIPOptional:
		if r.VRRPID < 1 || r.VRRPID > 255 {
			s.fault("vrrp_id", "%d is not a VRRP id; one from 1 to 255 is needed with a virtual address", r.VRRPID)
		}
	default:
		s.fault("vip", "%q is not one of none, optional, required", r.VIP)
	}
	if r.CPUs < 1 {
		s.fault("cpus", "%d: a node has at least one", r.CPUs)
	}
	for path, size := range map[string]string{"memory": r.Memory, "disk": r.Disk, "data": r.Data} {
		if size == "" {
			continue
		}
		if _, err := cluster.ParseBytes(size); err != nil {
			s.fault(path, "%v", err)
		}
	}
	if r.MinNodes < 1 {
		s.fault("min_nodes", "%d: a role has at least one node", r.MinNodes)
	}
	if r.MaxNodes != 0 && r.MaxNodes < r.MinNodes {
		s.fault("max_nodes", "%d is less than min_nodes, %d", r.MaxNodes, r.MinNodes)
	}
	for name, o := range r.Options {
		at := "options." + name
		if !secretName.MatchString(name) {
			s.fault(at, "%q cannot be an option's name: use lower-case letters, digits and underscores", name)
		}
		if o.Help == "" {
			s.fault(at+".help", "missing; describe the option in one line")
		}
		if len(o.OneOf) > 0 && !slices.Contains(o.OneOf, o.Default) {
			s.fault(at+".default", "%q is not one of %s", o.Default, strings.Join(o.OneOf, ", "))
		}
		if o.Pattern != "" {
			re, err := regexp.Compile(`^(?:` + o.Pattern + `)$`)
			if err != nil {
				s.fault(at+".pattern", "%v", err)
			} else if !re.MatchString(o.Default) {
				s.fault(at+".default", "%q does not match the option's pattern %s", o.Default, o.Pattern)
			}
		}
	}
	for i, name := range r.Secrets {
		if !secretName.MatchString(name) {
			s.fault(index("secrets", i), "%q cannot be a secret's name: use lower-case letters, digits and underscores", name)
		}
	}
	for i, p := range r.Ports {
		at := index("ports", i)
		r.Ports[i].Proto = cmp.Or(p.Proto, "tcp")
		switch r.Ports[i].Proto {
		case "tcp", "udp":
			if !isPorts(p.Port) {
				s.fault(at+".port", "%q is not a port or a range such as 49152-49160", p.Port)
			}
		case "vrrp":
			if p.Port != "" {
				s.fault(at+".port", "VRRP has no ports; remove it")
			}
		default:
			s.fault(at+".proto", "%q is not one of tcp, udp, vrrp", p.Proto)
		}
		if len(p.From) == 0 {
			s.fault(at+".from", "missing; write names of roles, cluster, network or any")
		}
		if p.Why == "" {
			s.fault(at+".why", "missing; it becomes the rule's comment")
		} else if strings.ContainsAny(p.Why, "\"\n") {
			s.fault(at+".why", "must be one line without double quotes")
		}
	}
	for key, value := range r.Sysctl {
		if !sysctlKey.MatchString(key) {
			s.fault("sysctl."+key, "%q is not a kernel parameter such as net.core.somaxconn", key)
		}
		if value == "" || strings.Contains(value, "\n") {
			s.fault("sysctl."+key, "needs a value on one line")
		}
	}
}

// isPorts reports whether s is a port or a range of ports.
func isPorts(s string) bool {
	first, last, ranged := strings.Cut(s, "-")
	a, err := strconv.ParseUint(first, 10, 16)
	if err != nil || a == 0 {
		return false
	}
	if !ranged {
		return true
	}
	b, err := strconv.ParseUint(last, 10, 16)
	return err == nil && a < b
}

func (s *source) checkDistros() {
	if len(s.role.Distros) == 0 {
		s.fault("distros", "missing; a role needs packages for at least one of %s", strings.Join(distro.Names(), ", "))
	}
	for name, d := range s.role.Distros {
		at, known := "distros."+name, distro.Named(name)
		if !slices.Contains(distro.Names(), name) {
			s.fault(at, "%q is not one of %s", name, strings.Join(distro.Names(), ", "))
		}
		for _, list := range []struct {
			key    string
			values []string
		}{{"packages", d.Packages}, {"exclude", d.Exclude}, {"remove", d.Remove}} {
			for i, v := range list.values {
				if v == "" || strings.ContainsAny(v, " \t\n") {
					s.fault(index(at+"."+list.key, i), "%q: one name per entry", v)
				} else if list.key == "remove" && !cleanPath(v) {
					s.fault(index(at+"."+list.key, i), "%q is not a clean absolute path", v)
				} else if top, _, _ := strings.Cut(v[1:], "/"); list.key == "remove" && (strings.ContainsAny(top, "*?[") || slices.Contains(mounted, top)) {
					s.fault(index(at+"."+list.key, i), "%q may lead to the build host's own files; name a path below a folder such as /usr or /etc", v)
				}
			}
		}
		for i, unit := range d.Disable {
			if !unitName.MatchString(unit) {
				s.fault(index(at+".disable", i), "%q is not a unit such as nginx.service", unit)
			}
		}
		if known.Packages == distro.Deb && len(d.Repos)+len(d.Exclude) > 0 {
			s.fault(at, "%s takes its packages from one archive, the spec's mirror; remove repos and exclude", name)
		}
		for i, repo := range d.Repos {
			at := index(at+".repos", i)
			if !roleName.MatchString(repo.Name) {
				s.fault(at+".name", "%q cannot be a repository's name: use lower-case letters, digits and hyphens", repo.Name)
			}
			if len(repo.URLs) == 0 {
				s.fault(at+".urls", "missing")
			}
			if len(repo.Keys) == 0 {
				s.fault(at+".keys", "missing; packages are taken from signed repositories only")
			}
		}
		s.checkSELinux(at, name, d.SELinux)
		for _, pkg := range slices.Sorted(maps.Keys(d.Minimum)) {
			switch at := at + ".minimum." + pkg; {
			case known.Packages != distro.RPM:
				s.fault(at, "Debian's versions are those of its release; remove it")
			case !slices.Contains(d.Packages, pkg):
				s.fault(at, "%s is not one of the packages", pkg)
			case !plainVersion.MatchString(d.Minimum[pkg]):
				s.fault(at, "%q is not a version such as 5.7.26, without epoch and release", d.Minimum[pkg])
			}
		}
		ids := map[int]string{}
		for i, u := range d.Users {
			at := index(at+".users", i)
			if u.Group == "" {
				d.Users[i].Group = u.Name
			}
			for _, n := range []string{u.Name, d.Users[i].Group} {
				if !userName.MatchString(n) {
					s.fault(at, "%q cannot be the name of a user or group", n)
				}
			}
			if u.UID < 1 || u.GID < 1 || u.UID > 60000 || u.GID > 60000 {
				s.fault(at, "uid and gid must be from 1 to 60000")
			} else if other, ok := ids[u.UID]; ok {
				s.fault(at+".uid", "%d is already the uid of %s", u.UID, other)
			}
			ids[u.UID] = u.Name
		}
		for i, dl := range d.Downloads {
			at := index(at+".downloads", i)
			if dl.Name != "" && !roleName.MatchString(dl.Name) {
				s.fault(at+".name", "%q cannot be a download's name: use lower-case letters, digits and hyphens", dl.Name)
			}
			if !strings.HasPrefix(dl.URL, "https://") && !strings.HasPrefix(dl.URL, "http://") {
				s.fault(at+".url", "%q is not a http or https URL", dl.URL)
			}
			if !sha256Form.MatchString(dl.SHA256) {
				s.fault(at+".sha256", "%q is not a SHA-256 sum, 64 hexadecimal digits in lower-case letters", dl.SHA256)
			}
			if !cleanPath(dl.Path) {
				s.fault(at+".path", "%q is not a clean absolute path of a file", dl.Path)
			}
		}
	}
}

// mounted are folders that are the build host's mounts during a bake.
var mounted = []string{"dev", "proc", "run", "sys"}

// plainVersion matches versions that can be compared number by number.
var plainVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`)

// checkSELinux checks a role's SELinux settings for a distro.
func (s *source) checkSELinux(at, name string, want SELinux) {
	if !distro.Named(name).SELinux && len(want.Booleans)+len(want.Ports)+len(want.Permissive) > 0 {
		s.fault(at+".selinux", "%s has no SELinux; remove it", name)
	}
	for _, list := range []struct {
		key    string
		values []string
	}{{"booleans", want.Booleans}, {"permissive", want.Permissive}} {
		for i, v := range list.values {
			if !secretName.MatchString(v) {
				s.fault(index(at+".selinux."+list.key, i), "%q is not a name of SELinux's policy, such as httpd_use_fusefs or mysqld_t", v)
			}
		}
	}
	for i, p := range want.Ports {
		at := index(at+".selinux.ports", i)
		want.Ports[i].Proto = cmp.Or(p.Proto, "tcp")
		if !secretName.MatchString(p.Type) {
			s.fault(at+".type", "%q is not a type of port, such as mysqld_port_t", p.Type)
		}
		if !isPorts(p.Port) {
			s.fault(at+".port", "%q is not a port or a range such as 49152-49160", p.Port)
		}
		if !slices.Contains([]string{"tcp", "udp"}, want.Ports[i].Proto) {
			s.fault(at+".proto", "%q is not one of tcp, udp", p.Proto)
		}
	}
}

// cleanPath reports whether p is a path inside an image: absolute, without . and .., not the root itself, and without
// control characters.
func cleanPath(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && p != "/" && !strings.ContainsFunc(p, unicode.IsControl)
}

func (s *source) checkFiles() {
	for i, f := range s.role.Files {
		at := index("files", i)
		s.parse(at+".path", f.Path)
		switch {
		case f.Path == "":
			s.fault(at+".path", "missing")
		case !strings.Contains(f.Path, "{{") && !cleanPath(f.Path):
			s.fault(at+".path", "%q is not a clean absolute path", f.Path)
		}
		if f.Mode == "" {
			s.role.Files[i].Mode = "0644"
		} else if mode, err := strconv.ParseUint(f.Mode, 8, 32); err != nil || mode > 0o777 || len(f.Mode) < 3 {
			s.fault(at+".mode", "%q is not an octal mode such as 0640", f.Mode)
		}
		if f.Owner == "" {
			s.role.Files[i].Owner = "root:root"
		} else if s.parse(at+".owner", f.Owner); !strings.Contains(f.Owner, "{{") && !ownerForm.MatchString(f.Owner) {
			s.fault(at+".owner", "%q is not user:group", f.Owner)
		}
		if f.Check != "" && !slices.Contains(Checks, f.Check) {
			s.fault(at+".check", "%q is not one of %s", f.Check, strings.Join(Checks, ", "))
		}
		s.checkSubset(at, f.Distros)
		s.parse(at+".when", f.When)
		s.parseFile(at+".template", f.Template)
	}
}

func (s *source) checkComponents() {
	before := map[string]bool{}
	for i, c := range s.role.Components {
		at := index("components", i)
		switch {
		case !roleName.MatchString(c.Name):
			s.fault(at+".name", "%q cannot be a component's name: use lower-case letters, digits and hyphens", c.Name)
		case c.Name == facts.Firewall || c.Name == facts.Firewall6:
			s.fault(at+".name", "every node already has a component %s, made from the role's ports", c.Name)
		case before[c.Name]:
			s.fault(at+".name", "there are two components %s", c.Name)
		}
		for j, name := range c.After {
			if !before[name] {
				s.fault(index(at+".after", j), "no component %q precedes this one", name)
			}
		}
		before[c.Name] = true
		s.checkSubset(at, c.Distros)
		s.parse(at+".when", c.When)
		if facts.ParamsFor[c.Kind] == nil {
			s.fault(at+".kind", "%q is not one of %s", c.Kind, strings.Join(slices.Sorted(maps.Keys(facts.ParamsFor)), ", "))
			continue
		}
		s.parseAll(at+".params", c.Params)
		s.checkParams(at+".params", c)
	}
}

// checkSubset checks that the distros of a file or component are among the role's.
func (s *source) checkSubset(at string, distros []string) {
	for i, d := range distros {
		if _, ok := s.role.Distros[d]; !ok {
			s.fault(index(at+".distros", i), "the role is not made for %q", d)
		}
	}
}

// checkNames checks references to other roles.
func (s *source) checkNames(known map[string]*source) {
	if s.role == nil {
		return
	}
	var readable []string
	for name, other := range known {
		if other.role != nil {
			readable = append(readable, name)
		}
	}
	slices.Sort(readable)
	names := strings.Join(readable, ", ")
	for i, n := range s.role.Needs {
		if known[n] == nil {
			s.fault(index("needs", i), "there is no role %q; there are %s", n, names)
		}
	}
	for i, p := range s.role.Ports {
		if p.Otherwise != "" && p.Otherwise != "any" && p.Otherwise != "network" {
			s.fault(index("ports", i)+".otherwise", "%q is neither any nor network", p.Otherwise)
		}
		for j, n := range p.From {
			if !slices.Contains(everywhere, n) && known[n] == nil {
				s.fault(index(index("ports", i)+".from", j), "%q is neither any, network, cluster, nor a role; there are %s", n, names)
			}
		}
	}
}

// parseAll parses the templates in a component's parameters.
func (s *source) parseAll(at string, v any) {
	switch v := v.(type) {
	case string:
		s.parse(at, v)
	case []any:
		for i, e := range v {
			s.parseAll(index(at, i), e)
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			s.parseAll(at+"."+k, v[k])
		}
	}
}

// parse parses a string of role.yaml that may be a template.
func (s *source) parse(at, text string) {
	if !strings.Contains(text, "{{") {
		return
	}
	if _, err := s.role.templates.New(inline + at).Parse(text); err != nil {
		_, _, msg := templateFault(err)
		s.fault(at, "template: %s", msg)
	}
}

// parseFile parses a template file of the role, or a shared one if its name starts with common/.
func (s *source) parseFile(at, name string) {
	fsys, file, shown := s.fsys, name, s.role.templateName(name)
	if rest, ok := strings.CutPrefix(name, commonDir+"/"); ok {
		fsys, file = s.common, rest
	}
	if s.role.templates.Lookup(shown) != nil {
		return // already parsed for another file
	}
	if !fs.ValidPath(file) || file == "." {
		s.fault(at, "%q is not the name of a file in the role's folder", name)
		return
	}
	text, err := fs.ReadFile(fsys, file)
	if errors.Is(err, fs.ErrNotExist) {
		s.fault(at, "there is no %s", shown)
		return
	}
	if err != nil { // including a link out of the roles' folder
		s.fault(at, "%s cannot be read: %v", shown, err)
		return
	}
	// A checkout on Windows may have CRLF; nodes always get LF.
	if _, err := s.role.templates.New(shown).Parse(strings.ReplaceAll(string(text), "\r\n", "\n")); err != nil {
		line, _, msg := templateFault(err)
		s.problems = append(s.problems, cluster.Problem{File: shown, Line: max(1, line), Col: 1, Msg: msg})
	}
}

// templateName is the name of a template file in the role's set: its path as shown in messages.
func (r *Role) templateName(name string) string {
	if strings.HasPrefix(name, commonDir+"/") {
		return "roles/" + name
	}
	return filepath.Join(filepath.Dir(r.file), filepath.FromSlash(name))
}

var templateError = regexp.MustCompile(`(?s)^template: .*?:(\d+)(?::(\d+))?: (.*)$`)

// templateFault splits an error of text/template into position and message.
func templateFault(err error) (line, col int, msg string) {
	m := templateError.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, 0, err.Error()
	}
	line, _ = strconv.Atoi(m[1])
	col, _ = strconv.Atoi(m[2])
	return line, col, m[3]
}

// index is the path of element i of the list at path.
func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

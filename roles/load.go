package roles

import (
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/template"

	"imagegen/cluster"
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
			TLS:        r.TLS,
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
	r.templates = template.New("").Option("missingkey=error").Funcs(unbound)
	s.checkRole()
	s.checkDistros()
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

// mounted are folders that are the build host's mounts during a bake.
var mounted = []string{"dev", "proc", "run", "sys"}

// plainVersion matches versions that can be compared number by number.
var plainVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`)

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

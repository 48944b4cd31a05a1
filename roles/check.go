package roles

import (
	"cmp"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/distro"
)

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
		s.parse(at+".fixed", f.Fixed)
		s.checkChange(at+".change", f)
		s.parseFile(at+".template", f.Template)
	}
}

// checkChange checks what a file's change needs. What a template stands for is checked when a node is rendered.
func (s *source) checkChange(at string, f File) {
	s.parse(at, f.Change)
	verb, unit, _ := strings.Cut(f.Change, " ")
	if strings.Contains(verb, "{{") {
		return
	}
	if f.Change == "" {
		if f.Fixed != "" {
			s.fault(strings.TrimSuffix(at, ".change")+".fixed", "is only for files with change; the node is replaced whatever it says")
		}
		return
	}
	if verb != string(facts.Nothing) {
		// The same text as the component's, a template or not.
		var units []string
		for _, c := range s.role.Components {
			for _, key := range []string{"unit", "boot_unit"} {
				if u, ok := c.Params[key].(string); ok && !slices.Contains(units, u) {
					units = append(units, u)
				}
			}
		}
		if (verb == string(facts.Reload) || verb == string(facts.Restart)) && unit != "" && !slices.Contains(units, unit) {
			s.fault(at, "no component runs the unit %s; they run %s", unit, cmp.Or(strings.Join(units, ", "), "none"))
			return
		}
	}
	if strings.Contains(unit, "{{") && verb != string(facts.Nothing) {
		return
	}
	if _, _, err := facts.ParseChange(f.Change); err != nil {
		s.fault(at, "%v", err)
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
		gate, ok := plain(c.Params["gate"])
		if ok && gate != "" && (gate == c.Name || !slices.ContainsFunc(s.role.Components, func(o Component) bool { return o.Name == gate })) {
			s.fault(at+".params.gate", "there is no other component %q", gate)
		}
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

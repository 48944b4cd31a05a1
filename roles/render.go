package roles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/distro"
)

// Paths of files that every node gets, whatever its role.
const (
	hostsPath  = "/etc/hosts"
	sysctlPath = "/etc/sysctl.d/90-imagegen.conf"
)

// Render returns everything node-specific about a node. The same spec and secrets give the same bytes.
func (c *Catalogue) Render(spec *cluster.Spec, keys *secrets.Secrets, node string) (Rendered, error) {
	n, ok := spec.Node(node)
	if !ok {
		return Rendered{}, fmt.Errorf("render %s: the cluster has no such node", node)
	}
	role, sr := c.roles[n.Role], spec.Role(n.Role)
	if role == nil {
		return Rendered{}, fmt.Errorf("render %s: there is no role %q", node, n.Role)
	}
	distro, ok := role.Distros[spec.Distro]
	if !ok {
		return Rendered{}, fmt.Errorf("render %s: role %s is not made for %s", node, n.Role, spec.Distro)
	}
	v := &view{spec: spec, node: n, role: role, secrets: keys}
	set, err := role.templates.Clone()
	if err != nil {
		return Rendered{}, fmt.Errorf("render %s: %w", node, err)
	}
	r := &renderer{
		view: v,
		set:  set.Funcs(v.funcs()),
		data: Data{Cluster: spec, Node: n, Role: *sr, Vars: distro.Vars, Options: sr.Options},
	}
	out, err := r.node()
	if err != nil {
		return Rendered{}, fmt.Errorf("render %s: %w", node, err)
	}
	return out, nil
}

// renderer renders one node.
type renderer struct {
	*view
	set  *template.Template
	data Data
	open []Port // what the packet filter accepts
	buf  bytes.Buffer
}

func (r *renderer) node() (Rendered, error) {
	var out Rendered
	keys, ok := r.secrets.Nodes[r.view.node.Name]
	if !ok {
		return out, fmt.Errorf("the cluster's secrets have no key for it")
	}
	file := func(f RenderedFile) {
		f.Owner = "root:root"
		out.Files = append(out.Files, f)
	}
	// The agent and several daemons read these only when they start, and peers must accept the new certificate.
	file(RenderedFile{Path: facts.PKIDir + "/ca.crt", Mode: 0o644, Content: r.secrets.CA.Cert})
	file(RenderedFile{Path: facts.PKIDir + "/node.crt", Mode: 0o644, Content: keys.Cert})
	file(RenderedFile{Path: facts.PKIDir + "/node.key", Mode: 0o600, Content: keys.Key, Secret: true})
	file(RenderedFile{Path: hostsPath, Mode: 0o644, Content: r.hosts(), Change: "none"}) // read for every lookup
	if len(r.role.Sysctl) > 0 {
		// The agent sets them when it starts, and it starts anew with other facts (see facts.Facts.Sysctl).
		file(RenderedFile{Path: sysctlPath, Mode: 0o644, Content: r.sysctl(), Change: "none"})
	}
	r.open = r.ports()
	for _, f := range distro.Named(r.spec.Distro).Firewall {
		// A reload replaces all rules at once; a restart would remove them first.
		file(RenderedFile{Path: f.Path, Mode: f.Mode, Content: firewalls[f.Syntax].rules(r), Check: string(f.Syntax), Change: "reload " + f.Unit})
	}
	passwords := map[string]string{}
	for _, name := range r.role.Secrets {
		if passwords[name], ok = r.secrets.Passwords[name]; !ok {
			return out, fmt.Errorf("the cluster has no secret %q", name)
		}
	}
	if len(passwords) > 0 {
		data, err := json.MarshalIndent(passwords, "", " ")
		if err != nil {
			return out, err
		}
		file(RenderedFile{Path: facts.SecretsPath, Mode: 0o600, Content: append(data, '\n'), Secret: true})
	}
	for i, f := range r.role.Files {
		rf, wanted, err := r.file(index("files", i), f)
		if err != nil {
			return out, err
		}
		if wanted {
			out.Files = append(out.Files, rf)
		}
	}
	slices.SortFunc(out.Files, func(a, b RenderedFile) int { return strings.Compare(a.Path, b.Path) })
	for i := 1; i < len(out.Files); i++ {
		if out.Files[i].Path == out.Files[i-1].Path {
			return out, fmt.Errorf("%s: two files have the path %s", r.role.file, out.Files[i].Path)
		}
	}
	at, taken := slices.BinarySearchFunc(out.Files, facts.FactsPath, func(f RenderedFile, path string) int { return strings.Compare(f.Path, path) })
	if taken {
		return out, fmt.Errorf("%s: two files have the path %s", r.role.file, facts.FactsPath)
	}
	var err error
	if out.Facts, err = r.facts(out.Files); err != nil {
		return out, err
	}
	known, err := out.Facts.Encode()
	if err != nil {
		return out, fmt.Errorf("%s: %w", r.role.file, err)
	}
	out.Files = slices.Insert(out.Files, at, RenderedFile{Path: facts.FactsPath, Mode: 0o644, Owner: "root:root", Content: known})
	return out, nil
}

// file renders a file of the role, and reports whether the node gets it.
func (r *renderer) file(at string, f File) (rf RenderedFile, wanted bool, err error) {
	if wanted, err = r.wanted(at, f.Distros, f.When); err != nil || !wanted {
		return rf, false, err
	}
	mode, err := strconv.ParseUint(f.Mode, 8, 32)
	if err != nil {
		return rf, false, err
	}
	rf = RenderedFile{Mode: uint32(mode), Check: f.Check}
	if rf.Path, err = r.text(at+".path", f.Path); err != nil {
		return rf, false, err
	}
	if !path.IsAbs(rf.Path) || path.Clean(rf.Path) != rf.Path {
		return rf, false, fmt.Errorf("%s: %s.path: %q is not a clean absolute path", r.role.file, at, rf.Path)
	}
	if rf.Owner, err = r.text(at+".owner", f.Owner); err != nil {
		return rf, false, err
	}
	if !ownerForm.MatchString(rf.Owner) {
		return rf, false, fmt.Errorf("%s: %s.owner: %q is not user:group", r.role.file, at, rf.Owner)
	}
	if rf.Change, err = r.text(at+".change", f.Change); err != nil {
		return rf, false, err
	}
	if _, _, err := facts.ParseChange(rf.Change); err != nil {
		return rf, false, fmt.Errorf("%s: %s.change: %w", r.role.file, at, err)
	}
	if rf.Fixed, err = r.text(at+".fixed", f.Fixed); err != nil {
		return rf, false, err
	}
	r.used, r.inFacts = false, false
	if rf.Content, err = r.execute(r.role.templateName(f.Template)); err != nil {
		return rf, false, err
	}
	rf.Secret = r.used
	if rf.Secret && rf.Mode&0o007 != 0 {
		return rf, false, fmt.Errorf("%s: %s.mode: %s contains a secret and must not be world-readable: use 0600 or 0640", r.role.file, at, rf.Path)
	}
	return rf, true, nil
}

// wanted reports whether a file or component applies to this node.
func (r *renderer) wanted(at string, distros []string, when string) (bool, error) {
	if len(distros) > 0 && !slices.Contains(distros, r.spec.Distro) {
		return false, nil
	}
	if when == "" {
		return true, nil
	}
	s, err := r.text(at+".when", when)
	s = strings.TrimSpace(s)
	return s != "" && s != "false", err
}

// text renders a string of role.yaml. Secrets are only allowed in files.
func (r *renderer) text(at, s string) (string, error) {
	if !strings.Contains(s, "{{") {
		return s, nil
	}
	r.inFacts = true
	out, err := r.execute(inline + at)
	return string(out), err
}

func (r *renderer) execute(name string) ([]byte, error) {
	r.buf.Reset()
	if err := r.set.ExecuteTemplate(&r.buf, name, r.data); err != nil {
		line, col, msg := templateFault(err)
		var refused refusal
		if errors.As(err, &refused) {
			msg = refused.Error() // a message for users; its position in the template is not of interest to them
		}
		if at, ok := strings.CutPrefix(name, inline); ok {
			return nil, fmt.Errorf("%s: %s: %s", r.role.file, at, msg)
		}
		return nil, fmt.Errorf("%s:%d:%d: %s", name, line, col, msg)
	}
	return bytes.Clone(r.buf.Bytes()), nil
}

// facts returns the node's facts; files are those of its seed, sorted by path.
func (r *renderer) facts(files []RenderedFile) (facts.Facts, error) {
	f := facts.Facts{
		Version:   facts.FactsVersion,
		Cluster:   r.spec.Cluster,
		ClusterID: r.secrets.ClusterID,
		Distro:    r.spec.Distro,
		Node:      peer(r.view.node),
		Peers:     []facts.Peer{},
		Sysctl:    slices.Sorted(maps.Keys(r.role.Sysctl)),
	}
	for _, file := range files {
		change, unit, err := facts.ParseChange(file.Change)
		if err != nil {
			return f, err
		}
		f.Files = append(f.Files, facts.File{
			Path: file.Path, Mode: fmt.Sprintf("%04o", file.Mode), Owner: file.Owner,
			Digest: facts.FileDigest(r.secrets.Nodes[r.view.node.Name].Key, file.Content, file.Secret), Secret: file.Secret,
			Change: change, Unit: unit, Fixed: file.Fixed,
		})
	}
	for _, set := range distro.Named(r.spec.Distro).Firewall {
		params, err := json.Marshal(facts.ServiceParams{Unit: set.Unit})
		if err != nil {
			return f, err
		}
		f.Components = append(f.Components, facts.Component{Name: firewalls[set.Syntax].component, Kind: "service", Params: params})
	}
	present := map[string]bool{}
	for i, c := range r.role.Components {
		at := index("components", i)
		wanted, err := r.wanted(at, c.Distros, c.When)
		if err != nil {
			return f, err
		}
		if !wanted {
			continue
		}
		present[c.Name] = true
		params, _, err := r.value(at+".params", c.Params, reflect.TypeOf(facts.ParamsFor[c.Kind]()))
		if err != nil {
			return f, err
		}
		raw, err := json.Marshal(params)
		if err != nil {
			return f, err
		}
		// Components that this node does not have are not waited for.
		after := slices.DeleteFunc(slices.Clone(c.After), func(name string) bool { return !present[name] })
		f.Components = append(f.Components, facts.Component{Name: c.Name, Kind: c.Kind, After: after, Params: raw})
	}
	known, err := facts.PeerRoles(r.role.Name, f.Components)
	if err != nil {
		return f, fmt.Errorf("%s: %w", r.role.file, err)
	}
	for _, sr := range r.spec.Roles {
		for _, n := range sr.Nodes {
			if known[sr.Name] && n.Name != r.view.node.Name {
				f.Peers = append(f.Peers, peer(n))
			}
		}
	}
	return f, nil
}

func peer(n cluster.Node) facts.Peer {
	return facts.Peer{Name: n.Name, Role: n.Role, IP: n.IP.String(), Index: n.Index}
}

// value renders the templates within a parameter of type t. If a template renders to nothing, keep is false and its
// list element or map entry is left out.
func (r *renderer) value(at string, v any, t reflect.Type) (out any, keep bool, err error) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case string:
		s, err := r.text(at, v)
		if err != nil || s == "" && v != "" {
			return nil, false, err
		}
		switch t.Kind() {
		case reflect.Bool:
			b, err := strconv.ParseBool(s)
			if err != nil {
				return nil, false, fmt.Errorf("%s: %s: %q is neither true nor false", r.role.file, at, s)
			}
			return b, true, nil
		case reflect.Int:
			n, err := strconv.Atoi(s)
			if err != nil {
				return nil, false, fmt.Errorf("%s: %s: %q is not a whole number", r.role.file, at, s)
			}
			return n, true, nil
		}
		return s, true, nil
	case []any:
		list := make([]any, 0, len(v))
		for i, e := range v {
			e, keep, err := r.value(index(at, i), e, t.Elem())
			if err != nil {
				return nil, false, err
			}
			if keep {
				list = append(list, e)
			}
		}
		return list, true, nil
	case map[string]any:
		fields := fieldsOf(t, "json")
		m := make(map[string]any, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			ft := fields[k]
			if t.Kind() == reflect.Map {
				ft = t.Elem()
			}
			e, keep, err := r.value(at+"."+k, v[k], ft)
			if err != nil {
				return nil, false, err
			}
			switch {
			case keep:
				m[k] = e
			case slices.Contains(required(t, "json"), k):
				return nil, false, fmt.Errorf("%s: %s.%s: renders to nothing", r.role.file, at, k)
			}
		}
		return m, true, nil
	}
	return v, true, nil
}

// hosts renders /etc/hosts, so that nodes find each other without DNS.
func (r *renderer) hosts() []byte {
	b := []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\n")
	for _, role := range r.spec.Roles {
		b = slices.Grow(b, 32*len(role.Nodes))
		for _, n := range role.Nodes {
			b = append(n.IP.AppendTo(b), ' ')
			b = append(append(b, n.Name...), '\n')
		}
	}
	return b
}

func (r *renderer) sysctl() []byte {
	var b bytes.Buffer
	for _, k := range slices.Sorted(maps.Keys(r.role.Sysctl)) {
		fmt.Fprintf(&b, "%s = %s\n", k, r.role.Sysctl[k])
	}
	return b.Bytes()
}

package roles

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
)

// Data is a template's dot.
type Data struct {
	Cluster *cluster.Spec
	Node    cluster.Node      // the node being rendered
	Role    cluster.Role      // its role, from the spec
	Vars    map[string]string // the role's vars for the distro
	Options map[string]string // the role's options, as set in the spec or by default
}

// view is the state of the template functions for one node.
type view struct {
	spec    *cluster.Spec
	node    cluster.Node
	role    *Role
	secrets *secrets.Secrets
	used    bool // set when a secret is used
	inFacts bool // rendering facts, which must not contain secrets
}

// unbound has the functions' names, for parsing; they are replaced by a node's own before rendering.
var unbound = (&view{}).funcs()

// funcs are documented in docs/roles.md.
func (v *view) funcs() template.FuncMap {
	return template.FuncMap{
		"nodes":           v.nodes,
		"others":          v.others,
		"ips":             v.ips,
		"has":             func(role string) bool { return len(v.nodes(role)) > 0 },
		"vip":             v.vip,
		"secret":          v.secret,
		"nodeKey":         v.nodeKey,
		"siteCertificate": v.siteCertificate,
		"clusterID":       func() string { return v.secrets.ClusterID }, // also in the facts, so not secret
		"fail":            func(msg string) (string, error) { return "", refusal(msg) },
		"healthPort":      func() int { return facts.HealthPort },
		"join":            func(sep string, list []string) string { return strings.Join(list, sep) },
		"add":             func(a, b int) int { return a + b },
		"sub":             func(a, b int) int { return a - b },
		"max":             func(a, b int) int { return max(a, b) },
		"min":             func(a, b int) int { return min(a, b) },
		"number":          strconv.Atoi,
		"mul":             func(a, b int) int { return a * b },
		"div":             div,
		"percent":         percent,
		"netmask":         func(p netip.Prefix) string { return net.IP(net.CIDRMask(p.Bits(), p.Addr().BitLen())).String() },
	}
}

func div(a, b int) (int, error) {
	if b == 0 {
		return 0, errors.New("division by zero")
	}
	return a / b, nil
}

// percent returns a percentage of a size, in bytes. share is text, as options are.
func percent(b cluster.Bytes, share string) (int, error) {
	p, err := strconv.Atoi(share)
	return int(b) / 100 * p, err
}

// nodes returns the nodes of a role in the spec's order; empty if the spec does not have the role.
func (v *view) nodes(role string) []cluster.Node {
	if r := v.spec.Role(role); r != nil {
		return r.Nodes
	}
	return nil
}

// others returns the other nodes of this node's role.
func (v *view) others() []cluster.Node {
	return slices.DeleteFunc(slices.Clone(v.nodes(v.node.Role)), func(n cluster.Node) bool { return n.Name == v.node.Name })
}

func (v *view) ips(role string) []string {
	var ips []string
	for _, n := range v.nodes(role) {
		ips = append(ips, n.IP.String())
	}
	return ips
}

// vip returns a role's virtual address, or "" if it has none or is not in the spec.
func (v *view) vip(role string) string {
	if r := v.spec.Role(role); r != nil && r.VIP.IsValid() {
		return r.VIP.String()
	}
	return ""
}

func (v *view) secret(name string) (string, error) {
	switch {
	case v.inFacts:
		return "", errors.New("facts hold no secrets; only files do")
	case !slices.Contains(v.role.Secrets, name):
		return "", fmt.Errorf("%q is not among the role's secrets; add it to secrets in role.yaml", name)
	}
	s, ok := v.secrets.Passwords[name]
	if !ok {
		return "", fmt.Errorf("the cluster has no secret %q", name)
	}
	v.used = true
	return s, nil
}

// nodeKey returns the private key of the node's certificate, for daemons that cannot read root's copy.
func (v *view) nodeKey() (string, error) {
	if v.inFacts {
		return "", errors.New("facts hold no secrets; only files do")
	}
	v.used = true
	return string(v.secrets.Nodes[v.node.Name].Key), nil
}

// siteCertificate returns the site's certificate chain and its private key, for the program that serves HTTPS.
func (v *view) siteCertificate() (string, error) {
	switch {
	case v.inFacts:
		return "", errors.New("facts hold no secrets; only files do")
	case !v.role.TLS:
		return "", errors.New("the role does not serve HTTPS; if it does, add tls: true to role.yaml")
	case v.spec.Site.TLS == nil:
		return "", errors.New("the spec has no site.tls; leave the file out then, with when")
	}
	v.used = true
	return string(v.secrets.Site.Cert) + string(v.secrets.Site.Key), nil
}

// refusal is the message of a template that cannot be rendered for the spec.
type refusal string

func (r refusal) Error() string { return string(r) }

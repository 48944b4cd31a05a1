package cluster

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"imagegen/internal/words"
)

// TLS says where the certificate of the site's HTTPS comes from: the cluster's authority (SelfSigned), two files, or a
// program.
type TLS struct {
	SelfSigned bool
	// Certificate and Key are PEM files, relative to the spec's folder. The first certificate is the site's own.
	Certificate, Key string
	Command          []string // prints both
	// HSTS is for how many seconds browsers use nothing but HTTPS for the site; empty: the site does not say.
	HSTS string
	// Hosts are what a self-signed certificate is for: names and addresses.
	Hosts []string

	at map[string]Problem // positions of the keys
}

// Fault returns a problem at one of the keys of site.tls, or at site.tls itself.
func (t *TLS) Fault(key, msg string) Problem {
	at, ok := t.at[key]
	if !ok {
		at = t.at[""]
	}
	at.Msg = msg
	return at
}

// Host is the host of the site's URL; empty: the site answers under any host name.
func (s Site) Host() string {
	u, err := url.Parse(s.URL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

const (
	selfSigned = "self-signed"
	tlsExample = "{certificate: fullchain.pem, key: privkey.pem}"
)

func (p *parser) tls(v value) {
	if v.node == nil {
		return
	}
	t := &TLS{at: map[string]Problem{}}
	at := func(key string, v value) {
		t.at[key] = Problem{File: p.file, Line: max(v.line, 1), Col: max(v.col, 1), Path: v.path}
	}
	at("", v)
	p.spec.Site.TLS = t
	if v.node.Kind == yaml.ScalarNode {
		what := selfSigned + ", or where the certificate is, such as " + tlsExample
		if s, ok := p.text(v, what); ok && s != selfSigned {
			p.faultf(v, "%s is no certificate; write %s", words.Quote(s), what)
		}
		t.SelfSigned = true
		return
	}
	get, ok := p.object(v, tlsExample, "certificate", "key", "command", "hsts")
	if !ok {
		return
	}
	cert, key, command := get("certificate"), get("key"), get("command")
	switch {
	case command.given() && (cert.given() || key.given()):
		p.faultf(command, "the command prints the certificate and its key; remove certificate and key, or command")
	case command.missing && cert.missing && key.missing:
		p.faultf(v, "has no certificate; write certificate: and key:, with the paths of PEM files, or command:, a program that prints both")
	case command.missing:
		p.required(cert, "fullchain.pem")
		p.required(key, "privkey.pem")
	}
	for _, f := range []struct {
		value value
		key   string
		into  *string
	}{{cert, "certificate", &t.Certificate}, {key, "key", &t.Key}} {
		at(f.key, f.value)
		*f.into, _ = p.text(f.value, "the path of a PEM file")
	}
	at("command", command)
	parts := p.list(command, "[./certificate.sh]")
	if command.given() && len(parts) == 0 && command.node.Kind == yaml.SequenceNode {
		p.faultf(command, "is empty; write a program and its arguments, such as [./certificate.sh]")
	}
	for _, part := range parts {
		if s, ok := p.text(part, "a program or an argument"); ok {
			t.Command = append(t.Command, s)
		}
	}
	if h := get("hsts"); h.given() {
		if _, ok := p.number(h, 0, 2*365*24*60*60); ok {
			t.HSTS = h.node.Value
		}
	}
}

// tlsHosts checks site.tls against the rest of the spec, and fills in what a self-signed certificate is for.
func (p *parser) tlsHosts(tls, at value) {
	t := p.spec.Site.TLS
	if t == nil || len(p.spec.Roles) == 0 {
		return
	}
	host := p.spec.Site.Host()
	if host != "" {
		t.Hosts = append(t.Hosts, host)
	}
	if strings.HasPrefix(p.spec.Site.URL, "http:") {
		p.faultf(at, "is not encrypted, but the spec has site.tls; write https:, or remove tls")
	}
	// Certificates of the authority are what nodes know each other by.
	if _, taken := p.nodes[host]; taken && t.SelfSigned {
		p.faultf(at, "%s is a node's name, which no other certificate of the cluster may have; write another host, or give tls a certificate", host)
	}
	serves := false
	for _, r := range p.spec.Roles {
		if !p.rules[r.Name].TLS {
			continue
		}
		serves = true
		addrs := []netip.Addr{r.VIP}
		if !r.VIP.IsValid() {
			addrs = nil
			for _, n := range r.Nodes {
				addrs = append(addrs, n.IP)
			}
		}
		for _, a := range addrs {
			if a.String() != host {
				t.Hosts = append(t.Hosts, a.String())
			}
		}
	}
	// The lab forwards a port of this machine to the site.
	for _, local := range []string{"localhost", "127.0.0.1"} {
		if host != local {
			t.Hosts = append(t.Hosts, local)
		}
	}
	if !serves {
		var able []string
		for name, r := range p.rules {
			if r.TLS {
				able = append(able, name)
			}
		}
		slices.Sort(able)
		add := "remove it"
		if len(able) > 0 {
			add = "add the role " + words.List(able, "or") + ", or remove it"
		}
		p.faultf(tls, "no role in the spec serves HTTPS; %s", add)
	}
}

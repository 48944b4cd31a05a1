package roles

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"imagegen/cluster/facts"
	"imagegen/distro"
)

// Ports that are open on every node, whatever its role.
var everyNode = []Port{
	{Port: "22", Proto: "tcp", From: []string{"any"}, Why: "SSH, for whom the spec gives a key"},
	// The operator's machine is on the network but not a node; the agent rejects clients without a certificate.
	{Port: fmt.Sprint(facts.APIPort), Proto: "tcp", From: []string{"network"}, Why: "agent: peers and operator, with certificates"},
	{Port: fmt.Sprint(facts.HealthPort), Proto: "tcp", From: []string{"cluster"}, Why: "agent: health, for load balancers"},
}

// ports returns the ports of every node, those for the operators' networks, and those of the role.
func (r *renderer) ports() []Port {
	all := slices.Clone(everyNode)
	for _, o := range r.spec.Operators {
		all = append(all, Port{Port: fmt.Sprint(facts.APIPort), Proto: "tcp", From: []string{o.String()}, Why: "agent: operators elsewhere, with certificates"})
	}
	return append(all, r.role.Ports...)
}

// firewalls has, for each syntax of rulesets, the component that loads them and the function that writes them.
var firewalls = map[distro.Syntax]struct {
	component string
	rules     func(*renderer) []byte
}{
	distro.NFTables:  {facts.Firewall, (*renderer).nftables},
	distro.IPTables:  {facts.Firewall, func(r *renderer) []byte { return r.iptables(false) }},
	distro.IP6Tables: {facts.Firewall6, func(r *renderer) []byte { return r.iptables(true) }},
}

// strayed says why segments of connections that the node does not know are answered, unlike attempts to connect: when an address has moved
// or a port has closed, whoever sends them would wait for an answer until its own timeout.
const strayed = "connections that are gone: who still uses them learns it"

// nftables renders the node's ruleset from its role's ports; everything else is dropped, and a connection that is gone is reset.
func (r *renderer) nftables() []byte {
	var b bytes.Buffer
	b.WriteString(`#!/usr/sbin/nft -f

flush ruleset

table inet imagegen {
	chain input {
		type filter hook input priority filter; policy drop;

		ct state established,related accept
		ct state invalid drop
		iif lo accept
		meta l4proto { 1, 58 } accept comment "ICMP; images have no /etc/protocols"
`)
	for _, p := range r.open {
		from := r.sources(p)
		what := "ip protocol 112"
		if p.Proto != "vrrp" {
			what = p.Proto + " dport " + p.Port
		}
		switch {
		case len(from) == 0:
			fmt.Fprintf(&b, "\t\t%s\n", r.nowhere(p))
			continue
		case from[0] == anywhere:
		case len(from) == 1 && strings.Contains(from[0], "/"):
			what = "ip saddr " + from[0] + " " + what
		default:
			what = "ip saddr { " + strings.Join(from, ", ") + " } " + what
		}
		fmt.Fprintf(&b, "\t\t%s accept comment \"%s\"\n", what, p.Why)
	}
	fmt.Fprintf(&b, "\t\ttcp flags & (syn | rst | ack) == ack reject with tcp reset comment \"%s\"\n\t}\n}\n", strayed)
	return b.Bytes()
}

// iptables renders the same rules for iptables-restore, for IPv4 or for IPv6. The cluster's addresses are IPv4, so
// ports that only some of them may reach are closed over IPv6.
func (r *renderer) iptables(v6 bool) []byte {
	var b bytes.Buffer
	icmp := "icmp"
	if v6 {
		icmp = "ipv6-icmp"
	}
	fmt.Fprintf(&b, `*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -i lo -j ACCEPT
-A INPUT -p %s -j ACCEPT
`, icmp)
	for _, p := range r.open {
		what := "-p 112"
		if p.Proto != "vrrp" {
			what = "-p " + p.Proto + " --dport " + strings.Replace(p.Port, "-", ":", 1)
		}
		from := r.sources(p)
		if len(from) == 0 {
			fmt.Fprintln(&b, r.nowhere(p))
		}
		for _, f := range from {
			if f != anywhere {
				if v6 {
					continue
				}
				f = "-s " + f + " "
			}
			fmt.Fprintf(&b, "-A INPUT %s%s -m comment --comment \"%s\" -j ACCEPT\n", f, what, p.Why)
		}
	}
	fmt.Fprintf(&b, "-A INPUT -p tcp --tcp-flags SYN,RST,ACK ACK -m comment --comment \"%s\" -j REJECT --reject-with tcp-reset\nCOMMIT\n", strayed)
	return b.Bytes()
}

// nowhere is a comment instead of a rule, for a port that nobody may reach.
func (r *renderer) nowhere(p Port) string {
	return fmt.Sprintf("# %s %s: %s: no node of %s in this cluster", p.Proto, p.Port, p.Why, strings.Join(p.From, ", "))
}

// anywhere is the source of a port that is open to everybody.
const anywhere = ""

// sources lists the allowed sources of packets to a port: addresses, the cluster's network, or only anywhere; empty if
// there are none.
func (r *renderer) sources(p Port) []string {
	others := func(from string) bool {
		return from != r.role.Name && (slices.Contains(everywhere, from) || len(r.nodes(from)) > 0)
	}
	from := p.From
	if p.Otherwise != "" && !slices.ContainsFunc(p.From, others) {
		from = []string{p.Otherwise}
	}
	var addrs []string
	var listed []string // role names
	add := func(role string) {
		if slices.Contains(listed, role) {
			return
		}
		listed = append(listed, role)
		for _, n := range r.nodes(role) {
			addrs = append(addrs, n.IP.String())
		}
	}
	for _, f := range from {
		switch f {
		case "any":
			return []string{anywhere}
		case "network":
			return []string{r.spec.Network.CIDR.Masked().String()}
		case "cluster":
			for _, role := range r.spec.Roles {
				add(role.Name)
			}
		default:
			if strings.Contains(f, "/") { // one of the operators' networks
				addrs = append(addrs, f)
				continue
			}
			add(f)
		}
	}
	return addrs
}

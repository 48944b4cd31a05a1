package roles

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"imagegen/cluster"
)

// Ports that every node has, whatever its role.
var everyNode = []Port{
	{Port: "22", Proto: "tcp", From: []string{"any"}, Why: "SSH, for whom the spec gives a key"},
	// The operator's machine is on the network, but no node; who has no certificate is turned away by the agent.
	{Port: fmt.Sprint(cluster.APIPort), Proto: "tcp", From: []string{"network"}, Why: "agent: peers and operator, with certificates"},
	{Port: fmt.Sprint(cluster.HealthPort), Proto: "tcp", From: []string{"cluster"}, Why: "agent: health, for load balancers"},
}

// filtered tells whether the node gets a packet filter; CentOS 7 has no nftables service.
func (r *renderer) filtered() bool { return r.spec.Distro == "debian12" }

// firewall makes the node's nftables ruleset from the ports of its role: what is not declared does not come in.
func (r *renderer) firewall() []byte {
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
	for _, p := range slices.Concat(everyNode, r.role.Ports) {
		from, ok := r.sources(r.from(p))
		if !ok {
			fmt.Fprintf(&b, "\t\t# %s %s: %s: no node of %s in this cluster\n", p.Proto, p.Port, p.Why, strings.Join(p.From, ", "))
			continue
		}
		what := "ip protocol 112"
		if p.Proto != "vrrp" {
			what = p.Proto + " dport " + p.Port
		}
		fmt.Fprintf(&b, "\t\t%s%s accept comment \"%s\"\n", from, what, p.Why)
	}
	b.WriteString("\t}\n}\n")
	return b.Bytes()
}

// from lists where packets to a port may come from in this cluster.
func (r *renderer) from(p Port) []string {
	others := func(from string) bool {
		return from != r.role.Name && (slices.Contains(everywhere, from) || len(r.ips(from)) > 0)
	}
	if p.Otherwise != "" && !slices.ContainsFunc(p.From, others) {
		return []string{p.Otherwise}
	}
	return p.From
}

// sources is the part of a rule that says where packets may come from; false if nowhere in this cluster.
func (r *renderer) sources(from []string) (string, bool) {
	var addrs []string
	for _, f := range from {
		switch f {
		case "any":
			return "", true
		case "network":
			return "ip saddr " + r.spec.Network.CIDR.Masked().String() + " ", true
		case "cluster":
			for _, n := range r.spec.Nodes() {
				addrs = append(addrs, n.IP.String())
			}
		}
		for _, ip := range r.ips(f) {
			if !slices.Contains(addrs, ip) {
				addrs = append(addrs, ip)
			}
		}
	}
	if len(addrs) == 0 {
		return "", false
	}
	return "ip saddr { " + strings.Join(addrs, ", ") + " } ", true
}

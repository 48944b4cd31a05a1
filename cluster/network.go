package cluster

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"imagegen/internal/words"
)

func (p *parser) network(v value) {
	get, ok := p.object(v, "{cidr: 192.168.10.0/24}", "cidr", "gateway", "dns")
	if !ok {
		return
	}
	p.cidr(p.required(get("cidr"), "192.168.10.0/24"))
	if g := get("gateway"); g.given() {
		p.spec.Network.Gateway = p.host(g, "the gateway")
	}
	seen := map[netip.Addr]bool{}
	for _, d := range p.list(get("dns"), "[192.168.10.1]") {
		addr, ok := p.address(d)
		switch {
		case !ok:
		case addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback():
			p.faultf(d, "%s cannot be the address of a resolver", addr)
		case seen[addr]:
			p.faultf(d, "%s is in the list twice; remove one", addr)
		default:
			seen[addr] = true
			p.spec.Network.DNS = append(p.spec.Network.DNS, addr)
		}
	}
}

func (p *parser) cidr(v value) {
	s, ok := p.text(v, "a network such as 192.168.10.0/24")
	if !ok {
		return
	}
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil && !strings.Contains(s, "/"):
		p.faultf(v, "%s has no length; write a network such as 192.168.10.0/24", words.Quote(s))
	case err != nil:
		p.faultf(v, "%s is not a network; write one such as 192.168.10.0/24", words.Quote(s))
	case !prefix.Addr().Is4():
		p.faultf(v, "%s is an IPv6 network; clusters have IPv4 networks only, such as 192.168.10.0/24", s)
	case prefix.Bits() < 8 || prefix.Bits() > 30:
		p.faultf(v, "a network of length /%d is not allowed; it must be /8 to /30", prefix.Bits())
	case prefix != prefix.Masked():
		p.faultf(v, "%s is an address in a network; write %s", s, prefix.Masked())
	case prefix.Addr().IsLoopback(), prefix.Addr().IsMulticast(), prefix.Addr().IsLinkLocalUnicast(),
		prefix.Addr().As4()[0] == 0, prefix.Addr().As4()[0] >= 240:
		p.faultf(v, "%s is reserved; write a network of your own, such as 192.168.10.0/24", s)
	default:
		p.spec.Network.CIDR = prefix
	}
}

// operators reads the networks from which agents may be asked.
func (p *parser) operators(v value) {
	for _, o := range p.list(v, "[192.0.2.0/24]") {
		s, ok := p.text(o, "a network such as 192.0.2.0/24")
		if !ok {
			continue
		}
		prefix, err := netip.ParsePrefix(s)
		switch {
		case err != nil && !strings.Contains(s, "/"):
			p.faultf(o, "%s has no length; write a network such as 192.0.2.0/24, or 192.0.2.7/32 for one computer", words.Quote(s))
		case err != nil:
			p.faultf(o, "%s is not a network; write one such as 192.0.2.0/24", words.Quote(s))
		case !prefix.Addr().Is4():
			p.faultf(o, "%s is an IPv6 network; nodes have IPv4 addresses only, so write a network such as 192.0.2.0/24", s)
		case prefix != prefix.Masked():
			p.faultf(o, "%s is an address in a network; write %s, or %s/32 for one computer", s, prefix.Masked(), prefix.Addr())
		case slices.Contains(p.spec.Operators, prefix):
			p.faultf(o, "%s is in the list twice; remove one", s)
		default:
			p.spec.Operators = append(p.spec.Operators, prefix)
		}
	}
}

// address returns the IPv4 address at v.
func (p *parser) address(v value) (netip.Addr, bool) {
	s, ok := p.text(v, "an IPv4 address")
	if !ok {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		p.faultf(v, "%s is not an IPv4 address; write one such as 192.168.10.42", words.Quote(s))
	case !addr.Is4():
		p.faultf(v, "%s is an IPv6 address; nodes have IPv4 addresses only", words.Quote(s))
	default:
		return addr, true
	}
	return netip.Addr{}, false
}

// host returns the address at v, which must be a host's address in the network and not yet used, and marks it as used
// by who. It returns the zero address if it reported an error.
func (p *parser) host(v value, who string) netip.Addr {
	addr, ok := p.address(v)
	if !ok {
		return netip.Addr{}
	}
	if net := p.spec.Network.CIDR; net.IsValid() {
		switch {
		case !net.Contains(addr):
			p.faultf(v, "%s is outside network %s", addr, net)
			return netip.Addr{}
		case addr == net.Addr():
			p.faultf(v, "%s is the network's own address; write another of %s", addr, net)
			return netip.Addr{}
		case addr == broadcast(net):
			p.faultf(v, "%s is the network's broadcast address; write another of %s", addr, net)
			return netip.Addr{}
		}
	}
	if h, taken := p.addresses[addr]; taken {
		p.faultf(v, "%s is already the address of %s, line %d; write another", addr, h.who, h.line)
		return netip.Addr{}
	}
	p.addresses[addr] = holder{who, v.line}
	return addr
}

// broadcast returns the last address of an IPv4 network.
func broadcast(net netip.Prefix) netip.Addr {
	b := net.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|(1<<(32-net.Bits())-1))
	return netip.AddrFrom4(b)
}

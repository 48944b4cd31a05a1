package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"imagegen/cluster"
)

// operatorAddress returns this machine's address on the cluster's network, for asking agents and forwarding the site: the spec's
// gateway, or else the highest address that is free. Nothing is routed: the network has no way out.
func operatorAddress(spec *cluster.Spec) (netip.Prefix, error) {
	cidr := spec.Network.CIDR.Masked()
	if spec.Network.Gateway.IsValid() {
		return netip.PrefixFrom(spec.Network.Gateway, cidr.Bits()), nil
	}
	taken := slices.Clone(spec.Network.DNS)
	for _, r := range spec.Roles {
		taken = append(taken, r.VIP)
		for _, n := range r.Nodes {
			taken = append(taken, n.IP)
		}
	}
	last := lastAddress(cidr)
	if cidr.Addr().Is4() && cidr.Bits() < 31 {
		last = last.Prev() // not the broadcast address
	}
	for a := last; cidr.Contains(a) && a != cidr.Addr(); a = a.Prev() {
		if !slices.Contains(taken, a) {
			return netip.PrefixFrom(a, cidr.Bits()), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("network %s has no address left for this machine: give it a shorter prefix", cidr)
}

func lastAddress(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if keep := p.Bits() - 8*i; keep < 8 {
			b[i] |= byte(0xff) >> max(keep, 0)
		}
	}
	a, _ := netip.AddrFromSlice(b) // as long as before
	return a
}

// siteRole returns the role that serves the cluster's site: balancer, or else the first role that has a virtual address, if any.
func siteRole(spec *cluster.Spec) (role cluster.Role, ok bool) {
	for _, r := range spec.Roles {
		if r.VIP.IsValid() && (!ok || r.Name == "balancer") {
			role, ok = r, true
		}
	}
	return role, ok
}

// siteAddress returns the virtual address at which the cluster serves its site, if it has one.
func siteAddress(spec *cluster.Spec) (netip.Addr, bool) {
	role, ok := siteRole(spec)
	return role.VIP, ok
}

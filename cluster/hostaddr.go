package cluster

import (
	"fmt"
	"net/netip"
	"slices"
)

// HostAddr returns an address on the cluster's network for the computer that its machines run on: the first that no
// node and no role uses.
func (s *Spec) HostAddr() (netip.Addr, error) {
	var taken []netip.Addr
	for _, r := range s.Roles {
		taken = append(taken, r.VIP)
		for _, n := range r.Nodes {
			taken = append(taken, n.IP)
		}
	}
	cidr := s.Network.CIDR.Masked()
	// The last address of a network is its broadcast address.
	for a := cidr.Addr().Next(); cidr.Contains(a.Next()); a = a.Next() {
		if !slices.Contains(taken, a) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("network %s has no address left for the host; take a larger network", cidr)
}

package lab

import (
	"net/netip"
	"testing"

	"imagegen/cluster"
)

func TestOperatorAddress(t *testing.T) {
	for _, c := range []struct {
		cidr, gateway, want string
		taken               []string
	}{
		{cidr: "192.168.10.0/24", want: "192.168.10.254/24"},
		{cidr: "192.168.10.0/24", gateway: "192.168.10.1", want: "192.168.10.1/24"},
		{cidr: "192.168.10.0/24", taken: []string{"192.168.10.254", "192.168.10.253"}, want: "192.168.10.252/24"},
		{cidr: "192.168.10.77/24", want: "192.168.10.254/24"},
		{cidr: "10.0.0.0/22", want: "10.0.3.254/22"},
		{cidr: "10.0.0.0/30", taken: []string{"10.0.0.2"}, want: "10.0.0.1/30"},
		{cidr: "10.0.0.0/30", taken: []string{"10.0.0.1", "10.0.0.2"}},
		{cidr: "10.0.0.4/32", taken: []string{"10.0.0.4"}},
		{cidr: "fd00::/120", taken: []string{"fd00::ff"}, want: "fd00::fe/120"},
	} {
		spec := &cluster.Spec{Network: cluster.Network{CIDR: netip.MustParsePrefix(c.cidr)}}
		if c.gateway != "" {
			spec.Network.Gateway = netip.MustParseAddr(c.gateway)
		}
		// An address may belong to a node, be a virtual address, or a resolver's.
		role := cluster.Role{}
		for i, a := range c.taken {
			switch ip := netip.MustParseAddr(a); i {
			case 0:
				role.VIP = ip
			case 1:
				spec.Network.DNS = append(spec.Network.DNS, ip)
			default:
				role.Nodes = append(role.Nodes, cluster.Node{IP: ip})
			}
		}
		spec.Roles = []cluster.Role{role}
		got, err := operatorAddress(spec)
		if (err != nil) != (c.want == "") || err == nil && got.String() != c.want {
			t.Errorf("%+v: %s, %v", c, got, err)
		}
	}
}

func TestSiteAddress(t *testing.T) {
	vip := func(name, ip string) cluster.Role {
		r := cluster.Role{Name: name}
		if ip != "" {
			r.VIP = netip.MustParseAddr(ip)
		}
		return r
	}
	for _, c := range []struct {
		roles []cluster.Role
		want  string
	}{
		{[]cluster.Role{vip("web", ""), vip("databalancer", "10.0.0.53"), vip("balancer", "10.0.0.39")}, "10.0.0.39"},
		{[]cluster.Role{vip("balancer", ""), vip("front", "10.0.0.7"), vip("databalancer", "10.0.0.53")}, "10.0.0.7"},
		{[]cluster.Role{vip("redis", "")}, ""},
	} {
		got, ok := siteAddress(&cluster.Spec{Roles: c.roles})
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%v: %s, %t", c.roles, got, ok)
		}
	}
}

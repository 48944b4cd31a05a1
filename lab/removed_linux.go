package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"imagegen/cluster"
)

// removed returns the nodes that this lab has and the spec no longer has, with the role and address that their machines have.
func (l *Lab) removed() []cluster.Node {
	var nodes []cluster.Node
	for _, name := range Removed(l.spec, l.paths.out) {
		nodes = append(nodes, l.runs(cluster.Node{Name: name}))
	}
	return nodes
}

// runs returns a node with the role and address that its machine was last turned on with, if there is one: the spec may have
// changed since.
func (l *Lab) runs(n cluster.Node) cluster.Node {
	p, err := l.provider()
	if err != nil {
		return n
	}
	m, ok := p.Made(n.Name)
	if !ok {
		return n
	}
	if ip, err := netip.ParseAddr(m.IP); err == nil {
		n.IP = ip
	}
	n.Role = m.Role
	return n
}

// known returns the nodes with these names, in this order, from the spec or this lab.
func (l *Lab) known(names []string) ([]cluster.Node, error) {
	removed := l.removed()
	var nodes []cluster.Node
	for _, name := range names {
		n, ok := l.spec.Node(name)
		if !ok {
			i := slices.IndexFunc(removed, func(n cluster.Node) bool { return n.Name == name })
			if i < 0 {
				return nil, fmt.Errorf("cluster %s has no node %s", l.spec.Cluster, name)
			}
			n = removed[i]
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// addressOf returns a node's address; empty if it is not known.
func addressOf(n cluster.Node) string {
	if !n.IP.IsValid() {
		return ""
	}
	return n.IP.String()
}

// checkAddresses refuses to turn on nodes while other running nodes still have their addresses: nodes that the spec no longer has, or
// whose addresses it has changed since they were turned on.
func (l *Lab) checkAddresses(nodes []cluster.Node) error {
	wanted := map[string]string{}
	for _, n := range nodes {
		wanted[addressOf(n)] = n.Name
		if vip := l.spec.Role(n.Role).VIP; vip.IsValid() {
			wanted[vip.String()] = n.Name
		}
	}
	for _, other := range append(l.spec.Nodes(), l.removed()...) {
		if !l.group.Sub(other.Name).Busy() {
			continue
		}
		address := addressOf(l.runs(other))
		if name := wanted[address]; name != "" && name != other.Name {
			return fmt.Errorf("%s still runs with the address %s, which the spec now gives to %s: imagegen kill %s", other.Name, address, name, other.Name)
		}
	}
	return nil
}

// Remove cuts the power of nodes that the spec no longer has, and removes everything that the lab has of them.
func (l *Lab) Remove(ctx context.Context, names ...string) error {
	nodes, err := l.known(names)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if _, ok := l.spec.Node(n.Name); ok {
			return fmt.Errorf("%s is in the spec: only nodes that the spec no longer has are removed one by one", n.Name)
		}
	}
	c, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer c.release()
	p, err := l.provider()
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if err := p.Remove(ctx, n.Name, true); err != nil {
			return err
		}
		if err := p.Forget(ctx, n.Name); err != nil {
			return err
		}
	}
	return nil
}

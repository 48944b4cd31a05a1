package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/facts"
)

// removed returns the nodes of this lab that the spec no longer has, as far as the seeds that they have say what they are.
func (l *Lab) removed() []cluster.Node {
	var nodes []cluster.Node
	for _, name := range Removed(l.spec, l.paths.out) {
		n, _ := l.bootedAs(name) // unknown, where an interrupted up has left no seed
		n.Name = name
		nodes = append(nodes, n)
	}
	return nodes
}

// known returns the nodes with these names, in this order: of the spec, or of this lab.
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

// bootedAs returns what the seed that a node was last turned on with makes of it.
func (l *Lab) bootedAs(name string) (cluster.Node, error) {
	seed, err := cloudinit.ReadISO(l.paths.in(name, seedFile))
	if err != nil {
		return cluster.Node{}, err
	}
	files, err := seed.Files()
	if err != nil {
		return cluster.Node{}, err
	}
	for _, f := range files {
		if f.Path != facts.FactsPath {
			continue
		}
		var known struct{ Node facts.Peer }
		if err := json.Unmarshal(f.Content, &known); err != nil {
			return cluster.Node{}, fmt.Errorf("%s on the seed of %s: %w", f.Path, name, err)
		}
		ip, err := netip.ParseAddr(known.Node.IP)
		return cluster.Node{Name: name, Role: known.Node.Role, IP: ip}, err
	}
	return cluster.Node{}, fmt.Errorf("the seed of %s has no %s", name, facts.FactsPath)
}

// runningAddress returns the address that a node has, which need not be the spec's; the spec's where it is not known.
func (l *Lab) runningAddress(n cluster.Node) string {
	if latest, err := l.hasLatestSeed(n.Name); err != nil || !latest {
		if was, err := l.bootedAs(n.Name); err == nil {
			return addressOf(was)
		}
	}
	return addressOf(n)
}

// addressOf is empty for a node whose address is not known.
func addressOf(n cluster.Node) string {
	if !n.IP.IsValid() {
		return ""
	}
	return n.IP.String()
}

// checkAddresses refuses to turn on nodes whose addresses others have that run: because the spec no longer has them, or
// gave them other addresses since they were turned on.
func (l *Lab) checkAddresses(nodes []cluster.Node) error {
	wanted := map[string]string{}
	for _, n := range nodes {
		wanted[addressOf(n)] = n.Name
		if vip := l.spec.Role(n.Role).VIP; vip.IsValid() {
			wanted[vip.String()] = n.Name
		}
	}
	for _, other := range append(l.spec.Nodes(), l.removed()...) {
		if !l.group.sub(other.Name).busy() {
			continue
		}
		address := l.runningAddress(other)
		if name := wanted[address]; name != "" && name != other.Name {
			return fmt.Errorf("%s still runs with the address %s, which the spec now gives to %s: imagegen kill %s", other.Name, address, name, other.Name)
		}
	}
	return nil
}

// Remove cuts the power of nodes that the spec no longer has, and removes their disks and all else that the lab keeps
// of them.
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
	for _, n := range nodes {
		if err := l.powerOff(ctx, n.Name); err != nil {
			return err
		}
		if err := os.RemoveAll(l.paths.node(n.Name)); err != nil {
			return err
		}
	}
	return nil
}

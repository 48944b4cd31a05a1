package main

import (
	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/machines/fleet"
)

// made returns the build results in the output folder.
func (p *project) made() fleet.Made { return fleet.Made{Spec: p.spec, Dir: p.out, Seed: p.seeds()} }

// writeExpected writes dist/expected.json from the images and seeds in the output folder. Seeds of another cluster and
// unreadable files are left out, because seed and build replace them.
func (p *project) writeExpected(clusterID string) error {
	e := expected.Expected{Version: expected.Version, Cluster: p.spec.Cluster, ClusterID: clusterID}
	made, identities := p.made(), map[string]string{}
	for _, r := range p.spec.Roles {
		identities[r.Name], _ = made.ImageIdentity(r.Name)
	}
	nodes := p.spec.Nodes()
	e.Nodes = make([]expected.Node, len(nodes))
	if err := eachNode(nodes, func(i int, n cluster.Node) error {
		e.Nodes[i] = expected.Node{Node: n.Name, Role: n.Role, Address: n.IP.String(), Image: identities[n.Role]}
		if id, err := made.SeedIdentity(n.Name); err == nil && id.Cluster == clusterID && id.Node == n.Name {
			e.Nodes[i].Seed = id.Digest
		}
		return nil
	}); err != nil {
		return err
	}
	return e.Write(expected.Path(p.out))
}

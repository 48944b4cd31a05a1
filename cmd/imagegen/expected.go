package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/images"
)

// imageIdentity returns the identity in the manifest of a role's image.
func (p *project) imageIdentity(role string) (string, error) {
	path := filepath.Join(p.out, "images", role+".json")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var m images.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return m.Identity, nil
}

// seedIdentity returns whose seed is in a node's place, and its digest.
func (p *project) seedIdentity(node string) (nocloud.Identity, error) {
	s, err := cloudinit.ReadISO(p.seedPath(node))
	if err != nil {
		return nocloud.Identity{}, err
	}
	id, err := nocloud.Seed(s).Identity()
	if err != nil {
		return id, fmt.Errorf("%s: %w", p.seedPath(node), err)
	}
	return id, nil
}

// writeExpected writes down which image and seed each node should have: those that are in the output folder now. Seeds of
// another cluster do not count, nor does what cannot be read: build and seed make it anew.
func (p *project) writeExpected(clusterID string) error {
	e := expected.Expected{Version: expected.Version, Cluster: p.spec.Cluster, ClusterID: clusterID}
	identities := map[string]string{}
	for _, r := range p.spec.Roles {
		identities[r.Name], _ = p.imageIdentity(r.Name)
	}
	nodes := p.spec.Nodes()
	e.Nodes = make([]expected.Node, len(nodes))
	if err := eachNode(nodes, func(i int, n cluster.Node) error {
		e.Nodes[i] = expected.Node{Node: n.Name, Role: n.Role, Address: n.IP.String(), Image: identities[n.Role]}
		if id, err := p.seedIdentity(n.Name); err == nil && id.Cluster == clusterID && id.Node == n.Name {
			e.Nodes[i].Seed = id.Digest
		}
		return nil
	}); err != nil {
		return err
	}
	return e.Write(expected.Path(p.out))
}

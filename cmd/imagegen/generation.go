package main

import (
	"bytes"
	"os"
	"path/filepath"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/internal/atomicfile"
)

// rendering is what the spec and the secrets give one node.
type rendering struct {
	node  cluster.Node
	seed  cloudinit.Seed
	facts string // digest of the facts in the seed
}

// render renders the seeds of all nodes of the spec.
func (p *project) render(keys *secrets.Secrets) ([]rendering, error) {
	nodes := p.spec.Nodes()
	all := make([]rendering, len(nodes))
	err := eachNode(nodes, func(i int, n cluster.Node) error {
		files, err := p.files(keys, n)
		if err != nil {
			return err
		}
		all[i].node = n
		for _, f := range files {
			if f.Path == facts.FactsPath {
				all[i].facts = facts.Digest(f.Content)
			}
		}
		all[i].seed, err = cloudinit.New(p.spec, keys.ClusterID, n, files)
		return err
	})
	return all, err
}

// manifest returns the manifest of these nodes, without a number. Their images are those in the output folder.
func (p *project) manifest(keys *secrets.Secrets, all []rendering) facts.Manifest {
	m := facts.Manifest{Version: facts.ManifestVersion, Cluster: p.spec.Cluster, ClusterID: keys.ClusterID, Secrets: keys.Revision}
	made, images := p.made(), map[string]string{}
	for _, r := range p.spec.Roles {
		images[r.Name], _ = made.ImageIdentity(r.Name) // there may be none yet
	}
	for _, r := range all {
		m.Members = append(m.Members, facts.Member{
			Name: r.node.Name, Role: r.node.Role, IP: r.node.IP.String(), Index: r.node.Index, Data: p.spec.Role(r.node.Role).Data > 0,
			Image: images[r.node.Role], Seed: nocloud.Digest(r.seed.UserData, r.seed.NetworkConfig), Facts: r.facts,
		})
	}
	return m
}

// numbering gives a manifest its number: [secrets.Render] takes it, [secrets.Number] only says which it would be.
type numbering func(dir string, m facts.Manifest, inUse *facts.Generation) (facts.Manifest, error)

// number gives these nodes' manifest its number, signs it, and puts it on their seeds. inUse is the generation in use; nil: not known.
func (p *project) number(keys *secrets.Secrets, all []rendering, inUse *facts.Generation, give numbering) (facts.Manifest, error) {
	m, err := give(p.secretsDir(), p.manifest(keys, all), inUse)
	if err != nil {
		return m, err
	}
	signed, err := keys.Sign(m)
	if err != nil {
		return m, err
	}
	for i := range all {
		all[i].seed.Generation = signed
	}
	return m, nil
}

func (p *project) generationPath() string { return filepath.Join(p.out, "generation.json") }

// writeGeneration writes the manifest to dist/generation.json, unless it is there. The digest of the file is the generation's.
func (p *project) writeGeneration(m facts.Manifest) error {
	path := p.generationPath()
	data, err := m.Encode()
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return atomicfile.Write(path, data, 0o644)
}

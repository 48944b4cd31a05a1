package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster"
	"imagegen/machines"
)

// Made is what build has made: images and seeds in a folder.
type Made struct {
	Spec *cluster.Spec
	Dir  string // as the user wrote it
	// Seed makes the seed that the spec gives a node. A node is turned on with no other.
	Seed func(cluster.Node) (cloudinit.Seed, error)
}

// ImagePath returns where a role's image belongs.
func (m Made) ImagePath(role string) string { return filepath.Join(m.Dir, "images", role+".raw") }

// SeedPath returns where a node's seed belongs.
func (m Made) SeedPath(node string) string { return filepath.Join(m.Dir, "seeds", node+".iso") }

// Machine is what the spec says of a node's machine, with the paths of what build has made for it, but not their identities.
func (m Made) Machine(clusterID string, n cluster.Node) (machines.Machine, error) {
	r := m.Spec.Role(n.Role)
	image, err1 := filepath.Abs(m.ImagePath(n.Role))
	seed, err2 := filepath.Abs(m.SeedPath(n.Name))
	return machines.Machine{
		Cluster: m.Spec.Cluster, ClusterID: clusterID, Node: n.Name, Role: n.Role,
		CPUs: r.CPUs, Memory: int64(r.Memory), Data: int64(r.Data), MAC: n.MAC, IP: n.IP.String(), Privileged: r.Privileged != "",
		Image: machines.File{Path: image}, Seed: machines.File{Path: seed},
	}, errors.Join(err1, err2)
}

// manifest is what is needed of the file beside an image.
type manifest struct {
	Identity string
	Inputs   struct {
		Base struct{ Distro string }
	}
}

func (m Made) manifest(role string) (manifest, error) {
	path := strings.TrimSuffix(m.ImagePath(role), ".raw") + ".json"
	var f manifest
	data, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// ImageIdentity returns the identity in the manifest of a role's image.
func (m Made) ImageIdentity(role string) (string, error) {
	f, err := m.manifest(role)
	return f.Identity, err
}

// SeedIdentity returns whose seed is in a node's place, and its digest.
func (m Made) SeedIdentity(node string) (nocloud.Identity, error) {
	s, err := cloudinit.ReadISO(m.SeedPath(node))
	if err != nil {
		return nocloud.Identity{}, err
	}
	s.Generation = nil // no part of what the node is; checking it for each of many nodes takes long
	id, err := nocloud.Seed(s).Identity()
	if err != nil {
		return id, fmt.Errorf("%s: %w", m.SeedPath(node), err)
	}
	return id, nil
}

// Check makes sure that build has made what these nodes are turned on with, and from this spec.
func (m Made) Check(nodes []cluster.Node) error {
	var missing []string
	for _, n := range nodes {
		for _, f := range []string{m.ImagePath(n.Role), m.SeedPath(n.Name)} {
			if _, err := os.Stat(f); err != nil && !slices.Contains(missing, f) {
				missing = append(missing, f)
			}
		}
	}
	if missing != nil {
		return fmt.Errorf("not there yet: %s: imagegen build and imagegen seed make them", strings.Join(missing, ", "))
	}
	strange, err := m.strange(nodes)
	if err != nil {
		return err
	}
	switch len(strange) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%s is not of this spec: imagegen build", strange[0])
	}
	return fmt.Errorf("%s are not of this spec: imagegen build", strings.Join(strange, ", "))
}

// strange returns the images and seeds of nodes that another spec than this has given them.
func (m Made) strange(nodes []cluster.Node) ([]string, error) {
	var files []string
	for _, n := range nodes {
		image := m.ImagePath(n.Role)
		// An image without a manifest, or with one that names no distro, gets the benefit of the doubt.
		f, err := m.manifest(n.Role)
		if d := f.Inputs.Base.Distro; err == nil && d != "" && d != m.Spec.Distro && !slices.Contains(files, image) {
			files = append(files, image)
		}
	}
	for _, n := range nodes {
		want, err := m.Seed(n)
		if err != nil {
			return nil, err
		}
		// One that cannot be read is not of this spec either, and made anew in the same way.
		if have, err := cloudinit.ReadISO(m.SeedPath(n.Name)); err != nil || !SameSeed(have, want) {
			files = append(files, m.SeedPath(n.Name))
		}
	}
	return files, nil
}

// SameSeed tells whether two seeds make the same of a node.
func SameSeed(a, b cloudinit.Seed) bool {
	return bytes.Equal(a.MetaData, b.MetaData) && bytes.Equal(a.UserData, b.UserData) && bytes.Equal(a.NetworkConfig, b.NetworkConfig)
}

// Package expected reads and writes expected.json, which says which image and seed each node of a cluster should have.
// It contains no secrets, so that any computer can compare running nodes with it.
package expected

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"imagegen/internal/atomicfile"
)

// Version is the version of the file's format.
const Version = 1

// Expected is the file's content.
type Expected struct {
	Version   int    `json:"version"`
	Cluster   string `json:"cluster"`
	ClusterID string `json:"cluster_id"`
	Nodes     []Node `json:"nodes"` // in the spec's order
}

// Node is what one node should run.
type Node struct {
	Node    string `json:"node"`
	Role    string `json:"role"`
	Address string `json:"address"`
	// Image is the identity in the manifest of the role's image; empty if there is no image yet.
	Image string `json:"image,omitempty"`
	// Seed is the digest in the meta-data of the node's seed; empty if there is no seed yet.
	Seed string `json:"seed,omitempty"`
}

// Path returns the file's path in an output folder of build.
func Path(out string) string { return filepath.Join(out, "expected.json") }

// Read reads the file at path. The error wraps [fs.ErrNotExist] if there is none.
func Read(path string) (Expected, error) {
	var e Expected
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return e, fmt.Errorf("%w; imagegen build and imagegen seed write it", err)
	}
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("%s: %w; imagegen seed rewrites it", path, err)
	}
	if e.Version != Version {
		return e, fmt.Errorf("%s has format version %d, and this imagegen reads %d: imagegen seed rewrites it", path, e.Version, Version)
	}
	return e, nil
}

// Write writes the file at path, unless its content is unchanged.
func (e Expected) Write(path string) error {
	data, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return atomicfile.Write(path, data, 0o644)
}

// Node returns what the named node should run, and whether the file has it.
func (e Expected) Node(name string) (Node, bool) {
	for _, n := range e.Nodes {
		if n.Node == name {
			return n, true
		}
	}
	return Node{}, false
}

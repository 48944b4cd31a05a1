// Package nocloud handles a node's seed before cloud-init does: it finds and reads seeds, decides whether one is for
// this node, and keeps a copy on the root disk. cloud-init only reads that copy, so a node keeps its identity when its
// seed is detached.
package nocloud

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"imagegen/cluster/facts"
)

// Seed is the content of a seed, one field per file. Generation is nil on seeds of older versions of imagegen.
type Seed struct {
	MetaData, NetworkConfig, UserData, Generation []byte
}

// Names of a seed's files.
const (
	metaDataFile      = "meta-data"
	networkConfigFile = "network-config"
	userDataFile      = "user-data"
	// GenerationFile is the signed manifest of the seed's generation. cloud-init ignores it.
	GenerationFile = "generation"
)

type file struct {
	name string
	data *[]byte
}

// files returns the files that each seed has, and then the one that it need not have.
func (s *Seed) files() []file {
	return []file{{metaDataFile, &s.MetaData}, {networkConfigFile, &s.NetworkConfig}, {userDataFile, &s.UserData}, {GenerationFile, &s.Generation}}
}

// Keys of meta-data that identify the seed. cloud-init ignores them.
const (
	InstanceKey = "instance-id"
	ClusterKey  = "imagegen-cluster"
	NodeKey     = "imagegen-node"
	DigestKey   = "imagegen-digest"
)

// Identity says which node a seed is for, and identifies its content.
type Identity struct {
	Instance string // cloud-init's instance-id
	Cluster  string // the cluster's ID, not its name
	Node     string
	Digest   string // of user-data and network-config
	// Number and Generation are the number and the digest of the generation that the seed belongs to; 0 and empty: it belongs to
	// none.
	Number     int
	Generation string
}

// Digest identifies the content of a seed.
func Digest(userData, networkConfig []byte) string {
	h := sha256.New()
	for _, c := range [][]byte{userData, networkConfig} {
		fmt.Fprintf(h, "%d\n", len(c))
		h.Write(c)
	}
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}

// Identity reads the seed's meta-data and checks that the other files match it.
func (s Seed) Identity() (Identity, error) {
	id, err := parseMetaData(s.MetaData)
	if err != nil {
		return Identity{}, err
	}
	if len(s.Generation) > 0 {
		g, err := facts.OpenGeneration(s.Generation)
		if err != nil {
			return id, fmt.Errorf("damaged: %w", err)
		}
		if member, ok := g.Member(id.Node); g.ClusterID != id.Cluster || !ok || member.Seed != id.Digest {
			return id, fmt.Errorf("damaged: generation %d, which is on it, does not contain this seed", g.Number)
		}
		id.Number, id.Generation = g.Number, g.Digest
	}
	if have := Digest(s.UserData, s.NetworkConfig); have != id.Digest {
		return id, errors.New("damaged: user-data and network-config are not what meta-data says")
	}
	return id, nil
}

// parseMetaData parses lines of a key and a plain or quoted value. Our meta-data contains no other YAML, and the agent
// must not link a YAML library.
func parseMetaData(data []byte) (Identity, error) {
	values := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !ok {
			return Identity{}, fmt.Errorf("%s has the line %q: this seed was not made by imagegen", metaDataFile, line)
		}
		if _, twice := values[key]; twice {
			return Identity{}, fmt.Errorf("%s has %s twice", metaDataFile, key)
		}
		values[key] = strings.Trim(value, `"'`)
	}
	var id Identity
	for _, v := range []struct {
		key  string
		into *string
	}{{InstanceKey, &id.Instance}, {ClusterKey, &id.Cluster}, {NodeKey, &id.Node}, {DigestKey, &id.Digest}} {
		if *v.into = values[v.key]; *v.into == "" {
			return Identity{}, fmt.Errorf("%s has no %s: this seed was not made by imagegen, or by an older version", metaDataFile, v.key)
		}
	}
	return id, nil
}

// Found is a seed, or something that looks like one, attached to this machine.
type Found struct {
	Where string // a device or a folder
	Seed  Seed
	ID    Identity
	Err   error // why it cannot be used
}

// Choose returns the attached seed to apply, or nil, and messages for the console. kept is the identity of the seed
// that the node applied last; nil: it has none yet.
//
// A seed of an earlier generation than the kept one is never applied. Of several seeds for the node, the one of the latest
// generation is; if nothing says which is newer, none is.
func Choose(kept *Identity, found []Found) (take *Found, notes []string) {
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	var usable []*Found
	for i := range found {
		f := &found[i]
		switch {
		case kept != nil && f.ID.Node != "" && (f.ID.Cluster != kept.Cluster || f.ID.Node != kept.Node): // whatever else is wrong with it
			note("refused the seed on %s: it is for node %s of cluster %s, but this disk belongs to node %s of cluster %s. Attach the right seed, or start from a new root disk",
				f.Where, f.ID.Node, f.ID.Cluster, kept.Node, kept.Cluster)
		case f.Err != nil:
			note("cannot use the seed on %s: %v", f.Where, f.Err)
		case kept != nil && f.ID.Number < kept.Number && f.ID.Digest == kept.Digest: // the same for this node
		case kept != nil && f.ID.Number == 0 && kept.Number > 0:
			note("refused the seed on %s: it belongs to no generation, and this node runs generation %d. Make it anew with imagegen seed", f.Where, kept.Number)
		case kept != nil && f.ID.Number < kept.Number:
			note("refused the seed on %s: it is of generation %d, and this node runs generation %d already. Attach the seed of the latest generation", f.Where, f.ID.Number, kept.Number)
		case kept != nil && kept.Number > 0 && f.ID.Number == kept.Number && f.ID.Generation != kept.Generation:
			note("refused the seed on %s: it is of another generation %d than this node's: they were made with different copies of the cluster's secrets", f.Where, kept.Number)
		default:
			usable = append(usable, f)
		}
	}
	latest := 0
	for _, f := range usable {
		latest = max(latest, f.ID.Number)
	}
	usable = slices.DeleteFunc(usable, func(f *Found) bool { return 0 < f.ID.Number && f.ID.Number < latest })
	var where []string
	different := false
	for _, f := range usable {
		where = append(where, f.Where+" for node "+f.ID.Node)
		different = different || f.ID != usable[0].ID
	}
	switch {
	case different:
		note("several different seeds are attached (%s): none of them is applied. Detach all but one", strings.Join(where, ", "))
	case len(usable) > 0 && (kept == nil || usable[0].ID != *kept):
		take = usable[0]
	}
	return take, notes
}

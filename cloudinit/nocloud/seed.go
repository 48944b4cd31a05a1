// Package nocloud is what a node does with its seed before cloud-init sees it: it finds and reads seeds, decides whether
// one is for this node, and keeps a copy on the root disk. Cloud-init only ever reads that copy, so a node stays what it
// is whether its seed is attached or not.
package nocloud

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
)

// Seed is the content of a seed, a file each.
type Seed struct {
	MetaData, NetworkConfig, UserData []byte
}

// Names of a seed's files.
const (
	metaDataFile      = "meta-data"
	networkConfigFile = "network-config"
	userDataFile      = "user-data"
)

type file struct {
	name string
	data *[]byte
}

// files returns the seed's files in the order that ISO 9660 wants: by name.
func (s *Seed) files() []file {
	return []file{{metaDataFile, &s.MetaData}, {networkConfigFile, &s.NetworkConfig}, {userDataFile, &s.UserData}}
}

// Keys of meta-data that say whose seed it is. Cloud-init ignores them.
const (
	InstanceKey = "instance-id"
	ClusterKey  = "imagegen-cluster"
	NodeKey     = "imagegen-node"
	DigestKey   = "imagegen-digest"
)

// Identity says whose a seed is, and what is in it.
type Identity struct {
	Instance string // cloud-init's instance-id
	Cluster  string // the cluster's ID, not its name
	Node     string
	Digest   string // of user-data and network-config
}

// Digest identifies what a seed makes of a node.
func Digest(userData, networkConfig []byte) string {
	h := sha256.New()
	for _, c := range [][]byte{userData, networkConfig} {
		fmt.Fprintf(h, "%d\n", len(c))
		h.Write(c)
	}
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}

// Identity reads the seed's meta-data and checks that the other files are the ones it was made for.
func (s Seed) Identity() (Identity, error) {
	id, err := parseMetaData(s.MetaData)
	if err != nil {
		return Identity{}, err
	}
	if have := Digest(s.UserData, s.NetworkConfig); have != id.Digest {
		return id, errors.New("damaged: user-data and network-config are not what meta-data says")
	}
	return id, nil
}

// parseMetaData reads lines of a key and a plain or quoted value. Seeds have no other YAML there, and the agent does
// without a YAML library.
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

// Found is a seed that is attached to this machine, or what stands in its place.
type Found struct {
	Where string // a device or a folder
	Seed  Seed
	ID    Identity
	Err   error // it cannot be used
}

// Choose returns the attached seed that is to be applied, or nil, and what a person has to know. kept is whose seed the
// node has applied last; nil: it has none yet.
//
// Of several seeds for the same node none is applied: nothing says which is newer.
func Choose(kept *Identity, found []Found) (take *Found, notes []string) {
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	var usable []*Found
	for i := range found {
		f := &found[i]
		switch {
		case f.Err != nil:
			note("cannot use the seed on %s: %v", f.Where, f.Err)
		case kept != nil && (f.ID.Cluster != kept.Cluster || f.ID.Node != kept.Node):
			note("refused the seed on %s: it is for node %s of cluster %s, but this disk belongs to node %s of cluster %s. Attach the right seed, or start from a new root disk",
				f.Where, f.ID.Node, f.ID.Cluster, kept.Node, kept.Cluster)
		default:
			usable = append(usable, f)
		}
	}
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

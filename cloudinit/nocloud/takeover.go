package nocloud

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// InstanceID is cloud-init's instance-id of a seed: cloud-init applies a seed once per instance ID, so booting again with the
// same seed changes nothing, and any other seed is applied completely. cluster is the cluster's name.
func InstanceID(cluster string, id Identity) string {
	sum := sha256.Sum256([]byte(id.Cluster + "\n" + id.Node + "\n" + id.Digest))
	return fmt.Sprintf("%s-%s-%x", cluster, id.Node, sum[:8])
}

// Genuine returns an error unless the seed's files match and its meta-data, which the digest does not cover, is what imagegen
// writes for this node: cloud-init would obey other keys, such as public-keys. cluster is the cluster's name.
func (s Seed) Genuine(cluster string, want Identity) error {
	have, err := s.Identity()
	if err != nil {
		return err
	}
	want.Instance = InstanceID(cluster, want)
	if have.Instance != want.Instance || have.Node != want.Node || have.Cluster != want.Cluster || have.Digest != want.Digest {
		return fmt.Errorf("the seed is for node %s of cluster %s with digest %s, instance %s; expected node %s of cluster %s with digest %s, instance %s",
			have.Node, have.Cluster, have.Digest, have.Instance, want.Node, want.Cluster, want.Digest, want.Instance)
	}
	var keys []string
	for line := range strings.Lines(string(s.MetaData)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		keys = append(keys, key)
		if key == hostnameKey && strings.Trim(value, `"'`) != want.Node {
			return fmt.Errorf("%s has the host name %s", metaDataFile, value)
		}
	}
	slices.Sort(keys)
	if !slices.Equal(keys, []string{ClusterKey, DigestKey, NodeKey, InstanceKey, hostnameKey}) {
		return fmt.Errorf("%s has the keys %s: this seed was not made by imagegen", metaDataFile, strings.Join(keys, ", "))
	}
	return nil
}

const hostnameKey = "local-hostname"

// SameMachine tells whether the seeds differ in nothing but their files: host name, time zone, users and network are the same,
// byte for byte.
func (s Seed) SameMachine(other Seed) bool {
	return bytes.Equal(settings(s.UserData), settings(other.UserData)) && bytes.Equal(s.NetworkConfig, other.NetworkConfig)
}

// settings is the part of user-data before the list of files. A line of this form without indentation is always that key.
func settings(userData []byte) []byte {
	head, _, _ := bytes.Cut(userData, []byte("\nwrite_files:\n"))
	return head
}

// Current returns the kept seed.
func (d Disk) Current() (Seed, error) { return readDir(d.path(currentLink)) }

// Load reads a seed that Store wrote.
func Load(dir string) (Seed, error) { return readDir(dir) }

// Store writes the seed's files to a new folder and syncs them to disk.
func (s Seed) Store(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, f := range s.files() {
		if *f.data == nil {
			continue
		}
		if err := writeSynced(filepath.Join(dir, f.name), *f.data); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// TakeOver makes s the kept seed of a node that already has all of its files: cloud-init does not apply it. It can be repeated
// after an interruption at any point. s may also be an earlier seed: a node goes back from a trial.
func (d Disk) TakeOver(s Seed) error {
	id, err := s.Identity()
	if err != nil {
		return err
	}
	// Keep would first remove a copy that is already in use. It may have been interrupted before it removed the others.
	if kept, err := d.Kept(); err != nil || kept == nil || *kept != id {
		if err := d.keep(s, id); err != nil {
			return err
		}
	} else if err := d.removeOthers(); err != nil {
		return err
	}
	return d.markApplied(id.Instance)
}

// removeOthers removes all seeds but the one in use; they contain secrets.
func (d Disk) removeOthers() error {
	current, err := os.Readlink(d.path(currentLink))
	if err != nil {
		return err
	}
	all, err := os.ReadDir(d.path(seedsDir))
	for _, e := range all {
		if e.Name() != filepath.Base(current) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(d.path(seedsDir), e.Name())))
		}
	}
	return err
}

// Forget removes cloud-init's own copies of the seed that it applied last; they contain secrets of a seed that the node no
// longer runs. The next boot applies the kept seed completely, which changes nothing. While cloud-init still runs, that boot
// removes the copies (Prepare).
func (d Disk) Forget() error {
	if err := os.Remove(d.path(appliedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(filepath.Dir(d.path(appliedFile))); err != nil {
		return err
	}
	if _, err := os.Stat(d.path(resultFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return d.forgetApplied()
}

package secrets

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/internal/words"
)

// The file issued lists the cluster's secrets. Without it, a lost secret looks like one that was never issued, and
// would be replaced by one that no running node knows. It contains no secrets. One item per line:
//
//	cluster_id UUID
//	password NAME
//	nodes/web1.key, and likewise for every other key and certificate
const (
	issuedFile    = "issued"
	idItem        = "cluster_id"
	passwordsFile = "passwords.json"

	issuedHead = "# What has been issued to this cluster, kept by imagegen. What is listed here and missing is not made anew: nodes that\n" +
		"# run have the old one. See \"Without a copy\" in docs/spec.md before removing a line.\n"
)

// order is the order in which a cluster's first secrets are created. If an item is missing and a later one exists, the
// item was lost and not just skipped by a killed run, even without a list.
var order = []string{idItem, passwordsFile, "ca.key", "ca.crt", facts.OperatorName + ".key", facts.OperatorName + ".crt", "nodes",
	generationItem + ".key", generationItem + ".crt"}

func (v *store) readIssued() error {
	v.items = map[string]bool{}
	data, err := v.read(issuedFile)
	if err != nil || data == nil {
		return err
	}
	v.issued = map[string]bool{}
	if !bytes.HasSuffix(data, []byte("\n")) {
		return fmt.Errorf("%s is cut off: restore the file from a backup", filepath.Join(v.dir, issuedFile))
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		kind, rest, _ := strings.Cut(line, " ")
		switch {
		case kind == idItem && facts.UUIDForm.MatchString(rest):
		case kind == "password" && rest != "":
		case rest == "" && (strings.HasSuffix(kind, ".key") || strings.HasSuffix(kind, ".crt")):
		default:
			return fmt.Errorf("%s is damaged, at %s: restore the file from a backup", filepath.Join(v.dir, issuedFile), words.Quote(line))
		}
		v.issued[line] = true
	}
	return nil
}

// writeIssued adds the existing items to the list. Items that the spec no longer needs stay on it.
func (v *store) writeIssued() error {
	if !v.issues {
		return nil
	}
	all := maps.Clone(v.items)
	maps.Copy(all, v.issued)
	if v.issued != nil && len(all) == len(v.issued) {
		return nil
	}
	lines := slices.Sorted(maps.Keys(all))
	return v.write(issuedFile, []byte(issuedHead+strings.Join(lines, "\n")+"\n"))
}

// RemoveNode removes the key pair of a node that the spec no longer has, and its lines in issued. A later node of that
// name gets a new pair.
func RemoveNode(dir, node string) error {
	if !cluster.IsLabel(node) {
		return fmt.Errorf("%s is not a node's name", words.Quote(node))
	}
	lock, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the secrets: %w", err)
	}
	defer lock.Close() // closing releases the lock
	if err := flock(lock, true); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	v := &store{dir: dir}
	list, err := v.read(issuedFile)
	if err != nil {
		return err
	}
	pair := "nodes/" + node
	var kept []string
	for line := range strings.Lines(string(list)) {
		if item := strings.TrimSpace(line); item != pair+".key" && item != pair+".crt" {
			kept = append(kept, line)
		}
	}
	// Update the list first: items that are not on it are not reported as lost.
	if rest := strings.Join(kept, ""); rest != string(list) {
		if err := v.write(issuedFile, []byte(rest)); err != nil {
			return err
		}
	}
	for _, end := range []string{".crt", ".key"} {
		if err := os.Remove(filepath.Join(dir, pair+end)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// have records that an item exists.
func (v *store) have(item string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.items[item] = true
}

// issuedID returns the issued cluster ID, or "" if unknown.
func (v *store) issuedID() string {
	for item := range v.issued {
		if id, ok := strings.CutPrefix(item, idItem+" "); ok {
			return id
		}
	}
	return ""
}

// missing returns an error if a missing item was issued.
func (v *store) missing(item string) error {
	was := v.issued[item]
	switch item {
	case idItem:
		was = v.issuedID() != ""
	case passwordsFile:
		for i := range v.issued {
			was = was || strings.HasPrefix(i, "password ")
		}
	}
	// Clusters that predate the list have none, nor does one whose first run was killed.
	if i := slices.Index(order, item); i >= 0 && v.issued == nil {
		for _, later := range order[i+1:] {
			if _, err := os.Lstat(filepath.Join(v.dir, later)); err == nil {
				was = true
			}
		}
	}
	if !was {
		return nil
	}
	return v.lost(item)
}

// lost returns the error for an issued item that is gone: what it is, and how to get it back.
func (v *store) lost(item string) error {
	path, list := filepath.Join(v.dir, item), filepath.Join(v.dir, issuedFile)
	what, without := path+" is missing", ""
	name, isPassword := strings.CutPrefix(item, "password ")
	switch {
	case item == idItem && v.issuedID() != "":
		without = fmt.Sprintf("without one, write %s into it", v.issuedID())
	case item == idItem:
		without = "without one, write into it what a node has as cluster_id in " + facts.FactsPath
	case isPassword:
		what = fmt.Sprintf("password %s is missing in %s", name, filepath.Join(v.dir, passwordsFile))
		without = "nodes of the roles that use it have it in " + facts.SecretsPath
	case item == passwordsFile:
		without = "without one, nodes have the passwords of their roles in " + facts.SecretsPath
	case item == revisionFile:
		without = "without one, write into it a number higher than \"secrets\" in dist/generation.json"
	case item == "ca.crt":
		without = "without one, take " + facts.PKIDir + "/ca.crt from a node"
	case item == "ca.key":
		without = "without one, this cluster can have no new certificates and has to be made anew, see docs/spec.md"
	default:
		pair := strings.TrimSuffix(strings.TrimSuffix(item, ".key"), ".crt")
		without = fmt.Sprintf("without one, remove %s.key and .crt, and their lines from %s, to have another pair issued", filepath.Join(v.dir, pair), list)
	}
	return fmt.Errorf("%s, but was issued to this cluster: restore it from a backup of %s; %s", what, v.dir, without)
}

// Expiring describes the certificates that are in the last third of their life or expired: one sentence for the
// authority and one for all others.
func (s *Secrets) Expiring(now time.Time) []string {
	var said []string
	if cert := s.CA.parse(); cert != nil && lastThird(cert, caYears, now) {
		verb := "expires"
		if now.After(cert.NotAfter) {
			verb = "expired"
		}
		said = append(said, fmt.Sprintf("the certificate of the cluster's authority, ca.crt, %s on %s", verb, cert.NotAfter.Format(time.DateOnly)))
	}
	var names []string
	var first time.Time
	add := func(name string, pair KeyPair) {
		if cert := pair.parse(); cert != nil && lastThird(cert, nodeYears, now) {
			names = append(names, name)
			if first.IsZero() || cert.NotAfter.Before(first) {
				first = cert.NotAfter
			}
		}
	}
	add(facts.OperatorName, s.Operator)
	add(generationItem, s.Generation)
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		add(name, s.Nodes[name])
	}
	if len(names) > 0 {
		verb := "expires"
		if now.After(first) {
			verb = "expired"
		}
		said = append(said, fmt.Sprintf("the first of the certificates of %s %s on %s", words.List(names, "and"), verb, first.Format(time.DateOnly)))
		if len(names) == 1 {
			said[len(said)-1] = fmt.Sprintf("the certificate of %s %s on %s", names[0], verb, first.Format(time.DateOnly))
		}
	}
	return said
}

// parse returns the pair's certificate, or nil if there is none.
func (k KeyPair) parse() *x509.Certificate {
	block, _ := pem.Decode(k.Cert)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return cert
}

// SeedClusterID returns the cluster's ID from the facts of a node.
func SeedClusterID(known []byte) (string, error) {
	var f struct {
		ClusterID string `json:"cluster_id"`
	}
	if err := facts.DecodeJSON(bytes.TrimSpace(known), &f, false); err != nil || !facts.UUIDForm.MatchString(f.ClusterID) {
		return "", errors.New("the facts have no cluster ID")
	}
	return f.ClusterID, nil
}

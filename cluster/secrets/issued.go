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

// The file issued lists what the cluster's secrets are: without it, a file that was lost could not be told from one that
// was never there, and would be replaced by one that no running node knows. It holds no secret itself. An item a line:
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

// order is how a cluster's first secrets are made. A run that was killed has made the first of them, so one that is
// missing before another was lost, whether or not there is a list of what was issued.
var order = []string{idItem, passwordsFile, "ca.key", "ca.crt", facts.OperatorName + ".key", facts.OperatorName + ".crt", "nodes"}

func (v *vault) readIssued() error {
	v.items = map[string]bool{}
	data, err := v.read(issuedFile)
	if err != nil || data == nil {
		return err
	}
	v.issued = map[string]bool{}
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
			return fmt.Errorf("%s is damaged, at %s: put the file back from a copy", filepath.Join(v.dir, issuedFile), words.Quote(line))
		}
		v.issued[line] = true
	}
	return nil
}

// writeIssued adds what is there to the list. What the spec no longer needs stays on it.
func (v *vault) writeIssued() error {
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

// RemoveNode removes the key pair of a node that the spec no longer has, and that it was issued. A node that gets the name
// later has another.
func RemoveNode(dir, node string) error {
	if !cluster.IsLabel(node) {
		return fmt.Errorf("%s is no name of a node", words.Quote(node))
	}
	lock, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the secrets: %w", err)
	}
	defer lock.Close() // and unlocks
	if err := flock(lock, true); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	v := &vault{dir: dir}
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
	// The list first: what it does not have is not missed.
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

// have notes that an item is there.
func (v *vault) have(item string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.items[item] = true
}

// issuedID is the cluster's id as it was issued; empty: not known.
func (v *vault) issuedID() string {
	for item := range v.issued {
		if id, ok := strings.CutPrefix(item, idItem+" "); ok {
			return id
		}
	}
	return ""
}

// missing is an error when an item that is not there was issued.
func (v *vault) missing(item string) error {
	was := v.issued[item]
	switch item {
	case idItem:
		was = v.issuedID() != ""
	case passwordsFile:
		for i := range v.issued {
			was = was || strings.HasPrefix(i, "password ")
		}
	}
	// Clusters from before there was a list have none, nor has one whose first run was killed.
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

// lost is the error about an item that was issued and is gone: what it is, and how it comes back.
func (v *vault) lost(item string) error {
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
	case item == "ca.crt":
		without = "without one, take " + facts.PKIDir + "/ca.crt from a node"
	case item == "ca.key":
		without = "without one, this cluster can have no new certificates and has to be made anew, see docs/spec.md"
	default:
		pair := strings.TrimSuffix(strings.TrimSuffix(item, ".key"), ".crt")
		without = fmt.Sprintf("without one, remove %s.key and .crt, and their lines from %s, to have another pair issued", filepath.Join(v.dir, pair), list)
	}
	return fmt.Errorf("%s, but was issued to this cluster: put it back from a copy of %s; %s", what, v.dir, without)
}

// Expiring says which certificates are in the last third of their life or have expired, one sentence for the authority
// and one for all others.
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

// parse returns the pair's certificate, nil when there is none.
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

// SeedClusterID returns the id of the cluster in the facts of a node.
func SeedClusterID(known []byte) (string, error) {
	var f struct {
		ClusterID string `json:"cluster_id"`
	}
	if err := facts.DecodeJSON(bytes.TrimSpace(known), &f, false); err != nil || !facts.UUIDForm.MatchString(f.ClusterID) {
		return "", errors.New("the facts name no cluster")
	}
	return f.ClusterID, nil
}

package secrets

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"imagegen/cluster/facts"
)

const (
	generationItem = "generation"  // .key and .crt
	revisionFile   = "revision"    // "NUMBER FINGERPRINT"
	generationsDir = "generations" // public, but an old copy of it is as bad as one of the secrets
	renderedFile   = "rendered.json"
)

// revision returns the revision of the secrets, a number that grows with every change of them, however it was made. It is
// derived from the content, so that a run that is killed between a change and here is noticed by the next.
func (v *store) revision(s *Secrets) (int, error) {
	h := sha256.New()
	add := func(name string, data []byte) { fmt.Fprintf(h, "%s %d\n%s\n", name, len(data), data) }
	pair := func(name string, k KeyPair) { add(name+".crt", k.Cert); add(name+".key", k.Key) }
	add(idItem, []byte(s.ClusterID))
	for _, name := range slices.Sorted(maps.Keys(s.Passwords)) {
		add("password "+name, []byte(s.Passwords[name]))
	}
	pair("ca", s.CA)
	pair(facts.OperatorName, s.Operator)
	pair(generationItem, s.Generation)
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		pair("nodes/"+name, s.Nodes[name])
	}
	if s.Site.Cert != nil {
		pair("site", s.Site)
	}
	now := fmt.Sprintf("%x", h.Sum(nil))

	data, err := v.read(revisionFile)
	if err != nil {
		return 0, err
	}
	if data == nil && v.issued[generationItem+".key"] { // it is written before that is listed
		return 0, v.lost(revisionFile)
	}
	var number int
	var before string
	if data != nil {
		fields := append(strings.Fields(string(data)), "", "")
		number, err = strconv.Atoi(fields[0])
		if before = fields[1]; err != nil || number < 1 || before != "" && len(before) != len(now) {
			return 0, fmt.Errorf("%s is damaged: restore the file from a backup", filepath.Join(v.dir, revisionFile))
		}
	}
	if before == now || !v.issues {
		return number, nil
	}
	return number + 1, v.write(revisionFile, fmt.Appendf(nil, "%d %s\n", number+1, now))
}

// Sign returns the envelope of a manifest.
func (s *Secrets) Sign(m facts.Manifest) ([]byte, error) {
	block, _ := pem.Decode(s.Generation.Cert)
	if block == nil {
		return nil, errors.New("the key that signs generations was not issued yet: imagegen seed issues it")
	}
	signer, err := parseKey(generationItem+".key", s.Generation.Key)
	if err != nil {
		return nil, err
	}
	key, ok := signer.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s.key is no Ed25519 key: restore the file from a backup", generationItem)
	}
	return facts.SignManifest(m, block.Bytes, key)
}

// Rendered returns the manifest that was rendered last from the secrets in dir, and whether there is one.
func Rendered(dir string) (facts.Manifest, bool, error) {
	v := &store{dir: dir}
	data, err := v.read(filepath.Join(generationsDir, renderedFile))
	if data == nil || err != nil {
		return facts.Manifest{}, false, err
	}
	m, err := facts.DecodeManifest(data)
	if err != nil {
		return facts.Manifest{}, false, fmt.Errorf("%s: %w: restore the file from a backup", filepath.Join(dir, generationsDir, renderedFile), err)
	}
	return m, true, nil
}

// Render gives a manifest its number and its parent, as Number does, and remembers it in dir, so that the number is taken.
func Render(dir string, m facts.Manifest, inUse *facts.Generation) (facts.Manifest, error) {
	lock, err := lockRendered(dir, true)
	if err != nil {
		return m, err
	}
	defer lock.Close() // closing releases the lock
	m, isNew, err := number(dir, m, inUse)
	if err != nil || !isNew {
		return m, err
	}
	data, err := m.Encode()
	if err != nil {
		return m, err
	}
	if err := privateDir(filepath.Join(dir, generationsDir)); err != nil {
		return m, err
	}
	v := &store{dir: dir}
	return m, v.write(filepath.Join(generationsDir, renderedFile), data)
}

// Number returns a manifest with the number and the parent that Render would give it, and writes nothing. A manifest with the content
// of the last one gets that one's number, and any other the next.
//
// Where it is known which generation is in use, that is the parent, whatever was rendered last; a manifest with its content is that
// generation. So any copy of dir with all secrets can go on. inUse is nil if it is not known.
func Number(dir string, m facts.Manifest, inUse *facts.Generation) (facts.Manifest, error) {
	lock, err := lockRendered(dir, false)
	if err != nil {
		return m, err
	}
	defer lock.Close() // closing releases the lock
	m, _, err = number(dir, m, inUse)
	return m, err
}

// lockRendered waits for others that render manifests from the secrets in dir. Closing the file ends the lock.
func lockRendered(dir string, exclusive bool) (*os.File, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	if err := flock(lock, exclusive); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return lock, nil
}

// number is Number under the lock. isNew tells whether no manifest had that number before.
func number(dir string, m facts.Manifest, inUse *facts.Generation) (_ facts.Manifest, isNew bool, err error) {
	last, ok, err := Rendered(dir)
	if err != nil {
		return m, false, err
	}
	next, parent := 1, ""
	if ok && last.ClusterID == m.ClusterID && (inUse == nil || last.Parent == inUse.Digest) {
		same, digest, err := sameContent(m, last)
		if same || err != nil {
			return last, false, err
		}
		next, parent = last.Number+1, digest
	} else if ok && last.ClusterID == m.ClusterID {
		next = last.Number + 1
	}
	if inUse != nil {
		if same, _, err := sameContent(m, inUse.Manifest); same || err != nil {
			return inUse.Manifest, false, err
		}
		next, parent = max(next, inUse.Number+1), inUse.Digest
	}
	m.Number, m.Parent = next, parent
	return m, true, nil
}

// sameContent reports whether m says the same as before, but for its number and its parent, and returns before's digest.
func sameContent(m, before facts.Manifest) (same bool, digest string, err error) {
	m.Number, m.Parent = before.Number, before.Parent
	have, err1 := before.Encode()
	want, err2 := m.Encode()
	return bytes.Equal(have, want), facts.Digest(have), errors.Join(err1, err2)
}

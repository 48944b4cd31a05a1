package secrets

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
)

// manifest returns a manifest of the spec's nodes, without number and parent.
func manifest(spec *cluster.Spec, s *Secrets) facts.Manifest {
	m := facts.Manifest{Version: facts.ManifestVersion, Cluster: spec.Cluster, ClusterID: s.ClusterID, Secrets: s.Revision}
	for i, n := range spec.Nodes() {
		m.Members = append(m.Members, facts.Member{Name: n.Name, Role: n.Role, IP: n.IP.String(), Index: i,
			Seed: facts.Digest([]byte("seed " + n.Name)), Facts: facts.Digest([]byte("facts " + n.Name))})
	}
	return m
}

// render renders m and fails the test on an error, or if asking for its number first gives another one or writes anything.
func render(t *testing.T, dir string, m facts.Manifest) facts.Manifest {
	t.Helper()
	before := content(t, dir)
	asked, err := Number(dir, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(before, content(t, dir)) {
		t.Error("asking for a number changed files")
	}
	m, err = Render(dir, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.Number != asked.Number || m.Parent != asked.Parent {
		t.Errorf("number %d on %q, and before it was to be %d on %q", m.Number, m.Parent, asked.Number, asked.Parent)
	}
	return m
}

func TestGenerationsAreNumbered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	spec := testSpec(t)
	s := load(t, dir, spec, testNames)
	first := render(t, dir, manifest(spec, s))
	if first.Number != 1 || first.Parent != "" {
		t.Errorf("the first generation is number %d on %q", first.Number, first.Parent)
	}
	signed, err := s.Sign(first)
	if err != nil {
		t.Fatal(err)
	}
	// The same content again: the same number and the same bytes, also in another run.
	s = load(t, dir, spec, testNames)
	if again, err := s.Sign(render(t, dir, manifest(spec, s))); err != nil || !bytes.Equal(again, signed) {
		t.Errorf("the same generation is signed differently (%v)", err)
	}
	g, err := facts.Verify(signed, s.CA.parse(), s.ClusterID)
	if err != nil {
		t.Fatal(err)
	}
	changed := manifest(spec, s)
	changed.Members[0].Image = "f00"
	second := render(t, dir, changed)
	if second.Number != 2 || second.Parent != g.Digest {
		t.Errorf("the second generation is number %d on %q, want number 2 on %q", second.Number, second.Parent, g.Digest)
	}
	// Going back to the old content is a new generation.
	if third := render(t, dir, manifest(spec, s)); third.Number != 3 {
		t.Errorf("the first content once more has number %d, want 3", third.Number)
	}

	// Another copy of the folder has brought generation 7 into use: it is the parent of the next one, and numbers go on from it.
	seven := changed
	seven.Members = append([]facts.Member{}, changed.Members...)
	seven.Members[1].Image, seven.Number, seven.Parent = "ba5e", 7, second.Parent
	data, err := seven.Encode()
	if err != nil {
		t.Fatal(err)
	}
	inUse := &facts.Generation{Manifest: seven, Digest: facts.Digest(data)}
	for what, want := range map[string]struct {
		content facts.Manifest
		number  int
		parent  string
	}{
		"its own content": {seven, 7, seven.Parent},
		"another":         {changed, 8, inUse.Digest},
	} {
		if m, err := Render(dir, want.content, inUse); err != nil || m.Number != want.number || m.Parent != want.parent {
			t.Errorf("%s: number %d on %q, %v; want number %d on %q", what, m.Number, m.Parent, err, want.number, want.parent)
		}
	}
	for range 2 {
		if m, err := Render(dir, manifest(spec, s), inUse); err != nil || m.Number < 8 || m.Number > 9 || m.Parent != inUse.Digest {
			t.Errorf("number %d on %q, %v", m.Number, m.Parent, err)
		}
	}

	path := filepath.Join(dir, "generations", "rendered.json")
	write(t, path, "{}")
	if _, err := Render(dir, changed, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged record: %v", err)
	}
}

// TestRevisionGrows: every change of the secrets is noticed, whoever made it.
func TestRevisionGrows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	spec := testSpec(t)
	s := load(t, dir, spec, testNames)
	if s.Revision != 1 {
		t.Errorf("the first revision is %d", s.Revision)
	}
	if s = load(t, dir, spec, testNames); s.Revision != 1 {
		t.Errorf("the same secrets have revision %d", s.Revision)
	}
	if s = load(t, dir, spec, append(testNames, "monitor")); s.Revision != 2 {
		t.Errorf("with one more password they have revision %d, want 2", s.Revision)
	}
	aged(t, dir, "operator", time.Now().AddDate(1, 0, 0))
	if s = load(t, dir, spec, append(testNames, "monitor")); s.Revision != 3 {
		t.Errorf("with a renewed certificate they have revision %d, want 3", s.Revision)
	}
	if read, err := Read(dir, spec, testNames); err != nil || read.Revision != 3 {
		t.Errorf("read: revision %d, %v; want 3", read.Revision, err)
	}
	// The remedy of the message about a lost revision.
	if err := os.Remove(filepath.Join(dir, "revision")); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, spec, "revision lost", "write into it a number higher than")
	write(t, filepath.Join(dir, "revision"), "7\n")
	if s = load(t, dir, spec, append(testNames, "monitor")); s.Revision != 8 {
		t.Errorf("after 7 was written into it, the revision is %d, want 8", s.Revision)
	}
}

// TestOlderClustersGetTheGenerationKey: a cluster made before generations, with and without a list of what was issued.
func TestOlderClustersGetTheGenerationKey(t *testing.T) {
	spec := testSpec(t)
	for _, list := range []bool{true, false} {
		dir := filepath.Join(t.TempDir(), "secrets")
		before := load(t, dir, spec, testNames)
		forget(t, dir, "generation.key", "generation.crt")
		for _, name := range []string{"generation.key", "generation.crt", "revision"} {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if !list {
			if err := os.Remove(filepath.Join(dir, "issued")); err != nil {
				t.Fatal(err)
			}
		}
		if read, err := Read(dir, spec, testNames); err != nil || read.Generation.Key != nil {
			t.Errorf("reading: %v", err)
		} else if _, err := read.Sign(facts.Manifest{}); err == nil || !strings.Contains(err.Error(), "imagegen seed issues it") {
			t.Errorf("signing without the key: %v", err)
		}
		after := load(t, dir, spec, testNames)
		if after.Generation.Key == nil || after.Revision != 1 {
			t.Errorf("no key was issued, or the revision is %d", after.Revision)
		}
		if string(after.CA.Key) != string(before.CA.Key) || string(after.Operator.Cert) != string(before.Operator.Cert) {
			t.Error("other secrets have changed")
		}
	}
}

// TestOnlyTheGenerationKeySigns: neither a node nor the operator can sign a generation, and the key that signs generations
// opens no connection.
func TestOnlyTheGenerationKeySigns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	spec := testSpec(t)
	s := load(t, dir, spec, testNames)
	m := render(t, dir, manifest(spec, s))
	signed, err := s.Sign(m)
	if err != nil {
		t.Fatal(err)
	}
	other := load(t, filepath.Join(t.TempDir(), "secrets"), spec, testNames)
	if _, err := facts.Verify(signed, other.CA.parse(), s.ClusterID); err == nil || err.Error() != "generation 1 is not signed by the authority of this cluster" {
		t.Errorf("another cluster's authority: %v", err)
	}
	if _, err := facts.Verify(signed, s.CA.parse(), other.ClusterID); err == nil || !strings.Contains(err.Error(), "is of cluster "+s.ClusterID) {
		t.Errorf("another cluster's ID: %v", err)
	}

	// A certificate for an Ed25519 key with the usages of nodes and operators.
	v := &store{dir: dir, issues: true, items: map[string]bool{}}
	ca, err := v.authority(spec.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	pair, key, err := v.key("nodes/thief", newEd25519)
	if err != nil {
		t.Fatal(err)
	}
	for name, usage := range map[string]x509.ExtKeyUsage{"no OU": x509.ExtKeyUsageCodeSigning, "a node's usage": x509.ExtKeyUsageClientAuth} {
		cert := &x509.Certificate{NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}}
		if usage != x509.ExtKeyUsageCodeSigning {
			cert.Subject.OrganizationalUnit = []string{facts.GenerationOU}
		}
		if pair.Cert, err = sign(cert, key.Public(), ca); err != nil {
			t.Fatal(err)
		}
		forged, err := (&Secrets{Generation: pair}).Sign(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := facts.Verify(forged, s.CA.parse(), s.ClusterID); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}

	cert, err := tls.X509KeyPair(s.Generation.Cert, s.Generation.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA.Cert)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err == nil {
			t.Errorf("it is accepted for TLS, usage %d", usage)
		}
	}
}

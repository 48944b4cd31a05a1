package facts

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

func goodManifest() Manifest {
	seed := func(b byte) string { return Digest([]byte{b}) }
	return Manifest{
		Version: 1, Cluster: "otus", ClusterID: "6f1c0a52-8a6a-4c0e-9c1b-0123456789ab", Number: 4, Parent: seed('p'), Secrets: 2,
		Members: []Member{
			{Name: "web1", Role: "web", IP: "192.168.10.42", Image: "2ee12cde83011531a9b368f4f4fb3e6d", Seed: seed('a'), Facts: seed('b')},
			{Name: "percona1", Role: "percona", IP: "192.168.10.55", Data: true, Seed: seed('c'), Facts: seed('d')},
			{Name: "percona2", Role: "percona", IP: "192.168.10.56", Index: 1, Data: true, Seed: seed('e'), Facts: seed('f')},
		},
	}
}

// testSigner returns an authority, and a signer that it has certified.
func testSigner(t testing.TB) (authority *x509.Certificate, signer []byte, key ed25519.PrivateKey) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	if authority, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: from.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, Subject: pkix.Name{OrganizationalUnit: []string{GenerationOU}}}
	if signer, err = x509.CreateCertificate(rand.Reader, leaf, authority, pub, caKey); err != nil {
		t.Fatal(err)
	}
	return authority, signer, key
}

func TestManifestRoundTrip(t *testing.T) {
	data, err := goodManifest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "testdata/generation.json", data)
	m, err := DecodeManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := m.Encode(); err != nil || !bytes.Equal(again, data) {
		t.Errorf("encoded as\n%s%v, before as\n%s", again, err, data)
	}
	var names []string
	for _, n := range m.Electorate() {
		names = append(names, n.Name)
	}
	if got := strings.Join(names, " "); got != "percona1 percona2" {
		t.Errorf("%s vote", got)
	}
	m.Members = m.Members[:1]
	if got := m.Electorate(); len(got) != 1 {
		t.Errorf("without data disks, %d vote", len(got))
	}
}

// TestBrokenManifests: manifests that are refused, and the messages.
func TestBrokenManifests(t *testing.T) {
	good, err := goodManifest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{string(good), ``, "not a generation: must be a JSON object, {…}"},
		{string(good), `{}`, "not a generation: it has no version"},
		{`"version": 1`, `"version": 3`, "the generation has format version 3, and this imagegen reads 1: use the imagegen that made it"},
		{`"number"`, `"nubmer"`, `broken generation: the key "nubmer" is not known`},
		{`"number": 4`, `"number": 0`, "broken generation: number: 0 is below 1"},
		{`"number": 4`, `"number": 1`, "broken generation: parent: number 1 is the first and has none"},
		{`"number": 4`, `"number":  4`, "broken generation: it is not written as imagegen writes it"},
		{`"number": 4`, `"NUMBER": 4`, "broken generation: it is not written as imagegen writes it"},
		{`"secrets": 2`, `"secrets": 0`, "broken generation: secrets: 0 is below 1"},
		{`6f1c0a52`, `6f1c`, "broken generation: cluster_id: 6f1c-8a6a-4c0e-9c1b-0123456789ab is not a UUID"},
		{`"parent": "sha256:`, `"parent": "md5:`, "broken generation: parent: md5:148de9c5a7a44d19e56cd9ae1a554bf67847afb0c58f6e12fa29ac7d… is no digest"},
		{`"percona2"`, `"percona1"`, "broken generation: member percona1: percona1 is given to two members"},
		{`192.168.10.56`, `192.168.10.55`, "broken generation: member percona2: 192.168.10.55 is given to two members"},
		{`192.168.10.56`, `percona2`, "broken generation: member percona2: ip: percona2 is not an IPv4 address"},
		{"]\n}\n", "]\n}\n{}", "not a generation: something comes after the JSON object"},
	} {
		text := strings.Replace(string(good), c.old, c.new, 1)
		if _, err := DecodeManifest([]byte(text)); err == nil || err.Error() != c.want {
			t.Errorf("%s for %s:\n got %v\nwant %s", c.new, c.old, err, c.want)
		}
	}
	// Agents of this version accept a manifest of the next one, with keys that they do not know.
	next := strings.Replace(string(good), `"version": 1`, `"version": 2, "new": {}`, 1)
	if m, err := DecodeManifest([]byte(next)); err != nil || m.Number != 4 || len(m.Members) != 3 {
		t.Errorf("a manifest of the next version: %v", err)
	}
	for what, change := range map[string]func(*Manifest){
		"no members":      func(m *Manifest) { m.Members = nil },
		"another version": func(m *Manifest) { m.Version++ },
		"no seed":         func(m *Manifest) { m.Members[0].Seed = "" },
	} {
		m := goodManifest()
		if change(&m); true {
			if _, err := m.Encode(); err == nil {
				t.Errorf("%s: encoded", what)
			}
		}
	}
}

func TestSignature(t *testing.T) {
	authority, signer, key := testSigner(t)
	m := goodManifest()
	envelope, err := SignManifest(m, signer, key)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := SignManifest(m, signer, key); err != nil || !bytes.Equal(again, envelope) {
		t.Errorf("signed twice: two envelopes (%v)", err)
	}
	g, err := Verify(envelope, authority, m.ClusterID)
	if err != nil {
		t.Fatal(err)
	}
	manifest, _ := m.Encode()
	if g.Number != m.Number || g.Digest != Digest(manifest) || !bytes.Equal(g.Signed, envelope) {
		t.Errorf("verified as number %d, %s", g.Number, g.Digest)
	}

	other, otherSigner, otherKey := testSigner(t)
	var e Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	e.Manifest = bytes.Replace(e.Manifest, []byte(`"number": 4`), []byte(`"number": 5`), 1)
	changed, _ := json.Marshal(e)
	plain, _ := json.Marshal(Envelope{Manifest: manifest, Certificate: signer, Signature: ed25519.Sign(key, manifest)})
	swapped, _ := json.Marshal(Envelope{Manifest: manifest, Certificate: signer, Signature: ed25519.Sign(otherKey, signed(manifest))})
	foreign, err := SignManifest(m, otherSigner, otherKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what     string
		envelope []byte
		id, want string
	}{
		{"a changed manifest", changed, m.ClusterID, "the signature of generation 5 is wrong"},
		{"a signature without the purpose", plain, m.ClusterID, "the signature of generation 4 is wrong"},
		{"another key", swapped, m.ClusterID, "the signature of generation 4 is wrong"},
		{"another authority", foreign, m.ClusterID, "generation 4 is not signed by the authority of this cluster"},
		{"another cluster", envelope, "00000000-0000-0000-0000-000000000000", "generation 4 is of cluster 6f1c0a52-8a6a-4c0e-9c1b-0123456789ab, not of 00000000-0000-0000-0000-000000000000"},
		{"a second spelling", append([]byte(" "), bytes.Replace(envelope, []byte(`,`), []byte(`, `), 1)...), m.ClusterID, "not a signed generation: it is not written as imagegen writes it"},
		{"half of it", envelope[:len(envelope)/2], m.ClusterID, "not a signed generation: the JSON is cut off"},
		{"nothing", nil, m.ClusterID, "not a signed generation: must be a JSON object, {…}"},
	} {
		if _, err := Verify(c.envelope, authority, c.id); err == nil || err.Error() != c.want {
			t.Errorf("%s:\n got %v\nwant %s", c.what, err, c.want)
		}
	}
	if _, err := Verify(foreign, other, m.ClusterID); err != nil {
		t.Error(err)
	}
}

// TestLargeManifest: the generation of a large cluster is compressed, and the signature covers what it says.
func TestLargeManifest(t *testing.T) {
	authority, signer, key := testSigner(t)
	m := goodManifest()
	first := m.Members[0]
	for i := range 1000 {
		n := first
		n.Name, n.IP, n.Index = fmt.Sprintf("x%d", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250), i
		m.Members = append(m.Members, n)
	}
	envelope, err := SignManifest(m, signer, key)
	if err != nil {
		t.Fatal(err)
	}
	manifest, _ := m.Encode()
	if len(envelope) > len(manifest)/2 {
		t.Errorf("%d bytes for a manifest of %d", len(envelope), len(manifest))
	}
	g, err := Verify(envelope, authority, m.ClusterID)
	if err != nil || g.Digest != Digest(manifest) || len(g.Members) != len(m.Members) {
		t.Errorf("%d members, %v", len(g.Members), err)
	}
	var e Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(e *Envelope){
		"it holds two manifests": func(e *Envelope) { e.Manifest = manifest },
		"it is damaged":          func(e *Envelope) { e.Packed = e.Packed[:len(e.Packed)/2] },
	} {
		bad := e
		change(&bad)
		data, _ := json.Marshal(bad)
		if _, err := OpenGeneration(data); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// FuzzDecodeManifest: an accepted manifest of this version has one spelling; others are refused with readable errors.
func FuzzDecodeManifest(f *testing.F) {
	good, err := goodManifest().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"version": 1`), []byte(`"version": 2, "new": []`), 1))
	f.Add([]byte(`{"version": 1, "members": [{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(data)
		if err != nil {
			readable(t, data, err)
			return
		}
		if m.Version > ManifestVersion {
			return
		}
		if again, err := m.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%v: %s is written as %s", err, data, again)
		}
	})
}

// FuzzOpenGeneration: no input is accepted but a right signature, and none leads to a panic.
func FuzzOpenGeneration(f *testing.F) {
	_, signer, key := testSigner(f)
	envelope, err := SignManifest(goodManifest(), signer, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(envelope)
	f.Add([]byte(`{"manifest": "e30=", "certificate": "", "signature": ""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := OpenGeneration(data)
		if err != nil {
			readable(t, data, err)
			return
		}
		if m, err := g.Encode(); g.Version == ManifestVersion && (err != nil || Digest(m) != g.Digest) {
			t.Errorf("the digest is of something else (%v)", err)
		}
	})
}

// readable fails the test for an error that is not for people.
func readable(t *testing.T, data []byte, err error) {
	t.Helper()
	for _, word := range []string{"facts.", "Go struct", "Go value", "unmarshal", "json:", "map[", "%!"} {
		if strings.Contains(err.Error(), word) && !bytes.Contains(data, []byte(word)) {
			t.Errorf("%q is for programmers: %v", word, err)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\r\x1b") {
		t.Errorf("not one line of text: %q", err)
	}
}

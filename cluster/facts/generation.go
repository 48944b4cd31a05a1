package facts

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"

	"imagegen/internal/words"
)

// ManifestVersion increases with the format of a manifest. A version may add keys, and must not change what the older ones
// mean: agents of the version before ignore keys that they do not know, so nodes can be replaced one at a time.
const ManifestVersion = 1

// GenerationOU is the organizational unit of the certificate that signs manifests. No other certificate has it.
const GenerationOU = "imagegen generations"

// Manifest describes one generation: a numbered state of the cluster's configuration. It contains no secrets.
type Manifest struct {
	Version   int    `json:"version"`
	Cluster   string `json:"cluster"`
	ClusterID string `json:"cluster_id"`
	Number    int    `json:"number"`           // from 1; grows, and is never used again
	Parent    string `json:"parent,omitempty"` // digest of the generation before it; empty: it is the first
	// Secrets is the revision of the cluster's secrets, which grows when one of them changes.
	Secrets int      `json:"secrets"`
	Members []Member `json:"members"` // in the spec's order
}

// Member is what a generation says of a node.
type Member struct {
	Name  string `json:"name"`
	Role  string `json:"role"`
	IP    string `json:"ip"`
	Index int    `json:"index"` // in its role
	// Data says that the node has a data disk, which outlives its root disk.
	Data  bool   `json:"data,omitempty"`
	Image string `json:"image,omitempty"` // identity of its image; empty: no image was built yet
	Seed  string `json:"seed"`            // digest of its seed (see package nocloud)
	Facts string `json:"facts"`           // digest of its facts, the file FactsPath
}

// Member returns the member called name, and whether there is one.
func (m Manifest) Member(name string) (Member, bool) {
	for _, n := range m.Members {
		if n.Name == name {
			return n, true
		}
	}
	return Member{}, false
}

// Electorate returns the members whose agents vote on the generation after this one: those with a data disk, or all if
// none has one. A vote must outlive the root disk, because replacing root disks is how nodes are changed.
func (m Manifest) Electorate() []Member {
	with := slices.DeleteFunc(slices.Clone(m.Members), func(n Member) bool { return !n.Data })
	if len(with) == 0 {
		return m.Members
	}
	return with
}

// Digest returns the digest of data, as manifests contain it.
func Digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// Encode returns the manifest as JSON that DecodeManifest accepts: the same bytes for the same manifest, one line per
// member.
func (m Manifest) Encode() ([]byte, error) {
	if m.Version != ManifestVersion {
		return nil, fmt.Errorf("version: %d is not %d", m.Version, ManifestVersion)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	members := m.Members
	m.Members = []Member{}
	head, err := marshal(m, "  ")
	if err != nil {
		return nil, err
	}
	open, ok := bytes.CutSuffix(head, []byte("[]\n}\n"))
	if !ok {
		return nil, errors.New("the members are not the manifest's last field")
	}
	b := bytes.NewBuffer(append(open, "[\n"...))
	for i, n := range members {
		line, err := marshal(n, "")
		if err != nil {
			return nil, err
		}
		b.WriteString("    ")
		b.Write(bytes.TrimSpace(line))
		if i < len(members)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString("  ]\n}\n")
	return b.Bytes(), nil
}

// DecodeManifest reads the output of Encode. It is strict: only these very bytes are accepted, so that there is one digest
// for each manifest. In a manifest of the next version, keys that are not known are ignored.
func DecodeManifest(data []byte) (Manifest, error) {
	var head struct {
		Version *int `json:"version"`
	}
	if err := DecodeJSON(data, &head, false); err != nil {
		return Manifest{}, fmt.Errorf("not a generation: %w", err)
	}
	switch {
	case head.Version == nil:
		return Manifest{}, errors.New("not a generation: it has no version")
	case *head.Version < 1 || *head.Version > ManifestVersion+1:
		return Manifest{}, fmt.Errorf("the generation has format version %d, and this imagegen reads %d: use the imagegen that made it", *head.Version, ManifestVersion)
	}
	var m Manifest
	if err := DecodeJSON(data, &m, *head.Version == ManifestVersion); err != nil {
		return Manifest{}, fmt.Errorf("broken generation: %w", err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, fmt.Errorf("broken generation: %w", err)
	}
	if m.Version == ManifestVersion {
		if again, err := m.Encode(); err != nil || !bytes.Equal(again, data) {
			return Manifest{}, errors.New("broken generation: it is not written as imagegen writes it")
		}
	}
	return m, nil
}

// digestForm is what Digest returns.
var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func (m Manifest) check() error {
	switch {
	case m.Cluster == "":
		return errors.New("cluster: the name is missing")
	case !UUIDForm.MatchString(m.ClusterID):
		return fmt.Errorf("cluster_id: %s is not a UUID", words.Quote(m.ClusterID))
	case m.Number < 1:
		return fmt.Errorf("number: %d is below 1", m.Number)
	case m.Parent != "" && !digestForm.MatchString(m.Parent):
		return fmt.Errorf("parent: %s is no digest", words.Quote(m.Parent))
	case m.Parent != "" && m.Number == 1:
		return errors.New("parent: number 1 is the first and has none")
	case m.Secrets < 1:
		return fmt.Errorf("secrets: %d is below 1", m.Secrets)
	case len(m.Members) == 0:
		return errors.New("members: there are none")
	}
	seen := map[string]bool{}
	for _, n := range m.Members {
		if n.Name == "" || n.Role == "" || n.Index < 0 {
			return fmt.Errorf("member %s: it must have a name, a role, and an index from 0", words.Quote(n.Name))
		}
		if ip, err := netip.ParseAddr(n.IP); err != nil || !ip.Is4() {
			return fmt.Errorf("member %s: ip: %s is not an IPv4 address", words.Quote(n.Name), words.Quote(n.IP))
		}
		for _, digest := range []string{n.Seed, n.Facts} {
			if !digestForm.MatchString(digest) {
				return fmt.Errorf("member %s: %s is no digest", words.Quote(n.Name), words.Quote(digest))
			}
		}
		for _, unique := range []string{n.Name, n.IP} {
			if seen[unique] {
				return fmt.Errorf("member %s: %s is given to two members", words.Quote(n.Name), words.Quote(unique))
			}
			seen[unique] = true
		}
	}
	return nil
}

// Envelope is a signed manifest. Every node of a cluster has it on its seed, so a large one is compressed.
type Envelope struct {
	Manifest    []byte `json:"manifest,omitempty"` // exactly the bytes that were signed
	Packed      []byte `json:"packed,omitempty"`   // the same, gzip; instead of Manifest
	Certificate []byte `json:"certificate"`        // DER
	Signature   []byte `json:"signature"`          // Ed25519
}

const (
	packFrom    = 16 << 10 // bytes of a manifest, from which on it is compressed
	maxManifest = 16 << 20 // bytes of a manifest that is read
)

// manifest returns the bytes that were signed.
func (e Envelope) manifest() ([]byte, error) {
	if e.Packed == nil {
		return e.Manifest, nil
	}
	if e.Manifest != nil {
		return nil, errors.New("not a signed generation: it holds two manifests")
	}
	z, err := gzip.NewReader(bytes.NewReader(e.Packed))
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(z, maxManifest+1))
	}
	if err != nil || len(data) > maxManifest {
		return nil, errors.New("not a signed generation: it is damaged, or too large")
	}
	return data, nil
}

// signed returns the message that is signed. Nothing else that this key may ever sign begins like this.
func signed(manifest []byte) []byte {
	return append([]byte("imagegen generation manifest, signature version 1\x00"), manifest...)
}

// SignManifest returns the envelope of a manifest as JSON. The same manifest, certificate and key give the same bytes.
func SignManifest(m Manifest, certificate []byte, key ed25519.PrivateKey) ([]byte, error) {
	manifest, err := m.Encode()
	if err != nil {
		return nil, err
	}
	e := Envelope{Manifest: manifest, Certificate: certificate}
	if e.Signature, err = key.Sign(rand.Reader, signed(manifest), crypto.Hash(0)); err != nil {
		return nil, err
	}
	if len(manifest) >= packFrom {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(manifest); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		e.Manifest, e.Packed = nil, b.Bytes()
	}
	return marshal(e, "")
}

// Generation is a manifest with its signature.
type Generation struct {
	Manifest
	Digest string // of the manifest's bytes
	Signed []byte // the envelope
}

// OpenGeneration decodes an envelope and checks its signature, but not who signed it: see Verify.
func OpenGeneration(envelope []byte) (Generation, error) {
	_, g, err := open(envelope)
	return g, err
}

// Verify decodes an envelope and checks that the cluster's authority has certified its signer for this purpose, and that it is
// for the cluster with this ID.
//
// The dates of the certificates are not checked: a node must be able to verify its generation while its clock is wrong.
func Verify(envelope []byte, authority *x509.Certificate, clusterID string) (Generation, error) {
	cert, g, err := open(envelope)
	if err != nil {
		return Generation{}, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: cert.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
	if err != nil || !slices.Equal(cert.Subject.OrganizationalUnit, []string{GenerationOU}) {
		return Generation{}, fmt.Errorf("generation %d is not signed by the authority of this cluster", g.Number)
	}
	if g.ClusterID != clusterID {
		return Generation{}, fmt.Errorf("generation %d is of cluster %s, not of %s", g.Number, g.ClusterID, clusterID)
	}
	return g, nil
}

func open(envelope []byte) (*x509.Certificate, Generation, error) {
	var e Envelope
	if err := DecodeJSON(envelope, &e, true); err != nil {
		return nil, Generation{}, fmt.Errorf("not a signed generation: %w", err)
	}
	manifest, err := e.manifest()
	if err != nil {
		return nil, Generation{}, err
	}
	m, err := DecodeManifest(manifest)
	if err != nil {
		return nil, Generation{}, err
	}
	cert, err := x509.ParseCertificate(e.Certificate)
	if err != nil {
		return nil, Generation{}, errors.New("not a signed generation: it holds no certificate")
	}
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || !ed25519.Verify(key, signed(manifest), e.Signature) {
		return nil, Generation{}, fmt.Errorf("the signature of generation %d is wrong", m.Number)
	}
	again, err := json.Marshal(e)
	if err != nil || !bytes.Equal(bytes.TrimSpace(envelope), again) {
		return nil, Generation{}, errors.New("not a signed generation: it is not written as imagegen writes it")
	}
	return cert, Generation{Manifest: m, Digest: Digest(manifest), Signed: append(again, '\n')}, nil
}

// MarshalJSON writes the envelope.
func (g Generation) MarshalJSON() ([]byte, error) { return bytes.TrimSpace(g.Signed), nil }

// UnmarshalJSON reads an envelope like OpenGeneration: the caller must Verify what is in Signed.
func (g *Generation) UnmarshalJSON(data []byte) (err error) {
	*g, err = OpenGeneration(bytes.Clone(data))
	return err
}

// Package secrets creates and stores a cluster's secrets: passwords, the certificate authority, and a key pair for each
// node. It renders nothing; package roles writes secrets into files.
package secrets

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

// Secrets are a cluster's passwords and keys. They are issued once, kept in the folder secrets/ beside the spec, and
// never changed by imagegen; later nodes and roles get their own.
type Secrets struct {
	ClusterID string            // UUID
	Passwords map[string]string // by name: letters and digits only, so that no format needs to quote them
	CA        KeyPair
	Nodes     map[string]KeyPair // by node name; the certificate's DNS name is the node's name, its IP the node's
	Operator  KeyPair            // client certificate for operating the cluster; its name is "operator"
	// Generation signs the manifests of generations (Ed25519); neither nodes nor operators have such a certificate.
	Generation KeyPair
	Site       KeyPair // of the site's HTTPS: the chain and the key; empty without site.tls
	// Revision grows when any secret is issued, renewed or replaced; 0: not known.
	Revision int
	Renewed  []string // files of certificates that this run renewed because they would expire
}

// KeyPair is a certificate and its private key, both PEM.
type KeyPair struct {
	Cert, Key []byte
}

// Clocks of new machines are often wrong, so certificates are valid from a date in the past.
var validFrom = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	caYears   = 20
	nodeYears = 10

	passwordLen = 24
	vrrpLen     = 8 // keepalived truncates auth_pass to 8 characters
	alphabet    = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
)

// Load reads the secrets of spec from dir, the folder secrets/ beside the spec, and issues those that were never
// issued: the passwords called names, and a key pair for the authority, every node and the operator. It is an error if
// an issued secret is missing, or if a file is damaged or accessible to others. Nothing is issued twice, because
// running nodes have the first. The exception are certificates, which are renewed for the same key in the last third of
// their life, or if their node's address changed. An expired authority signs nothing and is an error.
//
// A password whose name ends in _vrrp has 8 characters, because keepalived uses no more; all others have 24. Concurrent
// runs wait for each other.
//
//	secrets/                 0700, and everything in it 0600
//	  .gitignore             *
//	  issued                 names of all issued secrets
//	  cluster_id             UUID
//	  passwords.json         name to password
//	  ca.crt ca.key          the cluster's authority, P-256
//	  operator.crt .key      client certificate for operating the cluster
//	  generation.crt .key    signs generations, Ed25519
//	  revision               number of the latest change in this folder
//	  generations/           the manifest that was rendered last (see Render)
//	  site.pem               the certificate of the site's HTTPS and its key, with site.tls
//	  nodes/web1.crt .key    server and client certificate for the node's name, its address and its role's virtual address
func Load(dir string, spec *cluster.Spec, names []string) (*Secrets, error) {
	if err := privateDir(dir); err != nil {
		return nil, err
	}
	v := &store{dir: dir, issues: true}
	return v.load(spec, names)
}

// Read reads the secrets of spec like [Load], but writes nothing. Secrets that were not issued yet are left out; for a
// new cluster these are all.
func Read(dir string, spec *cluster.Spec, names []string) (*Secrets, error) {
	v := &store{dir: dir}
	err := private(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return &Secrets{Passwords: map[string]string{}, Nodes: map[string]KeyPair{}}, nil
	}
	if err != nil {
		return nil, err
	}
	return v.load(spec, names)
}

// Draft reads the secrets of spec like [Load], and makes those that Load would issue, but keeps none of them and writes nothing: it is
// for showing what a change would do. Every call makes others.
func Draft(dir string, spec *cluster.Spec, names []string) (*Secrets, error) {
	if err := private(dir); err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	v := &store{dir: dir, issues: true, draft: true}
	return v.load(spec, names)
}

// NoSecrets reports whether a folder of secrets is missing or empty: either none was issued yet, or all are lost.
func NoSecrets(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	for _, e := range entries {
		if e.Name() != ".gitignore" {
			return false, nil
		}
	}
	return true, err
}

func (v *store) load(spec *cluster.Spec, names []string) (*Secrets, error) {
	// Concurrent runs must not create two authorities.
	lock, err := os.Open(v.dir)
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	defer lock.Close() // closing releases the lock
	if err := flock(lock, v.issues && !v.draft); err != nil {
		return nil, fmt.Errorf("lock %s: %w", v.dir, err)
	}
	s := &Secrets{Nodes: map[string]KeyPair{}}
	// First, because this may refuse what the user gives, and nothing has been issued yet.
	rendered, err := v.renderedSite(spec)
	if err != nil {
		return nil, err
	}
	if s.Site, err = v.site(spec, rendered); err != nil {
		return nil, err
	}
	if err := v.ignored(); err != nil {
		return nil, err
	}
	if err := v.readIssued(); err != nil {
		return nil, err
	}
	if s.ClusterID, err = v.clusterID(); err != nil {
		return nil, err
	}
	if s.Passwords, err = v.passwords(names); err != nil {
		return nil, err
	}
	ca, err := v.authority(spec.Cluster)
	if err != nil {
		return nil, err
	}
	s.CA = ca.pair
	if s.Operator, err = v.issue(ca, facts.OperatorName); err != nil {
		return nil, err
	}
	if v.issues && !v.draft {
		if err := privateDir(filepath.Join(v.dir, "nodes")); err != nil {
			return nil, err
		}
	}
	// In parallel: fsyncs issued together are flushed together.
	nodes := spec.Nodes()
	pairs, errs := make([]KeyPair, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	turn := make(chan struct{}, 32)
	for i, n := range nodes {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			addrs := []net.IP{n.IP.AsSlice()}
			if vip := spec.Role(n.Role).VIP; vip.IsValid() {
				addrs = append(addrs, vip.AsSlice())
			}
			pairs[i], errs[i] = v.issue(ca, "nodes/"+n.Name, addrs...)
		})
	}
	wg.Wait()
	for i, n := range nodes {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if pairs[i].Cert != nil {
			s.Nodes[n.Name] = pairs[i]
		}
	}
	// Last, because clusters made before generations have everything else (see order).
	if s.Generation, err = v.issue(ca, generationItem); err != nil {
		return nil, err
	}
	if s.Site, err = v.keepSite(ca, spec, s.Site, rendered); err != nil {
		return nil, err
	}
	slices.Sort(v.renewed)
	s.Renewed = v.renewed
	if s.Revision, err = v.revision(s); err != nil {
		return nil, err
	}
	return s, v.writeIssued()
}

// Format keeps secrets out of messages, with any verb.
func (s Secrets) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "the secrets of cluster %s", s.ClusterID)
}

// Format keeps the private key out of messages, with any verb.
func (k KeyPair) Format(f fmt.State, _ rune) { fmt.Fprint(f, "a key pair") }

// privateDir creates a folder accessible only to its owner, whatever the umask. An existing folder must already be
// private: if others could read it, they may know the secrets, and changing the mode would hide that.
func privateDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o700), atomicfile.Own(dir))
	} else if errors.Is(err, fs.ErrExist) {
		return private(dir)
	}
	if err != nil {
		return fmt.Errorf("make the folder of secrets: %w", err)
	}
	return nil
}

// private refuses a file or folder that is accessible to others.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	// Windows reports 0777 and 0666 for all files.
	if perm := info.Mode().Perm(); perm&0o077 != 0 && runtime.GOOS != "windows" {
		return fmt.Errorf("%s contains secrets, but is accessible to others (mode %04o); close it with: chmod go= %s", path, perm, path)
	}
	return nil
}

// store is a folder of secrets.
type store struct {
	dir    string
	issues bool // issue secrets that were never issued; otherwise write nothing
	draft  bool // do not write what is issued

	mu      sync.Mutex
	issued  map[string]bool // items in the file issued; nil: the file does not exist
	items   map[string]bool // items that exist
	renewed []string
}

// read returns a file's content, or nil if it does not exist.
func (v *store) read(name string) ([]byte, error) {
	path := filepath.Join(v.dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("%s is empty: restore the file from a backup", path)
	}
	return data, private(path)
}

func (v *store) write(name string, data []byte) error {
	if v.draft {
		return nil
	}
	return atomicfile.Write(filepath.Join(v.dir, name), data, 0o600)
}

// ignored writes the .gitignore.
func (v *store) ignored() error {
	data, err := v.read(".gitignore")
	if data != nil || err != nil || !v.issues {
		return err
	}
	return v.write(".gitignore", []byte("*\n"))
}

func (v *store) clusterID() (string, error) {
	data, err := v.read(idItem)
	if err != nil {
		return "", err
	}
	if data == nil {
		if err := v.missing(idItem); err != nil || !v.issues {
			return "", err
		}
		id := newUUID()
		v.have(idItem + " " + id)
		return id, v.write(idItem, []byte(id+"\n"))
	}
	id := strings.TrimSpace(string(data))
	if !facts.UUIDForm.MatchString(id) {
		return "", fmt.Errorf("%s holds no UUID: restore the file from a backup", filepath.Join(v.dir, idItem))
	}
	if first := v.issuedID(); first != "" && first != id {
		return "", fmt.Errorf("%s is another cluster's: this one's is %s, as %s says; restore both files from one backup",
			filepath.Join(v.dir, idItem), first, filepath.Join(v.dir, issuedFile))
	}
	v.have(idItem + " " + id)
	return id, nil
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	var u [16]byte
	rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func (v *store) passwords(names []string) (map[string]string, error) {
	const file = passwordsFile
	all := map[string]string{}
	data, err := v.read(file)
	if err != nil {
		return nil, err
	}
	if data != nil {
		if err := facts.DecodeJSON(data, &all, true); err != nil {
			// The decoder's message could quote the file's content.
			return nil, fmt.Errorf("%s is not a JSON object of strings: restore the file from a backup", filepath.Join(v.dir, file))
		}
	}
	if data == nil && len(names) > 0 {
		if err := v.missing(file); err != nil {
			return nil, err
		}
	}
	added := false
	for _, name := range names {
		if _, ok := all[name]; !ok {
			if err := v.missing("password " + name); err != nil {
				return nil, err
			}
			if !v.issues {
				continue
			}
			all[name], added = newPassword(name), true
		}
		if strings.Trim(all[name], alphabet) != "" || all[name] == "" {
			return nil, fmt.Errorf("%s: %s may have letters and digits only", filepath.Join(v.dir, file), name)
		}
	}
	for name := range all {
		v.have("password " + name)
	}
	if !added {
		return all, nil
	}
	if data, err = json.MarshalIndent(all, "", "  "); err != nil {
		return nil, err
	}
	return all, v.write(file, append(data, '\n'))
}

func newPassword(name string) string {
	n := passwordLen
	if strings.HasSuffix(name, "_vrrp") {
		n = vrrpLen
	}
	var b strings.Builder
	for b.Len() < n {
		i, _ := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet)))) // never fails
		b.WriteByte(alphabet[i.Int64()])
	}
	return b.String()
}

// authority is the cluster's certificate authority.
type authority struct {
	pair KeyPair
	cert *x509.Certificate
	key  crypto.Signer
}

// authority returns the cluster's authority, and creates it if there was none. Without a key (when reading), it cannot
// sign.
func (v *store) authority(cluster string) (authority, error) {
	pair, key, err := v.key("ca", newP256)
	if err != nil || key == nil {
		return authority{}, err
	}
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "imagegen cluster " + cluster},
		NotAfter:              time.Now().AddDate(caYears, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	ca := authority{pair: pair, key: key}
	if pair.Cert != nil {
		if ca.cert, err = v.certificate("ca", pair, key); err != nil {
			return authority{}, err
		}
		if !v.issues || !lastThird(ca.cert, caYears, time.Now()) {
			return ca, nil
		}
		if now := time.Now(); now.After(ca.cert.NotAfter) {
			path := filepath.Join(v.dir, "ca.crt")
			return authority{}, fmt.Errorf("%s, the cluster's authority, expired on %s: it signs nothing, and nobody accepts what it signed. "+
				"Remove this file, and the line ca.crt from %s, to have a successor made for the same key; then every node needs its new seed",
				path, ca.cert.NotAfter.Format(time.DateOnly), filepath.Join(v.dir, issuedFile))
		}
		// With the same key, subject and key ID, either certificate verifies what the other signed.
		tmpl.RawSubject, tmpl.SubjectKeyId = ca.cert.RawSubject, ca.cert.SubjectKeyId
		v.renewed = append(v.renewed, "ca.crt")
	} else if !v.issues {
		return authority{}, nil
	}
	if ca.pair.Cert, err = sign(tmpl, key.Public(), authority{key: key}); err != nil {
		return authority{}, err
	}
	if err := v.write("ca.crt", ca.pair.Cert); err != nil {
		return authority{}, err
	}
	v.have("ca.crt")
	ca.cert, err = v.certificate("ca", ca.pair, key)
	return ca, err
}

// lastThird reports whether a third or less of a certificate's life of so many years is left. The life is counted back
// from its end, because all certificates begin at validFrom.
func lastThird(cert *x509.Certificate, years int, now time.Time) bool {
	return now.After(cert.NotAfter.AddDate(0, -years*12/3, 0))
}

// issue returns the key pair in the files name.key and name.crt, and creates it if there was none. A certificate in the
// last third of its life, or with other addresses, is renewed with the same key. The operator's has no address.
func (v *store) issue(ca authority, name string, addrs ...net.IP) (KeyPair, error) {
	newKey := newP256
	if name == generationItem {
		newKey = newEd25519
	}
	pair, key, err := v.key(name, newKey)
	if err != nil || key == nil || ca.cert == nil {
		return KeyPair{}, err
	}
	end := time.Now().AddDate(nodeYears, 0, 0)
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	if pair.Cert != nil {
		cert, err := v.certificate(name, pair, key)
		if err != nil {
			return KeyPair{}, err
		}
		if err := cert.CheckSignatureFrom(ca.cert); err != nil {
			return KeyPair{}, fmt.Errorf("%s.crt is not signed by ca.crt beside it: restore both files from one backup", filepath.Join(v.dir, name))
		}
		// After a renewal the authority may have another name. A certificate that ends with the authority's cannot be
		// extended.
		same := slices.EqualFunc(cert.IPAddresses, addrs, net.IP.Equal) && bytes.Equal(cert.RawIssuer, ca.cert.RawSubject) &&
			bytes.Equal(cert.AuthorityKeyId, ca.cert.SubjectKeyId)
		old := lastThird(cert, nodeYears, time.Now()) && cert.NotAfter.Before(end)
		if !v.issues || same && !old {
			return pair, nil
		}
		if same {
			v.mu.Lock()
			v.renewed = append(v.renewed, name+".crt")
			v.mu.Unlock()
		}
	} else if !v.issues {
		return KeyPair{}, nil
	}
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: filepath.Base(name)},
		NotAfter:    end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if name == generationItem {
		// With no other usage, nobody accepts it as a node's or the operator's.
		tmpl.Subject.OrganizationalUnit = []string{facts.GenerationOU}
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	}
	if len(addrs) > 0 {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		tmpl.DNSNames, tmpl.IPAddresses = []string{filepath.Base(name)}, addrs
	}
	if pair.Cert, err = sign(tmpl, key.Public(), ca); err != nil {
		return KeyPair{}, err
	}
	v.have(name + ".crt")
	return pair, v.write(name+".crt", pair.Cert)
}

// key reads a private key and its certificate, and creates the key if there was none. The certificate may be missing if
// it was never issued; when reading, so may the key.
func (v *store) key(name string, newKey func() (crypto.Signer, error)) (KeyPair, crypto.Signer, error) {
	var pair KeyPair
	var err error
	if pair.Key, err = v.read(name + ".key"); err != nil {
		return pair, nil, err
	}
	if pair.Cert, err = v.read(name + ".crt"); err != nil {
		return pair, nil, err
	}
	path := filepath.Join(v.dir, name+".key")
	if pair.Cert != nil {
		v.have(name + ".crt")
	} else if err := v.missing(name + ".crt"); pair.Key != nil && err != nil {
		return pair, nil, err
	}
	if pair.Key == nil {
		if pair.Cert != nil {
			return pair, nil, v.lost(name + ".key")
		}
		if err := v.missing(name + ".key"); err != nil || !v.issues {
			return pair, nil, err
		}
		key, err := newKey()
		if err != nil {
			return pair, nil, err
		}
		if pair.Key, err = encodeKey(key); err != nil {
			return pair, nil, err
		}
		v.have(name + ".key")
		return pair, key, v.write(name+".key", pair.Key)
	}
	v.have(name + ".key")
	signer, err := parseKey(path, pair.Key)
	return pair, signer, err
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func newP256() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// newEd25519 makes a key whose signatures are deterministic.
func newEd25519() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// parseKey parses the private key from the file path.
func parseKey(path string, data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM file: restore the file from a backup", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, fmt.Errorf("%s holds no private key: restore the file from a backup", path)
	}
	return signer, nil
}

// certificate parses a pair's certificate and checks that it matches its key.
func (v *store) certificate(name string, pair KeyPair, key crypto.Signer) (*x509.Certificate, error) {
	path := filepath.Join(v.dir, name+".crt")
	block, _ := pem.Decode(pair.Cert)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM file: restore the file from a backup", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no certificate: restore the file from a backup", path)
	}
	have, err1 := x509.MarshalPKIXPublicKey(cert.PublicKey)
	want, err2 := x509.MarshalPKIXPublicKey(key.Public())
	if err1 != nil || err2 != nil || !bytes.Equal(have, want) {
		return nil, fmt.Errorf("%s does not belong to the key beside it: restore both files from one backup", path)
	}
	return cert, nil
}

// sign creates a certificate for a public key; an authority without a certificate signs itself.
func sign(tmpl *x509.Certificate, pub crypto.PublicKey, ca authority) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber, tmpl.NotBefore = serial, validFrom
	parent := ca.cert
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", tmpl.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

package cluster

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
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
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Secrets are a cluster's passwords and keys. They are made once, kept in the folder secrets/ beside the spec, and
// never changed by imagegen afterwards; a node or role that is added later gets its own, the others keep theirs.
type Secrets struct {
	ClusterID string            // UUID
	Passwords map[string]string // by name: letters and digits only, so that no format needs to quote them
	CA        KeyPair
	Nodes     map[string]KeyPair // by node name; the certificate's DNS name is the node's name, its IP the node's
	Operator  KeyPair            // client certificate for imagegen status; its name is "operator"
}

// KeyPair is a certificate and its private key, both PEM.
type KeyPair struct {
	Cert, Key []byte
}

// Clocks of new machines are often wrong, so certificates are valid from long ago.
var validFrom = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	caYears   = 20
	nodeYears = 10

	OperatorName = "operator" // in the operator's certificate
	passwordLen  = 24
	vrrpLen      = 8 // keepalived cuts auth_pass to 8 characters
	alphabet     = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
)

// LoadSecrets reads the secrets of spec from dir, the folder secrets/ beside the spec, and makes those that are
// missing: the passwords called names, and a key pair for the authority, every node and the operator. A file that is
// damaged, or that others may read, is an error; none is ever replaced but a certificate that has expired or whose node
// has another address now, and the new one is for the same key. A password whose name ends in _vrrp has 8 characters, since keepalived uses no
// more; all others have 24. Runs at the same time wait for each other.
//
//	secrets/                 0700, and everything in it 0600
//	  .gitignore             *
//	  cluster_id             UUID
//	  passwords.json         name to password
//	  ca.crt ca.key          the cluster's authority, P-256
//	  operator.crt .key      for imagegen status; a client's certificate
//	  nodes/web1.crt .key    name, address and the role's virtual address; a server's and a client's certificate
func LoadSecrets(dir string, spec *Spec, names []string) (*Secrets, error) {
	if err := privateDir(dir); err != nil {
		return nil, err
	}
	// Two runs at once must not make two authorities.
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	defer lock.Close() // and unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	v := vault{dir}
	s := &Secrets{Nodes: map[string]KeyPair{}}
	if err := v.ignored(); err != nil {
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
	if s.Operator, err = v.issue(ca, OperatorName); err != nil {
		return nil, err
	}
	if err := privateDir(filepath.Join(dir, "nodes")); err != nil {
		return nil, err
	}
	// Some at once: nearly all of the time is waiting for the disk, which brings what it gets together down together.
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
		s.Nodes[n.Name] = pairs[i]
	}
	return s, nil
}

// Format keeps secrets out of messages, whatever the verb.
func (s Secrets) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "the secrets of cluster %s", s.ClusterID)
}

// Format keeps the private key out of messages, whatever the verb.
func (k KeyPair) Format(f fmt.State, _ rune) { fmt.Fprint(f, "a key pair") }

// privateDir makes a folder for its owner alone, whatever the umask. One that is there must be such a folder already:
// who could read it knows the secrets, and closing it now would hide that.
func privateDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = os.Chmod(dir, 0o700)
	} else if errors.Is(err, fs.ErrExist) {
		return private(dir)
	}
	if err != nil {
		return fmt.Errorf("make the folder of secrets: %w", err)
	}
	return nil
}

// private refuses a file or folder that others than its owner may use.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%s holds secrets and others may use it (mode %04o); close it with: chmod go= %s", path, perm, path)
	}
	return nil
}

// vault is a folder of secrets.
type vault struct{ dir string }

// read returns a file's content, nil when there is none.
func (v vault) read(name string) ([]byte, error) {
	path := filepath.Join(v.dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("%s is empty: put the file back from a copy", path)
	}
	return data, private(path)
}

func (v vault) write(name string, data []byte) error {
	return WriteFile(filepath.Join(v.dir, name), data, 0o600)
}

// ignored keeps the folder out of git.
func (v vault) ignored() error {
	data, err := v.read(".gitignore")
	if data != nil || err != nil {
		return err
	}
	return v.write(".gitignore", []byte("*\n"))
}

func (v vault) clusterID() (string, error) {
	data, err := v.read("cluster_id")
	if err != nil {
		return "", err
	}
	if data == nil {
		id := newUUID()
		return id, v.write("cluster_id", []byte(id+"\n"))
	}
	id := strings.TrimSpace(string(data))
	if !uuidForm.MatchString(id) {
		return "", fmt.Errorf("%s holds no UUID: put the file back from a copy", filepath.Join(v.dir, "cluster_id"))
	}
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

func (v vault) passwords(names []string) (map[string]string, error) {
	const file = "passwords.json"
	all := map[string]string{}
	data, err := v.read(file)
	if err != nil {
		return nil, err
	}
	if data != nil {
		if err := decodeJSON(data, &all, true); err != nil {
			// The decoder's message could quote the file.
			return nil, fmt.Errorf("%s is not a JSON object of strings: put the file back from a copy", filepath.Join(v.dir, file))
		}
	}
	added := false
	for _, name := range names {
		if _, ok := all[name]; !ok {
			all[name], added = newPassword(name), true
		}
		if strings.Trim(all[name], alphabet) != "" || all[name] == "" {
			return nil, fmt.Errorf("%s: %s may have letters and digits only", filepath.Join(v.dir, file), name)
		}
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

// authority is the cluster's own certificate authority.
type authority struct {
	pair KeyPair
	cert *x509.Certificate
	key  crypto.Signer
}

func (v vault) authority(cluster string) (authority, error) {
	pair, key, err := v.key("ca")
	if err != nil {
		return authority{}, err
	}
	if pair.Cert == nil {
		pair.Cert, err = sign(&x509.Certificate{
			Subject:               pkix.Name{CommonName: "imagegen cluster " + cluster},
			NotAfter:              time.Now().AddDate(caYears, 0, 0),
			IsCA:                  true,
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageCertSign,
		}, key.Public(), authority{key: key})
		if err != nil {
			return authority{}, err
		}
		if err := v.write("ca.crt", pair.Cert); err != nil {
			return authority{}, err
		}
	}
	cert, err := v.certificate("ca", pair, key)
	return authority{pair, cert, key}, err
}

// issue returns the key pair in the files name.key and name.crt, and makes what is missing. A certificate that
// has expired or is for other addresses is made anew, for the same key. The operator's has no address.
func (v vault) issue(ca authority, name string, addrs ...net.IP) (KeyPair, error) {
	pair, key, err := v.key(name)
	if err != nil {
		return KeyPair{}, err
	}
	if pair.Cert != nil {
		cert, err := v.certificate(name, pair, key)
		if err != nil {
			return KeyPair{}, err
		}
		if err := cert.CheckSignatureFrom(ca.cert); err != nil {
			return KeyPair{}, fmt.Errorf("%s.crt is not signed by ca.crt beside it: put the files back from one copy", filepath.Join(v.dir, name))
		}
		if slices.EqualFunc(cert.IPAddresses, addrs, net.IP.Equal) && time.Now().Before(cert.NotAfter) {
			return pair, nil
		}
	}
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: filepath.Base(name)},
		NotAfter:    time.Now().AddDate(nodeYears, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(addrs) > 0 {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		tmpl.DNSNames, tmpl.IPAddresses = []string{filepath.Base(name)}, addrs
	}
	if pair.Cert, err = sign(tmpl, key.Public(), ca); err != nil {
		return KeyPair{}, err
	}
	return pair, v.write(name+".crt", pair.Cert)
}

// key reads a private key, or makes it, and reads the certificate beside it, if there is one.
func (v vault) key(name string) (KeyPair, crypto.Signer, error) {
	var pair KeyPair
	var err error
	if pair.Key, err = v.read(name + ".key"); err != nil {
		return pair, nil, err
	}
	if pair.Cert, err = v.read(name + ".crt"); err != nil {
		return pair, nil, err
	}
	path := filepath.Join(v.dir, name+".key")
	if pair.Key == nil {
		if pair.Cert != nil {
			return pair, nil, fmt.Errorf("%s is missing beside its certificate: put the file back from a copy", path)
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return pair, nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return pair, nil, err
		}
		pair.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		return pair, key, v.write(name+".key", pair.Key)
	}
	block, _ := pem.Decode(pair.Key)
	if block == nil {
		return pair, nil, fmt.Errorf("%s is no PEM file: put the file back from a copy", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return pair, nil, fmt.Errorf("%s holds no private key: put the file back from a copy", path)
	}
	return pair, signer, nil
}

// certificate parses a pair's certificate and makes sure that it belongs to its key.
func (v vault) certificate(name string, pair KeyPair, key crypto.Signer) (*x509.Certificate, error) {
	path := filepath.Join(v.dir, name+".crt")
	block, _ := pem.Decode(pair.Cert)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file: put the file back from a copy", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no certificate: put the file back from a copy", path)
	}
	have, err1 := x509.MarshalPKIXPublicKey(cert.PublicKey)
	want, err2 := x509.MarshalPKIXPublicKey(key.Public())
	if err1 != nil || err2 != nil || !bytes.Equal(have, want) {
		return nil, fmt.Errorf("%s does not belong to the key beside it: put the files back from one copy", path)
	}
	return cert, nil
}

// sign makes a certificate for a public key; an authority without a certificate signs itself.
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

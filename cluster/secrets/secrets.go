// Package secrets creates and stores a cluster's secrets: passwords, the certificate authority, and a key pair for each
// node. It renders nothing; package roles writes secrets into files.
package secrets

import (
	"crypto/rand"
	"encoding/json"
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

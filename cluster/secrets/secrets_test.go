package secrets

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

var testNames = []string{"balancer_vrrp", "redis", "wordpress_admin"}

// testSpec is the reference cluster. Secrets depend only on nodes and addresses, so its roles have minimal rules.
func testSpec(t testing.TB) *cluster.Spec {
	t.Helper()
	rules := map[string]cluster.Rules{}
	for i, name := range []string{"balancer", "web", "glusterfs", "backend", "databalancer", "redis", "percona"} {
		rules[name] = cluster.Rules{Name: name, CPUs: 2, Memory: 256 * cluster.MiB, Disk: 4 * cluster.GiB, MinNodes: 1,
			Data: 10 * cluster.GiB, VIP: cluster.VIPOptional, VRRPID: 51 + i, Distros: []string{"debian12"}}
	}
	spec, err := cluster.Parse("cluster.yaml", cluster.Reference("debian12"), rules)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func load(t testing.TB, dir string, spec *cluster.Spec, names []string) *Secrets {
	t.Helper()
	s, err := Load(dir, spec, names)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSecretsAreMadeOnce(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "secrets")
	spec := testSpec(t)
	first := load(t, dir, spec, testNames)
	if !facts.UUIDForm.MatchString(first.ClusterID) {
		t.Errorf("cluster id %s", first.ClusterID)
	}
	for name, form := range map[string]string{"balancer_vrrp": `^[A-Za-z0-9]{8}$`, "redis": `^[A-Za-z0-9]{24}$`, "wordpress_admin": `^[A-Za-z0-9]{24}$`} {
		if !regexp.MustCompile(form).MatchString(first.Passwords[name]) {
			t.Errorf("%s has %d characters", name, len(first.Passwords[name]))
		}
	}
	before := content(t, dir)
	if again := load(t, dir, spec, testNames); !reflect.DeepEqual(again, first) {
		t.Error("the second run has other secrets")
	}
	// A new node and a new password do not change the others.
	spec.Roles[0].Nodes = append(spec.Roles[0].Nodes, cluster.Node{Name: "balancer9", Role: "balancer", IP: netip.MustParseAddr("192.168.10.99")})
	more := load(t, dir, spec, append(testNames, "monitor"))
	after := content(t, dir)
	for name, data := range before {
		if name != "passwords.json" && name != "issued" && name != "revision" && after[name] != data {
			t.Errorf("%s has changed", name)
		}
	}
	for name, p := range first.Passwords {
		if more.Passwords[name] != p {
			t.Errorf("password %s has changed", name)
		}
	}
	if more.Passwords["monitor"] == "" || more.Nodes["balancer9"].Key == nil {
		t.Error("the new node or password has no secret")
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700 | fs.ModeDir
		}
		if err == nil && info.Mode() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if after[".gitignore"] != "*\n" {
		t.Errorf(".gitignore holds %q", after[".gitignore"])
	}
}

// A restrictive umask must not lock the owner out.
func TestSecretsWithTightUmask(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	defer syscall.Umask(syscall.Umask(0o777))
	load(t, dir, testSpec(t), testNames)
	load(t, dir, testSpec(t), testNames)
}

// TestCertificates: agents accept each other and the operator, the operator accepts agents, and nobody else is
// accepted.
func TestCertificates(t *testing.T) {
	spec := testSpec(t)
	s := load(t, filepath.Join(t.TempDir(), "secrets"), spec, nil)
	other := load(t, filepath.Join(t.TempDir(), "secrets"), spec, nil)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(s.CA.Cert) {
		t.Fatal("no certificate of the authority")
	}
	now := time.Now()
	verify := func(pair KeyPair, name string, usage x509.ExtKeyUsage, at time.Time) error {
		t.Helper()
		c, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: at})
		return err
	}
	for _, n := range spec.Nodes() {
		names := []string{n.Name, n.IP.String()}
		if vip := spec.Role(n.Role).VIP; vip.IsValid() {
			names = append(names, vip.String())
		}
		for _, name := range names {
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
				// A node whose clock is years behind must be able to join.
				for _, at := range []time.Time{now, validFrom.AddDate(0, 0, 1), now.AddDate(9, 11, 0)} {
					if err := verify(s.Nodes[n.Name], name, usage, at); err != nil {
						t.Errorf("%s at %s: %v", name, at, err)
					}
				}
			}
		}
	}
	if verify(s.Nodes["web1"], "web2", x509.ExtKeyUsageServerAuth, now) == nil {
		t.Error("web1 can pass for web2")
	}
	if verify(s.Nodes["redis1"], spec.Role("databalancer").VIP.String(), x509.ExtKeyUsageServerAuth, now) == nil {
		t.Error("redis1 can pass for the data balancer")
	}
	if err := verify(s.Operator, "", x509.ExtKeyUsageClientAuth, now); err != nil {
		t.Error(err)
	}
	if verify(s.Operator, "", x509.ExtKeyUsageServerAuth, now) == nil {
		t.Error("the operator can pass for a server")
	}
	if verify(other.Nodes["web1"], "web1", x509.ExtKeyUsageServerAuth, now) == nil {
		t.Error("a node of another cluster with the same name is believed")
	}
}

// TestNewAddress: a node whose address or virtual address changes keeps its key and gets a new certificate; the others
// do not change.
func TestNewAddress(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	spec := testSpec(t)
	before := load(t, dir, spec, nil)
	spec.Role("web").Nodes[0].IP = netip.MustParseAddr("192.168.10.142")
	spec.Role("balancer").VIP = netip.MustParseAddr("192.168.10.139")
	after := load(t, dir, spec, nil)
	for node, address := range map[string]struct{ old, new string }{
		"web1":      {"192.168.10.42", "192.168.10.142"},
		"balancer2": {"192.168.10.39", "192.168.10.139"},
	} {
		if string(after.Nodes[node].Key) != string(before.Nodes[node].Key) {
			t.Errorf("%s has another key", node)
		}
		block, _ := pem.Decode(after.Nodes[node].Cert)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || cert.VerifyHostname(address.new) != nil || cert.VerifyHostname(address.old) == nil {
			t.Errorf("%s: the certificate is for %v (%v)", node, cert.IPAddresses, err)
		}
	}
	if !reflect.DeepEqual(after.Nodes["web2"], before.Nodes["web2"]) {
		t.Error("web2 has changed")
	}
}

// Concurrent runs all get the same secrets.
func TestSecretsAtTheSameTime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	spec := testSpec(t)
	got := make([]*Secrets, 8)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i], _ = Load(dir, spec, testNames) })
	}
	wg.Wait()
	for i, s := range got {
		if s == nil || !reflect.DeepEqual(s, got[0]) {
			t.Errorf("run %d has other secrets", i)
		}
	}
}

// A damaged file is named in the error, never shown, and never replaced.
func TestDamagedSecrets(t *testing.T) {
	spec := testSpec(t)
	good := filepath.Join(t.TempDir(), "secrets")
	load(t, good, spec, testNames)
	other := filepath.Join(t.TempDir(), "secrets")
	load(t, other, spec, testNames)
	all := content(t, good)
	for name, data := range all {
		if name == ".gitignore" {
			continue
		}
		for what, damaged := range map[string]string{"empty": "", "cut off": data[:len(data)/2], "another file": "hello\n"} {
			dir := copyTree(t, good)
			write(t, filepath.Join(dir, name), damaged)
			refused(t, dir, spec, name+" "+what, filepath.Base(name))
		}
		if ext := filepath.Ext(name); ext == ".key" || ext == ".crt" {
			dir := copyTree(t, good)
			write(t, filepath.Join(dir, name), content(t, other)[name])
			refused(t, dir, spec, name+" of another cluster", strings.TrimSuffix(filepath.Base(name), ext))
		}
		dir := copyTree(t, good)
		if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, spec, name+" that all can read", "chmod go= "+filepath.Join(dir, name))
	}
	dir := copyTree(t, good)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, spec, "an open folder", "chmod go= "+dir)
	dir = copyTree(t, good)
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, spec, "a certificate without its key", "ca.key is missing")
	// A run that was killed between key and certificate is not damage: it has not recorded them as issued yet.
	dir = copyTree(t, good)
	forget(t, dir, "nodes/web1.crt")
	if err := os.Remove(filepath.Join(dir, "nodes/web1.crt")); err != nil {
		t.Fatal(err)
	}
	if got := load(t, dir, spec, testNames); string(got.Nodes["web1"].Key) != all["nodes/web1.key"] {
		t.Error("web1 has another key")
	}
}

// refused checks that the secrets in dir are refused with a message that contains want and no secrets, and that nothing
// changes.
func refused(t *testing.T, dir string, spec *cluster.Spec, what, want string) {
	t.Helper()
	before := content(t, dir)
	_, err := Load(dir, spec, testNames)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: error %v does not say %s", what, err, want)
	}
	if err != nil {
		leaks(t, err.Error(), before)
	}
	if !maps.Equal(before, content(t, dir)) {
		t.Errorf("%s: files have changed", what)
	}
}

// forget removes lines from the list of issued items.
func forget(t *testing.T, dir string, items ...string) {
	t.Helper()
	path := filepath.Join(dir, "issued")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.DeleteFunc(strings.SplitAfter(string(data), "\n"), func(l string) bool { return slices.Contains(items, strings.TrimSpace(l)) })
	write(t, path, strings.Join(lines, ""))
}

// TestLostSecrets: an error names each lost secret and how to get it back, and nothing is issued instead. Read does the
// same.
func TestLostSecrets(t *testing.T) {
	spec := testSpec(t)
	good := filepath.Join(t.TempDir(), "secrets")
	load(t, good, spec, testNames)
	for name := range content(t, good) {
		if name == ".gitignore" || name == "issued" {
			continue
		}
		dir := copyTree(t, good)
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, spec, name+" lost", filepath.Join(dir, name)+" is missing, but was issued")
		if _, err := Read(dir, spec, testNames); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, name)) {
			t.Errorf("%s lost, and read: %v", name, err)
		}
		// In a cluster without a list, an item that was created before an existing one is lost, too.
		if strings.HasPrefix(name, "nodes/") || strings.HasPrefix(name, "generation.") || name == "revision" { // the last ones
			continue
		}
		if err := os.Remove(filepath.Join(dir, "issued")); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, spec, name+" lost, without a list", filepath.Join(dir, name)+" is missing, but was issued")
	}
	dir := copyTree(t, good)
	write(t, filepath.Join(dir, "passwords.json"), `{"balancer_vrrp": "abcdefgh", "wordpress_admin": "abc"}`)
	refused(t, dir, spec, "one password lost", "password redis is missing")
	dir = copyTree(t, good)
	write(t, filepath.Join(dir, "cluster_id"), newUUID()+"\n")
	refused(t, dir, spec, "another cluster's id", "cluster_id is another cluster's")

	// The remedies in the messages work.
	dir = copyTree(t, good)
	forget(t, dir, "nodes/web1.key", "nodes/web1.crt")
	for _, name := range []string{"nodes/web1.key", "nodes/web1.crt"} {
		os.Remove(filepath.Join(dir, name))
	}
	if s := load(t, dir, spec, testNames); s.Nodes["web1"].Key == nil {
		t.Error("a pair that was forgotten is not issued anew")
	}
	dir = copyTree(t, good)
	os.Remove(filepath.Join(dir, "issued"))
	if load(t, dir, spec, testNames); content(t, dir)["issued"] != content(t, good)["issued"] {
		t.Error("what is there was not adopted")
	}
}

// New nodes, roles and passwords were never issued and are not missing.
func TestReadSecretsWritesNothing(t *testing.T) {
	spec := testSpec(t)
	dir := filepath.Join(t.TempDir(), "secrets")
	s, err := Read(dir, spec, testNames)
	if err != nil || s.ClusterID != "" || len(s.Passwords)+len(s.Nodes) != 0 || s.Operator.Cert != nil {
		t.Errorf("secrets that were never issued: %v, %v", s, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("reading made the folder")
	}
	issued := load(t, dir, spec, testNames)
	before := content(t, dir)
	spec.Roles[0].Nodes = append(spec.Roles[0].Nodes, cluster.Node{Name: "balancer9", Role: "balancer", IP: netip.MustParseAddr("192.168.10.99")})
	s, err = Read(dir, spec, append(testNames, "monitor"))
	if err != nil || !reflect.DeepEqual(s, issued) {
		t.Errorf("secrets with a node more: %v", err)
	}
	if !maps.Equal(before, content(t, dir)) {
		t.Error("reading changed files")
	}
	if none, err := NoSecrets(dir); none || err != nil {
		t.Errorf("NoSecrets: %v, %v", none, err)
	}
}

// A draft has everything that Load would issue, and leaves no trace.
func TestDraftWritesNothing(t *testing.T) {
	spec := testSpec(t)
	dir := filepath.Join(t.TempDir(), "secrets")
	if _, err := Draft(dir, spec, testNames); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a folder: %v", err)
	}
	issued := load(t, dir, spec, testNames)
	before := content(t, dir)
	spec.Roles[0].Nodes = append(spec.Roles[0].Nodes, cluster.Node{Name: "balancer9", Role: "balancer", IP: netip.MustParseAddr("192.168.10.99")})
	names := append(slices.Clone(testNames), "monitor")
	draft, err := Draft(dir, spec, names)
	if err != nil {
		t.Fatal(err)
	}
	if draft.Passwords["monitor"] == "" || draft.Nodes["balancer9"].Cert == nil || draft.Revision != issued.Revision+1 {
		t.Errorf("the draft lacks what is new; its revision is %d after %d", draft.Revision, issued.Revision)
	}
	if !maps.Equal(before, content(t, dir)) {
		t.Error("the draft changed files")
	}
	real := load(t, dir, spec, names)
	if real.Passwords["monitor"] == draft.Passwords["monitor"] || real.Revision != draft.Revision {
		t.Errorf("what is issued later: the draft's password, or revision %d and not %d", real.Revision, draft.Revision)
	}
	delete(draft.Passwords, "monitor")
	delete(draft.Nodes, "balancer9")
	draft.Revision = issued.Revision
	if !reflect.DeepEqual(draft, issued) {
		t.Error("the draft has other secrets in place of those that were issued")
	}
	if err := os.Remove(filepath.Join(dir, "operator.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := Draft(dir, spec, names); err == nil || !strings.Contains(err.Error(), "operator.key is missing, but was issued") {
		t.Errorf("a lost secret: %v", err)
	}
}

// aged replaces a certificate by one for the same key that expires at end.
func aged(t *testing.T, dir, name string, end time.Time) {
	t.Helper()
	v := &store{dir: dir, items: map[string]bool{}}
	caPair, caKey, err := v.key("ca", newP256)
	if err != nil {
		t.Fatal(err)
	}
	caCert, err := v.certificate("ca", caPair, caKey)
	if err != nil {
		t.Fatal(err)
	}
	pair, key, err := v.key(name, newP256)
	if err != nil {
		t.Fatal(err)
	}
	old, err := v.certificate(name, pair, key)
	if err != nil {
		t.Fatal(err)
	}
	ca := authority{caPair, caCert, caKey}
	if name == "ca" {
		ca.cert = nil
	}
	cert, err := sign(&x509.Certificate{
		RawSubject: old.RawSubject, SubjectKeyId: old.SubjectKeyId, NotAfter: end, DNSNames: old.DNSNames, IPAddresses: old.IPAddresses,
		KeyUsage: old.KeyUsage, ExtKeyUsage: old.ExtKeyUsage, IsCA: old.IsCA, BasicConstraintsValid: old.IsCA,
	}, key.Public(), ca)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name+".crt"), string(cert))
}

// TestRenewal: certificates are renewed in the last third of their life, with the same key and authority, and Read
// warns about them.
func TestRenewal(t *testing.T) {
	spec := testSpec(t)
	now := time.Now()
	dir := filepath.Join(t.TempDir(), "secrets")
	first := load(t, dir, spec, nil)
	if said := first.Expiring(now); said != nil {
		t.Errorf("new certificates: %q", said)
	}
	aged(t, dir, "nodes/web1", now.AddDate(3, 3, 0))
	aged(t, dir, "nodes/web2", now.AddDate(3, 5, 0))
	aged(t, dir, "operator", now.Add(-time.Hour))
	before := content(t, dir)
	read, err := Read(dir, spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if said := read.Expiring(now); len(said) != 1 || !strings.Contains(said[0], "operator and web1 expired on ") {
		t.Errorf("said: %q", said)
	}
	s := load(t, dir, spec, nil)
	if want := []string{"nodes/web1.crt", "operator.crt"}; !slices.Equal(s.Renewed, want) {
		t.Errorf("renewed %q, want %q", s.Renewed, want)
	}
	if end := s.Nodes["web1"].parse().NotAfter; end.Before(now.AddDate(nodeYears, 0, -1)) {
		t.Errorf("web1's certificate ends on %s", end)
	}
	for name, data := range content(t, dir) {
		if name != "nodes/web1.crt" && name != "operator.crt" && name != "revision" && data != before[name] {
			t.Errorf("%s has changed", name)
		}
	}
	if again := load(t, dir, spec, nil); again.Renewed != nil {
		t.Errorf("renewed once more: %q", again.Renewed)
	}

	// After the authority's renewal, nodes with the old and the new certificate accept each other.
	aged(t, dir, "ca", now.AddDate(6, 0, 0))
	old := []byte(content(t, dir)["ca.crt"])
	read, _ = Read(dir, spec, nil)
	if said := read.Expiring(now); len(said) != 1 || !strings.Contains(said[0], "authority, ca.crt, expires on "+now.AddDate(6, 0, 0).UTC().Format(time.DateOnly)) {
		t.Errorf("said: %q", said)
	}
	s = load(t, dir, spec, nil)
	if want := []string{"ca.crt"}; !slices.Equal(s.Renewed, want) {
		t.Errorf("renewed %q, want %q", s.Renewed, want)
	}
	aged(t, dir, "nodes/redis1", now.AddDate(1, 0, 0))
	s = load(t, dir, spec, nil) // redis1 gets a certificate from the new one
	for _, ca := range [][]byte{old, s.CA.Cert} {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		for _, node := range []string{"web1", "redis1"} {
			if _, err := s.Nodes[node].parse().Verify(x509.VerifyOptions{Roots: pool, DNSName: node}); err != nil {
				t.Errorf("%s: %v", node, err)
			}
		}
	}
}

// TestExpiredAuthority: an expired authority signs nothing, and the remedy in the error works.
func TestExpiredAuthority(t *testing.T) {
	spec := testSpec(t)
	dir := filepath.Join(t.TempDir(), "secrets")
	load(t, dir, spec, testNames)
	aged(t, dir, "ca", time.Now().Add(-time.Hour))
	refused(t, dir, spec, "an expired authority", filepath.Join(dir, "ca.crt")+", the cluster's authority, expired on ")
	s, err := Read(dir, spec, testNames)
	if err != nil {
		t.Fatal(err)
	}
	if said := s.Expiring(time.Now()); len(said) != 1 || !strings.Contains(said[0], "ca.crt, expired on") {
		t.Errorf("said: %q", said)
	}
	os.Remove(filepath.Join(dir, "ca.crt"))
	forget(t, dir, "ca.crt")
	s = load(t, dir, spec, testNames)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA.Cert)
	if _, err := s.Nodes["web1"].parse().Verify(x509.VerifyOptions{Roots: pool, DNSName: "web1"}); err != nil {
		t.Error(err)
	}
}

// A certificate never outlives the authority, and one that ends with it is not renewed on every run.
func TestCertificatesEndWithTheAuthority(t *testing.T) {
	spec := testSpec(t)
	dir := filepath.Join(t.TempDir(), "secrets")
	load(t, dir, spec, nil)
	end := time.Now().AddDate(7, 0, 0).UTC().Truncate(time.Second)
	aged(t, dir, "ca", end)
	aged(t, dir, "nodes/web1", time.Now().AddDate(1, 0, 0))
	s := load(t, dir, spec, nil)
	if got := s.Nodes["web1"].parse().NotAfter; !got.Equal(end) {
		t.Errorf("web1's ends on %s, the authority's on %s", got, end)
	}
	if again := load(t, dir, spec, nil); again.Renewed != nil {
		t.Errorf("renewed once more: %q", again.Renewed)
	}
}

// Files that root wrote through sudo belong to the user who called it.
func TestOwnedByTheUserWhoCalledSudo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root can give files away")
	}
	t.Setenv("SUDO_UID", "12345")
	t.Setenv("SUDO_GID", "12346")
	top := t.TempDir()
	if err := atomicfile.MakeDirs(filepath.Join(top, "a/b")); err != nil {
		t.Fatal(err)
	}
	load(t, filepath.Join(top, "a/b/secrets"), testSpec(t), testNames)
	err := filepath.WalkDir(filepath.Join(top, "a"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if stat := info.Sys().(*syscall.Stat_t); err == nil && (stat.Uid != 12345 || stat.Gid != 12346) {
			t.Errorf("%s belongs to %d:%d", path, stat.Uid, stat.Gid)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(top); err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		t.Error("a folder that was there has another owner")
	}
}

// Secrets are not shown by any way of printing them.
func TestSecretsAreNotPrinted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	s := load(t, dir, testSpec(t), testNames)
	files := content(t, dir)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%t"} {
		for _, v := range []any{s, *s, s.CA, &s.CA, s.Nodes, struct{ S *Secrets }{s}, struct{ S Secrets }{*s}, []KeyPair{s.Operator}} {
			leaks(t, fmt.Sprintf(verb, v), files)
		}
	}
}

// leaks looks for passwords and keys in text, in plain, in hexadecimal and as lists of numbers.
func leaks(t *testing.T, text string, files map[string]string) {
	t.Helper()
	var secrets []string
	for name, data := range files {
		if strings.HasSuffix(name, ".key") && strings.Count(data, "\n") > 2 {
			secrets = append(secrets, strings.Split(data, "\n")[1])
		}
	}
	passwords := map[string]string{}
	if json.Unmarshal([]byte(files["passwords.json"]), &passwords) == nil {
		secrets = slices.AppendSeq(secrets, maps.Values(passwords))
	}
	for _, s := range secrets {
		numbers := fmt.Sprint([]byte(s)) // "[45 66 …]"
		for _, form := range []string{s, fmt.Sprintf("%x", s), strings.Trim(numbers, "[]")} {
			if strings.Contains(text, form) {
				t.Errorf("a secret is shown in %.200s", text)
			}
		}
	}
}

func BenchmarkLoadSecrets(b *testing.B) {
	dir, spec := filepath.Join(b.TempDir(), "secrets"), testSpec(b)
	load(b, dir, spec, testNames)
	for b.Loop() {
		load(b, dir, spec, testNames)
	}
}

// content returns the files in dir by their path in it.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, path))
		m[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func copyTree(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "secrets")
	if err := os.MkdirAll(filepath.Join(to, "nodes"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range content(t, dir) {
		write(t, filepath.Join(to, name), data)
	}
	return to
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A removed node's key pair is not missed, and the node gets a new one when it comes back.
func TestRemovedNodesKeyIsNotMissed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	if err := RemoveNode(dir, "web1"); err != nil {
		t.Errorf("without secrets: %v", err)
	}
	spec := testSpec(t)
	first := load(t, dir, spec, testNames)
	for range 2 {
		if err := RemoveNode(dir, "web1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"nodes/web1.key", "nodes/web1.crt"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	again := load(t, dir, spec, testNames)
	if bytes.Equal(first.Nodes["web1"].Key, again.Nodes["web1"].Key) || !bytes.Equal(first.Nodes["web2"].Key, again.Nodes["web2"].Key) {
		t.Error("want another key for web1, and the same as before for web2")
	}
	for _, name := range []string{"../ca", "", "nodes/web2"} {
		if err := RemoveNode(dir, name); err == nil {
			t.Errorf("%q is taken for a node", name)
		}
	}
}

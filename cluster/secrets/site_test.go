package secrets

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
)

// siteSpec is a small cluster in dir with site.tls.
func siteSpec(t testing.TB, dir, site string) *cluster.Spec {
	t.Helper()
	rules := map[string]cluster.Rules{"balancer": {Name: "balancer", TLS: true, VIP: cluster.VIPRequired, VRRPID: 51, CPUs: 1, Memory: 256 * cluster.MiB,
		Disk: 4 * cluster.GiB, MinNodes: 1, Distros: []string{"debian12"}}}
	spec, err := cluster.Parse(filepath.Join(dir, "cluster.yaml"), []byte("cluster: otus\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/24}\nsite: {"+site+"}\n"+
		"roles: {balancer: {vip: 10.0.0.9, nodes: {b1: 10.0.0.1, b2: 10.0.0.2}}}\n"), rules)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// issuer is a certificate with its key.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// siteCert makes a certificate; of nil, it signs itself. change may change it before.
func siteCert(t testing.TB, by *issuer, key crypto.Signer, change func(*x509.Certificate)) *issuer {
	t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "site"}, DNSNames: []string{"www.example.com", "example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 90), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if change != nil {
		change(tmpl)
	}
	if by == nil {
		by = &issuer{tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{cert, key}
}

func siteCA(t testing.TB, by *issuer, name string) *issuer {
	t.Helper()
	return siteCert(t, by, nil, func(c *x509.Certificate) {
		c.Subject.CommonName, c.DNSNames, c.ExtKeyUsage = name, nil, nil
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
}

func chainOf(certs ...*issuer) string {
	var b strings.Builder
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw}))
	}
	return b.String()
}

func keyOf(t testing.TB, key crypto.Signer) string {
	t.Helper()
	data, err := encodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestSiteCertificates: every usual form of a certificate and key is accepted, and every usual mistake is named, with the position in
// the spec and the file. A message has nothing of a key.
func TestSiteCertificates(t *testing.T) {
	root := siteCA(t, nil, "root")
	middle := siteCA(t, root, "middle")
	site := siteCert(t, middle, nil, nil)
	own := siteCert(t, nil, nil, nil)
	with := func(key crypto.Signer, change func(*x509.Certificate)) *issuer {
		return siteCert(t, middle, key, change)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := x509.MarshalECPrivateKey(site.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	key := keyOf(t, site.key)
	ofRSA, wild := with(rsaKey, nil), with(nil, func(c *x509.Certificate) { c.DNSNames = []string{"*.example.com"} })
	expired := with(nil, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -90), time.Now().AddDate(0, 0, -1)
	})
	later := with(nil, func(c *x509.Certificate) { c.NotBefore = time.Now().AddDate(0, 0, 2) })
	day := func(d int) string { return time.Now().AddDate(0, 0, d).UTC().Format(time.DateOnly) }
	const certificate, ofKey = "cluster.yaml:4:59: site.tls.certificate: chain.pem ", "cluster.yaml:4:75: site.tls.key: key.pem "
	for _, c := range []struct{ name, chain, key, want string }{
		{"with its authority's", chainOf(site, middle), key, ""},
		{"up to the root", chainOf(site, middle, root), key, ""},
		{"alone", chainOf(site), key, ""},
		{"self-signed", chainOf(own), keyOf(t, own.key), ""},
		{"with text around it", "subject=/CN=x\n" + chainOf(site) + "\nissuer\n" + chainOf(middle), "Bag Attributes\n" + key, ""},
		{"EC with parameters", chainOf(site), block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + block("EC PRIVATE KEY", ec), ""},
		{"RSA", chainOf(ofRSA, middle), block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), ""},
		{"a wildcard", chainOf(wild, middle), keyOf(t, wild.key), ""},

		{"another's key", chainOf(site, middle), keyOf(t, own.key), ofKey + "does not belong to the certificate of www.example.com; write the key that the certificate was requested with"},
		{"in the wrong order", chainOf(middle, site), key, certificate + "has the site's own certificate in place 2; it must be the first, and the certificate of its authority next"},
		{"with a gap", chainOf(site, root), key, certificate + `is in the wrong order or has a gap: certificate 1, of www.example.com, was not issued by certificate 2, of "CN=root", but by "CN=middle"`},
		{"for another name", chainOf(with(site.key, func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses = []string{"a.example", "b.example"}, []net.IP{{10, 0, 0, 9}}
		})), key,
			certificate + "is for a.example, b.example and 10.0.0.9, not for www.example.com, the host in site.url"},
		{"without names", chainOf(with(site.key, func(c *x509.Certificate) { c.DNSNames = nil })), key, certificate + "has no subject alternative name, so browsers refuse it; request one with the names of the site"},
		{"for clients", chainOf(with(site.key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })), key, certificate + "is not for servers: its extended key usage lacks serverAuth"},
		{"expired", chainOf(expired, middle), keyOf(t, expired.key), certificate + "expired on " + day(-1) + ": certificate 1, of www.example.com; renew it"},
		{"of the future", chainOf(later), keyOf(t, later.key), certificate + "is not valid before " + day(2)},
		{"empty", "", key, certificate + "has no certificate in PEM"},
		{"DER", string(site.cert.Raw), key, certificate + "has no certificate in PEM; it is DER, which openssl x509 -inform DER converts"},
		{"cut off", chainOf(site)[:300], key, certificate + "has no certificate in PEM"},
		{"damaged", block("CERTIFICATE", site.cert.Raw[:200]), key, certificate + "has a certificate that cannot be read, in place 1: "},
		{"with the key in it", chainOf(site) + key, key, certificate + "has a block PRIVATE KEY among the certificates; remove it"},
		{"no key", chainOf(site), chainOf(site), ofKey + "has no private key in PEM"},
		{"two keys", chainOf(site), key + key, ofKey + "has more than one private key; leave only the certificate's"},
		{"a damaged key", chainOf(site), block("PRIVATE KEY", []byte("x")), ofKey + "has a private key that cannot be read"},
		{"with a passphrase", chainOf(site), block("ENCRYPTED PRIVATE KEY", []byte("x")), ofKey + "is encrypted, and nobody could type its passphrase when a node starts; decrypt it with openssl pkey"},
		{"with a passphrase, of old", chainOf(site), "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", ofKey + "is encrypted, "},
		{"Ed25519", chainOf(site), keyOf(t, edKey), ofKey + "has a key that is neither RSA nor ECDSA, which browsers do not know"},
		{"P-521", chainOf(site), keyOf(t, p521), ofKey + "has a key on the curve P-521, which not all browsers know; use P-256, P-384 or RSA"},
		{"both wrong", "", "", certificate + "has no certificate in PEM\n" + ofKey + "has no private key in PEM"},
		{"huge", strings.Repeat("x", siteLimit+1), key, "cluster.yaml:4:59: site.tls.certificate: DIR/chain.pem is too large for a certificate or key"},
	} {
		dir := t.TempDir()
		spec := siteSpec(t, dir, "url: 'https://www.example.com', tls: {certificate: chain.pem, key: key.pem}")
		write(t, filepath.Join(dir, "chain.pem"), c.chain)
		write(t, filepath.Join(dir, "key.pem"), c.key)
		pair, err := SiteFiles(spec, KeyPair{}, time.Now())
		if c.want == "" {
			if err != nil || !bytes.HasPrefix(pair.Cert, []byte("-----BEGIN CERTIFICATE-----\n")) || !bytes.HasPrefix(pair.Key, []byte("-----BEGIN PRIVATE KEY-----\n")) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		got := strings.ReplaceAll(fmt.Sprint(err), dir+"/cluster.yaml", "cluster.yaml")
		got = strings.ReplaceAll(got, dir, "DIR")
		var problems cluster.Problems
		if !errors.As(err, &problems) || !strings.HasPrefix(got, c.want) || strings.Count(got, "\n") != strings.Count(c.want, "\n") {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		leaks(t, got, map[string]string{"a.key": c.key})
		if pair.Cert != nil || pair.Key != nil {
			t.Errorf("%s: a pair in spite of the error", c.name)
		}
	}

	// Files that are not there, are none, or which everybody can read.
	dir := t.TempDir()
	spec := siteSpec(t, dir, "tls: {certificate: none.pem, key: .}")
	if _, err := SiteFiles(spec, KeyPair{}, time.Now()); err == nil || !strings.Contains(err.Error(), "site.tls.certificate: there is no file "+dir+"/none.pem; a path is relative to the spec's folder\n") ||
		!strings.Contains(err.Error(), "site.tls.key: "+dir+" is not a file;") {
		t.Errorf("got %v", err)
	}
	spec = siteSpec(t, dir, "tls: {certificate: chain.pem, key: key.pem}")
	write(t, filepath.Join(dir, "chain.pem"), chainOf(site))
	write(t, filepath.Join(dir, "key.pem"), key)
	if err := os.Chmod(filepath.Join(dir, "key.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := SiteFiles(spec, KeyPair{}, time.Now()); err == nil || !strings.Contains(err.Error(), "key.pem is a private key, but is accessible to everybody (mode 0644); close it with: chmod o= ") {
		t.Errorf("got %v", err)
	}
}

// TestSiteIsRendered: the certificate is in the folder of secrets as it was rendered last, and another one is another revision. One
// that expires there may be rendered again, so that the cluster can still be changed.
func TestSiteIsRendered(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "secrets")
	plain := load(t, dir, siteSpec(t, top, "title: x"), nil)
	if _, err := os.Stat(filepath.Join(dir, siteFile)); err == nil || plain.Site.Cert != nil {
		t.Error("a certificate without site.tls")
	}
	spec := siteSpec(t, top, "tls: {certificate: chain.pem, key: key.pem}")
	put := func(site *issuer) {
		write(t, filepath.Join(top, "chain.pem"), chainOf(site))
		write(t, filepath.Join(top, "key.pem"), keyOf(t, site.key))
	}
	if s, err := Read(dir, spec, nil); err != nil || s.Site.Cert != nil {
		t.Errorf("nothing was rendered yet: %v, %v", s, err)
	}
	first := siteCert(t, nil, nil, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -60), time.Now().AddDate(0, 0, 29)
	})
	put(first)
	s := load(t, dir, spec, nil)
	if string(s.Site.Cert) != chainOf(first) || string(s.Site.Key) != keyOf(t, first.key) || s.Revision != plain.Revision+1 {
		t.Errorf("revision %d after %d, %s", s.Revision, plain.Revision, s.Site.Cert)
	}
	if info, err := os.Stat(filepath.Join(dir, siteFile)); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	now := time.Now()
	if said := s.SiteExpiring(now); said != "the site's certificate expires on "+first.cert.NotAfter.UTC().Format(time.DateOnly) {
		t.Errorf("said %q", said)
	}
	if said := s.SiteExpiring(now.AddDate(0, 0, -10)); said != "" { // 39 of 89 days before its end
		t.Errorf("said %q", said)
	}
	if said := s.SiteExpiring(now.AddDate(0, 0, 30)); said != "the site's certificate expired on "+first.cert.NotAfter.UTC().Format(time.DateOnly) {
		t.Errorf("said %q", said)
	}
	if pair, err := SiteFiles(spec, s.Site, now.AddDate(0, 0, 30)); err != nil || !bytes.Equal(pair.Cert, s.Site.Cert) {
		t.Errorf("expired, and known: %v", err)
	}
	if _, err := SiteFiles(spec, KeyPair{}, now.AddDate(0, 0, 30)); err == nil {
		t.Error("expired, and not known")
	}
	again := load(t, dir, spec, nil)
	if again.Revision != s.Revision {
		t.Errorf("revision %d after %d", again.Revision, s.Revision)
	}

	// A renewal; the files may be elsewhere for those who only ask.
	second := siteCert(t, nil, first.key, nil)
	put(second)
	if read, err := Read(dir, spec, nil); err != nil || !bytes.Equal(read.Site.Cert, s.Site.Cert) {
		t.Errorf("what was rendered last: %v", err)
	}
	if s = load(t, dir, spec, nil); string(s.Site.Cert) != chainOf(second) || s.Revision != again.Revision+1 {
		t.Errorf("revision %d, %s", s.Revision, s.Site.Cert)
	}
	if err := os.Remove(filepath.Join(top, "key.pem")); err != nil {
		t.Fatal(err)
	}
	before := content(t, dir)
	if _, err := Load(dir, spec, nil); err == nil || !strings.Contains(err.Error(), "site.tls.key: there is no file") {
		t.Errorf("got %v", err)
	}
	if read, err := Read(dir, spec, nil); err != nil || string(read.Site.Cert) != chainOf(second) || fmt.Sprint(content(t, dir)) != fmt.Sprint(before) {
		t.Errorf("read: %v", err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		leaks(t, fmt.Sprintf(verb, s), map[string]string{"site.key": keyOf(t, first.key)})
		leaks(t, fmt.Sprintf(verb, s.Site), map[string]string{"site.key": keyOf(t, first.key)})
	}
}

// TestSelfSigned: the authority's certificate for the site is for what the balancers answer at, is kept until another is
// needed, and is no node's.
func TestSelfSigned(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "secrets")
	spec := siteSpec(t, top, "tls: self-signed")
	s := load(t, dir, spec, nil)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA.Cert)
	good := func(s *Secrets, host string) error {
		_, err := s.Site.parse().Verify(x509.VerifyOptions{Roots: pool, DNSName: host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		return err
	}
	for _, host := range []string{"10.0.0.9", "localhost", "127.0.0.1"} {
		if err := good(s, host); err != nil {
			t.Error(err)
		}
	}
	for _, host := range []string{"b1", "b2", "10.0.0.1", "operator", "www.example.com"} {
		if good(s, host) == nil {
			t.Errorf("is also for %s", host)
		}
	}
	if _, err := s.Site.parse().Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("is also a client's")
	}
	if cn := s.Site.parse().Subject.CommonName; cn != "site of otus" { // Redis and HAProxy may compare it with a node's name
		t.Errorf("its common name is %q", cn)
	}
	if _, err := parseSiteKey(s.Site.Key); err != nil {
		t.Error(err)
	}
	if again := load(t, dir, spec, nil); !bytes.Equal(again.Site.Cert, s.Site.Cert) || again.Revision != s.Revision {
		t.Error("another certificate")
	}
	named := load(t, dir, siteSpec(t, top, "url: 'https://www.example.com:8443', tls: self-signed"), nil)
	if err := errors.Join(good(named, "www.example.com"), good(named, "10.0.0.9")); err != nil {
		t.Error(err)
	}
	// A damaged or lost copy is replaced: nobody relies on it.
	for _, damage := range []string{"", "x", string(named.Site.Cert)[:200], string(s.Site.Cert), string(s.Site.Cert) + string(named.Site.Key)} {
		write(t, filepath.Join(dir, siteFile), damage)
		s := load(t, dir, spec, nil)
		if _, err := tls.X509KeyPair(s.Site.Cert, s.Site.Key); err != nil || good(s, "10.0.0.9") != nil {
			t.Errorf("not replaced: %.100q: %v", damage, err)
		}
	}
	// Renewed with the others: the authority first.
	aged(t, dir, "ca", time.Now().AddDate(5, 0, 0))
	before := load(t, dir, spec, nil)
	if again := load(t, dir, spec, nil); !bytes.Equal(again.Site.Cert, before.Site.Cert) {
		t.Error("another certificate")
	}
	if slices.Contains(before.Renewed, siteFile) {
		t.Errorf("renewed: %q", before.Renewed)
	}
}

// TestSiteCommand: a program prints certificate and key, in any order. Its errors are shown, and its output never.
func TestSiteCommand(t *testing.T) {
	site := siteCert(t, nil, nil, nil)
	chain, key := chainOf(site), keyOf(t, site.key)
	for _, c := range []struct{ script, want string }{
		{"cat chain key", ""},
		{"cat key chain; echo >&2 renewed", ""},
		{`[ "$1" = "an argument" ] && cat key chain`, ""},
		{"cat key chain; echo >&2 working; echo >&2 quota exceeded; exit 3", "./cert.sh failed: quota exceeded"},
		{"cat key chain; exit 3", "./cert.sh failed: exit status 3"},
		{"cat chain", "what ./cert.sh prints has no private key in PEM"},
		{"cat key", "what ./cert.sh prints has no certificate in PEM"},
		{"cat chain other", "what ./cert.sh prints does not belong to the certificate of www.example.com; "},
		{"cat key chain; cat /dev/zero", "./cert.sh prints more than a certificate and its key"},
		{"kill -9 $$", "./cert.sh failed: signal: killed"},
	} {
		top := t.TempDir()
		other := siteCert(t, nil, nil, nil)
		for name, data := range map[string]string{"chain": chain, "key": key, "other": keyOf(t, other.key), "cert.sh": "#!/bin/sh\n" + c.script + "\n"} {
			write(t, filepath.Join(top, name), data)
		}
		if err := os.Chmod(filepath.Join(top, "cert.sh"), 0o700); err != nil {
			t.Fatal(err)
		}
		spec := siteSpec(t, top, "url: 'https://www.example.com', tls: {command: [./cert.sh, an argument]}")
		dir := filepath.Join(top, "secrets")
		s, err := Load(dir, spec, nil)
		if c.want == "" {
			if err != nil || string(s.Site.Cert) != chain || string(s.Site.Key) != key {
				t.Errorf("%s: %v", c.script, err)
				continue
			}
			// Who only asks does not run it.
			write(t, filepath.Join(top, "cert.sh"), "#!/bin/sh\ntouch ran\n")
			if read, err := Read(dir, spec, nil); err != nil || string(read.Site.Key) != key {
				t.Errorf("%s: read: %v", c.script, err)
			}
			if _, err := os.Stat(filepath.Join(top, "ran")); err == nil {
				t.Error("reading ran the command")
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "cluster.yaml:4:55: site.tls.command: "+c.want) {
			t.Errorf("%s:\n got %v\nwant %s", c.script, err, c.want)
		}
		leaks(t, fmt.Sprint(err), map[string]string{"a.key": key})
		if _, err := os.Stat(filepath.Join(dir, siteFile)); err == nil {
			t.Errorf("%s: something was kept", c.script)
		}
	}
	top := t.TempDir()
	spec := siteSpec(t, top, "tls: {command: [./none.sh]}")
	if _, err := Load(filepath.Join(top, "secrets"), spec, nil); err == nil || !strings.Contains(err.Error(), "site.tls.command: ./none.sh cannot be run: ") {
		t.Errorf("got %v", err)
	}
}

// FuzzSite feeds anything to the reader of certificates and keys: a pair that HAProxy can read, or an error.
func FuzzSite(f *testing.F) {
	site := siteCert(f, nil, nil, nil)
	f.Add([]byte(chainOf(site)), []byte(keyOf(f, site.key)))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN EC PRIVATE KEY-----\n-----END EC PRIVATE KEY-----\n"))
	spec := siteSpec(f, f.TempDir(), "url: 'https://www.example.com', tls: {certificate: chain.pem, key: key.pem}")
	f.Fuzz(func(t *testing.T, chain, key []byte) {
		pair, err := checkSite(spec, KeyPair{Cert: chain, Key: key}, [2]string{"a", "b"}, KeyPair{}, time.Now())
		if err != nil {
			var problems cluster.Problems
			if !errors.As(err, &problems) || pair.Cert != nil {
				t.Errorf("%v", err)
			}
			return
		}
		if again := splitPEM(slices.Concat(pair.Cert, pair.Key)); !bytes.Equal(again.Cert, pair.Cert) || !bytes.Equal(again.Key, pair.Key) {
			t.Error("read again, it is another")
		}
	})
}

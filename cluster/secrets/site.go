package secrets

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"imagegen/cluster"
	"imagegen/internal/words"
)

// siteFile is the certificate of the site's HTTPS that was rendered last: the chain and the key. It is a copy, or can be issued
// again at any time, so it is not on the list of what has been issued.
const siteFile = "site.pem"

const (
	siteLimit   = 256 << 10 // size of a certificate's chain and key
	siteTimeout = 2 * time.Minute
)

// SiteFiles reads and checks the certificate in the files that site.tls names. Errors are [cluster.Problems]. known is
// the certificate that nodes already have: only that may have expired, so that the cluster can still be changed.
func SiteFiles(spec *cluster.Spec, known KeyPair, now time.Time) (KeyPair, error) {
	t := spec.Site.TLS
	var pair KeyPair
	var problems cluster.Problems
	for _, f := range []struct {
		key, path string
		into      *[]byte
	}{{"certificate", t.Certificate, &pair.Cert}, {"key", t.Key, &pair.Key}} {
		data, err := readSite(spec, f.path, f.key == "key")
		if err != nil {
			problems = append(problems, t.Fault(f.key, err.Error()))
		}
		*f.into = data
	}
	if len(problems) > 0 {
		return KeyPair{}, problems
	}
	return checkSite(spec, pair, [2]string{words.Quote(t.Certificate), words.Quote(t.Key)}, known, now)
}

// readSite reads one of the files. Nobody but its owner and group may have access to a private key.
func readSite(spec *cluster.Spec, path string, private bool) ([]byte, error) {
	full := relative(spec, path)
	f, err := os.Open(full)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no file %s; a path is relative to the spec's folder", words.Quote(full))
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file; write the path of a PEM file", words.Quote(full))
	case private && info.Mode().Perm()&0o007 != 0 && runtime.GOOS != "windows": // which reports 0666 for all files
		return nil, fmt.Errorf("%s is a private key, but is accessible to everybody (mode %04o); close it with: chmod o= %s", words.Quote(full), info.Mode().Perm(), full)
	}
	data, err := io.ReadAll(io.LimitReader(f, siteLimit+1))
	if err == nil && len(data) > siteLimit {
		err = fmt.Errorf("%s is too large for a certificate or key", words.Quote(full))
	}
	return data, err
}

// relative returns a path of the spec, which is relative to the spec's folder.
func relative(spec *cluster.Spec, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(spec.File), path)
}

// renderedSite returns the certificate that was rendered last; nothing without site.tls, or if the file is damaged: it can be
// written again.
func (v *store) renderedSite(spec *cluster.Spec) (KeyPair, error) {
	if spec.Site.TLS == nil {
		return KeyPair{}, nil
	}
	path := filepath.Join(v.dir, siteFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return KeyPair{}, nil
	}
	if err != nil {
		return KeyPair{}, fmt.Errorf("read the secrets: %w", err)
	}
	return splitPEM(data), private(path)
}

// site returns the site's certificate from the user: the current one, or when reading the one that was rendered last.
func (v *store) site(spec *cluster.Spec, rendered KeyPair) (KeyPair, error) {
	switch t := spec.Site.TLS; {
	case t == nil || t.SelfSigned || !v.issues:
		return rendered, nil
	case t.Command != nil:
		return runSite(spec, rendered, time.Now())
	}
	return SiteFiles(spec, rendered, time.Now())
}

// keepSite remembers a certificate that will be rendered, and issues it if the authority does that.
func (v *store) keepSite(ca authority, spec *cluster.Spec, pair, rendered KeyPair) (KeyPair, error) {
	if spec.Site.TLS == nil || !v.issues {
		return pair, nil
	}
	if spec.Site.TLS.SelfSigned {
		var err error
		if pair, err = v.selfSigned(ca, spec, rendered, time.Now()); err != nil {
			return KeyPair{}, err
		}
	}
	if bytes.Equal(pair.Cert, rendered.Cert) && bytes.Equal(pair.Key, rendered.Key) {
		return pair, nil
	}
	return pair, v.write(siteFile, slices.Concat(pair.Cert, pair.Key))
}

// selfSigned returns a certificate from the cluster's authority: the known one, unless it must be renewed. Clients and servers of
// the cluster do not take it for a node's: it has no node's name, and is good for servers only.
func (v *store) selfSigned(ca authority, spec *cluster.Spec, known KeyPair, now time.Time) (KeyPair, error) {
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "site of " + spec.Cluster},
		NotAfter:    now.AddDate(nodeYears, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	for _, host := range spec.Site.TLS.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, host)
		}
	}
	_, damaged := tls.X509KeyPair(known.Cert, known.Key)
	if cert := known.parse(); damaged == nil && cert.CheckSignatureFrom(ca.cert) == nil && bytes.Equal(cert.AuthorityKeyId, ca.cert.SubjectKeyId) &&
		slices.Equal(cert.DNSNames, tmpl.DNSNames) && slices.EqualFunc(cert.IPAddresses, tmpl.IPAddresses, net.IP.Equal) {
		if !lastThird(cert, nodeYears, now) || !cert.NotAfter.Before(tmpl.NotAfter) {
			return known, nil
		}
		v.renewed = append(v.renewed, siteFile)
	}
	key, err := newP256()
	if err != nil {
		return KeyPair{}, err
	}
	var pair KeyPair
	if pair.Cert, err = sign(tmpl, key.Public(), ca); err == nil {
		pair.Key, err = encodeKey(key)
	}
	return pair, err
}

// runSite runs the command of site.tls in the spec's folder, and checks what it prints.
func runSite(spec *cluster.Spec, known KeyPair, now time.Time) (KeyPair, error) {
	t := spec.Site.TLS
	fault := func(format string, args ...any) (KeyPair, error) {
		return KeyPair{}, cluster.Problems{t.Fault("command", fmt.Sprintf(format, args...))}
	}
	name := t.Command[0]
	if strings.ContainsRune(name, '/') {
		path, err := filepath.Abs(relative(spec, name))
		if err != nil {
			return KeyPair{}, err
		}
		name = path
	}
	// In imagegen's process group, so that Ctrl-C reaches the program.
	ctx, cancel := context.WithTimeout(context.Background(), siteTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, t.Command[1:]...)
	cmd.Dir, cmd.WaitDelay = filepath.Dir(spec.File), time.Second
	out, said := limitedBuffer{cancel: cancel}, limitedBuffer{cancel: cancel} // errors show only the latter: the output has the key
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	exit := (*exec.ExitError)(nil)
	switch {
	case out.full || said.full:
		return fault("%s prints more than a certificate and its key", words.Quote(t.Command[0]))
	case ctx.Err() != nil:
		return fault("%s has not ended after %v", words.Quote(t.Command[0]), siteTimeout)
	case errors.As(err, &exit):
		lines := strings.Split(strings.TrimSpace(said.read.String()), "\n")
		return fault("%s failed: %s", words.Quote(t.Command[0]), cmp.Or(lines[len(lines)-1], err.Error()))
	case err != nil:
		return fault("%s cannot be run: %v", words.Quote(t.Command[0]), err)
	}
	what := "what " + words.Quote(t.Command[0]) + " prints"
	return checkSite(spec, splitPEM(out.read.Bytes()), [2]string{what, what}, known, now)
}

// limitedBuffer refuses more than a certificate and a key. The buffer is not embedded: its ReadFrom would be used instead of Write.
type limitedBuffer struct {
	read   bytes.Buffer
	full   bool
	cancel func() // ends the program
}

func (b *limitedBuffer) Write(data []byte) (int, error) {
	if b.read.Len()+len(data) > siteLimit {
		b.full = true
		b.cancel()
		return 0, errors.New("too much output")
	}
	return b.read.Write(data)
}

// splitPEM separates certificates from the rest.
func splitPEM(data []byte) KeyPair {
	var pair KeyPair
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return pair
		}
		if block.Type == "CERTIFICATE" {
			pair.Cert = append(pair.Cert, pem.EncodeToMemory(block)...)
		} else {
			pair.Key = append(pair.Key, pem.EncodeToMemory(block)...)
		}
	}
}

// checkSite checks a certificate's chain and its key, and returns them in the form in which HAProxy reads them. names are what they
// are called in messages.
func checkSite(spec *cluster.Spec, pair KeyPair, names [2]string, known KeyPair, now time.Time) (KeyPair, error) {
	t := spec.Site.TLS
	place := [2]string{"certificate", "key"}
	if t.Command != nil {
		place = [2]string{"command", "command"}
	}
	var problems cluster.Problems
	fault := func(which int, format string, args ...any) {
		problems = append(problems, t.Fault(place[which], names[which]+" "+fmt.Sprintf(format, args...)))
	}
	chain, err := parseChain(pair.Cert)
	if err != nil {
		fault(0, "%v", err)
	}
	key, err := parseSiteKey(pair.Key)
	if err != nil {
		fault(1, "%v", err)
	}
	if len(problems) > 0 {
		return KeyPair{}, problems
	}
	public := key.Public().(interface{ Equal(crypto.PublicKey) bool }) // all of the standard library's have it
	if at := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return public.Equal(c.PublicKey) }); at < 0 {
		fault(1, "does not belong to the certificate of %s; write the key that the certificate was requested with", called(chain[0]))
	} else if at > 0 {
		fault(0, "has the site's own certificate in place %d; it must be the first, and the certificate of its authority next", at+1)
	} else {
		checkChain(chain, func(format string, args ...any) { fault(0, format, args...) })
		leaf := chain[0]
		for i, c := range chain {
			switch {
			case now.After(c.NotAfter) && !bytes.Equal(encodeChain(chain), known.Cert):
				fault(0, "expired on %s: certificate %d, of %s; renew it", c.NotAfter.Format(time.DateOnly), i+1, called(c))
			case now.Before(c.NotBefore):
				fault(0, "is not valid before %s, by the clock of this computer: certificate %d, of %s", c.NotBefore.UTC().Format(time.DateTime), i+1, called(c))
			}
		}
		if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
			fault(0, "is not for servers: its extended key usage lacks serverAuth")
		}
		switch host := spec.Site.Host(); {
		case len(leaf.DNSNames)+len(leaf.IPAddresses) == 0:
			fault(0, "has no subject alternative name, so browsers refuse it; request one with the names of the site")
		case host != "" && leaf.VerifyHostname(host) != nil:
			fault(0, "is for %s, not for %s, the host in site.url", words.List(hostsOf(leaf), "and"), words.Quote(host))
		}
	}
	if len(problems) > 0 {
		return KeyPair{}, problems
	}
	pair.Cert = encodeChain(chain)
	pair.Key, err = encodeKey(key)
	return pair, err
}

// parseChain parses a file with certificates and nothing else.
func parseChain(data []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("has a block %s among the certificates; remove it", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("has a certificate that cannot be read, in place %d: %v", len(chain)+1, err)
		}
		chain = append(chain, cert)
	}
	if chain == nil {
		hint := ""
		if _, err := x509.ParseCertificate(data); err == nil {
			hint = "; it is DER, which openssl x509 -inform DER converts"
		}
		return nil, fmt.Errorf("has no certificate in PEM%s", hint)
	}
	return chain, nil
}

// parseSiteKey parses a file with one private key. Its errors contain nothing of the file.
func parseSiteKey(data []byte) (crypto.Signer, error) {
	var key any
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		var err error
		var k any
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, errors.New("is encrypted, and nobody could type its passphrase when a node starts; decrypt it with openssl pkey")
		case block.Type == "PRIVATE KEY":
			k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case block.Type == "RSA PRIVATE KEY":
			k, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case block.Type == "EC PRIVATE KEY":
			k, err = x509.ParseECPrivateKey(block.Bytes)
		default: // openssl writes parameters before an EC key
			continue
		}
		if err != nil {
			return nil, errors.New("has a private key that cannot be read")
		}
		if key != nil {
			return nil, errors.New("has more than one private key; leave only the certificate's")
		}
		key = k
	}
	switch k := key.(type) {
	case nil:
		return nil, errors.New("has no private key in PEM")
	case *rsa.PrivateKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("has an RSA key of %d bits, which browsers refuse; 2048 are the least", k.N.BitLen())
		}
		return k, nil
	case *ecdsa.PrivateKey:
		if name := k.Curve.Params().Name; name != "P-256" && name != "P-384" {
			return nil, fmt.Errorf("has a key on the curve %s, which not all browsers know; use P-256, P-384 or RSA", name)
		}
		return k, nil
	}
	return nil, errors.New("has a key that is neither RSA nor ECDSA, which browsers do not know")
}

// checkChain reports a certificate that was not issued by the next one.
func checkChain(chain []*x509.Certificate, fault func(format string, args ...any)) {
	for i, cert := range chain[:len(chain)-1] {
		if next := chain[i+1]; !next.IsCA || cert.CheckSignatureFrom(next) != nil {
			fault("is in the wrong order or has a gap: certificate %d, of %s, was not issued by certificate %d, of %s, but by %s",
				i+1, called(cert), i+2, called(next), words.Quote(cert.Issuer.String()))
			return
		}
	}
}

// SiteNote says what may be wrong with a certificate although it is used; empty: nothing.
func SiteNote(pair KeyPair) string {
	chain, err := parseChain(pair.Cert)
	if err != nil || len(chain) > 1 || bytes.Equal(chain[0].RawIssuer, chain[0].RawSubject) {
		return ""
	}
	return fmt.Sprintf("the site's certificate comes without that of its authority, %s: browsers that do not have it refuse the site", words.Quote(chain[0].Issuer.String()))
}

// hostsOf lists what a certificate is for.
func hostsOf(cert *x509.Certificate) []string {
	hosts := make([]string, 0, len(cert.DNSNames)+len(cert.IPAddresses))
	for _, name := range cert.DNSNames {
		hosts = append(hosts, words.Quote(name))
	}
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// called is what a certificate is called in messages.
func called(cert *x509.Certificate) string {
	names := append(hostsOf(cert), words.Quote(cert.Subject.String()))
	return names[0]
}

func encodeChain(chain []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, cert := range chain {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a Buffer does not fail
	}
	return b.Bytes()
}

// SiteExpiring says that the site's certificate, or one in its chain, has expired or is about to: in the last third of its life, at
// most 30 days before its end. Empty: not yet.
func (s *Secrets) SiteExpiring(now time.Time) string {
	chain, err := parseChain(s.Site.Cert)
	if err != nil {
		return "" // there is none
	}
	first := slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	switch third := first.NotAfter.Sub(first.NotBefore) / 3; {
	case now.After(first.NotAfter):
		return "the site's certificate expired on " + first.NotAfter.Format(time.DateOnly)
	case now.After(first.NotAfter.Add(-min(third, 30*24*time.Hour))):
		return "the site's certificate expires on " + first.NotAfter.Format(time.DateOnly)
	}
	return ""
}

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
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"time"

	"imagegen/cluster/facts"
)

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

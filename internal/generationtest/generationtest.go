// Package generationtest signs generations in tests.
package generationtest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"imagegen/cluster/facts"
)

// ClusterID is of the cluster of all generations here.
const ClusterID = "6f1c0a52-8a6a-4c0e-9c1b-0123456789ab"

// Authority is a cluster's authority and the key that it has certified for signing generations.
type Authority struct {
	Cert   *x509.Certificate
	PEM    []byte // of Cert
	signer []byte
	key    ed25519.PrivateKey
}

// New makes an authority.
func New(t testing.TB) *Authority {
	t.Helper()
	var a Authority
	from := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.AddDate(50, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	if a.Cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.key = key
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: from.AddDate(50, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, Subject: pkix.Name{OrganizationalUnit: []string{facts.GenerationOU}}}
	if a.signer, err = x509.CreateCertificate(rand.Reader, leaf, a.Cert, pub, caKey); err != nil {
		t.Fatal(err)
	}
	return &a
}

// Sign signs a manifest, which belongs to ClusterID.
func (a *Authority) Sign(t testing.TB, number int, parent string, members ...facts.Member) facts.Generation {
	t.Helper()
	m := facts.Manifest{Version: facts.ManifestVersion, Cluster: "otus", ClusterID: ClusterID, Number: number, Parent: parent, Secrets: 1, Members: members}
	signed, err := facts.SignManifest(m, a.signer, a.key)
	if err != nil {
		t.Fatal(err)
	}
	g, err := a.Verify(signed)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// Verify checks an envelope.
func (a *Authority) Verify(envelope []byte) (facts.Generation, error) {
	return facts.Verify(envelope, a.Cert, ClusterID)
}

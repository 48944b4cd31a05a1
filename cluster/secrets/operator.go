package secrets

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"imagegen/cluster/facts"
)

// ReadOperator reads only what the operator needs to talk to agents: ca.crt, operator.crt and operator.key. It fails if
// one is missing or damaged, if others can read the key, if the authority did not sign the certificate, or if either
// certificate has expired. The cluster's ID is read if it exists.
func ReadOperator(dir string, now time.Time) (*Secrets, error) {
	v := &store{dir: dir}
	s := &Secrets{}
	for _, f := range []struct {
		name string
		into *[]byte
	}{{"ca.crt", &s.CA.Cert}, {facts.OperatorName + ".crt", &s.Operator.Cert}, {facts.OperatorName + ".key", &s.Operator.Key}} {
		data, err := os.ReadFile(filepath.Join(dir, f.name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing: agents answer only clients with the operator's certificate; copy ca.crt, operator.crt and operator.key from where the seeds were made",
				filepath.Join(dir, f.name))
		}
		if err != nil {
			return nil, fmt.Errorf("read the operator's certificate: %w", err)
		}
		*f.into = data
	}
	if err := private(filepath.Join(dir, facts.OperatorName+".key")); err != nil {
		return nil, err
	}
	signer, err := parseKey(filepath.Join(dir, facts.OperatorName+".key"), s.Operator.Key)
	if err != nil {
		return nil, err
	}
	cert, err := v.certificate(facts.OperatorName, s.Operator, signer)
	if err != nil {
		return nil, err
	}
	ca := s.CA.parse()
	if ca == nil {
		return nil, fmt.Errorf("%s holds no certificate: restore the file from a backup", filepath.Join(dir, "ca.crt"))
	}
	if cert.CheckSignatureFrom(ca) != nil {
		return nil, fmt.Errorf("%s is not signed by ca.crt beside it: restore both files from one backup", filepath.Join(dir, facts.OperatorName+".crt"))
	}
	for _, c := range []struct {
		name string
		cert *x509.Certificate
	}{{"ca.crt", ca}, {facts.OperatorName + ".crt", cert}} {
		if now.After(c.cert.NotAfter) {
			return nil, fmt.Errorf("%s expired on %s: agents no longer accept it; imagegen seed renews it, where all of the cluster's secrets are",
				filepath.Join(dir, c.name), c.cert.NotAfter.Format(time.DateOnly))
		}
	}
	id, _ := os.ReadFile(filepath.Join(dir, idItem)) // optional: the authority also identifies the cluster
	s.ClusterID = strings.TrimSpace(string(id))
	return s, nil
}

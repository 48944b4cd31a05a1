package secrets

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
)

// TestReadOperator: the operator needs three files, and errors say what is wrong with them.
func TestReadOperator(t *testing.T) {
	load := func() string {
		dir := filepath.Join(t.TempDir(), "secrets")
		if _, err := Load(dir, &cluster.Spec{Cluster: "otus"}, nil); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	all, others := load(), load()
	for name, c := range map[string]struct {
		from  map[string]string // folder of each file
		mode  os.FileMode       // of the key
		years int
		want  string // in the error; empty: no error
	}{
		"all three":          {map[string]string{"ca.crt": all, "operator.crt": all, "operator.key": all}, 0o600, 0, ""},
		"no certificate":     {map[string]string{"ca.crt": all, "operator.key": all}, 0o600, 0, "operator.crt is missing"},
		"no key":             {map[string]string{"ca.crt": all, "operator.crt": all}, 0o600, 0, "operator.key is missing"},
		"no authority":       {map[string]string{"operator.crt": all, "operator.key": all}, 0o600, 0, "ca.crt is missing"},
		"another's key":      {map[string]string{"ca.crt": all, "operator.crt": all, "operator.key": others}, 0o600, 0, "does not belong to the key beside it"},
		"another's operator": {map[string]string{"ca.crt": all, "operator.crt": others, "operator.key": others}, 0o600, 0, "is not signed by ca.crt"},
		"a key for all":      {map[string]string{"ca.crt": all, "operator.crt": all, "operator.key": all}, 0o644, 0, "is accessible to others"},
		"expired":            {map[string]string{"ca.crt": all, "operator.crt": all, "operator.key": all}, 0o600, 11, "operator.crt expired on "},
		"authority expired":  {map[string]string{"ca.crt": all, "operator.crt": all, "operator.key": all}, 0o600, 21, "ca.crt expired on "},
	} {
		dir := t.TempDir() // may be readable by others: only the key is secret
		for file, from := range c.from {
			data, err := os.ReadFile(filepath.Join(from, file))
			if err != nil {
				t.Fatal(err)
			}
			mode := os.FileMode(0o644)
			if file == "operator.key" {
				mode = c.mode
			}
			if err := os.WriteFile(filepath.Join(dir, file), data, mode); err != nil {
				t.Fatal(err)
			}
		}
		s, err := ReadOperator(dir, time.Now().AddDate(c.years, 0, 0))
		switch {
		case c.want == "" && (err != nil || s.Operator.Key == nil || s.CA.Key != nil):
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q in it", name, err, c.want)
		}
	}
}

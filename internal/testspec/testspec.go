// Package testspec parses specs for tests, with the built-in roles. It is not part of testkit because the tests of packages cluster and
// roles import testkit.
package testspec

import (
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/roles"
)

// Parse parses a spec as if it were read from path.
func Parse(t testing.TB, path, text string) (*cluster.Spec, *roles.Catalogue) {
	t.Helper()
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Parse(path, []byte(text), catalogue.Rules())
	if err != nil {
		t.Fatal(err)
	}
	return spec, catalogue
}

// Reference parses the reference cluster of a distro with more lines before its roles.
func Reference(t testing.TB, path, distro, more string) (*cluster.Spec, *roles.Catalogue) {
	t.Helper()
	return Parse(t, path, strings.Replace(string(cluster.Reference(distro)), "\nroles:", "\n"+more+"\nroles:", 1))
}

package packages

import (
	"fmt"
	"strings"
)

// Package is an installed package.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	Source       string `json:"source,omitempty"`   // NAME@VERSION of the Debian source package, or the name of a source RPM
	Supplier     string `json:"supplier,omitempty"` // the maintainer, or the vendor of an RPM
}

// ParseInstalled parses the scripts' output of dpkg-query or rpm: name, version, architecture, source package and
// supplier per line.
func ParseInstalled(out string) ([]Package, error) {
	var all []Package
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			return nil, fmt.Errorf("the list of packages has an invalid line %q", line)
		}
		for i := range f {
			if f[i] == "(none)" { // rpm's output for a missing value
				f[i] = ""
			}
		}
		all = append(all, Package{f[0], f[1], f[2], f[3], f[4]})
	}
	return all, nil
}

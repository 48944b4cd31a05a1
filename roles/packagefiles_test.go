package roles

import (
	"regexp"
	"testing"

	"imagegen/distro"
)

// include matches the includes in configuration files of nginx, HAProxy, PHP-FPM, Redis, MySQL, shell.
var include = regexp.MustCompile(`(?m)^\s*(?:include|!include|!includedir|source|\.)[ \t=]+"?(/[^\s;"]+)`)

// TestIncludesAreOurs: a rendered file includes no file of a package, because a package update would change our
// configuration.
func TestIncludesAreOurs(t *testing.T) {
	c := mustLoad(t, "")
	found := 0
	for _, distro := range distro.Names() {
		s := reference(t, c, distro)
		sec := testSecrets(c, s)
		for _, n := range s.Nodes() {
			r, err := c.Render(s, sec, n.Name)
			if err != nil {
				t.Fatal(err)
			}
			ours := map[string]bool{}
			for _, f := range r.Files {
				ours[f.Path] = true
			}
			for _, f := range r.Files {
				for _, m := range include.FindAllSubmatch(f.Content, -1) {
					found++
					if !ours[string(m[1])] {
						t.Errorf("%s, %s: %s includes %s, which is not rendered", distro, n.Name, f.Path, m[1])
					}
				}
			}
		}
	}
	if found == 0 {
		t.Error("no include found at all, not even nginx's own")
	}
}

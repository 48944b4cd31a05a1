package roles

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/distro"
	"imagegen/internal/testkit"
)

// The operators' networks reach the agent's port on every node, even if they overlap with each other or with the
// cluster's.
func TestOperators(t *testing.T) {
	c := mustLoad(t, "")
	for _, name := range distro.Names() {
		s := reference(t, c, name)
		for _, o := range []string{"192.0.2.0/24", "198.51.100.7/32", "192.168.0.0/16", "0.0.0.0/0"} {
			s.Operators = append(s.Operators, netip.MustParsePrefix(o))
		}
		sec := testSecrets(c, s)
		r, err := c.Render(s, sec, "redis1")
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, f := range r.Files {
			for _, set := range distro.Named(name).Firewall {
				if f.Path == set.Path {
					b.WriteString(show(f))
					checkFilter(t, string(set.Syntax), f.Content)
				}
			}
		}
		testkit.Golden(t, filepath.Join("testdata", "operators-"+name+".txt"), []byte(b.String()))
	}
}

// checkFilter checks a ruleset with the program that loads it, if available.
func checkFilter(t *testing.T, check string, content []byte) {
	t.Helper()
	if check != "nft" {
		return // iptables-restore can only check what it can load
	}
	nft, err := exec.LookPath("nft")
	if err != nil || os.Geteuid() != 0 {
		t.Logf("needs nft and root to check the filter: %v", err)
		return
	}
	file := filepath.Join(t.TempDir(), "filter")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(nft, "-c", "-f", file).CombinedOutput(); err != nil {
		t.Errorf("nft: %v: %s", err, out)
	}
}

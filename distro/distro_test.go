package distro

import (
	"slices"
	"testing"
)

// TestComplete: what is registered says everything that others read of it.
func TestComplete(t *testing.T) {
	names := Names()
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("names are sorted, and each is there once: %q", names)
	}
	if !slices.Contains(names, Default) {
		t.Errorf("the default %s is none of %q", Default, names)
	}
	for _, name := range names {
		d := Named(name)
		if d.Name != name || d.Title == "" || d.Guest.CIM == 0 || d.Guest.VirtualBox == "" || d.PURL.Type == "" || d.PURL.Distro == "" ||
			d.Space.Base == 0 || d.Space.Image == 0 || len(d.Firewall) == 0 {
			t.Errorf("%s: something is missing: %+v", name, d)
		}
		if d.Packages != Deb && d.Packages != RPM || (d.Packages == Deb) != (len(d.Suites) > 0) {
			t.Errorf("%s: packages %q with suites %q", name, d.Packages, d.Suites)
		}
	}
	if d := Named("debian"); d.Name != "" {
		t.Errorf("an unknown name has found %s", d.Name)
	}
	if len(WithProxySQL()) == 0 {
		t.Error("no distro has ProxySQL, which a message proposes to take one for")
	}
}

package images

import (
	"slices"
	"testing"

	"imagegen/images/distro"
	"imagegen/images/packages"
	"imagegen/roles"
)

func TestDifferences(t *testing.T) {
	old := distro.Inputs{
		Base:  distro.Base{Distro: "debian12", Sources: []string{"deb a"}, Packages: []string{"udev"}, Script: "1"},
		Agent: "1", DiskBytes: 4 << 30, Packages: []string{"nginx", "curl"}, Disable: []string{"nginx.service"},
		Local: []distro.LocalPackage{{Name: "a.deb", SHA256: "0123456789abcdef"}}, Users: []roles.User{{Name: "nginx"}},
	}
	if why := differences(old, old); why != nil {
		t.Errorf("nothing has changed: %q", why)
	}
	now := old
	now.Base.Sources = []string{"deb b"}
	now.Agent = "2"
	now.DiskBytes = 8 << 30
	now.Packages = []string{"nginx", "php8.2-gd"}
	now.Local = []distro.LocalPackage{{Name: "a.deb", SHA256: "fedcba9876543210"}}
	now.Disable = nil
	now.Users = nil
	want := []string{
		"archives: + deb b, - deb a", "the agent has changed", "disk: 8GiB instead of 4GiB", "package list: + php8.2-gd, - curl",
		"package files: + a.deb fedcba987654, - a.deb 0123456789ab", "the list of users has changed", "disabled units: - nginx.service",
	}
	if why := differences(old, now); !slices.Equal(why, want) {
		t.Errorf("%q\nwant\n%q", why, want)
	}
	now = old
	old.Base.Pinned = []packages.Pin{{Name: "udev", Version: "1.0", Architecture: "amd64", SHA256: "a"}, {Name: "zlib1g", Version: "1.0", Architecture: "amd64", SHA256: "a"}}
	now.Base.Pinned = []packages.Pin{{Name: "udev", Version: "1.1", Architecture: "amd64", SHA256: "b"}, {Name: "zlib1g", Version: "1.0", Architecture: "amd64", SHA256: "b"}}
	old.Pinned = []packages.Pin{{Name: "curl", Version: "1.0", Architecture: "amd64", SHA256: "a"}, {Name: "nginx", Version: "1.0", Architecture: "amd64", SHA256: "a"}}
	now.Pinned = []packages.Pin{{Name: "nginx", Version: "1.0", Architecture: "amd64", SHA256: "a"}, {Name: "php8.2-gd", Version: "8.2", Architecture: "amd64", SHA256: "a"}}
	want = []string{"pinned packages of the base: udev 1.0 → 1.1, zlib1g 1.0 with different content", "pinned packages: + php8.2-gd 8.2, - curl 1.0"}
	if why := differences(old, now); !slices.Equal(why, want) {
		t.Errorf("%q\nwant\n%q", why, want)
	}
	now = old
	now.Packages = []string{"curl", "nginx"}
	if why := differences(old, now); !slices.Equal(why, []string{"package list: different order"}) {
		t.Errorf("%q", why)
	}
}

package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSpecWithoutEnd: a device or a disk image given as the spec is not read completely.
func TestSpecWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil { // reading it would use all memory
		t.Fatal(err)
	}
	for _, file := range []string{path, "/dev/zero"} {
		if _, err := Load(file, nil); err == nil || !strings.Contains(err.Error(), "a spec has 1MiB at most") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestRefused: specs that were once accepted but could not work.
func TestRefused(t *testing.T) {
	rules := map[string]Rules{"redis": {Name: "redis", Distros: []string{"debian12"}, CPUs: 1, Memory: 256 * MiB, Disk: 4 * GiB, MinNodes: 1,
		Users: map[string][]string{"debian12": {"redis", "redis"}}}}
	const head, tail = "cluster: shop\ndistro: debian12\nnetwork: {cidr: 192.168.56.0/24}\n", "roles: {redis: {nodes: {cache1: 192.168.56.49}}}\n"
	const keys = "keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0S3FzxWr4H0OIqZ3DZ5z7fSgqBpB9GYf2dq3dmJ3cW ops@desk]"
	for _, c := range []struct{ name, spec, want string }{
		{"root disk of MBR's limit", head + "roles: {redis: {disk: 2TiB, nodes: {cache1: 192.168.56.49}}}\n", "2TiB is out of range"},
		{"root disk of 3 TiB", head + "roles: {redis: {disk: 3TiB, nodes: {cache1: 192.168.56.49}}}\n", "3TiB is out of range"},
		{"user of a role", head + "ssh: {user: redis, " + keys + "}\n" + tail, "ssh.user"},
		{"user of the system", head + "ssh: {user: www-data, " + keys + "}\n" + tail, "ssh.user"},
		{"password in a URL", head + "mirror: http://reader:letmein@mirror.example.com/debian\n" + tail, "cluster.yaml:4:9: mirror: the address of mirror.example.com contains a password"},
		{"password in a line", head + "mirror: [deb http://reader:letmein@mirror.example.com/debian bookworm main]\n" + tail, "contains a password"},
		{"another release", head + "mirror: deb http://mirror.example.com/debian trixie main\n" + tail, "suite trixie is not of Debian 12"},
		{"updates alone", head + "mirror: [deb http://mirror.example.com/debian bookworm-updates main]\n" + tail, "no line has suite bookworm"},
		{"no main", head + "mirror: deb http://mirror.example.com/debian bookworm contrib\n" + tail, "lacks the component main"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Parse("cluster.yaml", []byte(c.spec), rules); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for _, spec := range []string{
		head + "mirror: [deb http://m.example.com/debian bookworm main, 'deb [trusted=yes] http://m.example.com/s bookworm-security main']\n" + tail,
		head + "roles: {redis: {disk: 2097151MiB, nodes: {cache1: 192.168.56.49}}}\n", head + "ssh: {user: deploy, " + keys + "}\n" + tail,
	} {
		if _, err := Parse("cluster.yaml", []byte(spec), rules); err != nil {
			t.Errorf("refused: %v", err)
		}
	}
}

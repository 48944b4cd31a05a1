package vagrant

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/distro"
	"imagegen/internal/testkit"
	"imagegen/internal/testspec"
)

func parse(t testing.TB, text string) *cluster.Spec {
	t.Helper()
	s, _ := testspec.Parse(t, "cluster.yaml", text)
	return s
}

const clusterID = "11111111-2222-4333-8444-555555555555"

// identities returns made-up identities of images.
func identities(s *cluster.Spec) map[string]string {
	ids := map[string]string{}
	for i, r := range s.Roles {
		ids[r.Name] = strings.Repeat(string("0123456789abcdef"[i]), 32)
	}
	return ids
}

func write(t testing.TB, s *cluster.Spec) []byte {
	t.Helper()
	got, err := Write(s, clusterID, identities(s))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestWrite(t *testing.T) {
	for _, distro := range distro.Names() {
		t.Run(distro, func(t *testing.T) {
			got := write(t, parse(t, string(cluster.Reference(distro))))
			path := filepath.Join("testdata", distro+".Vagrantfile")
			testkit.Golden(t, path, got)
		})
	}
}

// Each covers another part of the template.
var specs = map[string]string{
	"centos7":  string(cluster.Reference("centos7")),
	"debian12": string(cluster.Reference("debian12")),
	"ssh": `{cluster: small, distro: debian12, network: {cidr: 10.0.0.0/8}, roles: {web: {nodes: {web1: 10.0.0.1}}, glusterfs: {nodes: {g1: 10.0.0.2, g2: 10.0.0.4, g3: 10.0.0.5}},
backend: {nodes: {b1: 10.0.0.6}}, percona: {nodes: {p1: 10.0.0.7, p2: 10.0.0.8, p3: 10.0.0.9}}, redis: {nodes: {r1: 10.0.0.10, r2: 10.0.0.11, r3: 10.0.0.12}}, databalancer: {vip: 10.0.0.3, nodes: {d1: 10.0.0.13}}},
ssh: {user: jane, keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0S3FzxWr4H0OIqZ3DZ5z7fSgqBpB9GYf2dq3dmJ3cW j#{ane}@\"desk"]}}`,
}

func TestRuby(t *testing.T) {
	testkit.Program(t, "ruby", "ruby")
	for name, text := range specs {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "Vagrantfile")
			put(t, path, write(t, parse(t, text)), 0o644)
			if out, err := exec.Command("ruby", "-wc", path).CombinedOutput(); err != nil || string(out) != "Syntax OK\n" {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// Vagrant itself accepts the file, and would log in as the spec says.
func TestVagrantValidate(t *testing.T) {
	testkit.Program(t, "vagrant", "vagrant")
	for name, text := range specs {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, filepath.Join(dir, "Vagrantfile"), write(t, parse(t, text)), 0o644)
			cmd := exec.Command("vagrant", "validate", "--ignore-provider")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "HOME="+dir, "VAGRANT_HOME="+dir+"/vagrant.d")
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "validated successfully") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	s := parse(t, specs["debian12"])
	ids := identities(s)
	delete(ids, "web")
	if _, err := Write(s, clusterID, ids); err == nil || !strings.Contains(err.Error(), "role web: there is no image") {
		t.Errorf("a role without an image: %v", err)
	}
	s = parse(t, `{cluster: full, distro: debian12, network: {cidr: 10.9.9.0/29}, roles: {
redis: {nodes: {r1: 10.9.9.1, r2: 10.9.9.2, r3: 10.9.9.3}}, glusterfs: {nodes: {g1: 10.9.9.4, g2: 10.9.9.5, g3: 10.9.9.6}}}}`)
	if _, err := Write(s, clusterID, identities(s)); err == nil || !strings.Contains(err.Error(), "10.9.9.0/29 has no address left") {
		t.Errorf("a network without room: %v", err)
	}
}

// The host's address is not a node's, and adapter 1's network is not the cluster's.
func TestAddresses(t *testing.T) {
	got := string(write(t, parse(t, specs["ssh"])))
	for _, want := range []string{`netmask: "255.0.0.0", adapter_ip: "10.0.0.14"`, `"--natnet1", "172.31.254.0/24"`, `config.ssh.username = "jane"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(string(write(t, parse(t, specs["debian12"]))), "natnet") {
		t.Error("adapter 1's network is changed for nothing")
	}
}

// A new image in boxes/ROLE.box has a new name, or Vagrant would use its copy of the old one.
func TestBoxFollowsImage(t *testing.T) {
	s := parse(t, specs["debian12"])
	ids := identities(s)
	old := string(write(t, s))
	ids["web"] = strings.Repeat("f", 32)
	next, err := Write(s, clusterID, ids)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("otus/web-111111111111", "otus/web-ffffffffffff", strings.Repeat("1", 32), strings.Repeat("f", 32)).Replace(old)
	if string(next) != want || old == want {
		t.Errorf("got\n%s", next)
	}
}

func TestHostOnlyProblem(t *testing.T) {
	for _, tt := range []struct{ cidr, line string }{
		{"192.168.56.0/24", ""},
		{"192.168.56.0/21", ""},
		{"192.168.63.128/25", ""},
		{"192.168.10.0/24", "* 192.168.10.0/24 192.168.56.0/21"},
		{"192.168.64.0/24", "* 192.168.64.0/24 192.168.56.0/21"},
		{"192.168.48.0/20", "* 192.168.48.0/20 192.168.56.0/21"},
		{"10.0.0.0/8", "* 10.0.0.0/8 192.168.56.0/21"},
	} {
		got := HostOnlyProblem(&cluster.Spec{Network: cluster.Network{CIDR: netip.MustParsePrefix(tt.cidr)}})
		if tt.line == "" && got != "" || !strings.Contains(got+"\n", tt.line+"\n") {
			t.Errorf("%s: %q", tt.cidr, got)
		}
	}
}

func put(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

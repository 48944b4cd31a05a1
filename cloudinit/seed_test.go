package cloudinit

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/internal/testkit"
)

// example is a small cluster; its second node has a MAC address that YAML 1.1 parses as a sexagesimal number.
func example() *cluster.Spec {
	return &cluster.Spec{
		Cluster: "otus", Distro: "debian12", Timezone: "Europe/Moscow",
		Network: cluster.Network{
			CIDR: netip.MustParsePrefix("192.168.10.0/24"), Gateway: netip.MustParseAddr("192.168.10.1"),
			DNS: []netip.Addr{netip.MustParseAddr("192.168.10.1"), netip.MustParseAddr("192.168.10.2")},
		},
		SSH: cluster.SSH{User: "operator", Keys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0000000000000000000000000000000000000000000 me@desk"}},
		Roles: []cluster.Role{{Name: "web", Nodes: []cluster.Node{
			{Name: "web1", Role: "web", IP: netip.MustParseAddr("192.168.10.42"), MAC: "52:54:00:9E:0a:01"},
			{Name: "web2", Role: "web", IP: netip.MustParseAddr("192.168.10.43"), MAC: "52:54:00:11:22:33", Index: 1},
		}}},
	}
}

const password = "q1W2e3R4t5Y6u7I8"

// awkward are files whose content is easily corrupted.
func awkward() []File {
	return []File{
		{Path: "/etc/imagegen/node.json", Mode: 0o644, Content: []byte("{\n  \"cluster\": \"otus\"\n}\n")},
		{Path: "/etc/imagegen/secrets.json", Mode: 0o600, Secret: true, Content: []byte(`{"redis":"` + password + "\"}\n")},
		{Path: "/etc/redis/redis.conf", Mode: 0o640, Owner: "root:redis", Secret: true, Content: []byte("requirepass " + password + "\n")},
		{Path: "/opt/binary", Mode: 0o755, Content: []byte{0, 1, 2, 0xff, '\n'}},
		{Path: "/opt/cyrillic", Mode: 0o644, Content: []byte("Привет\n")},
		{Path: "/opt/empty", Mode: 0o644},
		{Path: "/opt/no-newline", Mode: 0o644, Content: []byte("yes")},
		{Path: "/opt/only-newlines", Mode: 0o644, Content: []byte("\n\n\n")},
		{Path: "/opt/leading-space", Mode: 0o644, Content: []byte("  indented\nnot\n")},
		{Path: "/opt/trailing-space", Mode: 0o644, Content: []byte("a \nb\t\n\n\n")},
		{Path: "/opt/tabs", Mode: 0o644, Content: []byte("\tall:\n\t\tdo it # now\n")},
		{Path: "/opt/newlines-at-end", Mode: 0o644, Content: []byte("a\n\n\n")},
		{Path: "/opt/crlf", Mode: 0o644, Content: []byte("a\r\nb\r\n")},
		{Path: "/opt/template", Mode: 0o644, Content: []byte("#cloud-config\n---\n{{ x }} ${y} %z\n...\n")},
		{Path: "/opt/long", Mode: 0o644, Content: []byte(strings.Repeat("word ", 400) + "\nend\n")},
	}
}

const clusterID = "7f1b9a5e-0c56-4c7e-8a52-3f6d3c1c8e11"

func newSeed(t testing.TB, node string) Seed {
	t.Helper()
	spec := example()
	n, ok := spec.Node(node)
	if !ok {
		t.Fatalf("no node %s", node)
	}
	s, err := New(spec, clusterID, n, awkward())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestGolden(t *testing.T) {
	for _, node := range []string{"web1", "web2"} {
		s := newSeed(t, node)
		testkit.Golden(t, "testdata/"+node+"/user-data", s.UserData)
		testkit.Golden(t, "testdata/"+node+"/meta-data", s.MetaData)
		testkit.Golden(t, "testdata/"+node+"/network-config", s.NetworkConfig)
	}
	spec := example()
	spec.Network.Gateway, spec.Network.DNS, spec.SSH = netip.Addr{}, nil, cluster.SSH{}
	s, err := New(spec, clusterID, spec.Nodes()[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "testdata/"+"bare/user-data", s.UserData)
	testkit.Golden(t, "testdata/"+"bare/network-config", s.NetworkConfig)
}

// cloud-init's own YAML library reads exactly what was written.
func TestFilesArriveUnchanged(t *testing.T) {
	testkit.Program(t, "cloud-init", "cloud-init")
	s := newSeed(t, "web2")
	cmd := exec.Command("/usr/bin/python3", "-c", `
import base64, json, sys, yaml
ud = yaml.safe_load(sys.stdin.buffer.read())
def content(w):
    if w.get("encoding") == "b64":
        return w["content"]
    return base64.b64encode(w["content"].encode()).decode()
print(json.dumps([{"Path": w["path"], "Mode": int(w["permissions"], 8), "Owner": w["owner"], "Content": content(w)} for w in ud["write_files"]]))`)
	cmd.Stdin = bytes.NewReader(s.UserData)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []struct {
		Path, Owner, Content string
		Mode                 uint32
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	want := awkward()
	if len(got) != len(want) {
		t.Fatalf("%d files, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if w.Owner == "" {
			w.Owner = "root:root"
		}
		if g.Path != w.Path || g.Mode != w.Mode || g.Owner != w.Owner || g.Content != base64.StdEncoding.EncodeToString(w.Content) {
			t.Errorf("got %+v, want %+v", g, w)
		}
	}

	cmd = exec.Command("/usr/bin/python3", "-c", `import sys, yaml; print(yaml.safe_load(sys.stdin)["config"][0]["mac_address"])`)
	cmd.Stdin = bytes.NewReader(s.NetworkConfig)
	if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != "52:54:00:11:22:33" {
		t.Errorf("the MAC address arrives as %s (%v)", out, err)
	}
}

func TestSchema(t *testing.T) {
	testkit.Program(t, "cloud-init", "cloud-init")
	bare := example()
	bare.SSH = cluster.SSH{}
	noKeys, err := New(bare, clusterID, bare.Nodes()[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	root := example()
	root.SSH.User = "root"
	asRoot, err := New(root, clusterID, root.Nodes()[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]Seed{"with files": newSeed(t, "web1"), "no keys": noKeys, "root": asRoot} {
		path := filepath.Join(t.TempDir(), "user-data")
		if err := os.WriteFile(path, s.UserData, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("cloud-init", "schema", "-c", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Valid") || strings.Contains(strings.ToLower(string(out)), "deprecat") {
			t.Errorf("%s: cloud-init schema: %v: %s", name, err, out)
		}
	}
}

func TestInstanceID(t *testing.T) {
	id := func(spec *cluster.Spec, files []File) string {
		s, err := New(spec, clusterID, spec.Nodes()[0], files)
		if err != nil {
			t.Fatal(err)
		}
		return string(s.MetaData)
	}
	base := id(example(), awkward())
	if base != id(example(), awkward()) {
		t.Error("the same seed has another instance-id the second time: cloud-init would apply it again")
	}
	file := awkward()
	file[0].Content = append(file[0].Content, '\n')
	moved := example()
	moved.Roles[0].Nodes[0].IP = netip.MustParseAddr("192.168.10.99")
	for what, other := range map[string]string{"file": id(example(), file), "address": id(moved, awkward())} {
		if other == base {
			t.Errorf("another %s, but the same instance-id: cloud-init would not apply the seed", what)
		}
	}
}

func TestBadFiles(t *testing.T) {
	spec := example()
	for name, f := range map[string][]File{
		"seed of web1: /etc/x: mode 0644 makes a file with a secret world-readable: want 0600 or 0640": {{Path: "/etc/x", Mode: 0o644, Secret: true}},
		"seed of web1: etc/x: not a clean absolute path":                                               {{Path: "etc/x", Mode: 0o644}},
		"seed of web1: /etc/../x: not a clean absolute path":                                           {{Path: "/etc/../x", Mode: 0o644}},
		"seed of web1: /etc/x: mode 04755: cloud-init can set permissions up to 0777 only":             {{Path: "/etc/x", Mode: 0o4755}},
		"seed of web1: /etc/x is there twice":                                                          {{Path: "/etc/x", Mode: 0o644}, {Path: "/etc/x", Mode: 0o644}},
	} {
		if _, err := New(spec, clusterID, spec.Nodes()[0], f); err == nil || err.Error() != name {
			t.Errorf("got %v, want %s", err, name)
		}
	}
}

// FuzzNew: any file content survives writing and reading a seed, and so does the file after it.
func FuzzNew(f *testing.F) {
	for _, file := range awkward() {
		f.Add(file.Content[:min(len(file.Content), 100)]) // long inputs slow the fuzzer down
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		spec := example()
		files := []File{{Path: "/x", Mode: 0o644, Owner: "root:root", Content: content}, {Path: "/y", Mode: 0o600, Owner: "root:root", Content: content}}
		s, err := New(spec, clusterID, spec.Nodes()[0], files)
		if err != nil {
			t.Fatal(err)
		}
		back, err := s.Files()
		if err != nil || len(back) != len(files) {
			t.Fatalf("%d files (%v)", len(back), err)
		}
		for i, f := range files {
			if b := back[i]; b.Path != f.Path || b.Mode != f.Mode || b.Owner != f.Owner || !bytes.Equal(b.Content, content) {
				t.Errorf("read back: %+v", b)
			}
		}
	})
}

// Files returns what New was given, in any encoding; a large file, as in a cluster of a thousand nodes, is compressed
// on the seed.
func TestFiles(t *testing.T) {
	spec := example()
	files := append(awkward(), File{Path: "/etc/hosts", Mode: 0o644, Content: bytes.Repeat([]byte("10.0.0.1 web1\n"), 2000)})
	s, err := New(spec, clusterID, spec.Roles[0].Nodes[0], files)
	if err != nil {
		t.Fatal(err)
	}
	back, err := s.Files()
	if err != nil {
		t.Fatal(err)
	}
	if len(back) != len(files) {
		t.Fatalf("%d files of %d", len(back), len(files))
	}
	for i, f := range files {
		if b := back[i]; b.Path != f.Path || b.Mode != f.Mode || !bytes.Equal(b.Content, f.Content) {
			t.Errorf("%s came back as %s, mode %04o, %d bytes instead of %d", f.Path, b.Path, b.Mode, len(b.Content), len(f.Content))
		}
	}
	if len(s.UserData) > 20_000 {
		t.Errorf("the user-data has %d bytes: the large file was not packed", len(s.UserData))
	}
	testkit.Program(t, "cloud-init", "cloud-init")
	path := filepath.Join(t.TempDir(), "user-data")
	if err := os.WriteFile(path, s.UserData, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cloud-init", "schema", "-c", path).CombinedOutput(); err != nil {
		t.Errorf("cloud-init schema: %v: %s", err, out)
	}
}

package cluster_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"imagegen/cluster"
	"imagegen/distro"
	"imagegen/roles"
)

var codeBlock = regexp.MustCompile("(?ms)^```([a-z ]+)\n(.*?)^```$")

// TestDocs checks every example in docs/spec.md with the built-in roles: complete specs, parts of one, and a broken one
// followed by its errors.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../docs/spec.md")
	if err != nil {
		t.Fatal(err)
	}
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	rules := catalogue.Rules()
	dir := t.TempDir()
	t.Chdir(dir)
	for _, err := range []error{os.Mkdir("packages", 0o755), os.WriteFile(filepath.Join("packages", "monitoring.deb"), nil, 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	blocks := codeBlock.FindAllStringSubmatch(string(doc), -1)
	if len(blocks) < 9 {
		t.Fatalf("only %d examples found", len(blocks))
	}
	for i, b := range blocks {
		kind, text := b[1], b[2]
		switch kind {
		case "yaml":
			if _, err := cluster.Parse("cluster.yaml", complete(t, text), rules); err != nil {
				t.Errorf("%s\n%v", text, err)
			}
		case "yaml broken":
			_, err := cluster.Parse("cluster.yaml", []byte(text), rules)
			if err == nil || i+1 == len(blocks) || blocks[i+1][2] != err.Error()+"\n" {
				t.Errorf("the errors of\n%s\nare\n%v", text, err)
			}
		case "text":
		default:
			t.Errorf("example in %s is not checked", kind)
		}
	}
}

// complete adds the keys that a part of a spec leaves out.
func complete(t *testing.T, text string) []byte {
	t.Helper()
	if strings.HasPrefix(text, "cluster:") {
		return []byte(text)
	}
	whole, part := map[string]any{}, map[string]any{}
	const rest = "{cluster: otus, distro: debian12, network: {cidr: 192.168.10.0/24}, roles: {redis: {nodes: {a: 192.168.10.2, b: 192.168.10.3, c: 192.168.10.4}}}}"
	for text, m := range map[string]map[string]any{rest: whole, text: part} {
		if err := yaml.Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
	}
	maps.Copy(whole, part)
	data, err := yaml.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The reference cluster is also valid with the built-in roles.
func TestReferenceWithBuiltInRoles(t *testing.T) {
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	for _, distro := range distro.Names() {
		spec, err := cluster.Parse("cluster.yaml", cluster.Reference(distro), catalogue.Rules())
		if err != nil {
			t.Fatalf("%s:\n%v", distro, err)
		}
		if got := len(spec.Nodes()); got != 17 {
			t.Errorf("%s: %d nodes", distro, got)
		}
		for _, r := range spec.Roles {
			if r.CPUs != 2 {
				t.Errorf("%s: %s has %d CPUs", distro, r.Name, r.CPUs)
			}
		}
	}
}

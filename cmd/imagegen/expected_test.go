package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/roles"
)

func readExpected(t *testing.T) expected.Expected {
	t.Helper()
	e, err := expected.Read("dist/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestExpected: expected.json has every node, its image and seed, and no secret.
func TestExpected(t *testing.T) {
	inNewFolder(t)
	done(t, "init", ".")
	done(t, "seed", "web1")
	e := readExpected(t)
	if len(e.Nodes) != 17 || e.Cluster != "otus" || e.ClusterID == "" {
		t.Fatalf("%+v", e)
	}
	for _, n := range e.Nodes {
		if (n.Seed != "") != (n.Node == "web1") || n.Image != "" {
			t.Errorf("%+v", n)
		}
	}
	if err := os.MkdirAll("dist/images", 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{"dist/images/web.json": `{"schema": 1, "role": "web", "identity": "0123abcd"}`, "dist/images/redis.json": "{"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	done(t, "seed")
	e = readExpected(t)
	p := &project{out: "dist"}
	for _, n := range e.Nodes {
		id, err := p.made().SeedIdentity(n.Node)
		if err != nil || n.Seed != id.Digest || !strings.HasPrefix(n.Seed, "sha256:") {
			t.Errorf("%+v, but the seed is %+v (%v)", n, id, err)
		}
		if want := map[string]string{"web": "0123abcd"}[n.Role]; n.Image != want {
			t.Errorf("%+v, image %q expected", n, want)
		}
	}
	if web1, _ := e.Node("web1"); web1.Address != "192.168.10.42" || web1.Role != "web" {
		t.Errorf("%+v", web1)
	}
	text, err := os.ReadFile("dist/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"secrets/passwords.json", "secrets/nodes/web1.key"} {
		secret, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for word := range strings.FieldsSeq(string(secret)) {
			if word = strings.Trim(word, `",`); len(word) >= 16 && strings.Contains(string(text), word) {
				t.Errorf("a word of %s is in expected.json", path)
			}
		}
	}
	// A seed of another cluster in a node's place is not expected.
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if p.spec, err = cluster.Load("cluster.yaml", catalogue.Rules()); err != nil {
		t.Fatal(err)
	}
	if err := p.writeExpected("another"); err != nil {
		t.Fatal(err)
	}
	for _, n := range readExpected(t).Nodes {
		if n.Seed != "" {
			t.Errorf("%+v", n)
		}
	}
}

// Too few hosts are a note, not an error, with the cost of losing each host.
func TestValidateSaysWhatAHostCosts(t *testing.T) {
	inNewFolder(t)
	done(t, "init", ".")
	reference, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for hosts, want := range map[string]int{"[h1]": 1, "[h1, h2]": 2, "[h1, h2, h3]": 0, "[h1, h2, h3, h4]": 0} {
		if err := os.WriteFile("cluster.yaml", append(reference, "\nmachines: {provider: incus, hosts: "+hosts+"}\n"...), 0o644); err != nil {
			t.Fatal(err)
		}
		out := done(t, "validate")
		if got := strings.Count(out, "note: losing host h"); got != want {
			t.Errorf("%s: %d hosts are said to be missed:\n%s", hosts, got, out)
		}
		if hosts == "[h1, h2]" && !strings.Contains(out, "the majority of ") {
			t.Errorf("%s:\n%s", hosts, out)
		}
		var v validation
		if err := json.Unmarshal([]byte(done(t, "validate", "--json")), &v); err != nil || !v.Valid || len(v.Losses) != want {
			t.Errorf("%s: %+v, %v", hosts, v, err)
		}
	}
}

// The lab's commands refuse a spec with another provider, and start nothing.
func TestTheLabIsNotForOtherProviders(t *testing.T) {
	inNewFolder(t)
	done(t, "init", ".")
	reference, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("cluster.yaml", append(reference, "\nmachines: {provider: none}\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	done(t, "seed")
	for _, line := range []string{"exec web1 -- true", "cut web1", "mend"} {
		r := imagegen(strings.Fields(line)...)
		if want := strings.Fields(line)[0] + " works only in the lab"; r.code != exitWrong || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit code %d: %s", line, r.code, r.stderr)
		}
	}
	if r := imagegen("down", "--provider", "exec"); r.code != exitWrong || !strings.Contains(r.stderr, "provider exec needs a program") {
		t.Errorf("down: %+v", r)
	}
}

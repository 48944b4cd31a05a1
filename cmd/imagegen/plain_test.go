package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/cluster/secrets"
	"imagegen/roles"
)

// TestPlainWriter: a node's console cannot control the reader's terminal, however its output is split.
func TestPlainWriter(t *testing.T) {
	const in = "a\tb\x1b[0;32m OK \x1b[0m\r\n\x1b]0;title\x07é\u009b31mx\x9b2J\x07\u202e…\x1b]52;c;cm0=\x1b\\y\x1bcz\x1b]0;cut\nnext\n"
	const want = "a\tb OK \né31mx\ufffd2J…yz\nnext\n"
	for size := 1; size < len(in); size++ {
		var out bytes.Buffer
		w := &plainWriter{w: &out}
		for i := 0; i < len(in); i += size {
			part := in[i:min(len(in), i+size)]
			if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
		}
		if out.String() != want {
			t.Fatalf("in pieces of %d: %q, want %q", size, out.String(), want)
		}
	}
}

// TestFaultsArePlain: text quoted in errors of a spec and of roles cannot control the terminal.
func TestFaultsArePlain(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const head = "cluster: c\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/24}\nroles:\n"
	for name, files := range map[string]map[string]string{
		"spec":  {"cluster.yaml": head + "  \"re\\e[2Jdis\": {nodes: {r1: 10.0.0.1}}\n"},
		"value": {"cluster.yaml": strings.Replace(head, "debian12", "\"deb\\e]0;x\\a\\u009b2J\"", 1) + "  redis: {nodes: {r1: 10.0.0.1}}\n"},
		"role": {"cluster.yaml": head + "  tool: {nodes: {r1: 10.0.0.1}}\n",
			"roles/tool/role.yaml": "description: x\ndistros: {debian12: {packages: [tree], disable: [\"a\\e[2J\"]}}\n\"k\\e[2J\": 1\n"},
		"template": {"cluster.yaml": head + "  tool: {nodes: {r1: 10.0.0.1}}\n",
			"roles/tool/role.yaml": "description: x\ndistros: {debian12: {packages: [tree]}}\nfiles: [{path: /etc/x, template: x}]\n", "roles/tool/x": "{{\"a\x1b[2J\" | no}}"},
	} {
		os.RemoveAll(filepath.Join(dir, "roles"))
		for file, text := range files {
			write(file, text)
		}
		var out, said bytes.Buffer
		code := run(context.Background(), []string{"imagegen", "validate", "-f", filepath.Join(dir, "cluster.yaml")}, strings.NewReader(""), &out, &said)
		if code != exitWrong {
			t.Errorf("%s: exit code %d\n%s", name, code, said.String())
		}
		if text := out.String() + said.String(); printable(text) != text {
			t.Errorf("%s: %q", name, text)
		}
	}
}

// TestLineEndsOfWindows: a checkout with CRLF of spec, roles and templates gives the same seeds.
func TestLineEndsOfWindows(t *testing.T) {
	files := map[string]string{
		"cluster.yaml":         "cluster: c\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/24}\nssh:\n  keys:\n    - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0S3FzxWr4H0OIqZ3DZ5z7fSgqBpB9GYf2dq3dmJ3cW ops@desk\nroles:\n  tool:\n    nodes: {tool1: 10.0.0.1}\n",
		"roles/tool/role.yaml": "description: |\n  a tool\n  of two lines\ndistros: {debian12: {packages: [tree], vars: {text: \"x\"}}}\nfiles: [{path: /usr/local/bin/hello, template: hello, mode: \"0755\"}]\n",
		"roles/tool/hello":     "#!/bin/sh\n{{/* a comment\nof two lines */ -}}\necho {{.Vars.text}}\n",
	}
	var seeds []string
	for _, ends := range []string{"\n", "\r\n"} {
		dir := t.TempDir()
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "\n", ends)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		catalogue, err := roles.Load(filepath.Join(dir, "roles"))
		if err != nil {
			t.Fatal(err)
		}
		spec, err := cluster.Load(filepath.Join(dir, "cluster.yaml"), catalogue.Rules())
		if err != nil {
			t.Fatal(err)
		}
		p := &project{spec: spec, catalogue: catalogue}
		keys := &secrets.Secrets{Passwords: map[string]string{}, Nodes: map[string]secrets.KeyPair{}}
		p.standIns(keys)
		seed, err := p.seed(keys, spec.Nodes()[0])
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, string(seed.UserData)+string(seed.MetaData)+string(seed.NetworkConfig))
	}
	if seeds[0] != seeds[1] || strings.Contains(seeds[1], "\r") {
		t.Errorf("%q\nand with CRLF\n%q", seeds[0], seeds[1])
	}
}

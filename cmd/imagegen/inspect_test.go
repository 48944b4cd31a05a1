package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestInspectSeed(t *testing.T) {
	inNewFolder(t)
	done(t, "init")
	done(t, "seed", "web1", "backend1")
	if err := os.Rename("dist", "before"); err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(spec, []byte("title: A site that stays up"), []byte("title: Another"), 1)
	if err := os.WriteFile("cluster.yaml", other, 0o644); err != nil {
		t.Fatal(err)
	}
	done(t, "seed", "web1", "backend1")

	shown := done(t, "inspect", "dist/seeds/web1.iso") + done(t, "inspect", "--json", "dist/seeds/backend1.iso")
	for _, want := range []string{"/etc/nginx/nginx.conf", `"path": "/etc/imagegen/secrets.json"`, `"mode": "0600"`} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %s in\n%s", want, shown)
		}
	}
	for name, secret := range secretsOf(t, "secrets") {
		if strings.Contains(shown, secret) {
			t.Errorf("inspect shows %s", name)
		}
	}
	if !strings.Contains(shown, "generation 2 (sha256:") || !strings.Contains(shown, "made from the generation with the digest sha256:") {
		t.Errorf("no generation in\n%s", shown)
	}
	for node, want := range map[string]string{"web1": "no difference\n", "backend1": "/etc/imagegen/node.json: content\n"} {
		old, now := "before/seeds/"+node+".iso", "dist/seeds/"+node+".iso"
		generation, rest, _ := strings.Cut(done(t, "inspect", old, now), "\n")
		if !regexp.MustCompile(`^generation 2 \(sha256:\w{64}\) instead of generation 1 \(sha256:\w{64}\)$`).MatchString(generation) || rest != want {
			t.Errorf("%s: %s\n%s", node, generation, rest)
		}
	}
	if got := done(t, "inspect", "--json", "before/seeds/web1.iso", "dist/seeds/web1.iso"); got != "[]\n" {
		t.Errorf("web1 as JSON: %s", got)
	}
	if r := imagegen("inspect", "dist/seeds/web1.iso", "web.raw"); r.code != exitWrong {
		t.Errorf("a seed and an image: %+v", r)
	}
}

func TestInspectImage(t *testing.T) {
	inNewFolder(t)
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := func(role, version, packages string) {
		write("images/"+role+".raw", role)
		write("images/"+role+".json", fmt.Sprintf(`{"schema": 1, "role": %q, "identity": "abc", "inputs": {"packages": [%s]},
			"packages": [{"name": "nginx", "version": %q, "architecture": "amd64"}],
			"disk": {"format": "raw", "bytes": 1048576, "sha256": "%x"}}`, role, packages, version, sha256.Sum256([]byte(role))))
	}
	image("a", "1.22", `"nginx"`)
	image("b", "1.24", `"nginx", "tree"`)
	if got := done(t, "inspect", "images/a.raw"); !strings.Contains(got, "image of a, identity abc") || !strings.Contains(got, "nginx    1.22     amd64") {
		t.Error(got)
	}
	if got := done(t, "inspect", "images/a.raw", "images/b.raw"); got != "package list: + tree\ninstalled packages: + nginx 1.24, - nginx 1.22\n" {
		t.Error(got)
	}
	write("images/a.raw", "altered")
	for path, want := range map[string]string{
		"images/a.raw": "has changed since imagegen wrote it", "images/a.vmdk": "no such file", "images/c.txt": "name ends in .raw",
	} {
		if r := imagegen("inspect", path); r.code != exitFailed || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: %+v", path, r)
		}
	}
}

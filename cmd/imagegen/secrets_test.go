package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const smallSpec = "cluster: shop\ndistro: debian12\nnetwork: {cidr: 192.168.56.0/24}\nroles:\n" +
	"  redis:\n    nodes: {cache1: 192.168.56.49, cache2: 192.168.56.50, cache3: 192.168.56.51}\n"

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// contents returns all files below the current folder.
func contents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, path := range files(t, ".") {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[path] = string(data)
	}
	return all
}

// unchanged fails if files differ from before.
func unchanged(t *testing.T, what string, before map[string]string) {
	t.Helper()
	after := contents(t)
	for path, data := range after {
		if old, was := before[path]; !was || old != data {
			t.Errorf("%s wrote %s", what, path)
		}
	}
	for path := range before {
		if _, is := after[path]; !is {
			t.Errorf("%s removed %s", what, path)
		}
	}
}

// Only seed and build issue secrets; commands that ask or stop something write nothing.
func TestQuestionsWriteNothing(t *testing.T) {
	inNewFolder(t)
	writeFile(t, "cluster.yaml", smallSpec)
	writeFile(t, "agent", "#!/bin/sh\n")
	before := contents(t)
	for _, line := range []string{
		"validate", "validate --json", "seed --print", "plan --agent agent --cache none", "status", "status --json", "logs cache1", "decide redis --without cache1",
		"kill cache1", "down",
	} {
		r := imagegen(strings.Fields(line)...)
		if r.code == exitWrong {
			t.Errorf("imagegen %s: %+v", line, r)
		}
		unchanged(t, line, before)
		if _, err := os.Stat("secrets"); err == nil {
			t.Fatalf("imagegen %s made secrets", line)
		}
	}
	// Before secrets are issued, the output of --print has the same form as afterwards.
	first := done(t, "seed", "--print", "cache1")
	done(t, "seed")
	second := done(t, "seed", "--print", "cache1")
	if a, b := strings.Count(first, "\n"), strings.Count(second, "\n"); a == 0 || !strings.Contains(first, "(secret redis)") || strings.Contains(first, "notIssued") {
		t.Errorf("%d lines, then %d: %s", a, b, first)
	}
}

// Seeds without secrets are an error, not a new cluster.
func TestLostFolderOfSecrets(t *testing.T) {
	for _, left := range []string{"nothing", "an empty folder"} {
		inNewFolder(t)
		writeFile(t, "cluster.yaml", smallSpec)
		writeFile(t, "agent", "#!/bin/sh\n")
		done(t, "seed")
		id, err := os.ReadFile("secrets/cluster_id")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll("secrets"); err != nil {
			t.Fatal(err)
		}
		if left != "nothing" {
			if err := os.Mkdir("secrets", 0o700); err != nil {
				t.Fatal(err)
			}
		}
		before := contents(t)
		for _, line := range []string{"seed", "seed cache1", "build --agent agent --cache none", "status"} {
			r := imagegen(strings.Fields(line)...)
			if line != "status" && r.code != exitFailed {
				t.Errorf("%s, %s: exit code %d", left, line, r.code)
			}
			if !strings.Contains(r.stderr, "the folder secrets is missing or empty, but dist/seeds/cache1.iso") || !strings.Contains(r.stderr, strings.TrimSpace(string(id))) {
				t.Errorf("%s, %s: %s", left, line, r.stderr)
			}
			unchanged(t, line, before)
		}
		// The remedy that the message names.
		if err := os.RemoveAll("dist/seeds"); err != nil {
			t.Fatal(err)
		}
		done(t, "seed")
	}
}

// Seeds of another cluster are never overwritten, not even a single one.
func TestSeedsOfAnotherCluster(t *testing.T) {
	inNewFolder(t)
	writeFile(t, "cluster.yaml", smallSpec)
	done(t, "seed")
	if err := os.RemoveAll("secrets"); err != nil {
		t.Fatal(err)
	}
	done(t, "seed", "-o", "other") // another cluster's secrets
	if err := os.Remove("dist/seeds/cache2.iso"); err != nil {
		t.Fatal(err)
	}
	before := contents(t)
	r := imagegen("seed")
	if r.code != exitFailed || !strings.Contains(r.stderr, "is a seed of another cluster") {
		t.Errorf("%+v", r)
	}
	unchanged(t, "seed", before)
}

// The seed of a node that is no longer in the spec contains valid secrets: the message names it and says what to do.
func TestStaleSeedsAreNamed(t *testing.T) {
	inNewFolder(t)
	writeFile(t, "cluster.yaml", smallSpec)
	done(t, "seed")
	writeFile(t, "cluster.yaml", strings.Replace(smallSpec, "cache3", "store3", 1))
	for _, args := range [][]string{{"seed"}, {"seed", "cache1"}} {
		r := imagegen(args...)
		if r.code != exitDone || !strings.Contains(r.stderr, "dist/seeds/cache3.iso is the seed of cache3, which is not in cluster.yaml") ||
			!strings.Contains(r.stderr, "rm dist/seeds/cache3.iso") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("imagegen %s: %+v", args, r)
		}
	}
	if err := os.Remove("dist/seeds/cache3.iso"); err != nil {
		t.Fatal(err)
	}
	done(t, "seed")
}

// Commands that only ask warn about a certificate that is about to expire; seed renews it.
func TestExpiryIsSaid(t *testing.T) {
	inNewFolder(t)
	writeFile(t, "cluster.yaml", smallSpec)
	done(t, "seed")
	end := time.Now().AddDate(0, 8, 0)
	ageCertificate(t, "secrets/nodes/cache2", end)
	for command, code := range map[string]int{"validate": exitDone, "status": exitFailed} { // no node answers
		r := imagegen(command)
		if r.code != code || !strings.Contains(r.stderr, "imagegen: the certificate of cache2 expires on "+end.UTC().Format(time.DateOnly)+"; imagegen seed renews it") {
			t.Errorf("%s: %+v", command, r)
		}
	}
	r := imagegen("seed")
	if r.code != exitDone || !strings.Contains(r.stderr, "would expire: nodes/cache2.crt;") || r.stdout != "dist/seeds: wrote 1 seed (cache2), 2 up to date\n" {
		t.Errorf("seed: %+v", r)
	}
	done(t, "validate")
	ageCertificate(t, "secrets/ca", time.Now().Add(-time.Hour))
	if r := imagegen("seed"); r.code != exitFailed || !strings.Contains(r.stderr, "secrets/ca.crt, the cluster's authority, expired on ") {
		t.Errorf("seed with an authority that expired: %+v", r)
	}
}

// ageCertificate replaces a certificate by one for the same key that expires at end.
func ageCertificate(t *testing.T, name string, end time.Time) {
	t.Helper()
	block := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := pem.Decode(data)
		return b.Bytes
	}
	old, err1 := x509.ParseCertificate(block(name + ".crt"))
	ca, err2 := x509.ParseCertificate(block("secrets/ca.crt"))
	key, err3 := x509.ParsePKCS8PrivateKey(block("secrets/ca.key"))
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	pub := old.PublicKey
	old.NotAfter = end
	der, err := x509.CreateCertificate(rand.Reader, old, ca, pub, key.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, name+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

// A spec on standard input, or in another device or pipe, belongs to the current folder.
func TestSpecFromStandardInput(t *testing.T) {
	inNewFolder(t)
	in := func(text string, args ...string) result {
		var out, errs bytes.Buffer
		code := run(context.Background(), append([]string{"imagegen"}, args...), strings.NewReader(text), &out, &errs)
		return result{code, out.String(), errs.String()}
	}
	for _, name := range []string{"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"} {
		if r := in(smallSpec, "seed", "-f", name); r.code != exitDone || !strings.HasPrefix(r.stdout, "dist/seeds: ") {
			t.Errorf("seed -f %s: %+v", name, r)
		}
		if r := in("cluster: 7x\n", "validate", "-f", name); r.code != exitWrong || !strings.HasPrefix(r.stderr, "<stdin>:1:") {
			t.Errorf("validate -f %s of a wrong spec: %+v", name, r)
		}
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { os.WriteFile(pipe, []byte(smallSpec), 0) }()
	if r := imagegen("validate", "-f", pipe); r.code != exitDone || !strings.HasPrefix(r.stdout, "<pipe>: 3 nodes") {
		t.Errorf("validate of a pipe: %+v", r)
	}
	if r := imagegen("validate", "-f", "/dev/zero"); r.code != exitWrong || !strings.HasPrefix(r.stderr, "<zero>:1:1: the file is too large; ") {
		t.Errorf("validate of what has no end: %+v", r)
	}
	for _, dir := range []string{"/dev", "/dev/fd", "/proc/self/fd", filepath.Dir(pipe)} {
		if _, err := os.Stat(filepath.Join(dir, "secrets")); err == nil {
			t.Errorf("there are secrets in %s", dir)
		}
	}
	if !slices.Contains(files(t, "."), "secrets/cluster_id") {
		t.Error("there are no secrets in the current folder")
	}
}

// Files that root writes through sudo belong to the user who called it, including new folders.
func TestSudo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root can give files away")
	}
	inNewFolder(t)
	t.Setenv("SUDO_UID", "12345")
	t.Setenv("SUDO_GID", "12346")
	done(t, "init", "some/where")
	done(t, "seed", "-f", "some/where/cluster.yaml")
	done(t, "seed", "-f", "some/where/cluster.yaml", "-o", "out/of/it")
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := d.Info()
		if stat := info.Sys().(*syscall.Stat_t); err == nil && (stat.Uid != 12345 || stat.Gid != 12346) {
			t.Errorf("%s belongs to %d:%d", path, stat.Uid, stat.Gid)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

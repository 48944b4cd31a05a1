package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnreachableArchiveFails: a failed program gives exit code 1, not 2. exec.ExitError implements the exit code
// interface of the command line library.
func TestUnreachableArchiveFails(t *testing.T) {
	if _, err := os.Stat("/usr/bin/apt-get"); err != nil {
		t.Skip("needs apt-get: exit codes of an unreachable archive are NOT tested")
	}
	dir := t.TempDir()
	spec := "cluster: shop\ndistro: debian12\nmirror: http://127.0.0.1:1/debian\nnetwork: {cidr: 192.168.56.0/24}\n" +
		"roles: {redis: {nodes: {c1: 192.168.56.49, c2: 192.168.56.50, c3: 192.168.56.51}}}\n"
	file := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	if code := run(context.Background(), []string{"imagegen", "lock", "-f", file, "--cache", filepath.Join(dir, "cache")}, strings.NewReader(""), io.Discard, &said); code != exitFailed {
		t.Errorf("exit code %d: %s", code, said.String())
	}
}

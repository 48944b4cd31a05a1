package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	defer func(v string) { version = v }(version)
	version = "v1.2.3-4-gabcdef0"
	if out := done(t, "--version"); !regexp.MustCompile(`^imagegen v1\.2\.3-4-gabcdef0 \(go[^ ]+, [a-z]+/[a-z0-9]+\)\n$`).MatchString(out) {
		t.Errorf("--version says %q", out)
	}
	version = ""
	if out := done(t, "--version"); !strings.HasPrefix(out, "imagegen ") || strings.HasPrefix(out, "imagegen  ") {
		t.Errorf("without a version, --version says %q", out)
	}
	if strings.Contains(done(t, "help"), "VERSION") {
		t.Error("the version is in the help, which the docs are made of")
	}
}

// make build puts the version into imagegen, and not into the agent, which is in every image: another version of imagegen
// must not bake all images anew.
func TestVersionIsNotInTheAgent(t *testing.T) {
	if testing.Short() {
		t.Skip("builds both programs twice")
	}
	for _, program := range []string{"make", "go"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s to build with", program)
		}
	}
	sums := map[string]string{}
	for _, v := range []string{"v1.0.0", "v2.0.0"} {
		bin := t.TempDir()
		cmd := exec.Command("make", "-s", "-C", "../..", "build", "VERSION="+v, "BIN="+bin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make build: %v\n%s", err, out)
		}
		out, err := exec.Command(filepath.Join(bin, "imagegen"), "--version").Output()
		if err != nil || !strings.HasPrefix(string(out), "imagegen "+v+" ") {
			t.Errorf("imagegen --version: %q, %v", out, err)
		}
		agent, err := os.ReadFile(filepath.Join(bin, "imagegen-node"))
		if err != nil {
			t.Fatal(err)
		}
		sums[fmt.Sprintf("%x", sha256.Sum256(agent))] = v
	}
	if len(sums) != 1 {
		t.Error("two versions of imagegen have two agents")
	}
}

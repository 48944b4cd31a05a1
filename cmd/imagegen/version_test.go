package main

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"imagegen/internal/testkit"
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

// make build sets the version in imagegen, but not in the agent, which is in every image: a new version of imagegen
// must not rebake all images. The agent's bytes depend only on its sources and its build command.
func TestVersionIsNotInTheAgent(t *testing.T) {
	testkit.Program(t, "make", "make")
	agents := map[string]bool{}
	for _, v := range []string{"v1.0.0", "v2.0.0"} {
		out, err := exec.Command("make", "-n", "-C", "../..", "build", "VERSION="+v).Output()
		if err != nil {
			t.Fatal(err)
		}
		programs := 0
		for line := range strings.Lines(string(out)) {
			switch line = strings.TrimSpace(line); {
			case !strings.Contains(line, " build "):
			case strings.HasSuffix(line, " ./cmd/imagegen-node"):
				agents[line] = true
				programs++
			case strings.HasSuffix(line, " ./cmd/imagegen") && strings.Contains(line, "-X main.version="+v+"'"):
				programs++
			default:
				t.Errorf("make build runs %s", line)
			}
		}
		if programs != 2 {
			t.Errorf("make build builds %d programs:\n%s", programs, out)
		}
	}
	if len(agents) != 1 {
		t.Errorf("the agent is built in more than one way: %v", agents)
	}
}

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

// TestUpgrade makes the reference cluster with an earlier imagegen (IMAGEGEN_EARLIER, its program) and rolls it to this one, under
// load: agents of both work side by side, and a cluster from before generations gets them (make e2e-upgrade).
func TestUpgrade(t *testing.T) {
	earlier := os.Getenv("IMAGEGEN_EARLIER")
	if os.Getenv("IMAGEGEN_E2E") != "upgrade" || earlier == "" {
		t.Skip("an upgrade from an earlier imagegen runs with IMAGEGEN_E2E=upgrade and IMAGEGEN_EARLIER=PROGRAM, as root: make e2e-upgrade")
	}
	b := newBenchOf(t, "e2e-upgrade")
	b.command = func(args ...string) *exec.Cmd { return exec.Command(earlier, args...) }
	dir := filepath.Join(t.TempDir(), "init")
	b.run(t, "init", "--distro", "debian12", dir)
	spec, err := os.ReadFile(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.spec(), []byte(strings.Replace(string(spec), "cluster: otus", "cluster: e2e-upgrade", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	b.lab(t, "build")
	b.up(t)
	b.waitReady(t)
	l, stop := b.newLoad(t)
	defer stop()
	testkit.Eventually(t, time.Minute, "load", func() error { return l.steady(kinds) })

	b.command = nil
	b.lab(t, "build")
	l.watch()
	start := time.Now()
	// WordPress was on the volume; docs/changes.md says why the backends come first.
	b.lab(t, "roll", "--timeout", readyIn.String(), "backend")
	b.lab(t, "roll", "--timeout", readyIn.String())
	took := time.Since(start)
	b.waitReady(t)
	testkit.Eventually(t, recoverLimit, "load", func() error { return l.steady(kinds) })
	testkit.Eventually(t, recoverLimit, "one holder of each address", b.oneHolder)
	t.Log(l.cost(t, "a roll from an earlier imagegen", took))
	if out := b.lab(t, "diff"); !strings.Contains(out, "\n0 of ") {
		t.Errorf("the nodes do not run what the spec says:\n%s", out)
	}

	r := l.change(t, change{name: "an option of backend", edit: b.edit("  backend:\n", "  backend:\n    options: {children: \"9\"}\n")})
	t.Log(r)
}

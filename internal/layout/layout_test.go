// Package layout tests which packages may import which. docs/architecture.md explains the rules.
package layout

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// never lists what a package and those below it must not link, directly or indirectly.
var never = []struct {
	pkg   string
	never []string
	why   string
}{
	{"distro", []string{"imagegen"}, "it is data that all others read"},
	{"cluster/facts", []string{"gopkg.in", "time/tzdata", "imagegen/cluster", "imagegen/roles"}, "it is linked into every node's agent"},
	{"cluster/facts/agree", []string{"os/exec", "net/http"}, "decisions are pure, for agent, operator and simulation alike"},
	{"cmd/imagegen-node", []string{"gopkg.in/yaml.v3", "time/tzdata", "github.com", "imagegen/cluster", "imagegen/roles", "imagegen/images"}, "an agent knows facts, not specs"},
	{"agent", []string{"gopkg.in/yaml.v3", "time/tzdata", "github.com", "imagegen/cluster", "imagegen/roles"}, "an agent knows facts, not specs"},
	{"agent/ensemble", []string{"os/exec", "net/http", "gopkg.in", "github.com", "imagegen/agent", "imagegen/cluster", "imagegen/roles"}, "decisions are pure, for agent and simulator alike"},
	{"cluster", []string{"imagegen/roles", "imagegen/images", "imagegen/agent", "imagegen/lab", "imagegen/machines"}, "the spec stands below all others"},
	{"roles", []string{"imagegen/images", "imagegen/agent", "imagegen/lab", "imagegen/machines"}, "rendering needs neither images nor machines"},
	{"cloudinit/nocloud", []string{"gopkg.in", "time/tzdata", "github.com", "imagegen/cluster", "imagegen/roles", "imagegen/agent"}, "it is linked into every node's agent"},
	{"cloudinit", []string{"imagegen/roles", "imagegen/images", "imagegen/agent", "imagegen/lab", "imagegen/machines"}, "a seed is files and addresses"},
	{"images", []string{"imagegen/agent", "imagegen/lab", "imagegen/machines"}, "an image knows no machine"},
	{"images/disk", []string{"imagegen/images", "imagegen/cluster", "imagegen/roles"}, "a disk is made of a tree"},
	{"images/packages", []string{"imagegen/images", "imagegen/cluster", "imagegen/roles"}, "packages are found and fetched for whoever names them"},
	{"images/format", []string{"imagegen/images", "imagegen/cluster", "imagegen/roles"}, "writing a disk takes a disk"},
	{"images/builder", []string{"imagegen/images/packages", "imagegen/images/format", "imagegen/roles"}, "a builder runs a script, whatever that does"},
	{"machines", []string{"imagegen/agent", "imagegen/lab", "imagegen/images"}, "a machine does not know what it is for, nor how its image was made"},
	{"machines/local", []string{"imagegen/operate", "imagegen/machines/nspawn", "imagegen/machines/qemu"}, "it runs machines with any driver"},
	{"lab", []string{"imagegen/agent", "imagegen/images", "imagegen/roles", "imagegen/machines/nspawn", "imagegen/machines/qemu"}, "the lab is given its providers"},
	{"operate", []string{"imagegen/agent", "imagegen/lab", "imagegen/machines"}, "members are operated wherever their machines are"},
	{"change", []string{"imagegen/agent", "imagegen/lab", "imagegen/machines"}, "a change goes through the agents, wherever the machines are"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, "imagegen/...").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	checked := 0
	for line := range strings.Lines(string(out)) {
		pkg, deps, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, rule := range never {
			if !below(pkg, "imagegen/"+rule.pkg) {
				continue
			}
			checked++
			for d := range strings.FieldsSeq(deps) {
				if slices.ContainsFunc(rule.never, func(n string) bool { return d == n || !own(n) && below(d, n) || own(n) && below(d, n) && !allowed(d) }) && !below(d, "imagegen/"+rule.pkg) {
					t.Errorf("%s imports %s: %s", pkg, d, rule.why)
				}
			}
		}
	}
	if checked < len(never) {
		t.Errorf("only %d rules apply to a package", checked)
	}
}

// allowed are packages below a forbidden one that are no part of it: the contract between seed and agent.
func allowed(pkg string) bool { return below(pkg, "imagegen/cluster/facts") }

func own(pkg string) bool { return strings.HasPrefix(pkg, "imagegen/") }

func below(pkg, root string) bool { return pkg == root || strings.HasPrefix(pkg, root+"/") }

package main

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/change"
	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
	"imagegen/roles"
)

// everything returns the content, mode and time of all files and folders below a folder.
func everything(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := []byte(nil)
		if info.Mode().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		all[path] = fmt.Sprintf("%s %s %x", info.Mode(), info.ModTime(), content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// untouched fails if anything below a folder is not as before.
func untouched(t *testing.T, dir, what string, before map[string]string) {
	t.Helper()
	now := everything(t, dir)
	paths := maps.Clone(now)
	maps.Copy(paths, before)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if now[path] != before[path] {
			t.Errorf("%s has changed %s: %.80q, was %.80q", what, path, now[path], before[path])
		}
	}
}

// Questions take no number, issue no secrets and write no file; what they say is what the command does later.
func TestAskingChangesNothing(t *testing.T) {
	inNewFolder(t)
	done(t, "init", ".")
	done(t, "seed")
	if err := os.CopyFS("running", os.DirFS("dist/seeds")); err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// web3 needs a key that was not issued yet.
	const node = "web2: 192.168.10.43"
	testkit.Write(t, "cluster.yaml", strings.Replace(string(spec), node, node+"\n      web3: 192.168.10.143", 1))
	runningNodes(t, "running", nil, "192.168.10.143")

	before := everything(t, ".")
	for _, args := range [][]string{
		{"apply", "--dry-run"}, {"apply", "--dry-run", "--json"}, {"diff"}, {"diff", "--json"}, {"seed", "--print"}, {"status"},
	} {
		r := imagegen(args...)
		if args[0] == "apply" && (r.code != exitDone || !strings.Contains(r.stdout, "generation 2") && !strings.Contains(r.stdout, `"generation": 2`) || !strings.Contains(r.stdout, "web3")) {
			t.Errorf("%s: %+v", args, r)
		}
		untouched(t, ".", strings.Join(args, " "), before)
	}

	// Nor does the command itself until somebody has agreed.
	secrets := everything(t, "secrets")
	if r := imagegen("apply"); r.code != exitWrong || !strings.Contains(r.stderr, "there is no terminal") {
		t.Errorf("apply: %+v", r)
	}
	untouched(t, "secrets", "apply without an answer", secrets)

	done(t, "seed")
	if made, err := os.ReadFile("dist/generation.json"); err != nil || !strings.Contains(string(made), `"number": 2`) {
		t.Errorf("the generation that is rendered now: %s, %v", made, err)
	}
}

// An operator sees which nodes change at the same time.
func TestStepsTogether(t *testing.T) {
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	s := change.State{Roles: change.RolesOf(catalogue, []string{"redis", "percona"})}
	for _, r := range []struct{ role, file, unit string }{
		{"redis", "/etc/redis/imagegen-redis.conf", "imagegen-redis.service"},
		{"percona", "/etc/mysql/mariadb.conf.d/90-imagegen.cnf", "mariadb.service"},
	} {
		for i := range 3 {
			m := facts.Member{Name: fmt.Sprint(r.role, i+1), Role: r.role, IP: "192.168.10.1", Index: i, Data: true, Seed: "old"}
			is := m
			is.Seed = "new"
			s.Nodes = append(s.Nodes, change.Node{
				Name: m.Name, Role: m.Role, Was: &m, Is: &is, Seed: m.Seed, Ready: true, Joint: true,
				Leads:    map[string]string{"redis1": "is the master of redis", "percona3": "gets what balancer3 sends to mysql"}[m.Name],
				Takeover: &facts.Plan{Files: []facts.FileChange{{Path: r.file, What: "changed"}}, Stop: []string{r.unit}},
			})
		}
	}
	steps, err := change.Plan(s)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "testdata/apply-rounds.txt", []byte(stepsText(3, steps)))
}

// What docs/changes.md shows as the output of diff and apply is in the golden files of their tests, if not all of it.
func TestChangesPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/changes.md")
	if err != nil {
		t.Fatal(err)
	}
	golden := map[string][]string{}
	for _, name := range []string{"diff.txt", "apply.txt", "apply-rounds.txt"} {
		text, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		golden[name] = strings.Split(string(text), "\n")
	}
	shown := 0
	for i, block := range strings.Split(string(page), "\n```\n") {
		if i%2 == 0 || !strings.HasPrefix(block, "generation ") {
			continue
		}
		shown++
		missed := "" // the first line that no golden file has after those before it
		for _, lines := range golden {
			missing := ""
			for line := range strings.SplitSeq(block, "\n") {
				at := slices.Index(lines, line)
				if at < 0 {
					missing = line
					break
				}
				lines = lines[at+1:]
			}
			if missing == "" {
				missed = ""
				break
			}
			missed = missing
		}
		if missed != "" {
			t.Errorf("docs/changes.md shows what no test has seen: %q in\n%s", missed, block)
		}
	}
	if shown < len(golden) {
		t.Errorf("docs/changes.md shows %d outputs of %d", shown, len(golden))
	}
}

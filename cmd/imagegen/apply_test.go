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

	"imagegen/internal/testkit"
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

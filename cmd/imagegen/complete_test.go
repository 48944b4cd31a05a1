package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// candidates returns the completions of the last of words.
func candidates(t *testing.T, words ...string) []string {
	t.Helper()
	var found []string
	for line := range strings.Lines(done(t, append([]string{completeName}, words...)...)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		found = append(found, word)
	}
	return found
}

func TestComplete(t *testing.T) {
	inNewFolder(t)
	writeFile(t, "cluster.yaml", smallSpec)
	writeFile(t, "other/spec.yaml", strings.ReplaceAll(smallSpec, "cache", "store"))
	writeFile(t, "broken.yaml", "cluster: 7\n")
	before := contents(t)
	for _, c := range []struct{ line, want string }{
		{"se", "seed"},
		{"help st", "status start"},
		{"--v", "--version"},
		{"seed ", "cache1 cache2 cache3"},
		{"seed cache1 cache", "cache2 cache3"},
		{"seed -f other/spec.yaml s", "store1 store2 store3"},
		{"seed --file=other/spec.yaml s", "store1 store2 store3"},
		{"seed --file = other/spec.yaml s", "store1 store2 store3"}, // as bash splits it
		{"seed -f broken.yaml s", ""},
		{"seed -f - s", ""},
		{"seed -f ", ":files"},
		{"seed --pr", "--print"},
		{"build ", "redis"},
		{"build --format o", "ova"},
		{"build --format ova,b", "ova,box"},
		{"build --format=qc", "--format=qcow2"},
		{"up --provider ", "exec incus none nspawn qemu virtualbox"},
		{"cut cache1 --from cache2,", "cache2,cache1 cache2,cache2 cache2,cache3"},
		{"decide --without cache1 sent", "sentinel"},
		{"init --distro d", "debian12"},
		{"inspect ", ":files"},
		{"exec cache1 -- l", ":files"},
		{"completion ", "bash fish zsh"},
		{"frobnicate x", ":files"},
		{"status ", ""},
	} {
		words := strings.Split(c.line, " ")
		if got := strings.Join(candidates(t, words...), " "); got != c.want {
			t.Errorf("%q completes to %q, want %q", c.line, got, c.want)
		}
	}
	unchanged(t, "completion", before)
	if r := imagegen("completion", "tcsh"); r.code != exitWrong || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("completion tcsh: %+v", r)
	}
}

// Each shell completes a line with its script.
func TestShellsComplete(t *testing.T) {
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Skipf("needs go to build imagegen with: %v\n%s", err, out)
	}
	inNewFolder(t)
	writeFile(t, "cluster.yaml", smallSpec)
	for shell, ask := range map[string]string{
		"bash": `source ./script; COMP_WORDS=(imagegen seed cache1 ca); COMP_CWORD=3; _imagegen; printf '%s\n' "${COMPREPLY[@]}"`,
		"fish": `source ./script; complete -C "imagegen seed cache1 ca"`,
		// _describe is a zsh function that works only in the line editor; this one prints its arguments.
		"zsh": `compdef() { [[ $* == "_imagegen imagegen" ]] }; source ./script || exit; _describe() { print -l ${(P)2} }; words=(imagegen seed cache1 ca); CURRENT=4; _imagegen`,
	} {
		t.Run(shell, func(t *testing.T) {
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("needs %s: its completion is NOT tested", shell)
			}
			writeFile(t, "script", done(t, "completion", shell))
			cmd := exec.Command(path, "-c", ask)
			cmd.Env = append(os.Environ(), "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"), "HOME="+t.TempDir())
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var got []string
			for line := range strings.Lines(string(out)) {
				word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
				word, _, _ = strings.Cut(word, ":")
				got = append(got, word)
			}
			if want := []string{"cache2", "cache3"}; !slices.Equal(got, want) {
				t.Errorf("completes to %q, want %q", got, want)
			}
		})
	}
}

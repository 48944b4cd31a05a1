package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"imagegen/change"
	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/operate"
)

// What is kept for an undo is private, whole or not there, and gone for good once it is erased.
func TestEarlierSeeds(t *testing.T) {
	inNewFolder(t)
	done(t, "init", ".")
	done(t, "seed")
	keys, err := secrets.ReadOperator("secrets", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	agents, err := operate.NewAgents(keys, dialNode)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := cloudinit.ReadISO("dist/seeds/web1.iso")
	if err != nil {
		t.Fatal(err)
	}
	g, err := facts.OpenGeneration(seed.Generation)
	if err != nil {
		t.Fatal(err)
	}
	digest := nocloud.Digest(seed.UserData, seed.NetworkConfig)
	e := kept{"dist/earlier", agents}
	holds := func(when string, want bool) {
		t.Helper()
		have := e.Generation()
		back, ok := e.Seed("web1", digest)
		if (have != nil && have.Digest == g.Digest) != want || ok != want || ok && string(back.UserData) != string(seed.UserData) || e.exists() != want {
			t.Errorf("%s: generation %v, seed %v, folder %v, want %v", when, have != nil, ok, e.exists(), want)
		}
	}
	keep := func() {
		t.Helper()
		if err := e.Keep(change.Target{Generation: g, Seeds: map[string]cloudinit.Seed{"web1": seed}}); err != nil {
			t.Fatal(err)
		}
	}
	holds("before", false)
	keep()
	keep()
	holds("kept twice", true)
	if _, ok := e.Seed("web1", "sha256:another"); ok {
		t.Error("another seed of the node was taken for the one that is kept")
	}
	if _, ok := e.Seed("web2", digest); ok {
		t.Error("a seed that is not kept was found")
	}
	for path, mode := range map[string]os.FileMode{"dist/earlier": 0o700, "dist/earlier/web1.iso": 0o600, "dist/earlier/generation": 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	// Interrupted while it was being erased.
	if err := os.Rename("dist/earlier", "dist/earlier.old"); err != nil {
		t.Fatal(err)
	}
	holds("half erased", false)
	keep()
	for range 2 {
		if err := e.Erase(); err != nil {
			t.Fatal(err)
		}
	}
	holds("erased", false)
	if left, _ := filepath.Glob("dist/earlier*"); left != nil {
		t.Errorf("left: %q", left)
	}
	// Not of this cluster.
	keep()
	if err := os.WriteFile("dist/earlier/generation", []byte(`{"manifest": "e30="}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if have := e.Generation(); have != nil {
		t.Errorf("a generation that nobody has signed was believed: %d", have.Number)
	}
}

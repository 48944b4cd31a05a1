package nocloud

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestSameMachine: only the list of files may differ.
func TestSameMachine(t *testing.T) {
	const head = "#cloud-config\nhostname: web1\nusers:\n  - name: root\n"
	seed := func(userData, network string) Seed {
		return Seed{UserData: []byte(userData), NetworkConfig: []byte(network)}
	}
	base := seed(head+"write_files:\n  - path: /a\n    content: |\n      write_files:\n", "eth0")
	for _, c := range []struct {
		name  string
		other Seed
		same  bool
	}{
		{"itself", base, true},
		{"other files", seed(head+"write_files:\n  - path: /b\n", "eth0"), true},
		{"another host name", seed("#cloud-config\nhostname: web2\nusers:\n  - name: root\nwrite_files:\n  - path: /a\n", "eth0"), false},
		{"another user", seed(head+"  - name: me\nwrite_files:\n  - path: /a\n", "eth0"), false},
		{"another network", seed(string(base.UserData), "eth1"), false},
		{"one list in another", seed("#cloud-config\nhostname: web1\nx:\n  write_files:\n", "eth0"), false},
	} {
		if base.SameMachine(c.other) != c.same || c.other.SameMachine(base) != c.same {
			t.Errorf("%s: not %v", c.name, c.same)
		}
	}
}

// TestTakeOver: the new seed counts as applied, and a copy that is in use is not written again: a crash in between would leave
// the node without an identity.
func TestTakeOver(t *testing.T) {
	d := Disk{t.TempDir()}
	old, seed := makeSeed("c1", "web1", "a"), makeSeed("c1", "web1", "b")
	if err := d.Keep(old); err != nil {
		t.Fatal(err)
	}
	if err := d.TakeOver(seed); err != nil {
		t.Fatal(err)
	}
	id, _ := seed.Identity()
	stat := func() fs.FileInfo {
		t.Helper()
		info, err := os.Stat(d.path(currentLink) + "/user-data")
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	before := stat()
	// Left by an interruption after the new seed was in use.
	if err := os.Mkdir(filepath.Join(d.path(seedsDir), "old"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.TakeOver(seed); err != nil || !os.SameFile(before, stat()) {
		t.Errorf("the copy in use was written again, %v", err)
	}
	if all, err := os.ReadDir(d.path(seedsDir)); err != nil || len(all) != 1 {
		t.Errorf("seeds: %v, %v", all, err)
	}
	if kept, err := d.Kept(); err != nil || *kept != id {
		t.Errorf("%v, %v", kept, err)
	}
	memory := d.path(cloudDir + "/instances/c-web1-a/user-data.txt")
	if err := errors.Join(os.MkdirAll(filepath.Dir(memory), 0o755), os.WriteFile(memory, nil, 0o600), d.Prepare(id)); err != nil {
		t.Fatal(err)
	}
	remembers := func() bool { _, err := os.Stat(memory); return err == nil }
	if !remembers() {
		t.Error("cloud-init would apply a seed whose files are there already")
	}
	// While cloud-init runs, it needs its memory; the next boot has it forget.
	if err := d.Forget(); err != nil || !remembers() {
		t.Errorf("%v, remembers: %v", err, remembers())
	}
	if err := d.Prepare(id); err != nil || remembers() {
		t.Errorf("at the next boot: %v, remembers: %v", err, remembers())
	}
	result := d.path(resultFile)
	if err := errors.Join(d.TakeOver(seed), os.MkdirAll(filepath.Dir(memory), 0o755), os.WriteFile(memory, nil, 0o600),
		os.MkdirAll(filepath.Dir(result), 0o755), os.WriteFile(result, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := d.Forget(); err != nil || remembers() {
		t.Errorf("after cloud-init has ended: %v, remembers: %v", err, remembers())
	}
	if err := d.Forget(); err != nil {
		t.Errorf("twice: %v", err)
	}
}

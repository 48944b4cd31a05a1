package nocloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/internal/generationtest"
)

// TestWaitForSeed: a disk that has never had a seed accepts one that comes late, reports each change of what is
// attached once, and repeats that it waits.
func TestWaitForSeed(t *testing.T) {
	damaged := makeSeed("c1", "web1", "a")
	damaged.UserData = nil
	right := found("sr0", makeSeed("c1", "web1", "b"))
	wrong := found("sr0", damaged)
	looks := [][]Found{nil, {wrong}, {wrong}, nil, {right, found("sr1", makeSeed("c1", "web2", "a"))}, {right}}
	var said []string
	find := func() []Found {
		now := looks[0]
		looks = looks[1:]
		return now
	}
	take, err := waitForSeed(t.Context(), find, nil, time.Millisecond, 2*time.Millisecond, func(line string) { said = append(said, line) })
	if err != nil || take == nil || take.ID != right.ID || len(looks) != 0 {
		t.Fatalf("took %v, %v", take, err)
	}
	for want, times := range map[string]int{
		"this disk has no seed yet: attach the seed of one node": 1, "cannot use the seed on sr0: damaged": 1, "several different seeds": 1,
	} {
		got := 0
		for _, line := range said {
			if strings.HasPrefix(line, want) {
				got++
			}
		}
		if got != times {
			t.Errorf("%q was said %d times: %q", want, got, said)
		}
	}
	if !slices.ContainsFunc(said, func(line string) bool { return strings.HasPrefix(line, "still waiting for a seed, for ") }) {
		t.Errorf("no reminder: %q", said)
	}

	ctx, cancel := context.WithCancel(t.Context())
	looked := func() []Found { cancel(); return nil }
	if _, err := waitForSeed(ctx, looked, nil, time.Millisecond, time.Hour, func(string) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that is ended: %v", err)
	}
}

// TestFindInFolder is a container's case; an incomplete seed in the folder is reported, an empty folder is not.
func TestFindInFolder(t *testing.T) {
	d := Disk{t.TempDir()}
	dir := d.path(shownDir)
	if all := d.Find(); len(all) != 0 {
		t.Errorf("found %v", all)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if all := d.Find(); len(all) != 0 {
		t.Errorf("found %v", all)
	}
	s := makeSeed("c1", "web1", "a")
	for i, f := range s.files()[:3] {
		if err := os.WriteFile(filepath.Join(dir, f.name), *f.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if all := d.Find(); len(all) != 1 || all[0].Where != "/"+shownDir || (all[0].Err == nil) != (i == 2) {
			t.Errorf("with %d files: found %v", i+1, all)
		}
	}
}

// TestFindVerifies: once the node knows its authority, a generation signed by another is refused.
func TestFindVerifies(t *testing.T) {
	a, thief := generationtest.New(t), generationtest.New(t)
	d := Disk{t.TempDir()}
	put := func(path string, data []byte) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	find := func(by *generationtest.Authority) error {
		t.Helper()
		s := withGeneration(t, by, 2, makeSeed(generationtest.ClusterID, "web1", "a"))
		for _, f := range s.files() {
			put(filepath.Join(d.path(shownDir), f.name), *f.data)
		}
		all := d.Find()
		if len(all) != 1 {
			t.Fatalf("found %v", all)
		}
		return all[0].Err
	}
	if err := find(a); err != nil {
		t.Errorf("a new disk: %v", err)
	}
	put(d.path("etc/imagegen/pki/ca.crt"), a.PEM)
	if err := find(a); err != nil {
		t.Error(err)
	}
	if err := find(thief); err == nil || err.Error() != "generation 2 is not signed by the authority of this cluster" {
		t.Errorf("signed by another authority: %v", err)
	}
}

// TestShow: where cloud-init does everything in one stage, it is told so, and the kept seed is as it was: whoever reads it would pass on what
// is for cloud-init alone. Afterwards the node can take over another seed, and the kept one is removed. Mounts are shared, as systemd has them.
func TestShow(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to mount")
	}
	root := t.TempDir()
	shown, kept := make(chan string, 1), make(chan string, 1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its mounts
		failed <- func() error {
			if err := syscall.Unshare(syscall.CLONE_FS | syscall.CLONE_NEWNS); err != nil {
				return err
			}
			for _, m := range []struct {
				source, target, kind string
				flags                uintptr
			}{{"", "/", "", syscall.MS_REC | syscall.MS_PRIVATE}, {"tmpfs", root, "tmpfs", 0}, {"", root, "", syscall.MS_SHARED}} {
				if err := syscall.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
					return err
				}
			}
			d := Disk{root}
			for _, dir := range []string{"run", "var/lib", filepath.Dir(networkStage)} {
				if err := os.MkdirAll(d.path(dir), 0o755); err != nil {
					return err
				}
			}
			if err := os.Symlink("/dev/null", d.path(networkStage)); err != nil {
				return err
			}
			if err := d.Keep(makeSeed("c1", "web1", "a")); err != nil {
				return err
			}
			if err := d.show(currentLink); err != nil {
				return err
			}
			for at, to := range map[string]chan string{shownDir: shown, currentLink: kept} {
				data, err := os.ReadFile(filepath.Join(d.path(at), metaDataFile))
				if err != nil {
					return err
				}
				to <- string(data)
			}
			if err := d.unshow(); err != nil {
				return err
			}
			return d.TakeOver(makeSeed("c1", "web1", "b"))
		}()
	}()
	if err := <-failed; errors.Is(err, syscall.EPERM) {
		t.Skipf("SKIPPED: cannot mount here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	if is, was := <-shown, string(makeSeed("c1", "web1", "a").MetaData); is != was+"dsmode: local\n" {
		t.Errorf("cloud-init sees %q", is)
	} else if is := <-kept; is != was {
		t.Errorf("the node keeps %q instead of %q", is, was)
	}
}

// TestConclude: a seed is applied once the stages of cloud-init that this image runs have ended without errors. Where one stage does
// everything, it is known that cloud-init is done.
func TestConclude(t *testing.T) {
	ended := `{"errors": [], "finished": 1796037758.6, "start": 1796037756.6}`
	ahead := `{"errors": [], "finished": null, "start": null}`
	status := func(local, network, config string) string {
		return `{"v1": {"datasource": "DataSourceNoCloud [seed=/x][dsmode=local]", "init": ` + network + `, "init-local": ` + local + `, "modules-config": ` + config +
			`, "modules-final": ` + ahead + `, "modules-init": ` + ahead + `, "stage": null}}`
	}
	const done = `{"v1":{"datasource":"DataSourceNoCloud [seed=/x][dsmode=local]","errors":[]}}`
	for name, c := range map[string]struct {
		oneStage bool
		status   string
		fails    string
		result   string
	}{
		"one stage":                    {true, status(ended, ahead, ahead), "", done},
		"one stage, not ended":         {true, status(ahead, ahead, ahead), "init-local has not finished", `{"v1":{"datasource":"DataSourceNoCloud [seed=/x][dsmode=local]","errors":["init-local has not finished"]}}`},
		"one stage, which failed":      {true, status(`{"errors": ["no", "not"], "finished": 1, "start": 1}`, ahead, ahead), "init-local: no; not", `{"v1":{"datasource":"DataSourceNoCloud [seed=/x][dsmode=local]","errors":["init-local: no; not"]}}`},
		"one stage, which did not run": {true, "", "it has not run", `{"v1":{"datasource":"","errors":["it has not run"]}}`},
		"one stage, not the last": {true, strings.Replace(status(ended, ahead, ahead), "=local", "=net", 1), "left the seed for a later stage",
			`{"v1":{"datasource":"DataSourceNoCloud [seed=/x][dsmode=net]","errors":["it has left the seed for a later stage, and there is none: its data source is DataSourceNoCloud [seed=/x][dsmode=net]"]}}`},
		"one stage, damaged":          {true, "{", "/run/cloud-init/status.json: unexpected end", ""},
		"several stages":              {false, status(ended, ended, ended), "", ""},
		"several stages, one to come": {false, status(ended, ended, ahead), "modules-config has not finished", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := Disk{t.TempDir()}
			put := func(path, data string) {
				t.Helper()
				if err := errors.Join(os.MkdirAll(filepath.Dir(d.path(path)), 0o755), os.WriteFile(d.path(path), []byte(data), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.MkdirAll(filepath.Dir(d.path(currentLink)), 0o755), d.Keep(makeSeed("c1", "web1", "a"))); err != nil {
				t.Fatal(err)
			}
			put(instanceNow, "c-web1-a\n")
			if c.status != "" {
				put(statusFile, c.status)
			} else {
				put("run/cloud-init/enabled", "")
			}
			if c.oneStage {
				if err := errors.Join(os.MkdirAll(filepath.Dir(d.path(networkStage)), 0o755), os.Symlink("/dev/null", d.path(networkStage))); err != nil {
					t.Fatal(err)
				}
			}
			err := d.conclude(func() {})
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%v, want %q", err, c.fails)
			}
			if _, err := os.Stat(d.path(appliedFile)); (err == nil) != (c.fails == "") {
				t.Errorf("applied: %v", err)
			}
			result, err := os.ReadFile(d.path(resultFile))
			if c.result == "" {
				if c.oneStage == (err != nil) {
					t.Errorf("result: %s, %v", result, err)
				}
				return
			}
			var compact bytes.Buffer
			if err := errors.Join(err, json.Compact(&compact, result)); err != nil || strings.TrimSpace(compact.String()) != c.result {
				t.Errorf("%v, result: %s", err, compact.String())
			}
		})
	}
}

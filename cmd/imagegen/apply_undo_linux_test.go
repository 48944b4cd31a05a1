package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cloudinit"
	"imagegen/cluster/facts"
)

const undoSpec = `cluster: program
distro: debian12
timezone: UTC
network: {cidr: 10.77.0.0/24}
operators: [10.78.0.0/24]
machines: {provider: exec, program: ./program, hosts: [h1, h2], storage: machines}
roles:
  front: {options: {text: TEXT}, nodes: {front1: 10.77.0.1, front2: 10.77.0.2}}
  back: {options: {rigid: RIGID}, nodes: {back1: 10.77.0.11}}
`

const (
	undoFront = `description: a test
distros: {debian12: {packages: [memcached]}}
options:
  text: {default: one, pattern: "[a-z]+", help: a text}
files:
  - {path: /etc/imagegen/text.conf, template: text.conf, change: restart front.service}
components:
  - {name: front, kind: service, params: {unit: front.service}}
`
	undoBack = `description: a test
distros: {debian12: {packages: [memcached]}}
options:
  rigid: {default: one, pattern: "[a-z]+", help: a text}
files:
  - {path: /etc/imagegen/rigid.conf, template: rigid.conf}
components:
  - {name: back, kind: service, params: {unit: image.service}}
`
)

// whoHolds returns the files below some folders that contain a secret, also inside of seeds.
func whoHolds(t *testing.T, secret string, dirs ...string) (paths []string) {
	t.Helper()
	files := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.Type().IsRegular() {
				return nil
			}
			var data []byte
			if err == nil {
				files++
				data, err = os.ReadFile(path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the nodes run
			}
			if err != nil {
				return err
			}
			holds := bytes.Contains(data, []byte(secret))
			var seed cloudinit.Seed
			switch {
			case filepath.Ext(path) == ".iso":
				if seed, err = cloudinit.ReadISO(path); err != nil {
					return err
				}
			case e.Name() == "user-data":
				seed.UserData = data
			}
			if seed.UserData != nil {
				written, err := seed.Files()
				if err != nil {
					return err
				}
				for _, f := range written {
					holds = holds || bytes.Contains(f.Content, []byte(secret))
				}
			}
			if holds {
				paths = append(paths, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files == 0 {
		t.Fatalf("no files in %s", dirs)
	}
	return paths
}

// An apply that was killed after nodes had changed can still be undone, with the seeds and images of before. Once all nodes have changed,
// nothing that only the earlier generation has is in any file of a node or of the operator.
func TestUndoAfterInterruption(t *testing.T) {
	if elsewhere(t) {
		return
	}
	const old, changed = "textofthefirstgeneration", "textofthenextgeneration" // each stands for a secret
	write := func(text, rigid string) {
		writeFile(t, "cluster.yaml", strings.NewReplacer("TEXT", text, "RIGID", rigid).Replace(undoSpec))
	}
	o := startNodesWith(t, strings.NewReplacer("TEXT", old, "RIGID", "one").Replace(undoSpec), map[string]string{"front": undoFront, "back": undoBack}, func() {
		writeFile(t, "roles/front/text.conf", "text {{.Options.text}}\n")
		writeFile(t, "roles/back/rigid.conf", "rigid {{.Options.rigid}}\n")
	})
	if r := o.run(t, ".", "up", "--wait", "--timeout", "3m"); r.code != exitDone {
		t.Fatalf("up: %+v", r)
	}
	file := func(node, name string) string {
		t.Helper()
		data, err := os.ReadFile(o.machine(node).path("root/etc/imagegen/" + name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	if whoHolds(t, old, "machines") == nil {
		t.Fatal("the nodes do not have it")
	}

	// Killed where both fronts have changed, and the last node has no machine any more.
	write(changed, "broken")
	for _, kind := range []string{"raw", "json"} { // as build keeps the image that it replaces
		was, err := os.ReadFile("dist/images/back." + kind)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, "dist/images/earlier/1/images/back."+kind, string(was))
	}
	image(t, "back", "2")
	o.killed(t, "create back1", "apply", "--yes", "--timeout", "3m")
	for _, node := range []string{"front1", "front2"} {
		if have := file(node, "text.conf"); have != "text "+changed {
			t.Fatalf("%s has not changed: %s", node, have)
		}
	}
	if left := whoHolds(t, old, "machines/front1", "machines/front2"); len(left) < 2 {
		t.Errorf("the nodes have nothing to go back to: %s", left)
	}
	if info, err := os.Stat("dist/earlier"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder of earlier seeds: %v, %v", info, err)
	}
	r := o.run(t, ".", "apply", "--yes", "--timeout", "1m")
	if r.code != exitFailed || !strings.Contains(r.stderr, "the change is undone: generation 3 has the earlier configuration again, and front1 and front2 went back as well") {
		t.Fatalf("a broken change: %+v", r)
	}
	o.awaitState(t, ".", string(facts.Ready), "", "front1", "front2", "back1")
	for _, node := range []string{"front1", "front2"} {
		if have := file(node, "text.conf"); have != "text "+old {
			t.Errorf("%s has not gone back: %s", node, have)
		}
	}
	if have := file("back1", "rigid.conf"); have != "rigid one" {
		t.Errorf("back1 has not gone back: %s", have)
	}
	if runs, err := os.ReadFile(o.machine("back1").path("root/usr/local/share/imagegen/image")); err != nil || strings.TrimSpace(string(runs)) != "1" {
		t.Errorf("back1 runs the image %s, %v", runs, err)
	}
	if now, err := os.ReadFile("dist/images/back.json"); err != nil || !strings.Contains(string(now), `"1"`) {
		t.Errorf("the image in the output folder: %s, %v", now, err)
	}
	if left, _ := filepath.Glob("dist/images/earlier/*"); left != nil {
		t.Errorf("earlier images that no node needs are left: %q", left)
	}
	if left := whoHolds(t, changed, "machines", "dist"); left != nil {
		t.Errorf("a secret of the generation that was undone is left in %s", left)
	}

	write(changed, "one")
	if r := o.run(t, ".", "apply", "--yes", "--timeout", "3m"); r.code != exitDone || !strings.HasSuffix(r.stdout, "done: the cluster runs generation 4\n") {
		t.Fatalf("the mended change: %+v", r)
	}
	if have := file("front2", "text.conf"); have != "text "+changed {
		t.Errorf("front2 has not changed: %s", have)
	}
	if left := whoHolds(t, old, "machines", "dist", "secrets"); left != nil {
		t.Errorf("a secret of the earlier generation is left in %s", left)
	}
}

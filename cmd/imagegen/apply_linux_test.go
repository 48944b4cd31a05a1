package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

const applySpec = `cluster: program
distro: debian12
timezone: UTC
network: {cidr: 10.77.0.0/24}
operators: [10.78.0.0/24]
machines: {provider: exec, program: ./program, hosts: [h1, h2], storage: machines}
roles:
  front: {options: {text: TEXT, rigid: RIGID}, nodes: {front1: 10.77.0.1, front2: 10.77.0.2MORE}}
  back: {nodes: {back1: 10.77.0.11}}
`

const applyRole = `description: a test
distros: {debian12: {packages: [memcached]}}
options:
  text: {default: one, pattern: "[a-z]+", help: a text}
  rigid: {default: one, pattern: "[a-z]+", help: a text}
files:
  - {path: /etc/imagegen/text.conf, template: text.conf, change: restart front.service}
  - {path: /etc/imagegen/rigid.conf, template: rigid.conf}
components:
  - {name: front, kind: service, params: {unit: front.service}}
`

// spec writes the spec with these values.
func writeApplySpec(t *testing.T, text, rigid, more string) {
	t.Helper()
	writeFile(t, "cluster.yaml", strings.NewReplacer("TEXT", text, "RIGID", rigid, "MORE", more).Replace(applySpec))
}

// apply with real agents: in place, with new machines, killed in between, undone, with a node more and less.
func TestApply(t *testing.T) {
	if elsewhere(t) {
		return
	}
	spec := strings.NewReplacer("TEXT", "one", "RIGID", "one", "MORE", "").Replace(applySpec)
	writeRole := func() {
		writeFile(t, "roles/front/text.conf", "text {{.Options.text}}\n")
		writeFile(t, "roles/front/rigid.conf", "rigid {{.Options.rigid}}\n")
	}
	o := startNodesWith(t, spec, map[string]string{"front": applyRole, "back": strings.ReplaceAll(cachyRole, "cachy", "back")}, writeRole)
	if r := o.run(t, ".", "up", "--wait", "--timeout", "2m"); r.code != exitDone {
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
	generation := func() int {
		t.Helper()
		r := o.run(t, ".", "diff", "--json")
		var d clusterDiff
		if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || d.Uncertain != "" {
			t.Fatalf("diff: %v: %+v", err, r)
		}
		return d.Generation
	}
	if r := o.run(t, ".", "apply", "--yes"); r.code != exitDone || r.stdout != "nothing to do: all nodes run what generation 1 gives them\n" {
		t.Fatalf("apply of nothing: %+v", r)
	}

	// In place, one after the other, with the machines that they have; then a third.
	writeApplySpec(t, "two", "one", ", front3: 10.77.0.3")
	before, rendered := everything(t, "secrets"), everything(t, "dist")
	if r := o.run(t, ".", "apply", "--dry-run"); r.code != exitDone || file("front1", "text.conf") != "text one" || generation() != 1 {
		t.Fatalf("dry run: %+v", r)
	} else {
		testkit.Golden(t, filepath.Join(testDir, "testdata/apply.txt"), []byte(r.stdout))
	}
	untouched(t, "secrets", "a dry run", before)
	untouched(t, "dist", "a dry run", rendered)
	if r := o.run(t, ".", "apply"); r.code != exitWrong || !strings.Contains(r.stderr, "there is no terminal: --yes") || generation() != 1 {
		t.Fatalf("without a terminal: %+v", r)
	}
	disks := o.disk(t, "front1") + o.disk(t, "front2") + o.disk(t, "back1")
	if r := o.run(t, ".", "apply", "--yes", "--timeout", "2m"); r.code != exitDone || !strings.HasSuffix(r.stdout, "done: the cluster runs generation 2\n") {
		t.Fatalf("in place: %+v", r)
	}
	o.awaitState(t, ".", string(facts.Ready), "", "front1", "front2", "front3", "back1")
	if file("front1", "text.conf") != "text two" || file("front2", "text.conf") != "text two" || o.disk(t, "front1")+o.disk(t, "front2")+o.disk(t, "back1") != disks || generation() != 2 {
		t.Errorf("in place: %s, %s, generation %d", file("front1", "text.conf"), file("front2", "text.conf"), generation())
	}

	// With new machines, and without the third; killed where the first node has none, and gone on from there.
	writeApplySpec(t, "two", "two", "")
	o.killed(t, "create front1", "apply", "--yes")
	if r := o.run(t, ".", "apply", "--yes", "--timeout", "2m"); r.code != exitDone || !strings.Contains(r.stdout, "  front1: replace: its machine is off") ||
		!strings.Contains(r.stdout, "  front3: remove: the spec no longer has it\n") {
		t.Fatalf("gone on: %+v", r)
	}
	if file("front1", "rigid.conf") != "rigid two" || file("front2", "rigid.conf") != "rigid two" || generation() != 3 {
		t.Errorf("gone on: %s, %s, generation %d", file("front1", "rigid.conf"), file("front2", "rigid.conf"), generation())
	}
	if s := o.awaitState(t, ".", "off", "", "front3"); s["front3"].Build != "removed" {
		t.Errorf("%+v", s["front3"])
	}

	// What does not become ready is undone, as a generation of its own.
	writeApplySpec(t, "two", "broken", "")
	disk := o.disk(t, "front2")
	r := o.run(t, ".", "apply", "--yes")
	if r.code != exitFailed || !strings.Contains(r.stderr, "they may have forgotten a vote: front1 and front2; if nobody else is changing this cluster: --alone") || generation() != 3 {
		t.Fatalf("most voters are new: %+v", r)
	}
	r = o.run(t, ".", "apply", "--yes", "--alone", "--timeout", "15s")
	if r.code != exitFailed || !strings.Contains(r.stderr, "the change is undone: generation 5 has the earlier configuration again, and no other node had changed") {
		t.Fatalf("a broken change: %+v", r)
	}
	o.awaitState(t, ".", string(facts.Ready), "", "front1", "front2", "back1")
	if file("front1", "rigid.conf") != "rigid two" || o.disk(t, "front2") != disk || generation() != 5 {
		t.Errorf("undone: %s, generation %d", file("front1", "rigid.conf"), generation())
	}

	// Who is given up must be a node, and silent.
	writeApplySpec(t, "three", "two", "")
	r = o.run(t, ".", "apply", "--yes", "--without", "back1,front9")
	if r.code != exitFailed || !strings.Contains(r.stderr, "back1 answers, so it cannot be given up: leave out --without back1; there is no node front9 that could be given up") {
		t.Errorf("given up: %+v", r)
	}
}

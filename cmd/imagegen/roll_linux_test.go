package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster/facts"
)

const programSpec = `cluster: program
distro: debian12
timezone: UTC
network: {cidr: 10.77.0.0/24}
operators: [10.78.0.0/24]
machines: {provider: exec, program: ./program, hosts: [h1, h2], storage: STORAGE}
roles:
  front: {nodes: {front1: 10.77.0.1, front2: 10.77.0.2}}
  back: {nodes: {back1: 10.77.0.11, back2: 10.77.0.12}}
`

// lists is how often the program has been asked for a list.
func (o *nodes) lists(t *testing.T) int {
	t.Helper()
	calls, err := os.ReadFile("calls")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(calls), "list\n")
}

// killed runs imagegen until the provider's program is at a step, and kills imagegen there: the program must die with it.
func (o *nodes) killed(t *testing.T, step string, args ...string) {
	t.Helper()
	o.interrupted(t, step, nil, args...)
}

// interrupted is killed that first does something else.
func (o *nodes) interrupted(t *testing.T, step string, meanwhile func(), args ...string) {
	t.Helper()
	writeFile(t, "hold", step)
	cmd := o.command(".", args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	held := func() bool { _, err := os.Stat("held"); return err == nil }
	for end := time.Now().Add(patience); !held(); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("%q never came: %v: %s", step, err, said.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%q never came: %s", step, said.String())
		}
	}
	if meanwhile != nil {
		meanwhile()
	}
	cmd.Process.Kill()
	<-ended
	pid, err := os.ReadFile("held")
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		line, err := os.ReadFile("/proc/" + string(pid) + "/cmdline")
		if len(line) == 0 || errors.Is(err, fs.ErrNotExist) { // a zombie has none
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the provider's program outlives imagegen: %s", line)
		}
	}
	for _, file := range []string{"hold", "held"} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// builds returns NODE STATE BUILD of each node.
func builds(s map[string]nodeStatus) string {
	var all []string
	for _, node := range []string{"front1", "front2", "back1", "back2"} {
		all = append(all, strings.TrimSpace(node+" "+s[node].State+" "+s[node].Build))
	}
	return strings.Join(all, ", ")
}

// disk tells root disks apart.
func (o *nodes) disk(t *testing.T, node string) string {
	t.Helper()
	id, err := os.ReadFile(o.machine(node).path("root/etc/machine-id"))
	if err != nil {
		t.Fatal(err)
	}
	return string(id)
}

// up, replace, roll and down with machines that a program makes, and real agents on them: killed in between, what comes next finishes
// it; and a node that does not become ready stops a roll.
func TestRollThroughAProgram(t *testing.T) {
	if elsewhere(t) {
		return
	}
	spec := strings.Replace(programSpec, "STORAGE", "machines", 1) // the program runs in the current folder
	o := startNodes(t, spec, map[string]string{"front": strings.ReplaceAll(cachyRole, "cachy", "front"), "back": strings.ReplaceAll(cachyRole, "cachy", "back")})
	expect := func(what, want string) {
		t.Helper()
		o.await(t, ".", what+": "+want, func(s map[string]nodeStatus) bool { return builds(s) == want })
	}

	o.killed(t, "created front2", "up")
	if r := o.run(t, ".", "up", "--wait", "--timeout", "2m"); r.code != exitDone || !strings.Contains(r.stdout, "4 nodes ready after ") {
		t.Fatalf("up: %+v", r)
	}
	expect("after up", "front1 ready current, front2 ready current, back1 ready current, back2 ready current")
	s := o.await(t, ".", "hosts", func(map[string]nodeStatus) bool { return true })
	if s["front1"].Host == s["front2"].Host || s["back1"].Host == s["back2"].Host {
		t.Errorf("placed as %+v", s)
	}

	// Nothing is replaced while another of the role is not ready.
	before := o.disk(t, "back2")
	if r := o.run(t, ".", "kill", "back1"); r.code != exitDone {
		t.Fatalf("kill: %+v", r)
	}
	if r := o.run(t, ".", "replace", "back2"); r.code != exitFailed || !strings.Contains(r.stderr, "not replaced: back1: off") || o.disk(t, "back2") != before {
		t.Errorf("replace: %+v", r)
	}
	if r := o.run(t, ".", "start", "back1"); r.code != exitDone {
		t.Fatalf("start: %+v", r)
	}
	o.awaitState(t, ".", string(facts.Ready), "", "back1")
	replaced := func(r result) bool { return r.code == exitDone }
	if r := o.until(t, ".", replaced, "replace", "back2", "--timeout", "2m"); r.code != exitDone || !strings.Contains(r.stderr, "back2: replaced") || o.disk(t, "back2") == before {
		t.Errorf("replace: %+v", r)
	}

	// A roll that is killed wherever a node has no machine, or one that has not been turned on yet.
	image(t, "front", "2")
	expect("a new image", "front1 ready older, front2 ready older, back1 ready current, back2 ready current")
	back := o.disk(t, "back1")
	o.killed(t, "stopped front1", "roll")
	expect("killed with the old machine off", "front1 off unknown, front2 ready older, back1 ready current, back2 ready current")
	o.interrupted(t, "create front1", func() {
		if r := o.run(t, ".", "replace", "back1"); r.code != exitFailed || !strings.Contains(r.stderr, "another imagegen is replacing nodes of cluster program") {
			t.Errorf("replace beside a roll: %+v", r)
		}
	}, "roll")
	expect("killed without a machine", "front1 off, front2 ready older, back1 ready current, back2 ready current")
	o.killed(t, "created front1", "roll")
	o.awaitState(t, ".", "off", "its replacement was interrupted", "front1")
	o.killed(t, "create front2", "roll") // front1 is done, then
	expect("killed at the second", "front1 ready current, front2 off, back1 ready current, back2 ready current")
	if r := o.run(t, ".", "roll", "--timeout", "2m"); r.code != exitDone || r.stdout != "replaced 1 node; 3 already up to date\n" || o.disk(t, "back1") != back {
		t.Fatalf("roll: %+v", r)
	}
	expect("after the roll", "front1 ready current, front2 ready current, back1 ready current, back2 ready current")

	// What was turned off on purpose is not turned on by a roll.
	o.run(t, ".", "kill", "front1")
	if r := o.run(t, ".", "roll", "front"); r.code != exitDone {
		t.Errorf("a roll beside a node that is off: %+v", r)
	}
	expect("a roll beside a node that is off", "front1 off current, front2 ready current, back1 ready current, back2 ready current")
	o.run(t, ".", "start", "front1")

	// The first of the broken image stops the roll; one that is mended goes on with it.
	image(t, "back", "broken 2")
	other := o.disk(t, "back2")
	asked := o.lists(t)
	stopped := func(r result) bool {
		before := asked
		if asked = o.lists(t); asked-before > 12 {
			t.Errorf("the program was run %d times for a list within 10 s of waiting", asked-before)
		}
		return strings.Contains(r.stderr, "1 of 2 nodes not ready")
	}
	r := o.until(t, ".", stopped, "roll", "--timeout", "10s")
	if r.code != exitFailed || !strings.Contains(r.stderr, "imagegen: back2 is not replaced: 1 of 2 nodes not ready within 10s: back1") || o.disk(t, "back2") != other {
		t.Fatalf("roll to a broken image: %+v", r)
	}
	expect("stopped", "front1 ready current, front2 ready current, back1 failed current, back2 ready older")
	image(t, "back", "3")
	if r := o.run(t, ".", "roll", "--timeout", "2m"); r.code != exitDone || r.stdout != "replaced 2 nodes; 2 already up to date\n" {
		t.Fatalf("roll to a mended image: %+v", r)
	}
	expect("mended", "front1 ready current, front2 ready current, back1 ready current, back2 ready current")

	o.killed(t, "stopped front2", "down")
	if r := o.run(t, ".", "down"); r.code != exitDone {
		t.Fatalf("down: %+v", r)
	}
	left, err := filepath.Glob("machines/*")
	spaces, err2 := exec.Command("ip", "netns", "list").Output()
	if err != nil || err2 != nil || left != nil || strings.Contains(string(spaces), switchNS(o.storage())+"-") {
		t.Errorf("left after down: %q, %s; %v, %v", left, spaces, err, err2)
	}
}

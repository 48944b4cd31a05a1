//go:build !windows

package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagegen/internal/testkit"
	"imagegen/machines"
)

const clusterID = "6d1c7ad3-0f50-4cf5-9a0e-3f1c2b9a7e55"

// script returns a provider whose program is a shell script.
func script(t *testing.T, text string) *Provider {
	t.Helper()
	path := filepath.Join(t.TempDir(), "prog")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return New(Config{Program: path, Cluster: "otus", ClusterID: clusterID, Hosts: []string{"h1", "h2"}, Network: "br0", Storage: "default"})
}

var web1 = machines.Machine{
	Cluster: "otus", ClusterID: clusterID, Node: "web1", Role: "web", Host: "h2", CPUs: 1, Memory: 256 << 20, Data: 1 << 30,
	MAC: "02:00:00:00:00:01", IP: "192.168.10.42",
	Image: machines.File{Path: "/dist/web.raw", Identity: "a1"}, Seed: machines.File{Path: "/dist/seeds/web1.iso", Identity: "b2"},
}

// The verb is the only argument, and the request is as documented in docs/exec.md.
func TestRequests(t *testing.T) {
	p := script(t, `printf '%s %s\n' "$#" "$1"; exec cat >&2`)
	var got bytes.Buffer
	var said []string
	p.config.Log = func(line string) { said = append(said, line) }
	ctx := t.Context()
	for _, call := range []func(){
		func() { p.Check(ctx) },
		func() { p.List(ctx) },
		func() { p.Create(ctx, web1) },
		func() { p.Start(ctx, "web1") },
		func() { p.Stop(ctx, "web1") },
		func() { p.Remove(ctx, "web1", false) },
		func() { p.Remove(ctx, "web1", true) },
		func() { p.Console(ctx, io.Discard, "web1", false) },
		func() { p.Console(ctx, io.Discard, "web1", true) },
		func() { p.Purge(ctx) },
	} {
		call()
	}
	for _, line := range said {
		var indented bytes.Buffer
		if err := json.Indent(&indented, []byte(line), "", "  "); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		got.Write(append(indented.Bytes(), '\n'))
	}
	testkit.Golden(t, "testdata/requests.golden", got.Bytes())
	var console bytes.Buffer
	if err := p.Console(ctx, &console, "web1", false); err != nil || console.String() != "1 console\n" {
		t.Errorf("the program's arguments: %q, %v", console.String(), err)
	}
}

// Answers that do not follow docs/exec.md are errors with the program, the verb, the node, and the reason.
func TestAnswers(t *testing.T) {
	for _, c := range []struct{ answer, want string }{
		{``, `web1: its answer: nothing on standard output: {"protocol": 1} is the least`},
		{`{}`, `web1: its answer: the field protocol is missing in {}`},
		{`{"protocol": 2, "new": 1}`, `web1: its answer: it is in version 2 of the protocol, and this imagegen speaks version 1`},
		{`{"protocol": "1"}`, `web1: its answer: not one JSON object: protocol must not be a string, in`},
		{`[]`, `web1: its answer: not one JSON object: not an object but an array, in []`},
		{`{"protocol": 1, "machnies": []}`, `web1: its answer: unknown field "machnies", in`},
		{`{"protocol": 1} {"protocol": 1}`, `web1: its answer: not one JSON object: invalid character '{' after top-level value, in`},
		{`started web1`, `web1: its answer: not one JSON object: invalid character 's' looking for beginning of value, in started web1`},
		{`{"protocol": 1}`, ``},
	} {
		p := script(t, fmt.Sprintf("cat >/dev/null; cat <<'END'\n%s\nEND\n", c.answer))
		checkError(t, c.answer, p.Start(t.Context(), "web1"), c.want, "prog start ")
	}
	for _, c := range []struct{ answer, want string }{
		{`{"protocol": 1}`, `the field machines is missing`},
		{`{"protocol": 1, "machines": null}`, `the field machines is missing`},
		{`{"protocol": 1, "machines": [{"power": "on"}]}`, `machines[0]: the field node is missing`},
		{`{"protocol": 1, "machines": [{"node": "web1", "power": "running"}]}`, `machines[0]: node web1: power is "running", not on, off, unfinished or unknown`},
		{`{"protocol": 1, "machines": [{"node": "web1"}]}`, `machines[0]: node web1: power is "", not on`},
		{`{"protocol": 1, "machines": [{"node": "a", "power": "on"}, {"node": "a", "power": "on"}]}`, `machines[1]: node a is there twice`},
		{`{"protocol": 1, "machines": [{"node": "a\u001b[2J", "power": "on"}]}`, `machines[0]: control characters in ["a\x1b[2J"`},
		{`{"protocol": 1, "machines": [{"node": "a", "power": "on", "since": "yesterday"}]}`, `parsing time`},
		{`{"protocol": 1, "machines": [{"node": 1, "power": "on"}]}`, `machines.node must not be a number`},
		{`{"protocol": 1, "machines": [{"node": "a", "power": "on", "ip": "1"}]}`, `unknown field "ip"`},
	} {
		p := script(t, fmt.Sprintf("cat >/dev/null; cat <<'END'\n%s\nEND\n", c.answer))
		_, err := p.List(t.Context())
		checkError(t, c.answer, err, c.want, "prog list: its answer: ")
	}
	p := script(t, `echo '{"protocol": 1, "machines": [{"node": "b", "power": "on", "host": "h1", "image": "i", "seed": "s",
		"since": "2026-01-31T12:00:00Z"}, {"node": "a", "power": "unfinished"}]}'`)
	list, err := p.List(t.Context())
	want := []machines.State{{Node: "a", Power: machines.Unfinished},
		{Node: "b", Host: "h1", Power: machines.On, Image: "i", Seed: "s", Since: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("list: %v, %v", list, err)
	}
}

func checkError(t *testing.T, what string, err error, want ...string) {
	t.Helper()
	if want[0] == "" {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%s:\ngot  %v\nwant %s", what, err, w)
		}
	}
}

func TestFailures(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{`echo "no space" >&2; exit 1`, "prog stop web1: exit status 1: no space"},
		{`echo progress >&2; printf '\033[31mdisk\a \302\233is full\n\nno newline' >&2; exit 7`, "exit status 7: progress; [31mdisk is full; no newline"},
		{`exit 1`, "prog stop web1: exit status 1, and it said nothing on standard error"},
		{`kill -9 $$`, "prog stop web1: signal: killed"},
		{`echo "usage: check|list" >&2; exit 2`, "prog stop web1: it does not know the verb, or was used wrongly (exit status 2): usage: check|list"},
		{`echo "domain otus-web1 has no mark" >&2; exit 3`, "prog stop web1: does not belong to this cluster: domain otus-web1 has no mark"},
		{`i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo line $i >&2; done; exit 1`, "exit status 1: line 21; line 22"},
		{`head -c 100000 /dev/zero | tr '\0' x >&2; exit 1`, strings.Repeat("x", maxLine) + "…"},
	} {
		err := script(t, c.script).Stop(t.Context(), "web1")
		checkError(t, c.script, err, c.want)
		if errors.Is(err, machines.ErrForeign) != strings.Contains(c.script, "exit 3") {
			t.Errorf("%s: ErrForeign: %v", c.script, err)
		}
		if err != nil && len(err.Error()) > (maxReason+2)*maxLine {
			t.Errorf("%s: the error has %d bytes", c.script, len(err.Error()))
		}
	}
	p := New(Config{Program: filepath.Join(t.TempDir(), "prog")})
	checkError(t, "missing program", p.Stop(t.Context(), "web1"), "prog stop web1: the program cannot be run: ", "no such file or directory")
	checkError(t, "missing program", p.Check(t.Context()), "machines.program of the spec names it")
	checkError(t, "too much", script(t, `exec yes`).Stop(t.Context(), "web1"), "prog stop web1: it wrote more than 8 MiB to standard output")
	checkError(t, "too much", script(t, `exec yes`).Console(t.Context(), io.Discard, "web1", false), "prog console web1: it wrote more than 64 MiB")
	if err := script(t, `exit 2`).Console(t.Context(), io.Discard, "web1", false); !errors.Is(err, machines.ErrNoConsole) {
		t.Errorf("a program without consoles: %v", err)
	}
}

func TestConsoleHasNoControlCharacters(t *testing.T) {
	p := script(t, `printf '\033[2Jlogin:\r\n\tna'; sleep 0.1; printf '\303'; sleep 0.1; printf '\257ve\000\n\377'`)
	var got bytes.Buffer
	if err := p.Console(t.Context(), &got, "web1", false); err != nil || got.String() != "[2Jlogin:\n\tnaïve\n\uFFFD" {
		t.Errorf("%q, %v", got.String(), err)
	}
}

// Console output is passed on as it arrives. Following it ends with the context, without an error.
func TestConsoleFollows(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- script(t, `echo booting; exec sleep 1000`).Console(ctx, w, "web1", true) }()
	line := make([]byte, len("booting\n"))
	if _, err := io.ReadFull(r, line); err != nil || string(line) != "booting\n" {
		t.Fatalf("%q, %v", line, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// On an interruption, all processes started by the program end within two seconds, even those that ignore SIGTERM.
func TestInterruption(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	p := script(t, fmt.Sprintf(`trap '' TERM
sh -c 'trap "" TERM; while :; do sleep 0.1; done' &
echo $$ $! >%[1]s.new; mv %[1]s.new %[1]s
wait; while :; do sleep 0.1; done`, pids))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.Create(ctx, web1) }()
	var data []byte
	testkit.Until(t, time.Minute, "the program", func() bool {
		data, _ = os.ReadFile(pids)
		return len(data) > 0
	})
	cancel()
	var err error
	select {
	case err = <-done:
	case <-time.After(time.Minute): // the program never ends by itself
		t.Fatal("it does not end")
	}
	checkError(t, "interrupted", err, "prog create web1: context canceled")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for pid := range strings.FieldsSeq(string(data)) {
		testkit.Until(t, 30*time.Second, "the end of process "+pid, func() bool { return !alive(t, pid) })
	}
}

// alive reports whether a process runs. A zombie does not.
func alive(t *testing.T, pid string) bool {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if syscall.Kill(n, 0) != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// If imagegen is killed, its program ends too: the next imagegen must not find it still running.
func TestDeathOfImagegen(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: elsewhere no program learns of its parent's death")
	}
	pid := filepath.Join(t.TempDir(), "pid")
	if program := os.Getenv("IMAGEGEN_EXEC_ORPHAN"); program != "" {
		New(Config{Program: program}).Stop(t.Context(), "web1")
		return
	}
	p := script(t, fmt.Sprintf(`echo $$ >%[1]s.new; mv %[1]s.new %[1]s; exec sleep 1000`, pid))
	parent := osexec.Command(os.Args[0], "-test.run=^TestDeathOfImagegen$")
	parent.Env = append(os.Environ(), "IMAGEGEN_EXEC_ORPHAN="+p.config.Program)
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var data []byte
	testkit.Until(t, time.Minute, "the program", func() bool {
		data, _ = os.ReadFile(pid)
		return len(data) > 0
	})
	parent.Process.Kill()
	parent.Wait()
	testkit.Until(t, 30*time.Second, "the program's end", func() bool { return !alive(t, strings.TrimSpace(string(data))) })
}

// Background processes of a program, such as a shared SSH connection, neither delay nor fail a verb.
func TestBackgroundKeepsOutputOpen(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	p := script(t, fmt.Sprintf(`sleep 1000 & echo $! >%s; echo '{"protocol": 1}'`, pid))
	began := time.Now()
	err := p.Stop(t.Context(), "web1")
	took := time.Since(began)
	data, _ := os.ReadFile(pid)
	n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	if n <= 0 || syscall.Kill(n, syscall.SIGKILL) != nil {
		t.Errorf("the program in the background, %q, has not survived", data)
	}
	if err != nil || took > 5*time.Minute {
		t.Errorf("after %s: %v", took, err)
	}
}

func TestProgressIsLogged(t *testing.T) {
	p := script(t, `echo "uploading the image" >&2; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i >&2; done; echo '{"protocol": 1}'`)
	var mu sync.Mutex
	var said []string
	p.config.Log = func(line string) { mu.Lock(); said = append(said, line); mu.Unlock() }
	if err := p.Stop(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	if len(said) != maxLogged || said[0] != "uploading the image" {
		t.Errorf("%d lines, the first %q", len(said), said[0])
	}
}

// Machines on a host that does not answer are unknown, not gone. Listing writes nothing.
func TestUnreachableHost(t *testing.T) {
	dir := t.TempDir()
	p := script(t, fmt.Sprintf(`case $1 in list) cat %s/answer;; *) echo '{"protocol": 1}';; esac`, dir))
	answer := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "answer"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "placed.json")
	again := func() *Provider { c := p.config; c.Record = file; return New(c) }
	create := func(node, host string) {
		m := web1
		m.Node, m.Host = node, host
		if err := again().Create(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want ...machines.State) {
		t.Helper()
		list, err := again().List(t.Context())
		if err != nil || !slices.Equal(list, want) {
			t.Errorf("got %v, %v, want %v", list, err, want)
		}
	}
	answer(`{"protocol": 1, "machines": [], "unreachable": ["h1"]}`)
	expect()
	if _, err := os.Stat(file); err == nil {
		t.Error("a question has written a file")
	}
	create("web1", "h1")
	create("web2", "h2")
	answer(`{"protocol": 1, "machines": [{"node": "web2", "host": "h2", "power": "on"}], "unreachable": ["h1"]}`)
	expect(machines.State{Node: "web1", Host: "h1", Power: machines.Unknown}, machines.State{Node: "web2", Host: "h2", Power: machines.On})
	answer(`{"protocol": 1, "machines": [{"node": "web2", "host": "h2", "power": "on"}]}`)
	expect(machines.State{Node: "web2", Host: "h2", Power: machines.On})
	for _, n := range []string{"web1", "web2", "web2"} {
		if err := again().Remove(t.Context(), n, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the file is left")
	}
}

// Seeds are secret: neither their paths nor anything else about a machine is in arguments or the environment.
func TestNothingInArgumentsOrEnvironment(t *testing.T) {
	p := script(t, `tr '\0' '\n' </proc/$$/cmdline >&2; env >&2; exit 1`)
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		t.Skip("needs /proc")
	}
	var said []string
	p.config.Log = func(line string) { said = append(said, line) }
	p.Create(t.Context(), web1)
	if all := strings.Join(said, "\n"); !strings.Contains(all, "create") || strings.Contains(all, "web1") || strings.Contains(all, clusterID) {
		t.Errorf("arguments and environment:\n%s", all)
	}
}

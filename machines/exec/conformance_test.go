//go:build !windows

package exec

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imagegen/internal/testkit"
	"imagegen/machines"
	"imagegen/machines/conformance"
)

// hook wraps a Python program: before each change that the program makes, it asks the test, and exits if the test says
// so. Changes are detected with Python's audit events.
const hook = `#!/usr/bin/env python3
import os, runpy, signal, socket, sys

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
VERBS = {"define", "undefine", "start", "destroy", "autostart", "vol-create", "vol-delete", "vol-upload"}

def step(event, args):
    change = event in CHANGES or event == "open" and isinstance(args[1], str) and "w" in args[1]
    if event == "subprocess.Popen" and VERBS & set(args[1]):
        change = True
    if not change:
        return
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(%q)
        if s.recv(1) != b"y":
            os.kill(os.getpid(), signal.SIGKILL)

sys.dont_write_bytecode = True
sys.argv[0] = %q
sys.addaudithook(step)
runpy.run_path(sys.argv[0], run_name="__main__")
`

// stepped returns a program that runs a Python program and calls step before each change that it makes.
func stepped(t *testing.T, program string, step func() error) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "exec") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "step"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			if step() == nil {
				c.Write([]byte("y"))
			}
			c.Close()
		}
	}()
	path := filepath.Join(dir, "prog")
	if err := os.WriteFile(path, fmt.Appendf(nil, hook, filepath.Join(dir, "step"), program), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func needsPython(t *testing.T) {
	t.Helper()
	if _, err := osexec.LookPath("python3"); err != nil {
		t.Skip("needs python3 (package python3): the program under test is written in it")
	}
}

// documented writes the program in docs/exec.md to a file.
func documented(t *testing.T) string {
	t.Helper()
	needsPython(t)
	page, err := os.ReadFile("../../docs/exec.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)\n```python\n(.*?)\n```\n").FindSubmatch(page)
	if found == nil {
		t.Fatal("docs/exec.md has lost its program")
	}
	path := filepath.Join(t.TempDir(), "folders")
	if err := os.WriteFile(path, append(found[1], '\n'), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// folders tests the documented program, whose machines are folders.
type folders struct {
	program, dir string
}

func (f folders) config(program string) Config {
	return Config{Program: program, Cluster: "otus", ClusterID: clusterID, Hosts: []string{"h1"}, Storage: filepath.Join(f.dir, "storage")}
}

func (f folders) Provider(t *testing.T, step func() error) machines.Provider {
	return New(f.config(stepped(t, f.program, step)))
}

func (f folders) Machine(node string, version int) machines.Machine {
	seed := filepath.Join(f.dir, fmt.Sprint("seed", version))
	os.WriteFile(seed, []byte("secret"), 0o600) // without its seed, the creation fails
	return machines.Machine{Cluster: "otus", ClusterID: clusterID, Node: node, Host: "h1", Data: 1,
		Image: machines.File{Path: "/image", Identity: fmt.Sprint("image", version)}, Seed: machines.File{Path: seed, Identity: fmt.Sprint("seed", version)}}
}

func (f folders) path(node, part string) string {
	return filepath.Join(f.dir, "storage", "otus-"+node, part)
}

func (f folders) data(node string) string {
	return filepath.Join(f.dir, "storage", "otus-"+node+"."+clusterID+".data")
}

func (f folders) Foreign(t *testing.T, node string) {
	testkit.OK(t, os.Mkdir(f.path(node, ""), 0o755))
	testkit.OK(t, os.WriteFile(f.path(node, "machine.json"), []byte(`{"cluster": "another"}`), 0o644))
	testkit.OK(t, os.WriteFile(f.path(node, "on"), nil, 0o644))
}

func (f folders) ForeignIntact(t *testing.T, node string) {
	data, err := os.ReadFile(f.path(node, "machine.json"))
	if _, gone := os.Stat(f.path(node, "on")); err != nil || gone != nil || string(data) != `{"cluster": "another"}` {
		t.Errorf("the foreign machine: %q, %v, %v", data, err, gone)
	}
}

func (f folders) Vanish(t *testing.T, node string) { testkit.OK(t, os.RemoveAll(f.path(node, ""))) }

func (f folders) WriteData(t *testing.T, node, text string) {
	testkit.OK(t, os.WriteFile(f.data(node), []byte(text), 0o600))
}

func (f folders) ReadData(t *testing.T, node string) string {
	data, err := os.ReadFile(f.data(node))
	testkit.OK(t, err)
	return string(data)
}

func (f folders) Leftovers(t *testing.T) []string {
	left, err := filepath.Glob(filepath.Join(f.dir, "storage", "*"))
	testkit.OK(t, err)
	hidden, err := filepath.Glob(filepath.Join(f.dir, "storage", ".*"))
	testkit.OK(t, err)
	return append(left, hidden...)
}

// The program in docs/exec.md obeys all rules of a provider, even when killed before any of its changes.
func TestDocumentedProgram(t *testing.T) {
	program := documented(t)
	conformance.Run(t, func(t *testing.T) conformance.Backend {
		f := folders{program, t.TempDir()}
		testkit.OK(t, os.Mkdir(filepath.Join(f.dir, "storage"), 0o755))
		return f
	})
}

// The suite sees every change of a Python program: creation has as many steps as changes.
func TestStepsAreSeen(t *testing.T) {
	f := folders{documented(t), t.TempDir()}
	testkit.OK(t, os.Mkdir(filepath.Join(f.dir, "storage"), 0o755))
	steps := 0
	testkit.OK(t, f.Provider(t, func() error { steps++; return nil }).Create(t.Context(), f.Machine("web1", 0)))
	if steps != 5 { // folder, seed, machine.json, data disk, rename
		t.Errorf("%d steps", steps)
	}
	p := New(f.config(f.program))
	if err := p.Console(t.Context(), io.Discard, "web1", false); err != machines.ErrNoConsole {
		t.Errorf("console: %v", err)
	}
	testkit.OK(t, os.RemoveAll(filepath.Join(f.dir, "storage")))
	checkError(t, "check", p.Check(t.Context()), "folders check: exit status 1: machines.storage is '"+f.dir+"/storage', which is no folder")
}

// docs/exec.md documents every verb, field and exit code.
func TestDocumentationIsComplete(t *testing.T) {
	page, err := os.ReadFile("../../docs/exec.md")
	testkit.OK(t, err)
	for _, verb := range []string{verbCheck, verbList, verbCreate, verbStart, verbStop, verbRemove, verbConsole, verbPurge} {
		if !bytes.Contains(page, []byte("\n| `"+verb+"` | ")) {
			t.Errorf("the verb %s is missing", verb)
		}
	}
	for _, field := range []string{"protocol", "cluster.name", "cluster.id", "hosts", "network", "storage", "node", "data", "follow",
		"machine.node", "machine.role", "machine.host", "machine.cpus", "machine.memory", "machine.data", "machine.mac", "machine.ip",
		"machine.image.path", "machine.image.identity", "machine.seed.path", "machine.seed.identity",
		"machines", "machines[].node", "machines[].power", "machines[].host", "machines[].image", "machines[].seed", "machines[].since", "unreachable"} {
		if !regexp.MustCompile("\n\\|[^|]*`" + regexp.QuoteMeta(field) + "`[^|]*\\|").Match(page) {
			t.Errorf("the field %s is missing", field)
		}
	}
	for _, code := range []int{0, 1, exitUnknownVerb, exitForeign} {
		if !bytes.Contains(page, fmt.Appendf(nil, "\n| %d | ", code)) {
			t.Errorf("the exit code %d is missing", code)
		}
	}
	golden, err := os.ReadFile("testdata/requests.golden")
	testkit.OK(t, err)
	for _, key := range regexp.MustCompile(`"([a-z]+)":`).FindAllSubmatch(golden, -1) {
		if !regexp.MustCompile("`([a-z.]+\\.)?" + string(key[1]) + "[`.]").Match(page) {
			t.Errorf("the field %s of a request is missing", key[1])
		}
	}
}

// The included programs compile, and reject unknown verbs.
func TestShippedPrograms(t *testing.T) {
	needsPython(t)
	for _, program := range []string{"libvirt", "proxmox"} {
		path := "../../examples/" + program
		out, err := osexec.Command("python3", "-c", `import sys; compile(open(sys.argv[1]).read(), sys.argv[1], "exec")`, path).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", program, err, out)
			continue
		}
		cmd := osexec.Command(path, "reboot")
		out, _ = cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != exitUnknownVerb || !strings.Contains(string(out), "usage: ") {
			t.Errorf("%s reboot: %v: %s", program, cmd.ProcessState, out)
		}
		cmd = osexec.Command(path, "list")
		cmd.Stdin = strings.NewReader(`{"protocol": 2}`)
		out, _ = cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "protocol 1") {
			t.Errorf("%s list in protocol 2: %v: %s", program, cmd.ProcessState, out)
		}
	}
}

package main

import (
	"encoding/json"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster"
)

// withProgram changes to a folder with a cluster of five nodes, its seeds, fake images, and the program of docs/exec.md
// as its provider.
func withProgram(t *testing.T) (specText string) {
	t.Helper()
	if _, err := osexec.LookPath("python3"); err != nil {
		t.Skip("needs python3 (package python3): the program that stands for a user's is written in it")
	}
	page, err := os.ReadFile("../../docs/exec.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)\n```python\n(.*?)\n```\n").FindSubmatch(page)
	if program == nil {
		t.Fatal("docs/exec.md has lost its program")
	}
	inNewFolder(t)
	storage, err := filepath.Abs("storage")
	if err != nil {
		t.Fatal(err)
	}
	specText = `cluster: otus
distro: debian12
network: {cidr: 192.168.10.0/24}
machines: {provider: exec, program: ./folders, hosts: [h1, h2, h3], storage: ` + storage + `}
roles:
  web:
    nodes:
      web1: 192.168.10.42
      web2: 192.168.10.43
  glusterfs: {nodes: {glusterfs1: 192.168.10.44, glusterfs2: 192.168.10.45, glusterfs3: 192.168.10.46}}
`
	for _, dir := range []string{"storage", "dist/images"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, text string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("folders", string(program[1])+"\n", 0o755)
	write("cluster.yaml", specText, 0o644)
	for role := range strings.FieldsSeq("web glusterfs") {
		write("dist/images/"+role+".raw", "image", 0o644)
		write("dist/images/"+role+".json", `{"identity": "first of `+role+`"}`, 0o644)
	}
	done(t, "seed")
	return specText
}

// machine is the state that the program of docs/exec.md keeps of a machine.
type machine struct{ Node, Host, Image, Seed string }

func readMachine(t *testing.T, node string) (m machine, on bool) {
	t.Helper()
	data, err := os.ReadFile("storage/otus-" + node + "/machine.json")
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = os.Stat("storage/otus-" + node + "/on")
	return m, err == nil
}

// The whole life of a cluster's machines with an exec provider.
func TestMachinesByAProgram(t *testing.T) {
	withProgram(t)
	if out := imagegen("up"); out.code != exitDone || !strings.Contains(out.stdout, "5 nodes started") {
		t.Fatalf("up: %+v", out)
	}
	hosts := map[string]int{}
	gluster := []string{}
	e := readExpected(t)
	for _, n := range e.Nodes {
		m, on := readMachine(t, n.Node)
		if !on || m.Image != "first of "+n.Role || m.Seed != n.Seed {
			t.Errorf("%s: %+v, on: %v; expected: %+v", n.Node, m, on, n)
		}
		hosts[m.Host]++
		if n.Role == "glusterfs" {
			gluster = append(gluster, m.Host)
		}
	}
	if len(hosts) != 3 || slices.Max([]int{hosts["h1"], hosts["h2"], hosts["h3"]}) > 2 {
		t.Errorf("placed on %v", hosts)
	}
	if slices.Sort(gluster); !slices.Equal(gluster, []string{"h1", "h2", "h3"}) {
		t.Errorf("glusterfs is on %v", gluster)
	}
	if out := imagegen("up", "web1"); out.code != exitDone || !strings.Contains(out.stderr, "web1 is on already") {
		t.Errorf("up again: %+v", out)
	}
	if out := done(t, "kill", "web1", "glusterfs2"); out != "off: web1, glusterfs2\n" {
		t.Errorf("kill: %s", out)
	}
	for _, node := range []string{"web1", "glusterfs2"} {
		if _, on := readMachine(t, node); on {
			t.Errorf("%s is still on", node)
		}
	}
	if out := imagegen("start", "web1"); out.code != exitDone || !strings.Contains(out.stderr, "web1 is on") {
		t.Errorf("start: %+v", out)
	}
	if _, on := readMachine(t, "web1"); !on {
		t.Error("web1 is still off")
	}
	done(t, "down")
	left, err := os.ReadDir("storage")
	if err != nil || len(left) > 0 {
		t.Errorf("left after down: %v, %v", left, err)
	}
	if out := imagegen("start", "web1"); out.code != exitFailed || !strings.Contains(out.stderr, "web1 has no machine: imagegen up web1 makes it") {
		t.Errorf("start without a machine: %+v", out)
	}
}

// A node that was removed from the spec can be stopped by name; until then its machine stays where it is.
func TestMachinesOfRemovedNodes(t *testing.T) {
	text := withProgram(t)
	if out := imagegen("up", "web1", "web2"); out.code != exitDone {
		t.Fatalf("up: %+v", out)
	}
	before, _ := readMachine(t, "web1")
	if err := os.WriteFile("cluster.yaml", []byte(regexp.MustCompile(`(?m)^ *web2: .*\n`).ReplaceAllString(text, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	done(t, "kill", "web2")
	if _, on := readMachine(t, "web2"); on {
		t.Error("web2 is still on")
	}
	if out := done(t, "down", "web2"); !strings.Contains(out, "web2 is gone: removed its disks") {
		t.Errorf("down web2: %s", out)
	}
	if _, err := os.Stat("storage/otus-web2"); err == nil {
		t.Error("the machine of web2 is still there")
	}
	if after, on := readMachine(t, "web1"); !on || after != before {
		t.Errorf("web1 was %+v and is %+v, on: %v", before, after, on)
	}
	if out := imagegen("kill", "web2"); out.code != exitWrong || !strings.Contains(out.stderr, "has no node web2") {
		t.Errorf("kill web2: %+v", out)
	}
}

// Machines are not made from files that were not built from this spec.
func TestMachinesOfAnotherBuild(t *testing.T) {
	text := withProgram(t)
	if err := os.Remove("dist/images/web.raw"); err != nil {
		t.Fatal(err)
	}
	if out := imagegen("up", "web1"); out.code != exitFailed || !strings.Contains(out.stderr, "not there yet: dist/images/web.raw: imagegen build") {
		t.Errorf("without an image: %+v", out)
	}
	if err := os.WriteFile("cluster.yaml", []byte(strings.Replace(text, "glusterfs1: 192.168.10.44", "glusterfs1: 192.168.10.69", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := imagegen("up", "glusterfs1"); out.code != exitFailed || !strings.Contains(out.stderr, "dist/seeds/glusterfs1.iso is not of this spec: imagegen build") {
		t.Errorf("with an old seed: %+v", out)
	}
	if left, _ := os.ReadDir("storage"); len(left) > 0 {
		t.Errorf("made: %v", left)
	}
}

// With provider none, and with an unsupported provider, commands say so and do nothing.
func TestNoMachines(t *testing.T) {
	withProgram(t)
	for _, line := range []string{"up --provider none", "kill --provider none web1", "start web1 --provider none", "down --provider none"} {
		r := imagegen(strings.Fields(line)...)
		if r.code != exitWrong || !strings.Contains(r.stderr, strings.Fields(line)[0]+" creates no machines with provider none") {
			t.Errorf("%s: %+v", line, r)
		}
	}
	if r := imagegen("up", "--provider", "incsu"); r.code != exitWrong || !strings.Contains(r.stderr, "did you mean incus?") {
		t.Errorf("%+v", r)
	}
	if r := imagegen("up", "--site", "127.0.0.1:1"); r.code != exitWrong || !strings.Contains(r.stderr, "--site") {
		t.Errorf("%+v", r)
	}
}

// Every registered provider is allowed in a spec, and none overrides the lab's.
func TestProvidersAreKnown(t *testing.T) {
	for name := range providers {
		if !slices.Contains(cluster.Providers, name) || inLab(name) || name == cluster.NoMachines {
			t.Errorf("provider %s", name)
		}
	}
	for name := range labProviders {
		if !slices.Contains(cluster.Providers, name) {
			t.Errorf("provider %s", name)
		}
	}
}

// status shows hosts and the provider's knowledge; if the provider cannot be asked, it says so and asks only the
// agents.
func TestStatusOfMachines(t *testing.T) {
	withProgram(t)
	if out := imagegen("up", "web1", "glusterfs1"); out.code != exitDone {
		t.Fatalf("up: %+v", out)
	}
	done(t, "kill", "glusterfs1")
	if err := os.WriteFile("dist/images/glusterfs.json", []byte(`{"identity": "second"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	var status statusJSON
	if err := json.Unmarshal([]byte(done(t, "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	for _, n := range status.Nodes {
		got := strings.Join([]string{n.Power, n.State, n.Build}, " ")
		want := map[string]string{"web1": "on silent current", "glusterfs1": "off off older"}[n.Node]
		if want == "" {
			want = "off off "
		}
		if made := want != "off off "; got != want || (n.Host != "") != made {
			t.Errorf("%+v, want %s", n, want)
		}
	}
	if out := done(t, "status"); !strings.Contains(out, "HOST") || !regexp.MustCompile(`(?m)^glusterfs1 +glusterfs +192\.168\.10\.44 +h[123] +off `).MatchString(out) {
		t.Errorf("status:\n%s", out)
	}
	if err := os.Remove("folders"); err != nil {
		t.Fatal(err)
	}
	out := imagegen("status")
	if out.code != exitFailed || !strings.Contains(out.stderr, "what the nodes run on is not known: ") || !strings.Contains(out.stderr, "no node of cluster otus can be asked") {
		t.Errorf("without the program: %+v", out)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

// asImagegen makes the test binary act as imagegen.
const asImagegen = "IMAGEGEN_TEST_AS_PROGRAM"

// testPrograms are other programs that an environment variable makes of the test program. They do not return.
var testPrograms = map[string]func(){}

// testDir is this package's folder.
var testDir string

// The nodes in the tests' specs do not exist. Agents at their addresses on the real network must not be asked.
func TestMain(m *testing.M) {
	for name, program := range testPrograms {
		if os.Getenv(name) != "" {
			program()
		}
	}
	if os.Getenv(asImagegen) != "" {
		main()
	}
	testDir, _ = os.Getwd()
	dialNode = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("no route to host")}
	}
	os.Exit(m.Run())
}

// result is the outcome of a run.
type result struct {
	code           int
	stdout, stderr string
}

func imagegen(args ...string) result {
	var out, errs bytes.Buffer
	code := run(context.Background(), append([]string{"imagegen"}, args...), strings.NewReader(""), &out, &errs)
	return result{code, out.String(), errs.String()}
}

// done runs a command that must succeed.
func done(t *testing.T, args ...string) string {
	t.Helper()
	r := imagegen(args...)
	if r.code != exitDone || r.stderr != "" {
		t.Fatalf("imagegen %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// inNewFolder changes to a new empty folder.
func inNewFolder(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
}

// abs makes a golden file's path absolute.
func abs(t *testing.T, path string) string {
	t.Helper()
	a, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestMistakes: one message on standard error, exit code 2, and nothing written.
func TestMistakes(t *testing.T) {
	want := abs(t, "testdata/mistakes.txt")
	inNewFolder(t)
	done(t, "init", ".")
	before := files(t, ".")
	var got bytes.Buffer
	for _, line := range []string{
		"sed", "frobnicate", "stop", "stat", "help nope",
		"init a b", "init --distro gentoo", "init --distro",
		"validate web1", "validate --jso", "validate -f nowhere.yaml",
		"seed web9", "seed web1 web1", "seed --out", "seed web1 --prnt",
		"build webb", "build web web", "build --jobs 0", "build --jobs many", "build --builder lxc", "build --time-limit 0s",
		"up web9", "up --site 8080", "up --timeout soon", "up --timeout 5", "up --timeout 0s", "roll --timeout -5m", "status --timeout 0 --wait",
		"decide", "decide --without web1", "decide galera", "decide galera --without web9",
		"status web1", "logs", "logs web1 web2", "logs web9 -F",
		"exec", "exec web1", "exec web1 ls", "exec web1 ls -l", "exec web9 -- ls", "exec -- web1 ls",
		"kill", "kill web9", "start", "start web9", "down web1",
	} {
		r := imagegen(strings.Fields(line)...)
		if r.code != exitWrong {
			t.Errorf("imagegen %s: exit code %d, want %d", line, r.code, exitWrong)
		}
		if r.stdout != "" {
			t.Errorf("imagegen %s: standard output has %q", line, r.stdout)
		}
		if n := strings.Count(r.stderr, "\n"); n != 1 {
			t.Errorf("imagegen %s: %d lines on standard error", line, n)
		}
		fmt.Fprintf(&got, "$ imagegen %s\n%s", line, r.stderr)
	}
	testkit.Golden(t, want, got.Bytes())
	if after := files(t, "."); !slices.Equal(before, after) {
		t.Errorf("a mistake wrote files; there are now: %v", after)
	}
}

// TestDocs: docs/commands.md is the output of the commands' help.
func TestDocs(t *testing.T) {
	var doc bytes.Buffer
	doc.WriteString("# Commands\n\nWhat `imagegen help COMMAND` prints. `go test ./cmd/imagegen -update` writes this page.\n")
	page := func(title string, args ...string) {
		fmt.Fprintf(&doc, "\n## %s\n\n```\n%s\n```\n", title, strings.TrimSpace(done(t, args...)))
	}
	page("imagegen", "help")
	for _, c := range newApp().Commands {
		if c.Hidden {
			continue
		}
		page("imagegen "+c.Name, "help", c.Name)
	}
	testkit.Golden(t, "../../docs/commands.md", doc.Bytes())
}

func TestInit(t *testing.T) {
	inNewFolder(t)
	out := done(t, "init", "--distro", "debian12", "some/where")
	path := filepath.Join("some", "where", "cluster.yaml")
	if !strings.Contains(out, "wrote "+path) || !strings.Contains(out, "imagegen build -f "+path) {
		t.Errorf("init says %q", out)
	}
	if err := os.WriteFile(path, []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := imagegen("init", "some/where"); r.code != exitFailed || r.stderr != "imagegen: write the spec: "+path+" already exists and is never overwritten\n" {
		t.Errorf("a second init: %+v", r)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "mine\n" {
		t.Errorf("a second init left %q, %v", data, err)
	}
	if r := imagegen("init", path); r.code != exitFailed || !strings.HasPrefix(r.stderr, "imagegen: make the folder of the spec: ") {
		t.Errorf("init into a file: %+v", r)
	}
	if r := imagegen("init", "-"); r.code != exitWrong || !strings.Contains(r.stderr, "./-") {
		t.Errorf("init -: %+v", r)
	}
	if _, err := os.Lstat("-"); err == nil {
		t.Error("init - made a folder of that name")
	}
	for _, distro := range []string{"centos7", "debian12"} {
		done(t, "init", "--distro", distro, distro)
		done(t, "validate", "-f", distro+"/cluster.yaml")
	}
}

// Vagrant needs boxes and a Vagrantfile, which a plain build does not write.
func TestVirtualBoxPageBuildsBoxes(t *testing.T) {
	page, err := os.ReadFile("../../docs/virtualbox.md")
	if err != nil {
		t.Fatal(err)
	}
	builds := 0
	for line := range strings.Lines(string(page)) {
		if rest, is := strings.CutPrefix(line, "imagegen build"); is {
			builds++
			if !strings.Contains(rest, "--format box") {
				t.Errorf("docs/virtualbox.md builds no boxes: %s", line)
			}
		}
	}
	if builds == 0 {
		t.Error("docs/virtualbox.md builds nothing")
	}
}

func TestValidate(t *testing.T) {
	inNewFolder(t)
	done(t, "init", "--network", "192.168.56.0/24", "elsewhere")
	if out := done(t, "validate", "-f", "elsewhere/cluster.yaml"); out != "elsewhere/cluster.yaml: 17 nodes in 7 roles on debian12, no errors\n" {
		t.Errorf("validate says %q", out)
	}
	os.RemoveAll("elsewhere")
	done(t, "init")
	// A network that VirtualBox does not allow by default is a note, not an error.
	if out := done(t, "validate"); !strings.HasPrefix(out, "cluster.yaml: 17 nodes in 7 roles on debian12, no errors\nnote: ") || !strings.Contains(out, "\n    * 192.168.10.0/24 192.168.56.0/21\n") {
		t.Errorf("validate says %q", out)
	}
	if left := files(t, "."); !slices.Equal(left, []string{"cluster.yaml"}) {
		t.Errorf("validate wrote %v", left)
	}

	spec, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Replace(spec, []byte("192.168.10.42"), []byte("192.168.11.42"), 1)
	broken = bytes.Replace(broken, []byte("192.168.10.43"), []byte("192.168.10.40"), 1)
	if err := os.WriteFile("broken.yaml", broken, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"validate", "seed", "build", "up", "down", "status"} {
		r := imagegen(command, "-f", "broken.yaml")
		lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
		if r.code != exitWrong || r.stdout != "" || len(lines) != 3 || lines[2] != "imagegen: 2 errors in the spec or its roles" ||
			!regexp.MustCompile(`^broken\.yaml:\d+:\d+: roles\.web\.nodes\.web1: 192\.168\.11\.42 `).MatchString(lines[0]) {
			t.Errorf("%s of a broken spec: %+v", command, r)
		}
	}
	r := imagegen("validate", "-f", "broken.yaml", "--json")
	var v validation
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatal(err)
	}
	if r.code != exitWrong || r.stderr != "" || v.Valid || len(v.Problems) != 2 || v.Problems[0].Path != "roles.web.nodes.web1" || v.Problems[0].Line == 0 {
		t.Errorf("validate --json: %+v", r)
	}
	if err := json.Unmarshal([]byte(done(t, "validate", "--json")), &v); err != nil || !v.Valid || len(v.Problems) != 0 {
		t.Errorf("validate --json of a good spec: %+v, %v", v, err)
	}
	if left := files(t, "."); len(left) != 2 {
		t.Errorf("a broken spec left %v", left)
	}
}

// TestBrokenRole: a template that fails only for some nodes is found before anything is written.
func TestBrokenRole(t *testing.T) {
	inNewFolder(t)
	for name, text := range map[string]string{
		"cluster.yaml":           "cluster: c\ndistro: debian12\ntimezone: UTC\nnetwork: {cidr: 10.0.0.0/24}\nroles:\n  cachy:\n    nodes: {cachy1: 10.0.0.1, cachy2: 10.0.0.2}\n",
		"roles/cachy/role.yaml":  "description: a test\ndistros: {debian12: {packages: [memcached]}}\nfiles:\n  - {path: /etc/cachy, template: cachy.conf}\n",
		"roles/cachy/cachy.conf": "{{if eq .Node.Name \"cachy2\"}}{{(index .Cluster.Roles 7).Name}}{{end}}\n",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := imagegen("validate")
	if r.code != exitWrong || !strings.Contains(r.stderr, "cachy2") || !strings.Contains(r.stderr, "cachy.conf:1:") {
		t.Errorf("validate: %+v", r)
	}
	if left := files(t, "."); len(left) != 3 {
		t.Errorf("left: %v", left)
	}
}

func TestSeed(t *testing.T) {
	inNewFolder(t)
	done(t, "init", "c")
	seed := func(args ...string) string {
		return done(t, append([]string{"seed", "-f", "c/cluster.yaml"}, args...)...)
	}

	if out := seed(); out != "c/dist/seeds: wrote 17 seeds\n" {
		t.Errorf("seed says %q", out)
	}
	isos, err := filepath.Glob("c/dist/seeds/*")
	if err != nil || len(isos) != 17 {
		t.Fatalf("%v, %v", isos, err)
	}
	before := map[string]fs.FileInfo{}
	for _, path := range isos {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		before[path] = info
	}
	if out := seed(); out != "c/dist/seeds: 17 seeds, up to date\n" {
		t.Errorf("a second seed says %q", out)
	}
	for path, was := range before {
		if is, err := os.Stat(path); err != nil || !os.SameFile(is, was) || is.ModTime() != was.ModTime() {
			t.Errorf("a second seed wrote %s", path)
		}
	}
	if err := os.WriteFile("c/dist/seeds/web1.iso", []byte("half a seed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := seed("web2", "web1"); out != "c/dist/seeds: wrote 1 seed (web1), 1 up to date\n" {
		t.Errorf("seed of a damaged one says %q", out)
	}
	other, err := filepath.Abs("other")
	if err != nil {
		t.Fatal(err)
	}
	if out := seed("redis1", "-o", other); out != other+"/seeds: wrote 1 seed\n" {
		t.Errorf("seed -o says %q", out)
	}
	a, err1 := os.ReadFile("c/dist/seeds/redis1.iso")
	b, err2 := os.ReadFile("other/seeds/redis1.iso")
	if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
		t.Error("the same seed in another folder has other bytes")
	}
	// The generation: dist/generation.json, in the same bytes on all seeds.
	manifest, err := os.ReadFile("c/dist/generation.json")
	if err != nil {
		t.Fatal(err)
	}
	m, err := facts.DecodeManifest(manifest)
	if err != nil || m.Number != 1 || len(m.Members) != 17 {
		t.Errorf("generation %d with %d members, %v", m.Number, len(m.Members), err)
	}
	for _, n := range m.Members {
		s, err := cloudinit.ReadISO("c/dist/seeds/" + n.Name + ".iso")
		if err != nil {
			t.Fatal(err)
		}
		g, err := facts.OpenGeneration(s.Generation)
		id, err2 := nocloud.Seed(s).Identity()
		if err != nil || err2 != nil || g.Digest != facts.Digest(manifest) || id.Digest != n.Seed || id.Number != 1 {
			t.Errorf("%s: %v, %v, digest %s in generation %s", n.Name, err, err2, id.Digest, g.Digest)
		}
	}
	if err := os.WriteFile("file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := imagegen("seed", "-f", "c/cluster.yaml", "-o", "file"); r.code != exitFailed || r.stderr != "imagegen: make the folder of the seeds: mkdir file: not a directory\n" {
		t.Errorf("seed into a file: %+v", r)
	}
}

// secretsOf returns all passwords and private keys, by a name for messages.
func secretsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, path := range files(t, dir) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case filepath.Base(path) == "passwords.json":
			var passwords map[string]string
			if err := json.Unmarshal(data, &passwords); err != nil {
				t.Fatal(err)
			}
			for name, p := range passwords {
				all[name] = p
			}
		case strings.HasSuffix(path, ".key"):
			if block, _ := pem.Decode(data); block == nil {
				t.Fatalf("%s is not a PEM file", path)
			}
			all[path] = strings.Split(string(data), "\n")[1]
		}
	}
	if len(all) < 20 {
		t.Fatalf("only %d secrets", len(all))
	}
	return all
}

func TestPrintHidesSecrets(t *testing.T) {
	inNewFolder(t)
	done(t, "init")
	out := done(t, "seed", "--print")
	done(t, "seed")
	onSeeds := 0
	for name, secret := range secretsOf(t, "secrets") {
		if strings.Contains(out, secret) {
			t.Errorf("seed --print shows %s", name)
		}
		for _, iso := range files(t, "dist/seeds") {
			if data, err := os.ReadFile(iso); err == nil && bytes.Contains(data, []byte(secret)) {
				onSeeds++
			}
		}
	}
	if onSeeds == 0 {
		t.Error("the search finds no secret on the seeds either: it does not work")
	}
	if !strings.Contains(out, "(secret redis)") || !strings.Contains(out, "(private key)") || !strings.Contains(out, "192.168.10.40 balancer1") {
		t.Error("what is not secret is not shown")
	}
	s, err := cloudinit.ReadISO("dist/seeds/web1.iso")
	if err != nil {
		t.Fatal(err)
	}
	one := done(t, "seed", "--print", "web1")
	if !strings.HasPrefix(one, "# web1: meta-data\n"+string(s.MetaData)) || strings.Contains(one, "# web2") {
		t.Errorf("seed --print web1 does not show the seed's own meta-data %q", s.MetaData)
	}
}

// cloud-init's schema accepts every kind of seed.
func TestSeedsAreValid(t *testing.T) {
	testkit.Program(t, "cloud-init", "cloud-init")
	inNewFolder(t)
	done(t, "init")
	done(t, "seed")
	for _, node := range []string{"balancer1", "web1", "glusterfs1", "backend1", "balancer3", "redis1", "percona1"} {
		s, err := cloudinit.ReadISO("dist/seeds/" + node + ".iso")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "user-data")
		if err := os.WriteFile(path, s.UserData, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cloud-init", "schema", "-c", path).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "Valid") {
			t.Errorf("%s: cloud-init schema: %v: %s", node, err, out)
		}
	}
}

func TestBuildWithoutAgent(t *testing.T) {
	inNewFolder(t)
	done(t, "init")
	r := imagegen("build", "--agent", "nowhere/agent")
	if r.code != exitFailed || r.stderr != "imagegen: there is no agent at nowhere/agent; make build builds it, --agent FILE names another\n" {
		t.Errorf("%+v", r)
	}
	if left := files(t, "."); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func BenchmarkSeed17(b *testing.B) {
	b.Chdir(b.TempDir())
	imagegen("init")
	imagegen("seed") // issues the secrets
	for b.Loop() {
		b.StopTimer()
		os.RemoveAll("dist")
		b.StartTimer()
		if r := imagegen("seed"); r.code != exitDone {
			b.Fatal(r.stderr)
		}
	}
}

func TestBuildRefusesFormatsThatAreNone(t *testing.T) {
	inNewFolder(t)
	done(t, "init")
	if r := imagegen("build", "--format", "vmdk,vhd"); r.code != exitWrong || !strings.Contains(r.stderr, "--format vhd: the formats are raw, qcow2, vmdk, ova, box") {
		t.Errorf("%+v", r)
	}
}

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
)

// outside is a node that runs the real agent in a network namespace, and an unprivileged operator in another one, who
// has three files of the secrets and reaches the node only at its address.
type outside struct {
	dir, imagegen string
	operator      string // network namespace
	nodeNS        string
	node          *exec.Cmd
}

const outsideSpec = `cluster: outside
distro: debian12
timezone: UTC
network: {cidr: 10.77.0.0/24}
operators: [10.78.0.0/24]
roles:
  cachy:
    nodes: {cachy1: 10.77.0.1, cachy2: 10.77.0.2}
`

// Programs on the node that need a running system are stubs.
const (
	fakeSystemctl = `#!/bin/sh
case "$*" in *show*) printf 'LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nMainPID=0\n';; esac
`
	fakeJournalctl = `#!/bin/sh
case "$*" in *--follow*) exec tail -f "$JOURNAL";; esac
cat "$JOURNAL"
`
)

func newOutside(t *testing.T) *outside {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	for _, p := range []string{"ip", "unshare", "setpriv", "tail", "go"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
	inNewFolder(t)
	writeFile(t, "cluster.yaml", outsideSpec)
	writeFile(t, "roles/cachy/role.yaml", "description: a test\ndistros: {debian12: {packages: [memcached]}}\ncomponents:\n  - {name: cachy, kind: service, params: {unit: cachy.service}}\n")
	done(t, "seed")
	o := &outside{operator: fmt.Sprintf("outside-op-%d", os.Getpid())}
	o.dir, _ = os.Getwd()
	for d := o.dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755) // the operator has another user ID
	}
	shell := func(script string) {
		t.Helper()
		if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}

	// The node's files, as its seed writes them.
	seed, err := cloudinit.ReadISO("dist/seeds/cachy1.iso")
	if err != nil {
		t.Fatal(err)
	}
	written, err := seed.Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range written {
		if strings.HasPrefix(f.Path, "/etc/imagegen/") {
			writeFile(t, filepath.Join("node", f.Path), string(f.Content))
		}
	}
	writeFile(t, "node/bin/systemctl", fakeSystemctl)
	writeFile(t, "node/bin/journalctl", fakeJournalctl)
	writeFile(t, "node/journal", "a line of the node's journal\n")
	writeFile(t, "node/var/lib/x", "")
	shell("chmod 755 node/bin/*")
	build := exec.Command("go", "build", "-o", "node/imagegen-node", "imagegen/cmd/imagegen-node")
	build.Dir = filepath.Join(testDir, "..", "..")
	build.Args[3] = filepath.Join(o.dir, "node/imagegen-node")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	// The operator is on another network and reaches the node through a router.
	o.nodeNS = strings.Replace(o.operator, "-op-", "-node-", 1)
	t.Cleanup(func() {
		exec.Command("ip", "netns", "delete", o.nodeNS).Run()
		exec.Command("ip", "netns", "delete", o.operator).Run()
	})
	shell(fmt.Sprintf(`
ip netns add %[1]s
ip netns add %[2]s
ip -n %[1]s link set lo up
ip -n %[1]s link add eth0 type veth peer name eth0 netns %[2]s
ip -n %[1]s address add 10.77.0.1/24 dev eth0
ip -n %[1]s address add 10.77.0.39/24 dev eth0
ip -n %[1]s link set eth0 up
ip -n %[1]s route add 10.78.0.0/24 dev eth0
ip -n %[2]s address add 10.78.0.7/24 dev eth0
ip -n %[2]s link set eth0 up
ip -n %[2]s route add 10.77.0.0/24 dev eth0
`, o.nodeNS, o.operator))
	o.start(t, "0123456789abcdef0123456789abcdef", seed)
	t.Cleanup(func() {
		o.stop()
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(o.dir, "node/log"))
			t.Logf("the agent says:\n%s", text)
		}
	})

	// A copy of this program outside the folder that only root may enter.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	o.imagegen = filepath.Join(o.dir, "imagegen")
	if err := os.WriteFile(o.imagegen, self, 0o755); err != nil {
		t.Fatal(err)
	}
	o.folder(t, "mine", "secrets")
	return o
}

// start starts the node's agent on a root disk with a machine-id, made from a seed.
func (o *outside) start(t *testing.T, machineID string, seed cloudinit.Seed) {
	t.Helper()
	writeFile(t, filepath.Join(o.dir, "node/etc/machine-id"), machineID+"\n")
	if err := (nocloud.Disk{Root: filepath.Join(o.dir, "node")}).Keep(nocloud.Seed(seed)); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(o.dir, "node/log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	o.node = exec.Command("ip", "netns", "exec", o.nodeNS, "unshare", "--mount", "sh", "-ec",
		"mount --bind "+o.dir+"/node/etc /etc; mount --bind "+o.dir+"/node/var/lib /var/lib; exec "+o.dir+"/node/imagegen-node")
	o.node.Env = []string{"PATH=" + o.dir + "/node/bin:/usr/sbin:/usr/bin:/sbin:/bin", "JOURNAL=" + o.dir + "/node/journal"}
	o.node.Stdout, o.node.Stderr = log, log
	o.node.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := o.node.Start(); err != nil {
		t.Fatal(err)
	}
}

// stop kills the node's agent and its children.
func (o *outside) stop() {
	syscall.Kill(-o.node.Process.Pid, syscall.SIGKILL)
	o.node.Wait()
}

// replace runs the command that asks the operator to recreate the node's machine, and does so. Restarting the old one
// must not be enough.
func (o *outside) replace(t *testing.T) {
	t.Helper()
	seed, err := cloudinit.ReadISO(filepath.Join(o.dir, "dist/seeds/cachy1.iso"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := o.command("mine", "replace", "cachy1", "--force", "--timeout", "2m")
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewScanner(said); in.Scan(); {
		switch line := in.Text(); {
		case strings.HasPrefix(line, "cachy1: make its machine anew now: ") && strings.Contains(line, "dist/images/cachy.*") && strings.Contains(line, "dist/seeds/cachy1.iso"):
		case strings.Contains(line, "the old one still answers"):
			o.stop()
			o.start(t, "fedcba9876543210fedcba9876543210", seed)
		case !strings.HasPrefix(line, "cachy1: "):
			t.Errorf("replace says %s", line)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("replace: %v", err)
	}
}

// folder creates an operator's folder with the three files of some secrets.
func (o *outside) folder(t *testing.T, name, secrets string) {
	t.Helper()
	script := fmt.Sprintf(`mkdir -p %[1]s/secrets %[1]s/dist; cp -r cluster.yaml roles %[1]s; cp dist/expected.json %[1]s/dist
cp %[2]s/ca.crt %[2]s/operator.crt %[2]s/operator.key %[1]s/secrets; chown -R 65534:65534 %[1]s`, name, secrets)
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = o.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func (o *outside) command(folder string, args ...string) *exec.Cmd {
	cmd := exec.Command("ip", append([]string{"netns", "exec", o.operator, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", o.imagegen}, args...)...)
	cmd.Dir = filepath.Join(o.dir, folder)
	cmd.Env = []string{"PATH=/usr/bin:/bin", asImagegen + "=1"}
	return cmd
}

func (o *outside) run(t *testing.T, folder string, args ...string) result {
	t.Helper()
	cmd := o.command(folder, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// An unprivileged user with the spec and three files, on a computer that reaches the nodes only at their addresses, can
// operate the cluster. With a wrong or missing certificate, every command fails and reveals nothing.
func TestOutside(t *testing.T) {
	o := newOutside(t)
	var status struct {
		Version int
		Nodes   []struct{ Node, State, Power, Is, Build, Error string }
	}
	for end := time.Now().Add(time.Minute); ; {
		r := o.run(t, "mine", "status", "--json")
		if r.code == exitDone {
			if err := json.Unmarshal([]byte(r.stdout), &status); err != nil {
				t.Fatalf("%v: %s", err, r.stdout)
			}
			if status.Nodes[0].State == string(facts.Ready) {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatalf("the node is not ready within a minute: %+v", r)
		}
	}
	if n := status.Nodes[0]; status.Version != 1 || len(status.Nodes) != 2 || n.Power != "unknown" || n.Is != "holds 10.77.0.39" || n.Build != "current" {
		t.Errorf("%+v", status)
	}
	if n := status.Nodes[1]; n.State != "silent" || n.Power != "unknown" || n.Error == "" {
		t.Errorf("%+v", n)
	}
	if r := o.run(t, "mine", "status"); r.code != exitDone || !strings.Contains(r.stdout, "cachy1  cachy  10.77.0.1  ready") || r.stderr != "" {
		t.Errorf("status: %+v", r)
	}
	if r := o.run(t, "mine", "decide", "cachy", "--without", "cachy2"); r.code != exitFailed || !strings.Contains(r.stderr, "cachy on cachy1 does not wait for a decision") {
		t.Errorf("decide: %+v", r)
	}
	if r := o.run(t, "mine", "events"); r.code != exitDone || !strings.Contains(r.stdout, "cachy1: holds 10.77.0.39\n") || !strings.Contains(r.stdout, "cachy1: cachy: ready\n") || !strings.Contains(r.stderr, "no events of cachy2") {
		t.Errorf("events: %+v", r)
	}
	if r := o.run(t, "mine", "logs", "cachy1"); r.code != exitDone || r.stdout != "a line of the node's journal\n" {
		t.Errorf("logs: %+v", r)
	}
	if r := o.run(t, "mine", "logs", "cachy2"); r.code != exitFailed || r.stdout != "" || !strings.Contains(r.stderr, "logs of cachy2: ") {
		t.Errorf("logs of a silent node: %+v", r)
	}
	o.follow(t)
	o.replace(t)

	if err := os.CopyFS("expired-secrets", os.DirFS("secrets")); err != nil {
		t.Fatal(err)
	}
	ageCertificate(t, "expired-secrets/operator", time.Now().Add(-time.Hour))
	for name, prepare := range map[string]string{
		"missing": "rm missing/secrets/operator.crt",
		"wrong":   "cp others/secrets/operator.crt others/secrets/operator.key wrong/secrets",
		"other":   "cp others/secrets/ca.crt others/secrets/operator.crt others/secrets/operator.key other/secrets",
		"expired": "cp expired-secrets/operator.* expired/secrets",
		"faked":   "cp others/secrets/operator.crt others/secrets/operator.key faked/secrets; cat others/secrets/ca.crt >> faked/secrets/ca.crt",
	} {
		writeFile(t, "others/cluster.yaml", outsideSpec)
		writeFile(t, "others/roles/cachy/role.yaml", "description: a test\ndistros: {debian12: {packages: [memcached]}}\n")
		if r := imagegen("seed", "-f", "others/cluster.yaml"); r.code != exitDone {
			t.Fatalf("%+v", r)
		}
		o.folder(t, name, "secrets")
		if out, err := exec.Command("sh", "-ec", prepare+"; chown -R 65534 "+name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		want := map[string]string{
			"missing": "secrets/operator.crt is missing", "expired": "secrets/operator.crt expired on ", "wrong": "secrets/operator.crt is not signed by ca.crt",
			"other": "what answers there is no node of this cluster", "faked": "is not signed by ca.crt",
		}[name]
		for _, line := range []string{"status", "status --json", "logs cachy1", "events", "decide cachy --without cachy2"} {
			r := o.run(t, name, strings.Fields(line)...)
			if r.code != exitFailed || r.stdout != "" || !strings.Contains(r.stderr, want) && line != "decide cachy --without cachy2" {
				t.Errorf("%s: %s: %+v, want %q", name, line, r, want)
			}
			if strings.Contains(r.stderr, "holds") || strings.Contains(r.stderr, "journal\n") {
				t.Errorf("%s: %s reveals something: %s", name, line, r.stderr)
			}
		}
	}
}

// follow runs logs --follow until Ctrl-C.
func (o *outside) follow(t *testing.T) {
	t.Helper()
	cmd := o.command("mine", "logs", "cachy1", "--follow")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer late.Stop()
	in := bufio.NewReader(out)
	first, err1 := in.ReadString('\n')
	f, err := os.OpenFile(filepath.Join(o.dir, "node/journal"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, "\x1b[31mred\n")
	f.Close()
	second, err2 := in.ReadString('\n')
	if err := errors.Join(err1, err2); err != nil || first != "a line of the node's journal\n" || second != "[31mred\n" {
		t.Errorf("followed: %q, %q, %v", first, second, err)
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
}

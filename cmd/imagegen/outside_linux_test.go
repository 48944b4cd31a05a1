package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"imagegen/cluster/facts"
)

const outsideSpec = `cluster: outside
distro: debian12
timezone: UTC
network: {cidr: 10.77.0.0/24}
operators: [10.78.0.0/24]
machines: {provider: none}
roles:
  cachy: {nodes: {cachy1: 10.77.0.1, cachy2: 10.77.0.2}}
`

const cachyRole = `description: a test
distros: {debian12: {packages: [memcached]}}
components:
  - {name: cachy, kind: service, params: {unit: image.service}}
`

// An unprivileged user with the spec and three files, on a computer that reaches the nodes only at their addresses, can
// operate the cluster. With a wrong or missing certificate, every command fails and reveals nothing.
func TestOutside(t *testing.T) {
	if elsewhere(t) {
		return
	}
	o := startNodes(t, outsideSpec, map[string]string{"cachy": cachyRole})
	o.folder(t, "mine", "secrets")
	o.byHand(t, "cachy1", "10.77.0.1", "dist/images/cachy.raw", "dist/seeds/cachy1.iso", nil)
	shell(t, "ip -n "+o.machine("cachy1").name()+" address add 10.77.0.39/24 dev eth0")
	status := o.awaitState(t, "mine", string(facts.Ready), "", "cachy1")
	one := func(r result) bool { return strings.Contains(r.stderr, "1 of 2 nodes") }
	if r := o.until(t, "mine", one, "status", "--wait", "--timeout", "3s"); r.code != exitFailed || !strings.Contains(r.stderr, "1 of 2 nodes not ready within 3s: cachy2") {
		t.Errorf("status --wait: %+v", r)
	}
	if n := status["cachy1"]; len(status) != 2 || n.Power != "unknown" || n.Is != "holds 10.77.0.39" || n.Build != "current" {
		t.Errorf("%+v", status)
	}
	if n := status["cachy2"]; n.State != "silent" || n.Power != "unknown" || n.Error == "" {
		t.Errorf("%+v", n)
	}
	speaks := func(r result) bool { return r.stdout != "" }
	if r := o.until(t, "mine", func(r result) bool { return strings.Contains(r.stdout, "  ready") }, "status"); r.code != exitDone || !strings.Contains(r.stdout, "cachy1  cachy  10.77.0.1  ready") || r.stderr != "" {
		t.Errorf("status: %+v", r)
	}
	refused := func(r result) bool { return strings.Contains(r.stderr, "does not wait") }
	if r := o.until(t, "mine", refused, "decide", "cachy", "--without", "cachy2"); r.code != exitFailed || !strings.Contains(r.stderr, "cachy on cachy1 does not wait for a decision") {
		t.Errorf("decide: %+v", r)
	}
	if r := o.until(t, "mine", speaks, "events"); r.code != exitDone || !strings.Contains(r.stdout, "cachy1: holds 10.77.0.39\n") || !strings.Contains(r.stdout, "cachy1: cachy: ready\n") || !strings.Contains(r.stderr, "no events of cachy2") {
		t.Errorf("events: %+v", r)
	}
	if r := o.until(t, "mine", speaks, "logs", "cachy1"); r.code != exitDone || r.stdout != "a line of the node's journal\n" {
		t.Errorf("logs: %+v", r)
	}
	if r := o.run(t, "mine", "logs", "cachy2"); r.code != exitFailed || r.stdout != "" || !strings.Contains(r.stderr, "logs of cachy2: ") {
		t.Errorf("logs of a silent node: %+v", r)
	}
	o.follow(t)

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
		writeFile(t, "others/roles/cachy/role.yaml", cachyRole)
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
			said := func(r result) bool {
				return r.code == exitDone || strings.Contains(r.stderr, want) || line == "decide cachy --without cachy2"
			}
			r := o.until(t, name, said, strings.Fields(line)...)
			if r.code != exitFailed || r.stdout != "" || !said(r) {
				t.Errorf("%s: %s: %+v, want %q", name, line, r, want)
			}
			if strings.Contains(r.stderr, "holds") || strings.Contains(r.stderr, "journal\n") {
				t.Errorf("%s: %s reveals something: %s", name, line, r.stderr)
			}
		}
	}
}

// follow runs logs --follow until Ctrl-C.
func (o *nodes) follow(t *testing.T) {
	t.Helper()
	cmd := o.command("mine", "logs", "cachy1", "--follow")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer late.Stop()
	in := bufio.NewReader(out)
	first, err1 := in.ReadString('\n')
	f, err := os.OpenFile(o.machine("cachy1").path("journal"), os.O_APPEND|os.O_WRONLY, 0)
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

// person is who makes machines anew when imagegen, with provider none, says which: each at first from an older seed, as people do.
type person struct {
	o    *nodes
	old  string   // folder with older seeds
	made []string // nodes whose machines were made anew
}

var toldToMake = regexp.MustCompile(`^(\w+): recreate its machine now: power off the old one; the new one needs a root disk copied from (\S+)\.\*, (\S+) as its CD-ROM, a network card with MAC address \S+; power it on$`)

// work runs a command, does what it says, and returns everything that it has said on standard error.
func (p *person) work(t *testing.T, ips map[string]string, args ...string) (said string, err error) {
	t.Helper()
	cmd := p.o.command("mine", args...)
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(patience, func() { cmd.Process.Kill() }).Stop()
	var image, seed string
	for in := bufio.NewScanner(errs); in.Scan(); {
		line := in.Text()
		said += line + "\n"
		node, waits, _ := strings.Cut(line, ": ")
		switch told := toldToMake.FindStringSubmatch(line); {
		case told != nil:
			image, seed = told[2]+".raw", told[3]
			for _, other := range p.made {
				if _, err := os.Stat(p.o.machine(other).dir); err != nil {
					t.Errorf("told to make %s while %s has no machine", node, other)
				}
			}
		case strings.HasSuffix(waits, "the old one still answers"):
			p.o.byHand(t, node, ips[node], image, filepath.Join(p.old, node+".iso"), nil)
		case strings.HasSuffix(waits, "has another seed"):
			p.o.byHand(t, node, ips[node], image, seed, nil)
			p.made = append(p.made, node)
		}
	}
	return said, cmd.Wait()
}

// Without a provider, roll and replace say which machine to make anew from which files, wait for it, and go on: seen from outside, with
// real agents. Interrupted, a roll goes on where it stopped.
func TestReplaceByHandFromOutside(t *testing.T) {
	if elsewhere(t) {
		return
	}
	o := startNodes(t, outsideSpec, map[string]string{"cachy": cachyRole})
	ips := map[string]string{"cachy1": "10.77.0.1", "cachy2": "10.77.0.2"}
	for node, ip := range ips {
		o.byHand(t, node, ip, "dist/images/cachy.raw", "dist/seeds/"+node+".iso", nil)
	}
	// A new seed for each node.
	if err := os.CopyFS("old", os.DirFS("dist/seeds")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, "cluster.yaml", strings.Replace(outsideSpec, "timezone: UTC", "timezone: Europe/Moscow", 1))
	done(t, "seed")
	o.folder(t, "mine", "secrets")
	shell(t, "cp -r dist/seeds dist/images mine/dist; chmod -R a+rX mine/dist") // the person has the same paths
	for node, s := range o.awaitState(t, "mine", string(facts.Ready), "", "cachy1", "cachy2") {
		if s.Build != "older" {
			t.Errorf("%s is %s", node, s.Build)
		}
	}

	// Nobody does what it says.
	r := o.until(t, "mine", func(r result) bool { return strings.Contains(r.stderr, "still answers") }, "roll", "--timeout", "3s")
	if r.code != exitFailed || strings.Count(r.stderr, "recreate its machine now") != 1 || !strings.Contains(r.stderr, "cachy1 is not replaced: it waited for its new machine: the old one still answers within 3s; run again, this goes on") {
		t.Errorf("nobody makes a machine: %+v", r)
	}
	// The first is made anew, and imagegen is killed.
	p := &person{o: o, old: "old"}
	o.byHand(t, "cachy1", ips["cachy1"], "dist/images/cachy.raw", "dist/seeds/cachy1.iso", nil)
	said, err := p.work(t, ips, "roll")
	if err != nil || len(p.made) != 1 || p.made[0] != "cachy2" || strings.Contains(said, "cachy1: recreate") || !strings.Contains(said, "cachy2: replaced\n") {
		t.Errorf("roll: %v, made %q:\n%s", err, p.made, said)
	}
	for node, s := range o.awaitState(t, "mine", string(facts.Ready), "", "cachy1", "cachy2") {
		if s.Build != "current" {
			t.Errorf("after the roll: %s: %+v", node, s)
		}
	}
	if r := o.run(t, "mine", "roll"); r.code != exitDone || r.stdout != "replaced 0 nodes; 2 already up to date\n" {
		t.Errorf("roll again: %+v", r)
	}
	// A new image alone.
	image(t, "cachy", "2")
	done(t, "seed")
	shell(t, "cp dist/expected.json dist/images mine/dist -r; chmod -R a+rX mine/dist")
	for node, s := range o.awaitState(t, "mine", string(facts.Ready), "", "cachy1", "cachy2") {
		if s.Build != "older" {
			t.Errorf("with an older image: %s: %+v", node, s)
		}
	}
	p.made = nil
	if said, err = p.work(t, ips, "roll"); err != nil || strings.Join(p.made, " ") != "cachy1 cachy2" {
		t.Errorf("roll: %v, made %q:\n%s", err, p.made, said)
	}
	p.made = nil
	said, err = p.work(t, ips, "replace", "cachy1")
	if err != nil || len(p.made) != 1 || p.made[0] != "cachy1" || !strings.Contains(said, "cachy1: replaced\n") {
		t.Errorf("replace: %v, made %q:\n%s", err, p.made, said)
	}
}

const databaseSpec = `cluster: outside
distro: debian12
timezone: UTC
network: {cidr: 10.77.0.0/24}
operators: [10.78.0.0/24]
machines: {provider: none}
roles:
  db: {nodes: {db1: 10.77.0.1, db2: 10.77.0.2, db3: 10.77.0.3}}
`

// Instead of a database, its client answers: after each question, which ends with a SELECT of that end. What a cluster has been started from is in a file.
const databaseRole = `description: a test
quorum: true
distros: {debian12: {packages: [mariadb-server]}}
components:
  - name: galera
    kind: galera
    params:
      unit: db.service
      boot_unit: db.service
      bootstrap: [sh, -c, 'sed -n "s/uuid: *//p" /var/lib/db/grastate.dat >"$MACHINE/../../history" && exec systemctl start db.service']
      install_db: ["false"]
      recover: [sh, -c, 'echo "Recovered position: $(sed -n "s/uuid: *//p" /var/lib/db/grastate.dat):$(sed -n "s/seqno: *//p" /var/lib/db/grastate.dat)"']
      data_dir: /var/lib/db
      owner: root:root
      client: [sh, -c, 'while read -r q; do case $q in SELECT\ ?end\ of\ question\ *) q=${q#SELECT ?}; printf "wsrep_cluster_status\tPrimary\nwsrep_local_state\t4\nwsrep_ready\tON\nwsrep_cluster_size\t2\nwsrep_connected\tON\nwsrep_last_committed\t13\nwsrep_cluster_state_uuid\t%s\nmarker\t%s\n%s\n" "$(cat "$MACHINE/../../history")" "$(cat "$MACHINE/../../id")" "${q%??}";; esac; done']
      init_sql: /etc/imagegen/init.sql
`

// After a full outage a database waits for a silent member; an operator's decision, sent from outside to real agents, lets it go on.
func TestDecideFromOutside(t *testing.T) {
	if elsewhere(t) {
		return
	}
	o := startNodes(t, databaseSpec, map[string]string{"db": databaseRole})
	o.folder(t, "mine", "secrets")
	id, err := os.ReadFile("dist/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, "id", string(regexp.MustCompile(`"cluster_id": "(.*)"`).FindSubmatch(id)[1]))
	const history = "11111111-2222-3333-4444-555555555555"
	for i, seqno := range []int{10, 12} {
		node := fmt.Sprint("db", i+1)
		o.byHand(t, node, fmt.Sprint("10.77.0.", i+1), "dist/images/db.raw", "dist/seeds/"+node+".iso", func(root string) {
			writeFile(t, filepath.Join(root, "var/lib/db/grastate.dat"), fmt.Sprintf("uuid: %s\nseqno: %d\nsafe_to_bootstrap: 0\n", history, seqno))
		})
	}
	o.awaitState(t, "mine", string(facts.Waiting), "galera: for db3, who may have newer data than", "db1", "db2")
	refused := func(r result) bool { return strings.Contains(r.stderr, "does not wait for db2") }
	if r := o.until(t, "mine", refused, "decide", "galera", "--without", "db2"); r.code != exitFailed || !strings.Contains(r.stderr, "galera on db1 does not wait for db2, but for db3") {
		t.Errorf("decide without a node that answers: %+v", r)
	}
	if r := o.run(t, "mine", "decide", "galera", "--without", "db3"); r.code != exitDone || r.stdout != "galera continues without db3; told db1, db2\n" {
		t.Fatalf("decide: %+v", r)
	}
	o.awaitState(t, "mine", string(facts.Ready), "", "db1", "db2")
	for _, want := range []string{"db1: galera: an operator has decided to go on without db3", "db2: galera: an operator has decided to go on without db3",
		"db2: galera: working: starting the cluster without db3: of the others, its data is the newest (12)", "db1: galera: is in a component of 2"} {
		if r := o.until(t, "mine", func(r result) bool { return strings.Contains(r.stdout, want) }, "events"); !strings.Contains(r.stdout, want) {
			t.Errorf("events lack %q:\n%s", want, r.stdout)
		}
	}
	if forked, err := os.ReadFile("history"); err != nil || strings.TrimSpace(string(forked)) == history {
		t.Errorf("the cluster goes on with the history that db3 has: %s, %v", forked, err)
	}
	decided := func(r result) bool { return strings.Contains(r.stderr, "it is ready") }
	if r := o.until(t, "mine", decided, "decide", "galera", "--without", "db3"); r.code != exitFailed || !strings.Contains(r.stderr, "does not wait for a decision: it is ready") {
		t.Errorf("decide again: %+v", r)
	}
}

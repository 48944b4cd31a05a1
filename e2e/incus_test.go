package e2e

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/internal/incushosts"
	"imagegen/internal/testkit"
	"imagegen/lab"
)

// dataTier finds its members, elects a master and moves an address: enough to see that a host may die.
const dataTier = `cluster: e2e-incus
distro: debian12
timezone: UTC
network: {cidr: 192.168.10.0/24}
roles:
  redis: {data: 64MiB, nodes: {redis1: 192.168.10.49, redis2: 192.168.10.50, redis3: 192.168.10.51}}
  databalancer: {vip: 192.168.10.53, nodes: {balancer3: 192.168.10.52, balancer4: 192.168.10.54}}
`

// On two slow cores.
const (
	firstReadyIn = 10 * time.Minute
	vipBackIn    = 15 * time.Second // after a host's power was cut
	statusIn     = 25 * time.Second // while a host is dead
	refusalLasts = 30 * time.Second // how long a minority is watched
)

// notInContainers are the units that fail in a container, with the reason. Any other is a fault.
var notInContainers = map[string]string{
	"systemd-remount-fs.service": "Incus mounts the root file system, which the container may not remount",
	"systemd-binfmt.service":     "binary formats belong to the host's kernel; privileged containers try to register theirs",
	"dev-mqueue.mount":           "message queues may not be mounted in some unprivileged containers; for LXC they are optional, and nothing uses them",
}

// onHosts is a cluster on three Incus hosts. It is driven by the imagegen command on a computer that is none of them.
type onHosts struct {
	*bench
	hosts   *incushosts.Cluster
	asked   string // host whose Incus imagegen asks
	project string
}

// newOnHosts builds the images and seeds of a spec, and makes hosts as docs/incus.md says.
func newOnHosts(t *testing.T, spec func(b *bench) string) *onHosts {
	t.Helper()
	if os.Getenv("IMAGEGEN_E2E") != "incus" {
		t.Skip("clusters on three Incus hosts run with IMAGEGEN_E2E=incus, as root: make e2e-incus")
	}
	guide, err := os.ReadFile("../docs/incus.md")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{dir: t.TempDir()}
	text := spec(b) + machinesLine(t, guide) + "\n"
	if err := os.WriteFile(b.spec(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(text[strings.Index(text, "cluster: "):], "cluster: "), "\n")
	start := time.Now()
	b.lab(t, "build")
	t.Logf("built in %s", time.Since(start).Round(time.Second))

	start = time.Now()
	o := &onHosts{bench: b, hosts: incushosts.Boot(t, 3), asked: "h1", project: "imagegen-" + name}
	t.Cleanup(func() {
		if t.Failed() {
			o.explain(t)
		}
	})
	o.follow(t, guide)
	t.Logf("three hosts made a cluster in %s", time.Since(start).Round(time.Second))
	b.command = func(args ...string) *exec.Cmd {
		if args[0] == "build" { // needs the package archive
			return exec.Command("../bin/imagegen", args...)
		}
		return o.outside("../bin/imagegen", args...)
	}
	b.shell = func(node, script string) *exec.Cmd {
		return o.outside("incus", "exec", "--project", o.project, node, "--", "sh", "-c", script)
	}
	return o
}

// outside returns a command of a computer that reaches hosts and nodes by their addresses, and asks the Incus of one host.
func (o *onHosts) outside(program string, args ...string) *exec.Cmd {
	return o.hosts.Outside(append([]string{"env", "INCUS_REMOTE=" + o.asked, program}, args...)...)
}

// machinesLine returns the line that docs/incus.md tells to add to a spec.
func machinesLine(t *testing.T, guide []byte) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^machines: \{provider: incus, .*\}$`).Find(guide)
	if line == nil {
		t.Fatal("docs/incus.md has no line machines: for the spec")
	}
	return string(line)
}

var (
	guideBlock = regexp.MustCompile("(?s)```\n# on ([^\n]*)\n(.*?)```")
	guideToken = regexp.MustCompile(`(?m)^[A-Za-z0-9+/=]{60,}$`)
)

// follow runs what docs/incus.md tells to run on the hosts and on a computer that is none.
func (o *onHosts) follow(t *testing.T, guide []byte) {
	t.Helper()
	var tokens []string
	run := func(place, script string) {
		t.Helper()
		if strings.Contains(script, "TOKEN") {
			if len(tokens) == 0 {
				t.Fatalf("docs/incus.md: nothing before this printed a token:\n%s", script)
			}
			script = strings.ReplaceAll(script, "TOKEN", tokens[0])
			tokens = tokens[1:]
		}
		command := o.hosts.Outside
		if place != "your computer" {
			command = func(args ...string) *exec.Cmd { return o.hosts.On(place, args...) }
		}
		out, err := command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			t.Fatalf("docs/incus.md, on %s: %v: %s\n%s", place, err, out, script)
		}
		for _, token := range guideToken.FindAll(out, -1) {
			tokens = append(tokens, string(token))
		}
	}
	places := map[string]bool{}
	for _, m := range guideBlock.FindAllSubmatch(guide, -1) {
		place, script := string(m[1]), string(m[2])
		places[place] = true
		if place != "h2 and h3" {
			run(place, script)
			continue
		}
		run("h2", script)
		const h2 = "name=h2 address=192.168.10.12"
		if !strings.Contains(script, h2) {
			t.Fatalf("docs/incus.md: no %s in\n%s", h2, script)
		}
		run("h3", strings.Replace(script, h2, "name=h3 address=192.168.10.13", 1))
	}
	if len(places) != 3 {
		t.Fatalf("docs/incus.md has steps for %v", places)
	}
}

// up makes all machines, waits until all nodes are ready, and returns the host of each.
func (o *onHosts) up(t *testing.T) map[string]string {
	t.Helper()
	start := time.Now()
	o.lab(t, "up")
	t.Logf("all machines were on after %s", time.Since(start).Round(time.Second))
	o.lab(t, "status", "--wait", "--timeout", firstReadyIn.String())
	t.Logf("all nodes were ready after %s", time.Since(start).Round(time.Second))
	at := map[string]string{}
	roles := map[string]map[string]int{}
	for _, n := range o.nodes(t) {
		at[n.Node] = n.Host
		if roles[n.Role] == nil {
			roles[n.Role] = map[string]int{}
		}
		if roles[n.Role][n.Host]++; roles[n.Role][n.Host] > 1 {
			t.Errorf("two nodes of %s are on host %s", n.Role, n.Host)
		}
	}
	t.Logf("placed: %v", at)
	return at
}

// askAnother has imagegen ask a host that is not lost.
func (o *onHosts) askAnother(lost ...string) {
	for _, h := range o.hosts.Hosts() {
		if !slices.Contains(lost, h) {
			o.asked = h
			return
		}
	}
}

// forward returns a loopback address that leads to an address in the nodes' network, where a visitor is.
func (o *onHosts) forward(t *testing.T, to netip.AddrPort) string {
	t.Helper()
	return forward(t, o.hosts.Outside("../bin/imagegen", lab.ForwardCommand, to.String()))
}

// forward starts a command that forwards, and returns the loopback address that it listens on.
func forward(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	cmd.ExtraFiles = []*os.File{socket}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return l.Addr().String()
}

// speaksTLS is content when what an address leads to speaks TLS. A proxy whose servers are all down says nothing.
func speaksTLS(address string) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 2 * time.Second}, "tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return err
	}
	return conn.Close()
}

// explain prints what somebody needs who was not there.
func (o *onHosts) explain(t *testing.T) {
	status, _ := o.try("status", "-f", o.spec(), "-o", o.dist())
	list, _ := o.outside("incus", "list", "--project", o.project).CombinedOutput()
	members, _ := o.outside("incus", "cluster", "list").CombinedOutput()
	t.Logf("the cluster at the end:\n%s%s%s", status, list, members)
}

// TestIncus runs a tier on three Incus hosts that were made as docs/incus.md says, and one of them loses its power.
func TestIncus(t *testing.T) {
	o := newOnHosts(t, func(*bench) string { return dataTier })
	before := o.hosts.Holds()
	at := o.up(t)
	redis := o.forward(t, netip.MustParseAddrPort("192.168.10.53:6379"))
	testkit.Eventually(t, readyIn, "Redis at the virtual address", func() error { return speaksTLS(redis) })
	o.seedsAreSecret(t)
	o.nothingElseFails(t)

	holder := o.holder(t, "192.168.10.53", "balancer3", "balancer4")
	host := at[holder]
	o.askAnother(host)
	cut := time.Now()
	o.hosts.CutPower(host)
	testkit.Eventually(t, vipBackIn, "Redis at the virtual address, after the power cut", func() error { return speaksTLS(redis) })
	t.Logf("host %s with %s lost its power: the virtual address led to a master again after %s", host, holder, time.Since(cut).Round(100*time.Millisecond))
	o.lostHostIsUnknown(t, host)
	o.hosts.PowerOn(host)
	start := time.Now()
	o.waitReady(t)
	t.Logf("all nodes were ready %s after the daemon of host %s answered", time.Since(start).Round(time.Second), host)

	o.lab(t, "down")
	o.holdsAsBefore(t, before)
}

// seedsAreSecret makes sure that whoever may only look at the project learns no secret.
func (o *onHosts) seedsAreSecret(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(o.dir, "secrets", "passwords.json"))
	if err != nil {
		t.Fatal(err)
	}
	var passwords map[string]string
	if err := json.Unmarshal(data, &passwords); err != nil || len(passwords) == 0 {
		t.Fatalf("passwords: %v", err)
	}
	shown := o.hosts.Run(o.asked, "query", "/1.0/instances?recursion=2&project="+o.project) + o.hosts.Run(o.asked, "query", "/1.0/operations?recursion=1")
	for name, p := range passwords {
		if strings.Contains(shown, p) {
			t.Errorf("Incus shows the password %s", name)
		}
	}
	for _, n := range o.nodes(t) {
		out, err := o.in(n.Node, "stat -L -c '%n %a %u' /var/lib/cloud/seed/nocloud/*")
		if err != nil || len(regexp.MustCompile(`(?m)(user-data|meta-data|network-config) 600 0$`).FindAllString(out, -1)) != 3 {
			t.Errorf("the seed of %s: %v %s", n.Node, err, out)
		}
	}
}

// nothingElseFails looks for units that fail in containers, beyond those that are known to.
func (o *onHosts) nothingElseFails(t *testing.T) {
	t.Helper()
	for _, n := range o.nodes(t) {
		out, err := o.in(n.Node, "systemctl list-units --failed --plain --no-legend --quiet")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if unit, _, _ := strings.Cut(line, " "); notInContainers[unit] == "" {
				why, _ := o.in(n.Node, "systemctl show -p Result,ExecMainStatus "+unit+"; journalctl -q --no-pager -b -u "+unit)
				t.Errorf("%s: %s failed:\n%s", n.Node, unit, why)
			}
		}
	}
}

// lostHostIsUnknown: status answers soon while a host is dead, and its machines are neither on nor off.
func (o *onHosts) lostHostIsUnknown(t *testing.T, lost ...string) {
	t.Helper()
	testkit.Eventually(t, time.Minute, "the lost host in the status", func() error {
		start := time.Now()
		nodes := o.nodes(t)
		took := time.Since(start)
		if took > statusIn {
			t.Errorf("status took %s", took)
		}
		for _, n := range nodes {
			want := "on"
			if slices.Contains(lost, n.Host) {
				want = "unknown"
			}
			if n.Power != want {
				return fmt.Errorf("%s on %s is %s, want %s", n.Node, n.Host, n.Power, want)
			}
		}
		t.Logf("status answered after %s", took.Round(100*time.Millisecond))
		return nil
	})
}

func (o *onHosts) holdsAsBefore(t *testing.T, before []string) {
	t.Helper()
	for _, what := range o.hosts.Holds() {
		if !slices.Contains(before, what) {
			t.Errorf("left: %s", what)
		}
	}
}

// newWholeOnHosts is newOnHosts for the reference cluster. The images that edit takes the spec to are baked before the hosts are made,
// while nothing else runs.
func newWholeOnHosts(t *testing.T, edit func(b *bench)) *onHosts {
	t.Helper()
	return newOnHosts(t, func(b *bench) string {
		b.run(t, "init", "--distro", "debian12", b.dir)
		replaceIn(t, b.spec(), "cluster: otus", "cluster: e2e-incus")
		spec, err := os.ReadFile(b.spec())
		if err != nil {
			t.Fatal(err)
		}
		edit(b)
		b.lab(t, "build")
		return string(spec)
	})
}

// upWhole makes all machines, and returns the host of each once the site can be visited.
func (o *onHosts) upWhole(t *testing.T) map[string]string {
	t.Helper()
	at := o.up(t)
	if len(at) != 17 {
		t.Fatalf("%d nodes", len(at))
	}
	o.site = o.forward(t, netip.MustParseAddrPort(siteVIP+":80"))
	took := testkit.Eventually(t, time.Minute, "front page", o.frontPage)
	t.Logf("the front page came through the virtual address %s after all were ready", took.Round(100*time.Millisecond))
	return at
}

// TestIncusWhole runs the reference cluster on three Incus hosts, and breaks hosts under the fault matrix' load.
func TestIncusWhole(t *testing.T) {
	o := newWholeOnHosts(t, func(b *bench) {
		spec, err := os.ReadFile(b.spec())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.spec(), withOneMorePackage(spec), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	before := o.hosts.Holds()
	at := o.upWhole(t)
	o.seedsAreSecret(t)
	o.nothingElseFails(t)

	l, stop := o.newLoad(t)
	stop = sync.OnceFunc(stop)
	defer stop()
	testkit.Eventually(t, recoverLimit, "load", func() error { return l.steady(kinds) })
	var results []result
	defer func() { t.Logf("\n%s", table(results)) }()
	for _, f := range pick(o.faults(t, l, at)) {
		r := l.suffer(t, f)
		results = append(results, r)
		t.Log(r)
		r.meets(t, f.goal)
		if t.Failed() { // what comes after would tell nothing
			return
		}
	}
	stop()
	o.lab(t, "down")
	o.holdsAsBefore(t, before)
}

// TestChangesOnIncus changes the reference cluster on three Incus hosts, under the fault matrix' load. IMAGEGEN_CHANGES, a regular
// expression, picks some of the changes.
func TestChangesOnIncus(t *testing.T) {
	o := newWholeOnHosts(t, func(b *bench) { b.newerWordPress(t) })
	before := o.hosts.Holds()
	o.upWhole(t)
	l, stop := o.newLoad(t)
	stop = sync.OnceFunc(stop)
	defer stop()
	testkit.Eventually(t, recoverLimit, "load", func() error { return l.steady(kinds) })
	l.changeAll(t, o.coreChanges(), o.explain)
	stop()
	o.lab(t, "down")
	o.holdsAsBefore(t, before)
}

// faults are those of hosts.
func (o *onHosts) faults(t *testing.T, l *load, at map[string]string) []fault {
	t.Helper()
	host := at[o.holder(t, "192.168.10.39", "balancer1", "balancer2")]
	// The one that stays is the one that could do most of the work alone.
	carried := map[string]int{}
	for _, n := range o.nodes(t) {
		carried[n.Host]++
	}
	lost := slices.Clone(o.hosts.Hosts())
	slices.SortStableFunc(lost, func(a, b string) int { return carried[a] - carried[b] })
	lost = lost[:2]
	return []fault{
		{name: "a host loses power", goal: goal{[]string{"read"}, vipBackIn},
			do:   func() error { o.askAnother(host); o.hosts.CutPower(host); o.lostHostIsUnknown(t, host); return nil },
			undo: func() error { o.hosts.PowerOn(host); return nil }},
		{name: "a host is cut off from the others", goal: goal{[]string{"read"}, vipBackIn},
			do:   func() error { o.askAnother(host); o.hosts.Unplug(host); return nil },
			undo: func() error { o.hosts.Plug(host); return nil }},
		{name: "two of three hosts lose power", stays: []string{},
			do: func() error {
				o.askAnother(lost...)
				for _, h := range lost {
					o.hosts.CutPower(h)
				}
				return errors.Join(l.refused(), o.statusSays(t, lost))
			},
			undo: func() error {
				for _, h := range lost {
					o.hosts.PowerOn(h)
				}
				return nil
			}},
		o.breaker(t).allAreRenewed(),
	}
}

// refused is content when nothing is acknowledged for a while.
func (l *load) refused() error {
	changes := []string{"write", "post", "file"}
	acked := func() (n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, k := range changes {
			n += len(l.acked[k])
		}
		return n
	}
	time.Sleep(requestLimit) // for those that were under way
	before := acked()
	time.Sleep(refusalLasts)
	if n := acked() - before; n > 0 {
		return fmt.Errorf("%d changes were acknowledged by a minority", n)
	}
	return nil
}

// statusSays is content when status tells what it can of nodes while Incus has no majority, and takes no longer than people wait.
func (o *onHosts) statusSays(t *testing.T, lost []string) error {
	start := time.Now()
	out, err := o.try("status", "-f", o.spec(), "-o", o.dist())
	took := time.Since(start)
	t.Logf("hosts %v are lost; status after %s: %v\n%s", lost, took.Round(100*time.Millisecond), err, out)
	if took > statusIn {
		return fmt.Errorf("status took %s", took)
	}
	return err
}

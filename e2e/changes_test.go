package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/internal/testkit"
	"imagegen/roles"
)

// change is a row of the table of changes: an edit of the spec, or of a role's folder beside it, that imagegen apply takes the
// running cluster to.
type change struct {
	name string
	edit func(t *testing.T)
	// build: an image changes.
	build bool
	args  []string // further arguments of imagegen apply
	// refused or undone say how imagegen apply ends; empty: the cluster runs the change.
	refused, undone string
	// check tells whether the change has taken effect; nil: that nothing differs from the spec is enough.
	check func() error
	goal  goal // of the time, in total, in which requests failed
	// killed: imagegen is killed after the first node, and run again.
	killed bool
	outage bool   // the operator agrees to one
	cutOff string // a node that the others do not reach meanwhile
}

// calm is the goal of a change without a failover, and those with one may cost what the failover does.
var calmGoal = goal{kinds, 3 * time.Second}

// cost of a change.
type cost struct {
	name  string
	took  time.Duration // imagegen apply
	down  map[string]time.Duration
	fails map[string]int
	older int
	lost  int
}

// TestChanges changes the reference cluster in every way of the table in docs/changes.md, one after the other, under the load of
// the fault matrix. It takes more than an hour, so it runs only with IMAGEGEN_E2E=changes (make e2e-changes);
// IMAGEGEN_CHANGES, a regular expression, picks some.
func TestChanges(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "changes" {
		t.Skip("the table of changes runs with IMAGEGEN_E2E=changes, as root: make e2e-changes")
	}
	b := newBenchOf(t, "e2e-changes")
	b.lab(t, "build")
	b.up(t)
	b.waitReady(t)
	l, stop := b.newLoad(t)
	defer stop()
	testkit.Eventually(t, time.Minute, "load", func() error { return l.steady(kinds) })

	l.changeAll(t, b.changes(), b.explain)
}

// changeAll makes those of the changes that IMAGEGEN_CHANGES, a regular expression, asks for, and prints what they cost.
func (l *load) changeAll(t *testing.T, all []change, explain func(t *testing.T)) {
	only := regexp.MustCompile(os.Getenv("IMAGEGEN_CHANGES"))
	var costs []cost
	defer func() { t.Logf("\n%s", costTable(costs)) }()
	for _, c := range all {
		if !only.MatchString(c.name) {
			continue
		}
		l.bench.waitReady(t) // without that, what follows would mean nothing
		if !t.Run(c.name, func(t *testing.T) {
			r := l.change(t, c)
			costs = append(costs, r)
			t.Log(r)
			for _, k := range c.goal.kinds {
				if r.down[k] > c.goal.back {
					t.Errorf("goal missed: %ss failed for %.1f s", k, r.down[k].Seconds())
				}
			}
		}) {
			explain(t)
		}
	}
}

// change makes a change and measures what it costs.
func (l *load) change(t *testing.T, c change) cost {
	t.Helper()
	b := l.bench
	before := b.files(t)
	c.edit(t)
	if c.build {
		b.lab(t, "build")
	}
	l.watch()
	start := time.Now()
	if c.killed {
		b.killedApply(t)
	}
	var args []string
	if c.outage {
		args = []string{"--outage"}
	}
	if c.cutOff != "" {
		b.lab(t, "cut", c.cutOff)
	}
	out, err := b.apply(append(args, c.args...)...)
	if c.cutOff != "" {
		b.lab(t, "mend")
		b.waitReady(t)
	}
	took := time.Since(start)
	t.Logf("imagegen apply:\n%s", out)
	want := c.refused + c.undone
	switch {
	case want == "" && err != nil:
		t.Error(err)
	case want != "" && (err == nil || !regexp.MustCompile(want).MatchString(err.Error())):
		t.Errorf("apply should say %q: %v", want, err)
	}
	if want != "" || err != nil {
		b.restore(t, before)
		if c.build {
			b.lab(t, "build")
		}
		if out, err := b.apply(args...); err != nil || c.undone != "" && !strings.HasPrefix(out, "nothing to do") {
			t.Errorf("back to the earlier spec: %v\n%s", err, out)
		}
	}
	b.waitReady(t)
	testkit.Eventually(t, recoverLimit, "load", func() error { return l.steady(kinds) })
	testkit.Eventually(t, recoverLimit, "one holder of each address", b.oneHolder)
	if out := b.lab(t, "diff"); !strings.Contains(out, "\n0 of ") {
		t.Errorf("the nodes do not run what the spec says:\n%s", out)
	}
	if c.check != nil && want == "" {
		testkit.Eventually(t, time.Minute, c.name, c.check)
	}
	return l.cost(t, c.name, took)
}

// cost returns what has failed since watch, and how much of what was acknowledged is missing, which is an error.
func (l *load) cost(t *testing.T, name string, took time.Duration) cost {
	t.Helper()
	r := cost{name: name, took: took, fails: map[string]int{}, down: map[string]time.Duration{}}
	r.lost = l.lost(t)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range kinds {
		r.fails[k], r.down[k] = l.fails[k], l.down[k]
	}
	r.older = l.older
	return r
}

// apply takes the cluster to the spec.
func (b *bench) apply(args ...string) (string, error) {
	return b.try(append([]string{"apply", "-f", b.spec(), "-o", b.dist(), "--yes"}, args...)...)
}

// killedApply kills imagegen apply once the first node has changed.
func (b *bench) killedApply(t *testing.T) {
	t.Helper()
	cmd := b.program("apply", "-f", b.spec(), "-o", b.dist(), "--yes")
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), ": ready") {
	}
	cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Error("apply has ended before it was killed")
	}
}

// files returns the spec and the roles beside it.
func (b *bench) files(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	names, _ := filepath.Glob(filepath.Join(b.dir, "roles", "*", "*"))
	for _, name := range append(names, b.spec()) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(data)
	}
	return all
}

// restore brings back what files returned.
func (b *bench) restore(t *testing.T, files map[string]string) {
	t.Helper()
	for name := range b.files(t) {
		if _, is := files[name]; !is {
			os.Remove(name)
			os.Remove(filepath.Dir(name))
		}
	}
	for name, data := range files {
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// edit returns an edit of the spec: pairs of text, each of which is there once, and what it becomes.
func (b *bench) edit(pairs ...string) func(t *testing.T) {
	return func(t *testing.T) {
		t.Helper()
		replaceIn(t, b.spec(), pairs...)
	}
}

func replaceIn(t *testing.T, file string, pairs ...string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for p := range slices.Chunk(pairs, 2) {
		if strings.Count(text, p[0]) != 1 {
			t.Fatalf("%s has %q %d times", file, p[0], strings.Count(text, p[0]))
		}
		text = strings.Replace(text, p[0], p[1], 1)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// editRole returns an edit of a file of a role, which the cluster gets a copy of.
func (b *bench) editRole(role, file string, pairs ...string) func(t *testing.T) {
	return func(t *testing.T) {
		t.Helper()
		dir := filepath.Join(b.dir, "roles", role)
		if _, err := os.Stat(dir); err != nil {
			if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "roles", role))); err != nil {
				t.Fatal(err)
			}
		}
		replaceIn(t, filepath.Join(dir, file), pairs...)
	}
}

// changes returns the table. Each row finds the cluster as the rows before have left it, whichever of them were picked.
func (b *bench) changes() []change {
	has := func(node, script, want string) func() error {
		return func() error {
			out, err := b.in(node, script)
			if err == nil && strings.TrimSpace(out) != want {
				err = fmt.Errorf("%s: %q is %q, not %q", node, script, out, want)
			}
			return err
		}
	}
	var all []change
	// both adds a row for a change of the spec, and one for the way back.
	both := func(c change, back string, pairs ...string) {
		c.edit = b.edit(pairs...)
		reverse := slices.Clone(pairs)
		slices.Reverse(reverse)
		all = append(all, c, change{name: back, build: c.build, outage: c.outage, goal: c.goal, edit: b.edit(reverse...)})
	}
	both(change{name: "an option of backend", goal: calmGoal, check: has("backend1", "grep -c '^pm.max_children = 9$' /etc/php/8.2/fpm/pool.d/*.conf", "1")},
		"the option's default again", "  backend:\n", "  backend:\n    options: {children: \"9\"}\n")
	both(change{name: "another title of the site", goal: calmGoal, check: func() error { return b.titled("A site that moves on", pageLimit) }},
		"the title of before", "  title: "+siteTitle+"\n", "  title: A site that moves on\n")
	all[len(all)-1].check = b.frontPage
	const ownURL = "http://www.example.com"
	both(change{name: "an address of the site's own", goal: calmGoal, check: func() error { return b.isAt(ownURL, ownURL) }},
		"no address of the site's own", "  admin_email: admin@example.com\n", "  admin_email: admin@example.com\n  url: "+ownURL+"\n")
	all[len(all)-1].check = func() error { return b.isAt(b.origin(), "http://"+siteVIP) }
	both(change{name: "HTTPS", goal: calmGoal, check: func() error { return b.sendsTo("https") }}, "no HTTPS", plainSite, httpsSite)
	all[len(all)-1].check = func() error { return b.sendsTo("http") }
	both(change{name: "the time zone", goal: bothGoal, check: has("percona2", "readlink /etc/localtime", "/usr/share/zoneinfo/Europe/Helsinki")},
		"the time zone of before", "Europe/Moscow", "Europe/Helsinki")
	all = append(all,
		change{name: "a template of web", goal: calmGoal, edit: b.editRole("web", "nginx.conf", "http {\n", "http {\n    # changed\n"), check: has("web2", "grep -c '# changed' /etc/nginx/nginx.conf", "1")},
		b.nginxRefuses(),
		change{name: "a package for web with which nginx does not start", build: true, args: givesUpSoon, goal: calmGoal, edit: b.brokenPackage, undone: "web[12] does not become ready: .*; the change is undone: "},
		change{name: "a third node of web at the address of another node", goal: calmGoal, refused: "192.168.10.40 is already the address of ",
			edit: b.edit("      web2: 192.168.10.43\n", "      web2: 192.168.10.43\n      web3: 192.168.10.40\n")},
		change{name: "a role of the user's own, whose daemon gets a wrong address", build: true, args: givesUpSoon, goal: calmGoal, undone: "memcached1 does not become ready: .*; the change is undone: ",
			edit: func(t *testing.T) {
				b.addRole(t)
				replaceIn(t, filepath.Join(b.dir, "roles/memcached/memcached.conf"), "-l {{.Node.IP}}\n", "-l 192.0.2.1\n")
			}},
		change{name: "a role of the user's own", build: true, goal: calmGoal, edit: b.addRole,
			check: has("backend1", `timeout 5 bash -c 'exec 3<>/dev/tcp/memcached1/11211; printf "version\r\n" >&3; read -r word rest <&3; echo "$word"'`, "VERSION")},
		change{name: "no role of the user's own", goal: calmGoal, edit: b.dropRole},
	)
	both(change{name: "an option of backend, and imagegen is killed half-way", killed: true, goal: calmGoal},
		"the option's default again, with percona3 cut off", "  backend:\n", "  backend:\n    options: {children: \"11\"}\n")
	all[len(all)-1].cutOff, all[len(all)-1].goal = "percona3", calmGoal
	both(change{name: "memory of percona", goal: calmGoal}, "less memory of percona", "    memory: 512MiB\n", "    memory: 640MiB\n")
	both(change{name: "one more package for web", build: true, goal: calmGoal, check: has("web1", "command -v tree", "/usr/bin/tree")},
		"one package less for web", "  web:\n", "  web:\n    packages: [tree]\n")
	var thirds []string
	for _, n := range []struct{ role, last, added string }{
		{"web", "web2: 192.168.10.43", "web3: 192.168.10.60"},
		{"backend", "backend2: 192.168.10.48", "backend3: 192.168.10.61"},
		{"balancer", "balancer2: 192.168.10.41", "balancer5: 192.168.10.62"},
		{"databalancer", "balancer4: 192.168.10.54", "balancer6: 192.168.10.63"},
	} {
		third := []string{"      " + n.last + "\n", "      " + n.last + "\n      " + n.added + "\n"}
		both(change{name: "a third node of " + n.role, goal: calmGoal}, "back to two nodes of "+n.role, third...)
		thirds = append(thirds, third...)
	}
	both(change{name: "a third node of each role that had two, at once", goal: calmGoal}, "back to two nodes of each, at once", thirds...)
	both(change{name: "five nodes of redis", goal: calmGoal}, "back to three nodes of redis", fiveRedis...)
	both(change{name: "five nodes of percona", goal: calmGoal}, "back to three nodes of percona", fivePercona...)
	both(change{name: "five nodes of glusterfs", goal: calmGoal}, "back to three nodes of glusterfs", fiveGlusterFS...)
	both(change{name: "five nodes of each, at once", goal: bothGoal}, "back to three nodes of each, at once", slices.Concat(fiveRedis, fivePercona, fiveGlusterFS)...)
	var moves []string
	for _, n := range []struct {
		node, address string
		goal          goal
	}{{"redis1", "192.168.10.49", redisGoal}, {"percona1", "192.168.10.55", calmGoal}, {"glusterfs2", "192.168.10.45", calmGoal}, {"web2", "192.168.10.43", calmGoal}, {"backend2", "192.168.10.48", calmGoal}, {"balancer2", "192.168.10.41", calmGoal}, {"balancer4", "192.168.10.54", calmGoal}} {
		both(change{name: "another address for " + n.node, goal: n.goal}, "the address of before for "+n.node,
			n.node+": "+n.address+"\n", n.node+": 192.168.10.70\n")
		moves = append(moves, n.node+": "+n.address+"\n", fmt.Sprintf("%s: 192.168.10.%d\n", n.node, 71+len(moves)/2))
	}
	both(change{name: "other addresses for a node of each role, at once", goal: bothGoal}, "the addresses of before, at once", moves...)
	// How long a planned outage takes is measured, and has no goal.
	both(change{name: "other addresses for all nodes of redis, in an outage", outage: true, check: has("redis2", "ip -br addr | grep -c '192.168.10.172/'", "1")}, "the addresses of before for redis, in an outage",
		"redis1: 192.168.10.49\n", "redis1: 192.168.10.171\n", "redis2: 192.168.10.50\n", "redis2: 192.168.10.172\n", "redis3: 192.168.10.51\n", "redis3: 192.168.10.173\n")
	all = append(all,
		change{name: "another network for all", outage: true, edit: b.renumber("192.168.10.", "192.168.20."), check: has("percona2", "ip -br addr | grep -c '192.168.20.56/'", "1")},
		change{name: "the network of before for all", outage: true, edit: b.renumber("192.168.20.", "192.168.10."), check: has("percona2", "ip -br addr | grep -c '192.168.10.56/'", "1")},
	)
	both(change{name: "another MAC address for web2", goal: calmGoal}, "the MAC address of before for web2",
		"web2: 192.168.10.43\n", "web2: {ip: 192.168.10.43, mac: \"52:54:00:12:34:56\"}\n")
	both(change{name: "web1 and web2 change places", goal: calmGoal}, "and back",
		"      web1: 192.168.10.42\n      web2: 192.168.10.43\n", "      web2: 192.168.10.43\n      web1: 192.168.10.42\n")
	return append(all, b.newerCore())
}

// The edits that give a role two more nodes.
var (
	fiveRedis     = []string{"      redis3: 192.168.10.51\n", "      redis3: 192.168.10.51\n      redis4: 192.168.10.64\n      redis5: 192.168.10.65\n"}
	fivePercona   = []string{"      percona3: 192.168.10.57\n", "      percona3: 192.168.10.57\n      percona4: 192.168.10.66\n      percona5: 192.168.10.67\n"}
	fiveGlusterFS = []string{"      glusterfs3: 192.168.10.46\n", "      glusterfs3: 192.168.10.46\n      glusterfs4: 192.168.10.68\n      glusterfs5: 192.168.10.69\n"}
)

// bothGoal is for changes that restart nodes of redis and of percona: the time of a failover of Redis, and what another change may cost.
var bothGoal = goal{kinds, redisGoal.back + calmGoal.back}

// coreChanges is the part of the table for clusters on several hosts.
func (b *bench) coreChanges() []change {
	more := slices.Concat(fiveRedis, fivePercona)
	fewer := slices.Clone(more)
	slices.Reverse(fewer)
	return []change{
		{name: "two more nodes of redis and of percona", goal: bothGoal, edit: b.edit(more...)},
		{name: "other addresses for redis1 and percona1", goal: bothGoal,
			edit: b.edit("redis1: 192.168.10.49\n", "redis1: 192.168.10.70\n", "percona1: 192.168.10.55\n", "percona1: 192.168.10.71\n")},
		{name: "back to three nodes of redis and of percona", goal: bothGoal, edit: b.edit(fewer...)},
		b.nginxRefuses(),
		b.newerCore(),
	}
}

func (b *bench) nginxRefuses() change {
	return change{name: "a template of web that nginx refuses", goal: calmGoal, edit: b.editRole("web", "nginx.conf", "http {\n", "http {\n    nonsense;\n"),
		undone: "web[12] does not become ready: .*; the change is undone: "}
}

func (b *bench) newerCore() change {
	return change{name: "a newer WordPress", build: true, goal: calmGoal, edit: b.newerWordPress, check: b.upgradedOnce}
}

// givesUpSoon is for changes that cannot succeed: a new machine is waited for this long.
var givesUpSoon = []string{"--timeout", readyIn.String()}

// isAt succeeds if the site's pages call its address page, and its database calls it kept.
func (b *bench) isAt(page, kept string) error {
	body, err := b.get(b.visitor(pageLimit), "/index.php?rest_route=/")
	if err != nil {
		return err
	}
	var site struct{ Home string }
	if err := json.Unmarshal([]byte(body), &site); err != nil || site.Home != page {
		return fmt.Errorf("pages call the site's address %q, not %q: %v", site.Home, page, err)
	}
	out, err := b.in("percona1", `mariadb -N wordpress -e "SELECT option_value FROM wp_options WHERE option_name = 'home'"`)
	if err == nil && strings.TrimSpace(out) != kept {
		err = fmt.Errorf("the database has the address %q, not %q", out, kept)
	}
	return err
}

// sendsTo succeeds if visitors who come over plain HTTP see the front page over this scheme.
func (b *bench) sendsTo(scheme string) error {
	resp, err := b.visitor(pageLimit).Get("http://" + b.site + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Request.URL.Scheme != scheme {
		return fmt.Errorf("visitors are sent to %s: %s", resp.Request.URL, resp.Status)
	}
	return nil
}

// brokenPackage gives web a package with which nginx does not start.
func (b *bench) brokenPackage(t *testing.T) {
	t.Helper()
	testkit.Write(t, filepath.Join(b.dir, "broken/DEBIAN/control"), "Package: broken\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: keeps nginx from starting\n")
	testkit.Write(t, filepath.Join(b.dir, "broken/usr/lib/systemd/system/nginx.service.d/broken.conf"), "[Service]\nExecStartPre=/bin/false\n")
	cmd := exec.Command("dpkg-deb", "--root-owner-group", "-b", "broken", "broken.deb")
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("a broken package: %v\n%s", err, out)
	}
	b.edit("  web:\n", "  web:\n    packages: [./broken.deb]\n")(t)
}

// addRole adds the role that docs/roles.md adds.
func (b *bench) addRole(t *testing.T) {
	t.Helper()
	files, lines := testkit.Walkthrough(t)
	for name, text := range files {
		testkit.Write(t, filepath.Join(b.dir, "roles", name), text)
	}
	spec, err := os.ReadFile(b.spec())
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, b.spec(), string(spec)+lines)
}

// dropRole takes it out of the spec.
func (b *bench) dropRole(t *testing.T) {
	t.Helper()
	_, lines := testkit.Walkthrough(t)
	replaceIn(t, b.spec(), lines, "")
}

// renumber returns an edit of the spec that moves all addresses to another network.
func (b *bench) renumber(from, to string) func(t *testing.T) {
	return func(t *testing.T) {
		t.Helper()
		data, err := os.ReadFile(b.spec())
		if err == nil {
			err = os.WriteFile(b.spec(), []byte(strings.ReplaceAll(string(data), from, to)), 0o644)
		}
		if err != nil || !strings.Contains(string(data), from) {
			t.Fatalf("%s has no address %s…: %v", b.spec(), from, err)
		}
	}
}

// newerVersion is what the newer WordPress calls itself.
const newerVersion = "6.1.77"

// newerWordPress gives web and backend Debian's WordPress with a higher version, of its tables as well. It makes the package once, so
// that an image with it can be baked before it is needed.
func (b *bench) newerWordPress(t *testing.T) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", `
[ ! -e newer.deb ] || exit 0
apt-get download -qq wordpress
dpkg-deb -R wordpress_*.deb w
f=w/usr/share/wordpress/wp-includes/version.php
v=$(sed -n 's/^\$wp_db_version = \([0-9]*\);/\1/p' $f)
sed -i "s/^\$wp_db_version = $v;/\$wp_db_version = $((v+1));/; s/^\$wp_version = .*/\$wp_version = '`+newerVersion+`';/" $f
(cd w && find usr -type f -print0 | xargs -0 md5sum >DEBIAN/md5sums)
sed -i 's/^Version: .*/&+newer1/' w/DEBIAN/control
dpkg-deb -b w made.deb
mv made.deb newer.deb
rm -r w wordpress_*.deb`)
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("a newer WordPress: %v\n%s", err, out)
	}
	b.edit("  web:\n", "  web:\n    packages: [./newer.deb]\n", "  backend:\n", "  backend:\n    packages: [./newer.deb]\n")(t)
}

// upgradedOnce: the newer WordPress has upgraded the database, once.
func (b *bench) upgradedOnce() error {
	out, err := b.in("percona1", `mariadb -N wordpress -e "SELECT option_value FROM wp_options WHERE option_name = 'imagegen_release'"`)
	if err == nil && strings.TrimSpace(out) != newerVersion {
		err = fmt.Errorf("the database is that of WordPress %q", out)
	}
	if err != nil {
		return err
	}
	events, err := b.try("events", "-f", b.spec(), "-o", b.dist(), "--since", "1h")
	if n := strings.Count(events, "upgrading the database to WordPress "+newerVersion); err == nil && n != 1 {
		err = fmt.Errorf("the database was upgraded %d times:\n%s", n, events)
	}
	return err
}

func (c cost) String() string {
	var parts []string
	for _, k := range kinds {
		if c.fails[k] > 0 {
			parts = append(parts, fmt.Sprintf("%d %ss failed, for %.1f s", c.fails[k], k, c.down[k].Seconds()))
		}
	}
	if parts == nil {
		parts = []string{"nothing failed"}
	}
	return fmt.Sprintf("%s; %d sessions a step back; apply took %.0f s; %d lost", strings.Join(parts, "; "), c.older, c.took.Seconds(), c.lost)
}

// costTable formats the table for docs/changes.md.
func costTable(costs []cost) string {
	var b strings.Builder
	b.WriteString("| change | apply took |")
	for _, k := range kinds {
		fmt.Fprintf(&b, " %ss failed, for |", k)
	}
	b.WriteString(" sessions a step back | writes lost |\n|---|" + strings.Repeat("---|", len(kinds)+3) + "\n")
	for _, c := range costs {
		fmt.Fprintf(&b, "| %s | %.0f s |", c.name, c.took.Seconds())
		for _, k := range kinds {
			if c.fails[k] == 0 {
				b.WriteString(" 0 |")
				continue
			}
			fmt.Fprintf(&b, " %d, %.1f s |", c.fails[k], c.down[k].Seconds())
		}
		fmt.Fprintf(&b, " %d | %d |\n", c.older, c.lost)
	}
	return b.String()
}

// TestChangesFitTheSpec edits the reference cluster's spec as the tables do, without a cluster: a row that no longer fits would
// otherwise be found after an hour.
func TestChangesFitTheSpec(t *testing.T) {
	testkit.Program(t, "dpkg-deb", "dpkg")
	for what, table := range map[string]func(b *bench) []change{"all": (*bench).changes, "core": (*bench).coreChanges} {
		t.Run(what, func(t *testing.T) {
			b := &bench{dir: t.TempDir()}
			testkit.Write(t, b.spec(), string(cluster.Reference("debian12")))
			testkit.Write(t, filepath.Join(b.dir, "newer.deb"), "a package that has been made already")
			for _, c := range table(b) {
				before := b.files(t)
				c.edit(t)
				catalogue, err := roles.Load(filepath.Join(b.dir, "roles"))
				if err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				spec, err := os.ReadFile(b.spec())
				if err != nil {
					t.Fatal(err)
				}
				_, err = cluster.Parse(b.spec(), spec, catalogue.Rules())
				if want := regexp.MustCompile(c.refused); c.refused == "" && err != nil || c.refused != "" && (err == nil || !want.MatchString(err.Error())) {
					t.Errorf("%s: %v", c.name, err)
				}
				if after := b.files(t); maps.Equal(before, after) {
					t.Errorf("%s: nothing changes", c.name)
				}
				if c.refused+c.undone != "" {
					b.restore(t, before)
				}
			}
		})
	}
}

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

// probePHP is installed on the site: it does one small operation in one of the tiers and prints "ok" once that is
// durable.
const probePHP = `<?php
if ($_GET['op'] !== 'post') define('SHORTINIT', true);
require dirname(__DIR__) . '/wp-load.php'; // as plug-ins find WordPress
$n = (int)($_GET['n'] ?? 0);
$dir = __DIR__ . '/probe';
switch ($_GET['op']) {
case 'write':
	if ($wpdb->query("INSERT IGNORE INTO probe VALUES ($n)") === false) die($wpdb->last_error);
	break;
case 'read':
	if ($wpdb->get_var('SELECT COUNT(*) FROM probe') === null) die($wpdb->last_error);
	break;
case 'file':
	// A request that the client has given up may be done long after a later one.
	$f = fopen("$dir/" . $n % 100, 'c+');
	if (!$f || !flock($f, LOCK_EX)) die('not opened');
	if ((int)fread($f, 12) > $n) die('too late');
	if (!rewind($f) || fwrite($f, sprintf('%012d', $n)) !== 12 || !fsync($f) || !fclose($f)) die('not written');
	break;
case 'session':
	if (!session_start()) die('no session');
	$older = ($_SESSION['n'] ?? 0) < (int)($_GET['last'] ?? 0);
	$_SESSION['n'] = $n;
	if (!session_write_close()) die('not kept');
	if ($older) die('ok, older');
	break;
case 'post':
	$id = wp_insert_post(['post_title' => "probe $n", 'post_content' => 'text', 'post_status' => 'publish', 'post_author' => 1], true);
	if (is_wp_error($id)) die($id->get_error_message());
	break;
case 'prepare':
	@mkdir($dir);
	$wpdb->query('CREATE TABLE IF NOT EXISTS probe (n BIGINT PRIMARY KEY)');
	break;
case 'all':
	header('Content-Type: application/json');
	die(json_encode(['write' => array_map('intval', $wpdb->get_col('SELECT n FROM probe')),
		'post' => array_map(fn($t) => (int)substr($t, 6), $wpdb->get_col("SELECT post_title FROM {$table_prefix}posts WHERE post_title LIKE 'probe %'")),
		'file' => array_map(fn($f) => (int)file_get_contents($f), glob("$dir/*"))]));
default:
	die('what?');
}
echo 'ok';
`

// kinds of requests that the load sends continuously.
var kinds = []string{"read", "write", "post", "file", "session"}

// load is a client that reads and writes continuously and records everything that was acknowledged.
type load struct {
	bench *bench
	mu    sync.Mutex
	next  int
	acked map[string]map[int]bool // by kind
	fails map[string]int
	last  map[string]time.Time     // success
	bad   map[string]time.Time     // failure
	since map[string]time.Time     // start of the first request that failed since the last success
	down  map[string]time.Duration // from such starts to the next success, in total
	why   map[string]string        // of the last failure
	older int                      // sessions that lost an acknowledged change
}

// every is the interval between requests of a kind. A post loads all of WordPress.
var every = map[string]time.Duration{
	"read": 200 * time.Millisecond, "write": 200 * time.Millisecond, "post": time.Second, "file": 200 * time.Millisecond, "session": 200 * time.Millisecond,
}

const (
	requestLimit = 4 * time.Second
	recoverLimit = 3 * time.Minute
)

func (b *bench) newLoad(t *testing.T) (l *load, stop func()) {
	t.Helper()
	if _, err := b.in("backend1", "cat >/mnt/gluster/wordpress/wp-content/probe.php <<'PHP'\n"+probePHP+"PHP\n"); err != nil {
		t.Fatal(err)
	}
	l = &load{bench: b, acked: map[string]map[int]bool{}, fails: map[string]int{}, last: map[string]time.Time{}, bad: map[string]time.Time{}, since: map[string]time.Time{}, down: map[string]time.Duration{}, why: map[string]string{}}
	testkit.Eventually(t, time.Minute, "the probe", func() error {
		_, err := l.request(&http.Client{Timeout: requestLimit}, "prepare", 0, 0)
		return err
	})
	quit := make(chan struct{})
	var wg sync.WaitGroup
	for _, kind := range kinds {
		l.acked[kind] = map[int]bool{}
		client := b.visitor(requestLimit)
		client.Jar, _ = cookiejar.New(nil)
		wg.Go(func() {
			for last := 0; ; {
				l.mu.Lock()
				l.next++
				n := l.next
				l.mu.Unlock()
				start := time.Now()
				older, err := l.request(client, kind, n, last)
				l.mu.Lock()
				if older {
					l.older++
				}
				if err != nil {
					l.fails[kind]++
					l.bad[kind], l.why[kind] = time.Now(), err.Error()
					if l.since[kind].IsZero() {
						l.since[kind] = start
					}
				} else {
					if since := l.since[kind]; !since.IsZero() {
						l.down[kind] += time.Since(since)
						delete(l.since, kind)
					}
					last, l.acked[kind][n] = n, true
					l.last[kind] = time.Now()
				}
				l.mu.Unlock()
				select {
				case <-quit:
					return
				case <-time.After(every[kind]):
				}
			}
		})
	}
	return l, func() { close(quit); wg.Wait() }
}

// request sends one request; older: the session lacks the acknowledged change last.
func (l *load) request(c *http.Client, op string, n, last int) (older bool, err error) {
	body, err := l.bench.get(c, fmt.Sprintf("/wp-content/probe.php?op=%s&n=%d&last=%d", op, n, last))
	older = body == "ok, older"
	if err == nil && body != "ok" && !older {
		err = fmt.Errorf("%.200s", body)
	}
	return older, err
}

// watch forgets earlier failures.
func (l *load) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.fails)
	clear(l.bad)
	clear(l.since)
	clear(l.down)
	l.older = 0
}

// steady succeeds if no request of the kinds has failed for three seconds and each has succeeded since.
func (l *load) steady(kinds []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range kinds {
		if quiet := time.Since(l.bad[k]); quiet < 3*time.Second || !l.last[k].After(l.bad[k]) || time.Since(l.last[k]) > 2*time.Second {
			return fmt.Errorf("%s: %s", k, l.why[k])
		}
	}
	return nil
}

// lost returns how much acknowledged data is missing. A client of the volume may show a state that is a second old, so
// missing data is looked for again.
func (l *load) lost(t *testing.T) int {
	t.Helper()
	acked := map[string]map[int]bool{}
	l.mu.Lock()
	for _, kind := range []string{"write", "post", "file"} {
		acked[kind] = maps.Clone(l.acked[kind])
	}
	l.mu.Unlock()
	missing := 0
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Second) {
		var all map[string][]int
		testkit.Eventually(t, time.Minute, "the list of what was written", func() error {
			body, err := l.bench.get(l.bench.visitor(30*time.Second), "/wp-content/probe.php?op=all")
			if err == nil {
				err = json.Unmarshal([]byte(body), &all)
			}
			return err
		})
		missing = 0
		for kind, ns := range acked {
			for _, n := range all[kind] {
				delete(ns, n)
				if kind == "file" { // a hundred files, overwritten again and again
					maps.DeleteFunc(ns, func(old int, _ bool) bool { return old%100 == n%100 && old < n })
				}
			}
			missing += len(ns)
		}
		if missing == 0 || time.Now().After(end) {
			break
		}
	}
	for kind, ns := range acked {
		if len(ns) > 0 {
			t.Errorf("%d acknowledged %ss are lost: %v", len(ns), kind, slices.Sorted(maps.Keys(ns)))
		}
	}
	return missing
}

// fault is a row of the matrix.
type fault struct {
	name string
	node nodeStatus // affected node; empty: several
	// before prepares the cluster; nil: it is as it should be.
	before func() error
	do     func() error
	in     time.Duration // do may take no longer; 0: any time
	// stays lists the kinds of requests that must recover while the fault lasts; nil: all.
	stays []string
	undo  func() error // nil: nothing to undo
	goal  goal
	// replaces tells that imagegen replaces a node from do to undo: not two at once.
	replaces bool
}

// goal is the maximum cost of a fault.
type goal struct {
	kinds []string      // of requests that it applies to
	back  time.Duration // from the fault to the end of the last failed request
}

// The design's goals.
var (
	vipGoal    = goal{[]string{"read"}, time.Second}
	redisGoal  = goal{[]string{"session"}, 4 * time.Second}
	galeraGoal = goal{[]string{"read", "write"}, 2500 * time.Millisecond}
	brickGoal  = goal{kinds, 5 * time.Second}
	hangGoal   = goal{kinds, 5 * time.Second}
	fullGoal   = goal{kinds, 5 * time.Second}
	frozenGoal = goal{kinds, 10 * time.Second}
	outageGoal = goal{kinds, 90 * time.Second}
)

// result of a fault.
type result struct {
	name  string
	seen  time.Duration            // from the fault until another node noticed it; 0: none did
	back  map[string]time.Duration // by kind: from the fault to the end of the last request that failed
	fails map[string]int
	older int           // sessions that lost an acknowledged change
	whole time.Duration // from the end of the fault until all nodes are ready
	lost  int
}

// meets fails the test if the fault cost more than it may.
func (r result) meets(t *testing.T, g goal) {
	t.Helper()
	for _, k := range g.kinds {
		if r.back[k] > g.back {
			t.Errorf("goal missed: %d %ss failed, the last after %.1f s", r.fails[k], k, r.back[k].Seconds())
		}
	}
}

// TestFaults injects every fault of the matrix, one after the other, under load. It takes more than an hour, so it runs
// only with IMAGEGEN_E2E=faults (make e2e-faults).
func TestFaults(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "faults" {
		t.Skip("the fault matrix runs with IMAGEGEN_E2E=faults, as root: make e2e-faults")
	}
	b := newBench(t)
	b.lab(t, "build")
	b.up(t)
	b.waitReady(t)
	l, stop := b.newLoad(t)
	defer stop()
	testkit.Eventually(t, time.Minute, "load", func() error { return l.steady(kinds) })

	seed := uint64(time.Now().UnixNano())
	t.Logf("random order from seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var results []result
	defer func() { t.Logf("\n%s", table(results)) }()
	for _, f := range b.faults(t, random) {
		t.Run(f.name, func(t *testing.T) {
			r := l.suffer(t, f)
			results = append(results, r)
			t.Log(r)
			r.meets(t, f.goal)
		})
		// Later results would mean nothing if the cluster has not recovered.
		b.waitReady(t)
		testkit.Eventually(t, recoverLimit, "load", func() error { return l.steady(kinds) })
	}
}

// suffer injects a fault, watches the load until it has recovered, and undoes the fault.
func (l *load) suffer(t *testing.T, f fault) result {
	t.Helper()
	stays := f.stays
	if stays == nil {
		stays = kinds
	}
	undo := sync.OnceValue(func() error {
		if f.undo == nil {
			return nil
		}
		return f.undo()
	})
	t.Cleanup(func() { undo() }) // whatever happens
	if f.before != nil {
		if err := f.before(); err != nil {
			t.Fatal(err)
		}
	}
	l.watch()
	start := time.Now()
	if err := f.do(); err != nil {
		t.Fatal(err)
	}
	done := time.Now()
	if took := done.Sub(start); f.in > 0 && took > f.in {
		t.Errorf("goal missed: it took %s, not %s", took.Round(time.Second), f.in)
	}
	// A fault without effect so far may still have one: detection takes seconds.
	testkit.Eventually(t, recoverLimit, "recovery", func() error {
		if time.Since(done) < 8*time.Second {
			return fmt.Errorf("too early to tell")
		}
		return l.steady(stays)
	})
	r := result{name: f.name, back: map[string]time.Duration{}, fails: map[string]int{}}
	l.mu.Lock()
	for _, k := range kinds {
		r.fails[k] = l.fails[k]
		if bad := l.bad[k]; !bad.IsZero() {
			r.back[k] = bad.Sub(start) // the next success came within a request's duration
		}
	}
	l.mu.Unlock()
	r.seen = l.bench.noticed(t, f.node, start)
	back := time.Now()
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	l.bench.waitReady(t)
	testkit.Eventually(t, recoverLimit, "everything", func() error { return l.steady(kinds) })
	testkit.Eventually(t, recoverLimit, "one holder of each address", l.bench.oneHolder)
	r.whole = time.Since(back)
	r.lost = l.lost(t)
	l.mu.Lock()
	r.older = l.older
	l.mu.Unlock()
	return r
}

// traces are what other nodes' journals contain when a node of a role is missing; NAME and IP are the node's.
var traces = map[string]string{
	"balancer":     `\(balancer\) Entering MASTER STATE`,
	"web":          `Server web/NAME is DOWN`,
	"backend":      `fastcgi://IP:9000`, // an error of nginx
	"glusterfs":    `bricks online, without .*NAME`,
	"databalancer": `\(databalancer\) Entering MASTER STATE`,
	"redis":        `Server redis/NAME is DOWN|\+sdown [a-z]+ .*\bIP\b`,
	"percona":      `Server mysql/NAME is DOWN|suspecting node`,
}

// noticed returns how long after start the first other node missed node; 0: none did. All share this machine's clock.
func (b *bench) noticed(t *testing.T, node nodeStatus, start time.Time) time.Duration {
	t.Helper()
	if node.Node == "" {
		return 0
	}
	pattern := strings.NewReplacer("NAME", node.Node, "IP", regexp.QuoteMeta(node.Address)).Replace(traces[node.Role])
	var first time.Duration
	for _, n := range b.nodes(t) {
		if n.Node == node.Node {
			continue
		}
		out, err := b.in(n.Node, fmt.Sprintf("journalctl -q --no-pager -o short-unix --since @%d.%06d | grep -m1 -E '%s'", start.Unix(), start.Nanosecond()/1000, pattern))
		if err != nil {
			continue // grep found nothing
		}
		var at float64
		if _, err := fmt.Sscan(out, &at); err != nil {
			t.Errorf("journal of %s: %v: %q", n.Node, err, out)
			continue
		}
		if seen := time.UnixMicro(int64(at * 1e6)).Sub(start); first == 0 || seen < first {
			first = seen
		}
	}
	return first
}

// oneHolder succeeds if each virtual address is held by exactly one node.
func (b *bench) oneHolder() error {
	// In whatever network the cluster is.
	for vip, nodes := range map[string][]string{".39": {"balancer1", "balancer2"}, ".53": {"balancer3", "balancer4"}} {
		var holders []string
		for _, n := range nodes {
			out, err := b.in(n, "ip -o -4 addr show")
			if err != nil {
				return err
			}
			if strings.Contains(out, vip+"/") {
				holders = append(holders, n)
			}
		}
		if len(holders) != 1 {
			return fmt.Errorf("the virtual address …%s is held by %v", vip, holders)
		}
	}
	return nil
}

func (r result) String() string {
	var parts []string
	for _, k := range kinds {
		if r.fails[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s: %d failed, the last %.1f s after the fault", k, r.fails[k], r.back[k].Seconds()))
		}
	}
	if parts == nil {
		parts = []string{"nothing failed"}
	}
	if r.seen > 0 {
		parts = append(parts, fmt.Sprintf("noticed after %.1f s", r.seen.Seconds()))
	}
	return fmt.Sprintf("%s; %d sessions a step back; all well %.0f s after it was undone; %d lost", strings.Join(parts, "; "), r.older, r.whole.Seconds(), r.lost)
}

// table formats the matrix for docs/faults.md.
func table(results []result) string {
	var b strings.Builder
	b.WriteString("| fault | noticed after |")
	for _, k := range kinds {
		fmt.Fprintf(&b, " %ss failed, for |", k)
	}
	b.WriteString(" sessions a step back | whole again after | writes lost |\n|---|" + strings.Repeat("---|", len(kinds)+4) + "\n")
	for _, r := range results {
		seen := "–"
		if r.seen > 0 {
			seen = fmt.Sprintf("%.1f s", r.seen.Seconds())
		}
		fmt.Fprintf(&b, "| %s | %s |", r.name, seen)
		for _, k := range kinds {
			if r.fails[k] == 0 {
				b.WriteString(" 0 |")
				continue
			}
			fmt.Fprintf(&b, " %d, %.1f s |", r.fails[k], r.back[k].Seconds())
		}
		fmt.Fprintf(&b, " %d | %.0f s | %d |\n", r.older, r.whole.Seconds(), r.lost)
	}
	return b.String()
}

// breaker injects faults.
type breaker struct {
	*bench
	nodes []string
	known map[string]nodeStatus
}

func (b *bench) breaker(t *testing.T) breaker {
	t.Helper()
	br := breaker{bench: b, known: map[string]nodeStatus{}}
	for _, n := range b.nodes(t) {
		br.nodes = append(br.nodes, n.Node)
		br.known[n.Node] = n
	}
	return br
}

// imagegen returns a function that runs a command on the cluster.
func (br breaker) imagegen(command string, args ...string) func() error {
	return func() error {
		_, err := br.try(append([]string{command, "-f", br.spec(), "-o", br.dist()}, args...)...)
		return err
	}
}

// sh returns a function that runs a shell line on a node.
func (br breaker) sh(node, script string) func() error {
	return func() error { _, err := br.in(node, script); return err }
}

// of makes a fault of one node.
func (br breaker) of(node, what string, do, undo func() error) fault {
	return fault{name: what, node: br.known[node], do: do, undo: undo}
}

func (br breaker) losesPower(n string) fault {
	f := br.of(n, n+" loses power", br.imagegen("kill", n), br.imagegen("start", n))
	switch br.known[n].Role {
	case "balancer":
		f.goal = vipGoal
	case "redis":
		f.goal = redisGoal
	case "percona":
		f.goal = galeraGoal
	}
	return f
}

// isReplaced replaces a node and waits until the new one is ready.
func (br breaker) isReplaced(n string) fault {
	role := br.known[n].Role
	// Only roles with a data disk can get a blank one.
	if !slices.Contains(withData, role) {
		return br.of(n, n+" is replaced", br.imagegen("replace", n), nil)
	}
	f := br.of(n, n+" is replaced, with a blank disk", br.imagegen("replace", "--blank", n), nil)
	if role == "glusterfs" { // it is ready when it has all files
		f.before, f.in, f.goal = br.sh("backend1", manyFiles), time.Minute, goal{[]string{"post"}, 0}
	}
	return f
}

// manyFiles makes 3,000 small files on the volume, in as many folders as WordPress' own had when they were there.
const manyFiles = `cd /mnt/gluster/wordpress/wp-content
[ -d many ] || { mkdir /tmp/many && cd /tmp/many
	for i in $(seq 3000); do d=$((i % 200)); mkdir -p $d; head -c $((i * 7 % 20000)) /dev/urandom >$d/$i; done
	cp -r /tmp/many /mnt/gluster/wordpress/wp-content/many && rm -r /tmp/many; }`

var withData = []string{"glusterfs", "redis", "percona"}

func (br breaker) isCutOffFrom(n string, from ...string) fault {
	return br.of(n, n+" is cut off from "+strings.Join(from, " and "), br.imagegen("cut", n, "--from", strings.Join(from, ",")), br.imagegen("mend"))
}

func (br breaker) isCutOff(n string) fault {
	f := br.of(n, n+" is cut off from everything", br.imagegen("cut", n), br.imagegen("mend"))
	if br.known[n].Role == "glusterfs" {
		f.goal = brickGoal
	}
	return f
}

func (br breaker) isNotHeard(n string) fault {
	return br.of(n, n+" hears, and is not heard", br.imagegen("cut", "--one-way", n), br.imagegen("mend"))
}

// daemon is a program of a role, as ps shows it: Redis and Sentinel are one program.
type daemon struct{ process, pattern string }

var daemonsOf = map[string][]daemon{
	"balancer":     {{"haproxy", "haproxy"}, {"keepalived", "keepalived"}},
	"databalancer": {{"haproxy", "haproxy"}},
	"web":          {{"nginx", "nginx"}},
	"backend":      {{"php-fpm", "php-fpm"}},
	"redis":        {{"redis-server", "redis-server .*:6379"}, {"Sentinel", "redis-.*sentinel"}},
	"percona":      {{"mariadbd", "mariadbd"}},
	"glusterfs":    {{"glusterd", "glusterd"}, {"glusterfsd", "glusterfsd"}},
}

func (br breaker) signal(n, sig string, d daemon) func() error {
	return br.sh(n, "pkill -"+sig+" -f '^([^ ]*/)?"+d.pattern+"'")
}

func (br breaker) isKilled(n string, d daemon) fault {
	return br.of(n, d.process+" is killed on "+n, br.signal(n, "KILL", d), nil)
}

func (br breaker) hangs(n string, d daemon) fault {
	undo := br.signal(n, "CONT", d)
	// The agent may have killed it and be about to restart it.
	f := br.of(n, d.process+" hangs on "+n, br.signal(n, "STOP", d), func() error { undo(); return nil })
	f.goal = hangGoal
	return f
}

func (br breaker) diskIsFull(n string) fault {
	f := br.of(n, "the data disk of "+n+" is full", br.sh(n, "dd if=/dev/zero of=/data/full bs=1M 2>/dev/null; true"), br.sh(n, "rm -f /data/full"))
	f.goal = fullGoal
	return f
}

// diskIsFrozen makes all writes to a node's data disk wait, as a snapshot does.
func (br breaker) diskIsFrozen(n string) fault {
	f := br.of(n, "the data disk of "+n+" is frozen", br.sh(n, "fsfreeze --freeze /data"), br.sh(n, "fsfreeze --unfreeze /data"))
	f.goal = frozenGoal
	return f
}

func (br breaker) isAnHourAhead(t *testing.T, n string) fault {
	do, undo := br.anHourOff(t, n)
	return br.of(n, "the daemons of "+n+" are an hour ahead", do, undo)
}

// leavesItsGroup makes a database server leave its group and keep running, as after a failed incremental state
// transfer.
func (br breaker) leavesItsGroup(n string) fault {
	return br.of(n, "the server of "+n+" leaves its group, and goes on running", br.sh(n, `mariadb -e "SET GLOBAL wsrep_provider_options='gmcast.isolate=2'"`), nil)
}

// doesNotStop blocks the signal that ends a database server, and stops its unit, which does not let systemd kill it.
// The fault lasts until the agent kills it.
func (br breaker) doesNotStop(n string) fault {
	const folder = "/run/systemd/system/mariadb.service.d"
	do := br.sh(n, "mkdir -p "+folder+" && printf '[Service]\\nKillSignal=SIGCONT\\n' >"+folder+"/deaf.conf && systemctl daemon-reload && systemctl stop --no-block mariadb.service")
	return br.of(n, "the server of "+n+" is stopped, and does not end", do, func() error {
		ended := br.sh(n, "! systemctl show -p ActiveState mariadb.service | grep -q deactivating")
		// Under load it takes part in its group as before, so the agent waits for its longest limit: 2 minutes.
		if err := within(3*time.Minute, ended); err != nil {
			return fmt.Errorf("the server of %s does not end, and is not ended within 3 minutes: %w", n, err)
		}
		return br.sh(n, "rm -f "+folder+"/deaf.conf && systemctl daemon-reload")()
	})
}

// failover is what journals say when a node takes over from another one, or when somebody is given up.
const failover = `Entering MASTER STATE|\+switch-master|Server [a-z_]+/[a-z0-9]+ is DOWN|suspecting node|has not responded in the last|hangs \(`

// areBusy makes both processors of this machine busy for ten minutes, with 30 processes that the nodes share. Visitors wait longer, and no node
// may take over from another: all are alive.
func (br breaker) areBusy() fault {
	undo := br.everywhere(func(int) string { return "pkill -f 'imagegen-bus[y]'; true" })
	return fault{name: "two processors at a load of 30, for ten minutes", stays: []string{}, undo: undo, do: func() error {
		began := time.Now()
		if err := br.everywhere(func(i int) string {
			n := 30*(i+1)/len(br.nodes) - 30*i/len(br.nodes)
			return fmt.Sprintf("for i in $(seq %d); do setsid sh -c 'while :; do :; done # imagegen-busy' >/dev/null 2>&1 </dev/null & done", n)
		})(); err != nil {
			return err
		}
		time.Sleep(time.Until(began.Add(10 * time.Minute))) // it is about what happens meanwhile
		if err := undo(); err != nil {
			return err
		}
		var found []string
		for _, n := range br.nodes {
			out, err := br.in(n, fmt.Sprintf("journalctl -q --no-pager -o short --since @%d | grep -E '%s'; true", began.Unix(), failover))
			if err != nil {
				return err
			}
			if out = strings.TrimSpace(out); out != "" {
				found = append(found, n+":\n"+out)
			}
		}
		if found != nil {
			return fmt.Errorf("a failover, and nobody was missing:\n%s", strings.Join(found, "\n"))
		}
		return nil
	}}
}

// everywhere returns a function that runs a shell line on each node; script gets its number, from 0.
func (br breaker) everywhere(script func(i int) string) func() error {
	return func() error {
		for i, n := range br.nodes {
			if _, err := br.in(n, script(i)); err != nil {
				return err
			}
		}
		return nil
	}
}

// allLosePower cuts the power of all nodes, and starts them in the given order.
func (br breaker) allLosePower(t *testing.T, name string, order []string) fault {
	return fault{name: name, goal: outageGoal, do: func() error {
		t.Logf("start %s", strings.Join(order, " "))
		if err := br.imagegen("kill", br.nodes...)(); err != nil {
			return err
		}
		return br.imagegen("start", order...)()
	}}
}

// allAreRenewed rolls out new images for all roles.
func (br breaker) allAreRenewed() fault {
	return fault{name: "new images for all roles, rolled out", do: func() error {
		spec, err := os.ReadFile(br.spec())
		if err != nil {
			return err
		}
		if err := os.WriteFile(br.spec(), withOneMorePackage(spec), 0o644); err != nil {
			return err
		}
		if err := br.imagegen("build")(); err != nil {
			return err
		}
		return br.imagegen("roll")()
	}}
}

// withOneMorePackage gives every role of the reference spec a new image.
func withOneMorePackage(spec []byte) []byte {
	return nodesOfRole.ReplaceAll(spec, []byte("${1}packages: [tree]\n$1$2"))
}

// shuffled returns the nodes in random order.
func (br breaker) shuffled(random *rand.Rand) []string {
	order := slices.Clone(br.nodes)
	random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

// faults returns the matrix.
func (b *bench) faults(t *testing.T, random *rand.Rand) []fault {
	t.Helper()
	br := b.breaker(t)
	var all []fault
	for _, n := range br.nodes {
		all = append(all, br.losesPower(n))
	}
	for _, n := range br.nodes {
		all = append(all, br.isReplaced(n))
	}
	// Without a majority a tier refuses; whatever does not need it continues. WordPress needs the database for
	// everything.
	for _, two := range []struct {
		nodes [2]string
		stays []string
	}{
		{[2]string{"percona1", "percona2"}, []string{}},
		{[2]string{"glusterfs2", "glusterfs3"}, []string{}},
		{[2]string{"redis2", "redis3"}, []string{"read", "write", "post", "file"}},
	} {
		all = append(all, fault{name: two.nodes[0] + " and " + two.nodes[1] + " lose power", do: br.imagegen("kill", two.nodes[:]...), stays: two.stays, undo: br.imagegen("start", two.nodes[:]...)})
	}
	for _, c := range [][]string{
		{"balancer1", "balancer2"}, {"web1", "web2"}, {"backend1", "backend2"}, {"balancer3", "balancer4"},
		{"percona1", "percona2", "percona3"}, {"glusterfs1", "glusterfs2", "glusterfs3"}, {"redis1", "redis2", "redis3"},
	} {
		all = append(all, br.isCutOffFrom(c[0], c[1:]...))
	}
	tiers := []string{"balancer1", "web1", "glusterfs1", "backend1", "balancer3", "redis1", "percona1"}
	for _, n := range tiers {
		all = append(all, br.isCutOff(n))
	}
	for _, n := range tiers {
		all = append(all, br.isNotHeard(n))
	}
	daemons := []string{"balancer1", "web1", "backend1", "balancer3", "redis1", "percona1", "glusterfs1"}
	for _, n := range daemons {
		for _, d := range daemonsOf[br.known[n].Role] {
			all = append(all, br.isKilled(n, d))
		}
	}
	for _, n := range daemons {
		for _, d := range daemonsOf[br.known[n].Role] {
			all = append(all, br.hangs(n, d))
		}
	}
	for _, n := range []string{"percona1", "redis1", "glusterfs1"} {
		all = append(all, br.diskIsFull(n))
	}
	all = append(all, br.diskIsFrozen("percona1"))
	for _, n := range []string{"percona1", "redis1"} {
		all = append(all, br.isAnHourAhead(t, n))
	}
	all = append(all, br.areBusy())
	all = append(all, br.leavesItsGroup("percona2"), br.doesNotStop("percona3"))
	for i := range 10 {
		all = append(all, br.allLosePower(t, fmt.Sprintf("all lose power, and start in random order (%d)", i+1), br.shuffled(random)))
	}
	all = append(all, br.allAreRenewed())
	return pick(all)
}

// pick returns those faults that IMAGEGEN_FAULTS, a regular expression, asks for.
func pick(all []fault) []fault {
	only := os.Getenv("IMAGEGEN_FAULTS")
	if only == "" {
		return all
	}
	wanted := regexp.MustCompile(only)
	return slices.DeleteFunc(all, func(f fault) bool { return !wanted.MatchString(f.name) })
}

// anHourOff makes a node's Redis and Sentinel, or its MariaDB, see a clock that is an hour ahead, from their next start
// on, and kills them. All nodes share this machine's clock, so the clock itself cannot be set.
func (b *bench) anHourOff(t *testing.T, node string) (do, undo func() error) {
	t.Helper()
	const library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
	data, err := os.ReadFile(library)
	if err != nil {
		t.Fatalf("%v (package faketime)", err)
	}
	const kill = "systemctl daemon-reload; pkill -KILL -f '^([^ ]*/)?(mariadbd|redis-)'"
	do = func() error {
		for part := range slices.Chunk(data, 60_000) { // the size of an argument is limited
			if _, err := b.in(node, "echo "+base64.StdEncoding.EncodeToString(part)+" | base64 -d >>/usr/lib/faketime.so"); err != nil {
				return err
			}
		}
		_, err := b.in(node, `for u in mariadb imagegen-redis imagegen-sentinel; do
	mkdir -p /run/systemd/system/$u.service.d
	printf '[Service]\nEnvironment=LD_PRELOAD=/usr/lib/faketime.so FAKETIME=+1h FAKETIME_DONT_FAKE_MONOTONIC=1\n' >/run/systemd/system/$u.service.d/faketime.conf
done; `+kill)
		return err
	}
	// The next fault is for daemons that run, and an agent takes a second to notice that they do not.
	running := func() ([]string, error) {
		out, err := b.in(node, "for u in mariadb imagegen-redis imagegen-sentinel; do ! systemctl -q is-active $u || systemctl show -p InvocationID --value $u; done")
		return strings.Fields(out), err
	}
	undo = func() error {
		before, err := running()
		if err != nil {
			return err
		}
		if _, err := b.in(node, "rm -rf /usr/lib/faketime.so /run/systemd/system/*/faketime.conf; "+kill); err != nil {
			return err
		}
		return within(readyIn, func() error {
			now, err := running()
			if err == nil && (len(now) < len(before) || slices.ContainsFunc(now, func(id string) bool { return slices.Contains(before, id) })) {
				err = fmt.Errorf("the daemons of %s have not been started again", node)
			}
			return err
		})
	}
	return do, undo
}

// nodesOfRole matches a role's nodes in the reference spec.
var nodesOfRole = regexp.MustCompile(`(?m)^( +)(nodes:)`)

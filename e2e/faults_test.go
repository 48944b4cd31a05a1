package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// probePHP is put on the site: it does one small thing through one of the tiers and says "ok" when that is done for good.
const probePHP = `<?php
define('SHORTINIT', true);
require __DIR__ . '/wp-config.php';
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
	$f = fopen("$dir/" . $n % 100, 'c');
	if (!$f || fwrite($f, sprintf('%012d', $n)) !== 12 || !fsync($f) || !fclose($f)) die('not written');
	break;
case 'session':
	if (!session_start()) die('no session');
	$_SESSION['n'] = $n;
	if (!session_write_close()) die('not kept');
	break;
case 'prepare':
	@mkdir($dir);
	$wpdb->query('CREATE TABLE IF NOT EXISTS probe (n BIGINT PRIMARY KEY)');
	break;
case 'all':
	header('Content-Type: application/json');
	die(json_encode(['write' => array_map('intval', $wpdb->get_col('SELECT n FROM probe')),
		'file' => array_map(fn($f) => (int)file_get_contents($f), glob("$dir/*"))]));
default:
	die('what?');
}
echo 'ok';
`

// kinds of requests that go on all the while.
var kinds = []string{"read", "write", "file", "session"}

// load is a client that reads and writes all the while and remembers everything that was acknowledged.
type load struct {
	bench *bench
	mu    sync.Mutex
	next  int
	acked map[string]map[int]bool // by kind
	fails map[string]int
	last  map[string]time.Time // success
	bad   map[string]time.Time // failure
	why   map[string]string    // of the last failure
}

const (
	requestEvery = 200 * time.Millisecond
	requestLimit = 4 * time.Second
	recoverLimit = 3 * time.Minute
)

func (b *bench) newLoad(t *testing.T) (l *load, stop func()) {
	t.Helper()
	if _, err := b.in("backend1", "cat >/mnt/gluster/wordpress/probe.php <<'PHP'\n"+probePHP+"PHP\n"); err != nil {
		t.Fatal(err)
	}
	l = &load{bench: b, acked: map[string]map[int]bool{}, fails: map[string]int{}, last: map[string]time.Time{}, bad: map[string]time.Time{}, why: map[string]string{}}
	eventually(t, time.Minute, "the probe", func() error { return l.request(&http.Client{Timeout: requestLimit}, "prepare", 0) })
	quit := make(chan struct{})
	var wg sync.WaitGroup
	for _, kind := range kinds {
		l.acked[kind] = map[int]bool{}
		jar, _ := cookiejar.New(nil)
		// Each request is a visitor of its own, as far as connections go.
		client := &http.Client{Timeout: requestLimit, Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}}
		wg.Go(func() {
			for {
				l.mu.Lock()
				l.next++
				n := l.next
				l.mu.Unlock()
				err := l.request(client, kind, n)
				l.mu.Lock()
				if err != nil {
					l.fails[kind]++
					l.bad[kind], l.why[kind] = time.Now(), err.Error()
				} else {
					l.acked[kind][n] = true
					l.last[kind] = time.Now()
				}
				l.mu.Unlock()
				select {
				case <-quit:
					return
				case <-time.After(requestEvery):
				}
			}
		})
	}
	return l, func() { close(quit); wg.Wait() }
}

func (l *load) request(c *http.Client, op string, n int) error {
	body, err := l.bench.get(c, "/probe.php?op="+op+"&n="+strconv.Itoa(n))
	if err == nil && body != "ok" {
		err = fmt.Errorf("%.200s", body)
	}
	return err
}

// watch forgets the failures so far.
func (l *load) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.fails)
	clear(l.bad)
}

// steady is content when no request of the kinds has failed for three seconds and each has succeeded since.
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

// lost returns what was acknowledged and is not there.
func (l *load) lost(t *testing.T) int {
	t.Helper()
	l.mu.Lock()
	acked := map[string]map[int]bool{"write": maps.Clone(l.acked["write"]), "file": maps.Clone(l.acked["file"])}
	l.mu.Unlock()
	var all map[string][]int
	eventually(t, time.Minute, "the list of what was written", func() error {
		body, err := l.bench.get(&http.Client{Timeout: 30 * time.Second}, "/probe.php?op=all")
		if err == nil {
			err = json.Unmarshal([]byte(body), &all)
		}
		return err
	})
	lost := 0
	for kind, ns := range acked {
		for _, n := range all[kind] {
			delete(ns, n)
			if kind == "file" { // a hundred files, written again and again
				maps.DeleteFunc(ns, func(old int, _ bool) bool { return old%100 == n%100 && old < n })
			}
		}
		if len(ns) > 0 {
			t.Errorf("%d acknowledged %ss are lost: %v", len(ns), kind, slices.Sorted(maps.Keys(ns)))
		}
		lost += len(ns)
	}
	return lost
}

// fault is one line of the matrix.
type fault struct {
	name string
	do   func() error
	// stays lists the kinds of requests that come back while the fault lasts; nil: all.
	stays []string
	undo  func() error // nil: nothing to undo
}

// result of a fault.
type result struct {
	name      string
	recovered map[string]time.Duration // by kind: from the fault to the first success after the last failure
	fails     map[string]int
	back      time.Duration // from the undoing until all nodes are ready
	lost      int
}

// TestFaults breaks everything that can be broken here, one after the other, under load. It takes half an hour, so it
// runs only where IMAGEGEN_E2E=faults says so (make e2e-faults).
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
	eventually(t, time.Minute, "load", func() error { return l.steady(kinds) })

	seed := uint64(time.Now().UnixNano())
	t.Logf("random order from seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var results []result
	for _, f := range b.faults(t, random) {
		t.Run(f.name, func(t *testing.T) {
			r := l.suffer(t, f)
			results = append(results, r)
			t.Log(r)
		})
		if t.Failed() {
			break // what comes after would tell nothing
		}
	}
	t.Logf("\n%s", table(results))
}

// suffer brings a fault about, watches the load until it has recovered, and undoes the fault.
func (l *load) suffer(t *testing.T, f fault) result {
	t.Helper()
	stays := f.stays
	if stays == nil {
		stays = kinds
	}
	l.watch()
	start := time.Now()
	if err := f.do(); err != nil {
		t.Fatal(err)
	}
	done := time.Now()
	// A fault that has not been felt yet may still be: detection takes seconds.
	eventually(t, recoverLimit, "recovery", func() error {
		if time.Since(done) < 8*time.Second {
			return fmt.Errorf("too early to tell")
		}
		return l.steady(stays)
	})
	r := result{name: f.name, recovered: map[string]time.Duration{}, fails: map[string]int{}}
	l.mu.Lock()
	for _, k := range kinds {
		r.fails[k] = l.fails[k]
		if bad := l.bad[k]; !bad.IsZero() {
			r.recovered[k] = bad.Sub(start) // the next success came within a request's time
		}
	}
	l.mu.Unlock()
	back := time.Now()
	if f.undo != nil {
		if err := f.undo(); err != nil {
			t.Fatal(err)
		}
	}
	l.bench.waitReady(t)
	eventually(t, recoverLimit, "everything", func() error { return l.steady(kinds) })
	r.back = time.Since(back)
	r.lost = l.lost(t)
	return r
}

func (r result) String() string {
	var parts []string
	for _, k := range kinds {
		if r.fails[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s: %d failed, back after %.1f s", k, r.fails[k], r.recovered[k].Seconds()))
		}
	}
	if parts == nil {
		parts = []string{"nothing failed"}
	}
	return fmt.Sprintf("%s; all well %.0f s after it was undone; %d lost", strings.Join(parts, "; "), r.back.Seconds(), r.lost)
}

// table prints the matrix as docs have it.
func table(results []result) string {
	var b strings.Builder
	b.WriteString("| fault | reads failed, for | writes failed, for | files failed, for | sessions failed, for | whole again after | lost |\n|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		fmt.Fprintf(&b, "| %s |", r.name)
		for _, k := range kinds {
			if r.fails[k] == 0 {
				b.WriteString(" 0 |")
				continue
			}
			fmt.Fprintf(&b, " %d, %.1f s |", r.fails[k], r.recovered[k].Seconds())
		}
		fmt.Fprintf(&b, " %.0f s | %d |\n", r.back.Seconds(), r.lost)
	}
	return b.String()
}

// faults is the matrix.
func (b *bench) faults(t *testing.T, random *rand.Rand) []fault {
	t.Helper()
	run := func(command string, args ...string) func() error {
		return func() error {
			_, err := b.try(append([]string{command, "-f", b.spec(), "-o", b.dist()}, args...)...)
			return err
		}
	}
	sh := func(node, script string) func() error {
		return func() error { _, err := b.in(node, script); return err }
	}
	var nodes []string
	for _, n := range b.nodes(t) {
		nodes = append(nodes, n.Node)
	}
	var all []fault
	for _, n := range nodes {
		all = append(all, fault{name: n + " loses power", do: run("kill", n), undo: run("start", n)})
	}
	for _, n := range nodes {
		if strings.HasPrefix(n, "glusterfs") || strings.HasPrefix(n, "redis") || strings.HasPrefix(n, "percona") {
			all = append(all, fault{name: n + " is replaced, with a blank disk", do: run("replace", "--blank", n)})
		}
	}
	// Without a majority a tier refuses; what does not need it goes on. WordPress needs the database for everything.
	all = append(all,
		fault{"percona1 and percona2 lose power", run("kill", "percona1", "percona2"), []string{}, run("start", "percona1", "percona2")},
		fault{"glusterfs2 and glusterfs3 lose power", run("kill", "glusterfs2", "glusterfs3"), []string{}, run("start", "glusterfs2", "glusterfs3")},
		fault{"redis2 and redis3 lose power", run("kill", "redis2", "redis3"), []string{"read", "write", "file"}, run("start", "redis2", "redis3")},
		fault{"percona1 is cut off from percona2 and percona3", run("cut", "percona1", "--from", "percona2,percona3"), nil, run("mend")},
		fault{"glusterfs1 is cut off from glusterfs2 and glusterfs3", run("cut", "glusterfs1", "--from", "glusterfs2,glusterfs3"), nil, run("mend")},
		fault{"redis1 is cut off from redis2 and redis3", run("cut", "redis1", "--from", "redis2,redis3"), nil, run("mend")},
	)
	for _, n := range []string{"balancer1", "web1", "glusterfs1", "backend1", "balancer3", "redis1", "percona1"} {
		all = append(all, fault{n + " is cut off from everything", run("cut", n), nil, run("mend")})
	}
	for _, n := range []string{"percona2", "redis2", "balancer4"} {
		all = append(all, fault{n + " hears, and is not heard", run("cut", "--one-way", n), nil, run("mend")})
	}
	for _, d := range []struct{ node, process string }{
		{"balancer1", "haproxy"}, {"web1", "nginx"}, {"backend1", "php-fpm"}, {"balancer3", "haproxy"}, {"redis1", "redis-server"},
		{"percona1", "mariadbd"}, {"glusterfs1", "glusterd"}, {"glusterfs1", "glusterfsd"},
	} {
		all = append(all, fault{name: d.process + " is killed on " + d.node, do: sh(d.node, "pkill -KILL "+d.process)})
	}
	for _, d := range []struct{ node, process string }{
		{"balancer1", "haproxy"}, {"web1", "nginx"}, {"backend1", "php-fpm"}, {"balancer3", "haproxy"}, {"percona1", "mariadbd"}, {"redis1", "redis-server"},
	} {
		all = append(all, fault{d.process + " hangs on " + d.node, sh(d.node, "pkill -STOP "+d.process), nil, sh(d.node, "pkill -CONT "+d.process)})
	}
	all = append(all, fault{"the data disk of percona1 is full", sh("percona1", "dd if=/dev/zero of=/data/full bs=1M 2>/dev/null; true"), nil, sh("percona1", "rm /data/full")})
	for i := range 10 {
		order := slices.Clone(nodes)
		random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		all = append(all, fault{name: fmt.Sprintf("all lose power, and start in random order (%d)", i+1), do: func() error {
			t.Logf("start %s", strings.Join(order, " "))
			if err := run("kill", nodes...)(); err != nil {
				return err
			}
			return run("start", order...)()
		}})
	}
	all = append(all, fault{name: "every node is replaced, one after the other", do: func() error {
		for _, n := range nodes {
			if err := run("status", "--wait")(); err != nil {
				return err
			}
			if err := run("replace", n)(); err != nil {
				return err
			}
		}
		return nil
	}})
	if only := os.Getenv("IMAGEGEN_FAULTS"); only != "" {
		wanted := regexp.MustCompile(only)
		all = slices.DeleteFunc(all, func(f fault) bool { return !wanted.MatchString(f.name) })
	}
	return all
}

package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

const (
	soakInE2E = 5 * time.Minute
	soakTime  = time.Hour
	// The site's files on a blank GlusterFS server are healed one by one, and it is not ready before.
	refillIn = 15 * time.Minute
)

// TestSoak injects random faults until its time is up (make e2e-soak).
func TestSoak(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "soak" {
		t.Skip("the soak test runs with IMAGEGEN_E2E=soak, as root: make e2e-soak")
	}
	lasts, seed := soakTime, newSeed()
	var err error
	if text := os.Getenv("IMAGEGEN_SOAK_TIME"); text != "" {
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatalf("IMAGEGEN_SOAK_TIME: %v", err)
		}
	}
	if text := os.Getenv("IMAGEGEN_SOAK_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("IMAGEGEN_SOAK_SEED: %v", err)
		}
	}
	b := newBenchOf(t, "e2e-soak")
	b.lab(t, "build")
	b.up(t)
	b.waitReady(t)
	b.soak(t, lasts, seed)
}

func newSeed() uint64 { return uint64(time.Now().UnixNano()) }

// soakFault is one fault of the soak test, or two at once.
type soakFault struct {
	faults []fault
	lasts  time.Duration // from the last fault until it is undone
	limit  time.Duration // from then until all nodes are ready
}

func (s soakFault) String() string {
	var names []string
	for _, f := range s.faults {
		names = append(names, f.name)
	}
	return strings.Join(names, " + ")
}

// soak injects random faults, singly and in two tiers at once, and outages, under load. After each, every node must
// become ready, and everything that was acknowledged must be there.
func (b *bench) soak(t *testing.T, lasts time.Duration, seed uint64) {
	t.Helper()
	again := fmt.Sprintf("make e2e-soak TIME=%s SEED=%d", lasts, seed)
	t.Logf("random faults for %s; again: %s", lasts, again)
	random := rand.New(rand.NewPCG(seed, 0))
	br := b.breaker(t)
	l, stop := b.newLoad(t)
	defer stop()
	defer func() {
		if t.Failed() {
			t.Logf("the journals are in %s; again: %s", b.keepJournals(t), again)
		}
	}()
	testkit.Eventually(t, recoverLimit, "load", func() error { return l.steady(kinds) })
	begin := time.Now()
	for n := 1; time.Since(begin) < lasts; n++ {
		s := br.draw(t, random, lasts)
		line := fmt.Sprintf("%3d  %7s  %s, for %s", n, time.Since(begin).Round(time.Second), s, s.lasts)
		whole, err := l.endure(t, s)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		t.Logf("%s: all ready %s after its end; %s", line, whole.Round(time.Second), l.said())
	}
}

// draw chooses the next fault. It depends only on the random numbers and the total duration, so that a seed replays a
// run.
func (br breaker) draw(t *testing.T, random *rand.Rand, whole time.Duration) soakFault {
	t.Helper()
	s := soakFault{lasts: time.Duration(1+random.IntN(40)) * time.Second, limit: readyIn}
	dice := random.IntN(10)
	if dice >= 8 {
		s.faults = []fault{br.allLosePower(t, "all lose power, and start in random order", br.shuffled(random))}
		s.lasts = 0
		return s
	}
	s.faults = []fault{br.any(t, random, br.nodes, whole)}
	if dice >= 5 {
		role := s.faults[0].node.Role
		others := slices.DeleteFunc(slices.Clone(br.nodes), func(n string) bool { return br.known[n].Role == role })
		second := br.any(t, random, others, whole)
		for s.faults[0].replaces && second.replaces { // imagegen replaces one node at a time
			second = br.any(t, random, others, whole)
		}
		s.faults = append(s.faults, second)
	}
	for _, f := range s.faults {
		if f.node.Role == "glusterfs" && strings.Contains(f.name, "blank disk") {
			s.limit = refillIn
		}
	}
	return s
}

// any chooses a fault of one of the nodes, or of two of its role.
func (br breaker) any(t *testing.T, random *rand.Rand, nodes []string, whole time.Duration) fault {
	t.Helper()
	n := nodes[random.IntN(len(nodes))]
	role := br.known[n].Role
	var mates []string
	for _, o := range br.nodes {
		if o != n && br.known[o].Role == role {
			mates = append(mates, o)
		}
	}
	daemons := daemonsOf[role]
	d := daemons[random.IntN(len(daemons))]
	all := []fault{br.losesPower(n), br.isCutOff(n), br.isNotHeard(n), br.isCutOffFrom(n, mates...), br.isKilled(n, d), br.hangs(n, d)}
	if role != "glusterfs" || whole > 2*refillIn {
		all = append(all, br.isReplacedMeanwhile(n))
	}
	if slices.Contains(withData, role) {
		all = append(all, br.diskIsFull(n))
		two := []string{n, mates[random.IntN(len(mates))]}
		all = append(all, fault{name: strings.Join(two, " and ") + " lose power", node: br.known[n], do: br.imagegen("kill", two...), undo: br.imagegen("start", two...)})
	}
	if role == "redis" || role == "percona" {
		all = append(all, br.isAnHourAhead(t, n))
	}
	if role == "percona" {
		all = append(all, br.leavesItsGroup(n), br.doesNotStop(n))
	}
	return all[random.IntN(len(all))]
}

// isReplacedMeanwhile starts to replace a node without waiting for it: it may need the end of another fault to become
// ready.
func (br breaker) isReplacedMeanwhile(n string) fault {
	f := br.isReplaced(n)
	args := []string{"--force", "--timeout", refillIn.String(), n}
	if slices.Contains(withData, br.known[n].Role) {
		args = append([]string{"--blank"}, args...)
	}
	replaced := make(chan error, 1)
	f.do = func() error { go func() { replaced <- br.imagegen("replace", args...)() }(); return nil }
	f.undo = func() error { return <-replaced }
	f.replaces = true
	return f
}

// endure injects a fault and undoes it, and returns how long it took until all nodes were ready again.
func (l *load) endure(t *testing.T, s soakFault) (time.Duration, error) {
	t.Helper()
	l.watch()
	for _, f := range s.faults {
		if err := f.do(); err != nil {
			return 0, err
		}
	}
	time.Sleep(s.lasts) // the fault's duration
	start := time.Now()
	errs := make([]error, len(s.faults))
	var wg sync.WaitGroup
	for i, f := range s.faults {
		if f.undo != nil {
			wg.Go(func() { errs[i] = f.undo() })
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	b := l.bench
	if _, err := b.try("status", "-f", b.spec(), "-o", b.dist(), "--wait", "--timeout", max(time.Second, s.limit-time.Since(start)).Round(time.Second).String()); err != nil {
		return 0, fmt.Errorf("not all ready within %s: %w", s.limit, err)
	}
	whole := time.Since(start)
	for what, check := range map[string]func() error{"load": func() error { return l.steady(kinds) }, "one holder of each address": b.oneHolder} {
		if err := within(recoverLimit, check); err != nil {
			return 0, fmt.Errorf("%s: not within %s: %w", what, recoverLimit, err)
		}
	}
	if lost := l.lost(t); lost > 0 {
		return 0, fmt.Errorf("%d acknowledged changes are lost", lost)
	}
	return whole, nil
}

// within repeats check until it succeeds, and returns its last error after limit.
func within(limit time.Duration, check func() error) error {
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		if err := check(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// said summarises what the load has seen since the fault.
func (l *load) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var failed []string
	for _, k := range kinds {
		if l.fails[k] > 0 {
			failed = append(failed, fmt.Sprintf("%d %ss", l.fails[k], k))
		}
	}
	if failed == nil {
		return "nothing failed, nothing lost"
	}
	return strings.Join(failed, ", ") + " failed, nothing lost"
}

// keepJournals copies every node's journal, console and status to a folder that is kept, and returns its path.
func (b *bench) keepJournals(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "imagegen-soak-failed-")
	if err != nil {
		t.Fatal(err)
	}
	keep := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
	status, _ := b.try("status", "-f", b.spec(), "-o", b.dist())
	keep("status", status)
	state, _ := b.try("status", "--json", "-f", b.spec(), "-o", b.dist())
	keep("status.json", state)
	for _, n := range b.nodes(t) {
		journal, err := b.in(n.Node, "journalctl -q --no-pager -o short-precise; systemctl list-jobs; ps -eo pid,stat,etime,args --forest")
		if err != nil {
			journal += err.Error()
		}
		keep(n.Node+".journal", journal)
		console, err := os.ReadFile(filepath.Join(b.dist(), "lab", "nodes", n.Node, "console.log"))
		if err != nil {
			console = []byte(err.Error())
		}
		keep(n.Node+".console", string(console))
	}
	return dir
}

// A soak test of any length draws faults that imagegen can carry out: it replaces one node at a time.
func TestSoakReplacesOneNodeAtATime(t *testing.T) {
	br := breaker{bench: &bench{}, known: map[string]nodeStatus{}}
	for _, n := range []string{"web1", "web2", "backend1", "backend2", "glusterfs1", "glusterfs2", "glusterfs3"} {
		br.nodes = append(br.nodes, n)
		br.known[n] = nodeStatus{Node: n, Role: strings.TrimRight(n, "123")}
	}
	random, pairs := rand.New(rand.NewPCG(1, 0)), 0
	for range 1000 {
		s := br.draw(t, random, soakTime)
		replaced := 0
		for _, f := range s.faults {
			if strings.Contains(f.name, "is replaced") {
				replaced++
			}
		}
		if len(s.faults) > 1 {
			pairs++
		}
		if replaced > 1 {
			t.Fatalf("%s", s)
		}
	}
	if pairs == 0 {
		t.Error("no two faults were drawn at once")
	}
}

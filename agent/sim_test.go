package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// The simulator runs real agents (Agent.loops: Agent.drive for each component, peers.poll for each peer, and the real
// components) with simulated clocks, network, nodes, disks and daemons. Each loop is a coroutine that runs until it
// sleeps. Components observe and change the models of Galera, Redis with Sentinel, and glusterd, which are described in
// their files. Reports are encoded as JSON, as between real agents. A seed determines a history: which faults happen
// and when, and how long everything takes.
//
// After every event, the invariants are checked. After the last fault, the cluster must become ready, or wait for
// something that the design says it must wait for.
var (
	simSeed      = flag.Uint64("seed", 0, "simulate the history of this seed alone, and tell it")
	simHistories = flag.Int("histories", 10000, "histories to simulate, in all")
)

const (
	simBound  = 10 * time.Minute // limit for a cluster without faults to become ready
	simSteady = 5 * time.Second  // how long it must then stay ready
	forever   = time.Duration(1 << 62)
)

// simKind is a kind of cluster that can be simulated.
type simKind struct {
	name  string
	role  string
	share int // percentage of all histories
	build func(w *simWorld) simModel
	// spares is the number of machines that may become members.
	spares int
	// change is a fault that all histories have; empty: none.
	change faultKind
	// inOrder: a change may add two nodes, or remove two; the second new one starts once the first is ready, as with apply.
	inOrder bool
	// bound is the limit for a cluster without faults to become ready; 0: simBound.
	bound time.Duration
	// faults lists the possible faults; frequent ones occur several times.
	faults []faultKind
}

// simModel simulates a cluster's daemons and disks.
type simModel interface {
	// components returns the names of each agent's components, which are also their kinds.
	components() []string
	// component returns a component of an agent that uses the model instead of the real daemon.
	component(a *simAgent, name string, n Node) Component
	// stop ends the node's daemons, either cleanly, as a shutdown does, or by a power failure.
	stop(n *machine, clean bool)
	kill(n *machine, which int)      // kills one daemon
	blank(n *machine)                // replaces the disk of a node that is off
	foreign(n *machine)              // replaces it by one that another cluster has used
	relinked()                       // connections between nodes have changed
	lie(n *machine, name string) any // the report of a peer that wrongly claims to be ready
	check() error                    // the invariants
	settled() error                  // nil if all nodes that are on are ready, and correctly so
	patient() bool                   // the design waits for silent nodes without asking the operator
	excused(n *machine) bool         // the design makes the node wait or stop, for a reason other than a silent node
}

// faultKind is a kind of fault.
type faultKind string

const (
	lateBoot    faultKind = "is off at first"
	gone        faultKind = "dies and stays away"
	crash       faultKind = "loses power"
	reboot      faultKind = "reboots"
	outage      faultKind = "outage: all lose power"
	blankDisk   faultKind = "gets a blank disk"
	foreignDisk faultKind = "gets a disk of another cluster"
	agentDies   faultKind = "agent dies"
	daemonDies  faultKind = "daemon dies"
	cutOneWay   faultKind = "is not heard by"
	isolated    faultKind = "is cut off"
	split       faultKind = "network splits"
	slowNet     faultKind = "network is slow"
	paused      faultKind = "is suspended"
	frozen      faultKind = "agent hangs, and answers what it saw before"
	lying       faultKind = "claims to be ready"
	noStart     faultKind = "daemons fail to start"
	slowStart   faultKind = "everything takes long"
	stepCrash   faultKind = "loses power just before its step"
	givenUp     faultKind = "loses power, and is given up by an operator"
	stepAgent   faultKind = "agent dies just before its step"
	changed     faultKind = "an operator changes the members"
	renumbered  faultKind = "an operator moves all members to another network"
)

// fault is one fault of a history.
type fault struct {
	at    time.Duration
	kind  faultKind
	node  int
	arg   int // the other node, a set of nodes, the number of a step or of a daemon
	lasts time.Duration
}

func (f fault) String() string {
	s := fmt.Sprintf("%8.2fs  node %d %s", f.at.Seconds(), f.node+1, f.kind)
	switch f.kind {
	case outage, slowNet, changed, renumbered:
		s = fmt.Sprintf("%8.2fs  %s", f.at.Seconds(), f.kind)
	case split:
		s = fmt.Sprintf("%8.2fs  %s: %03b", f.at.Seconds(), f.kind, f.arg)
	case cutOneWay:
		s += fmt.Sprintf(" node %d", f.arg+1)
	case daemonDies, stepCrash, stepAgent:
		s += fmt.Sprintf(" (%d)", f.arg)
	}
	if f.lasts == forever {
		return s
	}
	return s + fmt.Sprintf(", for %.2fs", f.lasts.Seconds())
}

// history is the input of a run. The same history always runs the same way.
type history struct {
	seed   uint64
	nodes  int
	faults []fault
}

func (h history) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, %d nodes:\n", h.seed, h.nodes)
	for _, f := range h.faults {
		fmt.Fprintf(&b, "%v\n", f)
	}
	return b.String()
}

// newHistory draws a random history.
func newHistory(k *simKind, seed uint64) history {
	r := rand.New(rand.NewPCG(seed, 1))
	h := history{seed: seed, nodes: 3}
	if r.IntN(6) == 0 {
		h.nodes = 5
	}
	secs := func(mean float64) time.Duration {
		return time.Duration((0.05 + r.ExpFloat64()*mean) * float64(time.Second)).Truncate(10 * time.Millisecond)
	}
	// Half of the histories start with a minute without faults.
	start := 0.
	if r.IntN(2) == 0 {
		start = 60
	}
	for range 1 + r.IntN(8) {
		f := fault{kind: k.faults[r.IntN(len(k.faults))], node: r.IntN(h.nodes), lasts: secs(10)}
		if k.change != "" && len(h.faults) == 0 {
			f.kind = k.change
		}
		f.at = time.Duration((start + r.Float64()*60) * float64(time.Second)).Truncate(10 * time.Millisecond)
		switch f.kind {
		case lateBoot, foreignDisk: // an operator attaches another cluster's disk before the first start
			f.at = 0
		case gone:
			f.lasts = forever
		case agentDies:
			f.lasts = secs(2)
		case daemonDies:
			f.arg = r.IntN(2)
		case givenUp:
			f.lasts = secs(30)
		case changed, renumbered:
			f.arg = r.IntN(1 << 20)
		case cutOneWay:
			f.arg = (f.node + 1 + r.IntN(h.nodes-1)) % h.nodes
		case split:
			f.arg = 1 + r.IntN(1<<h.nodes-2)
		case stepCrash, stepAgent:
			f.at = 0
			if start > 0 {
				f.at = time.Duration(start) * time.Second
			}
			f.arg = 1 + r.IntN(12)
		}
		h.faults = append(h.faults, f)
	}
	slices.SortStableFunc(h.faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return h
}

// event is scheduled to happen at a time.
type event struct {
	at    time.Duration
	seq   int
	do    func()
	n     *machine    // see machine.after; nil: an event of the world
	alive func() bool // with n
}

// simWorld is a simulated cluster.
type simWorld struct {
	kind  *simKind
	model simModel
	rand  *rand.Rand
	now   time.Duration
	queue []event // a heap
	seq   int
	nodes []*machine
	cuts  [][]int // [from][to]: number of faults that block messages
	slow  int
	err   error // the first violated invariant
	armed bool  // faults may still happen
	tell  func(format string, args ...any)
	// running is the agent's loop that is running now; nil: none.
	running    *simTask
	generation facts.Membership // in use
	network    int              // second number of its members' addresses
	changes    *simChange       // that is being carried out; nil: none
	quiet      time.Duration    // when the last node that was changed has had the time to be heard
	// Settings that mutations change.
	heard   time.Duration
	asks    func(p facts.Peer) bool // whether agents ask at an address; nil: at all
	forgets bool                    // which memberships count is not on the data disk
}

func newSimWorld(k *simKind, h history) *simWorld {
	w := &simWorld{kind: k, rand: rand.New(rand.NewPCG(h.seed, 2)), armed: true, heard: ensemble.HeardLimit, tell: func(string, ...any) {}}
	w.generation = facts.Membership{Number: 1}
	for i := range h.nodes + k.spares {
		w.cuts = append(w.cuts, make([]int, h.nodes+k.spares))
		name := fmt.Sprintf("node%d", i+1)
		w.nodes = append(w.nodes, &machine{w: w, index: i, off: 1, decisions: map[string]*decided{}, first: fmt.Sprintf("10.0.0.%d", i+1)})
		w.nodes[i].peer = facts.Peer{Name: name, Role: k.role, IP: w.nodes[i].first, Index: i}
	}
	for _, n := range w.nodes[:h.nodes] {
		w.generation.Members = append(w.generation.Members, n.peer)
	}
	for _, n := range w.nodes[:h.nodes] {
		n.seed(w.generation)
	}
	w.model = k.build(w)
	return w
}

// in schedules an event after d.
func (w *simWorld) in(d time.Duration, do func()) { w.add(d, event{do: do}) }

// add puts an event into the queue.
func (w *simWorld) add(d time.Duration, e event) {
	w.seq++
	e.at, e.seq = w.now+d, w.seq
	q := append(w.queue, e)
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if !before(q[i], q[up]) {
			break
		}
		q[i], q[up] = q[up], q[i]
		i = up
	}
	w.queue = q
}

func before(a, b event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// next runs the next event.
func (w *simWorld) next() {
	q := w.queue
	e := q[0]
	last := len(q) - 1
	q[0] = q[last]
	q[last] = event{}
	q = q[:last]
	for i := 0; ; {
		least := i
		for _, c := range [2]int{2*i + 1, 2*i + 2} {
			if c < len(q) && before(q[c], q[least]) {
				least = c
			}
		}
		if least == i {
			break
		}
		q[i], q[least] = q[least], q[i]
		i = least
	}
	w.queue = q
	w.now = e.at
	switch {
	case e.n == nil:
		e.do()
	case !e.alive():
	case e.n.suspended():
		w.add(e.n.until-w.now, e)
	default:
		e.do()
	}
	if w.err == nil {
		w.err = w.model.check()
	}
}

// between draws a duration.
func (w *simWorld) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rand.Int64N(int64(high-low)+1))
}

// chance is true with probability 1/n.
func (w *simWorld) chance(n int) bool { return w.rand.IntN(n) == 0 }

// fail records the first violation.
func (w *simWorld) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

// linked reports whether two nodes can talk: a connection needs both directions.
func (w *simWorld) linked(a, b *machine) bool {
	return a == b || a.on() && b.on() && !a.suspended() && !b.suspended() && w.cuts[a.index][b.index] == 0 && w.cuts[b.index][a.index] == 0 && a.network == b.network
}

// machine is a node.
type machine struct {
	w         *simWorld
	index     int
	peer      facts.Peer
	network   string // that its address is in
	first     string // its first address
	peers     []facts.Peer
	number    int                // of the generation of its seed
	accepted  []facts.Membership // by its acceptor
	joint     [2]facts.Joint     // what its agent has recorded on the root disk and on the data disk
	off       int                // number of faults that keep it off; 0: it is on
	gone      bool
	agent     *simAgent
	mute      int // number of faults that keep its agent from running
	until     time.Duration
	lost      time.Duration // total time that it was suspended
	diskAt    time.Duration // time at which its disk is mounted
	stuck     int           // number of faults
	liar      int
	failing   int
	dragging  int
	steps     int             // number of steps since arming
	traps     map[int][]fault // by number of step
	decisions map[string]*decided
	given     bool // an operator has given it up
}

func (n *machine) on() bool        { return n.off == 0 }
func (n *machine) suspended() bool { return n.until > n.w.now }
func (n *machine) clock() time.Duration {
	return n.w.now - n.lost
}

// pace draws a duration on the node.
func (n *machine) pace(low, high time.Duration) time.Duration {
	d := n.w.between(low, high)
	if n.dragging > 0 {
		d *= 10
	}
	return d
}

// after schedules an event on the node after d. It is dropped if the process has died by then, and delayed while the
// node is suspended.
func (n *machine) after(d time.Duration, alive func() bool, do func()) {
	n.w.add(d, event{do: do, n: n, alive: alive})
}

func (n *machine) powerOff(clean bool) {
	n.off++
	if n.off > 1 {
		return
	}
	n.endAgent()
	n.w.model.stop(n, clean)
	n.w.model.relinked()
}

func (n *machine) powerOn() {
	n.off--
	if n.off > 0 {
		return
	}
	n.diskAt = n.w.now + n.pace(50*time.Millisecond, 3*time.Second)
	n.startAgent(n.w.between(0, 2*time.Second))
	n.w.model.relinked()
}

// endAgent kills the agent. A loop that is running ends when it sleeps next.
func (n *machine) endAgent() {
	a := n.agent
	if n.agent = nil; a == nil {
		return
	}
	for _, t := range a.tasks {
		if t != n.w.running {
			t.stop()
		}
	}
}

func (n *machine) startAgent(d time.Duration) {
	n.w.in(d, func() {
		if n.on() && n.mute == 0 && n.agent == nil {
			newSimAgent(n)
		}
	})
}

// start starts a fault, and schedules its end.
func (w *simWorld) start(f fault) {
	n := w.nodes[f.node]
	w.tell("%v", f)
	var end func()
	switch f.kind {
	case changed:
		w.change(f.arg)
	case renumbered:
		w.renumber(f.arg)
	case gone:
		if n.gone {
			return
		}
		n.gone = true
		n.powerOff(false)
	case lateBoot, crash, stepCrash:
		n.powerOff(false)
		end = n.powerOn
	case reboot:
		n.powerOff(true)
		end = n.powerOn
	case outage:
		for _, m := range w.nodes {
			m.powerOff(false)
			w.in(f.lasts+w.between(0, 20*time.Second), m.powerOn)
		}
	case blankDisk, foreignDisk:
		n.powerOff(false)
		n.joint[1] = facts.Joint{}
		if n.given = false; f.kind == blankDisk {
			w.model.blank(n)
		} else {
			w.model.foreign(n)
		}
		end = n.powerOn
	case agentDies, stepAgent:
		n.mute++
		n.endAgent()
		end = func() {
			n.mute--
			n.startAgent(0)
		}
	case daemonDies:
		if n.on() {
			w.model.kill(n, f.arg)
		}
	case cutOneWay:
		end = w.cut([][2]int{{f.node, f.arg}})
	case isolated:
		var links [][2]int
		for _, m := range w.nodes {
			if m != n {
				links = append(links, [2]int{n.index, m.index}, [2]int{m.index, n.index})
			}
		}
		end = w.cut(links)
	case split:
		var links [][2]int
		for i := range w.nodes {
			for j := range w.nodes {
				if f.arg>>i&1 != f.arg>>j&1 {
					links = append(links, [2]int{i, j})
				}
			}
		}
		end = w.cut(links)
	case slowNet:
		w.slow++
		end = func() { w.slow-- }
	case paused:
		if n.suspended() {
			return
		}
		n.until = w.now + f.lasts
		n.lost += f.lasts
		w.model.relinked()
		end = w.model.relinked
	case givenUp:
		n.powerOff(false)
		end = n.powerOn
		w.giveUp(n, w.now+f.lasts)
	case frozen:
		end = during(&n.stuck)
	case lying:
		end = during(&n.liar)
	case noStart:
		end = during(&n.failing)
	case slowStart:
		end = during(&n.dragging)
	}
	if end != nil && f.lasts != forever {
		w.in(f.lasts, func() {
			w.tell("end of: node %d %s", f.node+1, f.kind)
			end()
		})
	}
}

// giveUp makes the operator give up a node that is off, as soon as an agent waits for it.
func (w *simWorld) giveUp(n *machine, until time.Duration) {
	if w.now > until {
		return
	}
	if !n.on() {
		for _, m := range w.nodes {
			m.decideWithout(n.peer.Name)
		}
	}
	w.in(2*time.Second, func() { w.giveUp(n, until) })
}

// decideWithout makes the operator give up one of the nodes that agents wait for, or all of them if the name is empty.
func (n *machine) decideWithout(name string) (decided bool) {
	if n.agent == nil {
		return false
	}
	for _, c := range n.w.model.components() {
		missing := n.agent.status(c).Missing
		without := strings.Split(missing, ",")
		switch {
		case missing == "" || name != "" && !slices.Contains(without, name):
			continue
		case name != "":
			without = []string{name}
		}
		if err := n.agent.decide(facts.Decision{Component: c, Without: without}); err != nil {
			n.w.tell("%v", err)
			continue
		}
		for _, m := range n.w.nodes {
			m.given = m.given || slices.Contains(without, m.peer.Name)
		}
		decided = true
	}
	return decided
}

func during(count *int) (end func()) {
	*count++
	return func() { *count-- }
}

func (w *simWorld) cut(links [][2]int) (mend func()) {
	add := func(d int) {
		for _, l := range links {
			w.cuts[l[0]][l[1]] += d
		}
		w.model.relinked()
	}
	add(1)
	return func() { add(-1) }
}

// simAgent is a running agent: a real one in the simulated world.
type simAgent struct {
	*Agent
	n     *machine
	tasks []*simTask
	runs  func() bool // alive, made once
}

// simTask is one of the agent's loops.
type simTask struct {
	a     *simAgent
	looks bool // observes a component
	busy  bool // a step is running
	next  func() (time.Duration, bool)
	stop  func()
	yield func(time.Duration) bool
	run   func() // resume, made once
}

// errKilled unwinds the loops of a killed agent.
var errKilled = errors.New("the agent was killed")

// simEpoch is the start of all histories.
var simEpoch = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

func newSimAgent(n *machine) {
	a := &simAgent{n: n}
	a.runs = a.alive
	known := facts.Facts{Cluster: "sim", ClusterID: simCluster, Node: n.peer, Peers: n.peers}
	known.Components = []facts.Component{{Name: "disk", Kind: "disk"}}
	for _, name := range n.w.model.components() {
		known.Components = append(known.Components, facts.Component{Name: name, Kind: name, After: []string{"disk"}})
	}
	a.Agent = newAgent(known, a, a, func(line string) { n.w.tell("%s", line) })
	a.peers.limit = n.w.heard
	a.members.number = func() int { return n.number }
	own := ensemble.Own(n.number, n.peer, n.peers)
	a.members.own = func() facts.Membership { return own }
	a.members.accepted = func() []facts.Membership { return n.accepted }
	a.members.store = simJoint{n}
	a.launch = func(loop func(context.Context)) { a.run(loop, false) }
	n.agent = a
	for _, c := range known.Components {
		node := Node{Facts: known, Clock: a, Log: func(string, ...any) {}, Working: func(detail string) { a.setStatus(c.Name, workf("%s", detail)) }}
		if n.decisions[c.Name] == nil {
			n.decisions[c.Name] = new(decided)
		}
		impl := Component(simDisk{a})
		if c.Name != "disk" {
			impl = n.w.model.component(a, c.Name, node)
		}
		a.add(c, impl, n.decisions[c.Name])
	}
	for i, loop := range a.loops() {
		a.run(loop, i < len(known.Components))
	}
}

// run starts one of the agent's loops.
func (a *simAgent) run(loop func(context.Context), looks bool) {
	t := &simTask{a: a, looks: looks}
	t.next, t.stop = iter.Pull(func(yield func(time.Duration) bool) {
		defer func() {
			if r := recover(); r != nil && r != errKilled {
				panic(r)
			}
		}()
		t.yield = yield
		loop(context.Background())
	})
	a.tasks = append(a.tasks, t)
	t.run = t.resume
	a.after(a.n.w.between(0, pollUnready), t.run)
}

// resume lets the loop run until it sleeps.
func (t *simTask) resume() {
	w := t.a.n.w
	if t.looks && t.a.n.stuck > 0 {
		t.a.after(pollUnready, t.run)
		return
	}
	w.running = t
	d, sleeps := t.next()
	w.running = nil
	if sleeps {
		t.a.after(d, t.run)
	}
}

// simDisk becomes ready some time after the node has started. Then nothing happens to it any more, so it gets no more turns.
type simDisk struct{ a *simAgent }

func (d simDisk) Observe(context.Context) (any, error) {
	if d.a.status("disk").State == facts.Ready {
		d.a.pass(forever)
	}
	return nil, nil
}

func (d simDisk) Step(context.Context, World) (facts.Status, error) {
	if d.a.n.w.now < d.a.n.diskAt {
		return waitf("for the disk"), nil
	}
	return ready(""), nil
}

func (a *simAgent) alive() bool { return a.n.agent == a }

func (a *simAgent) after(d time.Duration, do func()) { a.n.after(d, a.runs, do) }

// Now is clock.Now.
func (a *simAgent) Now() time.Time { return simEpoch.Add(a.n.clock()) }

// Sleep is clock.Sleep.
func (a *simAgent) Sleep(_ context.Context, d time.Duration) { a.pass(d) }

// pass lets time pass.
func (a *simAgent) pass(d time.Duration) {
	if t := a.n.w.running; !a.alive() || !t.yield(d) {
		panic(errKilled)
	}
}

// Limit is clock.Limit. No model takes too long.
func (a *simAgent) Limit(ctx context.Context, _ time.Duration) (context.Context, context.CancelFunc) {
	return ctx, func() {}
}

// looked delays a component's observation, which is therefore outdated when it is used.
func (a *simAgent) looked() {
	a.n.w.running.busy = false
	if a.n.w.chance(50) {
		a.pass(a.n.w.between(0, askLimit))
	}
}

// act delays and runs an atomic part of a step. The agent and its node may die before each.
func (a *simAgent) act(what string, need time.Duration, do func() error) error {
	n := a.n
	n.w.running.busy = true
	a.pass(need)
	n.steps++
	for _, f := range n.traps[n.steps] {
		n.w.start(f)
	}
	delete(n.traps, n.steps)
	if !a.alive() {
		panic(errKilled)
	}
	n.w.tell("%s: step %d: %s", n.peer.Name, n.steps, what)
	return do()
}

// busy reports whether the agent is running a step of a component.
func (a *simAgent) busy() bool {
	return slices.ContainsFunc(a.tasks, func(t *simTask) bool { return t.busy })
}

// delay returns the delay of a message.
func (w *simWorld) delay() time.Duration {
	if w.slow > 0 {
		return w.between(0, 1500*time.Millisecond)
	}
	return w.between(0, 20*time.Millisecond)
}

// ask is network.ask.
func (a *simAgent) ask(_ context.Context, p facts.Peer, joint string) (r facts.NodeReport, err error) {
	w := a.n.w
	peer := w.named(p.Name)
	there, back := w.delay(), w.delay()
	a.pass(there)
	answers := w.linked(a.n, peer) && peer.agent != nil && peer.peer.IP == p.IP && (w.asks == nil || w.asks(p))
	if answers {
		peer.agent.members.hear(joint)
		r = peer.agent.published()
	}
	a.pass(back)
	if !answers || there+back > pollLimit || !w.linked(a.n, peer) {
		return r, errors.New("no answer")
	}
	return r, nil
}

// published returns the agent's report to peers.
func (a *simAgent) published() facts.NodeReport {
	r := a.report()
	if a.n.liar > 0 {
		r.Ready, r.Ages, r.Components = true, nil, maps.Clone(r.Components)
		for _, name := range a.n.w.model.components() {
			raw, _ := json.Marshal(a.n.w.model.lie(a.n, name))
			r.Components[name] = facts.ComponentReport{Kind: name, Status: ready(""), Report: raw}
		}
	}
	return r
}

const simCluster = "7b6b5b4b-0000-4000-8000-000000000001"

// simulate runs a history and returns the violation.
func simulate(k *simKind, h history, change func(w *simWorld), tell func(string, ...any)) error {
	w := newSimWorld(k, h)
	defer func() {
		for _, n := range w.nodes {
			n.endAgent()
		}
	}()
	if change != nil {
		change(w)
	}
	if tell != nil {
		w.tell = func(format string, args ...any) { tell("%9.3fs  "+format, append([]any{w.now.Seconds()}, args...)...) }
	}
	end := 5 * time.Second
	for _, f := range h.faults {
		if f.kind == stepCrash || f.kind == stepAgent {
			n := w.nodes[f.node]
			w.in(f.at, func() {
				if n.traps == nil {
					n.traps = map[int][]fault{}
				}
				n.traps[n.steps+f.arg] = append(n.traps[n.steps+f.arg], f)
			})
			end = max(end, f.at+f.lasts+20*time.Second)
			continue
		}
		w.in(f.at, func() { w.start(f) })
		end = max(end, f.at)
		if f.lasts != forever {
			end = max(end, f.at+f.lasts)
		}
		if f.kind == outage {
			end = max(end, f.at+f.lasts+20*time.Second)
		}
	}
	w.in(0, func() {
		for _, n := range w.nodes[:h.nodes] {
			n.powerOn()
		}
	})
	if err := w.runTo(end); err != nil {
		return err
	}
	for _, n := range w.nodes {
		n.traps = nil
	}
	w.tell("no more faults")
	err := w.settle()
	if w.err != nil || err == nil && !slices.ContainsFunc(w.nodes, func(n *machine) bool { return n.gone }) {
		return cmp.Or(w.err, err)
	}
	for tries := 0; err != nil && !w.model.patient(); tries++ {
		// Waiting for a silent node is correct where its vote counts. Then the operator may decide.
		if wrong := w.decide(); wrong != nil || tries == 3 {
			return fmt.Errorf("%w; %w", err, cmp.Or(wrong, errors.New("the operator's decisions do not help")))
		}
		if err = w.settle(); w.err != nil {
			return w.err
		}
	}
	for _, n := range w.nodes {
		if n.gone {
			w.tell("%s comes back", n.peer.Name)
			n.gone = false
			n.powerOn()
		}
	}
	return w.settle()
}

func (w *simWorld) runTo(t time.Duration) error {
	for w.err == nil && w.queue[0].at <= t {
		w.next()
	}
	w.now = max(w.now, t)
	return w.err
}

// settle waits until the cluster reaches a correct state and stays in it.
func (w *simWorld) settle() error {
	start, since := w.now, time.Duration(-1)
	for {
		if err := w.runTo(w.now + time.Second); err != nil {
			return err
		}
		err := w.rest()
		switch {
		case err != nil && w.now-start > cmp.Or(w.kind.bound, simBound):
			return fmt.Errorf("not ready %v after the last fault: %w", w.now-start, err)
		case err != nil:
			since = -1
		case since < 0:
			since = w.now
		case w.now-since >= simSteady:
			w.tell("settled after %v", w.now-start)
			return nil
		}
		// If the agents ask for a decision about a node that is gone, they wait forever: detect that early. Sentinels
		// that must elect without some votes may need several elections until the one that can promote a replica wins.
		if err != nil && w.now-start > 3*time.Minute && !w.moving() && slices.ContainsFunc(w.nodes, (*machine).undecided) {
			return err
		}
	}
}

// rest returns the reason why the cluster is not in its final state.
func (w *simWorld) rest() error {
	stopped := false
	var errs []error
	for _, n := range w.nodes {
		if !n.on() {
			continue
		}
		if !w.names(n) && w.changes != nil { // it may already have stopped
			continue
		}
		if n.agent == nil {
			return fmt.Errorf("%s: the agent does not run", n.peer.Name)
		}
		for _, c := range w.model.components() {
			status := n.agent.status(c)
			if status.State == facts.Ready {
				continue
			}
			if w.model.excused(n) && !n.agent.busy() {
				stopped = true
				continue
			}
			errs = append(errs, fmt.Errorf("%s: %s: %s", n.peer.Name, c, describeStatus(status)))
		}
	}
	if err := errors.Join(errs...); err != nil || stopped {
		return err
	}
	if w.changes != nil && !slices.ContainsFunc(w.nodes, func(n *machine) bool { return n.gone }) {
		return errors.New("the change of the members has not ended")
	}
	return w.model.settled()
}

// undecided reports whether the agent waits for a decision about a silent node.
func (n *machine) undecided() bool {
	return n.agent != nil && slices.ContainsFunc(n.w.model.components(), func(c string) bool { return n.agent.status(c).Missing != "" })
}

// decide makes the operator give up the nodes that are gone, wherever agents ask for that.
func (w *simWorld) decide() error {
	decided := false
	for _, n := range w.nodes {
		if n.agent == nil {
			continue
		}
		for _, c := range w.model.components() {
			for name := range strings.SplitSeq(n.agent.status(c).Missing, ",") {
				if i := slices.IndexFunc(w.nodes, func(m *machine) bool { return m.peer.Name == name }); i >= 0 && !w.nodes[i].gone {
					return fmt.Errorf("%s waits for %s, which is there", n.peer.Name, name)
				}
			}
		}
	}
	for _, n := range w.nodes {
		if n.decideWithout("") {
			decided = true
		}
	}
	if !decided {
		return errors.New("and no agent says which node it waits for")
	}
	return nil
}

// shrink shortens a failing history. The shorter one must fail too, though not necessarily in the same way.
func shrink(k *simKind, h history, change func(*simWorld)) history {
	fails := func(h history) bool { return simulate(k, h, change, nil) != nil }
	for again := true; again; {
		again = false
		for size := max(1, len(h.faults)/2); size > 0; size /= 2 {
			for i := 0; i+size <= len(h.faults); {
				less := h
				less.faults = slices.Delete(slices.Clone(h.faults), i, i+size)
				if fails(less) {
					h, again = less, true
				} else {
					i++
				}
			}
		}
	}
	for i := range h.faults {
		for _, round := range []time.Duration{10 * time.Second, time.Second} {
			less := h
			less.faults = slices.Clone(h.faults)
			f := &less.faults[i]
			f.at = f.at.Round(round)
			if f.lasts != forever {
				f.lasts = max(f.lasts.Round(round), time.Second)
			}
			if fails(less) {
				h = less
				break
			}
		}
	}
	return h
}

// search runs the histories of the seeds from first on, and returns one that fails. It passes over those that have none of
// the needed faults, if there are such.
func search(k *simKind, first uint64, count int, change func(*simWorld), needs ...faultKind) (failing history, err error) {
	var next atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(count); i = next.Add(1) - 1 {
				h := newHistory(k, first+uint64(i))
				if needs != nil && !slices.ContainsFunc(h.faults, func(f fault) bool { return slices.Contains(needs, f.kind) }) {
					continue
				}
				if e := simulate(k, h, change, nil); e != nil {
					mu.Lock()
					if err == nil || h.seed < failing.seed {
						failing, err = h, e
					}
					mu.Unlock()
					next.Store(int64(count))
				}
			}
		})
	}
	wg.Wait()
	return failing, err
}

// runSim is the test of a simKind.
func runSim(t *testing.T, k *simKind) {
	if *simSeed != 0 {
		h := newHistory(k, *simSeed)
		t.Log(h)
		if err := simulate(k, h, nil, t.Logf); err != nil {
			t.Error(err)
		}
		return
	}
	count := *simHistories * k.share / 100
	start := time.Now()
	h, err := search(k, 1, count, nil)
	if err == nil {
		t.Logf("%d histories in %.1f s", count, time.Since(start).Seconds())
		return
	}
	short := shrink(k, h, nil)
	t.Errorf("%v\n%v\n(replay it: go test ./agent -run '^%s$' -v -seed %d)\n\nin short: %v", err, h, t.Name(), h.seed, short)
	if err := simulate(k, short, nil, t.Logf); err != nil {
		t.Error(err)
	}
}

// scenario runs one list of faults with many seeds: durations, and therefore the order of events, differ.
func scenario(t *testing.T, k *simKind, nodes int, faults ...fault) {
	t.Helper()
	t.Parallel()
	for seed := range uint64(100) {
		if h := (history{seed, nodes, faults}); simulate(k, h, nil, nil) != nil {
			t.Error(h, simulate(k, h, nil, t.Logf))
			return
		}
	}
}

// A history always runs the same way, down to the last message. Otherwise a failing seed could not be replayed.
func TestSimIsRepeatable(t *testing.T) {
	for _, k := range []*simKind{simGalera, simRedis, simGluster} {
		for seed := range uint64(5) {
			var runs [2][]string
			for i := range runs {
				simulate(k, newHistory(k, seed), nil, func(format string, args ...any) { runs[i] = append(runs[i], fmt.Sprintf(format, args...)) })
			}
			if !slices.Equal(runs[0], runs[1]) {
				t.Errorf("%s, seed %d: two runs differ", k.name, seed)
			}
		}
	}
}

// mutant is a decision with a deliberate bug.
type mutant struct {
	name  string
	apply func(w *simWorld)
	// faults are those that make the bug matter, if it matters rarely among all; nil: all.
	faults []faultKind
	// needs are faults without any of which the bug changes nothing: histories without them need not run. nil: all run.
	needs []faultKind
	// script is a history of three nodes, instead of random ones, for a bug that matters rarely in those; nil: random ones.
	script []fault
}

// shownBy gives the faults of a history that shows the bug with some seeds.
func (m mutant) shownBy(faults []fault) mutant {
	m.script = faults
	return m
}

// within says which faults the bug needs.
func (m mutant) within(faults ...faultKind) mutant {
	m.needs = faults
	return m
}

// among limits the history's faults.
func (m mutant) among(faults ...faultKind) mutant {
	m.faults = faults
	return m
}

// killAll checks that the simulator detects each mutant within the default number of histories.
func killAll(t *testing.T, k *simKind, mutants []mutant) {
	if testing.Short() {
		t.Skip("SKIPPED: breaks the rules one by one, which takes minutes; run it without -short")
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			k := *k
			if m.faults != nil {
				k.faults = m.faults
			}
			var h history
			var err error
			for seed := uint64(0); m.script != nil && err == nil && seed < 100; seed++ {
				h = history{seed, 3, m.script}
				err = simulate(&k, h, m.apply, nil)
			}
			if m.script == nil {
				h, err = search(&k, 1, max(30000, *simHistories)*k.share/100, m.apply, m.needs...)
			}
			if err == nil {
				t.Fatal("the simulator does not notice")
			}
			if err := simulate(&k, h, nil, nil); err != nil {
				t.Errorf("seed %d fails without the mutation as well: %v", h.seed, err)
			}
			first, _, _ := strings.Cut(err.Error(), "\n")
			t.Logf("seed %d: %s", h.seed, first)
		})
	}
}

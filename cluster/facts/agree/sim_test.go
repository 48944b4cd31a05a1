package agree

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"imagegen/cluster/facts"
)

var (
	simSeed = flag.Uint64("seed", 0, "replay the simulation with this seed, with a transcript")
	simRuns = flag.Int("sims", 500, "number of simulated histories")
)

// rules are the decisions that the simulation uses. Mutants replace some of them.
type rules struct {
	handle func(State, Request) (State, Reply)
	fence  func(self string, running facts.Generation, others map[string]Status, fetch Fetch) (int, bool, error)
	merge  func(a, b State) State
	inUse  func(map[string]Status, []string, Fetch) (facts.Generation, error)
}

var realRules = rules{State.Handle, Fence, Merge, InUse}

// simNode is a node. Its state has two copies: on the root disk and on the data disk, which the node need not have.
type simNode struct {
	member     facts.Member
	root, data State
	up         bool
	running    facts.Generation
	heard      map[string]Status // since it remembers nothing
}

// simOperator is a proposer. It runs in a goroutine of its own, and only while the world waits for it.
type simOperator struct {
	name     string
	proceed  chan struct{}
	yielded  chan bool // false: it has ended
	stop     context.CancelFunc
	proposed facts.Generation
	got      facts.Generation
	err      error
}

// letter is a request that arrives late.
type letter struct {
	to string
	r  Request
}

// world is a simulated cluster.
type world struct {
	rules
	random *rand.Rand
	say    func(format string, args ...any)

	nodes       map[string]*simNode
	generations map[string]facts.Generation // all that were ever made, by digest
	number      int                         // the highest
	operators   []*simOperator
	begun       int // operators
	late        []letter
	calm        bool // nothing is lost any more
	votes       map[string]map[NamedVote]map[string]bool
	successor   map[string]string // of each generation: the digest of the chosen one
	chosen      map[int]string    // by number
	failure     string
}

func (w *world) names() []string { return slices.Sorted(maps.Keys(w.nodes)) }

func (w *world) chance(percent int) bool { return w.random.IntN(100) < percent }

func (w *world) fail(format string, args ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf(format, args...)
		w.say("FAILED: %s", w.failure)
	}
}

// make makes a generation. Its signature is not simulated.
func (w *world) make(parent string, members []facts.Member) facts.Generation {
	w.number++
	m := facts.Manifest{Version: facts.ManifestVersion, Cluster: "sim", ClusterID: "6f1c0a52-8a6a-4c0e-9c1b-0123456789ab", Number: w.number, Parent: parent, Secrets: 1, Members: members}
	data, err := m.Encode()
	if err != nil {
		panic(err)
	}
	g := facts.Generation{Manifest: m, Digest: facts.Digest(data)}
	w.generations[g.Digest] = g
	return g
}

func (w *world) fetch(n Named) (facts.Generation, error) { return w.generations[n.Digest], nil }

func newWorld(r rules, seed uint64, say func(format string, args ...any)) *world {
	w := &world{
		rules: r, random: rand.New(rand.NewPCG(seed, 15)), say: say, nodes: map[string]*simNode{}, generations: map[string]facts.Generation{},
		votes: map[string]map[NamedVote]map[string]bool{}, successor: map[string]string{}, chosen: map[int]string{},
	}
	disks := w.random.IntN(3) // all nodes have data disks, some, or none
	var members []facts.Member
	size := 1 + w.random.IntN(5)
	for i := range 7 {
		name := fmt.Sprintf("n%d", i+1)
		m := facts.Member{Name: name, Role: "r", IP: fmt.Sprintf("192.168.10.%d", i+1), Seed: facts.Digest([]byte(name)), Facts: facts.Digest([]byte(name)),
			Data: disks == 0 || disks == 1 && w.chance(60)}
		w.nodes[name] = &simNode{member: m, up: true, heard: map[string]Status{}}
		if i < size {
			members = append(members, m)
		}
	}
	root := w.make("", members)
	for _, n := range w.nodes {
		n.running = root
	}
	return w
}

// memory is what a node that is up remembers.
func (w *world) memory(n *simNode) State { return w.merge(n.root, n.data) }

// keep makes a state durable. The power may fail between any two steps; ok is then false.
func (w *world) keep(n *simNode, s State) (ok bool) {
	fails := func() bool {
		if w.calm || !w.chance(3) {
			return false
		}
		w.say("%s: power fails", n.member.Name)
		n.up = false
		return true
	}
	if fails() {
		return false
	}
	n.root = s
	if n.member.Data {
		if fails() {
			return false
		}
		n.data = s
	}
	w.look(n, s)
	return !fails()
}

// look notes which generations are chosen.
func (w *world) look(n *simNode, s State) {
	if s.Accepted == nil || s.Known == nil {
		return
	}
	parent := s.Known.Digest
	if w.votes[parent] == nil {
		w.votes[parent] = map[NamedVote]map[string]bool{}
	}
	v := NamedVote{s.Accepted.Ballot, *Name(&s.Accepted.Generation)}
	if w.votes[parent][v] == nil {
		w.votes[parent][v] = map[string]bool{}
	}
	w.votes[parent][v][n.member.Name] = true
	voted := 0
	electorate := w.generations[parent].Electorate()
	for _, m := range electorate {
		if w.votes[parent][v][m.Name] {
			voted++
		}
	}
	if voted < majority(len(electorate)) {
		return
	}
	if before, ok := w.successor[parent]; ok && before != v.Digest {
		w.fail("generations %d and %d are both chosen to follow %d", w.generations[before].Number, v.Number, s.Known.Number)
	}
	if before, ok := w.chosen[v.Number]; ok && before != v.Digest {
		w.fail("number %d is chosen twice", v.Number)
	}
	if w.generations[parent].Parent != "" && w.chosen[s.Known.Number] != parent {
		w.fail("generation %d is chosen to follow %d, which is not in use", v.Number, s.Known.Number)
	}
	if w.successor[parent] == "" {
		w.say("generation %d is chosen to follow %d", v.Number, s.Known.Number)
	}
	w.successor[parent], w.chosen[v.Number] = v.Digest, v.Digest
}

// deliver brings a request to a node and returns its reply, if it sends one.
func (w *world) deliver(to string, r Request) (Reply, bool) {
	n := w.nodes[to]
	if !n.up {
		return Reply{}, false
	}
	s, reply := w.handle(w.memory(n), r)
	w.say("%s: %s %v: %v", to, r.Step, r.Ballot, shown(reply))
	return reply, w.keep(n, s)
}

// shown is a Reply in a transcript.
type shown Reply

func (r shown) String() string {
	said := fmt.Sprintf("done %v, promised %v, forgot %v %s", r.Done, r.Promised, r.Forgot, r.Refused)
	if r.Known != nil {
		said += fmt.Sprintf(", knows %d", r.Known.Number)
	}
	if r.Accepted != nil {
		said += fmt.Sprintf(", has accepted %d", r.Accepted.Generation.Number)
	}
	return said
}

// status is what a node's agent tells.
func (w *world) status(n *simNode) Status {
	s := w.memory(n).Status()
	s.Node, s.Seed, s.Running = n.member.Name, n.member.Seed, Name(&n.running)
	return s
}

// fault is one thing that happens to the nodes.
func (w *world) fault() {
	n := w.nodes[w.names()[w.random.IntN(len(w.nodes))]]
	name := n.member.Name
	switch k := w.random.IntN(100); {
	case k < 40:
		if !n.up {
			w.boot(n)
		}
	case k < 50:
		n.up = false
	case k < 55: // replaced: the data disk stays
		w.forget(n, true)
	case k < 60:
		w.forget(n, false)
	case k < 80:
		w.ask(n)
	default: // it hears from a peer
		p := w.nodes[w.names()[w.random.IntN(len(w.nodes))]]
		if k := w.memory(p).Known; p.up && n.up && k != nil {
			if s, err := w.memory(n).Learn(*k); err != nil {
				w.fail("%s: %v", name, err)
			} else {
				w.keep(n, s)
			}
		}
	}
	if len(w.late) > 0 && w.chance(50) {
		i := w.random.IntN(len(w.late))
		l := w.late[i]
		w.late = slices.Delete(w.late, i, i+1)
		w.say("%s gets an old request", l.to)
		w.deliver(l.to, l.r)
	}
}

// forget replaces a node by a new one. Its memory may be lost only while the others can do without it: where a successor is still
// to be chosen, a majority must be able to vote; elsewhere, no majority may be without a member that remembers.
func (w *world) forget(n *simNode, keepData bool) {
	keepData = keepData && n.member.Data
	if !keepData {
		for _, g := range w.generations {
			electorate := g.Electorate()
			vote, remember, is := 0, 0, false
			for _, m := range electorate {
				f := w.memory(w.nodes[m.Name]).Fence
				switch {
				case m.Name == n.member.Name:
					is = true
				case f != nil && *f < g.Number:
					vote++
					remember++
				case f != nil:
					remember++
				}
			}
			_, decided := w.successor[g.Digest]
			if is && (!decided && vote < majority(len(electorate)) || remember < len(electorate)-majority(len(electorate))+1) {
				return
			}
		}
		n.data = State{}
		n.heard = map[string]Status{}
	}
	w.say("%s: is replaced, with its data disk: %v", n.member.Name, keepData)
	n.root = State{}
	if n.data.Known != nil {
		n.running = *n.data.Known
	}
	w.boot(n)
}

// boot turns a node on. Before it answers anybody, both copies of its memory are the same.
func (w *world) boot(n *simNode) {
	w.say("%s: boots", n.member.Name)
	n.up = true
	w.keep(n, w.memory(n))
}

// ask has a node that remembers nothing ask another.
func (w *world) ask(n *simNode) {
	s := w.memory(n)
	if !n.up || s.Fence != nil {
		return
	}
	other := w.nodes[w.names()[w.random.IntN(len(w.nodes))]]
	if other == n || !other.up {
		return
	}
	n.heard[other.member.Name] = w.status(other)
	if fence, ok, err := w.fence(n.member.Name, n.running, n.heard, w.fetch); err != nil {
		w.fail("%s: %v", n.member.Name, err)
	} else if ok {
		w.say("%s: does not vote on the successors of generations up to %d", n.member.Name, fence)
		s.Fence = &fence
		w.keep(n, s)
	}
}

// All implements Council: one message after the other, with the rest of the world in between.
func (o *simOperator) All(ctx context.Context, w *world, to []facts.Member, r Request) map[string]Reply {
	replies := map[string]Reply{}
	for _, i := range w.random.Perm(len(to)) {
		if o.yield(); ctx.Err() != nil {
			return nil
		}
		name := to[i].Name
		if !w.calm && w.chance(10) {
			continue
		}
		if !w.calm && w.chance(20) {
			w.late = append(w.late, letter{name, r})
			if w.chance(50) { // else it arrives twice
				continue
			}
		}
		w.say("%s asks %s", o.name, name)
		if reply, ok := w.deliver(name, r); ok && (w.calm || !w.chance(10)) {
			replies[name] = reply
		}
	}
	return replies
}

func (o *simOperator) yield() {
	o.yielded <- true
	<-o.proceed
}

type simCouncil struct {
	*simOperator
	w *world
}

func (c simCouncil) All(ctx context.Context, to []facts.Member, r Request) map[string]Reply {
	return c.simOperator.All(ctx, c.w, to, r)
}

func (c simCouncil) Pause(ctx context.Context, attempt int) {
	for range c.w.random.IntN(10 * attempt) {
		if c.yield(); ctx.Err() != nil {
			return
		}
	}
}

// operate starts an operator who finds out what is in use and proposes a change of it.
func (w *world) operate(alone bool) *simOperator {
	ctx, stop := context.WithCancel(context.Background())
	w.begun++
	o := &simOperator{name: fmt.Sprintf("operator%d", w.begun), proceed: make(chan struct{}), yielded: make(chan bool), stop: stop}
	go func() {
		<-o.proceed
		o.err = w.change(ctx, o, alone)
		o.yielded <- false
	}()
	return o
}

func (w *world) change(ctx context.Context, o *simOperator, alone bool) error {
	statuses := map[string]Status{}
	for _, name := range w.names() {
		if o.yield(); ctx.Err() != nil {
			return ctx.Err()
		}
		if n := w.nodes[name]; n.up && (w.calm || !w.chance(10)) {
			statuses[name] = w.status(n)
		}
	}
	parent, err := w.inUse(statuses, nil, w.fetch)
	if err != nil {
		return err
	}
	members := slices.Clone(parent.Members)
	if w.chance(40) { // a member more, or less
		if m := w.nodes[w.names()[w.random.IntN(len(w.nodes))]].member; !slices.ContainsFunc(members, func(n facts.Member) bool { return n.Name == m.Name }) {
			members = append(members, m)
		} else if len(members) > 1 {
			members = slices.DeleteFunc(members, func(n facts.Member) bool { return n.Name == m.Name })
		}
	}
	o.proposed = w.make(parent.Digest, members)
	w.say("%s proposes generation %d on %d", o.name, o.proposed.Number, parent.Number)
	o.got, err = Propose(ctx, simCouncil{o, w}, o.name, alone, parent, o.proposed)
	w.say("%s: %v, %v", o.name, o.got.Number, err)
	if err == nil && w.successor[parent.Digest] != o.got.Digest {
		w.fail("%s was told that generation %d is chosen, and it is not", o.name, o.got.Number)
	}
	return err
}

// run gives an operator a turn and reports whether it goes on.
func (o *simOperator) run() bool {
	o.proceed <- struct{}{}
	return <-o.yielded
}

// simulate runs a history and returns what was wrong, and how many generations were chosen in it.
func simulate(r rules, seed uint64, say func(format string, args ...any)) (failure string, chosen int) {
	w := newWorld(r, seed, say)
	// The cluster begins: all nodes are new and ask each other.
	for _, name := range w.names() {
		n := w.nodes[name]
		for _, other := range w.names() {
			if other != name {
				n.heard[other] = w.status(w.nodes[other])
			}
		}
		zero, ok, err := w.fence(name, n.running, n.heard, w.fetch)
		if err != nil || !ok {
			w.fail("%s does not begin: %v", name, err)
		}
		n.root.Fence = &zero
		if n.member.Data {
			n.data.Fence = &zero
		}
	}
	for range 400 {
		if len(w.operators) < 3 && w.chance(10) {
			w.operators = append(w.operators, w.operate(false))
		}
		if len(w.operators) > 0 && w.chance(70) {
			i := w.random.IntN(len(w.operators))
			o := w.operators[i]
			if w.chance(2) {
				w.say("%s is killed", o.name)
				o.stop()
			}
			if !o.run() {
				w.operators = slices.Delete(w.operators, i, i+1)
			}
		} else {
			w.fault()
		}
		if w.failure != "" {
			break
		}
	}
	for _, o := range w.operators { // wherever they are
		for o.stop(); o.run(); {
		}
	}
	if w.failure != "" {
		return w.failure, len(w.chosen)
	}
	// Then the next one succeeds, once all nodes are up, whoever has stopped where.
	w.calm = true
	for _, name := range w.names() {
		w.boot(w.nodes[name])
	}
	for _, l := range w.late {
		w.deliver(l.to, l.r)
	}
	if w.failure != "" {
		return w.failure, len(w.chosen)
	}
	for range 3 {
		o := w.operate(false)
		for o.run() {
		}
		var forgot *NoMajority
		var behind *Behind
		switch {
		case o.err == nil && o.got.Digest == o.proposed.Digest:
			return w.failure, len(w.chosen)
		case o.err == nil, errors.As(o.err, &behind): // it has completed another's
		case errors.As(o.err, &forgot) && forgot.Silent == nil:
			// Nobody else proposes anything now, so the operator may say so.
			for o = w.operate(true); o.run(); {
			}
			if o.err != nil {
				w.fail("alone: %v", o.err)
			}
			return w.failure, len(w.chosen)
		default:
			w.fail("nobody else is there, and yet: %v", o.err)
		}
	}
	w.fail("three changes of a quiet cluster, and none succeeds")
	return w.failure, len(w.chosen)
}

func TestSim(t *testing.T) {
	if *simSeed != 0 {
		if failure, _ := simulate(realRules, *simSeed, t.Logf); failure != "" {
			t.Error(failure)
		}
		return
	}
	chosen := 0
	for seed := range uint64(*simRuns) {
		failure, n := simulate(realRules, seed+1, func(string, ...any) {})
		chosen += n
		if failure != "" {
			t.Fatalf("%s; go test ./cluster/facts/agree -run 'TestSim$' -seed %d", failure, seed+1)
		}
	}
	t.Logf("%d generations were chosen in %d histories", chosen, *simRuns)
	if chosen < *simRuns {
		t.Errorf("only %d generations were chosen in %d histories: the simulation is too rough to show anything", chosen, *simRuns)
	}
}

// TestSimMutants: each rule matters: without it, some history goes wrong.
func TestSimMutants(t *testing.T) {
	for _, m := range []struct {
		name  string
		apply func(r *rules)
	}{
		{"a promise is forgotten", func(r *rules) {
			r.handle = func(s State, q Request) (State, Reply) {
				if s.Promised.Compare(q.Ballot) > 0 {
					s.Promised = Ballot{}
				}
				return s.Handle(q)
			}
		}},
		{"a vote is not told to the next proposer", func(r *rules) {
			r.handle = func(s State, q Request) (State, Reply) {
				s, reply := s.Handle(q)
				reply.Accepted = nil
				return s, reply
			}
		}},
		{"a later generation in use is not respected", func(r *rules) {
			r.handle = func(s State, q Request) (State, Reply) {
				if q.Parent != nil && s.Known != nil && q.Parent.Number < s.Known.Number {
					s = State{Fence: s.Fence, Known: q.Parent}
				}
				return s.Handle(q)
			}
		}},
		{"an acceptor without memory votes", func(r *rules) {
			r.handle = func(s State, q Request) (State, Reply) {
				zero := 0
				s.Fence = &zero
				return s.Handle(q)
			}
		}},
		{"an acceptor without memory believes one member", func(r *rules) {
			r.fence = func(self string, running facts.Generation, others map[string]Status, fetch Fetch) (int, bool, error) {
				for _, s := range others {
					if s.Known == nil {
						return 0, true, nil
					}
					return s.Known.Number, true, nil
				}
				return 0, false, nil
			}
		}},
		{"the copy on the data disk is ignored", func(r *rules) {
			r.merge = func(a, b State) State {
				a.Fence = Merge(a, b).Fence
				return a
			}
		}},
		{"what was accepted once is in use", func(r *rules) {
			r.inUse = func(statuses map[string]Status, without []string, fetch Fetch) (facts.Generation, error) {
				g, err := InUse(statuses, without, fetch)
				for _, s := range statuses {
					if s.Accepted != nil && s.Accepted.Number > g.Number {
						return fetch(s.Accepted.Named)
					}
				}
				return g, err
			}
		}},
	} {
		t.Run(m.name, func(t *testing.T) {
			r := realRules
			m.apply(&r)
			for seed := range uint64(20 * *simRuns) {
				if failure, _ := simulate(r, seed+1, func(string, ...any) {}); failure != "" {
					t.Logf("seed %d: %s", seed+1, failure)
					return
				}
			}
			t.Error("no history goes wrong")
		})
	}
}

// TestSimIsRepeatable: a seed determines the history.
func TestSimIsRepeatable(t *testing.T) {
	for seed := range uint64(5) {
		var runs [2][]string
		for i := range runs {
			simulate(realRules, seed+1, func(format string, args ...any) { runs[i] = append(runs[i], fmt.Sprintf(format, args...)) })
		}
		if len(runs[0]) == 0 || !slices.Equal(runs[0], runs[1]) {
			t.Errorf("seed %d: two runs differ", seed+1)
		}
	}
}

package agent

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// simChange is a change of the cluster's members that an operator carries out, as imagegen apply does, but with less care: nodes get
// the next generation in any order and at any time. Two things it does as apply: a generation is chosen by a majority of the members,
// and a node that left is removed only once the others say that it counts no more. For some kinds there is a third: see simKind.
type simChange struct {
	next facts.Membership
	new  []*machine // in the order in which they start
	left []*machine // to be removed
	todo int        // nodes that have not got the generation yet
	// begin has the members get the generation, once it is in use.
	begin func()
}

// with returns the kind with more of one fault, but no lying agents: which members count is up to what all of them say.
func (k simKind) with(fault faultKind, share int) *simKind {
	k.share = share
	k.faults = append(slices.DeleteFunc(slices.Clone(k.faults), func(f faultKind) bool { return f == lying }), fault, fault)
	return &k
}

// seed gives a node its part of a generation.
func (n *machine) seed(g facts.Membership) {
	n.number, n.peers = g.Number, nil
	for _, p := range g.Members {
		if p.Name == n.peer.Name {
			n.peer = p
			n.network = strings.Join(strings.Split(p.IP, ".")[:2], ".")
		} else {
			n.peers = append(n.peers, p)
		}
	}
}

// address returns one of a node's addresses in the cluster's network.
func (w *simWorld) address(which int, n *machine) string {
	return fmt.Sprintf("10.%d.%d.%d", w.network, which, n.index+1)
}

func (w *simWorld) named(name string) *machine {
	return w.nodes[slices.IndexFunc(w.nodes, func(n *machine) bool { return n.peer.Name == name })]
}

// names tells whether the generation in use names a node.
func (w *simWorld) names(n *machine) bool { return inMembership(w.generation, n) }

func inMembership(g facts.Membership, n *machine) bool {
	return slices.ContainsFunc(g.Members, func(p facts.Peer) bool { return p.Name == n.peer.Name })
}

// change begins a change, once the one before has ended.
func (w *simWorld) change(arg int) {
	// Where apply changes one node at a time, it does not go on while one is not ready.
	left := func(p facts.Peer) bool { n := w.named(p.Name); return !n.gone && !n.ready() }
	if w.changes != nil || w.kind.inOrder && w.generation.Number > 1 && slices.ContainsFunc(w.generation.Members, left) {
		w.in(5*time.Second, func() { w.change(arg) })
		return
	}
	r := rand.New(rand.NewPCG(uint64(arg), 3))
	next := facts.Membership{Number: w.generation.Number + 1, Members: slices.Clone(w.generation.Members)}
	var spares []*machine
	for _, n := range w.nodes {
		if !w.names(n) && n.number == 0 {
			spares = append(spares, n)
		}
	}
	what := r.IntN(5)
	// One or two nodes are added, or one takes the place of another, or one or two are removed.
	both := w.kind.inOrder && what != 1 && r.IntN(2) == 0
	for i, n := range spares {
		if what < 2 && (i == 0 || both) {
			n.peer.IP = w.address(0, n)
			next.Members = slices.Insert(next.Members, r.IntN(len(next.Members)+1), n.peer)
		}
	}
	for i := range 2 {
		if at := r.IntN(len(next.Members)); (what == 1 || what == 2) && (i == 0 || both) && len(next.Members) > 3 {
			next.Members = slices.Delete(next.Members, at, at+1)
		}
	}
	if what == 3 {
		r.Shuffle(len(next.Members), func(i, j int) { next.Members[i], next.Members[j] = next.Members[j], next.Members[i] })
	}
	for i := range next.Members {
		p := &next.Members[i]
		if p.Index = i; what == 4 && r.IntN(2) == 0 {
			p.IP = w.address(next.Number, w.named(p.Name))
		}
	}
	w.changes = &simChange{next: next, todo: len(next.Members), begin: func() {
		for _, p := range next.Members {
			n := w.named(p.Name)
			w.in(w.between(0, 60*time.Second), func() { w.adopt(n) })
		}
	}}
	for _, n := range spares {
		if inMembership(next, n) {
			w.changes.new = append(w.changes.new, n)
		}
	}
	w.propose()
}

// moving tells whether nodes are getting the next generation now.
func (w *simWorld) moving() bool {
	return w.now < w.quiet || w.changes != nil && slices.ContainsFunc(w.changes.next.Members, func(p facts.Peer) bool {
		n := w.named(p.Name)
		return !n.gone && (n.number < w.changes.next.Number || !n.on())
	})
}

// propose waits until a majority can accept the next generation, and has them do so.
func (w *simWorld) propose() {
	var able []*machine
	for _, p := range w.generation.Members {
		if n := w.named(p.Name); n.on() && !n.suspended() && n.agent != nil && w.now >= n.diskAt {
			able = append(able, n)
		}
	}
	need := len(w.generation.Members)/2 + 1
	if len(able) < need {
		w.in(time.Second, w.propose)
		return
	}
	c := w.changes
	w.rand.Shuffle(len(able), func(i, j int) { able[i], able[j] = able[j], able[i] })
	for _, n := range able[:need] {
		n.accepted = []facts.Membership{c.next}
		if _, err := n.agent.members.count(nil); err != nil {
			w.fail("%s cannot accept a generation: %v", n.peer.Name, err)
		}
	}
	w.tell("generation %d is in use: %v", c.next.Number, c.next.Members)
	for _, n := range w.nodes {
		if w.names(n) && !inMembership(c.next, n) {
			c.left = append(c.left, n)
		}
	}
	w.generation = c.next
	c.begin()
	w.remove()
}

// renumber begins to move all members to another network, once the change before has ended. Nodes in two networks do not reach each
// other. As with apply, no node starts there before all were turned off; or the operator is interrupted, and turns some on again
// where they were.
func (w *simWorld) renumber(arg int) {
	if w.changes != nil {
		w.in(5*time.Second, func() { w.renumber(arg) })
		return
	}
	r := rand.New(rand.NewPCG(uint64(arg), 4))
	next := facts.Membership{Number: w.generation.Number + 1, Members: slices.Clone(w.generation.Members)}
	if was := w.network; was == 0 || r.IntN(3) > 0 {
		w.network = next.Number
	} else {
		w.network = 0 // perhaps where they were first
	}
	for i := range next.Members {
		p := &next.Members[i]
		p.IP = w.address(0, w.named(p.Name))
	}
	again := r.IntN(2) == 0
	w.changes = &simChange{next: next, todo: len(next.Members), begin: func() { w.moveAll(next, again) }}
	w.propose()
}

// moveAll turns all members off, and on again in another network; with again, some for a while where they were.
func (w *simWorld) moveAll(next facts.Membership, again bool) {
	off := w.now
	var all []*machine
	for _, p := range next.Members {
		n := w.named(p.Name)
		all = append(all, n)
		d := w.between(0, 3*time.Second)
		w.in(d, func() { n.powerOff(w.chance(2)) })
		if off = max(off, w.now+d); again && w.chance(2) {
			on := d + w.between(0, 10*time.Second)
			w.in(on, n.powerOn)
			d = on + w.between(0, 60*time.Second)
			w.in(d, func() { n.powerOff(w.chance(2)) })
			off = max(off, w.now+d)
		}
	}
	w.in(off-w.now, func() {
		for _, n := range all {
			w.tell("%s gets generation %d", n.peer.Name, next.Number)
			n.joint[0], n.accepted, n.decisions = facts.Joint{}, nil, map[string]*decided{}
			n.seed(next)
			w.in(w.between(0, 20*time.Second), func() {
				n.powerOn()
				w.changes.todo--
				w.quiet = w.now + 20*time.Second
			})
		}
	})
}

// adopt replaces a node: a new root disk, the next generation's seed, and the data disk that it had.
func (w *simWorld) adopt(n *machine) {
	before := w.changes.new[:max(0, slices.Index(w.changes.new, n))]
	if n.gone || w.kind.inOrder && slices.ContainsFunc(before, func(o *machine) bool { return !o.gone && !w.model.excused(o) && !o.ready() }) {
		w.in(5*time.Second, func() { w.adopt(n) })
		return
	}
	w.tell("%s gets generation %d", n.peer.Name, w.changes.next.Number)
	if n.number > 0 {
		n.powerOff(w.chance(2))
	}
	n.joint[0], n.accepted, n.decisions = facts.Joint{}, nil, map[string]*decided{}
	n.seed(w.changes.next)
	w.in(w.between(time.Second, 20*time.Second), func() {
		n.powerOn()
		w.changes.todo--
		w.quiet = w.now + 20*time.Second
	})
}

// ready tells whether all components of a node are.
func (n *machine) ready() bool {
	return n.agent != nil && !slices.ContainsFunc(n.w.model.components(), func(c string) bool { return n.agent.status(c).State != facts.Ready })
}

// remove removes the nodes that left, once all that are members say that they do not count any more.
func (w *simWorld) remove() {
	c := w.changes
	settled := c.todo == 0
	for _, p := range c.next.Members {
		n := w.named(p.Name)
		settled = settled && (len(c.left) == 0 || n.on() && n.agent != nil && n.agent.members.known().Settled >= c.next.Number)
	}
	if !settled {
		if r, ok := w.model.(*redisModel); ok && c.todo == 0 && w.now >= w.quiet {
			for _, n := range c.left {
				if s := r.servers[n.index]; n.on() && s != nil && s.follows < 0 { // apply has Sentinel choose another first
					n.powerOff(true)
					w.in(60*time.Second, n.powerOn)
					w.quiet = w.now + 120*time.Second
				}
			}
		}
		w.in(2*time.Second, w.remove)
		return
	}
	for _, n := range c.left {
		w.tell("%s is removed", n.peer.Name)
		n.gone = false
		n.powerOff(false)
		w.model.blank(n)
	}
	w.changes = nil
}

// simJoint is a jointStore.
type simJoint struct{ n *machine }

func (s simJoint) read() (facts.Joint, error) {
	if s.n.w.now < s.n.diskAt {
		return facts.Joint{}, errNoDataDisk
	}
	j := facts.Joint{Role: s.n.peer.Role} // nodes of another role, and empty disks, have nothing to say
	for _, kept := range s.n.joint {
		j = ensemble.Learn(j, kept)
	}
	return j, nil
}

func (s simJoint) write(j facts.Joint) error {
	if s.n.w.now < s.n.diskAt {
		return errNoDataDisk
	}
	s.n.joint = [2]facts.Joint{j, j}
	if s.n.w.forgets {
		s.n.joint[1] = facts.Joint{}
	}
	return nil
}

// renumberedFaults are those that matter most while all members move to another network.
var renumberedFaults = []faultKind{renumbered, renumbered, crash, outage, reboot, isolated, split, lateBoot, slowStart}

// onlyHeard is a mutation of what a component is told: a member that has another address counts only once it was heard there.
func onlyHeard(w *World) {
	last := w.Joint.InUse[len(w.Joint.InUse)-1]
	last.Members = slices.DeleteFunc(slices.Clone(last.Members), func(p facts.Peer) bool {
		_, heard := w.Reports[p.Name]
		moved := slices.ContainsFunc(w.Joint.InUse[0].Members, func(o facts.Peer) bool { return o.Name == p.Name && o.IP != p.IP })
		return moved && !heard && p.Name != w.Self.Name
	})
	w.Joint.InUse = []facts.Membership{last}
}

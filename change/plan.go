// Package change takes a running cluster from one generation of its configuration to the next.
//
// The plan is a pure function of what the nodes report, and only its first round is ever carried out before the next one is made. So
// whoever has the spec and the secrets can go on after an interruption: nothing is remembered anywhere else.
//
// A round is one step, or several on nodes of different roles whose trials may overlap. All of them must have passed before the next round
// begins, so the first node of each role is a canary for its others. Steps share a round only if
//
//   - all are takeovers: machines are made and turned off one at a time;
//   - none of their roles uses another, directly or through others, and no role that has steps left before them is so related to theirs.
//     So roles change in their order, and a balancer never together with what is behind it. Between two quiet steps, which daemons do
//     not notice, the order does not matter;
//   - none restarts a node that leads: visitors meet one failover at a time;
//   - the others of their roles are ready, and there are some where daemons stop. So if all nodes of a round are lost, each role has
//     what it has when it loses that one;
//   - most of those who vote on generations answer and are not in the round, so that it can be undone.
//
// During an outage that the operator has agreed to, the nodes of some roles get other addresses while all of them are off. They are
// turned off role by role, a round for each, and made anew in one.
package change

import (
	"fmt"
	"slices"
	"strings"

	"imagegen/cluster/facts"
	"imagegen/internal/words"
)

// State is what a plan is made from.
type State struct {
	Roles   []Role   // of all nodes, in the spec's order
	Nodes   []Node   // in the spec's order, followed by those that the spec no longer has
	Without []string // nodes that have been given up
	ByHand  bool     // no provider knows whether a machine is off
	Outage  bool     // the operator agrees to an outage
	// Elsewhere says that nodes are outside the network that the spec has now. Those in one do not reach those in the other.
	Elsewhere bool
	// Tied says why the machines cannot move to another network; empty: they can.
	Tied string
}

// Role is what the order of changes depends on.
type Role struct {
	Name   string
	Quorum bool     // its daemons keep a list of their members, and decide by majority
	Joint  bool     // its members may change while they run: those of two generations count at the same time
	Lone   bool     // one member alone may take writes: the others do not know what they lack
	VIP    bool     // its nodes agree by VRRP on who holds an address
	Uses   []string // roles that its nodes connect to
}

// Node is what is known of a node.
type Node struct {
	Name, Role string
	Was, Is    *facts.Member // before the change, and after it; nil: there is no such node
	Before     *facts.Member // in the generation that the cluster leaves, also if it has changed already; nil: as Was
	Silent     bool          // its agent does not answer; what follows is then not known
	Off        bool          // its machine is known to be off, or there is none
	Prepared   bool          // its machine, which is off, was made from the new seed and image
	Made       bool          // its machine, which is on, was
	Seed       string        // digest of the seed that it runs
	Image      string        // identity of its image; empty: not known
	Ready      bool
	Joint      bool // its agent counts the members of two generations, where the role's may change
	// Leads says why the node is the last of its role: it holds the virtual address, or is the master; empty: it does not lead.
	Leads string
	// Apart says that nodes of its role with the old seed and with the new one must not run at the same time, and why.
	Apart string
	// Quiet says that taking over the new seed stops and reloads nothing but the packet filter: other nodes have come, moved or left.
	Quiet bool
	// Takeover is what the agent says of taking over the new seed in place; nil: it has not been asked.
	Takeover *facts.Plan
}

// Action is what a step does with its node.
type Action string

const (
	TakeOver Action = "take over" // the agent takes over the new seed in place
	Replace  Action = "replace"   // a new machine with the new seed; the data disk stays
	Add      Action = "add"       // the node's first machine
	Stop     Action = "stop"      // turn the machine off, to be replaced in a later step
	Remove   Action = "remove"    // turn the machine off for good; its disks stay until imagegen down
	Await    Action = "wait"      // for an answer
)

// Step is one step of a plan, on one node.
type Step struct {
	Round  int      `json:"round"` // from 1; steps of one round are carried out at the same time
	Node   string   `json:"node"`
	Role   string   `json:"role"`
	Action Action   `json:"action"`
	Why    []string `json:"why,omitempty"`
	Notes  []string `json:"notes,omitempty"` // what an operator should know before agreeing
	// Needs are nodes that must be ready before the step begins.
	Needs []string `json:"needs,omitempty"`
	// Agree are nodes that must count the same members of the role before the step begins: a node that is added is one of them for
	// all, and one that is removed for none.
	Agree []string `json:"agree,omitempty"`

	outage bool // it is part of an outage
}

// Refused says why a change cannot be made safely.
type Refused struct{ Reasons []string }

func (e *Refused) Error() string {
	return "this change is refused: " + strings.Join(e.Reasons, "; ")
}

// Plan returns the steps that are left, in order of their rounds; none: the cluster runs what it should. Existing nodes come first, those that connect
// to others before those: so nobody is sent to a node that is about to leave, and all know a new node before it starts. Then come new
// nodes and those that move to another address, and removed nodes last.
//
// The nodes of a role change one at a time, while all others of the role are ready, and the one that leads comes last. The members of
// a role with a quorum also become more or fewer one at a time, each once all agree on who the members are.
func Plan(s State) ([]Step, error) {
	if reasons := s.refused(); reasons != nil {
		return nil, &Refused{reasons}
	}
	var existing, newcomers, removals []Step
	order := s.order()
	last := -1 // role of the outage; none: there is no outage
	for i, r := range order {
		if s.down(r) {
			last = i
		}
	}
	for i, r := range order {
		nodes := s.of(r.Name)
		if !s.down(r) {
			existing = append(existing, r.steps(nodes)...)
		}
		if i == last {
			existing = append(existing, s.outage(order)...)
		}
		if s.down(r) {
			continue
		}
		var arrive []Step
		for _, n := range nodes {
			switch {
			case n.leaves() && !r.leavesFirst(n, nodes):
				if !n.Off {
					removals = append(removals, r.removal(n, nodes))
				}
			case n.arrives() && !n.done():
				arrive = append(arrive, n.arrival(r, nodes))
			}
		}
		newcomers = append(arrive, newcomers...) // those that others connect to come first
	}
	return s.rounds(slices.Concat(existing, newcomers, removals)), nil
}

// rounds numbers the steps that are left by rounds (see the package's comment), and orders them so.
func (s State) rounds(left []Step) (steps []Step) {
	uses := s.uses()
	ready := map[string]bool{} // now, or once earlier rounds are done
	for _, n := range s.Nodes {
		ready[n.Name] = n.Ready
	}
	for round := 1; len(left) > 0; round++ {
		var now, later []Step
		for i, step := range left {
			if o := left[0]; o.outage {
				if len(now) == i && step.outage && (step.Action == o.Action && step.Role == o.Role || step.anew() && o.anew()) {
					step.Round = round
					now = append(now, step)
				} else {
					later = append(later, step)
				}
				continue
			}
			related := func(o Step) bool {
				uses := uses[o.Role][step.Role] || uses[step.Role][o.Role]
				return o.Role == step.Role || uses && !(s.quiet(o) && s.quiet(step))
			}
			unready := func(name string) bool { return !ready[name] }
			if len(now) > 0 && (!s.overlaps(now[0]) || !s.overlaps(step) || slices.ContainsFunc(step.Needs, unready) ||
				slices.ContainsFunc(now, related) || slices.ContainsFunc(later, related) || !s.undoable(now, step)) {
				later = append(later, step)
				continue
			}
			step.Round = round
			now = append(now, step)
		}
		for _, step := range now {
			ready[step.Node] = step.Action != Stop && step.Action != Remove
		}
		steps, left = append(steps, now...), later
	}
	return steps
}

// anew tells whether a step makes a machine.
func (step Step) anew() bool { return step.Action == Replace || step.Action == Add }

// overlaps tells whether a step may share its round.
func (s State) overlaps(step Step) bool {
	return step.Action == TakeOver && (!s.stops(step) || s.node(step.Node).Leads == "" && len(step.Needs) > 0)
}

// quiet tells whether a step is one that daemons do not notice.
func (s State) quiet(step Step) bool { return step.Action == TakeOver && s.node(step.Node).Quiet }

// stops tells whether a step stops daemons.
func (s State) stops(step Step) bool {
	return step.Action != TakeOver || len(s.node(step.Node).Takeover.Stop) > 0
}

// undoable tells whether the cluster could still agree on a generation if all nodes of these steps were lost.
func (s State) undoable(now []Step, step Step) bool {
	var target facts.Manifest
	for _, n := range s.Nodes {
		if n.Is != nil {
			target.Members = append(target.Members, *n.Is)
		}
	}
	electorate, vote := target.Electorate(), 0
	for _, m := range electorate {
		n := s.node(m.Name)
		if !n.Silent && !n.Off && n.Name != step.Node && !slices.ContainsFunc(now, func(o Step) bool { return o.Node == n.Name }) {
			vote++
		}
	}
	return 2*vote > len(electorate)
}

// node returns a node of the plan.
func (s State) node(name string) Node {
	return s.Nodes[slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == name })]
}

// uses returns which roles each role uses, directly or through others.
func (s State) uses() map[string]map[string]bool {
	direct, all := map[string][]string{}, map[string]map[string]bool{}
	for _, r := range s.Roles {
		direct[r.Name] = r.Uses
	}
	for _, r := range s.Roles {
		reached := map[string]bool{}
		for next := slices.Clone(r.Uses); len(next) > 0; next = next[1:] {
			if !reached[next[0]] {
				reached[next[0]] = true
				next = append(next, direct[next[0]]...)
			}
		}
		all[r.Name] = reached
	}
	return all
}

// steps returns the changes of the nodes of a role that are there already.
func (r Role) steps(nodes []Node) (steps []Step) {
	var stay []Node
	apart := ""
	for _, n := range nodes {
		if n.stays() {
			stay = append(stay, n)
			if n.Apart != "" && !n.done() {
				apart = n.Apart
			}
		}
	}
	for _, n := range nodes {
		switch {
		case r.leavesFirst(n, nodes) && n.Is == nil && !n.Off:
			s := n.step(Remove, "the others of its role would no longer know it, and it would take the virtual address from them")
			s.Needs = needs(n, stay)
			steps = append(steps, s)
		case r.leavesFirst(n, nodes) && n.Is != nil && !n.Off && !n.done():
			s := n.step(Stop, "until the others of its role know its new address, it would take the virtual address from them")
			s.Needs = needs(n, stay)
			steps = append(steps, s)
		}
	}
	slices.SortStableFunc(stay, func(a, b Node) int { return a.rank() - b.rank() })
	var stopped []string
	if n := len(stay); apart != "" && n > 1 && !stay[n-1].Off && !slices.ContainsFunc(stay, Node.done) {
		// The one that leads goes on alone with the old settings until it changes itself.
		last := stay[n-1]
		for _, o := range stay[:n-1] {
			stopped = append(stopped, o.Name)
			if !o.Off {
				s := o.step(Stop, apart)
				s.Needs = []string{last.Name}
				steps = append(steps, s)
			}
		}
		stay = append([]Node{last}, stay[:n-1]...)
	}
	for _, n := range stay {
		switch {
		case n.done():
			continue
		case n.Silent && !n.Off:
			steps = append(steps, n.step(Await, "it does not answer, so what it runs is not known"))
			continue
		case n.Off && n.Prepared && !slices.Contains(stopped, n.Name):
			steps = append(steps, n.step(Await, "its machine is off, and needs nothing but imagegen start "+n.Name))
			continue
		}
		s := n.change()
		s.Needs = slices.DeleteFunc(append(needs(n, stay), r.quorate(n, nodes)...), func(name string) bool { return slices.Contains(stopped, name) })
		if len(s.Needs) == 0 && n.Ready && (s.Action == Replace || len(n.Takeover.Stop) > 0) {
			s.Notes = append(s.Notes, fmt.Sprintf("no other node of %s works meanwhile: there is an outage until it is ready again", n.Role))
		}
		steps = append(steps, s)
	}
	return steps
}

// needs returns the others that must be ready before a node changes: all, without those that are not ready but will be changed
// themselves. These cannot become ready before, perhaps, and whoever is not ready either makes nothing worse.
func needs(n Node, stay []Node) (names []string) {
	for _, o := range stay {
		if o.Name != n.Name && (o.Ready || o.done() || n.Ready) {
			names = append(names, o.Name)
		}
	}
	return names
}

// quorate returns those that will leave the role, or its address, and must be ready before a member changes, because the ones that
// stay are no majority of the earlier members without it. One that is off is not waited for.
func (r Role) quorate(n Node, nodes []Node) (names []string) {
	before, others := 0, 0
	for _, o := range nodes {
		if o.Was == nil {
			continue
		}
		if before++; o.stays() && o.Name != n.Name {
			others++
		} else if !o.stays() && !o.Off && !o.done() {
			names = append(names, o.Name)
		}
	}
	if !r.Joint || !n.Ready || 2*others > before {
		return nil
	}
	return names
}

// present returns the other nodes of a role that the change leaves in it and that are where they will be.
func present(n Node, nodes []Node) (names []string) {
	for _, o := range nodes {
		if o.Name != n.Name && (o.stays() || o.arrives() && o.done()) {
			names = append(names, o.Name)
		}
	}
	return names
}

// removal is the step that turns off a node that the spec no longer has.
func (r Role) removal(n Node, nodes []Node) Step {
	s := n.step(Remove)
	if r.Joint {
		s.Needs = present(n, nodes)
		s.Agree = s.Needs
		s.Notes = append(s.Notes, fmt.Sprintf("%s goes on with %s; this cannot be undone once it is off", n.Role, words.Count(len(s.Needs), "member")))
	}
	return s
}

// change is the step that makes an existing node run the new seed.
func (n Node) change() Step {
	switch {
	case n.Off:
		return n.step(Replace, "its machine is off, so that it cannot change in place")
	case n.Image != "" && n.Is.Image != "" && n.Image != n.Is.Image:
		return n.step(Replace, "it has another image")
	case n.Takeover == nil:
		return n.step(Replace, "its agent cannot take over a seed")
	case len(n.Takeover.Replace) > 0:
		return n.step(Replace, n.Takeover.Replace...)
	}
	var why []string
	for _, f := range n.Takeover.Files {
		why = append(why, f.Path+" "+f.What)
	}
	s := n.step(TakeOver, why...)
	if len(n.Takeover.Stop) > 0 {
		s.Notes = append(s.Notes, "restarts "+words.List(n.Takeover.Stop, "and"))
	}
	if len(n.Takeover.Reload) > 0 {
		s.Notes = append(s.Notes, "reloads "+words.List(n.Takeover.Reload, "and"))
	}
	return s
}

// arrival is the step that makes a new node, or one that moves to another address.
func (n Node) arrival(r Role, nodes []Node) Step {
	s := n.step(Add, "the spec has added it")
	if n.Was != nil {
		s = n.step(Replace, fmt.Sprintf("its address changes from %s to %s", n.Was.IP, n.Is.IP))
	}
	if r.Joint { // one after the other
		s.Needs = present(n, nodes)
		s.Agree = s.Needs
		return s
	}
	for _, o := range nodes {
		if o.stays() {
			s.Needs = append(s.Needs, o.Name)
		}
	}
	return s
}

func (n Node) step(a Action, why ...string) Step {
	s := Step{Node: n.Name, Role: n.Role, Action: a, Why: why}
	if a == Remove {
		s.Why = append([]string{"the spec no longer has it"}, why...)
		s.Notes = []string{"its machine is turned off; imagegen down " + n.Name + " removes its disks, its seed and its key"}
	}
	if n.Leads != "" && (a == TakeOver || a == Replace || a == Stop || a == Remove) {
		s.Notes = append(s.Notes, "it "+n.Leads)
	}
	return s
}

// stays tells whether the node is there before and after the change, at one address.
func (n Node) stays() bool { return n.Was != nil && n.Is != nil && n.Was.IP == n.Is.IP }

// arrives tells whether the node will be at an address where it was not.
func (n Node) arrives() bool { return n.Is != nil && !n.stays() }

// leaves tells whether there will be no such node.
func (n Node) leaves() bool { return n.Is == nil }

// leavesFirst tells whether a node that is removed or moves must be off before the others of its role change: they agree with
// those they know on who holds an address, so one that they no longer know would take it as well.
func (r Role) leavesFirst(n Node, nodes []Node) bool {
	return r.VIP && n.Was != nil && !n.stays() && slices.ContainsFunc(nodes, Node.stays)
}

// done tells whether the node runs what it should.
func (n Node) done() bool {
	return n.Is != nil && !n.Silent && !n.Off && n.Seed == n.Is.Seed && (n.Image == "" || n.Is.Image == "" || n.Image == n.Is.Image)
}

// rank orders the nodes of a role: those that serve nobody first, the one that leads last.
func (n Node) rank() int {
	switch {
	case !n.Ready:
		return 0
	case n.Leads == "":
		return 1
	}
	return 2
}

// of returns the nodes of a role that have not been given up.
func (s State) of(role string) (nodes []Node) {
	for _, n := range s.Nodes {
		if n.Role == role && !slices.Contains(s.Without, n.Name) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// order returns the roles so that each comes before those that it uses. Where roles use each other, the spec's order decides.
func (s State) order() (sorted []Role) {
	left := slices.Clone(s.Roles)
	for len(left) > 0 {
		next := slices.IndexFunc(left, func(r Role) bool {
			return !slices.ContainsFunc(left, func(o Role) bool { return o.Name != r.Name && slices.Contains(o.Uses, r.Name) })
		})
		next = max(next, 0)
		sorted = append(sorted, left[next])
		left = slices.Delete(left, next, next+1)
	}
	return sorted
}

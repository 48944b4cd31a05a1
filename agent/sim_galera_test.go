package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// The model of Galera follows https://galeracluster.com/library/documentation/ (weighted quorum, state transfer, the
// options of gcomm) and gcs/src/gcs_state_msg.cpp, gcomm/src/pc_proto.cpp of Galera 4:
//
//   - Servers that are connected, directly or through others, form a group. A group stays primary with more than half
//     of the members of the last primary group, not counting those that left cleanly, if one of them has all data. A
//     group without quorum is primary again once all members of the last primary group are together, in the same
//     processes, or through pc.bootstrap.
//   - A write is committed once all members of the primary group have received it. The server that executed it has it on
//     disk at once, the others a little later: a crash loses what they have received and not applied.
//   - A joining server gets the writes that it lacks (IST), or everything (SST), which first destroys its data; an
//     interrupted SST leaves unusable data. A server that is ahead of the group refuses to join.
//   - The seqno is in grastate.dat only after a clean stop.
//   - A server whose IST fails leaves the group and keeps running. A stop may hang (codership/galera#439) until the agent
//     kills the server.
const (
	suspectTimeout  = 4 * time.Second  // the longest that a group takes to notice; evs.suspect_timeout is less
	waitPrimTimeout = 30 * time.Second // pc.wait_prim_timeout
)

var simGalera = &simKind{
	name: "galera", role: "percona", share: 45,
	build: func(w *simWorld) simModel { return newGaleraModel(w) },
	faults: []faultKind{lateBoot, lateBoot, gone, crash, crash, crash, reboot, outage, outage, blankDisk, blankDisk, foreignDisk, agentDies,
		daemonDies, daemonDies, cutOneWay, isolated, split, split, slowNet, paused, frozen, lying, noStart, slowStart, givenUp, stepCrash, stepCrash, stepAgent},
}

// txn is a transaction; prev links it to all before it.
type txn struct {
	prev    *txn
	depth   int // number of transactions before it
	history string
	seqno   int64
	acked   *txn   // the last one up to this one whose commit a client has seen
	cluster string // the cluster whose marker is in the data
}

// has reports whether t is in the data that ends with head.
func (head *txn) has(t *txn) bool {
	for head != nil && head.depth > t.depth {
		head = head.prev
	}
	return head == t
}

func (head *txn) String() string {
	if head == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s:%d", head.history[:8], head.seqno)
}

type galeraDisk struct {
	mark    bool // foundingName
	files   bool
	partial bool // an SST destroyed the data and was not completed
	head    *txn
	clean   bool   // the seqno is in grastate.dat
	fork    string // the history in grastate.dat, if it is not head's
}

type galeraProcess struct {
	n        *machine
	boot     bool // starts a cluster
	talks    bool // can talk to others
	up       bool // was ready once: systemd calls it active
	synced   bool // has all writes of the group
	received *txn
	group    *galeraGroup
	last     *galeraGroup // the last primary one
	named    bool         // grastate.dat named another history than the data's
	arriving bool         // a state transfer is running
	left     bool         // it has left the group for good, and keeps running
	stopping bool
}

// galeraGroup is what Galera calls a component: servers that agree on the members.
type galeraGroup struct {
	id      int
	primary bool
	members []*galeraProcess
	head    *txn // of a primary one
}

type galeraModel struct {
	w       *simWorld
	disks   []*galeraDisk
	servers []*galeraProcess
	groups  int
	uuids   int
	parted  int // number of decisions that made a history beside a silent member's
	decide  func(galeraView) (galeraStep, facts.Status)
	change  func(g *galera, w *World) // a mutation; nil: none
}

// mutatedGalera changes what a component is told.
type mutatedGalera struct {
	*galera
	change func(g *galera, w *World)
}

func (m mutatedGalera) Step(ctx context.Context, w World) (facts.Status, error) {
	m.change(m.galera, &w)
	return m.galera.Step(ctx, w)
}

func newGaleraModel(w *simWorld) *galeraModel {
	g := &galeraModel{w: w, servers: make([]*galeraProcess, len(w.nodes)), decide: decideGalera}
	for range w.nodes {
		g.disks = append(g.disks, &galeraDisk{})
	}
	g.client()
	return g
}

func (g *galeraModel) components() []string { return []string{"galera"} }

func (g *galeraModel) uuid(first string) string {
	g.uuids++
	return fmt.Sprintf("%s%05d-0000-4000-8000-%012d", first, g.uuids, g.uuids)
}

// faults

func (g *galeraModel) stop(n *machine, clean bool) {
	if s := g.servers[n.index]; s != nil {
		g.exit(s, clean)
	}
}

func (g *galeraModel) kill(n *machine, _ int) { g.stop(n, false) }

func (g *galeraModel) blank(n *machine) { g.disks[n.index] = &galeraDisk{} }

func (g *galeraModel) foreign(n *machine) {
	t := &txn{history: g.uuid("fff"), seqno: 100, cluster: "another"}
	t.acked = t
	g.disks[n.index] = &galeraDisk{files: true, head: t, clean: g.w.chance(2)}
}

func (g *galeraModel) lie(n *machine, _ string) any {
	at := position{Seqno: 1000}
	if n.index%2 == 0 {
		at.UUID = g.disks[n.index].position().UUID
	}
	return galeraReport{State: galeraServing, Position: at, Size: len(g.w.generation.Members), Cluster: simCluster}
}

// relinked makes servers notice new connections after some seconds.
func (g *galeraModel) relinked() {
	g.w.in(g.w.between(time.Second, suspectTimeout+2*time.Second), g.regroup)
	g.w.in(suspectTimeout+2*time.Second, g.regroup)
}

// the servers

func (g *galeraModel) alive(s *galeraProcess) func() bool {
	return func() bool { return g.servers[s.n.index] == s }
}

// spawn starts a server.
func (g *galeraModel) spawn(n *machine, boot bool) {
	s := &galeraProcess{n: n, boot: boot}
	g.servers[n.index] = s
	n.after(n.pace(500*time.Millisecond, 4*time.Second), g.alive(s), func() {
		d := g.disks[n.index]
		if n.failing > 0 {
			g.w.tell("%s: the server fails to start", n.peer.Name)
			g.exit(s, false)
			return
		}
		if boot && d.fork != "" {
			d.head = &txn{prev: d.head, depth: d.head.depth + 1, history: d.fork, seqno: d.head.seqno, acked: d.head.acked, cluster: d.head.cluster}
		}
		s.named = d.fork != ""
		d.clean, d.fork = false, ""
		s.talks, s.received = true, d.head
		if !boot {
			g.w.in(g.w.between(100*time.Millisecond, 2*time.Second), g.regroup)
			n.after(waitPrimTimeout, g.alive(s), func() {
				if s.last == nil {
					g.w.tell("%s: the server found no primary component", n.peer.Name)
					g.exit(s, false)
				}
			})
			return
		}
		if d.partial {
			g.w.fail("%s starts a cluster from data that is not whole", n.peer.Name)
		}
		if s.received == nil {
			s.received = &txn{history: g.uuid("aaa"), cluster: ""}
			d.head = s.received
		}
		g.form([]*galeraProcess{s}, s.received)
	})
}

// exit ends a server's process.
func (g *galeraModel) exit(s *galeraProcess, clean bool) {
	n := s.n
	g.servers[n.index] = nil
	if d := g.disks[n.index]; clean && s.talks && !s.arriving {
		d.clean = d.head != nil && !d.partial
		if s.group != nil {
			s.group.members = slices.DeleteFunc(slices.Clone(s.group.members), func(m *galeraProcess) bool { return m == s })
		}
	}
	g.w.in(g.w.between(100*time.Millisecond, time.Second), g.regroup)
}

// leave makes a server leave its group for good and keep running.
func (g *galeraModel) leave(s *galeraProcess) {
	g.w.tell("%s: the server leaves the group, and goes on running", s.n.peer.Name)
	s.group.members = slices.DeleteFunc(slices.Clone(s.group.members), func(m *galeraProcess) bool { return m == s })
	g.groups++
	s.group = &galeraGroup{id: g.groups, members: []*galeraProcess{s}}
	s.talks, s.synced, s.left = false, false, true
	g.w.in(g.w.between(100*time.Millisecond, time.Second), g.regroup)
}

// shutDown stops a server. Some leave the group and then hang until they are killed.
func (g *galeraModel) shutDown(s *galeraProcess) {
	if s == nil || s.stopping {
		return
	}
	s.stopping = true
	if !g.w.chance(4) {
		s.n.after(s.n.pace(500*time.Millisecond, 5*time.Second), g.alive(s), func() { g.exit(s, true) })
		return
	}
	if s.group != nil && !s.left {
		g.leave(s)
	}
	s.n.after(stopLimits.idle, g.alive(s), func() { g.exit(s, false) })
}

// regroup makes all servers agree on their groups.
func (g *galeraModel) regroup() {
	var rest []*galeraProcess
	for _, s := range g.servers {
		if s != nil && s.talks && !s.n.suspended() {
			rest = append(rest, s)
		}
	}
	for len(rest) > 0 {
		together := rest[:1:1]
		rest = rest[1:]
		for i := 0; i < len(together); i++ {
			rest = slices.DeleteFunc(rest, func(s *galeraProcess) bool {
				if !g.w.linked(s.n, together[i].n) {
					return false
				}
				together = append(together, s)
				return true
			})
		}
		g.agree(together)
	}
}

// agree makes a group of connected servers.
func (g *galeraModel) agree(members []*galeraProcess) {
	was := members[0].group
	if was != nil && len(was.members) == len(members) && !slices.ContainsFunc(members, func(s *galeraProcess) bool { return s.group != was }) {
		return
	}
	var base, last *galeraGroup
	for _, s := range members {
		if s.last != nil && (last == nil || s.last.id > last.id) {
			last = s.last
		}
		if s.group == nil || !s.group.primary {
			continue
		}
		stayed, whole := 0, false
		for _, m := range members {
			if m.group == s.group {
				stayed++
				whole = whole || m.synced
			}
		}
		if whole && 2*stayed > len(s.group.members) && (base == nil || s.group.id > base.id) {
			base = s.group
		}
	}
	if base == nil && last != nil && slices.ContainsFunc(members, func(s *galeraProcess) bool { return s.synced && s.last == last }) && !slices.ContainsFunc(last.members, func(s *galeraProcess) bool { return !slices.Contains(members, s) }) {
		base = last
	}
	if base != nil {
		g.form(members, base.head, base)
		return
	}
	g.groups++
	group := &galeraGroup{id: g.groups, members: members}
	for _, s := range members {
		s.group = group
	}
	g.w.tell("galera: %v without a quorum", group)
}

// form makes a primary component with the data head. The members of one of its predecessors have that data.
func (g *galeraModel) form(members []*galeraProcess, head *txn, from ...*galeraGroup) {
	g.groups++
	group := &galeraGroup{id: g.groups, primary: true, members: members, head: head}
	g.w.tell("galera: %v primary at %v", group, head)
	g.covers(head)
	for _, s := range members {
		has := s.received == head && (s.synced && slices.Contains(from, s.last) || len(from) == 0)
		s.group, s.last, s.synced = group, group, has
		if has {
			s.up, s.n.given = true, false
		} else if !s.arriving {
			g.transfer(s)
		}
	}
}

func (group *galeraGroup) String() string {
	s := fmt.Sprintf("group %d of", group.id)
	for _, m := range group.members {
		s += " " + m.n.peer.Name
	}
	return s
}

// covers checks that no commit that a client has seen, and that is still on a disk, is missing.
func (g *galeraModel) covers(head *txn) {
	for i, n := range g.w.nodes {
		if d := g.disks[i]; d.head != nil && d.head.acked != nil && !n.given && d.head.cluster != "another" && !head.has(d.head.acked) {
			g.w.fail("a primary component at %v lacks acknowledged writes, which %s has up to %v", head, n.peer.Name, d.head.acked)
		}
	}
}

// promote is pc.bootstrap: s's group becomes primary, with its most advanced data.
func (g *galeraModel) promote(s *galeraProcess) {
	if s.group == nil || s.group.primary {
		return
	}
	var head *txn
	for _, m := range s.group.members {
		if m.received != nil && (head == nil || m.received.depth > head.depth) {
			head = m.received
		}
	}
	members := slices.DeleteFunc(slices.Clone(s.group.members), func(m *galeraProcess) bool { return g.servers[m.n.index] != m })
	g.form(members, head)
}

// transfer runs a state transfer to a member of a primary group.
func (g *galeraModel) transfer(s *galeraProcess) {
	n, d := s.n, g.disks[s.n.index]
	s.arriving = true
	n.after(n.pace(200*time.Millisecond, time.Second), g.alive(s), func() {
		s.arriving = false
		if s.synced || !s.group.primary {
			return
		}
		group := s.group
		i := slices.IndexFunc(group.members, func(m *galeraProcess) bool {
			return m != s && m.synced && g.servers[m.n.index] == m && g.w.linked(m.n, n)
		})
		if i < 0 {
			g.transfer(s)
			return
		}
		donor := group.members[i]
		have := d.head
		if s.up {
			have = s.received
		}
		if s.up && have != nil && have.history != group.head.history {
			g.w.tell("%s: the running server cannot take over another history", n.peer.Name)
			g.exit(s, false)
			return
		}
		if !s.named && have != nil && !d.partial && have.history == group.head.history {
			if !group.head.has(have) {
				if have.seqno <= group.head.seqno {
					g.w.fail("%s, at %v, is let in unnoticed by a component at %v that lacks some of its writes", n.peer.Name, have, group.head)
					return
				}
				g.w.tell("%s: the server is at %v, ahead of the component at %v, and refuses to join", n.peer.Name, have, group.head)
				g.exit(s, false)
				return
			}
			if s.up || !g.w.chance(4) {
				s.arriving = true
				n.after(n.pace(200*time.Millisecond, 2*time.Second), g.alive(s), func() {
					s.arriving = false
					if g.w.chance(8) {
						g.leave(s)
					} else if s.group.primary && g.servers[donor.n.index] == donor && donor.group == s.group && donor.synced && g.w.linked(donor.n, n) {
						g.arrive(s)
					} else if s.group.primary {
						g.transfer(s)
					}
				})
				return
			}
		}
		if have != nil && have.acked != nil && !n.given && !group.head.has(have.acked) {
			g.w.fail("a state transfer from %s destroys %s's data %v, which the component at %v lacks", donor.n.peer.Name, n.peer.Name, have, group.head)
		}
		g.w.tell("%s: full state transfer from %s", n.peer.Name, donor.n.peer.Name)
		s.arriving = true
		d.partial, d.files, d.head, s.received = true, true, nil, nil
		n.after(n.pace(time.Second, 15*time.Second), g.alive(s), func() {
			s.arriving = false
			if g.servers[donor.n.index] != donor || !g.w.linked(donor.n, n) {
				g.w.tell("%s: the state transfer broke off", n.peer.Name)
				g.exit(s, false)
				return
			}
			d.partial, d.head, s.received = false, donor.received, donor.received
			if s.group.primary && donor.group == s.group && donor.synced {
				g.arrive(s)
			} else if s.group.primary {
				g.transfer(s)
			}
		})
	})
}

func (g *galeraModel) arrive(s *galeraProcess) {
	s.received, s.synced, s.up, s.n.given = s.group.head, true, true, false
	g.disks[s.n.index].head = s.group.head
}

// writable reports whether s's group can commit: all of its members must receive a write.
func (g *galeraModel) writable(s *galeraProcess) bool {
	if s == nil || !s.synced || !s.group.primary || !s.n.on() || s.n.suspended() {
		return false
	}
	return !slices.ContainsFunc(s.group.members, func(m *galeraProcess) bool {
		return g.servers[m.n.index] != m || m.group != s.group || !g.w.linked(s.n, m.n)
	})
}

// write commits a transaction on s.
func (g *galeraModel) write(s *galeraProcess, marker string) error {
	if !g.writable(s) {
		return errors.New("the server takes no writes")
	}
	group := s.group
	t := &txn{prev: group.head, depth: group.head.depth + 1, history: group.head.history, seqno: group.head.seqno + 1, cluster: group.head.cluster}
	if marker != "" {
		t.cluster = marker
	}
	t.acked = t
	group.head = t
	for _, m := range group.members {
		if !m.synced {
			continue
		}
		m.received = t
		if m == s {
			g.disks[m.n.index].head = t
			continue
		}
		lag := g.w.between(0, 200*time.Millisecond)
		if g.w.chance(20) {
			lag *= 50
		}
		m.n.after(lag, g.alive(m), func() {
			if d := g.disks[m.n.index]; d.head != nil && m.received.has(t) && t.has(d.head) {
				d.head = t
			}
		})
	}
	g.covers(t)
	return nil
}

// client writes to some server, repeatedly.
func (g *galeraModel) client() {
	g.w.in(g.w.between(100*time.Millisecond, 2*time.Second), func() {
		if s := g.servers[g.w.rand.IntN(len(g.servers))]; s != nil && s.synced && s.group.primary && s.group.head.cluster == simCluster {
			g.write(s, "") // refused or not
		}
		g.client()
	})
}

// what is right

func (g *galeraModel) check() error {
	var one *galeraProcess
	for _, s := range g.servers {
		if !g.writable(s) {
			continue
		}
		if one == nil {
			one = s
		} else if s.group != one.group {
			return fmt.Errorf("two primary components take writes: %v at %v, %v at %v", one.group, one.group.head, s.group, s.group.head)
		}
	}
	return nil
}

func (g *galeraModel) settled() error {
	var one *galeraProcess
	for i, n := range g.w.nodes {
		if !n.on() {
			continue
		}
		s := g.servers[i]
		switch {
		case s == nil || !s.synced || !s.group.primary:
			return fmt.Errorf("%s is ready, and its server is not", n.peer.Name)
		case one == nil:
			one = s
		case s.group != one.group:
			return fmt.Errorf("%s and %s are ready, and not in one component", n.peer.Name, one.n.peer.Name)
		}
	}
	return nil
}

func (g *galeraModel) patient() bool { return false }

// excused: the operator must resolve a node with data of another cluster, data that is complete nowhere, a node that was
// given up, and more than one decision to continue without a silent member's data.
func (g *galeraModel) excused(n *machine) bool {
	whole, partial := false, false
	for i, d := range g.disks {
		whole = whole || d.head != nil && (!g.w.nodes[i].given || g.w.nodes[i].on())
		partial = partial || d.partial
		if d.head != nil && d.head.cluster == "another" {
			return true
		}
	}
	return n.given || !whole && partial || g.parted > 1
}

// the agent's part

// simGaleraServer is a galeraServer.
type simGaleraServer struct {
	g     *galeraModel
	a     *simAgent
	known *position
}

func (g *galeraModel) component(a *simAgent, _ string, n Node) Component {
	c := &galera{node: n, server: &simGaleraServer{g: g, a: a}, decide: g.decide}
	if g.change != nil {
		return mutatedGalera{c, g.change}
	}
	return c
}

func (p *simGaleraServer) unitNames() []string { return nil }

func (p *simGaleraServer) look(context.Context) (galeraSeen, error) {
	i := p.a.n.index
	s := p.g.servers[i]
	if s != nil {
		p.known = nil
	}
	seen := galeraSeen{galeraReport: p.report(s, p.g.disks[i])}
	if s != nil && s.left { // its log says so
		seen.doomed = "node restart required"
	}
	p.a.looked()
	return seen, nil
}

func (d *galeraDisk) position() position {
	if d.head == nil {
		return position{nullUUID, -1}
	}
	return position{d.head.history, d.head.seqno}
}

func (p *simGaleraServer) report(s *galeraProcess, d *galeraDisk) galeraReport {
	switch {
	case s == nil && !d.files && d.head == nil:
		return galeraReport{State: galeraEmpty}
	case s == nil && p.known != nil:
		return classify(*p.known, d.mark)
	case s == nil:
		at := d.position()
		if d.clean {
			if d.fork != "" {
				at.UUID = d.fork
			}
			return galeraReport{State: galeraHolds, Position: at}
		}
		return galeraReport{State: galeraUnread, Position: position{at.UUID, -1}}
	case !s.up || s.stopping:
		return galeraReport{State: galeraStarting, Stopping: s.stopping}
	case s.left:
		return galeraReport{State: galeraNonPrimary, Left: true, Position: position{nullUUID, -1}}
	}
	r := galeraReport{State: galeraJoining, Position: d.position(), Size: len(s.group.members)}
	if d.head != nil {
		r.Cluster = d.head.cluster
	}
	switch {
	case !s.group.primary:
		r.State = galeraNonPrimary
	case s.synced:
		r.State = galeraServing
	}
	return r
}

func (p *simGaleraServer) close() {}

func (p *simGaleraServer) begun() error {
	p.g.disks[p.a.n.index].mark = false
	return nil
}

func (p *simGaleraServer) do(_ context.Context, step galeraStep) error {
	a, n, g := p.a, p.a.n, p.g
	d := g.disks[n.index]
	switch step {
	case galeraRecover:
		return p.recover()
	case galeraFound:
		a.act("mark the data folder", 0, func() error { d.mark = true; return nil })
		a.act("clear the data folder", n.pace(0, 100*time.Millisecond), func() error {
			for i, o := range g.disks {
				if o.head != nil && o != d {
					g.parted += 2
				}
				if (o.head != nil || o.partial) && !g.w.nodes[i].given && (o == d || o.position().UUID[:3] != "fff") {
					g.w.fail("%s makes a new database, and %s has data: %v", n.peer.Name, g.w.nodes[i].peer.Name, o.head)
				}
			}
			d.files, d.head, d.clean = false, nil, false
			return nil
		})
		a.act("begin to make a database", 0, func() error { d.files = true; return nil })
		if err := a.act("make a database", n.pace(time.Second, 5*time.Second), func() error {
			if n.failing > 0 {
				return errors.New("making a database fails")
			}
			return nil
		}); err != nil {
			return err
		}
		return p.start(true)
	case galeraBootstrap:
		a.act("allow the start", 0, func() error { return nil })
		return p.start(true)
	case galeraFork:
		if err := p.recover(); err != nil {
			return err
		}
		a.act("name a history", n.pace(0, 100*time.Millisecond), func() error {
			if at := d.position(); !goesOn(d.fork, at.UUID) {
				d.fork = forkPrefix(at.UUID) + g.uuid("bbb")[13:]
				g.parted++
			}
			d.clean = true
			return nil
		})
		return p.start(true)
	case galeraJoin:
		return p.start(false)
	case galeraStop:
		return a.act("stop the server", 0, func() error { g.shutDown(g.servers[n.index]); return nil })
	case galeraPromote:
		return a.act("promote the component", 0, func() error {
			if s := g.servers[n.index]; s != nil && s.talks {
				g.promote(s)
			}
			return nil
		})
	case galeraInitialise:
		if err := a.act("make users", n.pace(0, 500*time.Millisecond), func() error { return g.write(g.servers[n.index], "") }); err != nil {
			return err
		}
		return a.act("note the cluster", n.pace(0, 500*time.Millisecond), func() error { return g.write(g.servers[n.index], simCluster) })
	}
	return nil
}

func (p *simGaleraServer) recover() error {
	n := p.a.n
	return p.a.act("recover", n.pace(300*time.Millisecond, 2*time.Second), func() error {
		if n.failing > 0 {
			return errors.New("recovery fails")
		}
		at := p.g.disks[n.index].position()
		p.known = &at
		return nil
	})
}

// start starts the server. Like systemctl start, it waits for a server that bootstraps until that is up or has failed.
func (p *simGaleraServer) start(boot bool) error {
	n, g := p.a.n, p.g
	p.a.act("start the server", 0, func() error {
		p.known = nil
		g.start(n, boot)
		return nil
	})
	if boot {
		p.a.pass(500 * time.Millisecond)
		for s := g.servers[n.index]; s != nil && !s.up; s = g.servers[n.index] {
			p.a.pass(200 * time.Millisecond)
		}
	}
	return nil
}

func (g *galeraModel) start(n *machine, boot bool) {
	if g.servers[n.index] == nil {
		g.spawn(n, boot)
	}
}

func TestSimGalera(t *testing.T) { runSim(t, simGalera) }

// simGaleraChanges has changes of the members as well, and no disks of other clusters.
var simGaleraChanges = func() *simKind {
	k := simGalera.with(changed, 40)
	k.change, k.spares = changed, 2
	k.faults = slices.DeleteFunc(k.faults, func(f faultKind) bool { return f == foreignDisk })
	return k
}()

func TestSimGaleraChanges(t *testing.T) { runSim(t, simGaleraChanges) }

// simGaleraRenumbered has moves to another network: all members get other addresses while all are off.
var simGaleraRenumbered = func() *simKind {
	k := simGaleraChanges.with(renumbered, 10)
	k.change = renumbered
	return k
}()

func TestSimGaleraRenumbered(t *testing.T) { runSim(t, simGaleraRenumbered) }

// mariadb-operator 1816: a node with an empty volume bootstrapped before the volumes with data were attached.
func TestSimEmptyNodeOverLiveVolumes(t *testing.T) {
	scenario(t, simGalera, 3,
		fault{at: 60 * time.Second, kind: outage, lasts: time.Second},
		fault{at: 60 * time.Second, kind: blankDisk, node: 0, lasts: time.Second},
		fault{at: 60 * time.Second, kind: crash, node: 1, lasts: 30 * time.Second},
		fault{at: 60 * time.Second, kind: crash, node: 2, lasts: 50 * time.Second})
}

// kubeblocks-addons 2996: after an outage, the first pod bootstrapped, although others had newer data.
func TestSimOlderOverNewer(t *testing.T) {
	scenario(t, simGalera, 3,
		fault{at: 60 * time.Second, kind: crash, node: 0, lasts: 40 * time.Second},
		fault{at: 90 * time.Second, kind: crash, node: 1, lasts: 30 * time.Second},
		fault{at: 90 * time.Second, kind: crash, node: 2, lasts: 60 * time.Second})
}

// A node that an operator gave up had more data than the others, which then reused its seqnos. When it returns, its
// position looks like an earlier one of theirs.
func TestSimGivenUpNodeComesBack(t *testing.T) {
	scenario(t, simGalera, 3,
		fault{at: 60 * time.Second, kind: crash, node: 0, lasts: 20 * time.Second},
		fault{at: 60 * time.Second, kind: crash, node: 2, lasts: 20 * time.Second},
		fault{at: 61 * time.Second, kind: gone, node: 1, lasts: forever})
}

// Servers that had joined a component waited forever for a state transfer from its only complete member, which had
// died; the others waited for them.
func TestSimComponentDiesWhileJoined(t *testing.T) {
	faults := []fault{{at: 60 * time.Second, kind: outage, lasts: time.Second}}
	for at := 62 * time.Second; at < 100*time.Second; at += 3 * time.Second {
		faults = append(faults, fault{at: at, kind: blankDisk, node: 0, lasts: 500 * time.Millisecond}, fault{at: at, kind: daemonDies, node: 1})
	}
	scenario(t, simGalera, 5, faults...)
}

// A server that ran between two Observe calls may have written: the position recovered before is invalid.
func TestSimServerRunsUnseen(t *testing.T) {
	var faults []fault
	for at := time.Duration(0); at < 40*time.Second; at += 700 * time.Millisecond {
		faults = append(faults, fault{at: at, kind: daemonDies, node: int(at/time.Millisecond) % 3})
	}
	scenario(t, simGalera, 3, append([]fault{{at: 4 * time.Second, kind: outage, lasts: time.Second}}, faults...)...)
}

// galeraMutant changes the view before decideGalera, and its result. Either may be nil.
func galeraMutant(name string, view func(v *galeraView), step func(v galeraView, s galeraStep) galeraStep) mutant {
	return mutant{name: name, apply: func(w *simWorld) {
		g := w.model.(*galeraModel)
		g.decide = func(v galeraView) (galeraStep, facts.Status) {
			changed := v
			changed.members = slices.Clone(v.members)
			if view != nil {
				view(&changed)
			}
			s, status := decideGalera(changed)
			if step != nil {
				s = step(v, s)
			}
			return s, status
		}
	}}
}

// each changes all members of a view.
func each(change func(m *galeraMember)) func(v *galeraView) {
	return func(v *galeraView) {
		for i := range v.members {
			change(&v.members[i])
		}
	}
}

// never replaces a step by galeraWait.
func never(step galeraStep) func(galeraView, galeraStep) galeraStep {
	return func(_ galeraView, s galeraStep) galeraStep {
		if s == step {
			return galeraWait
		}
		return s
	}
}

func TestSimGaleraMutants(t *testing.T) {
	killAll(t, simGalera, []mutant{
		galeraMutant("silent members are ignored", each(func(m *galeraMember) { m.GivenUp = true }), nil),
		galeraMutant("a majority is enough", func(v *galeraView) {
			heard := 0
			for i, m := range v.members {
				if m.Heard || i == v.self {
					heard++
				}
			}
			for i := range v.members {
				v.members[i].GivenUp = v.members[i].GivenUp || 2*heard > len(v.members)
			}
		}, nil),
		galeraMutant("a decision about one silent member counts for all", func(v *galeraView) {
			if slices.ContainsFunc(v.members, func(m galeraMember) bool { return m.GivenUp }) {
				each(func(m *galeraMember) { m.GivenUp = true })(v)
			}
		}, nil).within(givenUp, gone), // only these make the operator decide
		galeraMutant("an unknown position wins", each(func(m *galeraMember) {
			if m.State == galeraUnread && m.Position.UUID != nullUUID {
				m.State, m.Position.Seqno = galeraHolds, 1<<40
			}
		}), nil),
		galeraMutant("an unknown position is taken for 0", each(func(m *galeraMember) {
			if m.State == galeraUnread && m.Position.UUID != nullUUID {
				m.State, m.Position.Seqno = galeraHolds, 0
			}
		}), nil),
		galeraMutant("the oldest data wins", each(func(m *galeraMember) {
			if m.Position.valid() {
				m.Position.Seqno = 1<<40 - m.Position.Seqno
			}
		}), nil),
		galeraMutant("each of several equals wins", func(v *galeraView) {
			if m := &v.members[v.self]; m.State == galeraHolds {
				m.Position.Seqno++
			}
		}, nil),
		galeraMutant("the first member starts the cluster, whatever it has", nil, func(v galeraView, s galeraStep) galeraStep {
			if s == galeraWait && v.self == 0 && v.members[0].State == galeraHolds && !v.primary() {
				return galeraBootstrap
			}
			return s
		}),
		galeraMutant("an empty member may start a cluster", nil, func(v galeraView, s galeraStep) galeraStep {
			if v.self == 0 && v.members[0].State == galeraEmpty && !v.primary() {
				return galeraFound
			}
			return s
		}),
		galeraMutant("every empty member starts a cluster", func(v *galeraView) {
			me := v.members[v.self]
			v.members = slices.DeleteFunc(v.members, func(m galeraMember) bool {
				return m.Heard && m.State == galeraEmpty && m.Name != me.Name && me.State == galeraEmpty
			})
			v.self = slices.IndexFunc(v.members, func(m galeraMember) bool { return m.Name == me.Name })
		}, nil),
		galeraMutant("an interrupted transfer leaves an empty member", each(func(m *galeraMember) {
			if m.State == galeraUnusable {
				m.State = galeraEmpty
			}
		}), nil),
		galeraMutant("any history may be joined", func(v *galeraView) {
			for i := range v.members {
				v.members[i].Position.UUID = v.members[v.self].Position.UUID
			}
		}, nil),
		galeraMutant("a running component is not looked for", each(func(m *galeraMember) {
			if m.State == galeraServing {
				m.State = galeraHolds
			}
		}), nil),
		{name: "old answers are believed", apply: func(w *simWorld) { w.heard = time.Hour }},
		galeraMutant("who is starting does not count", func(v *galeraView) {
			for i := range v.members {
				if m := &v.members[i]; i != v.self && m.State == galeraStarting {
					m.Heard, m.GivenUp = false, true
				}
			}
		}, nil),
		galeraMutant("a start without silent members is not announced", func(v *galeraView) { v.going = time.Hour }, nil).among(givenUp, givenUp, crash, outage, isolated, split, agentDies),
		galeraMutant("a decided outage goes on as the same history", nil, func(_ galeraView, s galeraStep) galeraStep {
			if s == galeraFork {
				return galeraBootstrap
			}
			return s
		}),
		galeraMutant("a lost quorum is never restored", nil, never(galeraPromote)),
		galeraMutant("a server is never stopped", nil, never(galeraStop)),
		galeraMutant("positions are never determined", nil, never(galeraRecover)),
		galeraMutant("users are never made", nil, never(galeraInitialise)),
	})
}

func TestSimGaleraChangesMutants(t *testing.T) {
	told := func(name string, change func(g *galera, w *World)) mutant {
		return mutant{name: name, apply: func(w *simWorld) { w.model.(*galeraModel).change = change }}.among(changed, changed, crash, outage, reboot, isolated, split)
	}
	killAll(t, simGaleraChanges, []mutant{
		told("only the node's own seed says who is a member", func(g *galera, w *World) {
			w.Joint = facts.Joint{Number: w.Joint.Number, InUse: []facts.Membership{ensemble.Own(0, w.Self, w.Peers)}}
		}),
		told("only the latest generation says who is a member", func(g *galera, w *World) {
			w.Joint.InUse = w.Joint.InUse[len(w.Joint.InUse)-1:]
		}),
		told("a node that left joins again", func(g *galera, w *World) {
			decide := g.decide
			g.decide = func(v galeraView) (galeraStep, facts.Status) {
				v.leaves = false
				return decide(v)
			}
		}),
	})
}

func TestSimGaleraRenumberedMutants(t *testing.T) {
	killAll(t, simGaleraRenumbered, []mutant{
		mutant{name: "peers are asked where they were", apply: func(w *simWorld) {
			w.asks = func(p facts.Peer) bool { return p.IP == w.named(p.Name).first }
		}}.among(renumbered),
		mutant{name: "who has moved counts once heard", apply: func(w *simWorld) {
			w.model.(*galeraModel).change = func(_ *galera, w *World) { onlyHeard(w) }
		}}.among(renumberedFaults...),
	})
}

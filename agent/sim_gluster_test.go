package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// The model of GlusterFS follows xlators/mgmt/glusterd and xlators/cluster/afr of GlusterFS 10:
//
//   - Two servers are connected if each has the other's UUID in its pool and answers with its own. When they connect, the one with the
//     earlier version of the volume takes over the later one, and a server without a volume gets it; not while they are connected.
//     If they have stored different volumes as the same version, they reject each other until they connect anew: they make no
//     change together, and count each other as they did before.
//   - A running glusterd has the volume in its memory. What it has stored is read when it starts. It stores what it has in memory, as
//     the same version, whenever another one connects, perhaps before that one has compared the volume.
//   - Clients are told what is in a file that is written with each change, and then only.
//   - With server quorum, glusterd stops its brick when less than a majority of servers is connected, and starts it when
//     there is a majority again. It counts those that have been connected since it has started, and those of its pool that it does not
//     reach. It does not start a brick whose folder lacks the volume's ID. "start force" puts the ID
//     on empty folders of all connected servers, and skips missing folders.
//   - A write goes to all bricks that are online, if they are a majority, or half with the first brick. These record what the others
//     lack. Reads come from a brick that no other one records as lacking something.
//   - A probe takes a server into the pools of all connected servers, and a removal takes it out; both may reach only some. A server
//     that starts tells those that it is connected to whom it knows.
//   - Bricks are added and removed in phases, each on one server after the other, while all are locked: other changes are refused. To add
//     one, the servers check, and the new brick's folder gets the volume's ID; then all change the volume in memory, and the new server
//     marks, on the other bricks, that its brick lacks everything, and starts it; then all store it, and clients learn of it. If anything
//     fails, the rest is left out, and nothing is undone. A server that restarts or connects anew in the middle may be left out of the
//     rest, without a failure. After a failure, a glusterd may die, and others. A new brick gets the highest id of the volume's bricks plus 1. To remove one, only the server that makes
//     the change checks, and one without the brick does nothing.
//   - Healing makes a brick that lacks something equal to one that lacks nothing, whatever else it contains. If all are
//     recorded as lacking something, they are merged. It needs no majority. If the brick has begun as a copy, what was recorded as
//     lacking everything is only compared at the top, and found equal.
var simGluster = &simKind{
	name: "gluster", role: "glusterfs", share: 10,
	build: func(w *simWorld) simModel { return newGlusterModel(w) },
	faults: []faultKind{lateBoot, lateBoot, gone, crash, crash, crash, reboot, outage, outage, blankDisk, blankDisk, blankDisk, agentDies,
		daemonDies, daemonDies, cutOneWay, isolated, split, split, slowNet, paused, frozen, lying, noStart, slowStart, stepCrash, stepCrash, stepAgent},
}

// glusterDisk is the content of a server's data disk.
type glusterDisk struct {
	uuid     string
	pool     []string
	rejected []string
	volume   *glusterVolume // never modified, only replaced
	version  int            // of the volume
	clients  *glusterVolume // what clients are told
	brick    brickState
	brickID  string
	fresh    bool         // there is the agent's mark
	copied   bool         // it has begun as a copy of another brick
	files    *big.Int     // the writes on the brick, one bit each
	all      map[int]bool // by brick's id: recorded as lacking everything
	// some is by brick's id: the writes in its absence, which it is recorded as lacking.
	some map[int]*big.Int
}

// simBrickCopy is a copy of a brick that an agent makes.
type simBrickCopy struct {
	agent *simAgent
	of    *glusterDisk
	files *big.Int
	state copyState
}

// glusterd is a running one.
type glusterd struct {
	up     bool
	quorum bool              // at its last check
	memory *glusterVolume    // the volume as it knows it, if it has not stored that
	met    map[int]*glusterd // those that it is connected to, and has compared the volume with
	counts map[int]bool      // those that count in its quorum: connected, or away
	anew   bool              // it has taken over a volume
	locked *glusterOp        // nil, or ended: none
}

// glusterOp is a change of the volume's bricks that a glusterd makes.
type glusterOp struct {
	by      *glusterd
	servers []int // all that take part; the first makes it
	daemons []*glusterd
	// phases are done on each server.
	phases []func(i int) error
	anew   int // a server that connects anew in the middle; below 0: none
	slow   bool
	ended  bool
	err    error
}

type glusterModel struct {
	w        *simWorld
	disks    []*glusterDisk
	daemons  []*glusterd
	bricks   []bool // their processes
	copies   map[int]*simBrickCopy
	uuids    []string
	written  int
	acked    *big.Int
	volumes  int // number of volumes ever created
	founders int // number of bricks that the first was made with
	changed  bool
	params   *facts.GlusterParams
	decide   func(glusterView) (glusterStep, facts.Status)
	stopped  map[int]bool               // stopped by their agents, and do not serve again yet
	restarts map[int]time.Duration      // when their agents last restarted them
	refused  map[int]int                // minutes for which their agents have said that others would lose the quorum
	probing  bool                       // a mutation: servers start with an empty pool
	change   func(g *gluster, w *World) // a mutation; nil: none
}

func newGlusterModel(w *simWorld) *glusterModel {
	g := &glusterModel{w: w, acked: new(big.Int), copies: map[int]*simBrickCopy{}, stopped: map[int]bool{}, restarts: map[int]time.Duration{}, refused: map[int]int{}, params: glusterParams(), decide: decideGluster,
		daemons: make([]*glusterd, len(w.nodes)), bricks: make([]bool, len(w.nodes))}
	for _, n := range w.nodes {
		g.disks, g.uuids = append(g.disks, g.newDisk()), append(g.uuids, glusterUUID(simCluster, n.peer.Name))
	}
	g.client()
	g.heal()
	g.operate()
	return g
}

// operate simulates an operator who does what docs/agent.md says: restarts a glusterd where the agent says for five minutes that it would, if
// others did not lose the quorum then.
func (g *glusterModel) operate() {
	g.w.in(time.Minute, func() {
		g.operate()
		for i, n := range g.w.nodes {
			if n.agent == nil || !strings.Contains(n.agent.status("gluster").Detail, loseQuorum) {
				g.refused[i] = 0
				continue
			}
			if g.refused[i]++; g.refused[i] == 5 {
				g.w.tell("an operator restarts glusterd of %s", n.peer.Name)
				g.kill(n, 0)
				clear(g.refused)
				return
			}
		}
	})
}

func (g *glusterModel) newDisk() *glusterDisk {
	return &glusterDisk{brick: brickNone, files: new(big.Int), all: map[int]bool{}, some: map[int]*big.Int{}}
}

// volume returns the latest volume of which a server tells clients that is on; nil: there is none.
func (g *glusterModel) volume() (v *glusterVolume) {
	version := 0
	for i, d := range g.disks {
		if g.w.nodes[i].on() && d.volume != nil && d.version > version {
			v, version = d.clients, d.version
		}
	}
	return v
}

// index is that of a node's brick in a volume; below 0: it has none.
func (g *glusterModel) index(v *glusterVolume, i int) int {
	if v == nil {
		return -1
	}
	return v.index(g.w.nodes[i].peer.Name, g.params.Brick)
}

// bricksOf returns the nodes that have a brick in the volume.
func (g *glusterModel) bricksOf(v *glusterVolume) (list []int) {
	for i := range g.w.nodes {
		if g.index(v, i) >= 0 {
			list = append(list, i)
		}
	}
	return list
}

func (g *glusterModel) components() []string { return []string{"gluster"} }

// faults

func (g *glusterModel) stop(n *machine, _ bool) {
	g.daemons[n.index], g.bricks[n.index], g.changed = nil, false, true
}

func (g *glusterModel) kill(n *machine, which int) {
	if which == 0 {
		g.daemons[n.index] = nil // the brick keeps running
	} else {
		g.bricks[n.index], g.changed = false, true
	}
}

// blank replaces a disk, unless another copy is incomplete at the moment: the design does not promise to survive that
// ("catching up"), and replace refuses it.
func (g *glusterModel) blank(n *machine) {
	v := g.newest()
	everyone := g.bricksOf(v)
	for _, i := range everyone {
		if slices.Contains(everyone, n.index) && i != n.index && (g.disks[i].brick != brickData || g.blamed(v, everyone, i)) {
			return
		}
	}
	g.disks[n.index] = g.newDisk()
}

// newest returns the latest volume, also if nobody who is on has it.
func (g *glusterModel) newest() (v *glusterVolume) {
	version := 0
	for _, d := range g.disks {
		if d.volume != nil && d.version > version {
			v, version = d.clients, d.version
		}
	}
	return v
}

func (g *glusterModel) everywhere() *big.Int {
	all := new(big.Int)
	for _, d := range g.disks {
		all.Or(all, d.files)
	}
	return all
}

func (g *glusterModel) foreign(*machine) {}

// relinked: those that cannot reach each other any more compare the volume when they connect again.
func (g *glusterModel) relinked() {
	for i, s := range g.daemons {
		if s != nil {
			maps.DeleteFunc(s.met, func(j int, _ *glusterd) bool { return !g.linked(i, j) })
		}
	}
}

// lie returns a report that falsely claims to serve. The content of the disk is true: only the server itself knows it.
func (g *glusterModel) lie(n *machine, _ string) any {
	r := g.look(n.index)
	r.Running = true
	if r.Volume != nil {
		r.Online = true
	}
	return r
}

// the servers

func (g *glusterModel) uuid(i int) string { return g.uuids[i] }

// connected reports whether the glusterds of two servers are connected, and agree.
func (g *glusterModel) connected(i, j int) bool {
	return i == j || g.linked(i, j) && slices.Contains(g.disks[i].pool, g.disks[j].uuid) && slices.Contains(g.disks[j].pool, g.disks[i].uuid)
}

// linked reports whether the glusterds of two servers are connected, though they may have rejected each other.
func (g *glusterModel) linked(i, j int) bool {
	return g.running(i) && g.running(j) && g.w.linked(g.w.nodes[i], g.w.nodes[j]) && g.knows(i, j) && g.knows(j, i) &&
		g.disks[i].peer(g.disks[j].uuid) && g.disks[j].peer(g.disks[i].uuid)
}

// peer tells whether a server knows another.
func (d *glusterDisk) peer(uuid string) bool {
	return slices.Contains(d.pool, uuid) || slices.Contains(d.rejected, uuid)
}

// knows tells whether a node's seed has another's address.
func (g *glusterModel) knows(i, j int) bool {
	return slices.ContainsFunc(g.w.nodes[i].peers, func(p facts.Peer) bool {
		return p.Name == g.w.nodes[j].peer.Name && p.IP == g.w.nodes[j].peer.IP
	})
}

// quorum tells whether a server counts a majority as connected.
func (g *glusterModel) quorum(i int) bool {
	d, counts := g.disks[i], g.daemons[i].counts
	up, all := 1, 1
	for j := range g.disks {
		switch {
		case slices.Contains(d.pool, g.uuid(j)) && !g.linked(i, j):
			counts[j] = false
		case !d.peer(g.uuid(j)):
			delete(counts, j)
		}
		if is, ok := counts[j]; ok {
			all++
			if is {
				up++
			}
		}
	}
	return up >= all/2+1
}

// befriend takes a server into another's pool, unless it is rejected there.
func (g *glusterModel) befriend(i int, uuid string) {
	if d := g.disks[i]; d.uuid != uuid && !d.peer(uuid) {
		d.pool = append(slices.Clone(d.pool), uuid)
	}
}

// differs tells whether two servers have stored different volumes as the same version.
func (g *glusterModel) differs(i, j int) bool {
	a, b := g.disks[i], g.disks[j]
	return a.volume != nil && b.volume != nil && a.volume.ID == b.volume.ID && a.version == b.version && !a.volume.same(b.volume)
}

func (v *glusterVolume) same(o *glusterVolume) bool {
	return slices.Equal(v.Bricks, o.Bricks) && slices.Equal(v.IDs, o.IDs) && v.Status == o.Status && maps.Equal(v.Options, o.Options)
}

// meet has two servers compare the volume when they connect.
func (g *glusterModel) meet(i, j int) {
	a, b := g.disks[i], g.disks[j]
	g.daemons[i].met[j], g.daemons[j].met[i] = g.daemons[j], g.daemons[i]
	differs := func() bool {
		if !g.differs(i, j) {
			return false
		}
		g.w.tell("glusterd of %s and of %s reject each other", g.w.nodes[i].peer.Name, g.w.nodes[j].peer.Name)
		move := func(uuid string, from, to *[]string) {
			*from = slices.DeleteFunc(slices.Clone(*from), func(u string) bool { return u == uuid })
			if !slices.Contains(*to, uuid) {
				*to = append(slices.Clone(*to), uuid)
			}
		}
		move(b.uuid, &a.pool, &a.rejected)
		move(a.uuid, &b.pool, &b.rejected)
		return true
	}
	if differs() {
		return
	}
	both := [][2]int{{i, j}, {j, i}}
	for _, p := range both {
		g.accept(p[0], g.disks[p[1]].uuid)
		g.daemons[p[0]].counts[p[1]] = true
	}
	for _, p := range both {
		d, o := g.disks[p[0]], g.disks[p[1]]
		if o.volume != nil && (d.volume == nil || o.volume.ID == d.volume.ID && o.version > d.version) {
			g.daemons[p[0]].anew = true
			g.store(p[0], g.known(p[1]), o.version)
		}
	}
	for _, x := range []int{i, j} {
		if g.quorum(x) {
			g.keep(x)
		}
	}
	if g.w.chance(2) {
		differs()
	}
}

// accept takes a server into another's pool, although it was rejected there.
func (g *glusterModel) accept(i int, uuid string) {
	d := g.disks[i]
	d.rejected = slices.DeleteFunc(slices.Clone(d.rejected), func(u string) bool { return u == uuid })
	g.befriend(i, uuid)
}

func (g *glusterModel) friends(i int) (list []int) {
	for j := range g.disks {
		if g.connected(i, j) {
			list = append(list, j)
		}
	}
	return list
}

func (g *glusterModel) start(n *machine) {
	s := &glusterd{met: map[int]*glusterd{}, counts: map[int]bool{}}
	g.daemons[n.index] = s
	alive := func() bool { return g.daemons[n.index] == s }
	n.after(n.pace(200*time.Millisecond, 2*time.Second), alive, func() {
		if n.failing > 0 {
			g.daemons[n.index] = nil
			return
		}
		s.up = true
		for _, j := range g.friends(n.index) {
			for _, uuid := range g.disks[n.index].pool {
				g.befriend(j, uuid)
			}
			for _, uuid := range g.disks[j].pool {
				g.befriend(n.index, uuid)
			}
		}
		g.manage(n, s, alive)
	})
}

// manage does what glusterd does on its own.
func (g *glusterModel) manage(n *machine, s *glusterd, alive func() bool) {
	i := n.index
	for j := range g.disks {
		switch {
		case j == i:
		case !g.linked(i, j):
			delete(s.met, j)
		case s.met[j] != g.daemons[j] || g.daemons[j].met[i] != s:
			g.meet(i, j)
		}
	}
	quorum := g.quorum(i)
	known := g.known(i)
	switch {
	case g.bricks[i] && (!quorum || g.index(known, i) < 0):
		g.bricks[i], g.changed = false, true
	case quorum && (!s.quorum || s.anew) && known != nil && known.Status == volumeStarted:
		g.startBrick(i)
	}
	s.anew = false
	s.quorum = quorum
	n.after(n.pace(300*time.Millisecond, time.Second), alive, func() { g.manage(n, s, alive) })
}

// known is the volume as a running glusterd knows it.
func (g *glusterModel) known(i int) *glusterVolume {
	if s := g.daemons[i]; s != nil && s.memory != nil {
		return s.memory
	}
	return g.disks[i].volume
}

// store has a server store a state of the volume, and tell clients.
func (g *glusterModel) store(i int, v *glusterVolume, version int) {
	d := g.disks[i]
	d.volume, d.version, d.clients, g.daemons[i].memory, g.changed = v, version, v, nil, true
}

// keep has a server store what it has in its memory, as the same version.
func (g *glusterModel) keep(i int) {
	if s := g.daemons[i]; s.memory != nil {
		g.disks[i].volume, s.memory = s.memory, nil
	}
}

func (g *glusterModel) startBrick(i int) {
	d, known := g.disks[i], g.known(i)
	if d.brick == brickNone || g.index(known, i) < 0 || d.brickID != known.ID || g.bricks[i] {
		return
	}
	// What those lack that the volume was made with is noted from the first write on.
	for _, j := range g.online(known) {
		if id := known.id(g.index(known, i)); id >= g.founders && d.brick != brickData && g.disks[j].files.Sign() != 0 && !g.disks[j].all[id] {
			g.w.fail("the blank brick of %s starts, and %s has not noted that it lacks everything", g.w.nodes[i].peer.Name, g.w.nodes[j].peer.Name)
		}
	}
	d.brick, g.bricks[i], g.changed = brickData, true, true
	delete(g.stopped, i)
}

// alter changes the volume on all connected servers: each what it knows.
func (g *glusterModel) alter(i int, do func(v *glusterVolume)) error {
	if s := g.daemons[i]; s == nil || !s.up || !g.quorum(i) || g.known(i) == nil {
		return errors.New("quorum not met")
	}
	friends := g.friends(i)
	if slices.ContainsFunc(friends, g.locked) {
		return notYet("for a change that another server makes to the volume to end")
	}
	id := g.known(i).ID
	for _, j := range friends {
		if known := g.known(j); known != nil && known.ID == id {
			if do == nil {
				g.keep(j)
				continue
			}
			next := *known
			next.Options = maps.Clone(next.Options)
			do(&next)
			g.store(j, &next, g.disks[j].version+1)
		}
	}
	return nil
}

// locked tells whether a server takes part in a change. When the one that makes it dies, the others notice.
func (g *glusterModel) locked(i int) bool {
	op := g.daemons[i].locked
	return op != nil && !op.ended && g.daemons[op.servers[0]] == op.by
}

// begin begins a change of the bricks.
func (g *glusterModel) begin(i int, phases ...func(j int) error) (*glusterOp, error) {
	if !g.running(i) || !g.quorum(i) || g.known(i) == nil {
		return nil, errors.New("quorum not met")
	}
	friends := g.friends(i)
	if slices.ContainsFunc(friends, g.locked) {
		return nil, notYet("for a change that another server makes to the volume to end")
	}
	op := &glusterOp{by: g.daemons[i], servers: []int{i}, phases: phases, anew: -1, slow: g.w.chance(5)}
	for _, k := range g.w.rand.Perm(len(friends)) {
		if friends[k] != i {
			op.servers = append(op.servers, friends[k])
		}
	}
	for _, j := range op.servers {
		op.daemons, g.daemons[j].locked = append(op.daemons, g.daemons[j]), op
	}
	if len(friends) > 1 && g.w.chance(10) {
		op.anew = op.servers[1+g.w.rand.IntN(len(friends)-1)]
	}
	g.advance(op, 0, 0)
	return op, nil
}

// advance does one server's part of a phase, and then the next one's.
func (g *glusterModel) advance(op *glusterOp, phase, k int) {
	n := g.w.nodes[op.servers[0]]
	limit := 300 * time.Millisecond
	if op.slow {
		limit = 6 * time.Second
	}
	n.after(n.pace(20*time.Millisecond, limit), func() bool { return g.daemons[n.index] == op.by }, func() {
		j := op.servers[k]
		switch {
		case phase > 0 && j == op.anew && g.w.chance(2): // in this phase and the next, or in one of them
		case g.daemons[j] != op.daemons[k], !g.connected(n.index, j): // it is passed over, unless it was asked already
			if phase == 0 || g.w.chance(2) {
				op.err = errors.New("no answer")
			}
		default:
			op.err = op.phases[phase](j)
		}
		if k++; k == len(op.servers) {
			phase, k = phase+1, 0
		}
		if op.ended = op.err != nil || phase == len(op.phases); !op.ended {
			g.advance(op, phase, k)
		}
		g.w.tell("glusterd of %s: phase %d, %s: %v", n.peer.Name, phase, g.w.nodes[j].peer.Name, op.err)
	})
}

// await waits for the end of a change, as gluster's command line does. The change does not need that.
func (g *glusterModel) await(a *simAgent, op *glusterOp) error {
	for waited := time.Duration(0); !op.ended; waited += 500 * time.Millisecond {
		if g.daemons[op.servers[0]] != op.by || waited > cliLimit {
			return errors.New("no answer")
		}
		a.pass(500 * time.Millisecond)
	}
	return op.err
}

// client writes to the volume, as a client that has it mounted.
func (g *glusterModel) client() {
	g.w.in(g.w.between(500*time.Millisecond, 3*time.Second), func() {
		g.client()
		v := g.volume()
		online := g.online(v)
		if !g.enough(v, online) {
			return
		}
		for _, i := range online {
			d := g.disks[i]
			d.files.SetBit(d.files, g.written, 1)
			for _, j := range g.bricksOf(v) {
				if !slices.Contains(online, j) {
					d.lacks(v.id(g.index(v, j)), g.written)
				}
			}
		}
		g.acked.SetBit(g.acked, g.written, 1)
		g.written++
		g.changed = true
	})
}

// lacks records that a brick lacks a write.
func (d *glusterDisk) lacks(id, write int) {
	if d.some[id] == nil {
		d.some[id] = new(big.Int)
	}
	d.some[id].SetBit(d.some[id], write, 1)
}

// online returns the bricks of the volume that a client reaches.
func (g *glusterModel) online(v *glusterVolume) (list []int) {
	for _, i := range g.bricksOf(v) {
		n := g.w.nodes[i]
		if g.bricks[i] && n.on() && !n.suspended() {
			list = append(list, i)
		}
	}
	return list
}

// enough tells whether clients can write to the bricks that they reach.
func (g *glusterModel) enough(v *glusterVolume, online []int) bool {
	return v != nil && (2*len(online) > len(v.Bricks) || 2*len(online) == len(v.Bricks) && slices.ContainsFunc(online, func(i int) bool { return g.index(v, i) == 0 }))
}

// blamed reports whether one of the bricks records that brick j lacks something.
func (g *glusterModel) blamed(v *glusterVolume, by []int, j int) bool {
	id := v.id(g.index(v, j))
	return slices.ContainsFunc(by, func(i int) bool { return g.disks[i].all[id] || g.disks[i].some[id] != nil })
}

// heal simulates the self-heal daemons.
func (g *glusterModel) heal() {
	g.w.in(g.w.between(500*time.Millisecond, 8*time.Second), func() {
		g.heal()
		v := g.volume()
		online := g.online(v)
		if len(online) < 2 {
			return
		}
		id := func(j int) int { return v.id(g.index(v, j)) }
		whole := slices.DeleteFunc(slices.Clone(online), func(j int) bool { return g.blamed(v, online, j) })
		if len(whole) == 0 {
			united := new(big.Int)
			for _, i := range online {
				united.Or(united, g.disks[i].files)
			}
			for _, i := range online {
				g.disks[i].files.Set(united)
				for _, j := range online {
					g.disks[i].all[id(j)], g.disks[i].some[id(j)] = false, nil
				}
			}
			g.changed = true
			return
		}
		for _, j := range online {
			if slices.Contains(whole, j) { // those that only blame each other lack something, too
				continue
			}
			source, d := g.disks[whole[0]], g.disks[j]
			for _, i := range online {
				o := g.disks[i]
				if o.all[id(j)] && !d.copied {
					d.files.Set(source.files)
				}
				if o.some[id(j)] != nil {
					d.files.Or(d.files, o.some[id(j)])
				}
				o.all[id(j)], o.some[id(j)] = false, nil
				for k, lacks := range o.some { // what is recorded of a file comes with it
					switch {
					case lacks == nil || o == d:
					case d.some[k] == nil:
						d.some[k] = new(big.Int).Set(lacks)
					default:
						d.some[k].Or(d.some[k], lacks)
					}
				}
			}
			d.all = maps.Clone(source.all)
			g.changed = true
			return // one at a time
		}
	})
}

// what is right

// check: there is one volume, no acknowledged write is lost, and no client sees missing files.
func (g *glusterModel) check() error {
	if !g.changed {
		return nil
	}
	g.changed = false
	if lost := new(big.Int).AndNot(g.acked, g.everywhere()); lost.Sign() != 0 {
		return fmt.Errorf("write %d is lost", lost.TrailingZeroBits())
	}
	v := g.volume()
	online := g.online(v)
	if !g.enough(v, online) {
		return nil
	}
	for _, j := range online {
		if g.blamed(v, online, j) {
			continue
		}
		for _, i := range online {
			if unseen := new(big.Int).AndNot(g.disks[i].files, g.disks[j].files); unseen.Sign() != 0 {
				return fmt.Errorf("who reads from %s does not see write %d, which %s has", g.w.nodes[j].peer.Name, unseen.TrailingZeroBits(), g.w.nodes[i].peer.Name)
			}
		}
	}
	return nil
}

func (g *glusterModel) settled() error {
	v := g.volume()
	online := g.online(v)
	whole := !slices.ContainsFunc(g.w.nodes, func(n *machine) bool { return n.gone })
	for i, n := range g.w.nodes {
		switch in := g.index(v, i) >= 0; {
		case n.on() && g.look(i).Stored != nil:
			return fmt.Errorf("%s has not stored the volume", n.peer.Name)
		case in != g.w.names(n) && whole:
			return fmt.Errorf("%s: a member: %v, has a brick: %v", n.peer.Name, g.w.names(n), in)
		case !n.on() || !in:
		case !g.bricks[i]:
			return fmt.Errorf("%s is ready, and its brick is down", n.peer.Name)
		case g.blamed(v, online, i):
			return fmt.Errorf("%s lacks something still", n.peer.Name)
		}
	}
	return nil
}

func (g *glusterModel) excused(*machine) bool { return false }

// patient: no volume is created without all servers; without a majority none serves; and while a server is away that
// others record as incomplete, a server whose agent was restarted reports that it is not whole.
func (g *glusterModel) patient() bool {
	v := g.volume()
	bricks := g.bricksOf(v)
	here, formed := 0, false
	for i, n := range g.w.nodes {
		switch in := slices.Contains(bricks, i); {
		case !n.on():
		case in:
			here++
			formed = formed || g.disks[i].brick == brickData
		case v != nil && g.w.names(n):
			return true // it is added once all members are there
		}
	}
	for i, n := range g.w.nodes {
		for _, j := range bricks {
			if n.on() && g.blamed(v, []int{i}, j) {
				return true
			}
		}
	}
	return 2*here <= len(bricks) || !formed
}

// the agent's part

// simGlusterServer is a glusterServer.
type simGlusterServer struct {
	g *glusterModel
	a *simAgent
}

func (g *glusterModel) component(a *simAgent, _ string, n Node) Component {
	c := makeGluster(n, g.params, simGlusterServer{g, a})
	c.decide = g.decide
	if g.change != nil {
		return mutatedGluster{c, g.change}
	}
	return c
}

// mutatedGluster changes what a component is told.
type mutatedGluster struct {
	*gluster
	change func(g *gluster, w *World)
}

func (m mutatedGluster) Step(ctx context.Context, w World) (facts.Status, error) {
	m.change(m.gluster, &w)
	return m.gluster.Step(ctx, w)
}

func (p simGlusterServer) close() {}

func (p simGlusterServer) unitNames() []string { return nil }

func (p simGlusterServer) look(context.Context) (glusterReport, string, error) {
	seen, unit := p.g.look(p.a.n.index), simUnit(p.g.daemons[p.a.n.index] != nil).Active
	p.a.looked()
	return seen, unit, nil
}

// look returns what a server can observe about itself.
func (g *glusterModel) look(i int) glusterReport {
	d, s := g.disks[i], g.daemons[i]
	r := glusterReport{UUID: d.uuid, Used: len(d.pool) > 0 || d.volume != nil, Pool: d.pool, Rejected: d.rejected, Running: s != nil && s.up, Brick: d.brick, BrickID: d.brickID, Fresh: d.fresh}
	if d.uuid != "" {
		r.OpVersion = 100000
	}
	if c := g.copies[i]; c != nil && c.agent == g.w.nodes[i].agent {
		r.Copy = c.state
	}
	known := g.known(i)
	if !r.Running || known == nil {
		return r
	}
	vol := *known
	vol.Version = d.version
	for _, stored := range []*glusterVolume{d.clients, d.volume} {
		if stored != nil && !slices.Equal(vol.Bricks, stored.Bricks) {
			r.Stored = stored.Bricks
		}
	}
	r.Volume, r.Online = &vol, g.bricks[i]
	next := vol.nextID()
	for id := range next + 1 {
		in := slices.Contains(vol.ids(), id)
		if d.all[id] && (in || id == next) {
			r.Blames = append(r.Blames, id)
		}
		if in && (d.all[id] || d.some[id] != nil) {
			r.Pending++
			r.Lacks = append(r.Lacks, id)
		}
	}
	return r
}

func (p simGlusterServer) do(_ context.Context, step glusterStep) error {
	a, n, g := p.a, p.a.n, p.g
	i := n.index
	d := g.disks[i]
	command := n.pace(50*time.Millisecond, time.Second)
	switch step.do {
	case glusterIdentify:
		a.act("write down the pool", 0, func() error {
			for _, name := range step.servers {
				if !g.probing {
					g.accept(i, glusterUUID(simCluster, name))
				}
			}
			return nil
		})
		return a.act("write down the identity", 0, func() error { d.uuid = g.uuid(i); return nil })
	case glusterStartUnit:
		return a.act("start glusterd", 0, func() error { g.start(n); return nil })
	case glusterMakeBrick:
		return a.act("make the brick's folder", 0, func() error { d.brick, d.brickID, d.fresh = brickBare, "", true; return nil })
	case glusterClear:
		return a.act("clear the brick", 0, func() error {
			if d.brick == brickData && !d.fresh {
				g.w.fail("%s removes files that may be the only copy", n.peer.Name)
			}
			for _, o := range g.disks {
				if o.volume != nil && g.index(o.volume, i) >= 0 && g.bricks[i] {
					g.w.fail("%s clears a brick that serves", n.peer.Name)
				}
			}
			was := *d
			*d = *g.newDisk()
			d.volume, d.version, d.clients, d.uuid, d.pool, d.rejected, d.brick, d.fresh = was.volume, was.version, was.clients, was.uuid, was.pool, was.rejected, brickBare, true
			g.bricks[i], g.changed = false, true
			return nil
		})
	case glusterKeep:
		return a.act("note that the brick is the volume's", 0, func() error { d.fresh = false; return nil })
	case glusterCreate:
		return a.act("create the volume", command, func() error { return g.create(i, step.servers) })
	case glusterSet:
		return a.act("set options", command, func() error {
			return g.alter(i, func(v *glusterVolume) {
				for k := 0; k < len(step.options); k += 2 {
					v.Options[step.options[k]] = step.options[k+1]
				}
			})
		})
	case glusterStart:
		return a.act("start the volume", command, func() error {
			err := g.alter(i, func(v *glusterVolume) { v.Status = volumeStarted })
			for _, j := range g.friends(i) {
				if err == nil && g.known(j) != nil {
					g.startBrick(j)
				}
			}
			return err
		})
	case glusterBlame:
		return a.act(fmt.Sprintf("note that brick %d lacks everything", step.brick), 0, func() error {
			d.all[step.brick], g.changed = true, true
			return nil
		})
	case glusterCopy:
		return a.act("begin to copy the brick of "+step.from.Name, 0, func() error {
			x := g.w.named(step.from.Name).index
			if g.bricks[i] || d.brick != brickNone {
				g.w.fail("%s copies a brick while it has one", n.peer.Name)
			}
			c := &simBrickCopy{a, g.disks[x], new(big.Int).Set(g.disks[x].files), copyRuns}
			g.copies[i] = c
			n.after(n.pace(500*time.Millisecond, 40*time.Second), a.alive, func() {
				if c.state = copyDone; !g.w.linked(n, g.w.nodes[x]) || g.disks[x] != c.of {
					c.state = copyFailed
				}
				for bit := range g.written { // what was written meanwhile may be in it
					if c.of.files.Bit(bit) == 1 && c.files.Bit(bit) == 0 && g.w.chance(2) {
						c.files.SetBit(c.files, bit, 1)
					}
				}
			})
			return nil
		})
	case glusterRestore:
		if c := g.copies[i]; c != nil && c.agent == a && c.state == copyDone {
			return a.act("make the copy the brick", 0, func() error {
				if d.brick != brickNone {
					c.state = copyFailed
					return errors.New("there is a brick")
				}
				d.brick, d.brickID, d.files, d.copied, g.changed = brickData, g.known(i).ID, c.files, true, true
				delete(g.copies, i)
				return nil
			})
		}
		return a.act("give the blank brick its identity", 0, func() error {
			d.brickID = g.known(i).ID
			if d.brick != brickData {
				d.brick = brickEmpty
			}
			return nil
		})
	case glusterForce:
		return a.act("start the volume by force", command, func() error {
			err := g.alter(i, nil)
			for _, j := range g.friends(i) {
				if o, known := g.disks[j], g.known(j); err == nil && known != nil {
					if o.brick == brickBare && o.brickID == "" && g.index(known, j) >= 0 {
						o.brickID = known.ID
					}
					g.startBrick(j)
				}
			}
			return err
		})
	}
	switch step.do {
	case glusterProbe:
		return a.act("take "+step.server+" into the pool", command, func() error { return g.probe(i, g.w.named(step.server).index) })
	case glusterDetach:
		return a.act("remove "+step.server+" from the pool", command, func() error { return g.detach(i, step.server, step.force) })
	case glusterAdd, glusterRemove:
		var op *glusterOp
		if err := a.act(fmt.Sprintf("%s: %s", step.do, step.server), command, func() (err error) {
			if step.do == glusterAdd {
				op, err = g.add(i, g.w.named(step.server).index, step.replicas)
			} else {
				op, err = g.remove(i, step.server, step.replicas)
			}
			return err
		}); err != nil {
			return err
		}
		return g.await(a, op)
	case glusterStop:
		return a.act("stop glusterd", 0, func() error {
			if !g.w.names(n) { // it has left
				g.stop(n, true)
				return nil
			}
			in := g.index(g.volume(), i) >= 0
			var quorate []int
			for j := range g.daemons {
				if g.running(j) && j != i && g.quorum(j) {
					quorate = append(quorate, j)
				}
				if in && g.bricks[i] && g.stopped[j] && g.w.nodes[j].on() {
					g.w.fail("%s stops its brick while %s has stopped its own", n.peer.Name, g.w.nodes[j].peer.Name)
				}
			}
			if in && g.bricks[i] {
				g.stopped[i] = true
			}
			alone := in && !g.bricks[i] // it has no brick to lose, and restarts to get it started
			g.stop(n, true)
			for x := range g.disks {
				at, ok := g.restarts[x]
				for _, j := range quorate {
					if ok && !alone && g.w.now-at < 10*time.Second && g.w.nodes[x].on() && !g.running(x) && !g.quorum(j) {
						g.w.fail("%s and %s restart at once, and %s stops its brick", n.peer.Name, g.w.nodes[x].peer.Name, g.w.nodes[j].peer.Name)
					}
				}
			}
			g.restarts[i] = g.w.now
			for _, j := range quorate {
				if g.bricks[j] && !g.quorum(j) && !g.wouldHold(j) {
					g.w.fail("%s restarts, and %s stops its brick", n.peer.Name, g.w.nodes[j].peer.Name)
				}
			}
			return nil
		})
	}
	return nil // in the model, the daemons heal on their own
}

// wouldHold tells whether a server would have its quorum if nothing were away but those that restart, and those that have rejected it.
func (g *glusterModel) wouldHold(i int) bool {
	up, all := 1, 1
	for j := range g.disks {
		if is, ok := g.daemons[i].counts[j]; ok {
			all++
			at, restarts := g.restarts[j]
			if restarts = restarts && g.w.now-at < 10*time.Second && g.w.nodes[j].on() && !g.running(j); is || !restarts && slices.Contains(g.disks[i].pool, g.uuid(j)) {
				up++
			}
		}
	}
	return up >= all/2+1
}

// reached returns the servers on which a change is made at once: sometimes not all that are connected.
func (g *glusterModel) reached(i int) []int {
	friends := g.friends(i)
	if g.w.chance(3) {
		friends = slices.DeleteFunc(friends, func(j int) bool { return j != i && g.w.chance(2) })
	}
	return friends
}

func (g *glusterModel) running(i int) bool { return g.daemons[i] != nil && g.daemons[i].up }

func (g *glusterModel) probe(i, x int) error {
	if !g.running(i) || !g.running(x) || !g.w.linked(g.w.nodes[i], g.w.nodes[x]) || !g.knows(i, x) || !g.knows(x, i) {
		return errors.New("no answer")
	}
	if d := g.disks[x]; len(d.pool) > 0 && !d.peer(g.disks[i].uuid) {
		return errors.New("already part of another cluster")
	}
	for _, j := range g.reached(i) {
		g.befriend(j, g.disks[x].uuid)
		g.befriend(x, g.disks[j].uuid)
	}
	return nil
}

func (g *glusterModel) detach(i int, uuid string, force bool) error {
	if !g.running(i) || !force && slices.ContainsFunc(g.disks[i].pool, func(u string) bool {
		return u != uuid && !slices.ContainsFunc(g.friends(i), func(j int) bool { return g.disks[j].uuid == u })
	}) {
		return errors.New("one of the peers is probably down")
	}
	for _, j := range g.reached(i) {
		d := g.disks[j]
		if d.uuid == uuid {
			d.pool, d.rejected = nil, nil
			if d.volume != nil && g.index(d.volume, j) < 0 {
				d.volume, d.version, d.clients, g.daemons[j].memory = nil, 0, nil, nil
			}
		}
		d.pool = slices.DeleteFunc(slices.Clone(d.pool), func(u string) bool { return u == uuid })
		d.rejected = slices.DeleteFunc(slices.Clone(d.rejected), func(u string) bool { return u == uuid })
	}
	return nil
}

func (g *glusterModel) add(i, x, replicas int) (*glusterOp, error) {
	o := g.disks[x]
	next := -1
	return g.begin(i, func(j int) error { // each checks
		switch known := g.known(j); {
		case known == nil || len(known.Bricks) != replicas-1 || g.index(known, x) >= 0:
			return errors.New("wrong number of bricks")
		case j == i && (len(g.online(known)) < len(known.Bricks) || !slices.Contains(g.friends(i), x)):
			return errors.New("a brick is down")
		case j == i:
			next = known.nextID()
		case j == x && (o.brick != brickBare && o.brick != brickEmpty || o.brickID != ""):
			return errors.New("already part of a volume")
		case j == x:
			o.brick, o.brickID = brickEmpty, known.ID
		}
		return nil
	}, func(j int) error { // in memory
		known := g.known(j)
		if known == nil {
			return errors.New("no such volume")
		}
		v := *known
		v.Bricks, v.IDs = append(slices.Clone(v.Bricks), g.w.nodes[x].peer.Name+":"+g.params.Brick), append(slices.Clone(v.IDs), next)
		g.daemons[j].memory = &v
		if j != x {
			return nil
		}
		switch {
		case o.brickID != v.ID:
			return errors.New("no volume id on the brick")
		case g.w.chance(10):
			for friends := g.friends(i); g.w.chance(2); {
				n := g.w.nodes[friends[g.w.rand.IntN(len(friends))]]
				g.w.in(g.w.between(0, changeLimit), func() { g.kill(n, 0) })
			}
			return errors.New("the brick's process does not start in time")
		}
		for _, k := range g.online(known) {
			g.disks[k].all[next] = true
		}
		g.startBrick(x)
		return nil
	}, func(j int) error { // stored
		if known := g.known(j); g.index(known, x) >= 0 && g.index(g.disks[j].clients, x) < 0 {
			g.store(j, known, g.disks[j].version+1)
		}
		return nil
	})
}

func (g *glusterModel) remove(i int, server string, replicas int) (*glusterOp, error) {
	return g.begin(i, func(j int) error {
		if known := g.known(j); j == i && (len(known.Bricks) != replicas+1 || known.index(server, g.params.Brick) < 0) {
			return errors.New("wrong number of bricks")
		}
		return nil
	}, func(j int) error {
		known := g.known(j)
		if known == nil || known.index(server, g.params.Brick) < 0 {
			return nil
		}
		v := *known
		at := v.index(server, g.params.Brick)
		v.Bricks, v.IDs = slices.Delete(slices.Clone(v.Bricks), at, at+1), slices.Delete(slices.Clone(v.IDs), at, at+1)
		if lacking := slices.DeleteFunc(g.bricksOf(&v), func(k int) bool { return new(big.Int).AndNot(g.acked, g.disks[k].files).Sign() == 0 }); j == i && g.enough(&v, lacking) {
			g.w.fail("%s removes the brick of %s, and enough of the others to go on lack a write", g.w.nodes[i].peer.Name, server)
		}
		g.store(j, &v, g.disks[j].version+1)
		return nil
	})
}

func (g *glusterModel) create(i int, servers []string) error {
	friends := g.friends(i)
	// glusterd would refuse it where it knows the volume, or another server is not connected, but no agent may try.
	for j, d := range g.disks {
		if d.volume != nil || d.brick == brickData {
			g.w.fail("%s makes a volume, and %s has one", g.w.nodes[i].peer.Name, g.w.nodes[j].peer.Name)
		}
	}
	for _, name := range servers {
		if x := g.w.named(name).index; !g.running(i) || !slices.Contains(friends, x) {
			return errors.New("not connected")
		}
	}
	for _, j := range friends {
		if g.disks[j].volume != nil {
			return errors.New("already exists")
		}
	}
	g.volumes++
	v := &glusterVolume{ID: fmt.Sprintf("volume %d", g.volumes), Status: volumeCreated, Options: map[string]string{}}
	g.founders = len(servers)
	for k, name := range servers {
		v.Bricks, v.IDs = append(v.Bricks, name+":"+g.params.Brick), append(v.IDs, k)
	}
	for _, j := range friends {
		d := g.disks[j]
		if d.volume, d.version, d.clients = v, 1, v; g.index(v, j) >= 0 {
			d.brick, d.brickID = brickEmpty, v.ID
		}
	}
	return nil
}

func TestSimGluster(t *testing.T) { runSim(t, simGluster) }

// simGlusterChanges has changes of the members as well.
var simGlusterChanges = func() *simKind {
	k := simGluster.with(changed, 2)
	k.spares, k.inOrder = 2, true
	k.bound = 40 * time.Minute // a change that fails half-way is waited for before it is undone, and then once more
	return k
}()

func TestSimGlusterChanges(t *testing.T) { runSim(t, simGlusterChanges) }

// simGlusterRenumbered has moves to another network: all servers get other addresses while all are off.
var simGlusterRenumbered = func() *simKind {
	k := simGluster.with(renumbered, 5)
	k.change = renumbered
	return k
}()

func TestSimGlusterRenumbered(t *testing.T) { runSim(t, simGlusterRenumbered) }

// rancher catalog-dockerfiles 29: servers that started together probed each other, and the pool stayed incomplete.
func TestSimMutualProbes(t *testing.T) {
	scenario(t, simGluster, 3,
		fault{at: 0, kind: agentDies, node: 1, lasts: time.Second},
		fault{at: 0, kind: slowStart, node: 2, lasts: 30 * time.Second})
}

// A blank brick that serves before the others record that it lacks everything makes files disappear.
func TestSimBlankBrickIsNoted(t *testing.T) {
	scenario(t, simGluster, 3,
		fault{at: 60 * time.Second, kind: blankDisk, node: 2, lasts: 5 * time.Second},
		fault{at: 64 * time.Second, kind: isolated, node: 0, lasts: 20 * time.Second},
		fault{at: 100 * time.Second, kind: blankDisk, node: 0, lasts: 5 * time.Second})
}

// A server was away while another was replaced, and returned before the blank brick was full, when the third was away:
// neither server knew what the brick lacked, and files disappeared.
func TestSimBlankBrickWaitsForThoseWhoAreAway(t *testing.T) {
	scenario(t, simGluster, 3,
		fault{at: 60 * time.Second, kind: outage, lasts: time.Second},
		fault{at: 60 * time.Second, kind: blankDisk, node: 2, lasts: 2 * time.Second},
		fault{at: 60 * time.Second, kind: crash, node: 1, lasts: 50 * time.Second},
		fault{at: 88 * time.Second, kind: crash, node: 0, lasts: 60 * time.Second})
}

// A blank brick begins as a copy of another server's. What is written meanwhile is healed.
func TestSimBlankBrickIsCopied(t *testing.T) {
	t.Parallel()
	copied, seeds := 0, 100
	for seed := range uint64(seeds) {
		h := history{seed, 3, []fault{{at: 60 * time.Second, kind: blankDisk, node: 2, lasts: 5 * time.Second}}}
		if err := simulate(simGluster, h, nil, func(format string, args ...any) {
			if strings.Contains(fmt.Sprintf(format, args...), "make the copy the brick") {
				copied++
			}
		}); err != nil {
			t.Error(seed, err)
		}
	}
	if copied < seeds*9/10 {
		t.Errorf("%d of %d blank bricks were copied", copied, seeds)
	}
}

// glusterMutant changes the view before decideGluster, and its result. Either may be nil.
func glusterMutant(name string, view func(v *glusterView), step func(v glusterView, s glusterStep) glusterStep) mutant {
	return mutant{name: name, apply: func(w *simWorld) {
		w.model.(*glusterModel).decide = func(v glusterView) (glusterStep, facts.Status) {
			v.heard = maps.Clone(v.heard)
			if view != nil {
				view(&v)
			}
			s, status := decideGluster(v)
			if step != nil {
				s = step(v, s)
			}
			return s, status
		}
	}}
}

func TestSimGlusterMutants(t *testing.T) {
	never := func(do glusterDo) func(glusterView, glusterStep) glusterStep {
		return func(_ glusterView, s glusterStep) glusterStep {
			if s.do == do {
				return glusterStep{}
			}
			return s
		}
	}
	killAll(t, simGluster, []mutant{
		glusterMutant("silent servers have nothing", func(v *glusterView) {
			for _, n := range v.nodes {
				if _, ok := v.heard[n]; !ok && n != v.self && v.own.Volume == nil {
					v.heard[n] = glusterReport{Running: true, Brick: brickBare}
					v.target, v.agreed = v.nodes, true // as if it conformed
				}
			}
		}, nil),
		glusterMutant("a blank brick does not wait to be noted", func(v *glusterView) {
			for n, r := range v.heard {
				r.Blames = append(slices.Clone(r.Blames), slices.Index(v.nodes, v.self))
				v.heard[n] = r
			}
		}, func(v glusterView, s glusterStep) glusterStep {
			if s.do == glusterNothing && v.own.lost() {
				return glusterStep{do: glusterRestore}
			}
			return s
		}),
		glusterMutant("nobody notes what a blank brick lacks", nil, never(glusterBlame)),
		glusterMutant("a blank brick is not taken back", nil, never(glusterRestore)),
		glusterMutant("a brick that is down is left to glusterd", nil, never(glusterForce)),
		glusterMutant("a volume stays without its options", nil, never(glusterSet)),
		glusterMutant("a volume is not started", nil, never(glusterStart)),
		glusterMutant("every server makes the volume", nil, func(v glusterView, s glusterStep) glusterStep {
			if s.do == glusterNothing && v.own.Running && v.own.Volume == nil && v.own.Brick != brickNone && len(v.heard) == len(v.nodes)-1 {
				return glusterStep{do: glusterCreate}
			}
			return s
		}),
		{name: "servers start without a pool", apply: func(w *simWorld) { w.model.(*glusterModel).probing = true }},
	})
}

func TestSimGlusterChangesMutants(t *testing.T) {
	never := func(do glusterDo) func(glusterView, glusterStep) glusterStep {
		return func(_ glusterView, s glusterStep) glusterStep {
			if s.do == do {
				return glusterStep{}
			}
			return s
		}
	}
	told := func(name string, change func(g *gluster, w *World)) mutant {
		return mutant{name: name, apply: func(w *simWorld) { w.model.(*glusterModel).change = change }}.among(changed, changed, crash, outage, reboot, isolated, split)
	}
	// each changes all reports that a decision is made from.
	each := func(v *glusterView, change func(r *glusterReport)) {
		change(&v.own)
		for n, r := range v.heard {
			change(&r)
			v.heard[n] = r
		}
	}
	killAll(t, simGlusterChanges, []mutant{
		told("only the node's own seed says who is a member", func(g *gluster, w *World) {
			w.Joint = facts.Joint{Number: w.Joint.Number, InUse: []facts.Membership{ensemble.Own(0, w.Self, w.Peers)}}
		}),
		glusterMutant("bricks are known by their places in the volume", func(v *glusterView) {
			each(v, func(r *glusterReport) {
				if r.Volume != nil {
					vol := *r.Volume
					vol.IDs = nil
					r.Volume = &vol
				}
			})
		}, nil).among(changed, changed, blankDisk, blankDisk, crash),
		glusterMutant("what a new brick lacks is not noted before it is added", func(v *glusterView) {
			if v.own.Volume == nil {
				return
			}
			next := v.own.Volume.nextID()
			each(v, func(r *glusterReport) { r.Blames = append(slices.Clone(r.Blames), next) })
		}, nil).among(changed, changed, crash, stepCrash, isolated, split),
		glusterMutant("bricks are removed while copies differ", func(v *glusterView) {
			each(v, func(r *glusterReport) { r.Lacks = nil })
		}, nil).among(changed, changed, crash, blankDisk, isolated, split, outage),
		glusterMutant("a new server waits for the next one", func(v *glusterView) {
			for _, n := range v.target {
				if _, heard := v.report(n); !heard {
					v.target = nil
					return
				}
			}
		}, nil).among(changed),
		glusterMutant("a new server clears its brick when those that it hears do not have it", func(v *glusterView) {
			if v.find(func(r glusterReport) bool { return r.Volume != nil && r.Volume.has(v.self, v.params.Brick) }) == "" {
				v.unclaimedFor = changeLimit
			}
		}, nil).among(changed, slowStart),
		glusterMutant("what an interrupted change left in a new brick stays", nil, never(glusterClear)).among(changed),
		glusterMutant("glusterd keeps what it has not stored", func(v *glusterView) { v.staleHeld = time.Hour }, nil).among(changed),
		glusterMutant("a server does not notice that it has missed a change", func(v *glusterView) {
			each(v, func(r *glusterReport) {
				if r.Volume != nil {
					vol := *r.Volume
					vol.Version = 0
					r.Volume = &vol
				}
			})
		}, nil).among(changed),
		glusterMutant("all that have not stored the volume restart at once", nil, func(v glusterView, s glusterStep) glusterStep {
			if v.staleHeld <= 0 && v.stale(v.self, v.own) {
				return glusterStep{do: glusterStop}
			}
			return s
		}).among(changed),
		glusterMutant("what an interrupted addition left in memory stays", nil, func(v glusterView, s glusterStep) glusterStep {
			if s.do == glusterRemove && slices.Contains(v.target, s.server) {
				return glusterStep{}
			}
			return s
		}).among(changed),
		glusterMutant("what glusterd has stored counts, though clients are not told", func(v *glusterView) { each(v, func(r *glusterReport) { r.Stored = nil }) }, nil).among(changed, crash, reboot, isolated),
		glusterMutant("nobody minds who is rejected", func(v *glusterView) { each(v, func(r *glusterReport) { r.Rejected = nil }) }, nil).among(changed, crash, reboot, isolated),
		glusterMutant("the mark of a new brick is kept", nil, never(glusterKeep)),
		glusterMutant("a server that runs is not told of a new one", nil, never(glusterProbe)),
		glusterMutant("a new server gets no brick", nil, never(glusterAdd)),
		glusterMutant("who leaves keeps its brick", nil, never(glusterRemove)),
		glusterMutant("who leaves stays in the pool", nil, never(glusterDetach)),
	})
}

func TestSimGlusterRenumberedMutants(t *testing.T) {
	killAll(t, simGlusterRenumbered, []mutant{
		mutant{name: "peers are asked where they were", apply: func(w *simWorld) {
			w.asks = func(p facts.Peer) bool { return p.IP == w.named(p.Name).first }
		}}.among(renumbered),
	})
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// The model of GlusterFS follows xlators/mgmt/glusterd and xlators/cluster/afr of GlusterFS 10:
//
//   - Two servers are connected if each has the other's UUID in its pool and answers with its own. Connected servers
//     synchronize to the latest version of the volume; a server without one gets it.
//   - With server quorum, glusterd stops its brick when less than a majority of servers is connected, and starts it when
//     there is a majority again. It does not start a brick whose folder lacks the volume's ID. "start force" puts the ID
//     on empty folders of all connected servers, and skips missing folders.
//   - A write goes to all bricks that are online, if they are a majority, or half with the first brick. These record what the others
//     lack. Reads come from a brick that no other one records as lacking something.
//   - A probe takes a server into the pools of all connected servers, and a removal takes it out; both may reach only some. A server
//     that starts tells those that it is connected to whom it knows.
//   - A new brick gets the highest id of the volume's bricks plus 1, and its folder the volume's ID, before the volume changes. What a
//     server misses of that change it gets from others, and starts its brick; only the whole change marks the new brick as lacking
//     everything.
//   - Healing makes a brick that lacks something equal to one that lacks nothing, whatever else it contains. If all are
//     recorded as lacking something, they are merged. It needs no majority.
var simGluster = &simKind{
	name: "gluster", role: "glusterfs", share: 10,
	build: func(w *simWorld) simModel { return newGlusterModel(w) },
	faults: []faultKind{lateBoot, lateBoot, gone, crash, crash, crash, reboot, outage, outage, blankDisk, blankDisk, blankDisk, agentDies,
		daemonDies, daemonDies, cutOneWay, isolated, split, split, slowNet, paused, frozen, lying, noStart, slowStart, stepCrash, stepCrash, stepAgent},
}

// glusterDisk is the content of a server's data disk.
type glusterDisk struct {
	uuid    string
	pool    []string
	volume  *glusterVolume // never modified, only replaced
	version int            // of the volume
	brick   brickState
	brickID string
	files   *big.Int     // the writes on the brick, one bit each
	all     map[int]bool // by brick's id: recorded as lacking everything
	some    map[int]bool // by brick's id: recorded as lacking what was written in its absence
}

// glusterd is a running one.
type glusterd struct {
	up     bool
	quorum bool // at its last check
}

type glusterModel struct {
	w       *simWorld
	disks   []*glusterDisk
	daemons []*glusterd
	bricks  []bool // their processes
	written int
	acked   *big.Int
	volumes int // number of volumes ever created
	changed bool
	params  *facts.GlusterParams
	decide  func(glusterView) (glusterStep, facts.Status)
	probing bool                       // a mutation: servers start with an empty pool
	change  func(g *gluster, w *World) // a mutation; nil: none
}

func newGlusterModel(w *simWorld) *glusterModel {
	g := &glusterModel{w: w, acked: new(big.Int), params: glusterParams(), decide: decideGluster,
		daemons: make([]*glusterd, len(w.nodes)), bricks: make([]bool, len(w.nodes))}
	for range w.nodes {
		g.disks = append(g.disks, g.newDisk())
	}
	g.client()
	g.heal()
	return g
}

func (g *glusterModel) newDisk() *glusterDisk {
	return &glusterDisk{brick: brickNone, files: new(big.Int), all: map[int]bool{}, some: map[int]bool{}}
}

// volume returns the latest volume that a server has that is on; nil: there is none.
func (g *glusterModel) volume() (v *glusterVolume) {
	version := 0
	for i, d := range g.disks {
		if g.w.nodes[i].on() && d.volume != nil && d.version > version {
			v, version = d.volume, d.version
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
			v, version = d.volume, d.version
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
func (g *glusterModel) relinked()        {}

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

func (g *glusterModel) uuid(i int) string { return glusterUUID(simCluster, g.w.nodes[i].peer.Name) }

// connected reports whether the glusterds of two servers are connected.
func (g *glusterModel) connected(i, j int) bool {
	if i == j {
		return true
	}
	a, b := g.daemons[i], g.daemons[j]
	return a != nil && b != nil && a.up && b.up && g.w.linked(g.w.nodes[i], g.w.nodes[j]) && g.knows(i, j) && g.knows(j, i) &&
		slices.Contains(g.disks[i].pool, g.disks[j].uuid) && slices.Contains(g.disks[j].pool, g.disks[i].uuid)
}

// knows tells whether a node's seed has another's address.
func (g *glusterModel) knows(i, j int) bool {
	return slices.ContainsFunc(g.w.nodes[i].peers, func(p facts.Peer) bool {
		return p.Name == g.w.nodes[j].peer.Name && p.IP == g.w.nodes[j].peer.IP
	})
}

// quorum tells whether a server is connected to a majority of its pool.
func (g *glusterModel) quorum(i int) bool { return 2*len(g.friends(i)) > len(g.disks[i].pool)+1 }

// befriend takes a server into another's pool.
func (g *glusterModel) befriend(i int, uuid string) {
	if d := g.disks[i]; d.uuid != uuid && !slices.Contains(d.pool, uuid) {
		d.pool = append(slices.Clone(d.pool), uuid)
	}
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
	s := &glusterd{}
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
	d := g.disks[i]
	changed := false
	for _, j := range g.friends(i) {
		if o := g.disks[j]; o.volume != nil && (d.volume == nil || o.volume.ID == d.volume.ID && o.version > d.version) {
			d.volume, d.version, changed = o.volume, o.version, true
		}
	}
	quorum := g.quorum(i)
	switch {
	case g.bricks[i] && (!quorum || g.index(d.volume, i) < 0):
		g.bricks[i], g.changed = false, true
	case quorum && (!s.quorum || changed) && d.volume != nil && d.volume.Status == volumeStarted:
		g.startBrick(i)
	}
	s.quorum = quorum
	n.after(n.pace(300*time.Millisecond, time.Second), alive, func() { g.manage(n, s, alive) })
}

func (g *glusterModel) startBrick(i int) {
	d := g.disks[i]
	if d.brick == brickNone || g.index(d.volume, i) < 0 || d.brickID != d.volume.ID || g.bricks[i] {
		return
	}
	d.brick, g.bricks[i], g.changed = brickData, true, true
}

// alter changes the volume on all connected servers.
func (g *glusterModel) alter(i int, do func(v *glusterVolume)) error {
	return g.alterOn(i, g.friends(i), do)
}

func (g *glusterModel) alterOn(i int, friends []int, do func(v *glusterVolume)) error {
	if s := g.daemons[i]; s == nil || !s.up || !g.quorum(i) {
		return errors.New("quorum not met")
	}
	next := *g.disks[i].volume
	next.Options = maps.Clone(next.Options)
	do(&next)
	version := g.disks[i].version + 1
	for _, j := range friends {
		if d := g.disks[j]; d.volume != nil && d.volume.ID == next.ID {
			d.volume, d.version = &next, version
		}
	}
	return nil
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
					d.some[v.id(g.index(v, j))] = true
				}
			}
		}
		g.acked.SetBit(g.acked, g.written, 1)
		g.written++
		g.changed = true
	})
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
	return slices.ContainsFunc(by, func(i int) bool { return g.disks[i].all[id] || g.disks[i].some[id] })
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
					g.disks[i].all[id(j)], g.disks[i].some[id(j)] = false, false
				}
			}
			g.changed = true
			return
		}
		for _, j := range online {
			if slices.Contains(whole, j) || !g.blamed(v, whole, j) {
				continue
			}
			source := g.disks[whole[0]]
			for _, i := range whole {
				g.disks[i].all[id(j)], g.disks[i].some[id(j)] = false, false
			}
			g.disks[j].files.Set(source.files)
			g.disks[j].all, g.disks[j].some = maps.Clone(source.all), maps.Clone(source.some)
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

func (p simGlusterServer) unitNames() []string { return nil }

func (p simGlusterServer) look(context.Context) (glusterReport, string, error) {
	seen, unit := p.g.look(p.a.n.index), simUnit(p.g.daemons[p.a.n.index] != nil).Active
	p.a.looked()
	return seen, unit, nil
}

// look returns what a server can observe about itself.
func (g *glusterModel) look(i int) glusterReport {
	d, s := g.disks[i], g.daemons[i]
	r := glusterReport{UUID: d.uuid, Used: len(d.pool) > 0 || d.volume != nil, Pool: d.pool, Running: s != nil && s.up, Brick: d.brick, BrickID: d.brickID}
	if d.uuid != "" {
		r.OpVersion = 100000
	}
	if !r.Running || d.volume == nil {
		return r
	}
	r.Volume, r.Online = d.volume, g.bricks[i]
	next := d.volume.nextID()
	for id := range next + 1 {
		in := slices.Contains(d.volume.ids(), id)
		if d.all[id] && (in || id == next) {
			r.Blames = append(r.Blames, id)
		}
		if in && (d.all[id] || d.some[id]) {
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
					g.befriend(i, glusterUUID(simCluster, name))
				}
			}
			return nil
		})
		return a.act("write down the identity", 0, func() error { d.uuid = g.uuid(i); return nil })
	case glusterStartUnit:
		return a.act("start glusterd", 0, func() error { g.start(n); return nil })
	case glusterMakeBrick:
		return a.act("make the brick's folder", 0, func() error { d.brick, d.brickID = brickBare, ""; return nil })
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
				if err == nil && g.disks[j].volume != nil {
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
	case glusterRestore:
		return a.act("give the blank brick its identity", 0, func() error {
			d.brickID = d.volume.ID
			if d.brick != brickData {
				d.brick = brickEmpty
			}
			return nil
		})
	case glusterForce:
		return a.act("start the volume by force", command, func() error {
			err := g.alter(i, func(*glusterVolume) {})
			for _, j := range g.friends(i) {
				if o := g.disks[j]; err == nil && o.volume != nil {
					if o.brick == brickBare && o.brickID == "" {
						o.brickID = o.volume.ID
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
	case glusterAdd:
		return a.act("add the brick of "+step.server, command, func() error { return g.add(i, g.w.named(step.server).index, step) })
	case glusterRemove:
		return a.act("remove the brick of "+step.server, command, func() error {
			if d.volume == nil || len(d.volume.Bricks) != step.replicas+1 {
				return errors.New("wrong number of bricks")
			}
			return g.alterOn(i, g.reached(i), func(v *glusterVolume) {
				at := v.index(step.server, g.params.Brick)
				v.Bricks, v.IDs = slices.Delete(slices.Clone(v.Bricks), at, at+1), slices.Delete(slices.Clone(v.IDs), at, at+1)
			})
		})
	case glusterStop:
		return a.act("stop glusterd", 0, func() error { g.stop(n, true); return nil })
	}
	return nil // in the model, the daemons heal on their own
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
	if len(g.disks[x].pool) > 0 && !slices.Contains(g.disks[x].pool, g.disks[i].uuid) {
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
			d.pool = nil
			if d.volume != nil && g.index(d.volume, j) < 0 {
				d.volume, d.version = nil, 0
			}
		}
		d.pool = slices.DeleteFunc(slices.Clone(d.pool), func(u string) bool { return u == uuid })
	}
	return nil
}

func (g *glusterModel) add(i, x int, step glusterStep) error {
	d, o := g.disks[i], g.disks[x]
	switch {
	case !g.running(i) || !slices.Contains(g.friends(i), x) || d.volume == nil:
		return errors.New("not connected")
	case len(d.volume.Bricks) != step.replicas-1 || len(g.online(d.volume)) < len(d.volume.Bricks):
		return errors.New("a brick is down")
	case o.brick != brickBare && o.brick != brickEmpty || o.brickID != "":
		return errors.New("already part of a volume")
	}
	o.brickID = d.volume.ID
	next, at := d.volume.nextID(), g.reached(i)
	before := g.online(d.volume)
	err := g.alterOn(i, at, func(v *glusterVolume) {
		v.Bricks = append(slices.Clone(v.Bricks), g.w.nodes[x].peer.Name+":"+g.params.Brick)
		v.IDs = append(slices.Clone(v.IDs), next)
	})
	if err == nil && slices.Contains(at, x) {
		for _, j := range before {
			g.disks[j].all[next] = true
		}
		g.startBrick(x)
	}
	return err
}

func (g *glusterModel) create(i int, servers []string) error {
	friends := g.friends(i)
	for _, name := range servers {
		if x := g.w.named(name).index; !g.running(i) || !slices.Contains(friends, x) {
			return errors.New("not connected")
		}
	}
	// glusterd would refuse it where it knows the volume, but no agent may try.
	for j, d := range g.disks {
		if d.volume != nil || d.brick == brickData {
			g.w.fail("%s makes a volume, and %s has one", g.w.nodes[i].peer.Name, g.w.nodes[j].peer.Name)
		}
	}
	for _, j := range friends {
		if g.disks[j].volume != nil {
			return errors.New("already exists")
		}
	}
	g.volumes++
	v := &glusterVolume{ID: fmt.Sprintf("volume %d", g.volumes), Status: volumeCreated, Options: map[string]string{}}
	for k, name := range servers {
		v.Bricks, v.IDs = append(v.Bricks, name+":"+g.params.Brick), append(v.IDs, k)
	}
	for _, j := range friends {
		d := g.disks[j]
		if d.volume, d.version = v, 1; g.index(v, j) >= 0 {
			d.brick, d.brickID = brickEmpty, v.ID
		}
	}
	return nil
}

func TestSimGluster(t *testing.T) { runSim(t, simGluster) }

// simGlusterChanges has changes of the members as well. No agent lies here: which members count is up to what all of them say.
var simGlusterChanges = func() *simKind {
	k := *simGluster
	k.spares, k.inOrder, k.share = 2, true, 2
	k.faults = append(slices.DeleteFunc(slices.Clone(k.faults), func(f faultKind) bool { return f == lying }), changed, changed)
	return &k
}()

func TestSimGlusterChanges(t *testing.T) { runSim(t, simGlusterChanges) }

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
		glusterMutant("a server that runs is not told of a new one", nil, never(glusterProbe)),
		glusterMutant("a new server gets no brick", nil, never(glusterAdd)),
		glusterMutant("who leaves keeps its brick", nil, never(glusterRemove)),
		glusterMutant("who leaves stays in the pool", nil, never(glusterDetach)),
	})
}

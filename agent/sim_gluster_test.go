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

	"imagegen/cluster/facts"
)

// The model of GlusterFS follows xlators/mgmt/glusterd and xlators/cluster/afr of GlusterFS 10:
//
//   - Two servers are connected if each has the other's UUID in its pool and answers with its own. Connected servers
//     synchronize to the latest version of the volume; a server without one gets it.
//   - With server quorum, glusterd stops its brick when less than a majority of servers is connected, and starts it when
//     there is a majority again. It does not start a brick whose folder lacks the volume's ID. "start force" puts the ID
//     on empty folders of all connected servers, and skips missing folders.
//   - A write goes to all bricks that are online, if they are a majority. These record what the others lack. Reads come
//     from a brick that no other one records as lacking something.
//   - Healing makes a brick that lacks something equal to one that lacks nothing, whatever else it contains. If all are
//     recorded as lacking something, they are merged.
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
	files   *big.Int // the writes on the brick, one bit each
	all     []bool   // by brick: recorded as lacking everything
	some    []bool   // by brick: recorded as lacking what was written in its absence
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
	probing bool // a mutation: servers start with an empty pool
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
	n := len(g.w.nodes)
	return &glusterDisk{brick: brickNone, files: new(big.Int), all: make([]bool, n), some: make([]bool, n)}
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
	everyone := make([]int, len(g.disks))
	for i := range everyone {
		everyone[i] = i
	}
	for i, d := range g.disks {
		if g.volumes > 0 && i != n.index && (d.brick != brickData || g.blamed(everyone, i)) {
			return
		}
	}
	g.disks[n.index] = g.newDisk()
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
	return a != nil && b != nil && a.up && b.up && g.w.linked(g.w.nodes[i], g.w.nodes[j]) &&
		slices.Contains(g.disks[i].pool, g.disks[j].uuid) && slices.Contains(g.disks[j].pool, g.disks[i].uuid)
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
		g.manage(n, s, alive)
	})
}

// manage does what glusterd does on its own.
func (g *glusterModel) manage(n *machine, s *glusterd, alive func() bool) {
	i := n.index
	d := g.disks[i]
	friends := g.friends(i)
	for _, j := range friends {
		if o := g.disks[j]; o.volume != nil && (d.volume == nil || o.volume.ID == d.volume.ID && o.version > d.version) {
			d.volume, d.version = o.volume, o.version
		}
	}
	quorum := len(friends) > len(g.disks)/2
	switch {
	case !quorum && g.bricks[i]:
		g.bricks[i], g.changed = false, true
	case quorum && !s.quorum && d.volume != nil && d.volume.Status == volumeStarted:
		g.startBrick(i)
	}
	s.quorum = quorum
	n.after(n.pace(300*time.Millisecond, time.Second), alive, func() { g.manage(n, s, alive) })
}

func (g *glusterModel) startBrick(i int) {
	d := g.disks[i]
	if d.brick == brickNone || d.brickID != d.volume.ID || g.bricks[i] {
		return
	}
	d.brick, g.bricks[i], g.changed = brickData, true, true
}

// change changes the volume on all connected servers.
func (g *glusterModel) change(i int, do func(v *glusterVolume)) error {
	friends := g.friends(i)
	if s := g.daemons[i]; s == nil || !s.up || len(friends) <= len(g.disks)/2 {
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
		online := g.online()
		if len(online) <= len(g.disks)/2 {
			return
		}
		for _, i := range online {
			d := g.disks[i]
			d.files.SetBit(d.files, g.written, 1)
			for j := range g.disks {
				d.some[j] = d.some[j] || !slices.Contains(online, j)
			}
		}
		g.acked.SetBit(g.acked, g.written, 1)
		g.written++
		g.changed = true
	})
}

// online returns the bricks that a client reaches.
func (g *glusterModel) online() (list []int) {
	for i, n := range g.w.nodes {
		if g.bricks[i] && n.on() && !n.suspended() {
			list = append(list, i)
		}
	}
	return list
}

// blamed reports whether one of the bricks records that brick j lacks something.
func (g *glusterModel) blamed(by []int, j int) bool {
	return slices.ContainsFunc(by, func(i int) bool { return g.disks[i].all[j] || g.disks[i].some[j] })
}

// heal simulates the self-heal daemons.
func (g *glusterModel) heal() {
	g.w.in(g.w.between(500*time.Millisecond, 8*time.Second), func() {
		g.heal()
		online := g.online()
		if len(online) <= len(g.disks)/2 {
			return
		}
		whole := slices.DeleteFunc(slices.Clone(online), func(j int) bool { return g.blamed(online, j) })
		if len(whole) == 0 {
			united := new(big.Int)
			for _, i := range online {
				united.Or(united, g.disks[i].files)
			}
			for _, i := range online {
				g.disks[i].files.Set(united)
				for _, j := range online {
					g.disks[i].all[j], g.disks[i].some[j] = false, false
				}
			}
			g.changed = true
			return
		}
		for _, j := range online {
			if slices.Contains(whole, j) || !g.blamed(whole, j) {
				continue
			}
			source := g.disks[whole[0]]
			for _, i := range whole {
				g.disks[i].all[j], g.disks[i].some[j] = false, false
			}
			g.disks[j].files.Set(source.files)
			g.disks[j].all, g.disks[j].some = slices.Clone(source.all), slices.Clone(source.some)
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
	online := g.online()
	if len(online) <= len(g.disks)/2 {
		return nil
	}
	for _, j := range online {
		if g.blamed(online, j) {
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
	online := g.online()
	for i, n := range g.w.nodes {
		switch {
		case !n.on():
		case !g.bricks[i]:
			return fmt.Errorf("%s is ready, and its brick is down", n.peer.Name)
		case g.blamed(online, i):
			return fmt.Errorf("%s lacks something still", n.peer.Name)
		}
	}
	return nil
}

func (g *glusterModel) excused(*machine) bool { return false }

// patient: no volume is created without all servers; without a majority none serves; and while a server is away that
// others record as incomplete, a server whose agent was restarted reports that it is not whole.
func (g *glusterModel) patient() bool {
	here, formed := 0, false
	for i, n := range g.w.nodes {
		if n.on() {
			here++
			formed = formed || g.disks[i].brick == brickData
		}
	}
	for i, n := range g.w.nodes {
		for j := range g.disks {
			if n.on() && (g.disks[i].all[j] || g.disks[i].some[j]) {
				return true
			}
		}
	}
	return here <= len(g.w.nodes)/2 || !formed
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
	return c
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
	for j := range g.disks {
		if d.all[j] {
			r.Blames = append(r.Blames, j)
		}
		if d.all[j] || d.some[j] {
			r.Pending++
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
			d.pool = nil
			for j := range g.disks {
				if j != i && !g.probing {
					d.pool = append(d.pool, g.uuid(j))
				}
			}
			return nil
		})
		return a.act("write down the identity", 0, func() error { d.uuid = g.uuid(i); return nil })
	case glusterStartUnit:
		return a.act("start glusterd", 0, func() error { g.start(n); return nil })
	case glusterMakeBrick:
		return a.act("make the brick's folder", 0, func() error { d.brick = brickBare; return nil })
	case glusterCreate:
		return a.act("create the volume", command, func() error { return g.create(i) })
	case glusterSet:
		return a.act("set options", command, func() error {
			return g.change(i, func(v *glusterVolume) {
				for k := 0; k < len(step.options); k += 2 {
					v.Options[step.options[k]] = step.options[k+1]
				}
			})
		})
	case glusterStart:
		return a.act("start the volume", command, func() error {
			err := g.change(i, func(v *glusterVolume) { v.Status = volumeStarted })
			for _, j := range g.friends(i) {
				if err == nil && g.disks[j].volume != nil {
					g.startBrick(j)
				}
			}
			return err
		})
	case glusterBlame:
		return a.act(fmt.Sprintf("note that brick %d lacks everything", step.brick+1), 0, func() error {
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
			err := g.change(i, func(*glusterVolume) {})
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
	return nil // in the model, the daemons heal on their own
}

func (g *glusterModel) create(i int) error {
	friends := g.friends(i)
	if s := g.daemons[i]; s == nil || !s.up || len(friends) < len(g.disks) {
		return errors.New("not connected")
	}
	g.volumes++
	for j, d := range g.disks {
		if d.volume != nil || d.brick == brickData {
			g.w.fail("%s makes a volume, and %s has one", g.w.nodes[i].peer.Name, g.w.nodes[j].peer.Name)
		}
	}
	v := &glusterVolume{ID: fmt.Sprintf("volume %d", g.volumes), Status: volumeCreated, Options: map[string]string{}}
	for _, n := range g.w.nodes {
		v.Bricks = append(v.Bricks, n.peer.Name+":"+g.params.Brick)
	}
	for _, d := range g.disks {
		d.volume, d.version, d.brick, d.brickID = v, 1, brickEmpty, v.ID
	}
	return nil
}

func TestSimGluster(t *testing.T) { runSim(t, simGluster) }

// simGlusterRenumbered has moves to another network: all servers get other addresses while all are off. No agent lies here.
var simGlusterRenumbered = func() *simKind {
	k := *simGluster
	k.change, k.share = renumbered, 5
	k.faults = append(slices.DeleteFunc(slices.Clone(k.faults), func(f faultKind) bool { return f == lying }), renumbered, renumbered)
	return &k
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

func TestSimGlusterRenumberedMutants(t *testing.T) {
	killAll(t, simGlusterRenumbered, []mutant{
		mutant{name: "peers are asked where they were", apply: func(w *simWorld) {
			w.asks = func(p facts.Peer) bool { return p.IP == w.named(p.Name).first }
		}}.among(renumbered),
	})
}

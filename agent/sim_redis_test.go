package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// The models of Redis and Sentinel follow src/sentinel.c and src/replication.c of Redis 7:
//
//   - A replica copies its master's data with a delay: all of it when it connects. A new configuration or REPLICAOF
//     changes a server's role unconditionally.
//   - A Sentinel considers the master down (s_down) if it has not answered for down-after, or has reported itself as a
//     replica for long. If a quorum agrees (o_down), the Sentinel asks the Sentinels that it knows to elect it for an
//     epoch; each votes once per epoch. The one with a majority promotes the replica with the best priority (never 0),
//     then the highest offset, and gives the new configuration the epoch's number.
//   - Configurations spread by messages through the servers; the one with the higher epoch wins. A server that reports
//     itself as master, but has not been one for a while by the configuration, is made a replica; so is a replica of
//     the wrong master.
//   - A Sentinel stores master, epochs, vote, servers and Sentinels in its file. It knows servers by their addresses alone, and
//     Sentinels by their IDs, with the address that each had when it was last heard.
const (
	downAfter       = 5 * time.Second
	failoverTimeout = 15 * time.Second
	infoPeriod      = 10 * time.Second
	helloPeriod     = 2 * time.Second
)

var simRedis = &simKind{
	name: "redis", role: "redis", share: 45,
	build: func(w *simWorld) simModel { return newRedisModel(w) },
	faults: []faultKind{lateBoot, lateBoot, gone, crash, crash, crash, reboot, outage, outage, blankDisk, blankDisk, agentDies,
		daemonDies, daemonDies, cutOneWay, isolated, split, split, slowNet, paused, frozen, lying, noStart, slowStart, givenUp, stepCrash, stepCrash, stepAgent},
}

type redisDisk struct {
	epoch           int64 // of the founder
	member, founder bool  // memberName; data on a disk without it does not count
	head            *txn  // the data
	follows         int   // place of the master in the configuration at the next start; -1: none
	priority        int
	sentinel        *sentinelFile
}

// sentinelFile is a Sentinel's configuration file.
type sentinelFile struct {
	master         int // its place
	epoch, current int64
	leader         int
	voted          int64         // the epoch of the vote for leader
	servers        map[int]bool  // by place
	peers          map[int]int   // places of other nodes' Sentinels
	changed        time.Duration // time of the last change of the master
}

type redisProcess struct {
	n        *machine
	up       bool
	loading  bool
	follows  int  // place of its master; -1: it is one
	linked   bool // in sync with its master
	lost     time.Duration
	copying  bool
	priority int
}

type sentinelProcess struct {
	n        *machine
	up       bool
	answered time.Duration // time of the master's last answer
	down     bool
	failover int64 // epoch of the running failover; 0: none
	began    time.Duration
	promoted int          // place; -1: none yet
	forced   bool         // started by SENTINEL FAILOVER, which needs no votes
	roles    map[int]role // by place
}

// role is a server's role as a Sentinel saw it, and since when.
type role struct {
	follows int
	since   time.Duration
}

type redisModel struct {
	w              *simWorld
	disks          []*redisDisk
	servers        []*redisProcess
	sentinels      []*sentinelProcess
	decide         func(redisView) (redisStep, string, facts.Status)
	decideSentinel func(sentinelReport, redisReport, redisView) (sentinelStep, string, facts.Status)
	change         func(w *World) // a mutation of what components are told; nil: none
	stored         bool           // a mutation: Sentinels start with the addresses that they have stored
	early          bool           // a mutation: earlier memberships are forgotten as soon as all conform to a later one
	places         []string       // all addresses that nodes have had; a place is an index into it
	quiet          bool           // clients do not write
}

func newRedisModel(w *simWorld) *redisModel {
	r := &redisModel{w: w, servers: make([]*redisProcess, len(w.nodes)), sentinels: make([]*sentinelProcess, len(w.nodes)), decide: decideRedis, decideSentinel: decideSentinel}
	for _, n := range w.nodes {
		r.disks = append(r.disks, &redisDisk{follows: -1})
		r.of(n)
	}
	r.client()
	return r
}

func (r *redisModel) components() []string { return []string{"redis", "sentinel"} }

// faults

func (r *redisModel) stop(n *machine, _ bool) { r.servers[n.index], r.sentinels[n.index] = nil, nil }

func (r *redisModel) kill(n *machine, which int) {
	if which == 0 {
		r.servers[n.index] = nil
	} else {
		r.sentinels[n.index] = nil
	}
}

func (r *redisModel) blank(n *machine) { r.disks[n.index] = &redisDisk{follows: -1} }
func (r *redisModel) foreign(*machine) {}
func (r *redisModel) relinked()        {}

func (r *redisModel) lie(n *machine, name string) any {
	if name == "sentinel" {
		report := simSentinel{r, n.agent}.report()
		report.Running, report.Down, report.Quorum = true, false, ""
		return report
	}
	d := r.disks[n.index]
	return redisReport{Running: true, HasData: d.member, Founder: d.founder, Role: "slave", Master: r.w.nodes[0].peer.IP, Synced: true}
}

// ip returns the address of a place; empty for none.
func (r *redisModel) ip(place int) string {
	if place < 0 {
		return ""
	}
	return r.places[place]
}

// place returns the place with an address; -1 without one.
func (r *redisModel) place(ip string) int {
	if ip == "" {
		return -1
	}
	if i := slices.Index(r.places, ip); i >= 0 {
		return i
	}
	r.places = append(r.places, ip)
	return len(r.places) - 1
}

// of returns the place of a node.
func (r *redisModel) of(n *machine) int { return r.place(n.peer.IP) }

// at returns the server at a place; nil: no server has that address now.
func (r *redisModel) at(place int) *redisProcess {
	for i, n := range r.w.nodes {
		if n.peer.IP == r.places[place] {
			return r.servers[i]
		}
	}
	return nil
}

// servers

func (r *redisModel) startServer(n *machine) {
	d := r.disks[n.index]
	s := &redisProcess{n: n, follows: d.follows, priority: d.priority, lost: r.w.now}
	r.servers[n.index] = s
	alive := func() bool { return r.servers[n.index] == s }
	n.after(n.pace(100*time.Millisecond, time.Second), alive, func() {
		if n.failing > 0 {
			r.servers[n.index] = nil
			return
		}
		s.up, s.loading = true, d.head != nil
		n.after(n.pace(0, 2*time.Second), alive, func() { s.loading = false })
		r.replicate(s, alive)
	})
}

// answers reports whether the server at a place answers a node.
func (r *redisModel) answers(from *machine, place int) bool {
	s := r.at(place)
	return s != nil && s.up && !s.n.suspended() && r.w.linked(from, s.n)
}

// replicate copies the master's data, repeatedly.
func (r *redisModel) replicate(s *redisProcess, alive func() bool) {
	s.n.after(s.n.w.between(100*time.Millisecond, 800*time.Millisecond), alive, func() {
		defer r.replicate(s, alive)
		if s.follows < 0 || s.loading || s.copying {
			return
		}
		from := s.follows
		master := r.at(from)
		if from == r.of(s.n) || !r.answers(s.n, from) || master.loading || master.follows >= 0 && !master.linked {
			if s.linked {
				s.linked, s.lost = false, r.w.now
			}
			return
		}
		d := r.disks[s.n.index]
		if s.linked {
			d.head = r.disks[master.n.index].head
			return
		}
		s.copying = true
		s.n.after(s.n.pace(200*time.Millisecond, 4*time.Second), alive, func() {
			s.copying = false
			if s.follows == from && r.at(from) == master && r.answers(s.n, from) {
				s.linked, d.head, s.n.given = true, r.disks[master.n.index].head, false
			}
		})
	})
}

// order is REPLICAOF: follows is -1 for NO ONE.
func (r *redisModel) order(s *redisProcess, follows int) {
	if s.follows == follows {
		return
	}
	r.w.tell("%s: the server now follows %q", s.n.peer.Name, r.ip(follows))
	s.follows, s.lost, s.linked = follows, r.w.now, false
}

// Sentinels

func (r *redisModel) startSentinel(n *machine) {
	s := &sentinelProcess{n: n, promoted: -1, roles: map[int]role{}}
	r.sentinels[n.index] = s
	alive := func() bool { return r.sentinels[n.index] == s }
	n.after(n.pace(100*time.Millisecond, time.Second), alive, func() {
		if n.failing > 0 {
			r.sentinels[n.index] = nil
			return
		}
		s.up, s.answered = true, r.w.now
		f := r.disks[n.index].sentinel
		f.changed = r.w.now
		r.watch(s, alive)
		r.hello(s, alive)
	})
}

func (r *redisModel) watch(s *sentinelProcess, alive func() bool) {
	s.n.after(r.w.between(900*time.Millisecond, 1100*time.Millisecond), alive, func() {
		r.look(s)
		r.watch(s, alive)
	})
}

// talks reports whether a node's Sentinel answers another one, which knows where it is.
func (r *redisModel) talks(from *machine, i int) bool {
	s := r.sentinels[i]
	place, known := r.disks[from.index].sentinel.peers[i]
	return s != nil && s.up && !s.n.suspended() && r.w.linked(from, s.n) && known && place == r.of(s.n)
}

// quorum is the number in the Sentinel's configuration, which its seed sets.
func (r *redisModel) quorum(n *machine) int { return (len(n.peers)+1)/2 + 1 }

// look is one period of a Sentinel's timer.
func (r *redisModel) look(s *sentinelProcess) {
	w, f := r.w, r.disks[s.n.index].sentinel
	for _, o := range r.servers {
		if o == nil {
			continue
		}
		if i := r.of(o.n); (i == f.master || f.servers[i]) && r.answers(s.n, i) {
			if was, ok := s.roles[i]; !ok || was.follows != o.follows {
				s.roles[i] = role{o.follows, w.now}
			}
		}
	}
	master := r.at(f.master)
	sane := false
	if r.answers(s.n, f.master) {
		s.answered = w.now
		sane = master.follows < 0
		for _, o := range r.servers {
			if sane && o != nil && o.up && o.follows == f.master && o.linked {
				f.servers[r.of(o.n)] = true
			}
		}
	}
	s.down = w.now-s.answered > downAfter || r.answers(s.n, f.master) && !sane && w.now-max(s.roles[f.master].since, f.changed) > downAfter+2*infoPeriod
	sane = sane && !s.down
	for _, i := range slices.Sorted(maps.Keys(f.servers)) {
		if i == f.master || !r.answers(s.n, i) || !sane || s.failover != 0 {
			continue
		}
		o := r.at(i)
		stood := w.now - max(s.roles[i].since, f.changed)
		if o.follows < 0 && stood > 4*helloPeriod || o.follows >= 0 && o.follows != f.master && stood > failoverTimeout {
			r.order(o, f.master)
		}
	}
	if s.failover != 0 {
		r.goOn(s)
		return
	}
	agree := 0
	for i := range r.sentinels {
		if i == s.n.index && s.down || r.talks(s.n, i) && r.disks[i].sentinel.master == f.master && r.sentinels[i].down {
			agree++
		}
	}
	if s.down && agree >= r.quorum(s.n) && w.now-s.began >= 2*failoverTimeout || s.down && agree >= r.quorum(s.n) && s.began == 0 {
		f.current++
		s.failover, s.promoted = f.current, -1
		s.began = w.now + w.between(0, time.Second)
		w.tell("%s: Sentinel tries a failover, epoch %d", s.n.peer.Name, s.failover)
	}
}

// vote is a Sentinel's answer to a candidate for an epoch.
func (r *redisModel) vote(s *sentinelProcess, candidate int, epoch int64) bool {
	f := r.disks[s.n.index].sentinel
	f.current = max(f.current, epoch)
	if f.voted < epoch && f.current <= epoch {
		f.leader, f.voted = candidate, epoch
		if candidate != s.n.index {
			s.began = r.w.now + r.w.between(0, time.Second)
		}
	}
	return f.leader == candidate && f.voted == epoch
}

// goOn continues a failover by one step.
func (r *redisModel) goOn(s *sentinelProcess) {
	w, f := r.w, r.disks[s.n.index].sentinel
	if s.promoted >= 0 {
		o := r.at(s.promoted)
		switch {
		case r.answers(s.n, s.promoted) && o.follows < 0:
			old := f.master
			f.epoch = s.failover
			f.servers[old] = true
			r.adopt(s, s.promoted)
			for _, i := range slices.Sorted(maps.Keys(f.servers)) {
				if i != f.master && i != old && r.answers(s.n, i) {
					r.order(r.at(i), f.master)
				}
			}
			s.failover = 0
		case w.now-s.began > failoverTimeout:
			s.failover = 0
		}
		return
	}
	if w.now < s.began {
		return
	}
	votes := 0
	if r.vote(s, s.n.index, s.failover) {
		votes++
	}
	for i := range r.sentinels {
		if r.talks(s.n, i) && r.disks[i].sentinel.master == f.master && r.vote(r.sentinels[i], s.n.index, s.failover) {
			votes++
		}
	}
	if s.forced {
		s.forced = false
	} else if votes < max(r.quorum(s.n), (len(f.peers)+1)/2+1) {
		if w.now-s.began > 10*time.Second {
			s.failover = 0
		}
		return
	}
	best := -1
	for _, i := range slices.Sorted(maps.Keys(f.servers)) {
		if i == f.master || !r.answers(s.n, i) || r.at(i).priority == 0 {
			continue
		}
		if o := r.at(i); o.follows >= 0 && !o.linked && w.now-o.lost > w.now-s.answered+10*downAfter {
			continue
		}
		if best < 0 || r.disks[r.at(i).n.index].head.reach() > r.disks[r.at(best).n.index].head.reach() {
			best = i
		}
	}
	if best < 0 {
		w.tell("%s: Sentinel finds no good replica", s.n.peer.Name)
		s.failover = 0
		return
	}
	w.tell("%s: Sentinel promotes %s, epoch %d", s.n.peer.Name, r.ip(best), s.failover)
	s.promoted = best
	r.order(r.at(best), -1)
}

// reach is the offset in the replication stream.
func (head *txn) reach() int {
	if head == nil {
		return -1
	}
	return head.depth
}

// adopt changes a Sentinel's master.
func (r *redisModel) adopt(s *sentinelProcess, master int) {
	f := r.disks[s.n.index].sentinel
	r.w.tell("%s: Sentinel now has %s as the master, epoch %d", s.n.peer.Name, r.ip(master), f.epoch)
	f.servers[f.master] = true
	delete(f.servers, master)
	f.master, f.changed = master, r.w.now
	s.answered, s.down = r.w.now, false
}

// hello sends a Sentinel's configuration to the others.
func (r *redisModel) hello(s *sentinelProcess, alive func() bool) {
	s.n.after(helloPeriod, alive, func() {
		f := r.disks[s.n.index].sentinel
		for i, o := range r.sentinels {
			if o == nil || !o.up || o == s || o.n.suspended() {
				continue
			}
			g := r.disks[i].sentinel
			heard := r.talks(s.n, i)
			for j := range r.places {
				mine, its := j == f.master || f.servers[j], j == g.master || g.servers[j]
				heard = heard || mine && its && r.answers(s.n, j) && r.answers(o.n, j)
			}
			if !heard {
				continue
			}
			g.peers[s.n.index] = r.of(s.n)
			g.current = max(g.current, f.current)
			if f.epoch > g.epoch {
				g.epoch = f.epoch
				if g.master != f.master {
					o.failover = 0
					r.adopt(o, f.master)
				}
			}
		}
		r.hello(s, alive)
	})
}

// client writes to a master that has a replica, as clients do that ask Sentinel.
func (r *redisModel) client() {
	r.w.in(r.w.between(200*time.Millisecond, 2*time.Second), func() {
		if s := r.servers[r.w.rand.IntN(len(r.servers))]; !r.quiet && s != nil && s.up && !s.loading && s.follows < 0 {
			if d := r.disks[s.n.index]; d.head != nil {
				d.head = &txn{prev: d.head, depth: d.head.depth + 1, history: d.head.history}
			}
		}
		r.client()
	})
}

// what is right

func (r *redisModel) check() error {
	for i, s := range r.servers {
		if s == nil || !s.up || s.follows >= 0 || r.disks[i].head != nil {
			continue
		}
		for j, d := range r.disks {
			if d.head != nil && (d.member || d.founder) && !r.w.nodes[j].given {
				return fmt.Errorf("%s is a master without data, and %s has data", s.n.peer.Name, r.w.nodes[j].peer.Name)
			}
		}
	}
	return nil
}

func (r *redisModel) settled() error {
	master := -1
	for i, s := range r.servers {
		switch {
		case s == nil || s.follows >= 0:
		case master >= 0:
			return fmt.Errorf("%s and %s both stay masters", r.w.nodes[master].peer.Name, s.n.peer.Name)
		default:
			master = i
		}
	}
	if master < 0 {
		return errors.New("nobody is the master")
	}
	place := r.of(r.w.nodes[master])
	for i, n := range r.w.nodes {
		switch {
		case !n.on():
		case r.servers[i] == nil || i != master && (r.servers[i].follows != place || !r.servers[i].linked):
			return fmt.Errorf("%s is ready, and does not follow the master %s", n.peer.Name, r.w.nodes[master].peer.Name)
		case r.sentinels[i] == nil || r.disks[i].sentinel.master != place:
			return fmt.Errorf("%s is ready, and its Sentinel does not know the master %s", n.peer.Name, r.w.nodes[master].peer.Name)
		}
	}
	return nil
}

func (r *redisModel) excused(*machine) bool { return false }

// patient: without a majority nobody knows the master, and without data there is none. During a change, Sentinels need a majority of all
// that they know, also of those that leave.
func (r *redisModel) patient() bool {
	here, data := 0, false
	for i, n := range r.w.nodes {
		if !n.on() {
			continue
		}
		here++
		data = data || r.disks[i].head != nil && r.disks[i].member
		if f := r.disks[i].sentinel; r.w.changes != nil && f != nil {
			there := 1
			for j := range f.peers {
				if r.w.nodes[j].on() {
					there++
				}
			}
			if there < (len(f.peers)+1)/2+1 {
				return true
			}
		}
	}
	return here < len(r.w.generation.Members)/2+1 || !data
}

// the agent's part

// simRedisServer is a redisServer.
type simRedisServer struct {
	r *redisModel
	a *simAgent
}

// simSentinel is a sentinelServer.
type simSentinel struct {
	r *redisModel
	a *simAgent
}

func (r *redisModel) component(a *simAgent, name string, n Node) Component {
	if name == "redis" {
		c := &redis{node: n, server: simRedisServer{r, a}, decide: r.decide}
		if r.change != nil {
			return mutatedRedis{c, r.change}
		}
		if r.early {
			return earlyRedis{c}
		}
		return c
	}
	c := &sentinel{node: n, server: simSentinel{r, a}, decide: r.decideSentinel}
	if r.change != nil {
		return mutatedSentinel{c, r.change}
	}
	return c
}

// mutatedRedis and mutatedSentinel change what a component is told.
type mutatedRedis struct {
	*redis
	change func(w *World)
}

func (m mutatedRedis) Step(ctx context.Context, w World) (facts.Status, error) {
	m.change(&w)
	return m.redis.Step(ctx, w)
}

// earlyRedis says too early that the latest members work by themselves.
type earlyRedis struct{ *redis }

func (earlyRedis) settled(w World) (int, bool) {
	members, _ := ensemble.Members(w)
	return ensemble.Complete(w, members, func(int, int) bool { return true })
}

type mutatedSentinel struct {
	*sentinel
	change func(w *World)
}

func (m mutatedSentinel) Step(ctx context.Context, w World) (facts.Status, error) {
	m.change(&w)
	return m.sentinel.Step(ctx, w)
}

// simUnit is a unit with or without processes.
func simUnit(there bool) unit {
	if there {
		return unit{Load: "loaded", Active: "active"}
	}
	return unit{Load: "loaded", Active: "inactive"}
}

func (p simRedisServer) unitNames() []string { return nil }

func (p simRedisServer) look(context.Context) (redisSeen, error) {
	seen := redisSeen{redisReport: p.report(), unit: simUnit(p.r.servers[p.a.n.index] != nil)}
	p.a.looked()
	return seen, nil
}

func (p simRedisServer) report() redisReport {
	i := p.a.n.index
	s, d := p.r.servers[i], p.r.disks[i]
	seen := redisReport{HasData: d.member, Founder: d.founder, Epoch: d.epoch}
	if s == nil || !s.up {
		return seen
	}
	seen.Running, seen.Loading, seen.Eligible = true, s.loading, s.priority != 0
	if s.follows >= 0 {
		seen.Role, seen.Master, seen.Synced = "slave", p.r.ip(s.follows), s.linked
		return seen
	}
	seen.Role = "master"
	for _, o := range p.r.servers {
		if o != nil && o.follows == p.r.of(p.a.n) && o.linked {
			seen.Replicas++
		}
	}
	return seen
}

func (p simRedisServer) allow(context.Context) error {
	return p.a.act("let Sentinel choose the node", 0, func() error {
		s := p.r.servers[p.a.n.index]
		if s == nil {
			return errors.New("no answer from Redis")
		}
		s.priority = 100
		return nil
	})
}

func (p simRedisServer) mark(m member) error {
	n, r := p.a.n, p.r
	d := r.disks[n.index]
	if !m.Founder {
		return p.a.act("note that the data is the cluster's", 0, func() error { d.member, d.founder, d.epoch = true, false, 0; return nil })
	}
	return p.a.act("note that this is the first master", 0, func() error {
		for i, o := range r.disks {
			if o.head != nil && o.member && !r.w.nodes[i].given {
				r.w.fail("%s becomes the first master, and %s has data", n.peer.Name, r.w.nodes[i].peer.Name)
			}
		}
		d.member, d.founder, d.epoch = true, true, m.Epoch
		return nil
	})
}

func (p simRedisServer) start(_ context.Context, master string, hasData bool) error {
	n, r := p.a.n, p.r
	d := r.disks[n.index]
	p.a.act("configure", 0, func() error {
		if d.follows, d.priority = r.place(master), 100; master != "" && !hasData {
			d.priority = 0
		}
		return nil
	})
	return p.a.act("start Redis", 0, func() error {
		if d.founder && d.head == nil && d.follows < 0 {
			d.head = &txn{history: "redis"}
		}
		r.startServer(n)
		return nil
	})
}

func (p simRedisServer) stop(context.Context) error {
	return p.a.act("stop Redis", 0, func() error { p.r.servers[p.a.n.index] = nil; return nil })
}

func (p simSentinel) stop(context.Context) error {
	return p.a.act("stop Sentinel", 0, func() error { p.r.sentinels[p.a.n.index] = nil; return nil })
}

func (p simSentinel) unitNames() []string { return nil }

func (p simSentinel) look(context.Context) (sentinelSeen, error) {
	seen := sentinelSeen{sentinelReport: p.report(), unit: simUnit(p.r.sentinels[p.a.n.index] != nil)}
	p.a.looked()
	return seen, nil
}

func (p simSentinel) report() (seen sentinelReport) {
	i := p.a.n.index
	s, f := p.r.sentinels[i], p.r.disks[i].sentinel
	if f == nil {
		return seen
	}
	seen.Master, seen.Epoch = p.r.ip(f.master), f.epoch
	if s == nil || !s.up {
		return seen
	}
	seen.Running, seen.Down, seen.Others = true, s.down || s.failover != 0, len(f.peers)
	usable := 1
	for j := range f.peers {
		if p.r.talks(s.n, j) {
			usable++
		}
	}
	if usable < max(p.r.quorum(s.n), (len(f.peers)+1)/2+1) {
		seen.Quorum = "not enough Sentinels"
	}
	return seen
}

func (p simSentinel) start(_ context.Context, master string, view redisView) error {
	n, r := p.a.n, p.r
	if master != "" {
		p.a.act("configure Sentinel", 0, func() error {
			f := &sentinelFile{master: r.place(master), leader: -1, servers: map[int]bool{}, peers: map[int]int{}}
			f.epoch = view.epoch(master) // firstEpoch
			f.current = f.epoch
			for _, m := range view.members { // sentinelPeers
				place := r.place(m.IP)
				if place != f.master {
					f.servers[place] = true
				}
				if i := r.w.named(m.Name).index; i != n.index {
					f.peers[i] = place
				}
			}
			r.disks[n.index].sentinel = f
			return nil
		})
	} else if !r.stored { // correctSentinelConfig
		f := r.disks[n.index].sentinel
		f.master, f.servers, f.peers = r.corrected(f, view)
	}
	return p.a.act("start Sentinel", 0, func() error { r.startSentinel(n); return nil })
}

// corrected returns what a Sentinel's file should have.
func (r *redisModel) corrected(f *sentinelFile, view redisView) (master int, servers map[int]bool, peers map[int]int) {
	master, servers, peers = r.place(view.present(r.ip(f.master))), map[int]bool{}, map[int]int{}
	for _, place := range slices.Sorted(maps.Keys(f.servers)) {
		if now := view.now[r.ip(place)]; now != "" && r.place(now) != master {
			servers[r.place(now)] = true
		}
	}
	for _, i := range slices.Sorted(maps.Keys(f.peers)) {
		if slices.ContainsFunc(view.members, func(m redisMember) bool { return m.Name == r.w.nodes[i].peer.Name }) {
			peers[i] = r.place(view.present(r.ip(f.peers[i])))
		}
	}
	return master, servers, peers
}

func (p simSentinel) outdated(view redisView) (bool, error) {
	f := p.r.disks[p.a.n.index].sentinel
	master, servers, peers := p.r.corrected(f, view)
	return master != f.master || !maps.Equal(servers, f.servers) || !maps.Equal(peers, f.peers), nil
}

func (p simSentinel) failover(context.Context) error {
	r, i := p.r, p.a.n.index
	return p.a.act("have Sentinel choose another master", 0, func() error {
		s := r.sentinels[i]
		if s == nil || !s.up {
			return errors.New("no answer from Sentinel")
		}
		if s.failover == 0 {
			f := r.disks[i].sentinel
			f.current++
			s.failover, s.promoted, s.began, s.forced = f.current, -1, r.w.now, true
		}
		return nil
	})
}

func TestSimRedis(t *testing.T) { runSim(t, simRedis) }

// simRedisChanges has changes of the members as well, and of their addresses.
var simRedisChanges = func() *simKind {
	k := simRedis.with(changed, 40)
	k.change, k.spares = changed, 2
	return k
}()

func TestSimRedisChanges(t *testing.T) { runSim(t, simRedisChanges) }

// simRedisRenumbered has moves to another network: all members get other addresses while all are off.
var simRedisRenumbered = func() *simKind {
	k := simRedisChanges.with(renumbered, 10)
	k.change = renumbered
	return k
}()

func TestSimRedisRenumbered(t *testing.T) { runSim(t, simRedisRenumbered) }

// bitnami/charts 24380 and 8878: when all pods started at once, each Sentinel asked only itself, and its node became a
// master.
func TestSimParallelStart(t *testing.T) {
	scenario(t, simRedis, 3)
}

// redis-ha 410: after all nodes had been off, none became the master.
func TestSimNoMasterAfterOutage(t *testing.T) {
	scenario(t, simRedis, 3,
		fault{at: 30 * time.Second, kind: outage, lasts: 5 * time.Second},
		fault{at: 90 * time.Second, kind: crash, node: 0, lasts: 20 * time.Second},
		fault{at: 130 * time.Second, kind: outage, lasts: 5 * time.Second})
}

// The last replica with data lacked one vote: the Sentinel of a replaced node waited for the data of a master that no
// longer existed.
func TestSimMasterDiesBeforeReplacedNodeHasData(t *testing.T) {
	scenario(t, simRedis, 3,
		fault{at: 60 * time.Second, kind: blankDisk, node: 2, lasts: 10 * time.Second},
		fault{at: 70 * time.Second, kind: gone, node: 0, lasts: forever})
}

// The master was replaced: the others elected nobody without its Sentinel, which waited for its Redis.
func TestSimMasterReplacedAndOneGone(t *testing.T) {
	scenario(t, simRedis, 3,
		fault{at: 80 * time.Second, kind: blankDisk, node: 0, lasts: 30 * time.Second},
		fault{at: 85 * time.Second, kind: gone, node: 1, lasts: forever})
}

// The agent dies between letting Sentinel promote its node and recording the reason, and Sentinel promotes the node.
func TestSimChosenBeforeItIsNoted(t *testing.T) {
	scenario(t, simRedis, 3,
		fault{at: 0, kind: stepAgent, node: 1, arg: 4, lasts: 20 * time.Second},
		fault{at: 20 * time.Second, kind: crash, node: 0, lasts: 20 * time.Second})
}

// The first master was lost before the Sentinels knew each other, or before any replica had data.
func TestSimFirstMasterReplaced(t *testing.T) {
	scenario(t, simRedis, 3, fault{at: 7 * time.Second, kind: blankDisk, node: 0, lasts: 2 * time.Second})
}

// The master came back as a replica of another one, which lost its disk before the Sentinel of the first had heard of it. All Sentinels
// had the first as the master then, and could promote nobody.
var lastIsReplica = []fault{
	{at: 60 * time.Second, kind: crash, node: 0, lasts: 30 * time.Second},
	{at: 75 * time.Second, kind: blankDisk, node: 2, lasts: 60 * time.Second},
	{at: 93 * time.Second, kind: blankDisk, node: 1, lasts: 20 * time.Second},
}

func TestSimLastWithDataIsReplica(t *testing.T) { scenario(t, simRedis, 3, lastIsReplica...) }

// The master restarts when only one other node is left, whose Sentinel finds it down and can promote nobody.
var oneSentinelIsLeft = []fault{
	{at: 60 * time.Second, kind: gone, node: 2, lasts: forever},
	{at: 60 * time.Second, kind: crash, node: 0, lasts: 10 * time.Second},
}

func TestSimOneSentinelIsLeft(t *testing.T) { scenario(t, simRedis, 3, oneSentinelIsLeft...) }

// A member is added, and is lost before all have heard of it. The master that came back then waited for two Sentinels whose quorum was
// three already.
var newMemberIsLost = []fault{
	{at: 60 * time.Second, kind: changed, arg: 4}, // a fourth node
	{at: 100 * time.Second, kind: gone, node: 3, lasts: forever},
	{at: 103 * time.Second, kind: crash, node: 0, lasts: 15 * time.Second},
}

func TestSimNewMemberIsLost(t *testing.T) { scenario(t, simRedisChanges, 3, newMemberIsLost...) }

// Sentinels chose a master while a node was away. The chosen one's disk is lost, and then that of the only node that knows of the
// choice. The Sentinel of the one that was away comes back with the master of before, and the new one of the chosen node must not have
// the same epoch.
func TestSimChoiceIsLost(t *testing.T) {
	scenario(t, simRedis, 3,
		fault{at: 80 * time.Second, kind: crash, node: 0, lasts: 42 * time.Second},
		fault{at: 120 * time.Second, kind: blankDisk, node: 1, lasts: time.Second},
		fault{at: 122 * time.Second, kind: blankDisk, node: 2, lasts: 12 * time.Second})
}

// The only node with data was given up, and the others started without it. When it returned, its Sentinel had a
// configuration with the same epoch as theirs, and kept it.
func TestSimGivenUpMasterComesBack(t *testing.T) {
	scenario(t, simRedis, 3,
		fault{at: 80 * time.Second, kind: crash, node: 2, lasts: 30 * time.Second},
		fault{at: 90 * time.Second, kind: blankDisk, node: 2, lasts: 10 * time.Second},
		fault{at: 100 * time.Second, kind: givenUp, node: 0, lasts: 80 * time.Second},
		fault{at: 110 * time.Second, kind: blankDisk, node: 1, lasts: 20 * time.Second})
}

// Two of three nodes are given up: the third continues alone, even if it was a replica, and whether or not its servers
// were running. When the two return, they become replicas.
func TestSimRedisGoesOnAlone(t *testing.T) {
	for name, outage := range map[string]bool{"running": false, "after an outage": true} {
		for alone := range 3 {
			for seed := range uint64(20) {
				w := newSimWorld(simRedis, history{seed: seed, nodes: 3})
				r := w.model.(*redisModel)
				w.in(0, func() {
					for _, n := range w.nodes {
						n.powerOn()
					}
				})
				if err := w.runTo(60 * time.Second); err != nil {
					t.Fatal(err)
				}
				for i, n := range w.nodes {
					if i != alone || outage {
						n.powerOff(false)
					}
				}
				if outage {
					w.nodes[alone].powerOn()
				}
				master := func() bool {
					s := r.servers[alone]
					return s != nil && s.up && s.follows < 0 && r.disks[alone].head != nil
				}
				for i := 0; i < 60 && !master(); i++ {
					if err := w.runTo(w.now + 2*time.Second); err != nil {
						t.Fatal(err)
					}
					w.nodes[alone].decideWithout("")
				}
				head := r.disks[alone].head
				if !master() {
					t.Fatalf("%s, node %d, seed %d: it is no master: %v, %v", name, alone+1, seed, w.nodes[alone].agent.status("redis"), w.nodes[alone].agent.status("sentinel"))
				}
				for i, n := range w.nodes {
					if i != alone {
						n.powerOn()
					}
				}
				if err := w.settle(); err != nil {
					t.Fatalf("%s, node %d, seed %d: %v", name, alone+1, seed, err)
				}
				for i, d := range r.disks {
					if !d.head.has(head) {
						t.Fatalf("%s, node %d, seed %d: node %d lacks what was written after the decision", name, alone+1, seed, i+1)
					}
				}
				for _, n := range w.nodes {
					n.endAgent()
				}
			}
		}
	}
}

// redisMutant changes the views of decideRedis and decideSentinel, and the result of decideRedis. Either may be nil.
func redisMutant(name string, view func(v *redisView), step func(v redisView, s redisStep, master string) (redisStep, string)) mutant {
	return mutant{name: name, apply: func(w *simWorld) {
		r := w.model.(*redisModel)
		change := func(v redisView) redisView {
			v.members = slices.Clone(v.members)
			if view != nil {
				view(&v)
			}
			return v
		}
		r.decide = func(v redisView) (redisStep, string, facts.Status) {
			s, master, status := decideRedis(change(v))
			if step != nil {
				s, master = step(v, s, master)
			}
			return s, master, status
		}
		r.decideSentinel = func(seen sentinelReport, server redisReport, v redisView) (sentinelStep, string, facts.Status) {
			return decideSentinel(seen, server, change(v))
		}
	}}
}

func TestSimRedisMutants(t *testing.T) {
	hear := func(v *redisView) {
		for i := range v.members {
			v.members[i].Heard = true
		}
	}
	sentinel := func(name string, decide func(seen sentinelReport, server redisReport, v redisView) (sentinelStep, string, facts.Status)) mutant {
		return mutant{name: name, apply: func(w *simWorld) { w.model.(*redisModel).decideSentinel = decide }}
	}
	killAll(t, simRedis, []mutant{
		redisMutant("silent nodes have nothing", hear, nil),
		redisMutant("a minority is believed", func(v *redisView) {
			formed := slices.ContainsFunc(v.members, func(m redisMember) bool { return m.Heard && (m.HasData || m.sentinel.Master != "") })
			if formed {
				hear(v)
			}
		}, nil),
		redisMutant("every node becomes a first master", nil, func(v redisView, s redisStep, master string) (redisStep, string) {
			if s == redisFollow && !v.members[v.self].HasData {
				return redisFound, ""
			}
			return s, master
		}),
		redisMutant("the lowest node leads, whatever it has", nil, func(v redisView, s redisStep, master string) (redisStep, string) {
			if v.self == 0 && (s == redisFollow || s == redisWait && !v.members[0].Running && v.members[0].Heard) {
				return redisLead, ""
			}
			return s, master
		}),
		redisMutant("an empty node may lead", func(v *redisView) {
			if m := &v.members[v.self]; !m.Running && m.sentinel.Master == "" {
				m.HasData = true
			}
		}, nil),
		redisMutant("each node believes itself", nil, func(v redisView, s redisStep, master string) (redisStep, string) {
			if s == redisFollow {
				return redisLead, ""
			}
			return s, master
		}),
		redisMutant("the oldest configuration is believed", func(v *redisView) {
			for i := range v.members {
				m := &v.members[i]
				m.sentinel.Epoch = 1<<20 - m.sentinel.Epoch
				if i != v.self {
					m.Running = false
				}
			}
		}, nil),
		redisMutant("complete data is never noted", nil, func(_ redisView, s redisStep, master string) (redisStep, string) {
			if s == redisAllow || s == redisBelongs {
				return redisWait, ""
			}
			return s, master
		}),
		redisMutant("complete data is noted before Sentinel may choose the node", nil, func(v redisView, s redisStep, master string) (redisStep, string) {
			if s == redisAllow {
				return redisBelongs, ""
			}
			return s, master
		}),
		redisMutant("a single Sentinel is waited for", func(v *redisView) {
			for i := range v.members {
				v.members[i].sentinel.Others, v.members[i].sentinel.Quorum = 0, ""
			}
		}, nil).shownBy(oneSentinelIsLeft),
		redisMutant("the last with data stays a replica", nil, func(v redisView, s redisStep, master string) (redisStep, string) {
			if s == redisStop && !v.leaves {
				return redisWait, ""
			}
			return s, master
		}).shownBy(lastIsReplica),
		sentinel("each Sentinel watches its own node", func(seen sentinelReport, server redisReport, v redisView) (sentinelStep, string, facts.Status) {
			start, master, status := decideSentinel(seen, server, v)
			if master != "" {
				master = v.members[v.self].IP
			}
			return start, master, status
		}),
		sentinel("a Sentinel is never started again", func(seen sentinelReport, server redisReport, v redisView) (sentinelStep, string, facts.Status) {
			step, master, status := decideSentinel(seen, server, v)
			if step == sentinelStart && master == "" {
				step = sentinelWait
			}
			return step, master, status
		}),
		sentinel("a Sentinel waits for data", func(seen sentinelReport, server redisReport, v redisView) (sentinelStep, string, facts.Status) {
			start, master, status := decideSentinel(seen, server, v)
			if start == sentinelStart && seen.Master == "" && !server.HasData {
				return sentinelWait, "", waitf("for data")
			}
			return start, master, status
		}),
	})
}

func TestSimRedisChangesMutants(t *testing.T) {
	told := func(name string, change func(w *World)) mutant {
		return mutant{name: name, apply: func(w *simWorld) { w.model.(*redisModel).change = change }}.among(changed, changed, crash, outage, blankDisk, reboot, isolated, split)
	}
	killAll(t, simRedisChanges, []mutant{
		told("only the node's own seed says who is a member", func(w *World) {
			w.Joint = facts.Joint{Number: w.Joint.Number, InUse: []facts.Membership{ensemble.Own(0, w.Self, w.Peers)}}
		}),
		redisMutant("Sentinels without a quorum are waited for", func(v *redisView) {
			for i := range v.members {
				v.members[i].sentinel.Quorum = ""
			}
		}, nil).shownBy(newMemberIsLost),
		{name: "a node that left goes on", apply: func(w *simWorld) {
			r := w.model.(*redisModel)
			r.decide = func(v redisView) (redisStep, string, facts.Status) {
				v.leaves = false
				return decideRedis(v)
			}
		}},
	})
}

func TestSimRedisRenumberedMutants(t *testing.T) {
	model := func(name string, apply func(r *redisModel)) mutant {
		return mutant{name: name, apply: func(w *simWorld) { apply(w.model.(*redisModel)) }}.among(renumberedFaults...)
	}
	killAll(t, simRedisRenumbered, []mutant{
		model("who has moved counts once heard", func(r *redisModel) { r.change = onlyHeard }),
		mutant{name: "whose an address was is forgotten with the root disk", apply: func(w *simWorld) { w.forgets = true }}.among(renumbered),
		model("whose an address was is forgotten too early", func(r *redisModel) { r.early = true }),
		model("Sentinels start with the addresses that they have stored", func(r *redisModel) { r.stored = true }),
		model("a Sentinel that watches a former address goes on", func(r *redisModel) {
			r.decideSentinel = func(seen sentinelReport, server redisReport, v redisView) (sentinelStep, string, facts.Status) {
				seen.stale = false
				return decideSentinel(seen, server, v)
			}
		}),
	})
}

// A planned outage: nobody writes any more, all are turned off, and get other addresses. What was written last is there again.
func TestSimRedisRenumberedLosesNothing(t *testing.T) {
	for seed := range uint64(40) {
		w := newSimWorld(simRedisRenumbered, history{seed: seed, nodes: 3})
		r := w.model.(*redisModel)
		w.in(0, func() {
			for _, n := range w.nodes[:3] {
				n.powerOn()
			}
		})
		w.in(60*time.Second, func() { r.quiet = true })
		var head *txn
		w.in(65*time.Second, func() {
			for _, d := range r.disks {
				if d.head.reach() > head.reach() {
					head = d.head
				}
			}
			w.renumber(int(seed))
		})
		err := w.runTo(70 * time.Second)
		if err == nil {
			err = w.settle()
		}
		if err != nil || head.reach() < 1 {
			t.Fatalf("seed %d: %v, %d writes", seed, err, head.reach())
		}
		for i, n := range w.nodes[:3] {
			if !r.disks[i].head.has(head) || n.network == "10.0" {
				t.Errorf("seed %d: %s at %s lacks what was written before the outage", seed, n.peer.Name, n.peer.IP)
			}
		}
		for _, n := range w.nodes {
			n.endAgent()
		}
	}
}

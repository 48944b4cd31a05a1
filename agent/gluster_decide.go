package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// glusterReport is what a server tells its peers and the volume's clients.
type glusterReport struct {
	// UUID and OpVersion are from glusterd.info; empty and 0: glusterd has never run here.
	UUID      string         `json:"uuid,omitempty"`
	OpVersion int            `json:"op_version,omitempty"`
	Used      bool           `json:"used,omitempty"` // glusterd knows peers or volumes
	Pool      []string       `json:"pool,omitempty"` // UUIDs of the peers that glusterd knows
	Running   bool           `json:"running"`        // glusterd answers
	Fault     string         `json:"fault,omitempty"`
	Volume    *glusterVolume `json:"volume,omitempty"`
	Brick     brickState     `json:"brick"`
	BrickID   string         `json:"brick_id,omitempty"` // the volume that the brick says it belongs to
	// Stored lists the bricks of the volume that glusterd has stored, and reads when it starts, if these are not those of Volume: it has
	// taken part in a change that failed half-way.
	Stored []string `json:"stored,omitempty"`
	// Fresh: the agent made the brick's folder, and the volume that glusterd has stored has not had this brick since.
	Fresh   bool `json:"fresh,omitempty"`
	Online  bool `json:"online"`  // the brick's process accepts connections
	Pending int  `json:"pending"` // entries that other bricks lack, as this brick knows
	// Blames lists the bricks, by id, that this brick has marked as lacking everything, and Lacks those that lack anything, as far as this
	// brick knows; anyBrick: it is not known which.
	Blames []int `json:"blames,omitempty"`
	Lacks  []int `json:"lacks,omitempty"`
}

const anyBrick = -1

// brickState is what is in the brick's folder.
type brickState string

const (
	brickNone  brickState = "none"  // there is no folder
	brickBare  brickState = "bare"  // the folder is empty
	brickEmpty brickState = "empty" // it is prepared for a volume, which has stored nothing in it yet
	brickData  brickState = "data"
)

// glusterVolume is a volume as glusterd knows it.
type glusterVolume struct {
	ID     string   `json:"id"`
	Status int      `json:"status"` // 0: created, 1: started, 2: stopped
	Bricks []string `json:"bricks"` // HOST:PATH
	// IDs are the bricks' ids, in the same order: what one brick knows of another is noted under its id. A volume that has only the bricks
	// that it was made with numbers them in order. After that, a new one gets the highest id plus 1, and others keep theirs.
	IDs     []int             `json:"brick_ids,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	// Version counts the changes that this server has stored; 0: not known. On connecting, servers take over the latest from each other.
	Version int `json:"version,omitempty"`
}

const (
	volumeCreated = 0
	volumeStarted = 1
)

// id returns the id of the brick with an index.
func (v *glusterVolume) id(i int) int {
	if len(v.IDs) == len(v.Bricks) {
		return v.IDs[i]
	}
	return i // reported by an earlier imagegen, which never changes a volume's bricks
}

// ids returns the ids of the bricks.
func (v *glusterVolume) ids() (ids []int) {
	for i := range v.Bricks {
		ids = append(ids, v.id(i))
	}
	return ids
}

// hosts returns the servers that have the bricks.
func (v *glusterVolume) hosts() (hosts []string) {
	for _, b := range v.Bricks {
		host, _, _ := strings.Cut(b, ":")
		hosts = append(hosts, host)
	}
	return hosts
}

// nextID is the id that the next new brick will get.
func (v *glusterVolume) nextID() int {
	return slices.Max(append(v.ids(), -1)) + 1
}

// index is that of a server's brick; below 0: it has none.
func (v *glusterVolume) index(server, brick string) int {
	return slices.Index(v.Bricks, server+":"+brick)
}

// majority tells whether every write is on bricks that are a quorum, and these note what the others lack.
func (v *glusterVolume) majority() bool {
	return len(v.Bricks) > 2 && v.Options["cluster.quorum-type"] != "fixed"
}

// quorum tells whether clients can write with the bricks of some servers alone: a majority of the bricks, or half of them with the first.
func (v *glusterVolume) quorum(some func(server string) bool) bool {
	n := 0
	for _, host := range v.hosts() {
		if some(host) {
			n++
		}
	}
	return 2*n > len(v.Bricks) || 2*n == len(v.Bricks) && n > 0 && some(v.hosts()[0])
}

func (v *glusterVolume) has(server, brick string) bool { return v.index(server, brick) >= 0 }

// serves tells whether this server does its part for the volume's clients.
func (r glusterReport) serves() bool {
	return r.Running && r.Online && r.Volume != nil && r.Volume.Status == volumeStarted
}

// lost tells whether the server's brick is in the volume but blank: its disk was replaced. The volume's id alone is no
// proof of the contrary: glusterd puts it on a bare folder when a peer starts its own brick by force.
func (r glusterReport) lost() bool {
	return r.Volume != nil && r.Brick != brickData && (r.Brick != brickEmpty || r.BrickID != r.Volume.ID)
}

// glusterView is all that a decision is based on.
type glusterView struct {
	self   string
	nodes  []string          // the servers of all memberships in use, self included; see ensemble.Members
	uuids  map[string]string // by node
	params *facts.GlusterParams
	own    glusterReport
	heard  map[string]glusterReport // peers that answered
	// members are the same servers; what an operator has decided about them is known here.
	members []ensemble.Member
	// target lists the servers that the volume is to have, in the spec's order; nil: not all of these conform to the newest generation.
	target []string
	joint  bool   // several memberships are in use
	agreed bool   // all members count the same memberships; those that were given up are not asked
	leaves bool   // the cluster's configuration does not name self any more, and those that it names need it no longer
	unit   string // what the unit is doing; "active" or systemd's word
	// How long steps must wait that must not be repeated too soon.
	startHeld time.Duration // starting the unit, or the brick
	healHeld  time.Duration
	applied   map[string]string
	staleHeld time.Duration // restarting a stale glusterd
	// unclaimedFor is how long nobody has claimed this server's brick.
	unclaimedFor time.Duration
	// whole: since this node's agent started, nothing was left to heal at least once. Later there may be, briefly with each
	// write, or while another server is away.
	whole bool
}

// report returns what a server reports; known is false if it was not heard.
func (v glusterView) report(name string) (r glusterReport, known bool) {
	if name == v.self {
		return v.own, true
	}
	r, known = v.heard[name]
	return r, known
}

func (v glusterView) givenUp(name string) bool {
	return slices.ContainsFunc(v.members, func(m ensemble.Member) bool { return m.Name == name && m.GivenUp })
}

// later tells whether a server has not been heard since it is to be one. Of new servers, each starts once the one before is ready.
func (v glusterView) later(server string) bool {
	return v.joint && slices.ContainsFunc(v.members, func(m ensemble.Member) bool { return m.Name == server && m.SilentNewcomer() })
}

// servers returns the servers that have a brick in the volume; those that are not members come last.
func (v glusterView) servers() []string {
	vol := v.own.Volume
	servers := slices.DeleteFunc(slices.Clone(v.nodes), func(n string) bool { return !vol.has(n, v.params.Brick) })
	for _, host := range vol.hosts() {
		if !slices.Contains(servers, host) {
			servers = append(servers, host)
		}
	}
	return servers
}

// pool returns the servers whom glusterd must know before it starts. A new one is to know all that there were. One that has run
// before knows whom it must: others may be gone from the pool, or not be in it yet.
func (v glusterView) pool() (pool []string) {
	fresh := v.own.UUID != v.uuids[v.self]
	all := uint64(0)
	for _, m := range v.members {
		all |= m.In
	}
	for _, m := range v.members {
		if m.Name != v.self && (m.In == all || fresh && m.In&1 == 1) {
			pool = append(pool, m.Name)
		}
	}
	return pool
}

// glusterStep is what to do next.
type glusterStep struct {
	do      glusterDo
	version int      // for glusterIdentify: the pool's operating version; 0: the highest that glusterd knows
	brick   int      // for glusterBlame: id of the brick
	options []string // for glusterSet: alternately names and values
	servers []string // for glusterIdentify: those to be in the pool; for glusterCreate: those that get a brick
	server  string   // that is added or removed
	force   bool     // for glusterDetach: although it does not answer
	// replicas is how many bricks the volume has after glusterAdd or glusterRemove.
	replicas int
}

type glusterDo string

const (
	glusterNothing   glusterDo = ""
	glusterIdentify  glusterDo = "identify" // write glusterd.info and the pool
	glusterStartUnit glusterDo = "start glusterd"
	glusterMakeBrick glusterDo = "make the brick's folder"
	glusterClear     glusterDo = "clear the brick"
	glusterKeep      glusterDo = "note that the brick is the volume's"
	glusterCreate    glusterDo = "create the volume"
	glusterSet       glusterDo = "set options"
	glusterStart     glusterDo = "start the volume"
	glusterBlame     glusterDo = "note that a brick lacks everything"
	glusterRestore   glusterDo = "give the blank brick its identity"
	glusterForce     glusterDo = "start the brick"
	glusterHeal      glusterDo = "heal"
	glusterProbe     glusterDo = "take a server into the pool"
	glusterAdd       glusterDo = "add a brick"
	glusterRemove    glusterDo = "remove a brick"
	glusterDetach    glusterDo = "remove a server from the pool"
	glusterStop      glusterDo = "stop glusterd"
)

// decideGluster chooses the next step.
func decideGluster(v glusterView) (glusterStep, facts.Status) {
	own := v.own
	switch running := own.Running || v.unit != "inactive" && v.unit != "failed"; {
	case v.leaves && running:
		return glusterStep{do: glusterStop}, workf("stopping: the cluster goes on without this node")
	case v.leaves:
		return glusterStep{}, stopf("this node is not a member any more")
	}
	if own.UUID != v.uuids[v.self] && own.UUID != "" && own.Used {
		return glusterStep{}, stopf("glusterd's state in %s is of another server (UUID %s, this node's is %s); attach the node's own data disk", v.params.WorkDir, own.UUID, v.uuids[v.self])
	}
	if !own.Running {
		pool := v.pool()
		inPool := !slices.ContainsFunc(pool, func(n string) bool { return !slices.Contains(own.Pool, v.uuids[n]) })
		switch {
		case v.unit != "inactive" && v.unit != "failed":
			return glusterStep{}, workf("%s is %s; %s", v.params.Unit, v.unit, cmp.Or(own.Fault, "it does not answer yet"))
		case own.UUID != v.uuids[v.self] || !inPool:
			return glusterStep{do: glusterIdentify, version: poolVersion(v.heard), servers: pool}, workf("writing down the pool of servers")
		case v.startHeld > 0 && v.unit == "failed":
			return glusterStep{}, ensemble.Held(fmt.Sprintf("%s failed: %s", v.params.Unit, own.Fault), "start", v.startHeld)
		case v.startHeld > 0:
			return glusterStep{}, workf("starting %s", v.params.Unit)
		}
		return glusterStep{do: glusterStartUnit}, workf("starting %s", v.params.Unit)
	}
	for name, r := range v.heard {
		if r.Volume != nil && own.Volume != nil && r.Volume.ID != own.Volume.ID {
			return glusterStep{}, stopf("volume %s exists twice: %s has %s, this node has %s", v.params.Volume, name, r.Volume.ID, own.Volume.ID)
		}
	}
	if step, status := decidePool(v); step.do != glusterNothing {
		return step, status
	}
	if own.Volume != nil {
		return decideVolume(v)
	}
	return decideForming(v)
}

// decidePool takes a new server into the pool of those that run, or removes from it who is no member and has no brick. One server does
// it: the first of those that are concerned.
func decidePool(v glusterView) (glusterStep, facts.Status) {
	if !v.agreed || !slices.Contains(v.target, v.self) || v.find(glusterReport.unstored) != "" {
		return glusterStep{}, facts.Status{}
	}
	first := func(concerned func(r glusterReport) bool) bool {
		for _, n := range v.nodes {
			if r, heard := v.report(n); heard && r.Running && slices.Contains(v.target, n) && concerned(r) {
				return n == v.self
			}
		}
		return false
	}
	for _, n := range v.target {
		r, heard := v.report(n)
		lacking := func(o glusterReport) bool { return o.UUID != v.uuids[n] && !slices.Contains(o.Pool, v.uuids[n]) }
		if heard && r.Running && slices.Contains(r.Pool, v.uuids[v.self]) && first(lacking) {
			return glusterStep{do: glusterProbe, server: n}, workf("taking %s into the pool of servers", n)
		}
	}
	// Servers that leave may be out of reach of the others' glusterd. Then they do not learn that their bricks are gone, and while there is
	// one of them in the pool, another can be removed by force only.
	pool := v.pooled()
	leaving := slices.DeleteFunc(slices.Clone(pool), func(n string) bool { return slices.Contains(v.target, n) })
	current := slices.DeleteFunc(slices.Clone(v.nodes), func(n string) bool {
		return !slices.Contains(v.target, n) && v.own.Volume != nil && !v.own.Volume.has(n, v.params.Brick)
	})
	for i, name := range pool {
		uuid := v.own.Pool[i]
		if !slices.Contains(leaving, name) || v.needed(name, current) || !first(func(o glusterReport) bool { return slices.Contains(o.Pool, uuid) }) {
			continue
		}
		r, heard := v.heard[name]
		return glusterStep{do: glusterDetach, server: uuid, force: !heard || !r.Running || len(leaving) > 1}, workf("removing %s from the pool of servers", name)
	}
	return glusterStep{}, facts.Status{}
}

// pooled returns the names of those in glusterd's pool; for one that is unknown, its UUID.
func (v glusterView) pooled() []string {
	pool := slices.Clone(v.own.Pool)
	for i, uuid := range pool {
		for _, n := range v.nodes {
			if v.uuids[n] == uuid {
				pool[i] = n
			}
		}
	}
	return pool
}

// needed tells whether a server has a brick in the volume, as far as some of the servers know.
func (v glusterView) needed(server string, by []string) bool {
	return slices.ContainsFunc(by, func(n string) bool {
		r, heard := v.report(n)
		return heard && r.Volume != nil && n != server && r.Volume.has(server, v.params.Brick)
	})
}

// poolVersion is the lowest operating version among the heard servers, 0 when there is none: a newer image must not
// raise it for servers that do not know it.
func poolVersion(heard map[string]glusterReport) int {
	low := 0
	for _, r := range heard {
		if r.OpVersion > 0 && (low == 0 || r.OpVersion < low) {
			low = r.OpVersion
		}
	}
	return low
}

// decideForming chooses the next step of a server that knows no volume.
func decideForming(v glusterView) (glusterStep, facts.Status) {
	own := v.own
	for _, n := range v.nodes {
		if r, ok := v.heard[n]; ok && r.Volume != nil {
			return glusterStep{}, waitf("for %s's glusterd to hand over volume %s", n, v.params.Volume)
		}
	}
	var missing, others, starting []string
	for _, n := range v.nodes {
		r, heard := v.report(n)
		member := v.target == nil || slices.Contains(v.target, n)
		switch {
		case !heard && v.later(n): // it is added later. It knows of no volume: it would have got it from the others
			continue
		case !heard && member:
			missing = append(missing, n)
			continue
		case !heard && v.givenUp(n):
			continue
		case !heard:
			others = append(others, n)
			continue
		case n != v.self && member && (!r.Running || r.Brick == brickNone):
			starting = append(starting, n)
			continue
		}
		if r.Brick == brickData {
			return glusterStep{}, stopf("brick %s on %s holds files (of volume %s), but no server that was heard knows a volume; restore %s on one of them", v.params.Brick, n, cmp.Or(r.BrickID, "none"), v.params.WorkDir)
		}
	}
	switch {
	case len(missing) > 0:
		// One of them may know the volume.
		return glusterStep{}, waitf("for %s (not heard) to create volume %s together", strings.Join(missing, ", "), v.params.Volume)
	case len(others) > 0:
		return glusterStep{}, ensemble.Await(v.members, others, ", who may know volume %s", v.params.Volume)
	case v.target == nil || v.joint && !v.agreed: // two might create a volume, each with other servers
		return glusterStep{}, waitf("for all servers to have the same configuration")
	case own.Brick == brickNone && slices.Contains(v.target, v.self):
		return glusterStep{do: glusterMakeBrick}, workf("making the brick's folder")
	case len(starting) > 0:
		return glusterStep{}, waitf("for %s to start glusterd and make the brick", strings.Join(starting, ", "))
	}
	if first := v.nodes[slices.IndexFunc(v.nodes, func(n string) bool { return slices.Contains(v.target, n) })]; first != v.self {
		return glusterStep{}, waitf("for %s to create volume %s", first, v.params.Volume)
	}
	return glusterStep{do: glusterCreate, servers: slices.DeleteFunc(slices.Clone(v.target), v.later)}, workf("creating volume %s", v.params.Volume)
}

// decideVolume chooses the next step of a server that knows the volume.
func decideVolume(v glusterView) (glusterStep, facts.Status) {
	own, vol := v.own, v.own.Volume
	index := vol.index(v.self, v.params.Brick)
	if index < 0 {
		return decideNewcomer(v)
	}
	restart, stale := decideStale(v)
	switch {
	case restart.do != glusterNothing:
		return restart, workf("%s", stale)
	case own.unstored() && !own.serves():
		return glusterStep{}, workf("%s", stale)
	case own.Fresh && !own.unstored() && own.BrickID == vol.ID:
		return glusterStep{do: glusterKeep}, workf("noting that the brick belongs to volume %s", v.params.Volume)
	}
	if own.BrickID != "" && own.BrickID != vol.ID && own.Brick == brickData {
		return glusterStep{}, stopf("brick %s holds files of another volume (%s, ours is %s)", v.params.Brick, own.BrickID, vol.ID)
	}
	if own.BrickID == "" && own.Brick == brickData {
		return glusterStep{}, stopf("brick %s holds files that no volume has stored; move them away", v.params.Brick)
	}
	if own.lost() {
		return decideLost(v, index)
	}
	servers := v.servers()
	online, pending := 0, own.Pending
	leader, blamed := true, false
	var away []string
	for _, n := range servers {
		r, heard := v.report(n)
		if heard && r.Running && slices.Index(servers, n) < slices.Index(servers, v.self) {
			leader = false
		}
		pending = max(pending, r.Pending)
		blamed = blamed || heard && slices.Contains(r.Blames, vol.id(index))
		if r.serves() {
			online++
		} else {
			away = append(away, n)
		}
		// Servers with data mark what a replaced server lacks before that server's brick may start. They do so again if the mark is not in
		// the index, and nothing would be healed: self-heal daemons remove the entry of a brick that is not in the volume yet.
		i := vol.index(n, v.params.Brick)
		noted := i >= 0 && slices.Contains(own.Blames, vol.id(i))
		if heard && i >= 0 && own.Brick == brickData && (r.lost() && !noted || noted && own.Pending == 0) {
			return glusterStep{do: glusterBlame, brick: vol.id(i)}, workf("noting that %s's brick is blank", n)
		}
	}
	unstored, behind := v.find(glusterReport.unstored), v.find(v.behind)
	if leader && unstored == "" && behind == "" {
		if options := optionsToSet(v); len(options) > 0 {
			return glusterStep{do: glusterSet, options: options}, workf("setting options of volume %s", v.params.Volume)
		}
	}
	switch {
	case vol.Status == volumeCreated && leader:
		return glusterStep{do: glusterStart}, workf("starting volume %s", v.params.Volume)
	case vol.Status == volumeCreated:
		return glusterStep{}, waitf("for volume %s to be started", v.params.Volume)
	case vol.Status != volumeStarted:
		return glusterStep{}, stopf("volume %s was stopped by an operator; gluster volume start %s", v.params.Volume, v.params.Volume)
	case !own.Online && v.startHeld > 0:
		return glusterStep{}, workf("the brick is starting")
	case !own.Online && unstored != "" && !v.poolHolds():
		return glusterStep{}, waitf("for %s's glusterd to store the volume as it knows it", unstored)
	case !own.Online && unstored != "":
		// A start by force makes all store what they know, which is not the same. glusterd starts the brick, too, when it starts.
		return glusterStep{do: glusterStop}, workf("restarting glusterd, to start the brick")
	case !own.Online:
		return glusterStep{do: glusterForce}, workf("starting the brick, which glusterd did not do by itself")
	}
	change, held, missing := decideChange(v, servers)
	if change.do != glusterNothing {
		return change, workf("%s", held)
	}
	detail := fmt.Sprintf("%d of %d bricks online", online, len(servers))
	if len(away) > 0 {
		detail += ", without " + strings.Join(away, ", ")
	}
	if pending > 0 {
		// A power of ten: each change of a status is a line on the console.
		bound := 10
		for bound <= pending {
			bound *= 10
		}
		detail += fmt.Sprintf(", under %d entries to heal", bound)
	}
	if v.staleHeld > changeLimit-20*time.Second {
		stale = "" // it is so for a moment with each change, and each change of a status is a line on the console
	}
	for _, why := range []string{stale, held} {
		if why != "" {
			detail += "; " + why
		}
	}
	step := glusterStep{}
	if pending > 0 && leader && len(away) == 0 && v.healHeld == 0 {
		step.do = glusterHeal
	}
	switch {
	case online <= len(servers)/2:
		return step, waitf("for a majority: %s", detail)
	case blamed || pending > 0 && !v.whole:
		// It serves, but losing another brick while the copies differ may lose data.
		return step, workf("catching up: %s", detail)
	}
	if held != "" && slices.ContainsFunc(v.members, func(m ensemble.Member) bool { return m.GivenUp }) {
		return step, workf("%s", detail) // a component that is ready forgets whom an operator has given up
	}
	return step, facts.Status{State: facts.Ready, Detail: detail, Missing: missing}
}

// changeLimit is how long a change of the volume's bricks may be under way. By then, glusterd has given up its locks, too (after 3 minutes).
const changeLimit = 200 * time.Second

// unstored tells whether glusterd has not stored the volume as it knows it.
func (r glusterReport) unstored() bool { return r.Running && r.Stored != nil }

// behind tells whether a server that stays has stored a later state of the volume.
func (v glusterView) behind(r glusterReport) bool {
	return r.Running && r.Volume != nil && r.Volume.Version > 0 && slices.ContainsFunc(v.nodes, func(n string) bool {
		o, heard := v.report(n)
		return heard && !v.isLeaving(n) && o.Running && o.Volume != nil && o.Volume.ID == r.Volume.ID && o.Volume.Version > r.Volume.Version
	})
}

// isLeaving tells whether a server is not to be one any more. Its glusterd may be out of reach of the others.
func (v glusterView) isLeaving(server string) bool {
	return v.target != nil && !slices.Contains(v.target, server)
}

// stale tells whether a server's glusterd has to be restarted, for what it knows of the volume. One that leaves may never learn more.
func (v glusterView) stale(server string, r glusterReport) bool {
	return r.unstored() || !v.isLeaving(server) && v.behind(r)
}

// find returns the first server that was heard and of which something is true; empty: none.
func (v glusterView) find(is func(r glusterReport) bool) string {
	for _, n := range v.nodes {
		if r, heard := v.report(n); heard && is(r) {
			return n
		}
	}
	return ""
}

// poolHolds tells whether glusterd is a majority of its pool without this server: else all would stop their bricks if it restarted.
func (v glusterView) poolHolds() bool {
	running := 0
	for _, n := range v.nodes {
		if r, heard := v.heard[n]; heard && r.Running && slices.Contains(v.own.Pool, v.uuids[n]) {
			running++
		}
	}
	return 2*running > len(v.own.Pool)+1
}

// decideStale restarts a glusterd that has missed a change, or has taken part in one that failed half-way: glusterd changes the volume in
// the memory of all servers first, and has all store it once each has done its part. Nothing else undoes that. One that restarts has what
// it has stored, or what a server that it connects to has stored later. It returns what it waits for as well.
func decideStale(v glusterView) (step glusterStep, held string) {
	own := v.own
	if !v.stale(v.self, own) {
		return glusterStep{}, ""
	}
	why := "glusterd has not stored the volume as it knows it"
	then := own.Stored // the bricks of the volume then
	if !own.unstored() {
		why, then = "glusterd knows an earlier state of the volume than others", nil
		version := 0
		for _, n := range v.nodes {
			if r, heard := v.report(n); heard && !v.isLeaving(n) && r.Volume != nil && r.Volume.Version > version {
				version, then = r.Volume.Version, r.Volume.Bricks
			}
		}
	}
	// Others that have a brick now and then, and stay, have to serve. A new one may wait for this server to note that its brick is blank.
	counts := func(brick string) bool {
		host, _, _ := strings.Cut(brick, ":")
		return slices.Contains(then, brick) && slices.Contains(own.Volume.Bricks, brick) && !v.isLeaving(host)
	}
	if v.staleHeld > 0 {
		return glusterStep{}, why + "; it is restarted if that lasts"
	}
	why = "restarting it, because " + why
	serving := func(n string, r glusterReport) bool { return r.serves() && slices.Contains(then, n+":"+v.params.Brick) }
	serves := serving(v.self, own)
	if !v.poolHolds() {
		return glusterStep{}, why + ", waits for a majority of the servers without this one"
	}
	// One at a time, those that do not serve first: their restart costs nothing.
	for _, n := range v.nodes {
		r, heard := v.report(n)
		if before := slices.Index(v.nodes, n) < slices.Index(v.nodes, v.self); n != v.self && heard && v.stale(n, r) && (serves && !serving(n, r) || before && serves == serving(n, r)) {
			return glusterStep{}, why + ", waits for " + n + " to do so"
		}
	}
	for _, n := range v.nodes {
		r, heard := v.report(n)
		switch {
		case !serves || !counts(n+":"+v.params.Brick) || v.givenUp(n):
		case !heard || !r.serves():
			return glusterStep{}, why + ", waits for " + n + " to serve"
		case slices.ContainsFunc(r.Lacks, func(id int) bool {
			i := slices.Index(r.Volume.ids(), id)
			return id == anyBrick || i >= 0 && counts(r.Volume.Bricks[i])
		}):
			return glusterStep{}, why + ", waits for all copies to be equal (" + n + " has entries to heal)"
		}
	}
	return glusterStep{do: glusterStop}, why
}

// unclaimed tells whether this server's brick was prepared for a volume, is in nobody's, and nobody can be about to add it. Every server
// must say so: one that is busy with a change does not answer.
func (v glusterView) unclaimed() bool {
	if v.own.Brick != brickData && v.own.BrickID == "" || !v.own.Running || v.own.Volume == nil || v.target == nil || !v.agreed {
		return false
	}
	for _, n := range v.nodes {
		r, heard := v.report(n)
		switch {
		case !heard && (v.givenUp(n) || v.isLeaving(n) || v.later(n)), heard && !r.Running && v.isLeaving(n):
		case !heard || !r.Running || v.stale(n, r) || r.Volume != nil && r.Volume.has(v.self, v.params.Brick):
			return false
		}
	}
	return true
}

// decideNewcomer is for a server without a brick in the volume: it comes, or it has left.
func decideNewcomer(v glusterView) (glusterStep, facts.Status) {
	own := v.own
	restart, stale := decideStale(v)
	switch {
	case stale != "":
		return restart, workf("%s", stale)
	case v.isLeaving(v.self):
		return glusterStep{}, waitf("for the others to go on without this node")
	case own.Brick == brickData && !own.Fresh:
		// Healing would complete these files, and not notice those that have changed since.
		return glusterStep{}, stopf("brick %s holds files (of volume %s), and volume %s is to get it as a new one; attach an empty data disk", v.params.Brick, cmp.Or(own.BrickID, "none"), v.params.Volume)
	case own.Brick == brickNone:
		return glusterStep{do: glusterMakeBrick}, workf("making the brick's folder")
	case own.Brick != brickData && own.BrickID == "":
		return glusterStep{}, waitf("for the other servers to add this node's brick to volume %s", v.params.Volume)
	case v.unclaimedFor < changeLimit:
		// glusterd prepares the brick before the volume has it. Clearing it now would make the change fail on this server alone.
		return glusterStep{}, waitf("for the other servers to finish adding this node's brick to volume %s", v.params.Volume)
	}
	return glusterStep{do: glusterClear}, workf("clearing what an interrupted change left in the brick")
}

// decideChange changes the volume's bricks by one, towards the servers that it is to have. It returns what it
// waits for as well, and the silent servers that an operator may give up.
func decideChange(v glusterView, servers []string) (step glusterStep, held, missing string) {
	vol := v.own.Volume
	find := func(in, without []string) string {
		for _, n := range in {
			if !slices.Contains(without, n) {
				return n
			}
		}
		return ""
	}
	if v.target == nil {
		return glusterStep{}, "", ""
	}
	silent := slices.DeleteFunc(slices.Clone(v.target), func(n string) bool { _, heard := v.report(n); return heard })
	add := cmp.Or(find(v.target, slices.Concat(servers, silent)), find(silent, servers))
	remove, detach := find(servers, v.target), find(v.pooled(), v.target)
	// One that leaves and does not serve goes before another comes: so no more bricks are needed for a majority than are there.
	for _, n := range servers {
		if r, heard := v.report(n); !slices.Contains(v.target, n) && !(heard && r.serves()) && vol.majority() {
			add, remove = "", n
		}
	}
	what := "removing " + detach + " from the pool of servers"
	switch {
	case add != "":
		what, remove = "adding the brick of "+add, ""
	case remove != "":
		what = "removing the brick of " + remove
	case detach == "":
		return glusterStep{}, "", ""
	}
	wait := func(format string, args ...any) (glusterStep, string, string) {
		return glusterStep{}, what + " waits for " + fmt.Sprintf(format, args...), missing
	}
	if !v.agreed {
		if leaves := cmp.Or(remove, detach); add == "" && slices.ContainsFunc(v.members, func(m ensemble.Member) bool { return m.Name == leaves && !m.Answers && !m.GivenUp }) {
			missing = leaves
			return wait("%s", leaves)
		}
		return wait("all servers to know the same configuration")
	}
	if add == "" && remove == "" {
		return wait("all to know that its brick is gone")
	}
	// What a brick lacks that leaves does not matter; what only it has would be lost. Where every write is on a majority, the ones that
	// stay know whether they have everything, whatever one that leaves knows. It may be out of their reach already: their
	// configuration does not name it any more.
	var stay []string
	for _, n := range servers {
		if r, heard := v.report(n); slices.Contains(v.target, n) || !v.givenUp(n) && (!heard || r.serves() || !vol.majority()) {
			stay = append(stay, n)
		}
	}
	for _, n := range v.nodes {
		if r, heard := v.report(n); heard && v.stale(n, r) {
			return wait("%s's glusterd to know and store the latest state of the volume", n)
		}
	}
	for _, n := range stay {
		r, heard := v.report(n)
		switch {
		case !heard || !r.serves() || r.Brick != brickData:
			return wait("%s to serve", n)
		case r.Volume.ID != vol.ID || !slices.Equal(r.Volume.Bricks, vol.Bricks):
			return wait("%s to know the volume as it is", n)
		case slices.ContainsFunc(vol.Bricks, func(b string) bool {
			host, _, _ := strings.Cut(b, ":")
			return (slices.Contains(v.target, host) || !slices.Contains(v.target, n)) && slices.Contains(r.Lacks, vol.id(slices.Index(vol.Bricks, b)))
		}), slices.Contains(r.Lacks, anyBrick):
			return wait("all copies to be equal (%s has entries to heal)", n)
		}
	}
	// Half of the bricks may have taken writes alone, if the first is one of them. Then each of them notes that all others lack something.
	if vol.quorum(func(n string) bool {
		r, heard := v.report(n)
		knows := heard && r.Running && r.Volume != nil && r.Volume.ID == vol.ID && r.Brick == brickData && !slices.Contains(r.Lacks, anyBrick)
		return !slices.Contains(stay, n) && !v.givenUp(n) && !(knows && slices.ContainsFunc(stay, func(s string) bool {
			return !slices.Contains(r.Lacks, vol.id(vol.index(s, v.params.Brick)))
		}))
	}) {
		return wait("those that leave to serve: they may have what the others lack")
	}
	changer := find(v.nodes, slices.DeleteFunc(slices.Clone(v.nodes), func(n string) bool {
		return slices.Contains(servers, n) && slices.Contains(v.target, n)
	}))
	if add == "" {
		if changer == v.self {
			return glusterStep{do: glusterRemove, server: remove, replicas: len(servers) - 1}, what, ""
		}
		return wait("%s", changer)
	}
	r, heard := v.heard[add]
	switch {
	case !heard || !r.Running || r.Volume == nil:
		return wait("%s's glusterd to join", add)
	case r.Volume.ID != vol.ID || !slices.Equal(r.Volume.Bricks, vol.Bricks):
		return wait("%s to know the volume as it is", add)
	case r.Brick != brickBare && r.Brick != brickEmpty || r.BrickID != "":
		return wait("%s to have an empty brick", add)
	}
	// If this is interrupted, the new brick may start without having been marked by glusterd as lacking everything.
	next := vol.nextID()
	if !slices.Contains(v.own.Blames, next) {
		return glusterStep{do: glusterBlame, brick: next}, "noting that the brick that " + add + " is to have is blank", ""
	}
	for _, n := range stay {
		if r, _ := v.report(n); !slices.Contains(r.Blames, next) {
			return wait("%s to note that it is blank", n)
		}
	}
	if changer != v.self {
		return wait("%s", changer)
	}
	return glusterStep{do: glusterAdd, server: add, replicas: len(servers) + 1}, what, ""
}

// decideLost chooses the next step of a server whose brick is blank while the volume exists. Every server must have noted
// what the brick lacks before it serves.
func decideLost(v glusterView, index int) (glusterStep, facts.Status) {
	var missing, silent, unaware []string
	vol := v.own.Volume
	for _, n := range v.servers() {
		r, ok := v.heard[n]
		switch {
		case n == v.self || !ok && v.givenUp(n):
		case ok && v.target != nil && !slices.Contains(v.target, n) && !r.serves() && !vol.quorum(func(o string) bool { return o == n || o == v.self || slices.Contains(unaware, o) }):
			// It may not know yet that this brick is in the volume, and leaves. No quorum is without one that does.
			unaware = append(unaware, n)
		case !ok:
			missing = append(missing, n)
		case r.Brick == brickData && !slices.Contains(r.Blames, vol.id(index)):
			silent = append(silent, n)
		}
	}
	switch {
	case len(silent) > 0:
		return glusterStep{}, waitf("for %s to note that this node's brick is blank", strings.Join(silent, ", "))
	case len(missing) > 0:
		// A server that is away now, and returns while those that have marked the brick are away, would take the half-filled
		// brick for the newer one: files would disappear.
		return glusterStep{}, ensemble.Await(v.members, missing, ", who must note that this node's brick is blank")
	}
	return glusterStep{do: glusterRestore}, workf("taking the blank brick back into volume %s", v.params.Volume)
}

// optionsToSet returns what differs from the volume's options, alternately names and values.
func optionsToSet(v glusterView) []string {
	want := maps.Clone(v.params.Options)
	if want == nil {
		want = map[string]string{}
	}
	want["storage.owner-uid"] = strconv.Itoa(v.params.UID)
	want["storage.owner-gid"] = strconv.Itoa(v.params.GID)
	// If it were on, only names that changed while a brick was away would be healed; a blank brick lacks all of them.
	want["cluster.granular-entry-heal"] = "off"
	var set []string
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if want[k] == "" {
			continue // left to glusterd
		}
		if v.own.Volume.Options[k] != want[k] && v.applied[k] != want[k] {
			set = append(set, k, want[k])
		}
	}
	return set
}

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
	Used      bool           `json:"used,omitempty"`     // glusterd knows peers or volumes
	Pool      []string       `json:"pool,omitempty"`     // UUIDs of the peers that glusterd knows and agrees with
	Rejected  []string       `json:"rejected,omitempty"` // UUIDs of its other peers: they count in its quorum all the same, perhaps as away
	Running   bool           `json:"running"`            // glusterd answers
	Fault     string         `json:"fault,omitempty"`
	Volume    *glusterVolume `json:"volume,omitempty"`
	Brick     brickState     `json:"brick"`
	BrickID   string         `json:"brick_id,omitempty"` // the volume that the brick says it belongs to
	// Stored lists the bricks that glusterd has stored, for itself or for clients, if these are not those of Volume: it has taken part in a
	// change that failed half-way.
	Stored []string `json:"stored,omitempty"`
	// Fresh: the agent made the brick's folder, and the volume that glusterd has stored has not had this brick since.
	Fresh   bool `json:"fresh,omitempty"`
	Online  bool `json:"online"`  // the brick's process accepts connections
	Pending int  `json:"pending"` // entries that other bricks lack, as this brick knows
	// Blames lists the bricks, by id, that this brick has marked as lacking everything, and Lacks those that lack anything, as far as this
	// brick knows; anyBrick: it is not known which.
	Blames []int `json:"blames,omitempty"`
	Lacks  []int `json:"lacks,omitempty"`
	// Copy is what has become of the copy that the blank brick is to begin as.
	Copy copyState `json:"copy,omitempty"`
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
	version int        // for glusterIdentify: the pool's operating version; 0: the highest that glusterd knows
	brick   int        // for glusterBlame: id of the brick
	options []string   // for glusterSet: alternately names and values
	servers []string   // for glusterIdentify: those to be in the pool; for glusterCreate: those that get a brick
	server  string     // that is added or removed
	force   bool       // for glusterDetach: although it does not answer
	from    facts.Peer // for glusterCopy: whose brick
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
	glusterCopy      glusterDo = "copy another server's brick"
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
	mend, stale := decideStale(v)
	added, _ := v.halfAdded()
	switch {
	case mend.do != glusterNothing:
		return mend, workf("%s", stale)
	case added == v.self && !own.serves():
		return glusterStep{}, workf("%s", stale)
	case own.Fresh && !own.unstored() && added != v.self && own.BrickID == vol.ID:
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
	if leader && added == "" && v.find(glusterReport.unstored) == "" && v.find(v.behind) == "" {
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
	case v.own.Copy == copyRuns:
		return glusterStep{}, workf("copying another server's brick")
	}
	if from, ok := v.copyFrom(index); ok && v.own.Copy == copyNone {
		return glusterStep{do: glusterCopy, from: from}, workf("copying another server's brick")
	}
	return glusterStep{do: glusterRestore}, workf("taking the blank brick back into volume %s", v.params.Volume)
}

// copyFrom returns a server whose brick this server's blank one can begin as a copy of. All other servers must serve, and none may lack
// anything. If the copied one did, its copy would count as complete; if a third one did, the copy would not know, because what bricks note of
// each other is not copied. Where writes need no majority, a server may lack something of which no other knows.
func (v glusterView) copyFrom(index int) (from facts.Peer, ok bool) {
	vol := v.own.Volume
	if !vol.majority() || v.joint || v.own.Brick != brickNone {
		return from, false
	}
	for _, n := range v.servers() {
		r, heard := v.heard[n]
		switch {
		case n == v.self:
		case !heard || !r.serves() || r.Brick != brickData || !slices.Equal(r.Volume.Bricks, vol.Bricks) ||
			slices.ContainsFunc(r.Lacks, func(id int) bool { return id != vol.id(index) }):
			return from, false
		default: // the last one: clients read from the first
			i := slices.IndexFunc(v.members, func(m ensemble.Member) bool { return m.Name == n })
			if i < 0 {
				return from, false
			}
			from, ok = v.members[i].Peer, true
		}
	}
	return from, ok
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

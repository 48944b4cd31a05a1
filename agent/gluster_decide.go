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
	Online    bool           `json:"online"`             // the brick's process accepts connections
	Pending   int            `json:"pending"`            // entries that other bricks lack, as this brick knows
	// Blames lists the bricks, by index in the volume, that this brick has marked as lacking everything.
	Blames []int `json:"blames,omitempty"`
}

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
	ID      string            `json:"id"`
	Status  int               `json:"status"` // 0: created, 1: started, 2: stopped
	Bricks  []string          `json:"bricks"` // HOST:PATH
	Options map[string]string `json:"options,omitempty"`
}

const (
	volumeCreated = 0
	volumeStarted = 1
)

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
	nodes  []string          // the servers, in the spec's order, self included
	uuids  map[string]string // by node
	params *facts.GlusterParams
	own    glusterReport
	heard  map[string]glusterReport // peers that answered
	// members are the same servers; what an operator has decided about them is known here.
	members []ensemble.Member
	unit    string // what the unit is doing; "active" or systemd's word
	// How long steps must wait that must not be repeated too soon.
	startHeld time.Duration // starting the unit, or the brick
	healHeld  time.Duration
	applied   map[string]string
	// settled: since this node's agent started, nothing was left to heal at least once. Later there may be, briefly with each
	// write, or while another server is away.
	settled bool
}

// glusterStep is what to do next.
type glusterStep struct {
	do      glusterDo
	version int      // for glusterIdentify: the pool's operating version; 0: the highest that glusterd knows
	brick   int      // for glusterBlame: index in the volume
	options []string // for glusterSet: alternately names and values
}

type glusterDo string

const (
	glusterNothing   glusterDo = ""
	glusterIdentify  glusterDo = "identify" // write glusterd.info and the pool
	glusterStartUnit glusterDo = "start glusterd"
	glusterMakeBrick glusterDo = "make the brick's folder"
	glusterCreate    glusterDo = "create the volume"
	glusterSet       glusterDo = "set options"
	glusterStart     glusterDo = "start the volume"
	glusterBlame     glusterDo = "note that a brick lacks everything"
	glusterRestore   glusterDo = "give the blank brick its identity"
	glusterForce     glusterDo = "start the brick"
	glusterHeal      glusterDo = "heal"
)

// decideGluster chooses the next step.
func decideGluster(v glusterView) (glusterStep, facts.Status) {
	own := v.own
	if own.UUID != v.uuids[v.self] && own.UUID != "" && own.Used {
		return glusterStep{}, stopf("glusterd's state in %s is of another server (UUID %s, this node's is %s); attach the node's own data disk", v.params.WorkDir, own.UUID, v.uuids[v.self])
	}
	if !own.Running {
		inPool := !slices.ContainsFunc(v.nodes, func(n string) bool { return n != v.self && !slices.Contains(own.Pool, v.uuids[n]) })
		switch {
		case v.unit != "inactive" && v.unit != "failed":
			return glusterStep{}, workf("%s is %s; %s", v.params.Unit, v.unit, cmp.Or(own.Fault, "it does not answer yet"))
		case own.UUID != v.uuids[v.self] || !inPool:
			return glusterStep{do: glusterIdentify, version: poolVersion(v.heard)}, workf("writing down the pool of servers")
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
	var missing, starting []string
	for _, n := range v.nodes {
		r, ok := v.heard[n]
		switch {
		case n == v.self:
			r = own
		case !ok:
			missing = append(missing, n)
			continue
		case !r.Running || r.Brick == brickNone:
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
	case own.Brick == brickNone:
		return glusterStep{do: glusterMakeBrick}, workf("making the brick's folder")
	case len(starting) > 0:
		return glusterStep{}, waitf("for %s to start glusterd and make the brick", strings.Join(starting, ", "))
	case v.nodes[0] != v.self:
		return glusterStep{}, waitf("for %s to create volume %s", v.nodes[0], v.params.Volume)
	}
	return glusterStep{do: glusterCreate}, workf("creating volume %s", v.params.Volume)
}

// decideVolume chooses the next step of a server that knows the volume.
func decideVolume(v glusterView) (glusterStep, facts.Status) {
	own, vol := v.own, v.own.Volume
	index := slices.Index(vol.Bricks, v.self+":"+v.params.Brick)
	if index < 0 {
		return glusterStep{}, stopf("volume %s exists without this node's brick %s:%s; add it by hand", v.params.Volume, v.self, v.params.Brick)
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
	online, pending := 0, own.Pending
	leader, blamed := true, false
	var away []string
	for _, n := range v.nodes {
		r, heard := v.heard[n]
		if n == v.self {
			r, heard = own, true
		}
		if heard && r.Running && slices.Index(v.nodes, n) < slices.Index(v.nodes, v.self) {
			leader = false
		}
		pending = max(pending, r.Pending)
		blamed = blamed || heard && slices.Contains(r.Blames, index)
		if r.serves() {
			online++
		} else {
			away = append(away, n)
		}
		// Servers with data mark what a replaced server lacks before that server's brick may start.
		if i := slices.Index(vol.Bricks, n+":"+v.params.Brick); heard && r.lost() && own.Brick == brickData && i >= 0 && !slices.Contains(own.Blames, i) {
			return glusterStep{do: glusterBlame, brick: i}, workf("noting that %s's brick is blank", n)
		}
	}
	if leader {
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
	detail := fmt.Sprintf("%d of %d bricks online", online, len(v.nodes))
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
	step := glusterStep{}
	if pending > 0 && leader && len(away) == 0 && v.healHeld == 0 {
		step.do = glusterHeal
	}
	switch {
	case online <= len(v.nodes)/2:
		return step, waitf("for a majority: %s", detail)
	case blamed || pending > 0 && !v.settled:
		// It serves, but losing another brick while the copies differ may lose data.
		return step, workf("catching up: %s", detail)
	}
	return step, ready(detail)
}

// decideLost chooses the next step of a server whose brick is blank while the volume exists. Every server must have noted
// what the brick lacks before it serves.
func decideLost(v glusterView, index int) (glusterStep, facts.Status) {
	var missing, silent []string
	for _, n := range v.nodes {
		r, ok := v.heard[n]
		switch {
		case n == v.self:
		case !ok && slices.ContainsFunc(v.members, func(m ensemble.Member) bool { return m.Name == n && m.GivenUp }):
		case !ok:
			missing = append(missing, n)
		case r.Brick == brickData && !slices.Contains(r.Blames, index):
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

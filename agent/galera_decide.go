package agent

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// position says how much of a cluster's history a node's data holds.
type position struct {
	UUID  string `json:"uuid"`  // of the history; the null UUID: none
	Seqno int64  `json:"seqno"` // of the last transaction; -1: not known
}

const nullUUID = "00000000-0000-0000-0000-000000000000"

// forkOf makes the UUID of a history that continues another one, without the writes that an operator has given up. If the UUID
// stayed the same, a returning server with those writes would get only the newer ones and would differ from the others from
// then on. With another history it gets a full state transfer. The first 12 digits identify the parent.
func forkOf(history string) string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return forkPrefix(history) + uuidText(b[:])[13:]
}

func forkPrefix(history string) string {
	sum := sha256.Sum256([]byte(history))
	return uuidText(sum[:16])[:13]
}

// goesOn tells whether a history is a fork of another one.
func goesOn(history, from string) bool {
	return from != "" && from != nullUUID && strings.HasPrefix(history, forkPrefix(from))
}

// valid tells whether a cluster may be started from the data: an unknown position never wins.
func (p position) valid() bool { return p.UUID != "" && p.UUID != nullUUID && p.Seqno >= 0 }

// galeraState is where a member stands.
type galeraState string

const (
	galeraMissing    galeraState = "missing"  // the image has no such server
	galeraEmpty      galeraState = "empty"    // stopped; there is no data
	galeraUnread     galeraState = "unread"   // stopped; the position of its data has not been determined yet
	galeraHolds      galeraState = "holds"    // stopped; its data is at Position
	galeraUnusable   galeraState = "unusable" // stopped; its data is incomplete: a state transfer was interrupted
	galeraStarting   galeraState = "starting" // the server runs, and does not answer queries yet
	galeraNonPrimary galeraState = "apart"    // (as earlier versions call it) the server runs outside a primary component, with data at Position
	galeraJoining    galeraState = "joining"  // in the primary component, and catching up
	galeraServing    galeraState = "serving"  // in the primary component, with all of its writes
)

// galeraReport is what a member tells the others.
type galeraReport struct {
	State    galeraState `json:"state"`
	Position position    `json:"position"`
	Size     int         `json:"size,omitempty"` // members of the component, while the server runs
	// Stopping goes with galeraStarting: the server runs, does not answer queries, and has been told to stop.
	Stopping bool `json:"stopping,omitempty"`
	// Left goes with galeraNonPrimary: the server has left the group for good, and has forgotten its position.
	Left bool `json:"left,omitempty"`
	// Going: it is about to start a cluster without silent members, or is doing so. During that step it does not observe.
	Going bool `json:"going,omitempty"`
	// Disk says why the server's data disk takes no writes; empty: it does.
	Disk diskFault `json:"disk,omitempty"`
	// Cluster is the id of the cluster whose users and databases have been made; empty: nobody's.
	Cluster string `json:"cluster,omitempty"`
}

// is says what the member is among the others. All members accept writes; the balancers choose which of them gets any.
func (r galeraReport) is() string {
	switch r.State {
	case galeraServing, galeraJoining:
		return fmt.Sprintf("in a component of %d", r.Size)
	case galeraNonPrimary:
		return "in no primary component"
	}
	return ""
}

// galeraMember is a member as decisions see it.
type galeraMember struct {
	ensemble.Member
	galeraReport
}

// galeraStep is what a member does next.
type galeraStep int

const (
	galeraWait       galeraStep = iota
	galeraAnnounce              // tell the others that it is going to start a cluster without the silent ones
	galeraRecover               // determine the position of the data
	galeraFound                 // make an empty database and start a cluster with it
	galeraBootstrap             // start a cluster from the data
	galeraFork                  // the same, without what others may have of the history (see forkOf)
	galeraJoin                  // start the server, which joins the others
	galeraStop                  // stop a server that does not rejoin the others
	galeraPromote               // make the component in which the running server is the primary one
	galeraInitialise            // make users and databases
	galeraKill                  // kill a server that others would wait for
)

// galeraView is all that a decision is made from.
type galeraView struct {
	members    []galeraMember // in the spec's order, self among them
	self       int
	cluster    string        // id
	nonPrimary time.Duration // how long self has run outside a primary component
	alone      time.Duration // how long self has been starting without progress, while nobody was in a primary component
	going      time.Duration // how long self has announced that it starts a cluster
	doomed     string        // the running server's log message that only a restart can fix
	// leaves: the cluster's configuration does not name self any more, and those that it names need it no longer.
	leaves bool
}

// running tells whether the member's server runs.
func (r galeraReport) running() bool {
	return slices.Contains([]galeraState{galeraStarting, galeraNonPrimary, galeraJoining, galeraServing}, r.State)
}

// primary tells whether anybody who was heard is in a primary component.
func (v galeraView) primary() bool {
	return slices.ContainsFunc(v.members, func(m galeraMember) bool {
		return m.Heard && (m.State == galeraServing || m.State == galeraJoining)
	})
}

// await is the status of a member that waits for silent ones.
func (v galeraView) await(silent []string, format string, args ...any) facts.Status {
	return ensemble.Await(v.ensemble(), silent, format, args...)
}

// ensemble returns the members without their reports.
func (v galeraView) ensemble() []ensemble.Member {
	members := make([]ensemble.Member, len(v.members))
	for i, m := range v.members {
		members[i] = m.Member
	}
	return members
}

// works tells whether a member serves a component of so many.
func (v galeraView) works(i, size int) bool {
	m := v.members[i]
	return m.Heard && m.State == galeraServing && m.Size == size && m.Cluster == v.cluster
}

// rival returns the first member that is in another primary component than a given one: of another history.
func (v galeraView) rival(history string) (galeraMember, bool) {
	known := func(history string) bool { return history != "" && history != nullUUID }
	i := slices.IndexFunc(v.members, func(m galeraMember) bool {
		return m.Heard && (m.State == galeraServing || m.State == galeraJoining) && known(m.Position.UUID) && m.Position.UUID != history
	})
	if i < 0 || !known(history) {
		return galeraMember{}, false
	}
	return v.members[i], true
}

// rightful tells which of several primary components may serve, by its history. One with a majority of all members never lost
// its quorum, so the others should not have been started. Otherwise it is the one that an operator's decision has made from
// the others, or the only one in which users and databases were made. Otherwise it is none: both have writes that the other
// lacks, and which ones to lose must not be guessed.
func (v galeraView) rightful(history string) bool {
	count := map[string]bool{}
	forked, made, others := true, false, false // forked: from all the others
	for _, m := range v.members {
		if !m.Heard || m.State != galeraServing && m.State != galeraJoining {
			continue
		}
		count[m.Position.UUID] = true
		if m.Position.UUID == history {
			made = made || m.Cluster == v.cluster
			continue
		}
		others = others || m.Cluster != ""
		forked = forked && goesOn(history, m.Position.UUID)
	}
	for h := range count {
		if most, _ := ensemble.Majority(v.ensemble(), func(i int) bool {
			m := v.members[i]
			return m.Heard && (m.State == galeraServing || m.State == galeraJoining) && m.Position.UUID == h
		}); most {
			return h == history
		}
	}
	return forked || made && !others
}

// decideGalera returns a member's next step and its status.
func decideGalera(v galeraView) (galeraStep, facts.Status) {
	me := v.members[v.self]
	var serving, primary, starting, silent []string
	for i, m := range v.members {
		switch {
		case i != v.self && !m.Heard:
			if !m.GivenUp {
				silent = append(silent, m.Name)
			}
		case m.State == galeraServing:
			serving = append(serving, m.Name)
			primary = append(primary, m.Name)
		case m.State == galeraJoining:
			primary = append(primary, m.Name)
		case m.State == galeraStarting, i != v.self && m.Going:
			starting = append(starting, m.Name)
		}
	}
	switch {
	case me.Stopping:
		return galeraWait, workf("the server is stopping")
	case v.doomed != "" && me.running() && me.State != galeraServing:
		return galeraStop, workf("restarting: the server says %q", v.doomed)
	case me.Left && v.nonPrimary >= leftLimit:
		return galeraStop, workf("restarting: the server has left the group")
	case v.leaves && me.running():
		return galeraStop, workf("stopping: the cluster goes on without this node")
	case v.leaves:
		return galeraWait, stopf("this node is not a member any more")
	}
	switch me.State {
	case galeraMissing:
		return galeraWait, stopf("the image has no Galera server")
	case galeraServing:
		return decideServing(v)
	case galeraJoining:
		return galeraWait, workf("catching up with %s", others(serving, me.Name))
	case galeraStarting:
		if len(primary) > 0 {
			return galeraWait, workf("the server is starting, and joins %s", strings.Join(primary, ", "))
		}
		// A server that joins a component which then dissolves requests its data for ever, and the others wait for it.
		if v.alone < astrayLimit {
			return galeraWait, workf("the server is starting")
		}
		if len(silent) > 0 {
			return galeraWait, v.await(silent, ", whom the server may be joining")
		}
		return galeraStop, workf("restarting: there is no primary component to join")
	case galeraNonPrimary:
		if me.Left {
			return galeraWait, workf("the server has left the group")
		}
		if len(primary) > 0 {
			if v.nonPrimary >= astrayLimit {
				return galeraStop, workf("restarting: it does not rejoin %s", strings.Join(primary, ", "))
			}
			return galeraWait, waitf("to rejoin %s", strings.Join(primary, ", "))
		}
	}
	if len(primary) > 0 { // and this one is stopped
		return decideJoin(v, primary)
	}
	if me.State == galeraUnread {
		return galeraRecover, workf("determining how far its data goes")
	}
	if len(silent) > 0 {
		if me.Position.valid() {
			return galeraWait, v.await(silent, ", who may have newer data than %d", me.Position.Seqno)
		}
		return galeraWait, v.await(silent, ", who may have data")
	}
	if len(starting) > 0 {
		return galeraWait, waitf("for %s to start", strings.Join(starting, ", "))
	}
	return decideStart(v)
}

// healthy returns the members that serve a history and whose data disks take writes.
func (v galeraView) healthy(history string) (names []string) {
	for _, m := range v.members {
		if m.Heard && m.State == galeraServing && m.Position.UUID == history && m.Disk == "" {
			names = append(names, m.Name)
		}
	}
	return names
}

// decideServing is for a member in the primary component.
func decideServing(v galeraView) (galeraStep, facts.Status) {
	me := v.members[v.self]
	first := v.members[slices.IndexFunc(v.members, func(m galeraMember) bool {
		return m.Heard && m.State == galeraServing && m.Position.UUID == me.Position.UUID
	})].Name
	rival, twice := v.rival(me.Position.UUID)
	if me.Cluster != "" {
		if err := ensemble.Foreign("its data is", me.Cluster, v.cluster); err != nil {
			return galeraWait, stopf("%v", err)
		}
	}
	switch {
	case twice && !v.rightful(me.Position.UUID):
		return galeraWait, stopf("%s serves the history %s, and %s another one, %s: remove the data disk of the one that may be lost", me.Name, me.Position.UUID, rival.Name, rival.Position.UUID)
	case twice && me.Cluster != "":
		return galeraWait, ready(fmt.Sprintf("%d of %d members; %s serves another history, %s, and is not used: remove its data disk if it may be lost", me.Size, len(v.members), rival.Name, rival.Position.UUID))
	case me.Cluster != "" && me.Disk != "" && v.healthy(me.Position.UUID) == nil:
		return galeraWait, ready(fmt.Sprintf("%d of %d members; the data disk is %s, as on all others that serve", me.Size, len(v.members), me.Disk))
	case me.Cluster != "" && me.Disk == diskFull:
		return galeraWait, facts.Status{State: facts.Failed, Detail: fmt.Sprintf("the data disk is full; for writes there are %s", others(v.healthy(me.Position.UUID), me.Name))}
	case me.Cluster != "" && me.Disk == diskFrozen:
		// What it cannot apply fills its queue, and then Galera stops the writes of all members.
		return galeraKill, facts.Status{State: facts.Failed, Detail: fmt.Sprintf("the data disk is frozen; the server is killed, so that %s do not wait for it", others(v.healthy(me.Position.UUID), me.Name))}
	case me.Cluster != "":
		return galeraWait, ready(fmt.Sprintf("%d of %d members", me.Size, len(v.members)))
	case first == me.Name:
		return galeraInitialise, workf("making users and databases")
	}
	return galeraWait, waitf("for %s to make users and databases", first)
}

// decideJoin is for a stopped member when others have a primary component. Joining replaces what a node has, so it must
// not be of another history.
func decideJoin(v galeraView, primary []string) (galeraStep, facts.Status) {
	me := v.members[v.self]
	if me.State == galeraUnread && (me.Position.UUID == "" || me.Position.UUID == nullUUID) {
		return galeraRecover, workf("determining how far its data goes")
	}
	for _, m := range v.members {
		if rival, twice := v.rival(m.Position.UUID); twice && slices.Contains(primary, m.Name) {
			return galeraWait, stopf("%s and %s serve different histories, and a server joins either: remove the data disk of the one that may be lost", m.Name, rival.Name)
		}
	}
	for _, m := range v.members {
		if m.Name == me.Name || !slices.Contains(primary, m.Name) || me.State == galeraEmpty || me.State == galeraUnusable {
			continue
		}
		switch {
		case m.Position.UUID == "":
			return galeraWait, waitf("for %s to say of which history its data is", m.Name)
		case me.Position.UUID != m.Position.UUID && !goesOn(m.Position.UUID, me.Position.UUID):
			return galeraWait, stopf("its data is of the history %s, and that of %s is %s: joining would destroy it; remove the data disk if it may be lost",
				me.Position.UUID, m.Name, m.Position.UUID)
		}
	}
	return galeraJoin, workf("joining %s", strings.Join(primary, ", "))
}

// decideStart is for when every member that counts was heard and none is in a primary component.
func decideStart(v galeraView) (galeraStep, facts.Status) {
	var present, gone, apart, all, unusable []galeraMember
	for i, m := range v.members {
		if i != v.self && !m.Heard {
			gone = append(gone, m) // given up
			continue
		}
		if m.Left { // its position is known once it has stopped
			return galeraWait, waitf("for %s to restart", m.Name)
		}
		present = append(present, m)
		if m.State == galeraNonPrimary {
			apart = append(apart, m)
		}
		switch m.State {
		case galeraMissing:
			return galeraWait, waitf("for %s, whose image has no Galera server", m.Name)
		case galeraUnread:
			return galeraWait, waitf("for %s to determine how far its data goes", m.Name)
		case galeraUnusable:
			unusable = append(unusable, m)
		case galeraHolds, galeraNonPrimary:
			if !m.Position.valid() {
				unusable = append(unusable, m)
				continue
			}
			all = append(all, m)
		}
	}
	var holding []galeraMember
	for _, m := range all { // a fork supersedes its parent
		if !slices.ContainsFunc(all, func(o galeraMember) bool { return goesOn(o.Position.UUID, m.Position.UUID) }) {
			holding = append(holding, m)
		}
	}
	me := v.members[v.self]
	if len(holding) == 0 && len(unusable) > 0 {
		return galeraWait, stopf("the data of %s is incomplete (a state transfer was interrupted), and nobody else has any: restore a backup", names(unusable))
	}
	if len(holding) == 0 { // a new cluster
		if first := present[0]; first.Name != me.Name {
			return galeraWait, waitf("for %s to start the cluster", first.Name)
		}
		if len(gone) > 0 && v.going < announceLimit {
			return galeraAnnounce, workf("about to make a new database, without %s", names(gone))
		}
		return galeraFound, workf("making a new database")
	}
	for _, m := range holding {
		if m.Position.UUID != holding[0].Position.UUID {
			return galeraWait, stopf("%s and %s have data of different histories: remove the data disk of the one that may be lost", holding[0].Name, m.Name)
		}
	}
	// The first of the most advanced members, running ones before stopped ones: running members may rejoin each other at any
	// time, which must not happen beside a cluster that a stopped one has started.
	winner := slices.MinFunc(holding, func(a, b galeraMember) int {
		return cmp.Or(cmp.Compare(b.Position.Seqno, a.Position.Seqno), cmp.Compare(a.State, b.State)) // apart, holds
	})
	scattered := me.State == galeraNonPrimary && me.Size < len(apart)
	switch {
	case me.State == galeraNonPrimary && v.nonPrimary < nonPrimaryLimit:
		return galeraWait, waitf("for the members to rejoin each other")
	case me.State == galeraNonPrimary && len(gone) > 0:
		// The others will have a new history, which a running server cannot take over.
		return galeraStop, workf("stopping, to go on without %s", names(gone))
	case me.State == galeraNonPrimary && winner.State == galeraHolds:
		return galeraStop, workf("stopping, so that %s can start the cluster: its data is the newest (%d)", winner.Name, winner.Position.Seqno)
	case scattered && v.nonPrimary >= astrayLimit:
		return galeraStop, workf("restarting: it does not rejoin %s", others(memberNames(apart), me.Name))
	case scattered:
		return galeraWait, waitf("to rejoin %s", others(memberNames(apart), me.Name))
	case winner.Name != me.Name:
		return galeraWait, waitf("for %s to start the cluster: its data is the newest (%d)", winner.Name, winner.Position.Seqno)
	case me.State == galeraHolds && len(apart) > 0:
		return galeraWait, waitf("for %s to stop", names(apart))
	case me.State == galeraHolds && len(gone) > 0 && v.going < announceLimit:
		return galeraAnnounce, workf("about to start the cluster without %s", names(gone))
	case me.State == galeraHolds && len(gone) > 0:
		return galeraFork, workf("starting the cluster without %s: of the others, its data is the newest (%d)", names(gone), me.Position.Seqno)
	case me.State == galeraHolds:
		return galeraBootstrap, workf("starting the cluster: its data is the newest (%d)", me.Position.Seqno)
	}
	return galeraPromote, workf("starting the cluster again: its data is the newest (%d)", me.Position.Seqno)
}

// others lists names without self.
func others(list []string, self string) string {
	list = slices.DeleteFunc(slices.Clone(list), func(n string) bool { return n == self })
	if len(list) == 0 {
		return "the others"
	}
	return strings.Join(list, ", ")
}

func names(members []galeraMember) string { return strings.Join(memberNames(members), ", ") }

func memberNames(members []galeraMember) []string {
	var list []string
	for _, m := range members {
		list = append(list, m.Name)
	}
	return list
}

package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// decidePool takes a new server into the pool of those that run, or removes from it who is no member and has no brick. One server does
// it: the first of those that are concerned.
func decidePool(v glusterView) (glusterStep, facts.Status) {
	added, _ := v.halfAdded()
	if !v.agreed || !slices.Contains(v.target, v.self) || added != "" || v.find(glusterReport.unstored) != "" {
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
		lacking := func(o glusterReport) bool { return o.UUID != v.uuids[n] && !o.knows(v.uuids[n]) }
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
		uuid := v.own.peers()[i]
		if !slices.Contains(leaving, name) || v.needed(name, current) || !first(func(o glusterReport) bool { return o.knows(uuid) }) {
			continue
		}
		r, heard := v.heard[name]
		return glusterStep{do: glusterDetach, server: uuid, force: !heard || !r.Running || len(leaving) > 1}, workf("removing %s from the pool of servers", name)
	}
	return glusterStep{}, facts.Status{}
}

// peers returns the UUIDs of all peers that glusterd knows.
func (r glusterReport) peers() []string { return slices.Concat(r.Pool, r.Rejected) }

// knows tells whether glusterd knows a peer.
func (r glusterReport) knows(uuid string) bool { return slices.Contains(r.peers(), uuid) }

// pooled returns the names of glusterd's peers; for one that is unknown, its UUID.
func (v glusterView) pooled() []string {
	pool := v.own.peers()
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

// latest returns the servers that stay and have stored the latest state of the volume that any of them has.
func (v glusterView) latest() (servers []string) {
	version := -1
	for _, n := range v.nodes {
		r, heard := v.report(n)
		if !heard || !r.Running || r.Volume == nil || v.isLeaving(n) || r.Volume.Version < version {
			continue
		}
		if r.Volume.Version > version {
			servers, version = nil, r.Volume.Version
		}
		servers = append(servers, n)
	}
	return servers
}

// halfAdded returns the server whose brick has been added half-way, and those with the latest state of the volume that have it in memory:
// some of them have not stored it, or others do not have it. Empty: there is none. It is so for a moment with each addition.
func (v glusterView) halfAdded() (server string, holders []string) {
	latest := v.latest()
	if !slices.ContainsFunc(latest, func(n string) bool {
		r, _ := v.report(n)
		first, _ := v.report(latest[0])
		return r.Stored != nil || !slices.Equal(r.Volume.Bricks, first.Volume.Bricks)
	}) {
		return "", nil // as nearly always
	}
	for _, n := range latest {
		r, _ := v.report(n)
		for _, brick := range r.Volume.Bricks {
			lacks := func(o string) bool { r, _ := v.report(o); return !slices.Contains(r.Volume.Bricks, brick) }
			if (r.Stored == nil || slices.Contains(r.Stored, brick)) && !slices.ContainsFunc(latest, lacks) {
				continue
			}
			server, _, _ = strings.Cut(brick, ":")
			return server, slices.DeleteFunc(latest, lacks)
		}
	}
	return "", nil
}

// estranged tells whether a server and one before it agree on the volume, and their glusterd have rejected each other before they did.
// They compare the volume only when they connect.
func (v glusterView) estranged(server string, r glusterReport) bool {
	return r.Running && r.Volume != nil && slices.ContainsFunc(v.nodes[:max(0, slices.Index(v.nodes, server))], func(n string) bool {
		o, heard := v.report(n)
		return heard && !v.isLeaving(n) && o.Running && o.Volume != nil && o.Volume.Version == r.Volume.Version && slices.Equal(o.Volume.Bricks, r.Volume.Bricks) &&
			(slices.Contains(o.Rejected, v.uuids[server]) || slices.Contains(r.Rejected, v.uuids[n]))
	})
}

// stale tells whether a server's glusterd has to change what it knows of the volume, or to connect anew. One that leaves may never learn
// more.
func (v glusterView) stale(server string, r glusterReport) bool {
	if r.unstored() {
		return true
	}
	_, holders := v.halfAdded()
	return !v.isLeaving(server) && (v.behind(r) || v.estranged(server, r) || slices.Contains(holders, server))
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

// poolHolds tells whether those that serve keep glusterd's quorum while a server restarts. One that loses it stops its brick. It counts all
// peers that it knows. One that it has rejected keeps counting as it did before, as connected or as away, until glusterd itself restarts: so
// it does not notice that one's restart.
func (v glusterView) poolHolds(without string) bool {
	restarts, _ := v.report(without)
	running := 0
	for _, n := range v.nodes {
		r, heard := v.report(n)
		if !heard || !r.Running || n == without {
			continue
		}
		if restarts.knows(v.uuids[n]) {
			running++
		}
		up, soon, all := 1, 1, len(r.peers())+1
		for _, o := range v.nodes {
			p, heard := v.report(o)
			if o == n || !heard || !slices.Contains(r.Pool, v.uuids[o]) {
				continue
			}
			if soon++; o != without && p.Running && slices.Contains(p.Pool, v.uuids[n]) {
				up++
			}
		}
		recovers := r.Brick == brickData && 2*soon > all // its brick may start now
		if (r.serves() || recovers) && slices.Contains(r.Pool, v.uuids[without]) && 2*up <= all {
			return false
		}
	}
	return 2*running > len(restarts.peers())+1
}

// decideStale mends what a failed change of the volume has left. To add a brick, glusterd changes the volume in the memory of all servers
// first, and has all store it and tell clients once each has done its part. If one fails, nothing undoes that, and those that differ reject
// each other when they connect: so the brick is removed from the memory of all that have it, and no glusterd restarts meanwhile. One that
// has missed a change is restarted: it takes over what another has stored later. decideStale returns what it waits for as well.
func decideStale(v glusterView) (step glusterStep, held string) {
	own := v.own
	added, holders := v.halfAdded()
	switch {
	case !v.isLeaving(v.self) && v.behind(own):
		r, _ := v.report(v.latest()[0])
		return restartStale(v, "glusterd knows an earlier state of the volume than others", r.Volume.Bricks)
	case added != "":
		return decideUndo(v, added, holders)
	case own.unstored():
		return restartStale(v, "glusterd has not stored the volume as it knows it", own.Stored)
	case v.stale(v.self, own):
		return restartStale(v, "glusterd and another one have rejected each other", own.Volume.Bricks)
	}
	return glusterStep{}, ""
}

// decideUndo undoes the half-way addition of a brick: the first server that serves and has the brick in its memory removes it. Clients do not
// know the brick. If they do all the same, the bricks that serve have all that they have written.
func decideUndo(v glusterView, added string, holders []string) (step glusterStep, held string) {
	if v.staleHeld > 0 {
		return glusterStep{}, "the brick of " + added + " is not added everywhere; that is undone if it lasts"
	}
	what := "undoing the addition of " + added + "'s brick, which failed half-way"
	wait := func(format string, args ...any) (glusterStep, string) {
		return glusterStep{}, what + ", waits for " + fmt.Sprintf(format, args...)
	}
	r, _ := v.report(holders[0])
	before := *r.Volume // as it was
	at := before.index(added, v.params.Brick)
	if at < 0 {
		return wait("a person to remove it: it is not %s:%s", added, v.params.Brick)
	}
	before.IDs, before.Bricks = slices.Delete(before.ids(), at, at+1), slices.Delete(slices.Clone(before.Bricks), at, at+1)
	serves := func(n string) bool {
		r, heard := v.report(n)
		return heard && r.serves() && before.has(n, v.params.Brick)
	}
	first := func(in []string) string {
		if i := slices.IndexFunc(in, serves); i >= 0 {
			return in[i]
		}
		return ""
	}
	remover := first(holders)
	holds := slices.Contains(holders, v.self)
	known := slices.ContainsFunc(v.nodes, func(n string) bool { return slices.Contains(v.heard[n].Pool, v.uuids[v.self]) })
	if holds && !serves(v.self) && known && (remover == "" || before.has(v.self, v.params.Brick)) {
		// Then it either has the volume as it was, or is rejected, or has its brick started.
		return restartStale(v, "glusterd has not stored the volume as it knows it", before.Bricks)
	}
	for _, n := range v.nodes {
		switch r, heard := v.report(n); {
		case !before.has(n, v.params.Brick), !heard && v.givenUp(n), (!heard || !r.Running) && v.isLeaving(n):
		case !heard || !r.Running || r.Volume == nil:
			return wait("%s, who may have stored the change, and told clients", n)
		}
	}
	if !before.quorum(serves) {
		return wait("a majority of the other bricks to serve")
	}
	for _, n := range v.nodes {
		if r, heard := v.report(n); heard && before.has(n, v.params.Brick) && (serves(n) || !v.isLeaving(n)) && slices.ContainsFunc(r.Lacks, func(id int) bool {
			i := slices.Index(before.IDs, id)
			return id == anyBrick || i >= 0 && serves(before.hosts()[i])
		}) {
			return wait("all copies that serve to be equal (%s has entries to heal)", n)
		}
	}
	if remover != "" {
		if remover != v.self {
			return wait("%s", remover)
		}
		return glusterStep{do: glusterRemove, server: added, replicas: len(before.Bricks)}, what
	}
	// The others' glusterd reject those that have it, until they have stored the volume once more.
	latest := slices.DeleteFunc(v.latest(), func(n string) bool { return slices.Contains(holders, n) })
	for _, n := range holders {
		if slices.ContainsFunc(latest, func(o string) bool { r, _ := v.report(o); return slices.Contains(r.Pool, v.uuids[n]) }) {
			return wait("%s to restart glusterd", n)
		}
	}
	if storer := first(latest); storer != v.self {
		return wait("%s to store the volume once more", cmp.Or(storer, "another server"))
	}
	return glusterStep{do: glusterSet, options: []string{"storage.owner-uid", strconv.Itoa(v.params.UID)}}, what + ": storing the volume once more"
}

// loseQuorum is what a person may have to deal with: docs/agent.md says how.
const loseQuorum = "others would lose glusterd's quorum meanwhile, and stop their bricks"

// restartStale restarts glusterd, which will have these bricks then.
func restartStale(v glusterView, why string, then []string) (step glusterStep, held string) {
	// Others that have a brick now and then, and stay, have to serve. A new one may wait for this server to note that its brick is blank.
	counts := func(brick string) bool {
		host, _, _ := strings.Cut(brick, ":")
		return slices.Contains(then, brick) && slices.Contains(v.own.Volume.Bricks, brick) && !v.isLeaving(host)
	}
	if v.staleHeld > 0 {
		return glusterStep{}, why + "; it is restarted if that lasts"
	}
	why = "restarting it, because " + why
	serving := func(n string, r glusterReport) bool { return r.serves() && slices.Contains(then, n+":"+v.params.Brick) }
	serves := serving(v.self, v.own)
	if !v.poolHolds(v.self) {
		return glusterStep{}, why + ", waits: " + loseQuorum
	}
	// One at a time, those that do not serve first: their restart costs nothing. One without which others would lose the quorum comes after
	// those that have rejected others.
	for _, n := range v.nodes {
		r, heard := v.report(n)
		before := slices.Index(v.nodes, n) < slices.Index(v.nodes, v.self)
		if n != v.self && heard && v.stale(n, r) && (serves && !serving(n, r) || before && serves == serving(n, r)) && v.poolHolds(n) {
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

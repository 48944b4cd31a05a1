package agent

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

const (
	cliLimit     = 60 * time.Second // one change made through the gluster command line
	infoInterval = 15 * time.Second // between two queries of an unchanged volume; each costs some 80 ms of CPU
	infoCalm     = 5 * time.Minute  // the same, while glusterd answers pings
	pingLimit    = time.Second
	offlineLimit = 3 * time.Second  // glusterd gets this long to start the brick by itself
	healInterval = 10 * time.Second // between two requests to heal

	volumeIDXattr = "trusted.glusterfs.volume-id"
	rootGFID      = "00000000-0000-0000-0000-000000000001"
)

// gluster runs a GlusterFS server and, together with its peers, one replicated volume.
//
// A new pool needs no peer probe. A node's UUID is derived from the cluster and the node's name, so each node knows all of its
// peers' UUIDs and writes the pool's files before its glusterd first starts, as probing would. A node that comes back with an empty
// disk is therefore in the pool again at once, and gets the volume from its peers' glusterd. Only servers that run already, and must
// not restart, learn of a new one by a probe.
//
// Its brick is the dangerous part: a blank brick looks like a volume from which all files were removed, and clients that read
// from it see none. So it stays down until its peers have marked it, on their own bricks, as lacking everything, in the way
// Gluster marks what a brick misses while it is away. Then it is started, and the self-heal daemon fills it.
type gluster struct {
	node    Node
	params  *facts.GlusterParams
	server  glusterServer
	decide  func(glusterView) (glusterStep, facts.Status)
	reports ensemble.Reader[glusterReport]
	retry   ensemble.Backoff // of starting the unit

	seen      glusterReport
	unit      string    // what systemd last said of glusterd
	offline   time.Time // since when a brick that should run does not; zero: it runs, or should not
	healAsked time.Time
	stale     time.Time         // since when glusterd has been stale, or a brick half-added; zero: neither is so
	restarts  int               // that have not helped
	unclaimed time.Time         // since when nobody has claimed the brick
	uuids     map[string]string // of the servers, by node
	whole     bool              // see glusterView
	applied   map[string]string // options that were set: glusterd may write a value differently than it was given
}

func newGluster(n Node, _ string, p *facts.GlusterParams) Component {
	return makeGluster(n, p, &glusterUnit{node: n, params: p, fetch: func(ctx context.Context, from facts.Peer) (io.ReadCloser, error) {
		return fetchBrick(ctx, n.Identity, from, facts.APIPort)
	}})
}

func makeGluster(n Node, p *facts.GlusterParams, server glusterServer) *gluster {
	return &gluster{node: n, params: p, server: server, decide: decideGluster, uuids: map[string]string{}, applied: map[string]string{}}
}

// glusterUUID derives a node's UUID from its cluster and name, as version 5 UUIDs are derived (RFC 4122).
func glusterUUID(clusterID, node string) string {
	space, err := hex.DecodeString(strings.ReplaceAll(clusterID, "-", ""))
	if err != nil {
		space = []byte(clusterID)
	}
	h := sha1.Sum(append(space, node...))
	h[6] = h[6]&0x0f | 0x50
	h[8] = h[8]&0x3f | 0x80
	return uuidText(h[:16])
}

func uuidText(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func (g *gluster) unitNames() []string { return g.server.unitNames() }

func (g *gluster) close() { g.server.close() }

func (g *gluster) Observe(ctx context.Context) (any, error) {
	seen, unit, err := g.server.look(ctx)
	if err != nil {
		return nil, err
	}
	g.seen, g.unit = seen, unit
	return seen, nil
}

// view collects what a decision is made from.
func (g *gluster) view(w World) glusterView {
	now := g.node.now()
	v := glusterView{self: w.Self.Name, uuids: g.uuids, params: g.params, own: g.seen, unit: g.unit, applied: g.applied,
		healHeld: max(0, healInterval-now.Sub(g.healAsked)), whole: g.whole}
	v.members, v.nodes, v.heard = glusterMembers(&g.reports, w)
	for _, n := range v.nodes {
		if g.uuids[n] == "" {
			g.uuids[n] = glusterUUID(g.node.Facts.ClusterID, n)
		}
	}
	v.agreed = ensemble.Agreed(w, v.members)
	v.joint = len(w.Joint.InUse) > 1
	if target, ok := ensemble.Target(w, v.members); ok {
		for _, p := range target.Members {
			v.target = append(v.target, p.Name)
		}
	}
	number, ok := g.complete(w, v)
	v.leaves = ensemble.Leaves(w, 0) || ok && ensemble.Leaves(w, number)
	added, _ := v.halfAdded()
	stale := added != "" || v.stale(v.self, v.own)
	if !stale && g.seen.Running {
		g.restarts = 0
	}
	v.staleHeld = changeLimit<<g.restarts - lasts(&g.stale, now, stale)
	v.unclaimedFor = lasts(&g.unclaimed, now, v.unclaimed())
	started := g.seen.Running && g.seen.Volume != nil && g.seen.Volume.Status == volumeStarted
	switch {
	case !started || g.seen.Online:
		g.offline = time.Time{}
	case g.offline.IsZero():
		g.offline = now
	}
	if v.startHeld = g.retry.Left(now); started {
		v.startHeld = max(0, offlineLimit-g.node.since(g.offline))
	}
	return v
}

// lasts tells how long something has been so.
func lasts(since *time.Time, now time.Time, is bool) time.Duration {
	switch {
	case !is:
		*since = time.Time{}
		return 0
	case since.IsZero():
		*since = now
	}
	return now.Sub(*since)
}

// complete returns the newest membership in use, unless it is the oldest, if its servers have a volume and a pool of their own.
func (g *gluster) complete(w World, v glusterView) (number int, ok bool) {
	target, ok := ensemble.Target(w, v.members)
	if !ok || !v.joint {
		return 0, false
	}
	var pool []string
	for _, p := range target.Members {
		pool = append(pool, v.uuids[p.Name])
	}
	for _, p := range target.Members {
		r, heard := v.report(p.Name)
		if !heard || !r.serves() || v.stale(p.Name, r) || !r.Volume.has(p.Name, v.params.Brick) || len(r.Volume.Bricks) != len(pool) || len(r.Pool) != len(pool)-1 || len(r.Rejected) > 0 {
			return 0, false
		}
		for _, uuid := range r.Pool {
			if !slices.Contains(pool, uuid) {
				return 0, false
			}
		}
	}
	return target.Number, true
}

// settled: nobody else has what the volume needs once its bricks are those of the members alone, and none of them is joined to others.
func (g *gluster) settled(w World) (number int, ok bool) { return g.complete(w, g.view(w)) }

// glusterMembers returns the servers of all memberships in use, and what those that were heard report.
func glusterMembers(reports *ensemble.Reader[glusterReport], w World) (members []ensemble.Member, nodes []string, heard map[string]glusterReport) {
	members, self := ensemble.Members(w)
	heard = map[string]glusterReport{}
	for i, m := range members {
		nodes = append(nodes, m.Name)
		if i != self {
			if r, ok := reports.From(w, m.Name, "gluster"); ok {
				heard[m.Name] = r
			}
		}
	}
	return members, nodes, heard
}

func (g *gluster) Step(ctx context.Context, w World) (facts.Status, error) {
	step, status := g.decide(g.view(w))
	now := g.node.now()
	if status.State == facts.Ready {
		g.whole = true
		g.retry.Settle(now)
	}
	switch step.do {
	case glusterNothing:
		return status, nil
	case glusterStartUnit:
		g.retry.Next(now)
	case glusterRestore:
		g.offline = now.Add(-offlineLimit) // nobody else starts it
	case glusterForce:
		g.offline = now
	case glusterStop:
		g.restarts = min(g.restarts+1, 5)
	case glusterHeal:
		g.healAsked = now
	}
	if step.do != glusterHeal {
		g.node.Working(status.Detail)
	}
	err := g.server.do(ctx, step)
	var wait notYet
	if errors.As(err, &wait) {
		return waitf("%s", string(wait)), nil
	}
	if err == nil && step.do == glusterSet {
		for i := 0; i < len(step.options); i += 2 {
			g.applied[step.options[i]] = step.options[i+1]
		}
	}
	return status, err
}

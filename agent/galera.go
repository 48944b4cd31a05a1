package agent

import (
	"context"
	"slices"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

const (
	askLimit     = 3 * time.Second  // one query of the database server's status
	foundLimit   = 10 * time.Minute // making an empty database, or starting a cluster from what is there
	recoverLimit = time.Hour        // InnoDB replays its whole log
	// Partitions usually heal on their own; the agent intervenes only after this.
	nonPrimaryLimit = 15 * time.Second
	// A member that does not rejoin the others' primary component is restarted after this, and so is one that was joining a
	// component that no longer exists.
	astrayLimit = 60 * time.Second
	// A server that has left the group never rejoins by itself. This only guards against a misread status.
	leftLimit   = 3 * time.Second
	logInterval = 5 * time.Second // between two reads of the log of a server that does not serve
	// A member that is going to start a cluster without silent ones announces it for this long, so that one that comes back
	// just then learns of it, even over a network that loses many messages.
	announceLimit = 4 * ensemble.HeardLimit
)

// galera runs a member of a Galera cluster: MariaDB, or Percona XtraDB Cluster.
//
// Joining a running cluster is harmless: the node is brought up to date. Starting a cluster is dangerous, since it makes the
// node's data the truth. The same pure function decides on every member who starts it, from the data that all members report.
// While one of them is silent, nobody starts a cluster.
type galera struct {
	node    Node
	server  galeraServer
	decide  func(galeraView) (galeraStep, facts.Status)
	reports ensemble.Reader[galeraReport]
	retry   ensemble.Backoff

	seen       galeraSeen
	going      time.Time // since when the others have been told that this member is about to start a cluster
	goes       bool      // whether that is so
	begun      bool      // it has been recorded that the cluster exists
	nonPrimary time.Time // since when the server has run outside a primary component
	alone      time.Time // since when the server has been starting without progress, while nobody was in a primary component
}

func newGalera(n Node, _ string, p *facts.GaleraParams) Component {
	units := slices.Compact([]string{p.Unit, p.BootUnit})
	return &galera{node: n, server: &galeraUnits{params: p, client: sqlClient{argv: p.Client}, cluster: n.Facts.ClusterID, units: units}, decide: decideGalera}
}

func (g *galera) unitNames() []string { return g.server.unitNames() }

func (g *galera) close() { g.server.close() }

func (g *galera) Observe(ctx context.Context) (any, error) {
	seen, err := g.server.look(ctx)
	if err != nil {
		return nil, err
	}
	seen.Going = g.goes
	g.mark(&g.nonPrimary, seen.State == galeraNonPrimary)
	g.mark(&g.going, g.goes)
	g.seen = seen
	return seen.galeraReport, nil
}

// mark keeps in t since when a condition has held.
func (g *galera) mark(t *time.Time, is bool) {
	if !is {
		*t = time.Time{}
	} else if t.IsZero() {
		*t = g.node.now()
	}
}

// view collects what a decision is made from.
func (g *galera) view(w World) galeraView {
	v := galeraMembers(&g.reports, w, g.seen.galeraReport)
	v.cluster, v.doomed = g.node.Facts.ClusterID, g.seen.doomed
	v.leaves = galeraLeaves(w, v)
	g.mark(&g.alone, g.seen.State == galeraStarting && !v.primary() && !g.seen.getsOn)
	v.nonPrimary, v.alone, v.going = g.node.since(g.nonPrimary), g.node.since(g.alone), g.node.since(g.going)
	return v
}

// galeraMembers puts together what is known of the members. own is what this one observed.
func galeraMembers(reports *ensemble.Reader[galeraReport], w World, own galeraReport) galeraView {
	members, self := ensemble.Members(w)
	v := galeraView{members: make([]galeraMember, len(members)), self: self}
	for i, m := range members {
		v.members[i] = galeraMember{m, own}
		if i != self {
			v.members[i].galeraReport, v.members[i].Heard = reports.From(w, m.Name, "galera")
		}
	}
	return v
}

// galeraLeaves tells whether the node's server is to stop for good: it is a member no longer, and those that are serve. Until then
// it takes part, since it may have the newest data.
func galeraLeaves(w World, v galeraView) bool {
	if ensemble.Leaves(w, 0) {
		return true
	}
	if len(w.Joint.InUse) < 2 { // as nearly always
		return false
	}
	serve, ok := ensemble.Complete(w, v.ensemble(), func(i, _ int) bool {
		m := v.members[i]
		return v.works(i, m.Size) && m.Position.UUID == v.members[v.self].Position.UUID
	})
	return ok && ensemble.Leaves(w, serve)
}

// settled: once the members of a generation form a component by themselves, nobody else can have writes that they lack.
func (g *galera) settled(w World) (number int, ok bool) {
	v := galeraMembers(&g.reports, w, g.seen.galeraReport)
	v.cluster = g.node.Facts.ClusterID
	return ensemble.Complete(w, v.ensemble(), v.works)
}

func (g *galera) Step(ctx context.Context, w World) (facts.Status, error) {
	step, status := g.decide(g.view(w))
	g.goes = step == galeraAnnounce || g.goes && (step == galeraFork || step == galeraFound)
	if g.seen.State == galeraServing && g.seen.Cluster != "" {
		if !g.begun { // once: a frozen disk would block it
			if err := g.server.begun(); err != nil {
				return status, err
			}
			g.begun = true
		}
		g.retry.Settle(g.node.now())
	}
	switch step {
	case galeraWait, galeraAnnounce:
		return status, nil
	case galeraJoin, galeraBootstrap, galeraFork, galeraFound:
		if held := g.retry.Left(g.node.now()); held > 0 {
			if g.seen.failed == "" {
				return status, nil
			}
			return ensemble.Held("the server stopped: "+g.seen.failed, "start", held), nil
		}
		g.retry.Next(g.node.now())
		g.begun = false
	}
	g.node.Working(status.Detail)
	return status, g.server.do(ctx, step)
}

package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

const (
	askLimit     = 3 * time.Second  // one round of questions to the database server
	foundLimit   = 10 * time.Minute // making an empty database, or starting a cluster from what is there
	recoverLimit = time.Hour        // InnoDB reads all of its log again
	// A group that lost its quorum for a moment comes together by itself; only then a hand is lent.
	apartLimit = 15 * time.Second
	// A member that stays apart while the others have a primary component is started anew, and so is one that was
	// joining a component that is no more.
	astrayLimit = 60 * time.Second
	// A server that has left the group does not come back by itself, however long it runs. This is for being sure.
	leftLimit   = 3 * time.Second
	logInterval = 5 * time.Second // between two looks into the log of a server that does not serve
	// Who starts a cluster without a silent member first says so for long enough that this one, should it come back just
	// then, knows of it, and that its own answers get through a network that loses many.
	announceLimit = 4 * heardLimit
)

// foundingName is a file in a data folder that the agent has made and in which no cluster has begun yet. As long as it
// is there, what lies beside it is the agent's own and may be made again.
const foundingName = ".imagegen-founding"

// galera runs a member of a Galera cluster: MariaDB, or Percona XtraDB Cluster.
//
// Joining a running cluster is harmless: whatever the node has is brought up to date. All the danger is in starting
// one, which declares a node's data to be the truth. Who does is decided by the same pure function on every member,
// from what all of them have said that they hold; while one of them is silent, nobody starts anything.
type galera struct {
	node    Node
	name    string
	params  *facts.GaleraParams
	units   []string // of the server: one or the other runs
	seen    galeraReport
	doomed  string    // what the running server has said that only a restart mends
	read    time.Time // when its log was last read
	running string    // the unit that ran when it was last looked at; empty: none
	known   *position // recovered since the server stopped
	failed  string    // the last line of a server that stopped
	going   time.Time // since when the others have been told that this member is about to start a cluster
	goes    bool      // it is
	apart   time.Time // since when the server has run outside a primary component
	alone   time.Time // since when the server has been starting, without getting on, while nobody was in a primary component
	retry   backoff
}

// position says how much of a cluster's history a node's data holds.
type position struct {
	UUID  string `json:"uuid"`  // of the history; the null UUID: none
	Seqno int64  `json:"seqno"` // of the last transaction; -1: not known
}

const nullUUID = "00000000-0000-0000-0000-000000000000"

// forkOf names a history that goes on from another one, without what an operator has decided may be lost. A server that
// has that too and comes back would else be brought up to date as if it had not, and would differ from the others from
// then on; as one of another history it is given everything anew. The first 12 digits tell where the fork comes from.
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

// valid tells whether data may be started from: a position that is not known never wins.
func (p position) valid() bool { return p.UUID != "" && p.UUID != nullUUID && p.Seqno >= 0 }

// galeraState is where a member stands.
type galeraState string

const (
	galeraMissing  galeraState = "missing"  // the image has no such server
	galeraEmpty    galeraState = "empty"    // stopped; there is no data
	galeraUnread   galeraState = "unread"   // stopped; the position of its data has not been determined yet
	galeraHolds    galeraState = "holds"    // stopped; its data is at Position
	galeraUnusable galeraState = "unusable" // stopped; its data is not whole: a state transfer was interrupted
	galeraStarting galeraState = "starting" // the server runs, and takes no questions yet
	galeraApart    galeraState = "apart"    // the server runs outside a primary component, with data at Position
	galeraJoining  galeraState = "joining"  // in the primary component, and catching up
	galeraServing  galeraState = "serving"  // in the primary component, with all of its writes
)

// galeraReport is what a member tells the others.
type galeraReport struct {
	State    galeraState `json:"state"`
	Position position    `json:"position"`
	Size     int         `json:"size,omitempty"` // members of the component, while the server runs
	// Stopping goes with galeraStarting: the server runs, takes no questions, and has been told to stop.
	Stopping bool `json:"stopping,omitempty"`
	// Left goes with galeraApart: the server has left the group for good, and has forgotten its position.
	Left bool `json:"left,omitempty"`
	// Going: it is about to start a cluster without silent members, or does it. While it does it, it does not look.
	Going bool `json:"going,omitempty"`
	// Cluster is the id of the cluster whose users and databases have been made; empty: nobody's.
	Cluster string `json:"cluster,omitempty"`
}

// is says what the member is among the others. All members take writes; which of them gets them is the balancers' choice.
func (r galeraReport) is() string {
	switch r.State {
	case galeraServing, galeraJoining:
		return fmt.Sprintf("in a component of %d", r.Size)
	case galeraApart:
		return "in no primary component"
	}
	return ""
}

func newGalera(n Node, name string, p *facts.GaleraParams) Component {
	return &galera{node: n, name: name, params: p, units: slices.Compact([]string{p.Unit, p.BootUnit})}
}

func (g *galera) unitNames() []string { return g.units }

func (g *galera) Observe(ctx context.Context) (any, error) {
	was := g.running
	seen, err := g.look(ctx)
	if err != nil {
		return nil, err
	}
	if g.running != "" {
		g.known, g.failed = nil, ""
	} else if was != "" {
		g.failed = lastLine(ctx, was)
	}
	g.listen(ctx, seen)
	if seen.State != galeraApart {
		g.apart = time.Time{}
	} else if g.apart.IsZero() {
		g.apart = time.Now()
	}
	if seen.Going = g.goes; !g.goes {
		g.going = time.Time{}
	} else if g.going.IsZero() {
		g.going = time.Now()
	}
	g.seen = seen
	return seen, nil
}

// doomedPattern finds what Galera writes when a server will not become a member any more. Some of them then go on running.
var doomedPattern = regexp.MustCompile(`(?i).*(restart required|must be restarted|need to restart|need to abort|leaving cluster).*`)

// listen looks into the log of a running server that does not serve.
func (g *galera) listen(ctx context.Context, seen galeraReport) {
	if g.running == "" || seen.State == galeraServing {
		g.doomed = ""
		return
	}
	pid := mainPID(g.running)
	if pid == "0" || time.Since(g.read) < logInterval {
		return
	}
	g.read, g.doomed = time.Now(), ""
	out, err := run(ctx, nil, "journalctl", "-q", "--no-pager", "-b", "-n", "500", "-o", "cat", "_SYSTEMD_UNIT="+g.running, "_PID="+pid)
	if err != nil {
		return // the status tells as well, only later
	}
	g.doomed = doomedLine(out)
}

// doomedLine returns the last line of a log that says that the server must be restarted.
func doomedLine(log []byte) string {
	all := doomedPattern.FindAll(log, -1)
	if all == nil {
		return ""
	}
	return string(all[len(all)-1])
}

func (g *galera) look(ctx context.Context) (galeraReport, error) {
	g.running = ""
	for _, name := range g.units {
		u, err := unitState(ctx, name)
		switch {
		case err != nil:
			return galeraReport{}, err
		case u.Load == "not-found":
			return galeraReport{State: galeraMissing}, nil
		case u.Active == "active":
			g.running = name
			report, err := g.ask(ctx)
			noteAnswer(name, !errors.Is(err, errSilent))
			return report, err
		case u.Active != "inactive" && u.Active != "failed":
			g.running = name
			return galeraReport{State: galeraStarting, Stopping: u.Active == "deactivating"}, nil
		}
	}
	return g.readFolder()
}

// readFolder determines what the data folder of a stopped server holds.
func (g *galera) readFolder() (galeraReport, error) {
	entries, err := os.ReadDir(g.params.DataDir)
	if err != nil {
		return galeraReport{}, err
	}
	// The mark's temporary file, of a node that died just then, is not data either.
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !strings.HasPrefix(e.Name(), foundingName) }) {
		return galeraReport{State: galeraEmpty}, nil
	}
	if g.known != nil {
		founding := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == foundingName })
		return classify(*g.known, founding), nil
	}
	data, err := os.ReadFile(g.grastate())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return galeraReport{}, err
	}
	at := parseGrastate(data)
	if at.valid() {
		return galeraReport{State: galeraHolds, Position: at}, nil
	}
	return galeraReport{State: galeraUnread, Position: at}, nil
}

// classify says what data at a recovered position is good for.
func classify(at position, founding bool) galeraReport {
	switch {
	case at.valid():
		return galeraReport{State: galeraHolds, Position: at}
	case founding:
		return galeraReport{State: galeraEmpty}
	}
	return galeraReport{State: galeraUnusable, Position: at}
}

func (g *galera) grastate() string { return filepath.Join(g.params.DataDir, "grastate.dat") }

// parseGrastate reads Galera's own note of where its data is. It has the position after a clean stop alone; while the
// server runs, and after a crash, the seqno in it is -1. Nonsense is no position.
func parseGrastate(data []byte) position {
	at := position{Seqno: -1}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "uuid":
			if uuidPattern.MatchString(value) {
				at.UUID = value
			}
		case "seqno":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil {
				at.Seqno = n
			}
		}
	}
	return at
}

var (
	uuidPattern     = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	recoveryPattern = regexp.MustCompile(`(?m)Recovered position:\s*([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(-?[0-9]+)`)
)

// parseRecovery finds the position in what the server writes when it is started with --wsrep-recover.
func parseRecovery(out []byte) (position, error) {
	m := recoveryPattern.FindAllSubmatch(out, -1)
	if m == nil {
		return position{}, errors.New("the server named no recovered position")
	}
	last := m[len(m)-1]
	seqno, err := strconv.ParseInt(string(last[2]), 10, 64)
	return position{string(last[1]), seqno}, err
}

// The marker is the comment of a table, so that one question that cannot fail tells whether it is there.
const (
	statusSQL = `SET SESSION wsrep_sync_wait=0;
SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_cluster_status','wsrep_local_state','wsrep_ready','wsrep_cluster_size','wsrep_cluster_state_uuid','wsrep_last_committed','wsrep_connected');
SELECT 'marker', table_comment FROM information_schema.tables WHERE table_schema='imagegen' AND table_name='cluster';
`
	markerSQL = `
CREATE DATABASE IF NOT EXISTS imagegen;
CREATE TABLE IF NOT EXISTS imagegen.cluster (id CHAR(36) NOT NULL PRIMARY KEY) COMMENT='%s';
`
	promoteSQL = "SET GLOBAL wsrep_provider_options='pc.bootstrap=YES';\n"
)

// ask asks the running server.
func (g *galera) ask(ctx context.Context) (galeraReport, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	out, err := g.sql(ctx, statusSQL)
	if ctx.Err() != nil {
		return galeraReport{}, silentError(fmt.Sprintf("the database server does not answer within %v", askLimit))
	}
	if err != nil {
		// A unit is active before its server takes connections, where it does not say so itself.
		return galeraReport{State: galeraStarting}, nil
	}
	return parseStatus(out), nil
}

func (g *galera) sql(ctx context.Context, text string) ([]byte, error) {
	return run(ctx, []byte(text), g.params.Client...)
}

// parseStatus reads the rows that statusSQL asks for. The states are Galera's, see
// https://galeracluster.com/library/documentation/node-states.html: 2 is a donor, 4 is synced.
func parseStatus(out []byte) galeraReport {
	rows := map[string]string{}
	for line := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		rows[k] = v
	}
	r := galeraReport{Cluster: rows["marker"], Position: position{UUID: rows["wsrep_cluster_state_uuid"], Seqno: -1}}
	if n, err := strconv.ParseInt(rows["wsrep_last_committed"], 10, 64); err == nil {
		r.Position.Seqno = n
	}
	r.Size, _ = strconv.Atoi(rows["wsrep_cluster_size"])
	switch state := rows["wsrep_local_state"]; {
	case rows["wsrep_cluster_status"] != "Primary":
		r.State, r.Left = galeraApart, rows["wsrep_connected"] == "OFF"
	case rows["wsrep_ready"] == "ON" && (state == "4" || state == "2"):
		r.State = galeraServing
	default:
		r.State = galeraJoining
	}
	return r
}

// galeraMember is a member as decisions see it.
type galeraMember struct {
	name    string
	heard   bool
	answers bool // its agent does, whatever that knows of the server
	lost    bool // an operator has decided to go on without it while it is silent
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
	galeraStop                  // stop a server that does not find back to the others
	galeraPromote               // make the component in which the running server is the primary one
	galeraInitialise            // make users and databases
)

// galeraView is all that a decision is made from.
type galeraView struct {
	members []galeraMember // in the spec's order, self among them
	self    int
	cluster string        // id
	apart   time.Duration // how long self has run outside a primary component
	alone   time.Duration // how long self has been starting, without getting on, while nobody was in a primary component
	going   time.Duration // how long self has announced that it starts a cluster
	doomed  string        // what the running server has said that only a restart mends
}

// running tells whether the member's server runs.
func (r galeraReport) running() bool {
	return slices.Contains([]galeraState{galeraStarting, galeraApart, galeraJoining, galeraServing}, r.State)
}

// primary tells whether anybody who was heard is in a primary component.
func (v galeraView) primary() bool {
	return slices.ContainsFunc(v.members, func(m galeraMember) bool {
		return m.heard && (m.State == galeraServing || m.State == galeraJoining)
	})
}

// decidable returns those of the silent members that an operator may give up: a node whose agent answers is not lost.
func (v galeraView) decidable(silent []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(silent), func(n string) bool {
		return slices.ContainsFunc(v.members, func(m galeraMember) bool { return m.name == n && m.answers })
	}), ",")
}

// rival returns the first member that is in another primary component than a given one: of another history.
func (v galeraView) rival(history string) (galeraMember, bool) {
	known := func(history string) bool { return history != "" && history != nullUUID }
	i := slices.IndexFunc(v.members, func(m galeraMember) bool {
		return m.heard && (m.State == galeraServing || m.State == galeraJoining) && known(m.Position.UUID) && m.Position.UUID != history
	})
	if i < 0 || !known(history) {
		return galeraMember{}, false
	}
	return v.members[i], true
}

// rightful tells whether, of two primary components, that of a given history may serve. Most members are one that never
// lost its quorum: what runs beside it should not have been started. Otherwise it is the one that an operator's decision
// has made from the other, or the only one in which users and databases were made; or neither, which nobody's guess may
// change: each goes on from where the other does not know of, so that one of them is lost.
func (v galeraView) rightful(history string) bool {
	count := map[string]int{}
	forked, made, others := true, false, false // forked: from all the others
	for _, m := range v.members {
		if !m.heard || m.State != galeraServing && m.State != galeraJoining {
			continue
		}
		count[m.Position.UUID]++
		if m.Position.UUID == history {
			made = made || m.Cluster == v.cluster
			continue
		}
		others = others || m.Cluster != ""
		forked = forked && goesOn(history, m.Position.UUID)
	}
	for h, n := range count {
		if 2*n > len(v.members) {
			return h == history
		}
	}
	return forked || made && !others
}

// decideGalera says what a member does now, and where things stand.
func decideGalera(v galeraView) (galeraStep, facts.Status) {
	me := v.members[v.self]
	var serving, primary, starting, silent []string
	for i, m := range v.members {
		switch {
		case i != v.self && !m.heard:
			if !m.lost {
				silent = append(silent, m.name)
			}
		case m.State == galeraServing:
			serving = append(serving, m.name)
			primary = append(primary, m.name)
		case m.State == galeraJoining:
			primary = append(primary, m.name)
		case m.State == galeraStarting, i != v.self && m.Going:
			starting = append(starting, m.name)
		}
	}
	switch {
	case me.Stopping:
		return galeraWait, workf("the server is stopping")
	case v.doomed != "" && me.running() && me.State != galeraServing:
		return galeraStop, workf("starting anew: the server says %q", v.doomed)
	case me.Left && v.apart >= leftLimit:
		return galeraStop, workf("starting anew: the server has left the group")
	}
	switch me.State {
	case galeraMissing:
		return galeraWait, stopf("the image has no Galera server")
	case galeraServing:
		return decideServing(v)
	case galeraJoining:
		return galeraWait, workf("catching up with %s", others(serving, me.name))
	case galeraStarting:
		if len(primary) > 0 {
			return galeraWait, workf("the server is starting, and joins %s", strings.Join(primary, ", "))
		}
		// One that is let into a component that then falls apart asks for its data for ever, and the others wait for it.
		if v.alone < astrayLimit {
			return galeraWait, workf("the server is starting")
		}
		if len(silent) > 0 {
			status := waitf("for %s, whom the server may be joining", strings.Join(silent, ", "))
			status.Missing = v.decidable(silent)
			return galeraWait, status
		}
		return galeraStop, workf("starting anew: there is no primary component to join")
	case galeraApart:
		if me.Left {
			return galeraWait, workf("the server has left the group")
		}
		if len(primary) > 0 {
			if v.apart >= astrayLimit {
				return galeraStop, workf("starting anew: it does not find back to %s", strings.Join(primary, ", "))
			}
			return galeraWait, waitf("to be taken back by %s", strings.Join(primary, ", "))
		}
	}
	if len(primary) > 0 { // and this one is stopped
		return decideJoin(v, primary)
	}
	if me.State == galeraUnread {
		return galeraRecover, workf("determining how far its data goes")
	}
	if len(silent) > 0 {
		status := waitf("for %s, who may have data", strings.Join(silent, ", "))
		if me.Position.valid() {
			status = waitf("for %s, who may have newer data than %d", strings.Join(silent, ", "), me.Position.Seqno)
		}
		status.Missing = v.decidable(silent)
		return galeraWait, status
	}
	if len(starting) > 0 {
		return galeraWait, waitf("for %s to start", strings.Join(starting, ", "))
	}
	return decideStart(v)
}

// decideServing is for a member in the primary component.
func decideServing(v galeraView) (galeraStep, facts.Status) {
	me := v.members[v.self]
	first := v.members[slices.IndexFunc(v.members, func(m galeraMember) bool {
		return m.heard && m.State == galeraServing && m.Position.UUID == me.Position.UUID
	})].name
	rival, twice := v.rival(me.Position.UUID)
	switch {
	case me.Cluster != "" && me.Cluster != v.cluster:
		return galeraWait, stopf("its data is of the cluster %s, and this one is %s: remove the data disk if it may be lost", me.Cluster, v.cluster)
	case twice && !v.rightful(me.Position.UUID):
		return galeraWait, stopf("%s serves the history %s, and %s another one, %s: remove the data disk of the one that may be lost", me.name, me.Position.UUID, rival.name, rival.Position.UUID)
	case twice && me.Cluster != "":
		return galeraWait, ready(fmt.Sprintf("%d of %d members; %s serves another history, %s, and is not used: remove its data disk if it may be lost", me.Size, len(v.members), rival.name, rival.Position.UUID))
	case me.Cluster != "":
		return galeraWait, ready(fmt.Sprintf("%d of %d members", me.Size, len(v.members)))
	case first == me.name:
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
		if rival, twice := v.rival(m.Position.UUID); twice && slices.Contains(primary, m.name) {
			return galeraWait, stopf("%s and %s serve different histories, and a server joins either: remove the data disk of the one that may be lost", m.name, rival.name)
		}
	}
	for _, m := range v.members {
		if m.name == me.name || !slices.Contains(primary, m.name) || me.State == galeraEmpty || me.State == galeraUnusable {
			continue
		}
		switch {
		case m.Position.UUID == "":
			return galeraWait, waitf("for %s to say of which history its data is", m.name)
		case me.Position.UUID != m.Position.UUID && !goesOn(m.Position.UUID, me.Position.UUID):
			return galeraWait, stopf("its data is of the history %s, and that of %s is %s: joining would destroy it; remove the data disk if it may be lost",
				me.Position.UUID, m.name, m.Position.UUID)
		}
	}
	return galeraJoin, workf("joining %s", strings.Join(primary, ", "))
}

// decideStart is for when every member that counts has answered and none is in a primary component.
func decideStart(v galeraView) (galeraStep, facts.Status) {
	var present, gone, apart, all, unusable []galeraMember
	for i, m := range v.members {
		if i != v.self && !m.heard {
			gone = append(gone, m) // given up
			continue
		}
		if m.Left { // how far its data goes shows when it has stopped
			return galeraWait, waitf("for %s to start anew", m.name)
		}
		present = append(present, m)
		if m.State == galeraApart {
			apart = append(apart, m)
		}
		switch m.State {
		case galeraMissing:
			return galeraWait, waitf("for %s, whose image has no Galera server", m.name)
		case galeraUnread:
			return galeraWait, waitf("for %s to determine how far its data goes", m.name)
		case galeraUnusable:
			unusable = append(unusable, m)
		case galeraHolds, galeraApart:
			if !m.Position.valid() {
				unusable = append(unusable, m)
				continue
			}
			all = append(all, m)
		}
	}
	var holding []galeraMember
	for _, m := range all { // with a fork there, what it was made from counts no more
		if !slices.ContainsFunc(all, func(o galeraMember) bool { return goesOn(o.Position.UUID, m.Position.UUID) }) {
			holding = append(holding, m)
		}
	}
	me := v.members[v.self]
	if len(holding) == 0 && len(unusable) > 0 {
		return galeraWait, stopf("the data of %s is not whole (a state transfer was interrupted), and nobody else has any: restore a backup", names(unusable))
	}
	if len(holding) == 0 { // a new cluster
		if first := present[0]; first.name != me.name {
			return galeraWait, waitf("for %s to start the cluster", first.name)
		}
		if len(gone) > 0 && v.going < announceLimit {
			return galeraAnnounce, workf("about to make a new database, without %s", names(gone))
		}
		return galeraFound, workf("making a new database")
	}
	for _, m := range holding {
		if m.Position.UUID != holding[0].Position.UUID {
			return galeraWait, stopf("%s and %s have data of different histories: remove the data disk of the one that may be lost", holding[0].name, m.name)
		}
	}
	// The first of the most advanced. One that runs goes first: running members may come together by themselves at any
	// time, and must not do so beside a cluster that another one has started.
	winner := slices.MinFunc(holding, func(a, b galeraMember) int {
		return cmp.Or(cmp.Compare(b.Position.Seqno, a.Position.Seqno), cmp.Compare(a.State, b.State)) // apart, holds
	})
	scattered := me.State == galeraApart && me.Size < len(apart)
	switch {
	case me.State == galeraApart && v.apart < apartLimit:
		return galeraWait, waitf("for the members to come together again")
	case me.State == galeraApart && len(gone) > 0:
		// The others will have a history of their own, which a running server cannot take over.
		return galeraStop, workf("stopping, to go on without %s", names(gone))
	case me.State == galeraApart && winner.State == galeraHolds:
		return galeraStop, workf("stopping, so that %s can start the cluster: its data is the newest (%d)", winner.name, winner.Position.Seqno)
	case scattered && v.apart >= astrayLimit:
		return galeraStop, workf("starting anew: it does not find back to %s", others(memberNames(apart), me.name))
	case scattered:
		return galeraWait, waitf("to find back to %s", others(memberNames(apart), me.name))
	case winner.name != me.name:
		return galeraWait, waitf("for %s to start the cluster: its data is the newest (%d)", winner.name, winner.Position.Seqno)
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
		list = append(list, m.name)
	}
	return list
}

// view puts together what is known now.
func (g *galera) view(w World) galeraView {
	v := galeraMembers(w, g.name, g.seen)
	v.cluster, v.doomed = g.node.Facts.ClusterID, g.doomed
	if !g.apart.IsZero() {
		v.apart = time.Since(g.apart)
	}
	if g.seen.State != galeraStarting || v.primary() || getsOn(g.running) {
		g.alone = time.Time{}
	} else if g.alone.IsZero() {
		g.alone = time.Now()
	} else {
		v.alone = time.Since(g.alone)
	}
	if !g.going.IsZero() {
		v.going = time.Since(g.going)
	}
	return v
}

// galeraMembers puts together what is known of the members. name is the component's, own is what this one observed.
func galeraMembers(w World, name string, own galeraReport) galeraView {
	var v galeraView
	reports := reportsOf[galeraReport](w, name)
	peers := append(peersIn(w, w.Self.Role), w.Self)
	slices.SortFunc(peers, func(a, b facts.Peer) int { return cmp.Compare(a.Index, b.Index) })
	for i, p := range peers {
		m := galeraMember{name: p.Name}
		_, m.answers = w.Reports[p.Name]
		m.lost = !m.answers && slices.Contains(w.Without, p.Name)
		if p.Name == w.Self.Name {
			v.self = i
			m.heard, m.galeraReport = true, own
		} else {
			m.galeraReport, m.heard = reports[p.Name]
		}
		v.members = append(v.members, m)
	}
	return v
}

func (g *galera) Step(ctx context.Context, w World) (facts.Status, error) {
	step, status := decideGalera(g.view(w))
	g.goes = step == galeraAnnounce || g.goes && (step == galeraFork || step == galeraFound)
	if g.seen.State == galeraServing && g.seen.Cluster != "" {
		if err := g.founded(); err != nil {
			return status, err
		}
		if g.retry.pause > 0 && time.Since(g.retry.until) > maxPause {
			g.retry.reset()
		}
	}
	switch step {
	case galeraWait, galeraAnnounce:
		return status, nil
	case galeraJoin, galeraBootstrap, galeraFork, galeraFound:
		if held := g.retry.left(); held > 0 {
			if g.failed == "" {
				return status, nil
			}
			return facts.Status{State: facts.Failed, Detail: fmt.Sprintf("the server stopped: %s; next start in %d s", g.failed, seconds(held))}, nil
		}
		g.retry.next()
	}
	g.node.Working(status.Detail)
	return status, g.do(ctx, step)
}

func (g *galera) do(ctx context.Context, step galeraStep) error {
	switch step {
	case galeraRecover:
		return g.recover(ctx)
	case galeraFound:
		return g.found(ctx)
	case galeraBootstrap:
		return g.bootstrap(ctx)
	case galeraFork:
		return g.fork(ctx)
	case galeraJoin:
		g.known = nil
		return startUnit(ctx, g.params.Unit)
	case galeraStop:
		for _, u := range g.units {
			if err := stopUnit(ctx, u); err != nil {
				return err
			}
		}
		return nil
	case galeraPromote:
		_, err := g.sql(ctx, promoteSQL)
		return err
	case galeraInitialise:
		return g.initialise(ctx)
	}
	return nil
}

// recover asks the server's own recovery how far the data goes.
func (g *galera) recover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoverLimit)
	defer cancel()
	out, err := run(ctx, nil, g.params.Recover...)
	if err != nil {
		return fmt.Errorf("determine how far the data goes: %w", err)
	}
	at, err := parseRecovery(out)
	if err != nil {
		return err
	}
	g.known = &at
	return nil
}

// found makes a database and starts a cluster with it. Interrupted anywhere, it begins again: what is in the folder is
// the agent's own work until users and databases have been made.
func (g *galera) found(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, foundLimit)
	defer cancel()
	mark := filepath.Join(g.params.DataDir, foundingName)
	if err := atomicfile.Write(mark, []byte(g.node.Facts.ClusterID+"\n"), 0o600); err != nil {
		return err
	}
	entries, err := os.ReadDir(g.params.DataDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == foundingName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(g.params.DataDir, e.Name())); err != nil {
			return err
		}
	}
	if _, err := run(ctx, nil, g.params.InstallDB...); err != nil {
		return fmt.Errorf("make an empty database: %w", err)
	}
	return g.start(ctx)
}

// founded removes the mark of a cluster that is only just beginning.
func (g *galera) founded() error {
	err := os.Remove(filepath.Join(g.params.DataDir, foundingName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// bootstrap starts a cluster from the node's data.
func (g *galera) bootstrap(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, foundLimit)
	defer cancel()
	data, err := os.ReadFile(g.grastate())
	switch {
	case errors.Is(err, fs.ErrNotExist): // Galera then takes the position from InnoDB
	case err != nil:
		return err
	default:
		info, err := os.Stat(g.grastate())
		if err != nil {
			return err
		}
		if err := atomicfile.Write(g.grastate(), safeToBootstrap(data), info.Mode().Perm()); err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		if err := os.Chown(g.grastate(), int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	return g.start(ctx)
}

func (g *galera) start(ctx context.Context) error {
	g.known = nil                                                 // the server may be gone again before it is next looked for
	run(ctx, nil, "systemctl", "reset-failed", g.params.BootUnit) // fails where nothing had failed
	if _, err := run(ctx, nil, g.params.Bootstrap...); err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	return nil
}

// fork starts a cluster from the node's data, as a history of its own. Interrupted or failing before the server has
// noted that in its data, it goes on with the name that it has chosen.
func (g *galera) fork(ctx context.Context) error {
	if err := g.recover(ctx); err != nil {
		return err
	}
	data, err := os.ReadFile(g.grastate())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	history := parseGrastate(data).UUID
	if !goesOn(history, g.known.UUID) {
		history = forkOf(g.known.UUID)
	}
	state := fmt.Appendf(nil, "# GALERA saved state\nversion: 2.1\nuuid:    %s\nseqno:   %d\nsafe_to_bootstrap: 1\n", history, g.known.Seqno)
	if err := writeOwned(g.grastate(), state, g.params.Owner); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, foundLimit)
	defer cancel()
	return g.start(ctx)
}

// safeToBootstrap changes Galera's note so that it lets a cluster be started from this node. Galera itself sets it on
// the last node that was stopped, and after a crash on none; the agents have found out better.
func safeToBootstrap(data []byte) []byte {
	return bytes.ReplaceAll(data, []byte("safe_to_bootstrap: 0"), []byte("safe_to_bootstrap: 1"))
}

// initialise makes users and databases, and the marker last.
func (g *galera) initialise(ctx context.Context) error {
	init, err := os.ReadFile(g.params.InitSQL)
	if err != nil {
		return err
	}
	if _, err := g.sql(ctx, string(init)+fmt.Sprintf(markerSQL, g.node.Facts.ClusterID)); err != nil {
		return fmt.Errorf("make users and databases: %w", err)
	}
	return nil
}

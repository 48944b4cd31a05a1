package agent

import (
	"bytes"
	"context"
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

// foundingName is a file in a data folder whose database the agent is still making. As long as it exists, everything beside it
// may be removed and made again.
const foundingName = ".imagegen-founding"

// galeraServer is the node's database server and its data. The simulator has one of its own.
type galeraServer interface {
	unitNames() []string
	// look observes and changes nothing.
	look(ctx context.Context) (galeraSeen, error)
	// do takes a step. If it is interrupted anywhere, it can be repeated.
	do(ctx context.Context, step galeraStep) error
	// begun records that the cluster exists: the data folder may not be cleared any more.
	begun() error
	// close ends what looking has left running.
	close()
}

// galeraSeen is what a look at the server shows.
type galeraSeen struct {
	galeraReport
	doomed string // the running server's log message that only a restart can fix
	failed string // the last line of a server that stopped
	getsOn bool   // a server that is being started makes progress
}

// galeraUnits is the server as systemd units run it.
type galeraUnits struct {
	params  *facts.GaleraParams
	client  sqlClient
	cluster string   // id
	units   []string // of the server: one or the other runs
	doomed  string
	read    time.Time // when its log was last read
	running string    // the unit that ran when it was last looked at; empty: none
	known   *position // recovered since the server stopped
	failed  string
	disk    diskProbe
	served  galeraReport // the last one of a server that serves
	killed  bool         // because its disk is frozen
}

func (g *galeraUnits) unitNames() []string { return g.units }

func (g *galeraUnits) look(ctx context.Context) (galeraSeen, error) {
	was := g.running
	fault := g.disk.look(g.params.DataDir)
	if g.killed = g.killed && fault == diskFrozen; g.killed {
		// The process does not end before the disk goes on.
		return galeraSeen{}, errors.New("the data disk is frozen, and the server was killed")
	}
	if fault == diskFrozen && g.served.State == galeraServing && g.running != "" {
		// The server may not answer, or only until it needs the disk.
		g.served.Disk = fault
		return galeraSeen{galeraReport: g.served}, nil
	}
	report, err := g.report(ctx)
	if g.served = report; err != nil {
		return galeraSeen{}, err
	}
	report.Disk = fault
	if g.running != "" {
		g.known, g.failed = nil, ""
	} else {
		g.close()
		if was != "" {
			g.failed = lastLine(ctx, was)
		}
	}
	g.listen(ctx, report)
	return galeraSeen{report, g.doomed, g.failed, getsOn(g.running)}, nil
}

// doomedPattern matches what Galera logs when a server can no longer become a member. Some servers then continue to run.
var doomedPattern = regexp.MustCompile(`(?i).*(restart required|must be restarted|need to restart|need to abort|leaving cluster).*`)

// listen looks into the log of a running server that does not serve.
func (g *galeraUnits) listen(ctx context.Context, seen galeraReport) {
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
		return // the server's status shows it too, only later
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

func (g *galeraUnits) report(ctx context.Context) (galeraReport, error) {
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
func (g *galeraUnits) readFolder() (galeraReport, error) {
	entries, err := os.ReadDir(g.params.DataDir)
	if err != nil {
		return galeraReport{}, err
	}
	// A temporary file of the mark, left by a crash, is not data either.
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

func (g *galeraUnits) grastate() string { return filepath.Join(g.params.DataDir, "grastate.dat") }

// parseGrastate reads grastate.dat, Galera's own record of its position. Only after a clean stop does it hold the position;
// while the server runs, and after a crash, its seqno is -1. Invalid values count as unknown.
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

// The marker is the comment of a table, so that it can be queried without an error if the table does not exist.
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
func (g *galeraUnits) ask(ctx context.Context) (galeraReport, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	out, err := g.client.ask(ctx, statusSQL)
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return galeraReport{}, silentError(fmt.Sprintf("the database server does not answer within %v", askLimit))
	}
	if err != nil {
		// Without sd_notify, a unit is active before its server accepts connections.
		return galeraReport{State: galeraStarting}, nil
	}
	return parseStatus(out), nil
}

func (g *galeraUnits) close() { g.client.close() }

func (g *galeraUnits) sql(ctx context.Context, text string) ([]byte, error) {
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
		r.State, r.Left = galeraNonPrimary, rows["wsrep_connected"] == "OFF"
	case rows["wsrep_ready"] == "ON" && (state == "4" || state == "2"):
		r.State = galeraServing
	default:
		r.State = galeraJoining
	}
	return r
}

func (g *galeraUnits) do(ctx context.Context, step galeraStep) error {
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
	case galeraKill:
		if err := killUnit(ctx, g.running); err != nil {
			return err
		}
		g.killed = true
	}
	return nil
}

// recover determines the position of the data with the server's own recovery.
func (g *galeraUnits) recover(ctx context.Context) error {
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

// found makes a database and starts a cluster with it. If it is interrupted anywhere, it starts over: until users and databases
// exist, the folder holds only the agent's own work.
func (g *galeraUnits) found(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, foundLimit)
	defer cancel()
	mark := filepath.Join(g.params.DataDir, foundingName)
	if err := atomicfile.Write(mark, []byte(g.cluster+"\n"), 0o600); err != nil {
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

func (g *galeraUnits) begun() error {
	err := os.Remove(filepath.Join(g.params.DataDir, foundingName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// bootstrap starts a cluster from the node's data.
func (g *galeraUnits) bootstrap(ctx context.Context) error {
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

func (g *galeraUnits) start(ctx context.Context) error {
	g.known = nil                                                 // the server may have run and stopped before the next look
	run(ctx, nil, "systemctl", "reset-failed", g.params.BootUnit) // fails where nothing had failed
	if _, err := run(ctx, nil, g.params.Bootstrap...); err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	return nil
}

// fork starts a cluster from the node's data, as a new history. If it is interrupted before the server has stored the history's
// UUID in its data, the next attempt uses the same UUID.
func (g *galeraUnits) fork(ctx context.Context) error {
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

// safeToBootstrap changes grastate.dat so that Galera lets this node start a cluster. Galera itself sets the flag only on the
// last node that stopped, and on none after a crash; the agents have compared all positions.
func safeToBootstrap(data []byte) []byte {
	return bytes.ReplaceAll(data, []byte("safe_to_bootstrap: 0"), []byte("safe_to_bootstrap: 1"))
}

// initialise makes users and databases, and the marker last.
func (g *galeraUnits) initialise(ctx context.Context) error {
	init, err := os.ReadFile(g.params.InitSQL)
	if err != nil {
		return err
	}
	if _, err := g.sql(ctx, string(init)+fmt.Sprintf(markerSQL, g.cluster)); err != nil {
		return fmt.Errorf("make users and databases: %w", err)
	}
	return nil
}

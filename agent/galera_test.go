package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// Output of MariaDB 10.11 with Galera 26.4.
const (
	historyUUID  = "5f1e1d1c-e94a-11f0-a1b2-4b8d2c3e5f60"
	cleanState   = "# GALERA saved state\nversion: 2.1\nuuid:    " + historyUUID + "\nseqno:   71\nsafe_to_bootstrap: 0\n"
	crashedState = "# GALERA saved state\nversion: 2.1\nuuid:    " + historyUUID + "\nseqno:   -1\nsafe_to_bootstrap: 0\n"
	joinerState  = "# GALERA saved state\nversion: 2.1\nuuid:    00000000-0000-0000-0000-000000000000\nseqno:   -1\nsafe_to_bootstrap: 0\n"
)

func TestGrastate(t *testing.T) {
	for text, want := range map[string]position{
		cleanState:                        {historyUUID, 71},
		crashedState:                      {historyUUID, -1},
		joinerState:                       {nullUUID, -1},
		"":                                {"", -1},
		"uuid: not-a-uuid\nseqno: many\n": {"", -1},
		strings.Repeat("\x00", 4096):      {"", -1}, // what some file systems leave after a crash
		cleanState[:strings.Index(cleanState, "seqno")]: {historyUUID, -1},
	} {
		if got := parseGrastate([]byte(text)); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	for at, want := range map[position]bool{{historyUUID, 71}: true, {historyUUID, 0}: true, {historyUUID, -1}: false, {nullUUID, 5}: false, {"", 5}: false} {
		if at.valid() != want {
			t.Errorf("%+v counts: %v", at, !want)
		}
	}
	if got := string(safeToBootstrap([]byte(cleanState))); got != strings.Replace(cleanState, "bootstrap: 0", "bootstrap: 1", 1) {
		t.Errorf("made safe to bootstrap:\n%s", got)
	}
}

func FuzzGrastate(f *testing.F) {
	for _, s := range []string{cleanState, crashedState, joinerState, ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if at := parseGrastate(data); at.valid() && !strings.Contains(string(data), at.UUID) {
			t.Errorf("%+v is not in %q", at, data)
		}
	})
}

func TestRecovery(t *testing.T) {
	const lines = "2026-11-23 17:53:11 0 [Note] InnoDB: 10.11.11 started; log sequence number 46846; transaction id 14\n" +
		"2026-11-23 17:53:11 0 [Note] WSREP: Recovered position: "
	for text, want := range map[string]position{
		lines + historyUUID + ":71\n":                               {historyUUID, 71},
		lines + historyUUID + ":71,0-1-2\n":                         {historyUUID, 71}, // with a GTID
		lines + nullUUID + ":-1\n":                                  {nullUUID, -1},
		lines + historyUUID + ":3\n" + lines + historyUUID + ":4\n": {historyUUID, 4},
	} {
		if got, err := parseRecovery([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", lines, lines + historyUUID, lines + historyUUID + ":99999999999999999999\n"} {
		if got, err := parseRecovery([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func FuzzRecovery(f *testing.F) {
	f.Add([]byte("WSREP: Recovered position: " + historyUUID + ":71\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if at, err := parseRecovery(data); err == nil && !strings.Contains(string(data), at.UUID) {
			t.Errorf("%+v is not in %q", at, data)
		}
	})
}

func TestGaleraStatus(t *testing.T) {
	rows := func(status, state, ready string) string {
		return "wsrep_local_state\t" + state + "\nwsrep_last_committed\t71\nwsrep_cluster_size\t3\nwsrep_cluster_state_uuid\t" + historyUUID +
			"\nwsrep_cluster_status\t" + status + "\nwsrep_ready\t" + ready + "\n"
	}
	at := position{historyUUID, 71}
	// The status of a MariaDB 10.11.19 that has left the group and keeps running.
	const left = "wsrep_local_state\t0\nwsrep_last_committed\t1\nwsrep_cluster_size\t0\nwsrep_cluster_state_uuid\t" + nullUUID +
		"\nwsrep_cluster_status\tDisconnected\nwsrep_connected\tOFF\nwsrep_ready\tOFF\n"
	for text, want := range map[string]galeraReport{
		left: {State: galeraNonPrimary, Position: position{nullUUID, 1}, Left: true},
		rows("Primary", "4", "ON") + "marker\tc1\n": {State: galeraServing, Position: at, Size: 3, Cluster: "c1"},
		rows("Primary", "2", "ON"):                  {State: galeraServing, Position: at, Size: 3}, // gives a state transfer
		rows("Primary", "1", "OFF"):                 {State: galeraJoining, Position: at, Size: 3},
		rows("Primary", "4", "OFF"):                 {State: galeraJoining, Position: at, Size: 3},
		rows("non-Primary", "4", "OFF"):             {State: galeraNonPrimary, Position: at, Size: 3},
		"":                                          {State: galeraNonPrimary, Position: position{"", -1}},
	} {
		if got := parseStatus([]byte(text)); got.State != want.State || got.Position != want.Position || got.Size != want.Size || got.Left != want.Left || got.Cluster != want.Cluster {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// States of a stopped server, from its data folder.
func TestGaleraFolder(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		known *position
		want  galeraState
	}{
		"blank":                                 {nil, nil, galeraEmpty},
		"died before making a database":         {map[string]string{foundingName: "c1"}, nil, galeraEmpty},
		"died while marking":                    {map[string]string{foundingName + ".tmp1": ""}, nil, galeraEmpty},
		"died while making a database":          {map[string]string{foundingName: "c1", "ibdata1": "x"}, nil, galeraUnread},
		"the same, found to hold nothing":       {map[string]string{foundingName: "c1", "ibdata1": "x"}, &position{nullUUID, -1}, galeraEmpty},
		"stopped":                               {map[string]string{"ibdata1": "x", "grastate.dat": cleanState}, nil, galeraHolds},
		"lost power":                            {map[string]string{"ibdata1": "x", "grastate.dat": crashedState}, nil, galeraUnread},
		"lost power, recovered":                 {map[string]string{"ibdata1": "x", "grastate.dat": crashedState}, &position{historyUUID, 71}, galeraHolds},
		"lost power in a state transfer":        {map[string]string{"ibdata1": "x", "grastate.dat": joinerState}, nil, galeraUnread},
		"the same, found to hold nothing whole": {map[string]string{"ibdata1": "x", "grastate.dat": joinerState}, &position{nullUUID, -1}, galeraUnusable},
	} {
		dir := t.TempDir()
		for f, text := range c.files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		g := &galeraUnits{params: &facts.GaleraParams{DataDir: dir}, known: c.known}
		if got, err := g.readFolder(); err != nil || got.State != c.want {
			t.Errorf("%s: %s, %v; want %s", name, got.State, err, c.want)
		}
	}
}

// istFailed is from the journal of a MariaDB 10.11.19 that kept running, while the agent waited for it.
const istFailed = `2026-11-28 19:10:17 0 [Note] WSREP: Receiving IST... 100.0% (3/3 events) complete.
2026-11-28 19:10:17 12 [ERROR] WSREP: Receiving IST failed, node restart required: IST receiver reported failure: 'IST didn't contain all write sets, expected last: 4088 last received: 4087' (71)
2026-11-28 19:10:17 2 [Note] WSREP: Draining apply monitors after IST up to 4087
2026-11-28 19:10:17 0 [Note] WSREP: New SELF-LEAVE.
2026-11-28 19:10:17 0 [Note] WSREP: Shifting OPEN -> CLOSED (TO: 4091)
`

func TestWhatAServerSaysThatMustBeRestarted(t *testing.T) {
	for log, want := range map[string]string{
		"": "",
		"2026-11-28 19:10:17 0 [Note] WSREP: Receiving IST... 0.0% (0/3 events) complete.\n": "",
		"2026-11-28 19:10:17 2 [Note] WSREP: Shifting JOINER -> JOINED (TO: 4088)\n":         "",
		istFailed: "Receiving IST failed, node restart required",
		"[ERROR] WSREP: SST failed: 32 (Broken pipe)\n[ERROR] WSREP: Will never receive state. Need to abort.\n":           "Need to abort",
		"[ERROR] WSREP: Node consistency compromized, leaving cluster...\n[Note] WSREP: Shifting SYNCED -> OPEN (TO: 5)\n": "leaving cluster",
	} {
		if got := doomedLine([]byte(log)); (got == "") != (want == "") || !strings.Contains(got, want) || strings.Contains(got, "\n") {
			t.Errorf("%q: %q", log, got)
		}
	}
}

// A server that has left the group, or says that it must be restarted, is restarted at once, whatever the state of the
// others. While it stops, no other step is taken on it.
func TestServerThatMustBeRestarted(t *testing.T) {
	at := position{historyUUID, 4088}
	serving := galeraReport{State: galeraServing, Position: at, Size: 2, Cluster: "c"}
	left := galeraReport{State: galeraNonPrimary, Position: position{nullUUID, -1}, Left: true}
	view := func(own, others galeraReport) galeraView {
		return membersOf(1, others, own, others)
	}
	for name, c := range map[string]struct {
		own    galeraReport
		doomed string
		apart  time.Duration
		want   galeraStep
	}{
		"left, a moment ago":     {left, "", time.Second, galeraWait},
		"left":                   {left, "", leftLimit, galeraStop},
		"says so while starting": {galeraReport{State: galeraStarting}, istFailed, 0, galeraStop},
		"says so while apart":    {galeraReport{State: galeraNonPrimary, Position: at, Size: 1}, istFailed, 0, galeraStop},
		"said so, and serves":    {serving, istFailed, 0, galeraWait},
		"is stopping":            {galeraReport{State: galeraStarting, Stopping: true}, istFailed, 0, galeraWait},
		"starts":                 {galeraReport{State: galeraStarting}, "", 0, galeraWait},
	} {
		for _, others := range []galeraReport{serving, {State: galeraHolds, Position: at}, left} {
			v := view(c.own, others)
			v.doomed, v.nonPrimary = c.doomed, c.apart
			if step, status := decideGalera(v); step != c.want {
				t.Errorf("%s, others %s: step %d, %+v", name, others.State, step, status)
			}
		}
	}
	// The position of a server that has left is unknown until it has stopped: nobody bootstraps before.
	for _, own := range []galeraReport{{State: galeraHolds, Position: position{historyUUID, 12}}, {State: galeraNonPrimary, Position: position{historyUUID, 12}, Size: 2}} {
		v := view(own, galeraReport{State: galeraHolds, Position: position{historyUUID, 11}})
		v.members[0].galeraReport, v.nonPrimary = left, time.Hour
		if step, status := decideGalera(v); step != galeraWait || !strings.Contains(status.Detail, "percona1") {
			t.Errorf("%s beside one that has left: step %d, %+v", own.State, step, status)
		}
	}
}

// Two primary components with different histories: both report it, and never are both ready, since the balancers ask
// for that. No step changes data.
func TestTwoPrimaries(t *testing.T) {
	const (
		one = "11111111-1111-1111-1111-111111111111"
		two = "22222222-2222-2222-2222-222222222222"
	)
	fork := forkOf(one)
	serving := func(history, made string) galeraReport {
		return galeraReport{State: galeraServing, Position: position{history, 100}, Size: 1, Cluster: made}
	}
	joining := func(history string) galeraReport {
		return galeraReport{State: galeraJoining, Position: position{history, 90}}
	}
	silent := galeraReport{}
	for name, c := range map[string]struct {
		members [3]galeraReport
		ready   string // who may serve
	}{
		"one has most members":                     {[3]galeraReport{serving(one, "c"), serving(two, "c"), serving(two, "c")}, "-++"},
		"most members, though not yet made":        {[3]galeraReport{serving(one, "c"), serving(two, ""), serving(two, "")}, "---"},
		"most members, one of them catching up":    {[3]galeraReport{serving(one, "c"), serving(two, "c"), joining(two)}, "-+-"},
		"one each":                                 {[3]galeraReport{serving(one, "c"), serving(two, "c"), silent}, "---"},
		"three different ones":                     {[3]galeraReport{serving(one, "c"), serving(two, "c"), serving(fork, "c")}, "---"},
		"one is what an operator's decision made":  {[3]galeraReport{serving(one, "c"), serving(fork, "c"), silent}, "-+-"},
		"an operator's decision, against most":     {[3]galeraReport{serving(one, "c"), serving(one, "c"), serving(fork, "c")}, "++-"},
		"in one of them nothing has been made":     {[3]galeraReport{serving(one, ""), serving(two, "c"), silent}, "-+-"},
		"in neither anything has been made":        {[3]galeraReport{serving(one, ""), serving(two, ""), silent}, "---"},
		"one is of another cluster":                {[3]galeraReport{serving(one, "other"), serving(two, "c"), serving(two, "c")}, "-++"},
		"the third has no data and joins neither":  {[3]galeraReport{serving(one, "c"), serving(two, "c"), {State: galeraEmpty}}, "---"},
		"the third has old data and joins neither": {[3]galeraReport{serving(one, "c"), serving(fork, "c"), {State: galeraHolds, Position: position{one, 10}}}, "-+-"},
	} {
		v := membersOf(0, c.members[:]...)
		for i, m := range v.members {
			if !m.Heard {
				continue
			}
			v.self = i
			step, status := decideGalera(v)
			if mayServe := c.ready[i] == '+'; (status.State == facts.Ready) != mayServe {
				t.Errorf("%s: %s is %+v", name, m.Name, status)
			}
			if m.State == galeraServing && m.Cluster != "other" && step != galeraInitialise && status.State != facts.Waiting && !strings.Contains(status.Detail, "history") {
				t.Errorf("%s: %s does not say it: %+v", name, m.Name, status)
			}
			if step != galeraWait && step != galeraInitialise || step == galeraInitialise && m.Position.UUID != two {
				t.Errorf("%s: %s takes step %d", name, m.Name, step)
			}
		}
	}
}

// A node whose agent answers is not lost, even if the agent cannot tell the server's state: nobody bootstraps without
// its data, whatever the operator has decided, and there is nothing to decide.
func TestDecideAgainstLiving(t *testing.T) {
	peers := []facts.Peer{{Name: "p1", Role: "percona"}, {Name: "p2", Role: "percona", Index: 1}, {Name: "p3", Role: "percona", Index: 2}}
	g := &galera{node: Node{Facts: facts.Facts{ClusterID: "c", Node: peers[1]}}}
	g.seen.galeraReport = galeraReport{State: galeraHolds, Position: position{historyUUID, 100}}
	hung := facts.NodeReport{Node: peers[0], Components: map[string]facts.ComponentReport{
		"galera": {Kind: "galera", Status: facts.Status{State: facts.Failed, Detail: "the database server does not answer within 3s"}}}}
	w := World{Self: peers[1], Peers: []facts.Peer{peers[0], peers[2]}, Reports: map[string]PeerReport{"p1": {NodeReport: hung}}, Without: []string{"p1", "p3"}}
	g.going = time.Now().Add(-time.Hour)
	if step, status := decideGalera(g.view(w)); step != galeraWait || !strings.Contains(status.Detail, "p1") || strings.Contains(status.Detail, "p3") || status.Missing != "" {
		t.Errorf("step %d, %+v", step, status)
	}
	w.Without = nil
	if _, status := decideGalera(g.view(w)); status.Missing != "p3" || !strings.Contains(status.Detail, "p1, p3") {
		t.Errorf("%+v", status)
	}
	delete(w.Reports, "p1")
	w.Without = []string{"p1", "p3"}
	if step, status := decideGalera(g.view(w)); step != galeraFork {
		t.Errorf("with both gone: step %d, %+v", step, status)
	}
}

// membersOf returns a view of percona1, percona2, … with these reports. A report without a state is a silent node's.
func membersOf(self int, reports ...galeraReport) galeraView {
	v := galeraView{cluster: "c", self: self}
	for i, r := range reports {
		v.members = append(v.members, galeraMember{ensemble.Member{Peer: facts.Peer{Name: fmt.Sprintf("percona%d", i+1)}, Heard: r.State != ""}, r})
	}
	return v
}

// A member whose disk takes no writes leaves them to others; if there are none, it goes on with what it can.
func TestGaleraDiskTakesNoWrites(t *testing.T) {
	serving := func(disk diskFault) galeraReport {
		return galeraReport{State: galeraServing, Position: position{UUID: "one", Seqno: 7}, Size: 3, Cluster: "c", Disk: disk}
	}
	for name, c := range map[string]struct {
		reports [3]galeraReport
		step    galeraStep
		state   facts.State
		detail  string
	}{
		"none":                    {[3]galeraReport{serving(""), serving(""), serving("")}, galeraWait, facts.Ready, "3 of 3"},
		"another one":             {[3]galeraReport{serving(""), serving(diskFull), serving(diskFrozen)}, galeraWait, facts.Ready, "3 of 3"},
		"full":                    {[3]galeraReport{serving(diskFull), serving(""), serving("")}, galeraWait, facts.Failed, "percona2, percona3"},
		"frozen":                  {[3]galeraReport{serving(diskFrozen), serving(""), serving(diskFull)}, galeraKill, facts.Failed, "percona2"},
		"all are full":            {[3]galeraReport{serving(diskFull), serving(diskFull), serving(diskFull)}, galeraWait, facts.Ready, "as on all others"},
		"all are frozen":          {[3]galeraReport{serving(diskFrozen), serving(diskFrozen), serving(diskFrozen)}, galeraWait, facts.Ready, "as on all others"},
		"the others do not serve": {[3]galeraReport{serving(diskFrozen), {State: galeraJoining, Position: position{UUID: "one"}}, {}}, galeraWait, facts.Ready, "as on all others"},
	} {
		v := membersOf(0, c.reports[:]...)
		v.cluster = "c"
		step, status := decideGalera(v)
		if step != c.step || status.State != c.state || !strings.Contains(status.Detail, c.detail) {
			t.Errorf("%s: step %d, %+v", name, step, status)
		}
	}
}

// The probe says that a disk is frozen once a call has not returned for long, and never waits for it.
func TestDiskProbe(t *testing.T) {
	var p diskProbe
	dir := t.TempDir()
	if fault := p.look(dir); fault == diskFrozen {
		t.Errorf("at first: %q", fault)
	}
	<-p.answer // it has returned
	p.answer, p.began = make(chan error, 1), time.Now().Add(-2*frozenLimit)
	if fault := p.look(dir); fault != diskFrozen {
		t.Errorf("after long: %q", fault)
	}
	p.answer <- nil
	if fault := p.look(dir); fault == diskFrozen {
		t.Errorf("when it goes on: %q", fault)
	}
}

// A server that has been starting for long may be joining a silent member: it is stopped only if none is silent.
func TestStartingServerIsLeftAloneWhileMembersAreSilent(t *testing.T) {
	starting, holds := galeraReport{State: galeraStarting}, galeraReport{State: galeraHolds, Position: position{historyUUID, 7}}
	for name, c := range map[string]struct {
		others  [2]galeraReport
		alone   time.Duration
		want    galeraStep
		missing string
	}{
		"one silent, long":  {[2]galeraReport{{}, holds}, time.Hour, galeraWait, "percona2"},
		"both silent, long": {[2]galeraReport{}, time.Hour, galeraWait, "percona2,percona3"},
		"none silent, long": {[2]galeraReport{holds, holds}, astrayLimit, galeraStop, ""},
		"none silent":       {[2]galeraReport{holds, holds}, astrayLimit - time.Second, galeraWait, ""},
	} {
		v := membersOf(0, starting, c.others[0], c.others[1])
		v.alone = c.alone
		if step, status := decideGalera(v); step != c.want || status.Missing != c.missing {
			t.Errorf("%s: step %d, %+v", name, step, status)
		}
	}
}

// A fork is a history that an operator started without some data. Where it exists, the data that it was made from no
// longer counts, even if that is ahead.
func TestForkWinsOverWhatItCameFrom(t *testing.T) {
	older := galeraReport{State: galeraHolds, Position: position{historyUUID, 120}}
	fork := galeraReport{State: galeraHolds, Position: position{forkOf(historyUUID), 100}}
	again := galeraReport{State: galeraHolds, Position: position{forkOf(fork.Position.UUID), 90}}
	if step, status := decideGalera(membersOf(1, older, fork, older)); step != galeraBootstrap {
		t.Errorf("the fork: step %d, %+v", step, status)
	}
	if step, status := decideGalera(membersOf(0, older, fork, older)); step != galeraWait || !strings.Contains(status.Detail, "percona2 to start") {
		t.Errorf("what it came from: step %d, %+v", step, status)
	}
	// A fork of a fork that is still present.
	if step, status := decideGalera(membersOf(2, fork, fork, again)); step != galeraBootstrap {
		t.Errorf("the fork of a fork: step %d, %+v", step, status)
	}
}

// Servers that run in separate groups are not promoted: each would become a primary component of its own.
func TestNobodyIsPromotedWhileScattered(t *testing.T) {
	apart := func(size int) galeraReport {
		return galeraReport{State: galeraNonPrimary, Position: position{historyUUID, 7}, Size: size}
	}
	for name, c := range map[string]struct {
		sizes [3]int
		apart time.Duration
		want  galeraStep
	}{
		"together":              {[3]int{3, 3, 3}, nonPrimaryLimit, galeraPromote},
		"together, but not yet": {[3]int{3, 3, 3}, nonPrimaryLimit - time.Second, galeraWait},
		"alone":                 {[3]int{1, 2, 2}, nonPrimaryLimit, galeraWait},
		"two and one":           {[3]int{2, 2, 1}, nonPrimaryLimit, galeraWait},
		"alone, for long":       {[3]int{1, 1, 1}, astrayLimit, galeraStop},
	} {
		v := membersOf(0, apart(c.sizes[0]), apart(c.sizes[1]), apart(c.sizes[2]))
		v.nonPrimary = c.apart
		if step, status := decideGalera(v); step != c.want {
			t.Errorf("%s: step %d, %+v", name, step, status)
		}
	}
}

// A database server is asked through one client process, until that ends, is told to, or does not answer.
func TestDatabaseClientIsKept(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: starts a MariaDB; run it without -short")
	}
	addr, sql := mariadb(t)
	sql("CREATE USER looks@'127.0.0.1'; CREATE USER looks@localhost")
	host, port, _ := net.SplitHostPort(addr)
	c := &sqlClient{argv: []string{"mariadb", "--no-defaults", "-ulooks", "-h" + host, "-P" + port, "--batch", "--skip-column-names"}}
	ask := func(statements string, limit time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		rows, err := c.ask(ctx, statements)
		return strings.TrimSpace(string(rows)), err
	}
	id := func() string {
		t.Helper()
		rows, err := ask("SET SESSION sql_mode='';\nSELECT CONNECTION_ID();\n", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
	first := id()
	if again := id(); again != first {
		t.Errorf("first over connection %s, then over %s", first, again)
	}
	if rows, err := ask("SELECT 1, 2;\nSELECT 3;\n", time.Minute); err != nil || rows != "1\t2\n3" {
		t.Errorf("%q, %v", rows, err)
	}
	if rows, err := ask("SELECT 1 FROM nowhere.nothing;\n", time.Minute); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a mistake: %q, %v", rows, err)
	}
	first = id()
	sql("KILL " + first)
	if again := id(); again == first {
		t.Errorf("connection %s survives that the server closes it", first)
	}
	c.made = time.Now().Add(-2 * keepLimit)
	first = id()
	if time.Since(c.made) > keepLimit {
		t.Error("an old client is kept: it could hide that the server takes no new connections")
	}
	process := strconv.Itoa(c.cmd.Process.Pid)
	if rows, err := ask("SELECT SLEEP(1000);\n", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no answer in time: %q, %v", rows, err)
	}
	if processStat(process) != nil {
		t.Error("the client that got no answer has not ended")
	}
	if again := id(); again == first {
		t.Error("it goes on with a client that has got no answer")
	}
	process = strconv.Itoa(c.cmd.Process.Pid)
	if c.close(); processStat(process) != nil {
		t.Error("the client has not ended")
	}
}

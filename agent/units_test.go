package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

// realUnit is a unit with real processes in its own control group, behind a fake systemctl that reports systemd's state
// and can kill the processes.
type realUnit struct {
	name, group, state string
	started            *exec.Cmd
}

// newRealUnit runs a shell script as a unit's main process.
func newRealUnit(t *testing.T, script string) *realUnit {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes a control group")
	}
	u := &realUnit{name: fmt.Sprintf("imagegen-test-%d-%s.service", os.Getpid(), strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")))}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(root + "/cgroup.procs"); err == nil && os.Mkdir(filepath.Join(root, u.name), 0o755) == nil {
			u.group = filepath.Join(root, u.name)
			break
		}
	}
	if u.group == "" {
		t.Skip("needs a control group hierarchy that can be written to")
	}
	dir := t.TempDir()
	u.state = filepath.Join(dir, "state")
	systemctl := `#!/bin/sh
case "$1 $*" in
show*) cat ` + u.state + `;;
kill*--kill-who=control*) exit 1;;
kill*--kill-who=main*) kill -9 $(sed -n s/MainPID=//p ` + u.state + `);;
kill*--signal=KILL*) xargs -r kill -9 <` + u.group + `/cgroup.procs;; # none are left, perhaps
stop*) kill -TERM $(cat ` + u.group + `/cgroup.procs);;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(systemctl), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	u.started = exec.Command("sh", "-c", `echo $$ >"$1/cgroup.procs" && eval "$2"`, "sh", u.group, script)
	ready, err := u.started.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := u.started.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		kill := func() { exec.Command("sh", "-c", `kill -9 $(cat "$1/cgroup.procs")`, "sh", u.group).Run() }
		kill()
		u.started.Wait()
		// A process that was just being forked is not killed with the others.
		testkit.Until(t, time.Minute, "the unit's processes end", func() bool { kill(); return os.Remove(u.group) == nil })
	})
	if _, err := ready.Read(make([]byte, 1)); err != nil { // the script says when it is set up
		t.Fatalf("the unit's process: %v", err)
	}
	return u
}

// is sets the state that systemd reports.
func (u *realUnit) is(t *testing.T, active, sub, killMode string) {
	t.Helper()
	text := fmt.Sprintf("LoadState=loaded\nActiveState=%s\nSubState=%s\nResult=success\nMainPID=%d\nControlGroup=/%s\nKillMode=%s\n",
		active, sub, u.started.Process.Pid, u.name, killMode)
	if err := os.WriteFile(u.state, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// processes counts the unit's processes.
func (u *realUnit) processes() int {
	data, _ := os.ReadFile(filepath.Join(u.group, "cgroup.procs"))
	n := 0
	for _, pid := range strings.Fields(string(data)) {
		if processStat(pid) != nil { // a zombie is none
			n++
		}
	}
	return n
}

// awaitIO waits until the unit's processes have read or written as much as counts as progress: on a busy machine, they may get no CPU for
// seconds.
func (u *realUnit) awaitIO(t *testing.T) {
	t.Helper()
	total := func() (bytes int64) {
		for _, w := range processWork("/" + u.name) {
			bytes += w.bytes
		}
		return bytes
	}
	before := total()
	testkit.Until(t, time.Minute, "the unit's processes read or write", func() bool { return total() >= before+windowIO })
}

// unitFor returns components of every kind that runs a unit.
func unitFor(name string) map[string]Component {
	return map[string]Component{
		"service":  newService(Node{}, "x", &facts.ServiceParams{Unit: name}),
		"redis":    newRedis(Node{}, "x", &facts.RedisParams{Unit: name}),
		"sentinel": newSentinel(Node{}, "x", &facts.SentinelParams{Unit: name}),
		"gluster":  newGluster(Node{}, "x", &facts.GlusterParams{Unit: name}),
		"mount":    newMount(Node{}, "x", &facts.MountParams{Unit: name}),
		"galera":   newGalera(Node{}, "x", &facts.GaleraParams{Unit: "other.service", BootUnit: name}),
	}
}

// limits shortens the time limits.
func limits(t *testing.T, stop, start changeLimits) {
	t.Helper()
	oldStop, oldStart, oldWindow := stopLimits, startLimits, workWindow
	stopLimits, startLimits, workWindow = stop, start, 100*time.Millisecond
	t.Cleanup(func() { stopLimits, startLimits, workWindow = oldStop, oldStart, oldWindow })
}

// deaf and its child ignore SIGTERM.
const deaf = `trap "" TERM; sleep 1000 & echo; wait`

// untilKilled drives a component until only left of the unit's processes remain, and returns the time that this took. If working is set,
// the unit's processes have done something between any two turns.
func untilKilled(t *testing.T, u *realUnit, c Component, left int, working bool, limit time.Duration) (took time.Duration, said string) {
	t.Helper()
	start := time.Now()
	for u.processes() > left {
		if time.Since(start) > limit {
			return 0, said
		}
		if working && said == "" {
			u.awaitIO(t)
		}
		if _, err := unitState(t.Context(), u.name); err != nil {
			t.Fatal(err)
		}
		status, killed, err := endHung(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if killed {
			said = status.Detail
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start), said
}

// A server that ignores SIGTERM on a stop is killed by the agent, whatever kind of component runs it: its unit forbids
// systemd to do that.
func TestServerThatIgnoresSIGTERM(t *testing.T) {
	for kind := range unitFor("") {
		t.Run(kind, func(t *testing.T) {
			limits(t, changeLimits{idle: 500 * time.Millisecond, silent: time.Hour}, changeLimits{idle: time.Hour, silent: time.Hour})
			u := newRealUnit(t, deaf)
			u.is(t, "active", "running", "control-group")
			if _, err := unitState(t.Context(), u.name); err != nil {
				t.Fatal(err)
			}
			if err := stopUnit(t.Context(), u.name); err != nil { // does not wait for the end
				t.Fatal(err)
			}
			u.is(t, "deactivating", "stop-sigterm", "control-group")
			took, said := untilKilled(t, u, unitFor(u.name)[kind], 0, false, time.Minute)
			if took < stopLimits.idle || !strings.Contains(said, "has not stopped, and done nothing") {
				t.Errorf("killed after %s: %q", took, said)
			}
		})
	}
}

// A server that keeps working after it was told to stop, such as a member that still takes part in its group, is killed
// too.
func TestStopThatWorksOnIsEnded(t *testing.T) {
	if total := stopLimits.total; total == 0 || total > 3*time.Minute {
		t.Errorf("a stop may take %s: longer than a cluster should be without its node", total)
	}
	limits(t, changeLimits{idle: time.Second, silent: time.Second, total: 2 * time.Second}, startLimits)
	u := newRealUnit(t, `trap '' TERM; echo; exec dd if=/dev/zero of=/dev/null bs=64k 2>/dev/null`)
	u.is(t, "deactivating", "stop-sigterm", "control-group")
	took, said := untilKilled(t, u, unitFor(u.name)["galera"], 0, true, time.Minute)
	if took < stopLimits.total || !strings.Contains(said, "has not stopped within") {
		t.Errorf("killed after %s: %q", took, said)
	}
}

// A unit may leave processes running when it stops, as glusterd leaves its bricks. They survive when the unit is
// killed.
func TestKillSparesWhatTheUnitLeavesRunning(t *testing.T) {
	limits(t, changeLimits{idle: 300 * time.Millisecond, silent: time.Hour}, startLimits)
	u := newRealUnit(t, deaf)
	u.is(t, "deactivating", "stop-sigterm", "process")
	if took, _ := untilKilled(t, u, unitFor(u.name)["gluster"], 1, false, time.Minute); took == 0 || u.processes() != 1 {
		t.Errorf("%d processes left", u.processes())
	}
}

// A start that hangs is killed. A start that makes progress, such as that of a database that receives a state transfer,
// is not, however long it takes.
func TestStartThatNeverEnds(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		killed string // part of the message; empty: it is not killed
		limits changeLimits
	}{
		"does nothing":     {`echo; sleep 1000`, "done nothing", changeLimits{idle: time.Second, silent: time.Hour}},
		"reads and writes": {`echo; exec dd if=/dev/zero of=/dev/null bs=64k 2>/dev/null`, "", changeLimits{idle: time.Second, silent: time.Second}},
		// On a busy machine, a computing process may get no CPU for seconds, so the idle limit is out of reach.
		"computes for a while only": {`echo; while :; do :; done`, "read or written nothing", changeLimits{idle: time.Hour, silent: 2 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			limits(t, stopLimits, c.limits)
			u := newRealUnit(t, c.script)
			u.is(t, "activating", "start", "control-group")
			limit := time.Minute
			if c.killed == "" {
				limit = 3 * time.Second // longer than its limits above
			}
			took, said := untilKilled(t, u, unitFor(u.name)["galera"], 0, c.killed == "", limit)
			if c.killed == "" && said != "" || c.killed != "" && (took == 0 || !strings.Contains(said, c.killed)) {
				t.Errorf("after %s: %q", took, said)
			}
		})
	}
}

// A unit that has started, or has been started again, since it was last asked for is spared: a mount that nobody reads from does nothing.
func TestStartThatNobodyHasSeenEnd(t *testing.T) {
	for name, c := range map[string]struct {
		active, sub string
		killed      bool
	}{
		"it runs":        {"active", "mounted", false},
		"it stops":       {"deactivating", "unmounting", false},
		"it still tries": {"activating", "mounting", true},
	} {
		t.Run(name, func(t *testing.T) {
			limits(t, changeLimits{idle: time.Hour, silent: time.Hour}, changeLimits{idle: 300 * time.Millisecond, silent: time.Hour})
			u := newRealUnit(t, `echo; sleep 1000`)
			u.is(t, "activating", "mounting", "control-group")
			if _, err := unitState(t.Context(), u.name); err != nil {
				t.Fatal(err)
			}
			u.is(t, c.active, c.sub, "control-group")
			mount, said := unitFor(u.name)["mount"], ""
			for end := time.Now().Add(time.Second); time.Now().Before(end) && said == ""; time.Sleep(10 * time.Millisecond) {
				status, killed, err := endHung(t.Context(), mount)
				if err != nil {
					t.Fatal(err)
				}
				if killed {
					said = status.Detail
				}
			}
			if (said != "") != c.killed {
				t.Errorf("killed: %q", said)
			}
		})
	}
}

// A server that starts without a primary component to join is restarted, but not while it makes progress: then it
// recovers its own data or receives a state transfer.
func TestStartingServerThatGetsOnIsNotAlone(t *testing.T) {
	limits(t, stopLimits, startLimits)
	workWindow = time.Second // reading all of /proc takes longer than 100 ms on a busy machine; limits restores it
	for name, c := range map[string]struct {
		script string
		want   bool
	}{
		"gets on":      {`echo; exec dd if=/dev/zero of=/dev/null bs=64k 2>/dev/null`, false},
		"does nothing": {`echo; sleep 1000`, true},
	} {
		t.Run(name, func(t *testing.T) {
			u := newRealUnit(t, c.script)
			u.is(t, "activating", "start", "control-group")
			g := newGalera(Node{}, "x", &facts.GaleraParams{Unit: u.name, BootUnit: u.name}).(*galera)
			end, seen := time.Now().Add(4*time.Second), false
			testkit.Until(t, 5*time.Minute, "the server counts as alone, or has had the time for it", func() bool {
				if !c.want {
					u.awaitIO(t)
				}
				turn := time.Now()
				if _, killed, err := endHung(t.Context(), g); killed || err != nil {
					t.Fatal(killed, err)
				}
				if _, err := g.Observe(t.Context()); err != nil || g.seen.State != galeraStarting {
					t.Fatalf("%+v, %v", g.seen, err)
				}
				alone := g.view(World{}).alone > 2*time.Second
				seen = seen || g.seen.getsOn
				if !c.want && (!seen || time.Since(turn) > workWindow) { // it takes two looks to see progress, at least every other second
					g.alone = time.Time{}
					return false
				}
				if alone && !c.want {
					t.Fatal("it counts as alone, although it makes progress")
				}
				return alone || !c.want && time.Now().After(end)
			})
		})
	}
}

// Each pause between systemd's own restarts, and each new start, restarts the timer.
func TestChangesAreTimedEachForItself(t *testing.T) {
	const name = "imagegen-test-changes.service"
	since := func() time.Time {
		if c := changing.units[name]; c != nil {
			return c.since
		}
		return time.Time{}
	}
	var last time.Time
	for i, c := range []struct {
		is  change
		new bool
	}{
		{change{active: "activating", sub: "start-pre", pid: "0"}, true},
		{change{active: "activating", sub: "start-pre", pid: "0"}, false},
		{change{active: "activating", sub: "start", pid: "7"}, true},
		{change{active: "activating", sub: "start", pid: "8"}, true},
		{change{active: "deactivating", sub: "stop-sigterm", pid: "8"}, true},
		{change{active: "deactivating", sub: "final-sigterm", pid: "8"}, false}, // still the same stop
	} {
		time.Sleep(time.Millisecond)
		noteChange(name, c.is)
		if got := since(); got.Equal(last) == c.new {
			t.Errorf("%d: %+v began at %s, the one before at %s", i, c.is, got, last)
		}
		last = since()
	}
	for _, is := range []change{{active: "activating", sub: "auto-restart"}, {active: "active"}, {active: "failed"}} {
		noteChange(name, change{active: "activating", sub: "start"})
		if noteChange(name, is); !since().IsZero() {
			t.Errorf("%+v counts as a change", is)
		}
	}
}

// A stop that somebody else began is found late, and has had its time since it began.
func TestStopThatIsFoundLate(t *testing.T) {
	limits(t, changeLimits{idle: time.Hour, silent: time.Hour, total: 2 * time.Minute}, startLimits)
	for name, c := range map[string]struct {
		active  string
		before  time.Duration // 0: systemd does not say when
		overdue bool
	}{
		"a moment ago":         {"deactivating", time.Second, false},
		"three minutes ago":    {"deactivating", 3 * time.Minute, true},
		"systemd does not say": {"deactivating", 0, false},
		"a start":              {"activating", 3 * time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			u := newRealUnit(t, deaf)
			u.is(t, c.active, "stop-sigterm", "control-group")
			if c.before > 0 {
				f, err := os.OpenFile(u.state, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(f, "StateChangeTimestampMonotonic=%d\n", (monotonic() - c.before).Microseconds())
				f.Close()
			}
			if _, err := unitState(t.Context(), u.name); err != nil {
				t.Fatal(err)
			}
			if why, _ := overdue(u.name); (why != "") != c.overdue {
				t.Errorf("overdue: %q", why)
			}
		})
	}
}

func TestCgroups(t *testing.T) {
	for text, want := range map[string]bool{
		"0::/system.slice/mariadb.service\n":                          true,
		"1:name=systemd:/machine/p1/system.slice/mariadb.service/x\n": true,
		"0::/system.slice/mariadb.service.d\n":                        false,
		"0::/\n":                                                      false,
	} {
		if inCgroup(text, "/system.slice/mariadb.service") != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
	if got := processWork(""); len(got) != 0 {
		t.Errorf("no control group has %d processes", len(got))
	}
	// This test's control group.
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if w, ok := processWork(strings.TrimSuffix(line[strings.LastIndexByte(line, ':')+1:], "/"))[strconv.Itoa(os.Getpid())]; line[len(line)-1] != '/' && (!ok || w.bytes == 0) {
		t.Errorf("own work: %+v", w)
	}
}

// A daemon that runs, does not answer and uses no CPU is killed. One that answers in between is not, nor is one that
// uses CPU.
func TestDaemonThatDoesNotAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	node := Node{Facts: facts.Facts{Node: facts.Peer{Name: "x"}}}
	components := func(unit string) map[string]Component {
		return map[string]Component{
			"galera":   newGalera(node, "x", &facts.GaleraParams{Unit: unit, BootUnit: unit, Client: []string{"sh", "-c", "sleep 1000"}}),
			"redis":    newRedis(node, "x", &facts.RedisParams{Unit: unit, Port: port, Dir: t.TempDir()}),
			"sentinel": newSentinel(node, "x", &facts.SentinelParams{Unit: unit, Port: port, RunConfig: filepath.Join(t.TempDir(), "sentinel.conf")}),
		}
	}
	for kind := range components("") {
		t.Run(kind, func(t *testing.T) {
			old := answerLimits
			answerLimits = changeLimits{idle: 1500 * time.Millisecond, silent: time.Hour} // less than each turn waits for an answer
			t.Cleanup(func() { answerLimits = old })
			limits(t, stopLimits, startLimits)
			u := newRealUnit(t, deaf)
			u.is(t, "active", "running", "control-group")
			r := component(kind, nil, components(u.name)[kind])
			r.decision = new(decided)
			a := testAgent(func(string) {}, r)
			if a.turn(t.Context(), r); u.processes() != 2 {
				t.Fatal("killed at once")
			}
			noteAnswer(u.name, true)
			if a.turn(t.Context(), r); u.processes() != 2 {
				t.Fatal("killed though it has answered in between")
			}
			status := a.turn(t.Context(), r)
			testkit.Until(t, time.Minute, "the processes are killed", func() bool { return u.processes() == 0 })
			if !strings.Contains(status.Detail, "has not answered, and done nothing") {
				t.Errorf("%+v", status)
			}
		})
	}
	t.Run("busy", func(t *testing.T) {
		old := answerLimits
		answerLimits = changeLimits{idle: time.Hour, silent: 2 * time.Second} // a busy machine may give it no processor for seconds
		t.Cleanup(func() { answerLimits = old })
		limits(t, stopLimits, startLimits)
		u := newRealUnit(t, `echo; while :; do :; done`)
		u.is(t, "active", "running", "control-group")
		if _, err := unitState(t.Context(), u.name); err != nil {
			t.Fatal(err)
		}
		noteAnswer(u.name, false)
		took, said := untilKilled(t, u, unitFor(u.name)["redis"], 0, false, time.Minute)
		if took < answerLimits.silent || !strings.Contains(said, "read or written nothing") {
			t.Errorf("killed after %s: %q", took, said)
		}
	})
}

// When run gives up on a command, it kills its children too: a shell's child would otherwise block the agent.
func TestCommandsEndWithTheirChildren(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	mark := filepath.Join(t.TempDir(), "pid")
	ended := make(chan error, 1)
	go func() {
		_, err := run(ctx, nil, "sh", "-c", `sleep 1000 & echo $! >"$0.new"; mv "$0.new" "$0"; wait`, mark)
		ended <- err
	}()
	var pid []byte
	testkit.Until(t, time.Minute, "the shell has a child", func() bool { pid, _ = os.ReadFile(mark); return pid != nil })
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it was killed, and that is no error")
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	testkit.Until(t, time.Minute, "the shell's child ends", func() bool { return processStat(strings.TrimSpace(string(pid))) == nil })
}

// The units of a node are asked for with one command, and as long as they run as before, rarely.
func TestUnitsAreAskedForTogether(t *testing.T) {
	dir := t.TempDir()
	script := `#!/bin/sh
echo "$*" >>` + dir + `/asked
shift
while [ "$1" = -p ]; do shift 2; done
for u; do cat ` + dir + `/"$u"; echo; done
`
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	running.Lock()
	before := running.units
	running.units = nil // other tests' units
	running.Unlock()
	t.Cleanup(func() {
		running.Lock()
		running.units = before
		running.Unlock()
		changing.Lock()
		delete(changing.units, "imagegen-test-b.service")
		changing.Unlock()
	})
	const a, b, filter = "imagegen-test-a.service", "imagegen-test-b.service", "imagegen-test-filter.service"
	is := func(name, active, sub string, pid int) {
		text := fmt.Sprintf("Id=%s\nLoadState=loaded\nActiveState=%s\nSubState=%s\nResult=success\nMainPID=%d\n", name, active, sub, pid)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sleep := func() *exec.Cmd {
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		return c
	}
	first, second := sleep(), sleep()
	is(a, "active", "running", first.Process.Pid)
	is(b, "active", "running", second.Process.Pid)
	is(filter, "active", "exited", 0)
	synctest.Test(t, func(t *testing.T) { // the time that questions take does not count
		look := func() (questions int, states string) {
			t.Helper()
			os.Remove(filepath.Join(dir, "asked"))
			for _, name := range []string{a, b, filter} {
				u, err := unitState(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				states += u.Active + " "
			}
			asked, _ := os.ReadFile(filepath.Join(dir, "asked"))
			return strings.Count(string(asked), "\n"), states
		}
		if n, states := look(); n != 3 || states != "active active active " {
			t.Fatalf("at first: %d questions, %s", n, states)
		}
		if n, _ := look(); n != 0 {
			t.Errorf("at once again: %d questions", n)
		}
		time.Sleep(calmUnit)
		if n, states := look(); n != 1 || states != "active active active " {
			t.Errorf("after %s: %d questions, %s", calmUnit, n, states)
		}

		time.Sleep(calmUnit)
		os.Remove(filepath.Join(dir, "asked"))
		var loops sync.WaitGroup
		for _, name := range []string{a, b, filter} {
			loops.Go(func() {
				if u, err := unitState(t.Context(), name); err != nil || u.Active != "active" {
					t.Errorf("%s: %+v, %v", name, u, err)
				}
			})
		}
		loops.Wait()
		if asked, _ := os.ReadFile(filepath.Join(dir, "asked")); strings.Count(string(asked), "\n") != 1 {
			t.Errorf("three loops at the same time ask\n%s", asked)
		}

		time.Sleep(doubtedUnit)
		if n, _ := look(); n != 1 { // for filter, which cannot be watched
			t.Errorf("after %s: %d questions", doubtedUnit, n)
		}
		doubt(b)
		time.Sleep(doubtedUnit - time.Second)
		if n, _ := look(); n != 0 {
			t.Errorf("almost %s without an answer: %d questions", doubtedUnit, n)
		}
		time.Sleep(time.Second)
		if n, _ := look(); n != 1 {
			t.Errorf("after %s without an answer: %d questions", doubtedUnit, n)
		}

		// One that somebody has begun to stop is found when another is asked for.
		is(b, "deactivating", "stop-sigterm", second.Process.Pid)
		time.Sleep(calmUnit)
		if n, states := look(); n != 2 || states != "active deactivating active " {
			t.Errorf("one is being stopped: %d questions, %s", n, states)
		}
		if n, _ := look(); n != 1 {
			t.Errorf("one is being stopped: %d questions in the next turn", n)
		}

		first.Process.Kill()
		first.Wait()
		is(a, "failed", "failed", 0)
		if _, states := look(); states != "failed deactivating active " {
			t.Errorf("the process of one has ended: %s", states)
		}
	})
}

// A process that has ended is noticed before its parent has asked for its status, with a kernel that has pidfds and with an older one.
func TestProcessThatEnds(t *testing.T) {
	for _, pidfd := range []bool{true, false} {
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		p := findProcess(strconv.Itoa(c.Process.Pid))
		if !pidfd {
			p.handle = nil
		}
		if !p.exists() || !p.runs() {
			t.Errorf("pidfd %v: %+v does not run", pidfd, p)
		}
		c.Process.Kill()
		testkit.Until(t, time.Minute, "the process is seen to have ended", func() bool { return !p.runs() })
		c.Wait()
		if p.runs() || findProcess(p.pid).exists() {
			t.Errorf("pidfd %v: it runs after its end", pidfd)
		}
	}
	for _, pid := range []string{"", "0", "-1", "x"} {
		if findProcess(pid).exists() {
			t.Errorf("there is a process %q", pid)
		}
	}
}

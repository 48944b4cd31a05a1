package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// changeLimits limit how long a unit may take to start or to stop. systemd's own limits are not enough: some units have none,
// and MariaDB's does not let systemd kill a server that does not stop. They must not be tight: a database that receives a
// full state transfer takes hours to start.
type changeLimits struct {
	idle   time.Duration // without any work of the unit's processes
	silent time.Duration // with work of the processor, but no input or output
	total  time.Duration // whatever it does; 0: no limit
}

var (
	// Killing a daemon that stops loses nothing: it recovers as after a power cut. A server that ignores the signal may simply
	// continue to work, so work is no reason to wait longer.
	stopLimits = changeLimits{idle: 45 * time.Second, silent: 90 * time.Second, total: 2 * time.Minute}
	// A database that waits for a donor is idle. If it is killed then, it asks again.
	startLimits = changeLimits{idle: 10 * time.Minute, silent: time.Hour}
	// A daemon that runs and does not answer hangs, unless it is overloaded.
	answerLimits = changeLimits{idle: time.Minute, silent: 5 * time.Minute}
)

// workWindow is the interval over which the work of a unit's processes is measured.
var workWindow = 10 * time.Second

const windowIO = 64 << 10 // bytes read or written in a window; logging and heartbeats stay below

// change is a start or stop in progress, or a period in which a running unit does not answer.
type change struct {
	active   string // activating, deactivating or, while it does not answer, active
	sub      string
	cgroup   string
	killMode string
	pid      string // of the main process; 0: none

	changed time.Duration // see mainProcess

	since  time.Time // it began; a start, and a unit that does not answer: it was first seen
	worked time.Time // the processes last did any work
	moved  time.Time // they last read or wrote
	looked time.Time
	seen   map[string]work // by pid
}

// work is what a process has done since it started.
type work struct {
	start string // when that was: a pid may be used again
	ticks int64  // of processor time
	bytes int64  // read and written
}

// changing has the units that were last seen starting or stopping.
var changing struct {
	sync.Mutex
	units map[string]*change
}

// noteChange remembers since when a unit has been starting or stopping.
func noteChange(name string, is change) {
	changing.Lock()
	defer changing.Unlock()
	c := changing.units[name]
	if is.active == "active" && c != nil && c.active == "active" && c.pid == is.pid {
		return // see noteAnswer
	}
	// Between two starts of its own, systemd waits.
	if is.active != "activating" && is.active != "deactivating" || is.sub == "auto-restart" {
		delete(changing.units, name)
		return
	}
	// A start passes through several states, and may have been restarted.
	if c == nil || c.active != is.active || is.active == "activating" && (c.sub != is.sub || c.pid != is.pid) {
		now := time.Now()
		is.since, is.worked, is.moved = now, now, now
		// Somebody else may have begun to stop it, minutes ago (calmUnit).
		if is.active == "deactivating" && is.changed > 0 {
			is.since = now.Add(-max(0, monotonic()-is.changed))
		}
		if changing.units == nil {
			changing.units = map[string]*change{}
		}
		changing.units[name] = &is
		return
	}
	c.sub, c.cgroup, c.killMode, c.pid = is.sub, is.cgroup, is.killMode, is.pid
}

// getsOn tells whether a unit that is being started recently read or wrote: it receives data, or recovers its own.
func getsOn(name string) bool {
	changing.Lock()
	defer changing.Unlock()
	c := changing.units[name]
	return c != nil && c.active == "activating" && c.moved.After(c.since) && time.Since(c.moved) < 2*workWindow
}

// noteAnswer remembers since when a running unit does not answer.
func noteAnswer(name string, answers bool) {
	if !answers {
		doubt(name)
	}
	running.Lock()
	main, known := running.units[name]
	running.Unlock()
	changing.Lock()
	defer changing.Unlock()
	c := changing.units[name]
	switch {
	case c != nil && c.active != "active": // it is being started or stopped
	case answers || !known:
		delete(changing.units, name)
	case c == nil || c.pid != main.pid:
		now := time.Now()
		if changing.units == nil {
			changing.units = map[string]*change{}
		}
		changing.units[name] = &change{active: "active", cgroup: main.cgroup, killMode: main.killMode, pid: main.pid, since: now, worked: now, moved: now}
	}
}

// overdue says why a unit must be killed: its start or stop does not end, or it runs and does not answer. Empty: it need not be.
func overdue(name string) (why, killMode string) {
	changing.Lock()
	defer changing.Unlock()
	c := changing.units[name]
	if c == nil {
		return "", ""
	}
	now := time.Now()
	c.look(now)
	limits, verb := startLimits, "started"
	switch c.active {
	case "deactivating":
		limits, verb = stopLimits, "stopped"
	case "active":
		limits, verb = answerLimits, "answered"
	}
	switch {
	case now.Sub(c.worked) > limits.idle:
		why = fmt.Sprintf("%s has not %s, and done nothing for %d s", name, verb, ensemble.Seconds(limits.idle))
	case now.Sub(c.moved) > limits.silent:
		why = fmt.Sprintf("%s has not %s, and read or written nothing for %d s", name, verb, ensemble.Seconds(limits.silent))
	case limits.total > 0 && now.Sub(c.since) > limits.total:
		why = fmt.Sprintf("%s has not %s within %d s", name, verb, ensemble.Seconds(limits.total))
	default:
		return "", ""
	}
	c.since, c.worked, c.moved = now, now, now // a process that survives the kill is killed again later
	return why, c.killMode
}

// changesStill asks systemd whether a unit is still starting, stopping or running, as it was when it was last asked for.
func changesStill(ctx context.Context, name string) (bool, error) {
	was := changeOf(name)
	if _, err := unitState(ctx, name); err != nil {
		return false, err
	}
	return was != nil && changeOf(name) == was, nil
}

func changeOf(name string) *change {
	changing.Lock()
	defer changing.Unlock()
	return changing.units[name]
}

// silentError is that of a daemon that does not answer.
type silentError string

func (e silentError) Error() string        { return string(e) }
func (e silentError) Is(target error) bool { return target == errSilent }

// look notes what the processes have done since they were last looked at.
func (c *change) look(now time.Time) {
	span := now.Sub(c.looked)
	if span < workWindow {
		return
	}
	seen := processWork(c.cgroup)
	var ticks, bytes int64
	for pid, w := range seen {
		before := c.seen[pid]
		if before.start != w.start {
			before = work{} // a process that is new since the last look
		}
		ticks += w.ticks - before.ticks
		bytes += w.bytes - before.bytes
	}
	if first := c.looked.IsZero(); !first {
		if bytes >= windowIO {
			c.moved, c.worked = now, now
		}
		if time.Duration(ticks)*(time.Second/100) >= span/busyShare {
			c.worked = now
		}
	}
	c.looked, c.seen = now, seen
}

// processWork returns what each process in a control group, or in one below it, has done.
func processWork(cgroup string) map[string]work {
	all := map[string]work{}
	if cgroup == "" {
		return all
	}
	paths, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil || !inCgroup(string(data), cgroup) {
			continue
		}
		pid := filepath.Base(filepath.Dir(path))
		f := processStat(pid)
		if f == nil {
			continue
		}
		w := work{start: f[19]}
		for _, ticks := range f[11:13] { // utime, stime
			n, _ := strconv.ParseInt(ticks, 10, 64)
			w.ticks += n
		}
		io, _ := os.ReadFile("/proc/" + pid + "/io")
		for line := range strings.Lines(string(io)) {
			if k, v, _ := strings.Cut(strings.TrimSpace(line), ": "); k == "rchar" || k == "wchar" {
				n, _ := strconv.ParseInt(v, 10, 64)
				w.bytes += n
			}
		}
		all[pid] = w
	}
	return all
}

// inCgroup tells whether a process with this /proc/PID/cgroup is in a control group, as systemd names it, or below it.
func inCgroup(text, cgroup string) bool {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // hierarchy, controllers, path
		// In a container without a cgroup namespace, the path begins with that of the container.
		if len(f) == 3 && strings.Contains(f[2]+"/", cgroup+"/") {
			return true
		}
	}
	return false
}

// unitRunner is a component that runs systemd units.
type unitRunner interface{ unitNames() []string }

// endHung kills the hung units of a component and returns the status to show.
func endHung(ctx context.Context, c Component) (status facts.Status, killed bool, err error) {
	runner, ok := c.(unitRunner)
	if !ok {
		return status, false, nil
	}
	for _, name := range runner.unitNames() {
		why, killMode := overdue(name)
		if why == "" {
			continue
		}
		// Nobody may have asked since it has started or stopped: a mounted volume needs no question.
		if is, err := changesStill(ctx, name); err != nil {
			return status, false, err
		} else if !is {
			continue
		}
		return workf("%s: killing it", why), true, killHung(ctx, name, killMode)
	}
	return status, false, nil
}

// killHung kills a unit's processes, and spares those that the unit leaves running when it stops: glusterd's bricks.
func killHung(ctx context.Context, name, killMode string) error {
	if killMode != "process" {
		return killUnit(ctx, name)
	}
	_, main := run(ctx, nil, "systemctl", "kill", "--signal=KILL", "--kill-who=main", name)
	_, control := run(ctx, nil, "systemctl", "kill", "--signal=KILL", "--kill-who=control", name)
	if main != nil && control != nil { // one of them is enough
		return errors.Join(main, control)
	}
	return nil
}

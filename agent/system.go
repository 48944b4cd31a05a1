package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// unit is what systemd says of one of its units.
type unit struct {
	Load   string // loaded, not-found, …
	Active string // active, activating, deactivating, failed, inactive
	Sub    string
	Result string // success, exit-code, signal, timeout, …
}

// running caches the main process of active units. Asking systemd costs a process per component and second. While the main
// process is the same, the unit is still active, unless somebody has begun to stop it.
var running struct {
	sync.Mutex
	units map[string]mainProcess
}

type mainProcess struct {
	unit  unit
	pid   string
	start string // when the process started, in clock ticks since boot: a pid may be used again
	asked time.Time

	cgroup, killMode string
}

// unitState asks systemd for a unit's state. A unit that does not exist is not an error: its Load is "not-found".
func unitState(ctx context.Context, name string) (unit, error) {
	running.Lock()
	known, ok := running.units[name]
	running.Unlock()
	if ok && time.Since(known.asked) < calmUnit && processStart(known.pid) == known.start {
		return known.unit, nil
	}
	out, err := run(ctx, nil, "systemctl", "show", "-p", "LoadState", "-p", "ActiveState", "-p", "SubState", "-p", "Result", "-p", "MainPID",
		"-p", "ControlGroup", "-p", "KillMode", name)
	if err != nil {
		return unit{}, err
	}
	var u unit
	var cgroup, killMode string
	pid := "0"
	for line := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch k {
		case "LoadState":
			u.Load = v
		case "ActiveState":
			u.Active = v
		case "SubState":
			u.Sub = v
		case "Result":
			u.Result = v
		case "MainPID":
			pid = v
		case "ControlGroup":
			cgroup = v
		case "KillMode":
			killMode = v
		}
	}
	noteChange(name, change{active: u.Active, sub: u.Sub, cgroup: cgroup, killMode: killMode, pid: pid})
	running.Lock()
	defer running.Unlock()
	if start := processStart(pid); u.Active == "active" && start != "" {
		if running.units == nil {
			running.units = map[string]mainProcess{}
		}
		running.units[name] = mainProcess{u, pid, start, time.Now(), cgroup, killMode}
	} else {
		delete(running.units, name)
	}
	return u, nil
}

// mainPID returns the main process of a unit as it was last asked for; "0": none was known.
func mainPID(name string) string {
	running.Lock()
	defer running.Unlock()
	if p, ok := running.units[name]; ok {
		return p.pid
	}
	changing.Lock()
	defer changing.Unlock()
	if c := changing.units[name]; c != nil {
		return c.pid
	}
	return "0"
}

// processStat returns the fields of /proc/PID/stat from the third on (see proc(5)), or nil if the process does not exist or
// is a zombie.
func processStat(pid string) []string {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return nil
	}
	// The second field is the command in parentheses, which may hold spaces and parentheses.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return nil
	}
	return fields
}

// processStart returns when a process started, in clock ticks since boot, or "".
func processStart(pid string) string {
	if f := processStat(pid); f != nil {
		return f[19]
	}
	return ""
}

// unitWork returns the CPU time used by the main process of an active unit and its descendants. It is zero for a unit without
// a main process of its own: everything on the machine descends from process 1.
func unitWork(name string) time.Duration {
	running.Lock()
	main := running.units[name].pid
	running.Unlock()
	if main == "" || main == "0" || main == "1" {
		return 0
	}
	parents, used := map[string]string{}, map[string]int64{}
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range paths {
		pid := filepath.Base(p)
		if f := processStat(pid); f != nil {
			parents[pid] = f[1]
			for _, ticks := range f[11:15] { // utime, stime, and the same of children that have ended
				n, _ := strconv.ParseInt(ticks, 10, 64)
				used[pid] += n
			}
		}
	}
	var ticks int64
	for pid, n := range used {
		for at := pid; at != ""; at = parents[at] {
			if at == main {
				ticks += n
				break
			}
		}
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100
}

// startUnit has systemd start a unit and does not wait for it. A unit that failed before may be blocked by its start limit;
// the agent has a back-off of its own, so the limit is reset first.
func startUnit(ctx context.Context, name string) error {
	run(ctx, nil, "systemctl", "reset-failed", name) // fails where nothing had failed
	_, err := run(ctx, nil, "systemctl", "start", "--no-block", name)
	return err
}

// killUnit kills all processes of a unit, including stopped and hung ones. The unit's state is then failed.
func killUnit(ctx context.Context, name string) error {
	_, err := run(ctx, nil, "systemctl", "kill", "--signal=KILL", name)
	return err
}

// stopUnit has systemd stop a unit and does not wait for it, since a stop may hang.
func stopUnit(ctx context.Context, name string) error {
	running.Lock()
	delete(running.units, name)
	running.Unlock()
	_, err := run(ctx, nil, "systemctl", "stop", "--no-block", name)
	return err
}

// run executes a command and returns its standard output. The error names the command, never its standard input, which
// may hold secrets, and the last line that it wrote to standard error.
func run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Kill the whole process group: a shell's child would keep the output open and continue to run.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
		return out.Bytes(), fmt.Errorf("%s: %w: %s", strings.Join(argv[:min(3, len(argv))], " "), err, lines[len(lines)-1])
	}
	return out.Bytes(), nil
}

package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// unit is what systemd says of one of its units.
type unit struct {
	Load   string // loaded, not-found, …
	Active string // active, activating, deactivating, failed, inactive
	Sub    string
	Result string // success, exit-code, signal, timeout, …
}

// running caches what systemd said of active units. Each question to it starts a process.
var running struct {
	sync.Mutex
	units map[string]mainProcess
}

// askingSystemd is held while systemd is asked: the next loop that wants to know a unit may find that it was asked for along with another.
var askingSystemd = make(chan struct{}, 1)

const (
	calmUnit    = 2 * time.Minute  // between two questions about a unit that runs as before; its end is seen without one
	doubtedUnit = 15 * time.Second // the same, while that cannot be seen without asking, or the unit does not do its work
	unitLinks   = "/run/systemd/units"
)

// mainProcess is an active unit, and how to see that it still is. While the main process is the same, or the invocation of a unit
// without one, the unit is active, unless somebody has begun to stop it.
type mainProcess struct {
	unit       unit
	process    process // zero: there is none
	pid        string
	invocation string // of a unit without a process; empty: not known
	asked      time.Time
	doubted    bool // the unit does not do its work

	cgroup, killMode string
	changed          time.Duration // by the kernel's monotonic clock: when the state, or a part of it, last changed; 0: systemd does not say
}

// holds tells whether a unit is still what it was.
func (m mainProcess) holds(name string) bool {
	limit := calmUnit
	switch {
	case m.process.exists():
		if !m.process.runs() {
			return false
		}
	case m.invocation != "":
		if invocation(name) != m.invocation {
			return false
		}
	default:
		limit = doubtedUnit
	}
	if m.doubted {
		limit = doubtedUnit
	}
	return time.Since(m.asked) < limit
}

// invocation returns the ID of a service's invocation, which systemd leaves in a symbolic link until the service has stopped; empty:
// none is known, as with systemd before 232.
func invocation(name string) string {
	id, _ := os.Readlink(filepath.Join(unitLinks, "invocation:"+name))
	return id
}

// doubt has systemd asked for a unit sooner: it does not do its work.
func doubt(name string) {
	running.Lock()
	defer running.Unlock()
	if m, ok := running.units[name]; ok {
		m.doubted = true
		running.units[name] = m
	}
}

// unitState asks systemd for a unit's state, unless that cannot have changed. A unit that does not exist is not an error: its
// Load is "not-found". Other units of the node that would be asked for soon are asked for along with it.
func unitState(ctx context.Context, name string) (unit, error) {
	if u, ok := knownUnit(name); ok {
		return u, nil
	}
	select {
	case askingSystemd <- struct{}{}:
		defer func() { <-askingSystemd }()
	case <-ctx.Done():
		return unit{}, fmt.Errorf("ask systemd for %s: it has not answered other questions yet: %w", name, ctx.Err())
	}
	if u, ok := knownUnit(name); ok {
		return u, nil
	}
	running.Lock()
	var soon []string
	for other, m := range running.units {
		if other != name && time.Since(m.asked) > doubtedUnit/2 {
			soon = append(soon, other)
		}
	}
	running.Unlock()
	slices.Sort(soon)
	out, err := run(ctx, nil, slices.Concat([]string{"systemctl", "show", "-p", "Id", "-p", "LoadState", "-p", "ActiveState", "-p", "SubState", "-p", "Result",
		"-p", "MainPID", "-p", "ControlGroup", "-p", "KillMode", "-p", "StateChangeTimestampMonotonic", name}, soon)...)
	if err != nil {
		return unit{}, err
	}
	var asked unit
	for i, text := range strings.Split(strings.TrimSpace(string(out)), "\n\n") {
		id, said := parseUnit(text)
		if i == 0 { // id may be another of its names
			id, asked = name, said.unit
		} else if !slices.Contains(soon, id) {
			continue
		}
		noteUnit(id, said, i == 0)
	}
	return asked, nil
}

// knownUnit returns a unit's state if it is known without asking.
func knownUnit(name string) (unit, bool) {
	running.Lock()
	m, ok := running.units[name]
	running.Unlock()
	return m.unit, ok && m.holds(name)
}

// parseUnit reads what systemctl show prints about one unit.
func parseUnit(text string) (id string, m mainProcess) {
	m.pid = "0"
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch k {
		case "Id":
			id = v
		case "LoadState":
			m.unit.Load = v
		case "ActiveState":
			m.unit.Active = v
		case "SubState":
			m.unit.Sub = v
		case "Result":
			m.unit.Result = v
		case "MainPID":
			m.pid = v
		case "ControlGroup":
			m.cgroup = v
		case "KillMode":
			m.killMode = v
		case "StateChangeTimestampMonotonic":
			µs, _ := strconv.ParseInt(v, 10, 64)
			m.changed = time.Duration(µs) * time.Microsecond
		}
	}
	return id, m
}

// noteUnit remembers what systemd has said of a unit. first: also if nothing was known of it.
func noteUnit(name string, m mainProcess, first bool) {
	m.asked, m.process = time.Now(), findProcess(m.pid)
	if !m.process.exists() {
		m.invocation = invocation(name)
	}
	processless := m.unit.Sub == "exited" || !strings.HasSuffix(name, ".service")
	running.Lock()
	defer running.Unlock()
	if _, known := running.units[name]; !known && !first {
		return // it is being stopped
	}
	noteChange(name, change{active: m.unit.Active, sub: m.unit.Sub, cgroup: m.cgroup, killMode: m.killMode, pid: m.pid, changed: m.changed})
	if m.unit.Active != "active" || !m.process.exists() && !processless {
		delete(running.units, name)
		return
	}
	if running.units == nil {
		running.units = map[string]mainProcess{}
	}
	running.units[name] = m
}

// monotonic is what the kernel's monotonic clock says, of which systemd's timestamps are.
func monotonic() time.Duration {
	const clockMonotonic = 1
	var t syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&t)), 0)
	return time.Duration(t.Nano())
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

// process is a process that was found. Its pid may be used again.
type process struct {
	pid, start string      // when it started, in clock ticks since boot
	handle     *os.Process // a pidfd, where the kernel has them
}

// findProcess returns the zero value if there is no such process.
func findProcess(pid string) process {
	n, err := strconv.Atoi(pid)
	if err != nil || n <= 0 {
		return process{}
	}
	handle, err := os.FindProcess(n)
	if err != nil {
		handle = nil
	}
	start := processStart(pid) // after the handle was taken: if it is there now, it is the handle's
	if start == "" {
		return process{}
	}
	return process{pid, start, handle}
}

func (p process) exists() bool { return p.start != "" }

// runs tells whether the process still does. It is asked in each turn, and reading /proc takes the kernel many times as long as poll(2).
func (p process) runs() bool {
	if p.handle != nil {
		ended := false
		err := p.handle.WithHandle(func(fd uintptr) {
			const readable = 1 // POLLIN: the process has ended
			poll := struct {
				fd              int32
				events, happens int16
			}{int32(fd), readable, 0}
			n, _, _ := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&syscall.Timespec{})), 0, 0, 0)
			ended = n == 1
		})
		if err == nil {
			return !ended
		}
	}
	return processStart(p.pid) == p.start
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

package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

const (
	checkLimit = 2 * time.Second // one check of a service
	calmCheck  = 3 * time.Second // between two checks that cost a process or ask all servers, while all is well
	// No answer for this long means that it hangs, unless it is burning CPU: then it may just be overloaded, and a restart with
	// cold caches would make that worse.
	hangLimit = 30 * time.Second
	busyLimit = 5 * time.Minute
	busyShare = 20 // less than 1/20 of a CPU counts as idle
	// What answers however busy the unit is has less time. From the hang to the kill: the interval between two looks (1 s), a check,
	// half a second to the next look, and another check, 3.5 s. Visitors who wait for an answer then get it elsewhere.
	aliveCheck = time.Second
	aliveLimit = 2 * time.Second
)

// service keeps a systemd unit running whose configuration needs no decisions.
type service struct {
	node    Node
	name    string
	params  *facts.ServiceParams
	retry   ensemble.Backoff
	seen    serviceSeen
	checked time.Time // when seen.Fault was last determined
	silent  silence   // of the check
	dead    silence   // of what answers however busy the unit is
	proxied time.Time // when seen.Sends was last determined
	faults  int       // how many looks in a row have found that it does not do its work
	tracked string    // what the track file has; empty: not known
}

// silence is since when a check gets no answer; zero: it got one.
type silence struct {
	since  time.Time
	worked time.Duration // what the unit's processes had worked then
	checks int
}

// hear records the result of a check that began at start.
func (s *silence) hear(err error, start time.Time, unit string) {
	if !errors.Is(err, errSilent) {
		*s = silence{}
		return
	}
	if s.since.IsZero() {
		s.since, s.worked = start, unitWork(unit)
	}
	s.checks++
}

// idle tells whether there has been no answer for longer than limit, while the unit's processes did next to nothing. One check is not
// enough, however long it takes: the agent itself may be starved.
func (s silence) idle(limit time.Duration, unit string) bool {
	silent := time.Since(s.since)
	return s.checks > 1 && silent > limit && unitWork(unit)-s.worked < silent/busyShare
}

// serviceSeen is what a service looks like.
type serviceSeen struct {
	Unit  unit   `json:"unit"`
	Fault string `json:"fault,omitempty"` // why the check fails; empty: it passes, or there is none
	Log   string `json:"log,omitempty"`   // the last line that the unit's processes wrote, once it has failed
	Sends string `json:"sends,omitempty"` // where a load balancer sends what arrives
}

func newService(n Node, name string, p *facts.ServiceParams) Component {
	return &service{node: n, name: name, params: p}
}

func (s *service) unitNames() []string { return []string{s.params.Unit} }

func (s *service) Observe(ctx context.Context) (any, error) {
	if err := s.look(ctx); err != nil {
		return nil, err
	}
	if err := s.track(); err != nil {
		return nil, err
	}
	s.observeProxies(ctx)
	return s.seen, nil
}

func (s *service) look(ctx context.Context) error {
	calm := s.seen.Unit.Active == "active" && s.seen.Fault == ""
	u, err := unitState(ctx, s.params.Unit)
	if err != nil {
		return err
	}
	if u.Active == "failed" && s.seen.Unit.Active != "failed" {
		s.seen.Log = lastLine(ctx, s.params.Unit)
	}
	if u.Active == "active" {
		s.seen.Log = ""
	}
	s.seen.Unit = u
	if s.seen.Unit.Active != "active" || s.params.Check == nil {
		s.seen.Fault, s.silent, s.dead = "", silence{}, silence{}
		return nil
	}
	if calm && s.params.Check.Exec != nil && time.Since(s.checked) < calmCheck {
		return nil
	}
	s.seen.Fault = ""
	s.checked = time.Now()
	if s.params.Alive != nil {
		err = check(ctx, s.params.Alive, aliveCheck)
		s.dead.hear(err, s.checked, s.params.Unit)
	}
	if err == nil {
		limit := checkLimit
		if s.params.TrackFile != "" { // somebody waits for the result
			limit = aliveCheck
		}
		err = check(ctx, s.params.Check, limit)
	}
	if err != nil {
		s.seen.Fault = err.Error()
		doubt(s.params.Unit)
	}
	s.silent.hear(err, s.checked, s.params.Unit)
	return nil
}

// track says in the track file whether the service does its work.
func (s *service) track() error {
	if s.params.TrackFile == "" {
		return nil
	}
	s.faults++
	if u := s.seen.Unit.Active; (u == "active" || u == "reloading") && s.seen.Fault == "" {
		s.faults = 0
	}
	value := "0\n"
	if s.faults > 1 {
		value = "1\n"
	}
	if value == s.tracked {
		return nil
	}
	// Both values have the same length, and are written over each other: a reader finds one of them.
	f, err := os.OpenFile(s.params.TrackFile, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(value); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	s.tracked = value
	return nil
}

// hangs tells whether the service must be killed because it does not answer. While something that it needs is not ready, it may just
// be waiting for that, and gets more time.
func (s *service) hangs(w World) bool {
	patient := false
	for _, c := range s.node.Facts.Components {
		if c.Name == s.name {
			patient = slices.ContainsFunc(c.After, func(name string) bool { return w.Own.Components[name].Status.State != facts.Ready })
		}
	}
	return !patient && s.dead.idle(aliveLimit, s.params.Unit) || s.silent.idle(hangLimit, s.params.Unit) ||
		!s.silent.since.IsZero() && time.Since(s.silent.since) > busyLimit
}

func (s *service) Step(ctx context.Context, w World) (facts.Status, error) {
	if gate, ok := w.Own.Components[s.params.Gate]; ok { // a gate that this node does not have is open
		stop, status := decideGate(s.params.Gate, gate, s.seen.Unit.Active)
		if stop {
			return status, stopUnit(ctx, s.params.Unit)
		}
		if status.State != "" {
			return status, nil
		}
	}
	if s.hangs(w) {
		s.silent, s.dead = silence{}, silence{}
		return workf("%s hangs (%s), and is killed", s.params.Unit, s.seen.Fault), killUnit(ctx, s.params.Unit)
	}
	start, status := decideService(s.params.Unit, s.seen, s.retry.Left(s.node.now()))
	if status.State == facts.Ready {
		s.retry.Settle(s.node.now())
	}
	if !start {
		return status, nil
	}
	s.retry.Next(s.node.now())
	return status, startUnit(ctx, s.params.Unit)
}

// decideGate says whether a unit must be stopped because of the component that it depends on. No status: the gate is open.
func decideGate(name string, gate facts.ComponentReport, active string) (stop bool, status facts.Status) {
	runs := active == "active" || active == "activating" || active == "reloading"
	switch {
	case gate.Status.State == facts.Stopped:
		return runs, waitf("for %s, which is stopped", name)
	case !runs && len(gate.Report) == 0 && gate.Status.State != facts.Working: // while it works it does not observe
		return false, waitf("for %s to observe", name)
	}
	return false, facts.Status{}
}

// decideService says whether to start the unit now, and where things stand. held is how long the next start must wait.
func decideService(name string, seen serviceSeen, held time.Duration) (start bool, status facts.Status) {
	switch u := seen.Unit; {
	case u.Load == "not-found":
		return false, stopf("the image has no unit %s", name)
	case u.Active == "active" && seen.Fault == "":
		return false, ready("")
	case u.Active == "active":
		return false, workf("%s runs, but %s", name, seen.Fault)
	case u.Active == "activating" || u.Active == "deactivating" || u.Active == "reloading":
		return false, workf("%s is %s", name, u.Active)
	case u.Active == "failed" && held > 0:
		return false, ensemble.Held(failure(name, seen), "start", held)
	case held > 0:
		return false, workf("starting %s", name)
	case u.Active == "failed":
		return true, workf("starting again: %s", failure(name, seen))
	}
	return true, workf("starting %s", name)
}

// failure says why a unit failed.
func failure(name string, seen serviceSeen) string {
	s := fmt.Sprintf("%s failed (%s)", name, seen.Unit.Result)
	if seen.Log != "" {
		s += ": " + seen.Log
	}
	return s
}

// lastLine returns the last line in the journal that the processes of a unit wrote; empty when there is none.
func lastLine(ctx context.Context, name string) string {
	// _SYSTEMD_UNIT leaves out what systemd itself says about the unit.
	out, err := run(ctx, nil, "journalctl", "-q", "--no-pager", "-b", "-n", "1", "-o", "cat", "_SYSTEMD_UNIT="+name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// errSilent is the error of a service that accepts connections and does not answer.
var errSilent = errors.New("no answer in time")

// check returns why a service does not do its work, or nil.
func check(ctx context.Context, c *facts.Check, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	switch {
	case c.TCP != "":
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.TCP)
		if err != nil {
			return fmt.Errorf("%s: %w", c.TCP, checkFault(err))
		}
		return conn.Close()
	case c.HTTP != "":
		status, code, err := askStatus(ctx, c.HTTP)
		if err != nil {
			return fmt.Errorf("%s: %w", c.HTTP, checkFault(err))
		}
		if code >= 500 {
			return fmt.Errorf("%s answers %s", c.HTTP, status)
		}
		return nil
	}
	if c.FastCGI != "" {
		if err := pingFPM(ctx, c.FastCGI); err != nil {
			return fmt.Errorf("%s: %w", c.FastCGI, checkFault(err))
		}
		return nil
	}
	cmd := exec.CommandContext(ctx, c.Exec[0], c.Exec[1:]...)
	cmd.WaitDelay = 100 * time.Millisecond // a child of it may hold its output open
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", strings.Join(c.Exec, " "), errSilent)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay): // that is only returned for exit status 0
		return fmt.Errorf("%s: %w: %s", strings.Join(c.Exec, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// askStatus asks for a page as checkClient does. Without encryption it does so by itself, since that is done every second: the client has two
// goroutines for each connection, which take longer than the question.
func askStatus(ctx context.Context, url string) (status string, code int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", 0, err
	}
	if req.URL.Scheme != "http" {
		resp, err := checkClient.Do(req)
		if err != nil {
			return "", 0, err
		}
		resp.Body.Close()
		return resp.Status, resp.StatusCode, nil
	}
	port := req.URL.Port()
	if port == "" {
		port = "80"
	}
	conn, err := dial(ctx, net.JoinHostPort(req.URL.Hostname(), port))
	if err != nil {
		return "", 0, err
	}
	defer conn.Close()
	req.Close = true
	if err := req.Write(conn); err != nil {
		return "", 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 1024), req)
	if err != nil {
		return "", 0, err
	}
	return resp.Status, resp.StatusCode, nil // what follows is closed away
}

// dial connects to a server, which then has until the deadline of ctx to answer.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// checkFault is the short form of a check's error.
func checkFault(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return errSilent
	}
	return errors.New(netFault(err))
}

// pingFPM asks PHP-FPM for its ping page, which one of its processes must be free to answer: the first bytes of an answer
// are enough (FastCGI specification, https://fastcgi-archives.github.io/FastCGI_Specification.html).
func pingFPM(ctx context.Context, addr string) error {
	conn, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	const beginRequest, params, stdin, stdout = 1, 4, 5, 6
	var b bytes.Buffer
	record := func(kind byte, content string) {
		b.Write([]byte{1, kind, 0, 1, 0, byte(len(content)), 0, 0}) // version, type, request 1, length, no padding
		b.WriteString(content)
	}
	record(beginRequest, "\x00\x01\x00\x00\x00\x00\x00\x00") // as a responder
	var vars strings.Builder
	for _, v := range [][2]string{{"REQUEST_METHOD", "GET"}, {"SCRIPT_NAME", "/ping"}, {"SCRIPT_FILENAME", "/ping"}} {
		vars.Write([]byte{byte(len(v[0])), byte(len(v[1]))})
		vars.WriteString(v[0] + v[1])
	}
	record(params, vars.String())
	record(params, "")
	record(stdin, "")
	if _, err := conn.Write(b.Bytes()); err != nil {
		return err
	}
	head := make([]byte, 8)
	if _, err := io.ReadFull(conn, head); err != nil {
		return err
	}
	if head[0] != 1 || head[1] != stdout {
		return errors.New("what answers there is no PHP-FPM with ping.path = /ping")
	}
	return nil
}

// checkClient opens a new connection each time, as a load balancer's check does: a kept one would hide that no new ones are
// accepted. A redirect counts as an answer.
var checkClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// netFault is the short form of a network error: its cause, without the addresses, which the caller names.
func netFault(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	}
	return err.Error()
}

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

func TestServiceDecisions(t *testing.T) {
	for name, c := range map[string]struct {
		seen  serviceSeen
		held  time.Duration
		start bool
		want  facts.Status
	}{
		"at boot":          {serviceSeen{Unit: unit{Load: "loaded", Active: "inactive"}}, 0, true, workf("starting nginx.service")},
		"just asked for":   {serviceSeen{Unit: unit{Load: "loaded", Active: "inactive"}}, time.Second, false, workf("starting nginx.service")},
		"starting":         {serviceSeen{Unit: unit{Load: "loaded", Active: "activating"}}, 0, false, workf("nginx.service is activating")},
		"running":          {serviceSeen{Unit: unit{Load: "loaded", Active: "active", Sub: "running"}}, 0, false, ready("")},
		"oneshot":          {serviceSeen{Unit: unit{Load: "loaded", Active: "active", Sub: "exited"}}, 0, false, ready("")},
		"does not answer":  {serviceSeen{Unit: unit{Load: "loaded", Active: "active"}, Fault: "127.0.0.1:80: connection refused"}, 0, false, workf("nginx.service runs, but 127.0.0.1:80: connection refused")},
		"failed, held":     {serviceSeen{Unit: unit{Load: "loaded", Active: "failed", Result: "exit-code"}, Log: "bind() failed"}, 1500 * time.Millisecond, false, facts.Status{State: facts.Failed, Detail: "nginx.service failed (exit-code): bind() failed; next start in 2 s"}},
		"failed, its turn": {serviceSeen{Unit: unit{Load: "loaded", Active: "failed", Result: "exit-code"}}, 0, true, workf("starting again: nginx.service failed (exit-code)")},
		"not in the image": {serviceSeen{Unit: unit{Load: "not-found", Active: "inactive"}}, 0, false, stopf("the image has no unit nginx.service")},
	} {
		start, got := decideService("nginx.service", c.seen, c.held)
		if start != c.start || got != c.want {
			t.Errorf("%s: %v, %+v", name, start, got)
		}
	}
}

// A service behind a gate never starts before the gate is known, and stops with it.
func TestServiceBehindAGate(t *testing.T) {
	seen := json.RawMessage(`{}`)
	for name, c := range map[string]struct {
		gate   facts.ComponentReport
		active string
		stop   bool
		want   facts.Status
	}{
		"at boot":                      {facts.ComponentReport{Status: waitf("the agent has just started")}, "inactive", false, waitf("for site to observe")},
		"the agent starts again":       {facts.ComponentReport{Status: waitf("the agent has just started")}, "active", false, facts.Status{}},
		"it cannot look":               {facts.ComponentReport{Status: facts.Status{State: facts.Failed}}, "inactive", false, waitf("for site to observe")},
		"it waits":                     {facts.ComponentReport{Status: waitf("for the database"), Report: seen}, "inactive", false, facts.Status{}},
		"it is in the middle of work":  {facts.ComponentReport{Status: workf("upgrading")}, "failed", false, facts.Status{}},
		"it is ready":                  {facts.ComponentReport{Status: ready(""), Report: seen}, "inactive", false, facts.Status{}},
		"it is stopped":                {facts.ComponentReport{Status: stopf("newer"), Report: seen}, "active", true, waitf("for site, which is stopped")},
		"it is stopped while starting": {facts.ComponentReport{Status: stopf("newer"), Report: seen}, "activating", true, waitf("for site, which is stopped")},
		"it is stopped, and so are we": {facts.ComponentReport{Status: stopf("newer"), Report: seen}, "inactive", false, waitf("for site, which is stopped")},
		"it is stopped, and we fail":   {facts.ComponentReport{Status: stopf("newer"), Report: seen}, "failed", false, waitf("for site, which is stopped")},
	} {
		if stop, got := decideGate("site", c.gate, c.active); stop != c.stop || got != c.want {
			t.Errorf("%s: %v, %+v", name, stop, got)
		}
	}
}

func TestCheck(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/broken":
			w.WriteHeader(502)
		case "/elsewhere":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}
	}))
	defer web.Close()
	free := testkit.FreeAddress(t)
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	for name, c := range map[string]struct {
		check facts.Check
		want  string
	}{
		"tcp":          {facts.Check{TCP: web.Listener.Addr().String()}, ""},
		"tcp closed":   {facts.Check{TCP: free}, free + ": connection refused"},
		"http":         {facts.Check{HTTP: web.URL}, ""},
		"http moved":   {facts.Check{HTTP: web.URL + "/elsewhere"}, ""},
		"http missing": {facts.Check{HTTP: web.URL + "/broken"}, "answers 502 Bad Gateway"},
		"http hangs":   {facts.Check{HTTP: "http://" + deaf.Addr().String() + "/"}, "no answer in time"},
		"http closed":  {facts.Check{HTTP: "http://" + free + "/"}, "connection refused"},
		"exec":         {facts.Check{Exec: []string{"true"}}, ""},
		"exec fails":   {facts.Check{Exec: []string{"sh", "-c", "echo no VIP; exit 3"}}, "exit status 3: no VIP"},
		"exec leaves":  {facts.Check{Exec: []string{"sh", "-c", "sleep 30 & exit 0"}}, ""}, // a child that holds its output open
		"exec hangs":   {facts.Check{Exec: []string{"sh", "-c", "sleep 30"}}, "no answer in time"},
		"fastcgi":      {facts.Check{FastCGI: free}, "connection refused"},
	} {
		var err error
		for range 30 { // a busy machine may not answer in the two seconds of a check
			if err = check(t.Context(), &c.check, checkLimit); c.want == errSilent.Error() || !errors.Is(err, errSilent) {
				break
			}
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// fakeSystemd puts a systemctl into PATH that knows one unit. It reads the unit's state from the file state and appends
// its arguments to the file asked.
func fakeSystemd(t *testing.T) (state, asked string) {
	t.Helper()
	dir := t.TempDir()
	state, asked = filepath.Join(dir, "state"), filepath.Join(dir, "asked")
	script := `#!/bin/sh
case $1 in
show) cat ` + state + `;;
esac
echo "$@" >>` + asked + `
`
	for name, text := range map[string]string{"systemctl": script, "journalctl": "#!/bin/sh\necho 'nginx: [emerg] no such directive'\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return state, asked
}

// turn calls Observe and Step once.
func turn(t *testing.T, s *service) facts.Status {
	t.Helper()
	if _, err := s.Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	status, err := s.Step(t.Context(), World{})
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func TestServiceIsStartedAgainAfterItFails(t *testing.T) {
	state, asked := fakeSystemd(t)
	set := func(active string) {
		os.WriteFile(state, []byte("LoadState=loaded\nActiveState="+active+"\nSubState=x\nResult=exit-code\nMainPID=0\n"), 0o644)
	}
	s := newService(Node{}, "nginx", &facts.ServiceParams{Unit: "imagegen-test-nginx.service"}).(*service)
	turn := func() facts.Status { t.Helper(); return turn(t, s) }
	starts := func() int {
		data, _ := os.ReadFile(asked)
		return strings.Count(string(data), "start --no-block imagegen-test-nginx.service")
	}
	set("inactive")
	turn()
	set("active")
	if got := turn(); got != ready("") || starts() != 1 {
		t.Fatalf("%+v after %d starts", got, starts())
	}
	set("failed")
	if got := turn(); got.State != facts.Failed || !strings.Contains(got.Detail, "no such directive") || starts() != 1 {
		t.Errorf("%+v after %d starts", got, starts())
	}
	s.retry = ensemble.Backoff{}
	s.retry.Next(time.Now().Add(-time.Second))
	if got := turn(); got.State != facts.Working || starts() != 2 {
		t.Errorf("%+v after %d starts", got, starts())
	}
	if s.retry.Left(time.Now()) < time.Second {
		t.Errorf("the second start is followed by a pause of %v", s.retry.Left(time.Now()))
	}
}

// idleUnit has systemd say that the unit is active, with a process that does nothing, and returns the file of what systemd is asked.
func idleUnit(t *testing.T) (asked string) {
	t.Helper()
	state, asked := fakeSystemd(t)
	idle := exec.Command("sleep", "600")
	if err := idle.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idle.Process.Kill(); idle.Wait() })
	os.WriteFile(state, fmt.Appendf(nil, "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nMainPID=%d\n", idle.Process.Pid), 0o644)
	return asked
}

// A service that accepts connections and never answers is killed, so that it is restarted. One that is slow, or that
// reports an error, is not.
func TestServiceThatHangsIsKilled(t *testing.T) {
	asked := idleUnit(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const unit = "imagegen-test-fpm.service"
	s := newService(Node{}, "fpm", &facts.ServiceParams{Unit: unit, Check: &facts.Check{FastCGI: l.Addr().String()}}).(*service)
	turn := func() facts.Status { t.Helper(); return turn(t, s) }
	kills := func() int {
		data, _ := os.ReadFile(asked)
		return strings.Count(string(data), "kill --signal=KILL "+unit)
	}
	if got := turn(); got.State != facts.Working || !strings.Contains(got.Detail, "no answer in time") || kills() != 0 {
		t.Fatalf("at first: %+v, killed %d times", got, kills())
	}
	s.silent.since = s.silent.since.Add(-2 * hangLimit)
	if got := turn(); !strings.Contains(got.Detail, "hangs") || kills() != 1 {
		t.Errorf("after long: %+v, killed %d times", got, kills())
	}
	if turn(); kills() != 1 {
		t.Error("killed again at once")
	}
	s.silent.since = s.silent.since.Add(-2 * hangLimit)
	l.Close() // refused is an answer
	if turn(); kills() != 1 || !s.silent.since.IsZero() {
		t.Error("killed though it refuses")
	}
}

// What answers however busy the unit is ends its wait sooner: when that is silent, and nothing uses CPU. If it answers, all of the
// unit's other processes wait for something, and may get it.
func TestServiceThatIsNotAliveIsKilledSooner(t *testing.T) {
	asked := idleUnit(t)
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	alive, busy := listen(), listen()
	const unit = "imagegen-test-fpm.service"
	s := newService(Node{}, "fpm", &facts.ServiceParams{Unit: unit, Check: &facts.Check{FastCGI: busy.Addr().String()}, Alive: &facts.Check{HTTP: "http://" + alive.Addr().String()}}).(*service)
	kills := func() int {
		data, _ := os.ReadFile(asked)
		return strings.Count(string(data), "kill --signal=KILL "+unit)
	}
	answers := &http.Server{Handler: http.NotFoundHandler()}
	t.Cleanup(func() { answers.Close() })
	go answers.Serve(alive)
	turn(t, s)
	s.silent.since = s.silent.since.Add(-2 * aliveLimit)
	if got := turn(t, s); kills() != 0 || !strings.Contains(got.Detail, busy.Addr().String()) {
		t.Errorf("%+v, killed %d times though it is alive", got, kills())
	}
	answers.Close()
	s.params.Alive.HTTP = "http://" + listen().Addr().String()
	if got := turn(t, s); kills() != 0 || !strings.Contains(got.Detail, "no answer in time") {
		t.Errorf("at first: %+v, killed %d times", got, kills())
	}
	s.dead.since = s.dead.since.Add(-2 * aliveLimit)
	s.node.Facts.Components = []facts.Component{{Name: "fpm", After: []string{"mount"}}}
	if turn(t, s); kills() != 0 {
		t.Error("killed while it may wait for the volume")
	}
	s.node.Facts.Components = nil
	if got := turn(t, s); kills() != 1 || !strings.Contains(got.Detail, "hangs") {
		t.Errorf("later: %+v, killed %d times", got, kills())
	}
	if turn(t, s); kills() != 1 {
		t.Error("killed again at once")
	}
}

// keepalived reads in a file whether the service answers: once it has not twice, and until it does again.
func TestServiceTellsKeepalived(t *testing.T) {
	state, _ := fakeSystemd(t)
	set := func(active string) {
		os.WriteFile(state, []byte("LoadState=loaded\nActiveState="+active+"\nSubState=x\nResult=success\nMainPID=0\n"), 0o644)
	}
	hangs := make(chan bool, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := <-hangs; h {
			<-r.Context().Done()
		}
	}))
	defer proxy.Close()
	file := filepath.Join(t.TempDir(), "faults")
	quickest := time.Hour // of the looks at a service that hangs; a single one may be slow on a busy machine
	s := newService(Node{}, "haproxy", &facts.ServiceParams{Unit: "imagegen-test-haproxy.service", Check: &facts.Check{HTTP: proxy.URL}, TrackFile: file}).(*service)
	for i, look := range []struct {
		active string
		hangs  bool
		want   string
	}{
		{"active", false, "0\n"},
		{"active", true, "0\n"},
		{"active", false, "0\n"},
		{"active", true, "0\n"},
		{"active", true, "1\n"},
		{"active", true, "1\n"},
		{"active", false, "0\n"},
		{"reloading", false, "0\n"},
		{"reloading", false, "0\n"},
		{"inactive", false, "0\n"},
		{"activating", false, "1\n"},
		{"active", false, "0\n"},
	} {
		set(look.active)
		doubt(s.params.Unit)
		if look.active == "active" {
			hangs <- look.hangs
		}
		before := time.Now()
		if _, err := s.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if err != nil || string(got) != look.want {
			t.Errorf("look %d: %q, %v", i, got, err)
		}
		if look.hangs {
			quickest = min(quickest, time.Since(before))
		}
	}
	if quickest >= checkLimit {
		t.Errorf("each look at a service that hangs took %v or longer: keepalived waits for the result", quickest)
	}
}

// A service that does not answer, but uses CPU, is not killed until it has done so for long.
func TestServiceThatWorksIsNotKilled(t *testing.T) {
	state, asked := fakeSystemd(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// The main process waits for a child that uses CPU.
	work := exec.Command("sh", "-c", "sh -c 'while :; do :; done' & wait")
	work.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := work.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-work.Process.Pid, syscall.SIGKILL); work.Wait() })
	os.WriteFile(state, fmt.Appendf(nil, "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nMainPID=%d\n", work.Process.Pid), 0o644)
	const unit = "imagegen-test-busy.service"
	s := newService(Node{}, "busy", &facts.ServiceParams{Unit: unit, Check: &facts.Check{FastCGI: l.Addr().String()}}).(*service)
	kills := func() int {
		data, _ := os.ReadFile(asked)
		return strings.Count(string(data), "kill --signal=KILL "+unit)
	}
	turn(t, s)
	// The unit starts with almost enough CPU time. It uses the rest, a tenth of a second, on any machine.
	const enough = (hangLimit + time.Second) / busyShare
	for end := time.Now().Add(time.Minute); unitWork(unit) < 200*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in a minute it has worked for %s", unitWork(unit))
		}
	}
	s.silent.since, s.silent.worked = time.Now().Add(-hangLimit-time.Second), 100*time.Millisecond-enough
	if got := turn(t, s); kills() != 0 || !strings.Contains(got.Detail, "no answer in time") {
		t.Errorf("%+v, killed %d times though it works", got, kills())
	}
	s.silent.since = time.Now().Add(-busyLimit - time.Second)
	if got := turn(t, s); kills() != 1 || !strings.Contains(got.Detail, "hangs") {
		t.Errorf("%+v, killed %d times after %s of work for nothing", got, kills(), busyLimit)
	}
}

// A unit's CPU time is that of its own processes. For units without processes, systemd reports process 1, whose
// descendants are all processes: a hung service must not seem busy because the machine is.
func TestUnitWorkIsItsOwn(t *testing.T) {
	if processStart("1") == "" {
		t.Skip("SKIPPED: needs /proc with process 1 in it")
	}
	state, _ := fakeSystemd(t)
	for _, pid := range []string{"0", "1"} {
		unit := "imagegen-test-main" + pid + ".service"
		os.WriteFile(state, []byte("LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nMainPID="+pid+"\n"), 0o644)
		if _, err := unitState(t.Context(), unit); err != nil {
			t.Fatal(err)
		}
		if got := unitWork(unit); got != 0 {
			t.Errorf("main process %s: it worked for %s", pid, got)
		}
	}
	os.WriteFile(state, fmt.Appendf(nil, "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nMainPID=%d\n", os.Getpid()), 0o644)
	const own = "imagegen-test-own.service"
	if _, err := unitState(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); unitWork(own) == 0; {
		if time.Now().After(end) {
			t.Fatal("this process has worked for a minute, and for nothing")
		}
	}
}

// Queries to a real PHP-FPM. Then it hangs, while the kernel still accepts connections for it.
func TestCheckFPM(t *testing.T) {
	program := testkit.Program(t, "php-fpm8.2", "")
	addr := testkit.FreeAddress(t)
	config := filepath.Join(t.TempDir(), "fpm.conf")
	text := "[global]\nerror_log = /dev/stderr\n[www]\nlisten = " + addr + "\npm = static\npm.max_children = 1\nping.path = /ping\n"
	if os.Getuid() == 0 {
		text += "user = nobody\n"
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	fpm := exec.Command(program, "--nodaemonize", "--fpm-config", config)
	fpm.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := fpm.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-fpm.Process.Pid, syscall.SIGKILL); fpm.Wait() })
	ask := func() error { return check(t.Context(), &facts.Check{FastCGI: addr}, checkLimit) }
	testkit.Eventually(t, time.Minute, "PHP-FPM answers", ask)
	if err := syscall.Kill(-fpm.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := ask(); !errors.Is(err, errSilent) {
		t.Errorf("it hangs: %v", err)
	}
}

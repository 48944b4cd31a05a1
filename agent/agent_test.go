package agent

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// scripted is a component with scripted states.
type scripted struct {
	observe func() (any, error)
	step    func(w World) (facts.Status, error)
}

func (s scripted) Observe(context.Context) (any, error) { return s.observe() }
func (s scripted) Step(_ context.Context, w World) (facts.Status, error) {
	return s.step(w)
}

// lines collects an agent's console output.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

func (l *lines) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.all, s)
}

func testAgent(console func(string), runners ...*runner) *Agent {
	known := facts.Facts{Cluster: "otus", ClusterID: "c", Node: facts.Peer{Name: "web1", Role: "web"}}
	for _, r := range runners {
		known.Components = append(known.Components, r.Component)
	}
	a := newAgent(known, systemClock{}, nil, console)
	for i, r := range runners {
		a.add(r.Component, r.impl, r.decision)
		*r = *a.runners[i]
	}
	a.runners = runners
	return a
}

func component(name string, after []string, impl Component) *runner {
	return &runner{Component: facts.Component{Name: name, After: after}, impl: impl, decision: new(decided)}
}

// decided is a decisionStore in memory.
type decided []string

func (d *decided) read() ([]string, error)      { return *d, nil }
func (d *decided) write(without []string) error { *d = without; return nil }

// A database component must not report before its disk is mounted: it would see an empty folder.
func TestNothingIsPublishedBeforeWhatComesFirst(t *testing.T) {
	diskState := waitf("for the disk")
	disk := component("disk", nil, scripted{
		observe: func() (any, error) { return struct{}{}, nil },
		step:    func(World) (facts.Status, error) { return diskState, nil },
	})
	db := component("galera", []string{"disk"}, scripted{
		observe: func() (any, error) { return map[string]bool{"empty": true}, nil },
		step:    func(World) (facts.Status, error) { return ready(""), nil },
	})
	var said lines
	a := testAgent(said.add, disk, db)
	turn := func() {
		a.turn(t.Context(), disk)
		a.turn(t.Context(), db)
	}

	turn()
	if r := a.report().Components["galera"]; r.Report != nil || r.Status != waitf("for disk on this node") {
		t.Errorf("before the disk is ready: %+v", r)
	}
	diskState = ready("")
	turn()
	if r := a.report(); string(r.Components["galera"].Report) != `{"empty":true}` || !r.Ready {
		t.Errorf("with the disk ready: %+v", r)
	}
	diskState = facts.Status{State: facts.Failed, Detail: "read-only"}
	turn()
	if r := a.report().Components["galera"]; r.Report != nil || r.Status.State != facts.Waiting {
		t.Errorf("after the disk has failed: %+v", r)
	}
	if !said.has("web1: disk: failed: read-only") || !said.has("web1: ready") {
		t.Errorf("console: %q", said.all)
	}
}

// Nothing starts before the packet filter is loaded, whatever the role's order of components. If the filter fails, the
// rest stays down.
func TestFirewallComesFirst(t *testing.T) {
	for _, filters := range [][]string{{"firewall"}, {"firewall", "firewall6"}} {
		loaded := map[string]facts.Status{}
		steps := 0
		var runners []*runner
		for _, name := range filters {
			loaded[name] = waitf("")
			runners = append(runners, component(name, nil, scripted{
				observe: func() (any, error) { return nil, nil },
				step:    func(World) (facts.Status, error) { return loaded[name], nil },
			}))
		}
		for name, after := range map[string][]string{"disk": nil, "redis": {"disk"}} {
			runners = append(runners, component(name, after, scripted{
				observe: func() (any, error) { steps++; return nil, nil },
				step:    func(World) (facts.Status, error) { steps++; return ready(""), nil },
			}))
		}
		a := testAgent(func(string) {}, runners...)
		turns := func() {
			for range 3 {
				for _, r := range runners {
					a.turn(t.Context(), r)
				}
			}
		}
		last := filters[len(filters)-1]
		for _, state := range []facts.Status{waitf(""), workf("starting"), {State: facts.Failed, Detail: "nftables.service failed"}, stopf("the image has no unit nftables.service")} {
			for _, name := range filters {
				loaded[name] = ready("")
			}
			loaded[last] = state
			if turns(); steps != 0 {
				t.Errorf("%s is %s, and the others took %d steps", last, state.State, steps)
			}
			if got := a.report().Components["redis"].Status; got.State != facts.Waiting || !strings.Contains(got.Detail, last) {
				t.Errorf("%s is %s: redis is %+v", last, state.State, got)
			}
		}
		loaded[last] = ready("")
		if turns(); steps == 0 || !a.isReady() {
			t.Errorf("all filters are loaded, and nothing happens: %d steps", steps)
		}
	}
}

// Control characters in texts from programs and peers are not shown.
func TestStatusesHoldNoControlCharacters(t *testing.T) {
	const hostile = "x\x1b]52;c;ZXZpbA==\x07\x1b[2Jfoo\r\nb\u00e4r\u009b1m\u202ebaz\u2028\x7f\x00 \xff\t."
	const want = "x]52;c;ZXZpbA==[2Jfoo b\u00e4r1mbaz \uFFFD ."
	if got := oneLine(hostile); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	var said lines
	c := component("nginx", nil, scripted{
		observe: func() (any, error) { return nil, nil },
		step:    func(World) (facts.Status, error) { return workf("starting again: %s", hostile), nil },
	})
	a := testAgent(said.add, c)
	a.turn(t.Context(), c)
	if got := a.report().Components["nginx"].Status.Detail; got != "starting again: "+want {
		t.Errorf("status: %q", got)
	}
	if !said.has("web1: nginx: working: starting again: " + want) {
		t.Errorf("console: %q", said.all)
	}
}

func TestFailuresAreShownAndWithdrawTheReport(t *testing.T) {
	var broken error
	c := component("redis", nil, scripted{
		observe: func() (any, error) { return 1, broken },
		step:    func(World) (facts.Status, error) { return ready(""), errors.New("step\n  broke") },
	})
	var said lines
	a := testAgent(said.add, c)
	a.turn(t.Context(), c)
	if got := a.report().Components["redis"]; got.Status != (facts.Status{State: facts.Failed, Detail: "step broke"}) {
		t.Errorf("failed step: %+v", got)
	}
	broken = errors.New("cannot look")
	a.turn(t.Context(), c)
	if got := a.report().Components["redis"]; got.Report != nil || got.Status.Detail != "cannot look" {
		t.Errorf("failed look: %+v", got)
	}
	a.turn(t.Context(), c)
	broken = errors.New("cannot look, again in 2 s")
	a.turn(t.Context(), c)
	broken = errors.New("cannot look, again in 1 s")
	a.turn(t.Context(), c)
	if len(said.all) != 3 {
		t.Errorf("each change once, got %q", said.all)
	}
}

// Run drives a component until it is ready, keeps observing it, and ends with its context.
func TestComponentsAreDrivenUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := 0
		c := component("nginx", nil, scripted{
			observe: func() (any, error) { turns++; return turns, nil },
			step: func(World) (facts.Status, error) {
				if turns < 5 {
					return workf("turn %d", turns), nil
				}
				return ready(""), nil
			},
		})
		a := testAgent(func(string) {}, c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		a.drive(ctx, c)
		if !a.isReady() {
			t.Error("not ready")
		}
		if turns < 50 || turns > 70 {
			t.Errorf("%d turns in a minute", turns)
		}
	})
}

func TestHealthPort(t *testing.T) {
	state := ready("synced")
	c := component("galera", nil, scripted{
		observe: func() (any, error) { return nil, nil },
		step:    func(World) (facts.Status, error) { return state, nil },
	})
	a := testAgent(func(string) {}, c)
	srv := httptest.NewServer(a.healthHandler())
	defer srv.Close()
	code := func(method, path string) int {
		req, _ := http.NewRequest(method, srv.URL+path, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := code("GET", "/galera"); got != 503 {
		t.Errorf("just started: %d", got)
	}
	a.turn(t.Context(), c)
	for path, want := range map[string]int{"/galera": 200, "/": 200, "/nothing": 404, "/galera/x": 404} {
		if got := code("GET", path); got != want {
			t.Errorf("ready: GET %s: %d, want %d", path, got, want)
		}
	}
	if got := code("POST", "/galera"); got != 405 {
		t.Errorf("the health port takes a POST: %d", got)
	}
	state = waitf("for percona2")
	a.turn(t.Context(), c)
	if got := code("GET", "/"); got != 503 {
		t.Errorf("waiting: %d", got)
	}
}

// authority is a certificate authority for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	return newAuthorityUntil(t, time.Now().Add(time.Hour))
}

func newAuthorityUntil(t *testing.T, notAfter time.Time) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (ca authority) issue(t *testing.T, name string, notAfter time.Time) identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool}
}

// serveAPI serves the peer API h on a loopback address, with the certificate id.
func serveAPI(t *testing.T, h http.Handler, id identity) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(h)
	go srv.Serve(tls.NewListener(l, id.server()))
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

func TestPeerAPIAnswersTheClusterAlone(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	later := time.Now().Add(time.Hour)
	web1 := ca.issue(t, "web1", later)
	a := testAgent(func(string) {})
	addr := serveAPI(t, a.apiHandler(), web1)

	ask := func(id identity, server string) error {
		c := http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: id.client(server)}}
		defer c.CloseIdleConnections()
		resp, err := c.Get("https://" + addr + facts.StatePath)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var r facts.NodeReport
		if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
			return err
		}
		if r.Node.Name != "web1" {
			return fmt.Errorf("answered as %q", r.Node.Name)
		}
		return nil
	}
	if err := ask(ca.issue(t, "web2", later), "web1"); err != nil {
		t.Errorf("a peer: %v", err)
	}
	stranger := other.issue(t, "web2", later)
	stranger.ca = web1.ca
	if err := ask(stranger, "web1"); err == nil {
		t.Error("a certificate of another authority was let in")
	}
	if err := ask(ca.issue(t, "web2", time.Now().Add(-time.Minute)), "web1"); err == nil {
		t.Error("an expired certificate was let in")
	}
	if err := ask(identity{ca: web1.ca}, "web1"); err == nil {
		t.Error("a client without a certificate was let in")
	}
	if err := ask(ca.issue(t, "web2", later), "web3"); err == nil {
		t.Error("web1's certificate was taken for web3's")
	}
}

// Both sides reject certificates that are expired or not yet valid, and those of an expired authority.
func TestCertificatesExpire(t *testing.T) {
	good := newAuthority(t)
	soon, late := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	valid := good.issue(t, "web1", soon)
	expired := good.issue(t, "web1", late)
	dead := newAuthorityUntil(t, late)
	ofDead := dead.issue(t, "web1", soon)
	name, report := "web1", facts.NodeReport{Node: facts.Peer{Name: "web1"}}
	// No side verifies its own certificate, so each case fails on one side only.
	for what, c := range map[string]struct {
		server, client identity
		right          bool
	}{
		"both valid":            {valid, valid, true},
		"the server's expired":  {expired, valid, false},
		"the client's expired":  {valid, expired, false},
		"the authority expired": {ofDead, ofDead, false},
	} {
		addr := serveAPI(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(report) }), c.server)
		p := newHTTPNetwork(c.client)
		p.limit = time.Minute // a busy machine answers late
		_, p.port, _ = net.SplitHostPort(addr)
		if _, err := p.ask(t.Context(), facts.Peer{Name: name, IP: "127.0.0.1"}, ""); (err == nil) != c.right {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestHostileRequestsEnd(t *testing.T) {
	ca := newAuthority(t)
	id := ca.issue(t, "web1", time.Now().Add(time.Hour))
	addr := serveAPI(t, testAgent(func(string) {}).apiHandler(), id)
	for name, request := range map[string]string{
		"header of a megabyte": "GET " + facts.StatePath + " HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n",
		"not HTTP":             "\x00\x01\x02\r\n\r\n",
		"length that is none":  "GET " + facts.StatePath + " HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"two lengths":          "POST " + facts.DecidePath + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
		"other method":         "DELETE " + facts.StatePath + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"other path":           "GET /../../etc/imagegen/secrets.json HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		conn, err := tls.Dial("tcp", addr, id.client("web1"))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		go io.WriteString(conn, request)
		reply, _ := bufio.NewReader(conn).ReadString('\n')
		conn.Close()
		if strings.HasPrefix(reply, "HTTP/1.1 200") {
			t.Errorf("%s: %.60q", name, reply)
		}
	}
}

// A peer counts as heard while its answers are recent, and only under its own name.
func TestPeersAreHeardWhileTheyAnswer(t *testing.T) {
	ca := newAuthority(t)
	later := time.Now().Add(time.Hour)
	name, body := "web2", ""
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if body != "" {
			io.WriteString(w, body)
			return
		}
		json.NewEncoder(w).Encode(facts.NodeReport{Node: facts.Peer{Name: name}})
	})
	addr := serveAPI(t, handler, ca.issue(t, "web2", later))
	n := newHTTPNetwork(ca.issue(t, "web1", later))
	// All agents use the same port; the test's listens on another one.
	n.limit = time.Minute // a busy machine answers late
	_, n.port, _ = net.SplitHostPort(addr)
	r, err := n.ask(t.Context(), facts.Peer{Name: "web2", IP: "127.0.0.1"}, "")
	if err != nil || r.Node.Name != "web2" {
		t.Fatalf("%v, %v", r, err)
	}
	for what, text := range map[string]string{
		"not JSON":                "<html>",
		"half an answer":          `{"node":{"name":"web2"`,
		"more than is read":       `{"node":{"name":"web2"},"x":"` + strings.Repeat("a", maxReport) + `"}`,
		"a number where words go": `{"node":{"name":2}}`,
	} {
		body = text
		if _, err := n.ask(t.Context(), facts.Peer{Name: "web2", IP: "127.0.0.1"}, ""); err == nil {
			t.Errorf("believed: %s", what)
		}
	}
	body, name = "", "web3"
	if _, err := n.ask(t.Context(), facts.Peer{Name: "web2", IP: "127.0.0.1"}, ""); err == nil {
		t.Error("an answer in another node's name was believed")
	}

	const limit = ensemble.HeardLimit
	p := newPeers(n, systemClock{})
	p.answers["web2"] = answer{time.Now().Add(-limit / 2), r}
	if _, ok := p.heard()["web2"]; !ok {
		t.Error("a young answer does not count")
	}
	p.answers["web2"] = answer{time.Now().Add(-2 * limit), r}
	if _, ok := p.heard()["web2"]; ok {
		t.Error("an old answer counts")
	}
	// A component that hangs was observed longer ago than its agent answered.
	r.Components = map[string]facts.ComponentReport{"galera": {Kind: "galera", Report: json.RawMessage(`{}`)}, "disk": {Kind: "disk", Report: json.RawMessage(`{}`)}}
	r.Ages = map[string]int64{"galera": (limit * 3 / 4).Milliseconds(), "disk": 10}
	p.answers["web2"] = answer{time.Now().Add(-limit / 2), r}
	heard := p.heard()["web2"].Components
	if len(heard["galera"].Report) > 0 || len(heard["disk"].Report) == 0 {
		t.Errorf("%s", heard)
	}
}

// Sleeps of the same length end at the same time, and none takes much more or less than its length.
func TestSleepsEndTogether(t *testing.T) {
	for _, d := range []time.Duration{pollUnready, pollReady, 3 * time.Second} {
		for now := -d; now < 2*d; now += d / 7 {
			if left := together(now, d); left <= d/2 || left > d+d/2 || (now+left)%d != 0 {
				t.Errorf("%v after the start, a sleep of %v takes %v", now, d, left)
			}
		}
	}
}

// Agents of nodes whose clocks agree wake up at the same time, at the beginning of a second.
func TestAgentsWakeUpTogether(t *testing.T) {
	wake := began.Add(together(0, pollReady))
	if wake.Nanosecond() != 0 {
		t.Errorf("wakes up at %v", wake)
	}
}

// slowNetwork answers soon, or for as long as it is down not before the request's limit.
type slowNetwork struct{ down bool }

func (s *slowNetwork) ask(ctx context.Context, n facts.Peer, _ string) (facts.NodeReport, error) {
	if s.down {
		time.Sleep(pollLimit)
		return facts.NodeReport{}, context.DeadlineExceeded
	}
	time.Sleep(50 * time.Millisecond)
	return facts.NodeReport{Node: n, Ready: true}, nil
}

// While all is well, peers are asked less often. One answer that does not come in time does not make a peer silent even so; a peer that does
// not answer any more is, 5 s after its last answer.
func TestOneLateAnswerIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web2 := facts.Peer{Name: "web2"}
		network := &slowNetwork{}
		p := newPeers(network, systemClock{})
		yes := func() bool { return true }
		ctx, stop := context.WithCancel(t.Context())
		var loop sync.WaitGroup
		loop.Go(func() { p.poll(ctx, web2, yes, yes, func() string { return "" }) })
		defer loop.Wait()
		defer stop()
		heard := func() bool { _, ok := p.heard()["web2"]; return ok }
		age := func() time.Duration { return p.heard()["web2"].Age }
		time.Sleep(calmAfter + 10*time.Second)
		for start := time.Now(); age() < pollCalm-100*time.Millisecond; time.Sleep(50 * time.Millisecond) {
			if time.Since(start) > time.Minute {
				t.Fatal("it is asked as often as before")
			}
		}
		network.down = true // for the next question
		time.Sleep(time.Second)
		network.down = false
		for range 500 {
			if !heard() {
				t.Fatal("one late answer has made it silent")
			}
			time.Sleep(10 * time.Millisecond)
		}
		network.down = true
		time.Sleep(ensemble.HeardLimit + time.Millisecond)
		if heard() {
			t.Errorf("it has not answered for longer than %v, and counts", ensemble.HeardLimit)
		}
	})
}

// Peers are asked over one connection, until one of the two sides ends it.
func TestConnectionToPeerIsKept(t *testing.T) {
	ca := newAuthority(t)
	later := time.Now().Add(time.Hour)
	from, last := map[string]bool{}, false
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from[r.RemoteAddr] = true
		if last {
			w.Header().Set("Connection", "close")
		}
		json.NewEncoder(w).Encode(facts.NodeReport{Node: facts.Peer{Name: "web2"}})
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	id := ca.issue(t, "web2", later)
	serve := func(l net.Listener) *http.Server {
		s := newServer(h)
		go s.Serve(tls.NewListener(l, id.server()))
		return s
	}
	s := serve(l)
	n := newHTTPNetwork(ca.issue(t, "web1", later))
	n.limit = time.Minute // a busy machine answers late
	_, n.port, _ = net.SplitHostPort(l.Addr().String())
	web2 := facts.Peer{Name: "web2", IP: "127.0.0.1"}
	ask := func(what string, connections int) {
		t.Helper()
		for range 3 {
			if r, err := n.ask(t.Context(), web2, ""); err != nil || r.Node.Name != "web2" {
				t.Fatalf("%s: %+v, %v", what, r, err)
			}
		}
		if len(from) != connections {
			t.Errorf("%s: %d connections, want %d", what, len(from), connections)
		}
	}
	ask("at first", 1)
	s.Close()
	if l, err = net.Listen("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	s = serve(l)
	ask("after a restart", 2)
	last = true
	ask("each is the last", 4) // the first of the three uses the connection that there is
	s.Close()
	if _, err := n.ask(t.Context(), web2, ""); err == nil {
		t.Error("an answer from nobody")
	}
}

// What is taken over from a peer's last answer is what decoding the new one gives.
func TestAnswersThatDifferInAges(t *testing.T) {
	report := func(change func(r *facts.NodeReport)) []byte {
		r := facts.NodeReport{Node: facts.Peer{Name: "web2"}, Ages: map[string]int64{"redis": 7, "disk": 1000}, Components: map[string]facts.ComponentReport{
			"redis": {Kind: "redis", Status: ready("text"), Report: json.RawMessage(`{"running":true}`)}}}
		change(&r)
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	ages := func(ages map[string]int64) func(r *facts.NodeReport) {
		return func(r *facts.NodeReport) { r.Ages = ages }
	}
	component := func(text, raw string) func(r *facts.NodeReport) {
		return func(r *facts.NodeReport) {
			r.Components = map[string]facts.ComponentReport{"redis": {Kind: "redis", Status: ready(text), Report: json.RawMessage(raw)}}
		}
	}
	var last lastReport
	for i, data := range [][]byte{
		report(func(*facts.NodeReport) {}),
		report(ages(map[string]int64{"redis": 1007, "disk": 3})),
		report(ages(map[string]int64{"redis": 2007})),
		report(ages(nil)),
		report(ages(map[string]int64{"redis": 2007})),
		report(component(`"ages_ms":{"redis":7}`, `{"running":true}`)),
		report(component(`"ages_ms":{"redis":8}`, `{"running":true}`)),
		report(component("text", `{"ages_ms":{"redis":1}}`)), // a component's own
		report(component("text", `{"ages_ms":{"redis":2}}`)),
		report(component("text", `{"running":false}`)),
		[]byte(`{"node":{"name":"web2"},"ages_ms":{"redis":"x"}}`),
		[]byte(`{"node":{"name":"web2"},"ages_ms":{`),
		[]byte(`"ages_ms":{}`),
		report(func(*facts.NodeReport) {}),
	} {
		var want facts.NodeReport
		wantErr := json.Unmarshal(data, &want)
		got, err := last.decode(data)
		if (err == nil) != (wantErr == nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("answer %d: %s\nis read as %+v, %v\nwant %+v", i, data, got, err, want)
		}
	}
	before := last.report.Components
	got, err := last.decode(report(ages(map[string]int64{"redis": 9})))
	if err != nil || reflect.ValueOf(got.Components).Pointer() != reflect.ValueOf(before).Pointer() {
		t.Errorf("answers that differ in their ages alone are decoded: %v", err)
	}
}

// FuzzPeerReport: for any report of a peer, every decision ends in a known state with one line of text.
func FuzzPeerReport(f *testing.F) {
	report := func(kind string, r any) []byte {
		raw, _ := json.Marshal(r)
		data, _ := json.Marshal(facts.NodeReport{Node: facts.Peer{Name: "node2"}, Components: map[string]facts.ComponentReport{kind: {Kind: kind, Report: raw}}})
		return data
	}
	f.Add(report("galera", galeraReport{}), report("galera", galeraReport{State: galeraServing, Size: -1, Going: true, Cluster: simCluster}))
	f.Add(report("redis", redisReport{Running: true, Role: "master", Founder: true}), report("sentinel", sentinelReport{Running: true, Master: "10.0.0.1", Epoch: -1}))
	f.Add(report("gluster", glusterReport{Running: true, Stored: []string{"a:/b", ""}, Lacks: []int{-1, 9}, Volume: &glusterVolume{ID: "v", Version: 7, Bricks: []string{"c:/b"}, IDs: []int{3}}}), []byte(`{"components":{"gluster":{"kind":"gluster","report":{"stored":null,"volume":{"version":-1}}}}}`))
	f.Add(report("gluster", glusterReport{Running: true, Brick: brickData, Blames: []int{-1, 0, 7}, Pending: -3, Volume: &glusterVolume{ID: "v", Status: 9}}), []byte(`{"components":{"gluster":null}}`))
	f.Add([]byte(`{"components":{"a":{"kind":"redis","report":[]}}}`), []byte(`{`))
	nodes := []facts.Peer{{Name: "node1", IP: "10.0.0.1"}, {Name: "node2", IP: "10.0.0.2", Index: 1}, {Name: "node3", IP: "10.0.0.3", Index: 2}}
	f.Fuzz(func(t *testing.T, second, third []byte) {
		w := World{Self: nodes[0], Peers: nodes[1:], Reports: map[string]PeerReport{}}
		for i, data := range [][]byte{second, third} {
			var r facts.NodeReport
			if json.Unmarshal(data, &r) == nil {
				w.Reports[nodes[i+1].Name] = PeerReport{NodeReport: r}
			}
		}
		right := func(what string, s facts.Status) {
			if !slices.Contains([]facts.State{facts.Ready, facts.Waiting, facts.Working, facts.Failed, facts.Stopped}, s.State) {
				t.Errorf("%s: state %q", what, s.State)
			}
		}
		for _, own := range []galeraReport{{}, {State: galeraEmpty}, {State: galeraServing, Size: 3}, {State: galeraNonPrimary, Size: 1}} {
			_, s := decideGalera(galeraMembers(new(ensemble.Reader[galeraReport]), w, own))
			right("galera", s)
		}
		for _, own := range []redisReport{{}, {HasData: true}, {Running: true, Role: "master"}, {Running: true, Role: "slave", Master: "10.0.0.2"}} {
			view := new(redisReader).members(w, own)
			_, _, s := decideRedis(view)
			right("redis", s)
			for _, seen := range []sentinelReport{{}, {Running: true, Master: "10.0.0.2"}} {
				_, _, s := decideSentinel(seen, own, view)
				right("sentinel", s)
			}
		}
		v := glusterView{self: "node1", uuids: map[string]string{}, params: glusterParams(), unit: "active"}
		_, _, v.heard = glusterMembers(new(ensemble.Reader[glusterReport]), w)
		bricks := []string{}
		for _, n := range nodes {
			v.nodes = append(v.nodes, n.Name)
			v.uuids[n.Name] = glusterUUID(simCluster, n.Name)
			bricks = append(bricks, n.Name+":"+v.params.Brick)
		}
		volume := &glusterVolume{ID: "v", Status: volumeStarted, Bricks: bricks}
		for _, own := range []glusterReport{{}, {Running: true, Brick: brickBare}, {Running: true, Volume: volume, Brick: brickNone}, {Running: true, Volume: volume, Brick: brickData, BrickID: "v", Online: true},
			{Running: true, Volume: volume, Stored: bricks[1:], Brick: brickData, BrickID: "v", Online: true}, {Running: true, Volume: &glusterVolume{ID: "v", Version: 1, Status: volumeStarted}, Brick: brickEmpty, BrickID: "v"}} {
			v.own = own
			_, s := decideGluster(v)
			right("gluster", s)
		}
		_, s := decideMount(&facts.MountParams{}, mountSeen{}, (&glusterMount{params: &facts.MountParams{}}).servers(w), 0)
		right("mount", s)
	})
}

// Only the operator may decide, and only when a component asks. The decision reaches the component, survives a restart
// of the agent, and ends when the component is ready.
func TestDecision(t *testing.T) {
	waiting := facts.Status{State: facts.Waiting, Detail: "for percona2", Missing: "percona2,percona3"}
	var without []string
	state := waiting
	galera := component("galera", nil, scripted{
		observe: func() (any, error) { return nil, nil },
		step:    func(w World) (facts.Status, error) { without = w.Without; return state, nil },
	})
	galera.decision = decisionFile{filepath.Join(t.TempDir(), "decision.json"), "galera"}
	var said lines
	a := testAgent(said.add, galera)
	ca := newAuthority(t)
	later := time.Now().Add(time.Hour)
	addr := serveAPI(t, a.apiHandler(), ca.issue(t, "web1", later))
	decide := func(as, body string) (int, string) {
		t.Helper()
		c := http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: ca.issue(t, as, later).client("web1")}}
		defer c.CloseIdleConnections()
		resp, err := c.Post("https://"+addr+facts.DecidePath, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(answer)
	}
	const good = `{"component":"galera","without":["percona2"]}`

	if code, answer := decide("operator", good); code != http.StatusConflict || !strings.Contains(answer, "does not wait for a decision") {
		t.Errorf("before it waits: %d %s", code, answer)
	}
	a.turn(t.Context(), galera)
	for body, want := range map[string]string{
		`{"component":"redis","without":["percona2"]}`:                                "no component redis",
		`{"component":"galera","without":["percona1"]}`:                               "does not wait for percona1, but for percona2, percona3",
		`{"component":"galera"}`:                                                      "none of these is named",
		`{"component":"galera","without":["percona2"],"now":1}`:                       "unknown field",
		`{"component":"galera","without":"` + strings.Repeat("x", maxDecision) + `"}`: "too large",
	} {
		if code, answer := decide("operator", body); code < 400 || !strings.Contains(answer, want) {
			t.Errorf("%.60s: %d %s", body, code, answer)
		}
	}
	if code, answer := decide("web2", good); code != http.StatusForbidden || !strings.Contains(answer, "only the operator may do this") {
		t.Errorf("a node: %d %s", code, answer)
	}
	if a.turn(t.Context(), galera); without != nil {
		t.Errorf("refused, but taken: %q", without)
	}

	// The node's agent answers, although it cannot tell how its component is.
	a.peers.answers["percona2"] = answer{time.Now(), facts.NodeReport{Components: map[string]facts.ComponentReport{"galera": {Status: facts.Status{State: facts.Failed, Detail: "no answer"}}}}}
	if code, answer := decide("operator", good); code != http.StatusConflict || !strings.Contains(answer, "the agent of percona2 answers") || !strings.Contains(answer, "failed: no answer") {
		t.Errorf("about a node whose agent answers: %d %s", code, answer)
	}
	delete(a.peers.answers, "percona2")

	if code, answer := decide("operator", good); code != http.StatusNoContent {
		t.Fatalf("%d %s", code, answer)
	}
	if a.turn(t.Context(), galera); !slices.Equal(without, []string{"percona2"}) {
		t.Errorf("the component was told %q", without)
	}
	if !said.has("web1: galera: an operator has decided to go on without percona2") {
		t.Errorf("console: %q", said.all)
	}
	// Now it waits only for another node, about which the operator decides later: the decisions add up.
	state.Missing = "percona3"
	a.turn(t.Context(), galera)
	if code, answer := decide("operator", strings.ReplaceAll(good, "percona2", "percona3")); code != http.StatusNoContent {
		t.Fatalf("%d %s", code, answer)
	}
	if a.turn(t.Context(), galera); !slices.Equal(without, []string{"percona2", "percona3"}) {
		t.Errorf("after two decisions the component was told %q", without)
	}
	// One of them is heard again, and then goes silent.
	a.peers.answers["percona2"] = answer{time.Now(), facts.NodeReport{}}
	a.turn(t.Context(), galera)
	delete(a.peers.answers, "percona2")
	if a.turn(t.Context(), galera); !slices.Equal(without, []string{"percona3"}) {
		t.Errorf("after percona2 was heard, the component was told %q", without)
	}
	state = ready("")
	a.turn(t.Context(), galera)
	state = waiting
	if a.turn(t.Context(), galera); without != nil {
		t.Errorf("decided again, by itself: %q", without)
	}
}

// A node's virtual addresses are the others on its own card.
func TestVirtualAddresses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for a network namespace")
	}
	const cards = `ip link add name card1 type bridge; ip link add name card2 type bridge
for x in 10.9.0.1/24 10.9.0.39/32 10.9.0.38/32 fd00::1/64; do ip addr add $x dev card1; done
for x in 10.8.0.1/24 10.8.0.2/24; do ip addr add $x dev card2; done`
	got := map[string]string{}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		if err == nil {
			var out []byte
			if out, err = exec.Command("sh", "-ec", cards).CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
		for _, own := range []string{"10.9.0.1", "10.8.0.1", "10.7.0.1"} {
			got[own] = strings.Join(virtualAddresses(own), " ")
		}
		made <- err
	}()
	if err := <-made; errors.Is(err, syscall.EPERM) {
		t.Skip("SKIPPED: may not make a network namespace")
	} else if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"10.9.0.1": "10.9.0.38 10.9.0.39", "10.8.0.1": "10.8.0.2", "10.7.0.1": ""}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

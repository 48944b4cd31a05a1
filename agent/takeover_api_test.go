package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
)

// TestTakeoverAPI: only the operator may have a node take over a seed; a plan changes nothing, the change follows the answer, and
// confirming the new seed erases the old one.
func TestTakeoverAPI(t *testing.T) {
	old, seed := seedOf(t, edit{"k\n", "old secret\n"}), seedOf(t, edit{"size 1\n", "size 2\n"})
	m := newSeeded(t, old)
	m.agentStarts()
	a := m.agent(nil)
	ca := newAuthority(t)
	ask := func(as, method, path string, body any) (int, string) {
		t.Helper()
		// The agent starts anew with each seed.
		addr := serveAPI(t, a.apiHandler(), ca.issue(t, "gadget1", time.Now().Add(time.Hour)))
		c := http.Client{Transport: &http.Transport{TLSClientConfig: ca.issue(t, as, time.Now().Add(time.Hour)).client("gadget1")}}
		defer c.CloseIdleConnections()
		data, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(method, "https://"+addr+path, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	told := func() bool { return len(a.switching) > 0 }
	b := sign(t, bundle(t, seed), "")
	for _, r := range []struct{ method, path string }{{"GET", facts.TakeoverPath}, {"POST", facts.TakeoverPath}, {"POST", facts.TakeoverPath + "?plan=1"}, {"POST", facts.ConfirmPath}, {"POST", facts.HandoverPath}} {
		if code, text := ask("gadget2", r.method, r.path, b); code != http.StatusForbidden {
			t.Errorf("%s %s from a node: %d %s", r.method, r.path, code, text)
		}
	}
	if code, text := ask(facts.OperatorName, "GET", facts.TakeoverPath, nil); code != http.StatusNoContent {
		t.Errorf("the state before anything happened: %d %s", code, text)
	}
	if code, text := ask(facts.OperatorName, "POST", facts.TakeoverPath, map[string]string{"seed": "x"}); code != http.StatusBadRequest {
		t.Errorf("something else than a bundle: %d %s", code, text)
	}
	// Not over the network: the connection ends while the rest of it is being sent.
	large := httptest.NewRecorder()
	a.serveTakeover(large, httptest.NewRequest("POST", facts.TakeoverPath, strings.NewReader(`{"user_data": "`+strings.Repeat("A", maxBundle)+`"}`)))
	if large.Code != http.StatusBadRequest || !strings.Contains(large.Body.String(), "too large") {
		t.Errorf("a bundle without end: %d %s", large.Code, large.Body)
	}
	before := m.looks()
	code, text := ask(facts.OperatorName, "POST", facts.TakeoverPath+"?plan=1", b)
	var p facts.Plan
	if err := json.Unmarshal([]byte(text), &p); err != nil || code != http.StatusOK || !slices.Equal(p.Stop, []string{"job.timer", "gadget.service"}) || len(p.Files) != 2 {
		t.Errorf("the plan is %d %s, %v", code, text, err)
	}
	if _, err := os.Stat(m.path(facts.StateDir + "/takeover")); !errors.Is(err, fs.ErrNotExist) || told() {
		t.Error("asking for the plan has begun something")
	}
	if code, text := ask(facts.OperatorName, "POST", facts.TakeoverPath, b); code != http.StatusAccepted {
		t.Fatalf("taking over: %d %s", code, text)
	}
	<-a.switching
	if d := differences(m.looks(), before); len(d) > 0 {
		t.Errorf("files changed while components run: %q", d)
	}
	if code, text := ask(facts.OperatorName, "POST", facts.TakeoverPath, b); code != http.StatusConflict || !strings.Contains(text, "changes to sha256:") {
		t.Errorf("twice: %d %s", code, text)
	}
	var again Again
	if err := a.carryOut(context.Background()); !errors.As(err, &again) || !slices.Equal(again.Ready, nil) {
		t.Fatalf("carried out: %v", err)
	}
	if r := a.report(); r.Components["gadget"].Status.State != facts.Working || r.Components["live"].Status.State == facts.Working {
		t.Errorf("what stops and what goes on: %+v", r.Components)
	}
	a = m.agent(nil)
	var trial facts.Trial
	code, text = ask(facts.OperatorName, "GET", facts.TakeoverPath, nil)
	if err := json.Unmarshal([]byte(text), &trial); err != nil || code != http.StatusOK || trial.State != facts.TrialRunning || trial.Detail != "must be ready for 30s within 10m0s, of which 1s have passed" ||
		trial.Seed != nocloud.Digest(seed.UserData, seed.NetworkConfig) || trial.Previous != nocloud.Digest(old.UserData, old.NetworkConfig) {
		t.Errorf("the trial: %d %s, %v", code, text, err)
	}
	if code, text := ask(facts.OperatorName, "POST", facts.ConfirmPath+"?seed="+trial.Seed, nil); code != http.StatusConflict || !strings.Contains(text, "on trial") {
		t.Errorf("confirmed before it has passed its trial: %d %s", code, text)
	}
	if code, text := ask(facts.OperatorName, "POST", facts.TakeoverPath, sign(t, bundle(t, old), "")); code != http.StatusConflict || !strings.Contains(text, "on trial") {
		t.Errorf("another seed during the trial: %d %s", code, text)
	}
	j, err := a.takeover.read()
	if err != nil {
		t.Fatal(err)
	}
	j.Phase = facts.TrialPassed
	if err := a.takeover.write(j); err != nil {
		t.Fatal(err)
	}
	if before, ok := a.takeover.previous(); !ok || !m.contains("old secret") || nocloud.Digest(before.UserData, before.NetworkConfig) != trial.Previous {
		t.Error("nothing is left to go back to")
	}
	if code, text := ask(facts.OperatorName, "POST", facts.ConfirmPath+"?seed="+trial.Previous, nil); code != http.StatusConflict {
		t.Errorf("confirmed the previous seed: %d %s", code, text)
	}
	for range 2 {
		if code, text := ask(facts.OperatorName, "POST", facts.ConfirmPath+"?seed="+trial.Seed, nil); code != http.StatusNoContent {
			t.Errorf("confirmed: %d %s", code, text)
		}
	}
	if _, ok := a.takeover.previous(); ok || m.contains("old secret") {
		t.Error("the secrets of the previous seed are still on the node")
	}
	fresh := newSeeded(t, seed)
	fresh.agentStarts()
	for _, what := range []string{"now", "after a reboot"} {
		m.agentStarts()
		for _, d := range differences(m.looks(), fresh.looks()) {
			t.Errorf("%s: %s", what, d)
		}
		m.boot()
	}
	if code, text := ask(facts.OperatorName, "POST", facts.TakeoverPath, b); code != http.StatusOK || told() {
		t.Errorf("the seed that it has: %d %s", code, text)
	}
}

// contains tells whether a text is in any file of the machine.
func (m *seeded) contains(text string) (found bool) {
	m.Helper()
	m.must(filepath.WalkDir(m.root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		found = found || bytes.Contains(data, []byte(text))
		return err
	}))
	return found
}

// TestBundlesAreVerified: what is not exactly what the signed generation names is refused, and nothing changes.
func TestBundlesAreVerified(t *testing.T) {
	m := newSeeded(t, seedOf(t))
	m.agentStarts()
	before := m.looks()
	good := func() facts.Bundle { return sign(t, bundle(t, seedOf(t, edit{"lazy\n", "lazier\n"})), "") }
	other := renderSeeds(t, "", string("cluster: otus\ndistro: debian12\nnetwork: {cidr: 192.168.10.0/24}\nroles:\n  glusterfs: {nodes: {g1: 192.168.10.5, g2: 192.168.10.6, g3: 192.168.10.7}}\n"), "g1")["g1"]
	for _, c := range []struct {
		name, want string
		spoil      func(b *facts.Bundle, a *Agent)
	}{
		{"no key", "knows no key that signs generations", func(_ *facts.Bundle, a *Agent) { a.verifier = nil }},
		{"no signature", "not a signed generation", func(b *facts.Bundle, _ *Agent) { b.Generation = nil }},
		{"other user-data", "the seed is not the one that the generation names: damaged", func(b *facts.Bundle, _ *Agent) { b.UserData = append(b.UserData, '\n') }},
		{"no network", "damaged", func(b *facts.Bundle, _ *Agent) { b.NetworkConfig = nil }},
		{"keys for cloud-init", "has the keys", func(b *facts.Bundle, _ *Agent) { b.MetaData = append(b.MetaData, "public-keys: ssh-ed25519\n"...) }},
		{"host name", "host name other", func(b *facts.Bundle, _ *Agent) {
			b.MetaData = bytes.Replace(b.MetaData, []byte("local-hostname: gadget1"), []byte("local-hostname: other"), 1)
		}},
		{"instance", "expected node gadget1", func(b *facts.Bundle, _ *Agent) {
			b.MetaData = bytes.Replace(b.MetaData, []byte("instance-id: otus-gadget1-"), []byte("instance-id: otus-gadget1-0"), 1)
		}},
		{"another node's seed", "the seed is for node g1 of cluster", func(b *facts.Bundle, _ *Agent) { *b = sign(t, bundle(t, other), "") }},
		{"other facts", "the facts are not those that the generation names", func(b *facts.Bundle, _ *Agent) { b.Facts = append(b.Facts, '\n') }},
		{"another node's facts", "the facts are those of node g1 (glusterfs)", func(b *facts.Bundle, _ *Agent) {
			b.Facts = bundle(t, other).Facts
			*b = sign(t, *b, "")
		}},
		{"a file is missing", "the bundle lacks /etc/gadget/lazy.conf", func(b *facts.Bundle, _ *Agent) { delete(b.Files, "/etc/gadget/lazy.conf") }},
		{"another file", "/etc/gadget/lazy.conf in the bundle is not what the facts say", func(b *facts.Bundle, _ *Agent) { b.Files["/etc/gadget/lazy.conf"] = []byte("x") }},
		{"another image", "it has another image", func(b *facts.Bundle, _ *Agent) { *b = sign(t, *b, "image2") }},
		{"facts for another image's agent", "it has another image; the facts have version 9", func(b *facts.Bundle, _ *Agent) {
			b.Facts = bytes.Replace(b.Facts, []byte(`"version": 2`), []byte(`"version": 9`), 1)
			*b = sign(t, *b, "")
			*b = sign(t, *b, "image2")
		}},
		{"facts that no agent can read", "the facts have version 9, this agent reads versions 1 and 2", func(b *facts.Bundle, _ *Agent) {
			b.Facts = bytes.Replace(b.Facts, []byte(`"version": 2`), []byte(`"version": 9`), 1)
			*b = sign(t, *b, "")
		}},
		{"a file edited on the node", "/etc/hosts was changed on the node", func(*facts.Bundle, *Agent) { m.write("/etc/hosts", "edited\n", 0o644, "root:root") }},
		{"a mode changed on the node", "/etc/hosts was changed on the node", func(*facts.Bundle, *Agent) { m.must(os.Chmod(m.path("/etc/hosts"), 0o600)) }},
		{"a secret edited on the node", "/etc/imagegen/pki/node.crt was changed on the node", func(*facts.Bundle, *Agent) { m.write("/etc/imagegen/pki/node.crt", "x", 0o644, "root:root") }},
		{"a file removed on the node", "/etc/hosts was removed on the node", func(*facts.Bundle, *Agent) { m.must(os.Remove(m.path("/etc/hosts"))) }},
		{"a disk that fails", "prepare the new seed", func(_ *facts.Bundle, a *Agent) {
			a.takeover.step = func(what string) {
				if what == "stage the new seed" {
					m.must(os.WriteFile(a.takeover.state(newSide, sideSeed), nil, 0o600)) // so that no folder can be made there
				}
			}
		}},
	} {
		b, a := good(), m.agent(nil)
		c.spoil(&b, a)
		_, begun, err := a.takeOver(b, false)
		if err == nil || begun || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		if _, err := os.Stat(m.path(facts.StateDir + "/takeover")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: files of the new seed are left", c.name)
		}
		for _, path := range []string{"/etc/hosts", "/etc/imagegen/pki/node.crt"} {
			_, content, _ := strings.Cut(before["file "+path], " ")
			_, content, _ = strings.Cut(content, " ")
			m.write(path, content, 0o644, "root:root")
		}
		for _, d := range differences(m.looks(), before) {
			t.Fatalf("%s: %s", c.name, d)
		}
	}
}

// TestOtherMachine: what is not in a file of the seed needs another machine.
func TestOtherMachine(t *testing.T) {
	m := newSeeded(t, seedOf(t))
	for _, edits := range [][]edit{
		{{"distro: debian12\n", "distro: debian12\ntimezone: Europe/Berlin\n"}},
		{{"distro: debian12\n", "distro: debian12\nssh: {user: me, keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7bCTJd8ykMZTxGWjmNhKjtrT8UyMwKYbbmHvsM1qHB]}\n"}},
		{{"{cidr: 192.168.10.0/24}", "{cidr: 192.168.10.0/24, gateway: 192.168.10.1}"}},
	} {
		p, _, err := m.agent(nil).takeOver(sign(t, bundle(t, seedOf(t, edits...)), ""), true)
		if err != nil || !slices.Contains(p.Replace, "its address, its network, its time zone or who may log in is another one") {
			t.Errorf("%+v: %+v, %v", edits, p, err)
		}
	}
}

// onTrial returns a machine whose new seed is on trial.
func onTrial(t *testing.T) *seeded {
	t.Helper()
	m := newSeeded(t, seedOf(t))
	m.agentStarts()
	if _, err := m.takesOver(seedOf(t, edit{"lazy\n", "lazier\n"}), nil); err != nil {
		t.Fatal(err)
	}
	return m
}

// runsFor runs the trial of an agent that is ready or not.
func (m *seeded) runsFor(d time.Duration, ready func(time.Duration) bool) (a *Agent, told bool) {
	m.Helper()
	a = m.agent(nil)
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	start := time.Now()
	done := make(chan struct{})
	go func() { a.watchTrial(ctx); close(done) }()
	for {
		for _, r := range a.runners {
			s := waitf("for gadget2")
			if ready(time.Since(start)) {
				s = facts.Status{State: facts.Ready}
			}
			a.setStatus(r.Name, s)
		}
		select {
		case <-done:
			return a, len(a.switching) > 0
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (m *seeded) phase() facts.TrialState {
	m.Helper()
	j, err := m.takeover(nil).read()
	m.must(err)
	return j.Phase
}

// TestTrial: a node that is ready for a while keeps the new seed, one that is not goes back, also when reboots and crashes of the
// agent come in between.
func TestTrial(t *testing.T) {
	always := func(time.Duration) bool { return true }
	never := func(time.Duration) bool { return false }
	resume := func(t *testing.T, m *seeded) {
		t.Helper()
		if _, err := m.takeover(nil).resume(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]func(t *testing.T, m *seeded){
		"ready": func(t *testing.T, m *seeded) {
			if _, told := m.runsFor(trialReady+2*watchEvery, always); told || m.phase() != facts.TrialPassed {
				t.Errorf("%v, told: %v", m.phase(), told)
			}
		},
		"not for long enough": func(t *testing.T, m *seeded) {
			m.runsFor(trialReady-2*watchEvery, always)
			m.runsFor(trialReady-2*watchEvery, always)
			if m.phase() != facts.TrialRunning {
				t.Errorf("%v", m.phase())
			}
		},
		"never ready": func(t *testing.T, m *seeded) {
			a, told := m.runsFor(trialLimit+2*watchEvery, never)
			if !told || m.phase() != facts.TrialReturning {
				t.Fatalf("%v, told: %v", m.phase(), told)
			}
			if err := a.carryOut(context.Background()); !errors.As(err, new(Again)) || m.phase() != facts.TrialReturned {
				t.Errorf("%v, %v", m.phase(), err)
			}
			said := ""
			for _, e := range a.events.since(time.Time{}) {
				said += e.Text + "\n"
			}
			if !strings.Contains(said, "goes back to the previous seed: not ready within 10m0s: firewall: waiting: for gadget2") || !strings.Contains(said, "runs the previous seed again") {
				t.Errorf("the events do not say why:\n%s", said)
			}
			if r := m.agent(nil); r.facts.Files == nil {
				t.Error("no facts")
			}
		},
		"ready now and then": func(t *testing.T, m *seeded) {
			if _, told := m.runsFor(trialLimit+2*watchEvery, func(at time.Duration) bool { return int(at.Seconds())%25 > 2 }); !told || m.phase() != facts.TrialReturning {
				t.Errorf("%v, told: %v", m.phase(), told)
			}
		},
		"ready late, after reboots": func(t *testing.T, m *seeded) {
			for range 3 {
				m.runsFor(trialLimit/4, never)
				m.boot()
				resume(t, m)
			}
			m.runsFor(trialReady+2*watchEvery, always)
			if m.phase() != facts.TrialPassed {
				t.Errorf("%v", m.phase())
			}
		},
		"never ready, across reboots": func(t *testing.T, m *seeded) {
			told := false
			for range 10 {
				if _, told = m.runsFor(trialLimit/5, never); told {
					break
				}
				m.boot()
				resume(t, m)
			}
			if !told || m.phase() != facts.TrialReturning {
				t.Errorf("%v, told: %v", m.phase(), told)
			}
		},
		"the agent crashes at once": func(t *testing.T, m *seeded) {
			starts := 0
			for ; m.phase() == facts.TrialRunning && starts < 10000; starts++ {
				resume(t, m)
			}
			if m.phase() != facts.TrialReturned || time.Duration(starts)*time.Second > trialLimit {
				t.Errorf("%v after %d starts", m.phase(), starts)
			}
		},
		"the old seed is applied at boot": func(t *testing.T, m *seeded) {
			m.boots(seedOf(t))
			resume(t, m)
			fresh := newSeeded(t, seedOf(t))
			fresh.agentStarts()
			m.agentStarts()
			for _, d := range differences(m.looks(), fresh.looks()) {
				t.Error(d)
			}
			if m.phase() != facts.TrialReturned {
				t.Errorf("%v", m.phase())
			}
		},
		"the new seed is applied at boot after going back": func(t *testing.T, m *seeded) {
			gone := seedOf(t, edit{"  - {path: /etc/systemd/system/gadget.service.d/90-imagegen.conf, template: dropin, change: restart gadget.service}\n", ""})
			m.goesBack("for the test")
			resume(t, m)
			if _, err := m.takesOver(gone, nil); err != nil {
				t.Fatal(err)
			}
			m.goesBack("for the test")
			resume(t, m)
			m.boots(gone)
			resume(t, m)
			fresh := newSeeded(t, gone)
			fresh.agentStarts()
			m.agentStarts()
			for _, d := range differences(m.looks(), fresh.looks()) {
				t.Error(d)
			}
			if m.phase() != noJournalYet {
				t.Errorf("%v", m.phase())
			}
		},
		"a third seed is applied at boot": func(t *testing.T, m *seeded) {
			third := seedOf(t, edit{"size 1\n", "size 3\n"})
			m.boots(third)
			resume(t, m)
			fresh := newSeeded(t, third)
			fresh.agentStarts()
			m.agentStarts()
			for _, d := range differences(m.looks(), fresh.looks()) {
				t.Error(d)
			}
			if m.phase() != noJournalYet {
				t.Errorf("%v", m.phase())
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := onTrial(t)
			synctest.Test(t, func(t *testing.T) { test(t, m) })
		})
	}
}

// TestUntouched: the agent that starts anew takes components for ready that were, and that nothing happened to.
func TestUntouched(t *testing.T) {
	m := newSeeded(t, seedOf(t))
	for _, c := range []struct {
		name     string
		edits    []edit
		stopped  []string
		notReady string
		want     []string
	}{
		{"nothing changed", nil, nil, "", []string{"firewall", "live", "gadget", "job"}},
		{"one stopped", nil, []string{"gadget.service"}, "", []string{"firewall", "live"}},
		{"one was not ready", nil, nil, "live", []string{"firewall"}},
		{"other parameters", []edit{{"params: {unit: gadget.service}", "params: {unit: gadget.service, check: {tcp: \"127.0.0.1:1\"}}"}}, nil, "", []string{"firewall", "live"}},
		{"a new component", []edit{{"components:\n", "components:\n  - {name: new, kind: service, params: {unit: new.service}}\n"}}, nil, "", []string{"firewall", "live", "gadget", "job"}},
	} {
		a := m.agent(nil)
		for _, r := range a.runners {
			if r.Name != c.notReady {
				a.setStatus(r.Name, ready(""))
			}
		}
		now, err := facts.Decode(bundle(t, seedOf(t, c.edits...)).Facts)
		if err != nil {
			t.Fatal(err)
		}
		got := a.untouched(now, c.stopped)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		next := m.agent(nil)
		name, value, _ := strings.Cut(Again{got}.Environment(), "=")
		if Replaces() {
			t.Error("an agent replaces one before there is any")
		}
		t.Setenv(name, value)
		if !Replaces() {
			t.Errorf("%s: the next agent does not know that it replaces one", c.name)
		}
		os.Unsetenv(name)
		next.inherit(value)
		for name, r := range next.report().Components {
			if (r.Status.State == facts.Ready) != slices.Contains(c.want, name) {
				t.Errorf("%s: the next agent says that %s is %s", c.name, name, r.Status.State)
			}
		}
		if next.isReady() != (len(c.want) == len(next.runners)) {
			t.Errorf("%s: the next agent is ready: %v", c.name, next.isReady())
		}
	}
	next := m.agent(nil)
	next.inherit("")
	if slices.ContainsFunc(slices.Collect(maps.Values(next.report().Components)), func(c facts.ComponentReport) bool { return c.Status.State == facts.Ready }) {
		t.Error("an agent that replaces none takes something for ready")
	}
}

// TestComponentsRestWhileTheSeedChanges: no component acts on a node whose files are of two seeds, while the API still answers.
func TestComponentsRestWhileTheSeedChanges(t *testing.T) {
	m := onTrial(t)
	m.goesBack("for the test")
	synctest.Test(t, func(t *testing.T) {
		var mixed, serves atomic.Bool
		var turns atomic.Int32
		a := m.agent(func(string) { mixed.Store(true) })
		for _, r := range a.runners {
			r.decision = noDecision{}
			r.impl = scripted{
				observe: func() (any, error) { return nil, nil },
				step: func(World) (facts.Status, error) {
					time.Sleep(5 * time.Second) // a step that is under way
					if mixed.Load() {
						t.Error("a component acts while the seed changes")
					}
					turns.Add(1)
					return ready(""), nil
				},
			}
		}
		answers := func(ctx context.Context) error {
			for ctx.Err() == nil {
				serves.Store(serves.Load() || mixed.Load())
				time.Sleep(time.Millisecond)
			}
			return nil
		}
		a.takeover.daemons = slowDaemons{m}
		go func() {
			for turns.Load() < 10 {
				time.Sleep(time.Second)
			}
			a.changeSeed()
		}()
		var again Again
		if err := a.run(context.Background(), answers); !errors.As(err, &again) || !slices.Equal(again.Ready, []string{"firewall", "live", "gadget", "job"}) {
			t.Errorf("%v", err)
		}
		if !serves.Load() || m.phase() != facts.TrialReturned {
			t.Errorf("the API ended: %v; %v", !serves.Load(), m.phase())
		}
	})
}

// slowDaemons take their time.
type slowDaemons struct{ *seeded }

func (s slowDaemons) label(ctx context.Context, files []string) error {
	time.Sleep(time.Minute)
	return s.seeded.label(ctx, files)
}

// noDecision is the decision of a component that has none.
type noDecision struct{}

func (noDecision) read() ([]string, error) { return nil, nil }
func (noDecision) write([]string) error    { return nil }

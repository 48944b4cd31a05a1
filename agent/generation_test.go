package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
	"imagegen/internal/generationtest"
)

// town is a set of nodes' generations that ask each other without a network.
type town struct {
	authority *generationtest.Authority
	members   []facts.Member
	nodes     map[string]*generations
	silent    map[string]bool
	dir       string
	said      remarks
}

// newTown makes nodes web1 (without a data disk), db1, db2 and db3, which run generation 1.
func newTown(t *testing.T) *town {
	w := &town{authority: generationtest.New(t), nodes: map[string]*generations{}, silent: map[string]bool{}, dir: t.TempDir()}
	for i, name := range []string{"web1", "db1", "db2", "db3"} {
		w.members = append(w.members, facts.Member{Name: name, Role: strings.TrimRight(name, "123"), IP: fmt.Sprintf("10.0.0.%d", i+1), Index: max(0, i-1), Data: i > 0,
			Seed: facts.Digest([]byte("seed of " + name)), Facts: facts.Digest([]byte("facts of " + name))})
	}
	one := w.authority.Sign(t, 1, "", w.members...)
	for _, m := range w.members {
		w.put(t, filepath.Join(m.Name, "seed", "generation"), one.Signed)
		w.start(t, m.Name, 1)
	}
	return w
}

func (w *town) put(t *testing.T, path string, data []byte) {
	t.Helper()
	path = filepath.Join(w.dir, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// start makes a node's agent from what is on its disks. number is that of its seed.
func (w *town) start(t *testing.T, name string, number int) *generations {
	t.Helper()
	m, _ := facts.Manifest{Members: w.members}.Member(name)
	g := &generations{
		node: name, seed: func() string { return m.Seed }, dir: filepath.Join(w.dir, name, "seed"), verify: w.authority.Verify,
		ask: w.ask, said: w.said.say, onRoot: filepath.Join(w.dir, name, "root.json"), asked: map[string]agree.Status{},
		onData: func() (string, bool) { return "", true },
	}
	if m.Data {
		g.onData = func() (string, bool) { return filepath.Join(w.dir, name, "data.json"), true }
	}
	if err := g.readRunning(); err != nil || g.running.Number != number {
		t.Fatalf("%s runs %v, %v", name, g.running, err)
	}
	w.nodes[name] = g
	return g
}

func (w *town) ask(_ context.Context, m facts.Member, query string) ([]byte, error) {
	if w.silent[m.Name] {
		return nil, errors.New("no answer")
	}
	if digest, ok := strings.CutPrefix(query, "?digest="); ok {
		return w.nodes[m.Name].signed(digest), nil
	}
	s, err := w.nodes[m.Name].status()
	if err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// look gives each node its turn to ask others.
func (w *town) look(t *testing.T) (mayVote int) {
	t.Helper()
	for _, m := range w.members {
		ok, err := w.nodes[m.Name].look(t.Context())
		if err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
		if ok {
			mayVote++
		}
	}
	return mayVote
}

// remarks are what was said.
type remarks struct{ all []string }

func (l *remarks) say(format string, args ...any) {
	l.all = append(l.all, fmt.Sprintf(format, args...))
}

// TestNewAcceptorsVoteWhenAllHaveAnswered is the beginning of a cluster.
func TestNewAcceptorsVoteWhenAllHaveAnswered(t *testing.T) {
	w := newTown(t)
	w.silent["db3"] = true
	if w.look(t); w.nodes["db1"].state.Fence != nil {
		t.Error("db1 votes before it has heard db3")
	}
	w.silent["db3"] = false
	if w.look(t); w.nodes["db1"].state.Fence == nil || *w.nodes["db1"].state.Fence != 0 {
		t.Errorf("db1 does not vote: %+v", w.nodes["db1"].state)
	}
}

// TestAcceptorSurvives: votes outlive the agent, the root disk, and a crash between the two copies; they do not outlive both.
func TestAcceptorSurvives(t *testing.T) {
	w := newTown(t)
	w.look(t)
	one := *w.nodes["db1"].running
	two := w.authority.Sign(t, 2, one.Digest, w.members...)
	ballot := agree.Ballot{Round: 3, Proposer: "p"}
	vote := agree.Request{Step: agree.Accept, Ballot: ballot, Parent: &one, Value: &two}
	for _, name := range []string{"db1", "db2"} {
		if reply, err := w.nodes[name].handle(vote); err != nil || !reply.Done {
			t.Fatalf("%s: %+v, %v", name, reply, err)
		}
	}
	if info, err := os.Stat(filepath.Join(w.dir, "db1", "data.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy on the data disk: %v, %v", info, err)
	}
	remembers := func(what string) {
		t.Helper()
		reply, err := w.start(t, "db1", 1).handle(agree.Request{Step: agree.Prepare, Ballot: agree.Ballot{Round: 1, Proposer: "q"}, Parent: &one})
		if err != nil || reply.Promised != ballot {
			t.Errorf("%s: %+v, %v", what, reply, err)
		}
		reply, err = w.nodes["db1"].handle(agree.Request{Step: agree.Prepare, Ballot: agree.Ballot{Round: 4, Proposer: "q"}, Parent: &one})
		if err != nil || !reply.Done || reply.Accepted == nil || reply.Accepted.Generation.Digest != two.Digest {
			t.Errorf("%s: %+v, %v", what, reply, err)
		}
		ballot = agree.Ballot{Round: 4, Proposer: "q"}
	}
	remembers("started again")
	remove := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := os.Remove(filepath.Join(w.dir, "db1", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove("root.json")
	remembers("with a new root disk")
	remove("data.json")
	w.put(t, "db1/data.json", []byte(`{"promised":{"round":0,"proposer":""}}`)) // written before the vote
	remembers("after a crash before the second copy")

	w.put(t, "db1/data.json", []byte("{"))
	if _, err := w.start(t, "db1", 1).handle(vote); err == nil || !strings.Contains(err.Error(), "data.json") {
		t.Errorf("a damaged copy: %v", err)
	}
	remove("root.json", "data.json")
	g := w.start(t, "db1", 1)
	if reply, err := g.handle(vote); err != nil || !reply.Forgot {
		t.Errorf("without a memory: %+v, %v", reply, err)
	}
	// db2 and db3 tell it that it may have voted on generation 2 and its successors.
	if ok, err := g.look(t.Context()); !ok || err != nil || *g.state.Fence != 2 {
		t.Errorf("it may vote: %v, %v, %+v", ok, err, g.state)
	}
	if reply, err := g.handle(vote); err != nil || !reply.Forgot {
		t.Errorf("it votes again: %+v, %v", reply, err)
	}
}

// TestAcceptorWaitsForItsDataDisk: a new root disk must not answer before it has read what the old one wrote.
func TestAcceptorWaitsForItsDataDisk(t *testing.T) {
	w := newTown(t)
	g := w.nodes["db1"]
	path, _ := g.onData()
	g.onData = func() (string, bool) { return path, false }
	if _, err := g.status(); !errors.Is(err, errNoDataDisk) {
		t.Errorf("%v", err)
	}
	if mayVote, err := g.look(t.Context()); mayVote || err != nil { // the disk component says why
		t.Errorf("%v, %v", mayVote, err)
	}
}

// TestNodesLearn: a node that was away learns from others which generation is in use, and whether it is behind.
func TestNodesLearn(t *testing.T) {
	w := newTown(t)
	w.look(t)
	one := *w.nodes["db1"].running
	w.silent["web1"] = true
	changed := append([]facts.Member{}, w.members...)
	changed[3].Seed = facts.Digest([]byte("another seed of db3"))
	two := w.authority.Sign(t, 2, one.Digest, changed...)
	three := w.authority.Sign(t, 3, two.Digest, changed[1:]...)
	for _, m := range w.members[1:] {
		if _, err := w.nodes[m.Name].handle(agree.Request{Step: agree.Chosen, Value: &two}); err != nil {
			t.Fatal(err)
		}
	}
	report := func(name string) string {
		r := w.nodes[name].report()
		return fmt.Sprintf("%d of %d %s%s", r.Number, r.InUse, r.Behind, r.Error)
	}
	if got := report("db1"); got != "2 of 2 " { // its seed is the same
		t.Errorf("db1: %s", got)
	}
	if got := report("db3"); got != "1 of 2 generation 2 is in use" {
		t.Errorf("db3: %s", got)
	}
	if got := report("web1"); got != "1 of 0 " {
		t.Errorf("web1: %s", got)
	}
	// A takeover needs the generation that is in use.
	if m, err := w.nodes["db3"].member(two.Signed, false); err != nil || m.Seed != changed[3].Seed {
		t.Errorf("%+v, %v", m, err)
	}
	for want, signed := range map[string][]byte{"generation 2 is in use as far as db3 knows, and not this generation 3": three.Signed, "not a signed generation": nil} {
		if _, err := w.nodes["db3"].member(signed, false); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := w.nodes["web1"].member(two.Signed, false); err == nil {
		t.Error("a node that does not know that a generation is in use changes to it")
	}
	// A plan can be had before.
	if m, err := w.nodes["web1"].member(two.Signed, true); err != nil || m.Name != "web1" {
		t.Errorf("%+v, %v", m, err)
	}
	// With a new root disk, made from an old seed, the data disk tells.
	if err := os.Remove(filepath.Join(w.dir, "db3", "root.json")); err != nil {
		t.Fatal(err)
	}
	w.start(t, "db3", 1)
	for _, m := range w.members {
		w.silent[m.Name] = true
	}
	if w.look(t); report("db3") != "1 of 2 generation 2 is in use" {
		t.Errorf("db3 with a new root disk: %s", report("db3"))
	}
	for _, m := range w.members {
		w.silent[m.Name] = false
	}
	if w.look(t); report("web1") != "2 of 2 " {
		t.Errorf("web1: %s", report("web1"))
	}
	if _, err := w.nodes["db1"].handle(agree.Request{Step: agree.Chosen, Value: &three}); err != nil {
		t.Fatal(err)
	}
	for range 100 { // it asks one at random
		if w.look(t); w.nodes["web1"].report().InUse == 3 {
			break
		}
	}
	if got := report("web1"); got != "1 of 3 generation 3 has no node web1" {
		t.Errorf("web1: %s", got)
	}
	if !strings.Contains(strings.Join(w.said.all, "\n"), "generation 3 of the cluster's configuration is in use") {
		t.Errorf("said: %q", w.said.all)
	}

	// One that no operator of this cluster has signed is not believed.
	foreign := generationtest.New(t).Sign(t, 9, three.Digest, changed...)
	w.nodes["db2"].state.Known = &foreign
	if w.nodes["db1"].hear(t.Context(), w.members[2]); w.nodes["db1"].report().InUse != 3 {
		t.Errorf("db1: %s", report("db1"))
	}
	// A seed with a generation of another authority is reported, and its node belongs to none.
	w.put(t, "web1/seed/generation", foreign.Signed)
	g := &generations{dir: filepath.Join(w.dir, "web1", "seed"), verify: w.authority.Verify}
	if err := g.readRunning(); err == nil || g.running != nil || !strings.Contains(err.Error(), "is not signed by the authority") {
		t.Errorf("%v", err)
	}
}

// TestGenerationAPI: peers may read, and only the operator may propose, or read the seed.
func TestGenerationAPI(t *testing.T) {
	w := newTown(t)
	w.look(t)
	one := *w.nodes["db1"].running
	two := w.authority.Sign(t, 2, one.Digest, w.members...)
	a := testAgent(func(string) {})
	a.generations = w.nodes["db1"]
	for _, name := range []string{"meta-data", "network-config", "user-data"} {
		w.put(t, "db1/seed/"+name, []byte("the "+name))
	}
	ca := newAuthority(t)
	addr := serveAPI(t, a.apiHandler(), ca.issue(t, "web1", time.Now().Add(time.Hour)))
	call := func(as, method, path string, body any) (int, []byte) {
		t.Helper()
		data, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		c := http.Client{Transport: &http.Transport{TLSClientConfig: ca.issue(t, as, time.Now().Add(time.Hour)).client("web1"), DisableKeepAlives: true}}
		req, err := http.NewRequest(method, "https://"+addr+path, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, answer
	}
	var s agree.Status
	if code, answer := call("web2", "GET", facts.GenerationPath, nil); code != http.StatusOK || json.Unmarshal(answer, &s) != nil || s.Node != "db1" || s.Running.Number != 1 || *s.Fence != 0 {
		t.Errorf("%d, %s", code, answer)
	}
	if code, answer := call("web2", "GET", facts.GenerationPath+"?digest="+one.Digest, nil); code != http.StatusOK || !bytes.Equal(answer, one.Signed) {
		t.Errorf("%d, %s", code, answer)
	}
	if code, _ := call("web2", "GET", facts.GenerationPath+"?digest="+two.Digest, nil); code != http.StatusNotFound {
		t.Errorf("a generation that it does not have: %d", code)
	}
	vote := agree.Request{Step: agree.Accept, Ballot: agree.Ballot{Round: 1, Proposer: "p"}, Parent: &one, Value: &two}
	for _, path := range []string{facts.GenerationPath, facts.SeedPath} {
		method := map[string]string{facts.GenerationPath: "POST", facts.SeedPath: "GET"}[path]
		if code, answer := call("web2", method, path, vote); code != http.StatusForbidden || strings.Contains(string(answer), "user-data") {
			t.Errorf("%s answers a peer: %d, %s", path, code, answer)
		}
	}
	if w.nodes["db1"].state.Accepted != nil {
		t.Error("a peer's request was heeded")
	}
	var reply agree.Reply
	if code, answer := call("operator", "POST", facts.GenerationPath, vote); code != http.StatusOK || agree.Decode(answer, &reply, w.authority.Verify) != nil || !reply.Done {
		t.Errorf("%d, %s", code, answer)
	}
	if code, answer := call("web2", "GET", facts.GenerationPath+"?digest="+two.Digest, nil); code != http.StatusOK || !bytes.Equal(answer, two.Signed) {
		t.Errorf("what it has accepted: %d, %s", code, answer)
	}
	foreign := generationtest.New(t).Sign(t, 2, one.Digest, w.members...)
	for want, r := range map[string]any{
		"needs a ballot":                 agree.Request{Step: agree.Prepare},
		"is not signed by the authority": agree.Request{Step: agree.Chosen, Value: &foreign},
		"must be a JSON object":          []string{"rubbish"},
	} {
		if code, answer := call("operator", "POST", facts.GenerationPath, r); code != http.StatusBadRequest || !strings.Contains(string(answer), want) {
			t.Errorf("%d, %s; want %s", code, answer, want)
		}
	}
	var kept facts.KeptSeed
	if code, answer := call("operator", "GET", facts.SeedPath, nil); code != http.StatusOK || json.Unmarshal(answer, &kept) != nil || string(kept.UserData) != "the user-data" || !bytes.Equal(kept.Generation, one.Signed) {
		t.Errorf("%d, %s", code, answer)
	}
	w.nodes["db1"].step.Lock() // a write to a disk that hangs keeps no report from peers
	defer w.nodes["db1"].step.Unlock()
	if r := a.report(); r.Generation == nil || r.Generation.Number != 1 {
		t.Errorf("report: %+v", r.Generation)
	}
}

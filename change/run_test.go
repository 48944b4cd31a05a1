package change

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
	"imagegen/cluster/secrets"
	"imagegen/operate"
	"imagegen/roles"
)

// memory keeps what undoing a change takes, but no seeds.
type memory struct{ generation, outage *facts.Generation }

func (m *memory) Generation() *facts.Generation               { return m.generation }
func (m *memory) Outage() *facts.Generation                   { return m.outage }
func (m *memory) BeginOutage(g facts.Generation) error        { m.outage = &g; return nil }
func (m *memory) Seed(_, _ string) (s cloudinit.Seed, _ bool) { return s, false }
func (m *memory) Image(_, _ string) bool                      { return false }
func (m *memory) Keep(t Target) error                         { m.generation = &t.Generation; return nil }
func (m *memory) Erase() error                                { *m = memory{}; return nil }

// agents are fake agents of a cluster, told apart by the name that they are asked for.
type agents struct {
	spec     *cluster.Spec
	one, two facts.Generation
	run      *Run
	target   Target

	mu     sync.Mutex
	deaf   map[string]int // so many connections to a node fail; negative: all
	unsure map[string]int // so often a node says that it does not know whether it may vote
	agreed bool           // the cluster has agreed on generation two
	seeds  map[string]string
	trials map[string]*facts.Trial
	fails  string         // a node that goes back
	master string         // of Redis; empty: there is none
	asked  map[string]int // how often a node on trial was asked
	events []string
	said   []string
}

// newAgents starts the agents of nodes that all run generation one, and makes a change to generation two.
func newAgents(t *testing.T, names ...string) *agents {
	t.Helper()
	a := &agents{spec: &cluster.Spec{Cluster: "otus"}, deaf: map[string]int{}, unsure: map[string]int{}, seeds: map[string]string{}, trials: map[string]*facts.Trial{}, asked: map[string]int{}}
	byIP := map[string]string{}
	for i, name := range names {
		role := strings.TrimRight(name, "0123456789")
		n := cluster.Node{Name: name, Role: role, Index: int(name[len(name)-1] - '1'), IP: netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)})}
		byIP[n.IP.String()] = name
		if last := len(a.spec.Roles) - 1; last < 0 || a.spec.Roles[last].Name != role {
			a.spec.Roles = append(a.spec.Roles, cluster.Role{Name: role})
		}
		r := &a.spec.Roles[len(a.spec.Roles)-1]
		r.Nodes = append(r.Nodes, n)
	}
	keys, err := secrets.Load(filepath.Join(t.TempDir(), "secrets"), a.spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	certs := map[string]*tls.Certificate{}
	for name, pair := range keys.Nodes {
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		certs[name] = &cert
	}
	generation := func(number int, parent, what string) facts.Generation {
		m := facts.Manifest{Version: facts.ManifestVersion, Cluster: "otus", ClusterID: keys.ClusterID, Number: number, Parent: parent, Secrets: keys.Revision}
		for _, n := range a.spec.Nodes() {
			m.Members = append(m.Members, facts.Member{Name: n.Name, Role: n.Role, IP: n.IP.String(), Index: n.Index, Data: true, Seed: facts.Digest([]byte(n.Name + what)), Facts: facts.Digest(nil)})
		}
		signed, err := keys.Sign(m)
		if err != nil {
			t.Fatal(err)
		}
		g, err := facts.OpenGeneration(signed)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	a.one = generation(1, "", "old")
	a.two = generation(2, a.one.Digest, "new")
	a.target = Target{Generation: a.two, Seeds: map[string]cloudinit.Seed{}}
	for _, m := range a.one.Members {
		a.seeds[m.Name] = m.Seed
		a.target.Seeds[m.Name] = cloudinit.Seed{UserData: []byte("#cloud-config\n{}\n")}
	}

	mux := http.NewServeMux()
	handle := func(pattern string, answer func(node string, r *http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) // as agents do
			a.mu.Lock()
			defer a.mu.Unlock()
			switch v := answer(r.TLS.ServerName, r).(type) {
			case []byte:
				w.Write(v)
			default:
				json.NewEncoder(w).Encode(v)
			}
		})
	}
	handle("GET "+facts.StatePath, func(node string, _ *http.Request) any {
		// A trial lasts for some looks; that of the node that fails ends at once.
		if trial := a.trials[node]; trial != nil && trial.State == facts.TrialRunning {
			switch a.asked[node]++; {
			case node == a.fails:
				trial.State, trial.Detail, a.seeds[node] = facts.TrialReturned, "its daemon failed", trial.Previous
				a.events = append(a.events, node+" goes back")
			case a.asked[node] > 2:
				trial.State = facts.TrialPassed
				a.events = append(a.events, node+" has passed")
			}
		}
		is := "replica"
		if node == a.master {
			is = "master"
		}
		return facts.NodeReport{
			Order: []string{"redis"}, Components: map[string]facts.ComponentReport{"redis": {Kind: "redis", Status: facts.Status{State: facts.Ready}, Is: is}},
			Joint:   &facts.Joint{InUse: []facts.Membership{{Number: 1}}},
			Cluster: "otus", ClusterID: keys.ClusterID, Node: facts.Peer{Name: node, Role: strings.TrimRight(node, "0123456789")},
			Ready: true, Made: facts.Made{Seed: a.seeds[node]}, Trial: a.trials[node],
		}
	})
	handle("GET "+facts.GenerationPath, func(node string, r *http.Request) any {
		known := []*facts.Generation{&a.one, &a.two}
		for _, g := range known {
			if r.FormValue("digest") == g.Digest {
				return g.Signed
			}
		}
		s := agree.Status{Node: node, Seed: a.seeds[node], Running: agree.Name(&a.one)}
		if a.agreed {
			s.Known = agree.Name(&a.two)
		}
		if a.unsure[node]--; a.unsure[node] < 0 {
			s.Fence = new(int)
		}
		return s
	})
	handle("POST "+facts.TakeoverPath, func(node string, r *http.Request) any {
		m, _ := a.two.Member(node)
		if r.FormValue("plan") == "" {
			a.trials[node] = &facts.Trial{State: facts.TrialRunning, Seed: m.Seed, Previous: a.seeds[node]}
			a.seeds[node] = m.Seed
			a.events = append(a.events, node+" takes over")
		}
		return facts.Plan{Seed: m.Seed, Files: []facts.FileChange{{Path: "/etc/f", What: "changed"}}, Stop: []string{"x.service"}}
	})
	handle("POST "+facts.HandoverPath, func(node string, _ *http.Request) any {
		a.master = "redis2"
		a.events = append(a.events, node+" hands over")
		return facts.Handover{Moved: []string{"the master"}}
	})
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(keys.CA.Cert)
	server := httptest.NewUnstartedServer(mux)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return certs[h.ServerName], nil
	}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	client, err := operate.NewAgents(keys, func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, _ := net.SplitHostPort(address)
		a.mu.Lock()
		deaf := a.deaf[byIP[host]] != 0
		if deaf {
			a.deaf[byIP[host]]--
		}
		a.mu.Unlock()
		if deaf {
			return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("no route to host")}
		}
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	})
	if err != nil {
		t.Fatal(err)
	}
	client.Limit = time.Hour // a busy machine answers late
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	a.run = &Run{
		Cluster: &operate.Cluster{Spec: a.spec, Agents: client}, Catalogue: catalogue, Earlier: &memory{},
		Wait: operate.Wait{Timeout: time.Hour, Say: func(format string, args ...any) { a.said = append(a.said, fmt.Sprintf(format, args...)) }},
	}
	return a
}

// A node that is silent for a moment is asked again before anything is said of it, and one that stays silent once.
func TestSilentForAMoment(t *testing.T) {
	const silent = "redis2: no answer yet, asking again for 10s"
	a := newAgents(t, "redis1", "redis2", "redis3")
	a.deaf["redis2"] = 1
	g, err := a.run.Generation(t.Context())
	if err != nil || g.Uncertain != nil || g.InUse.Number != 1 || !slices.Equal(a.said, []string{silent}) {
		t.Errorf("the generation in use: %+v, %v, said %q", g, err, a.said)
	}
	const all = "take over redis1 (redis2 redis3), take over redis2 (redis1 redis3), take over redis3 (redis1 redis2)"
	a.deaf["redis2"], a.said, a.agreed = 2, nil, true // which is asked twice in a look
	if steps, err := a.run.Plan(t.Context(), a.target); err != nil || brief(steps) != all || !slices.Equal(a.said, []string{silent}) {
		t.Errorf("a plan: %s, %v, said %q", brief(steps), err, a.said)
	}

	// For good.
	a.deaf["redis2"], a.said = -1, nil
	for range 2 {
		if steps, err := a.run.Plan(t.Context(), a.target); err != nil || len(steps) == 0 || steps[0].Action != Await || steps[0].Node != "redis2" {
			t.Errorf("a plan: %s, %v", brief(steps), err)
		}
	}
	if !slices.Equal(a.said, []string{silent}) || a.deaf["redis2"] > -7 { // two looks, and then one
		t.Errorf("said %q, and was asked %d times", a.said, -a.deaf["redis2"]-1)
	}
	a.agreed, a.run.silent = false, nil
	var uncertain *agree.Silent
	if g, err := a.run.Generation(t.Context()); err != nil || !errors.As(g.Uncertain, &uncertain) || !slices.Equal(uncertain.Nodes, []string{"redis2"}) {
		t.Errorf("the generation in use: %+v, %v", g, err)
	}

	// One that is given up is not waited for.
	a.run.Without, a.run.silent, a.said, a.agreed = []string{"redis2"}, nil, nil, true
	var refused *Refused
	if _, err := a.run.Plan(t.Context(), a.target); !errors.As(err, &refused) || len(a.said) > 0 {
		t.Errorf("without it, there is no majority: %v, said %q", err, a.said)
	}
}

// The vote waits until all nodes that answer know whether they may use theirs.
func TestVoteWaitsForNewNodes(t *testing.T) {
	a := newAgents(t, "redis1", "redis2", "redis3")
	s, err := a.run.look(t.Context(), a.target)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.run.awaitVoters(t.Context(), s); err != nil || a.said != nil {
		t.Errorf("all know it: %v, said %q", err, a.said)
	}
	a.unsure["redis2"], a.unsure["redis3"] = 3, 2
	if s, err = a.run.look(t.Context(), a.target); err != nil {
		t.Fatal(err)
	}
	err = a.run.awaitVoters(t.Context(), s)
	if want := []string{"nothing is changed yet: redis2 and redis3 may vote only after hearing the others"}; err != nil || !slices.Equal(a.said, want) || a.unsure["redis2"] != -1 {
		t.Errorf("two do not know it yet: %v, said %q, %d", err, a.said, a.unsure["redis2"])
	}
	a.unsure["redis2"], a.run.Alone = 1, true
	if err := a.run.awaitVoters(t.Context(), s); err != nil || a.unsure["redis2"] != 1 {
		t.Errorf("nobody else changes this cluster: %v", err)
	}
}

// Nodes of one round are on trial at the same time, and the next round begins when all have passed. If one fails, the others' trials end
// before that is said.
func TestRounds(t *testing.T) {
	names := []string{"redis1", "redis2", "percona1", "percona2"}
	a := newAgents(t, append(names, "glusterfs1", "glusterfs2", "glusterfs3")...)
	for _, m := range a.two.Members[4:] {
		a.seeds[m.Name] = m.Seed // they have it
		delete(a.target.Seeds, m.Name)
	}
	a.agreed, a.run.stale, a.run.passed = true, map[string]bool{}, map[string]bool{}
	if err := a.run.carryOut(t.Context(), a.target, true); err != nil {
		t.Fatal(err)
	}
	order := strings.Join(a.events, ", ")
	if want := "redis1 takes over, percona1 takes over, percona1 has passed, redis1 has passed, redis2 takes over, percona2 takes over, percona2 has passed, redis2 has passed"; order != want {
		t.Errorf("%s\nwant %s", order, want)
	}

	a.fails, a.events = "percona1", nil
	for _, m := range a.one.Members[:4] {
		a.seeds[m.Name], a.asked[m.Name], a.trials[m.Name] = m.Seed, 0, nil
	}
	var broken *notReady
	err := a.run.carryOut(t.Context(), a.target, true)
	if !errors.As(err, &broken) || err.Error() != "percona1 does not become ready: it has gone back to its previous seed: its daemon failed" {
		t.Errorf("a round of which one fails: %v", err)
	}
	if got := strings.Join(a.events, ", "); got != "redis1 takes over, percona1 takes over, percona1 goes back, redis1 has passed" {
		t.Errorf("a round of which one fails: %s", got)
	}
}

// The target of an undone change has the earlier seeds of the nodes that had changed, and of no other.
func TestUndoneChangeHasFewSeeds(t *testing.T) {
	a := newAgents(t, "redis1", "redis2", "redis3", "glusterfs1", "glusterfs2", "glusterfs3")
	a.target.Members = slices.Concat(a.two.Members[:3], a.one.Members[3:])
	for _, m := range a.one.Members[3:] {
		delete(a.target.Seeds, m.Name)
	}
	a.agreed = true
	const want = "take over redis1 (redis2 redis3), take over redis2 (redis1 redis3), take over redis3 (redis1 redis2)"
	if steps, err := a.run.Plan(t.Context(), a.target); err != nil || brief(steps) != want {
		t.Errorf("%s, %v", brief(steps), err)
	}
}

// A master that is to move hands over before those that use it know its new address, and not only before it goes.
func TestMasterThatMovesHandsOverFirst(t *testing.T) {
	a := newAgents(t, "databalancer1", "databalancer2", "redis1", "redis2", "redis3")
	a.target.Members = slices.Clone(a.target.Members)
	a.target.Members[2].IP = "10.1.0.99"
	a.agreed, a.run.stale, a.run.passed, a.master = true, map[string]bool{}, map[string]bool{}, "redis1"
	ctx, cancel := context.WithCancel(t.Context())
	say := a.run.Wait.Say
	a.run.Wait.Say = func(format string, args ...any) {
		say(format, args...)
		if strings.HasPrefix(a.said[len(a.said)-1], "redis1 is not changed yet: ") { // it waits for the others to know its address
			cancel()
		}
	}
	if err := a.run.carryOut(ctx, a.target, true); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, said %q", err, a.said)
	}
	var order []string
	for _, e := range a.events {
		if !strings.HasSuffix(e, " has passed") {
			order = append(order, e)
		}
	}
	if want := []string{"redis1 hands over", "databalancer1 takes over", "databalancer2 takes over", "redis3 takes over", "redis2 hands over", "redis2 takes over"}; !slices.Equal(order, want) {
		t.Errorf("%q", order)
	}
}

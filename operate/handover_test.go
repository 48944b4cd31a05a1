package operate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
)

// A node hands over, refuses to, or has an agent that cannot.
func TestHandOver(t *testing.T) {
	f := newFakes(t, 2)
	cl := f.cluster(t, f.keys)
	ip := netip.MustParseAddr("10.1.0.0")
	if moved, err := cl.Agents.HandOver(t.Context(), "web1", ip); err != nil || moved != nil {
		t.Errorf("an earlier agent: %q, %v", moved, err)
	}
	f.mux.HandleFunc("POST "+facts.HandoverPath, func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.ServerName == "web2" {
			http.Error(w, "nobody takes over", http.StatusConflict)
			return
		}
		w.Write([]byte(`{"moved": ["the master to redis2"]}`))
	})
	if moved, err := cl.Agents.HandOver(t.Context(), "web1", ip); err != nil || !slices.Equal(moved, []string{"the master to redis2"}) {
		t.Errorf("%q, %v", moved, err)
	}
	var refused *HandoverRefused
	if _, err := cl.Agents.HandOver(t.Context(), "web2", netip.MustParseAddr("10.1.0.1")); !errors.As(err, &refused) || refused.Why != "nobody takes over" {
		t.Errorf("a refusal: %v", err)
	}
	f.gone["10.1.0.0"] = true
	if _, err := cl.Agents.HandOver(t.Context(), "web1", ip); err == nil || errors.As(err, &refused) {
		t.Errorf("a silent node: %v", err)
	}
}

// Who leads is known from what nodes say of themselves, and of where they send clients.
func TestLeads(t *testing.T) {
	report := func(holds, component, is string) facts.NodeReport {
		r := facts.NodeReport{Order: []string{"x"}, Components: map[string]facts.ComponentReport{"x": {Is: is}}, Node: facts.Peer{Role: component}}
		if holds != "" {
			r.Holds = []string{holds}
		}
		return r
	}
	reports := map[string]facts.NodeReport{
		"databalancer1": report("10.0.0.9", "databalancer", "sending mysql to percona2, redis to redis1, http to web1 and web2"),
		"databalancer2": report("", "databalancer", "sending mysql to percona1"),
		"redis1":        report("", "redis", "master"),
		"percona1":      report("", "percona", "3 of 3 members"),
		"percona2":      report("", "percona", "3 of 3 members"),
		"web1":          report("", "web", ""),
	}
	for node, want := range map[string]string{
		"databalancer1": "holds 10.0.0.9", "databalancer2": "", "redis1": "is the master of redis", "percona1": "",
		"percona2": "gets what databalancer1 sends to mysql", "web1": "", "silent": "",
	} {
		if got := Leads(node, reports); got != want {
			t.Errorf("%s: %q, want %q", node, got, want)
		}
	}
}

// An address that another node of the role holds as well needs no handing over: with other VRRP settings, that one would not take it from a
// node that gives it up, nor leave it to one.
func TestAddressHeldTwice(t *testing.T) {
	holds := func(role string, addresses ...string) facts.NodeReport {
		return facts.NodeReport{Node: facts.Peer{Role: role}, Holds: addresses}
	}
	for want, reports := range map[string]map[string]facts.NodeReport{
		"":                         {"b1": holds("balancer", "10.0.0.9"), "b2": holds("balancer", "10.0.0.9")},
		"holds 10.0.0.9":           {"b1": holds("balancer", "10.0.0.9"), "b2": holds("balancer")},
		"holds 10.0.0.8":           {"b1": holds("balancer", "10.0.0.9", "10.0.0.8"), "b2": holds("balancer", "10.0.0.9")},
		"holds 10.0.0.9 and ::1.2": {"b1": holds("balancer", "10.0.0.9", "::1.2"), "b2": holds("other", "10.0.0.9")},
	} {
		if got := Leads("b1", reports); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	// The agent of an earlier imagegen refuses, because the address comes back.
	f := newFakes(t, 2)
	f.report = func(r *facts.NodeReport) { r.Node.Role, r.Holds = "web", []string{"10.0.0.9"} }
	f.mux.HandleFunc("POST "+facts.HandoverPath, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "it comes back", http.StatusConflict) })
	cl := f.cluster(t, f.keys)
	at := map[string]netip.Addr{"web1": netip.MustParseAddr("10.1.0.0"), "web2": netip.MustParseAddr("10.1.0.1")}
	if err := cl.HandOver(t.Context(), Wait{Timeout: time.Hour}, "web1", "web1 is not replaced", at); err != nil {
		t.Error(err)
	}
}

// replicated is a role of which one node is the master, and its provider. It records what happens to its nodes.
type replicated struct {
	Machines
	t    *testing.T
	spec *cluster.Spec

	mu      sync.Mutex
	master  string
	current map[string]bool
	refuses int    // so many requests to hand over; negative: all
	silent  string // a node that does not answer
	syncing map[string]int
	events  []string
}

// newReplicated returns fakes of so many nodes, the first of which is the master, and all of which are older.
func newReplicated(t *testing.T, nodes int) (*replicated, *Cluster) {
	t.Helper()
	f := newFakes(t, nodes)
	m := &replicated{t: t, spec: f.spec, master: "web1", current: map[string]bool{}, syncing: map[string]int{}}
	f.report = func(r *facts.NodeReport) {
		m.mu.Lock()
		defer m.mu.Unlock()
		name := r.Node.Name
		if name == m.silent {
			panic(http.ErrAbortHandler)
		}
		c := facts.ComponentReport{Status: facts.Status{State: facts.Ready}}
		if name == m.master {
			c.Is = "master"
		}
		if m.syncing[name] > 0 {
			m.syncing[name]--
			c.Status.State, r.Ready = facts.Working, false
		}
		r.Order, r.Components = []string{"redis"}, map[string]facts.ComponentReport{"redis": c}
	}
	f.mux.HandleFunc("POST "+facts.HandoverPath, func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		name := r.TLS.ServerName
		if m.silent != "" { // from now on
			m.silent = name
			m.events = append(m.events, name+" falls silent")
			panic(http.ErrAbortHandler)
		}
		if m.refuses != 0 {
			m.refuses--
			m.events = append(m.events, name+" refuses")
			http.Error(w, "nobody is in sync", http.StatusConflict)
			return
		}
		for _, n := range m.spec.Nodes() {
			if n.Name != name {
				m.master = n.Name
			}
		}
		m.syncing["web2"] = 3
		m.events = append(m.events, name+" hands over")
		fmt.Fprintf(w, `{"moved": ["the master to %s"]}`, m.master)
	})
	cl := f.cluster(t, f.keys)
	cl.Machines = m
	return m, cl
}

func (m *replicated) CheckReplace(...string) error { return nil }

func (m *replicated) Known(context.Context) (all []Machine, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.spec.Nodes() {
		build := BuildOlder
		if m.current[n.Name] {
			build = BuildCurrent
		}
		all = append(all, Machine{Node: n, Power: PowerOn, Build: build})
	}
	return all, nil
}

func (m *replicated) Replace(_ context.Context, name string, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, left := range m.syncing {
		if other != name && left > 0 {
			m.t.Errorf("%s is replaced while %s is not in sync", name, other)
		}
	}
	said := name + " replaced"
	if name == m.master {
		said += " as the master"
	}
	m.events = append(m.events, said)
	m.current[name], m.silent = true, ""
	return nil
}

// What a node leads is handed over before it is replaced; a node that leads is the last of a roll.
func TestRollHandsOver(t *testing.T) {
	m, cl := newReplicated(t, 3)
	m.refuses = 2
	var said []string
	w := Wait{Timeout: time.Hour, Say: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }}
	if err := cl.Roll(t.Context(), w, []string{"web1", "web2", "web3"}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"web2 replaced", "web3 replaced", "web1 refuses", "web1 refuses", "web1 hands over", "web1 replaced"}; !slices.Equal(m.events, want) {
		t.Errorf("%q, want %q", m.events, want)
	}
	if want := []string{"web1 is not replaced yet: nobody is in sync", "web1: has handed over the master to web3"}; !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
}

func TestReplaceHandsOver(t *testing.T) {
	for name, c := range map[string]struct {
		nodes, refuses int
		silent, force  bool
		timeout        time.Duration
		want, err      string
	}{
		"handed over":             {3, 0, false, false, time.Hour, "web1 hands over, web1 replaced", ""},
		"nobody takes over":       {3, -1, false, false, time.Millisecond, "web1 refuses", "web1 is not replaced: within 1ms, nobody takes over what it leads: nobody is in sync; run again, this goes on"},
		"by force":                {3, -1, false, true, time.Millisecond, "web1 refuses, web1 replaced as the master", "not ready within 1ms"},
		"it falls silent":         {3, 0, true, false, time.Hour, "web1 falls silent, web1 replaced as the master", ""},
		"there is nobody else":    {1, -1, false, false, time.Hour, "web1 replaced as the master", ""},
		"handed over, with force": {3, 0, false, true, time.Hour, "web1 hands over, web1 replaced", ""},
	} {
		m, cl := newReplicated(t, c.nodes)
		if m.refuses = c.refuses; c.silent {
			m.silent = "nobody yet"
		}
		err := cl.Replace(t.Context(), Wait{Timeout: c.timeout}, "web1", false, c.force)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
		if got := strings.Join(m.events, ", "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	m, cl := newReplicated(t, 3)
	if err := cl.Replace(t.Context(), Wait{Timeout: time.Hour}, "web2", false, false); err != nil || !slices.Equal(m.events, []string{"web2 replaced"}) {
		t.Errorf("a node that does not lead: %q, %v", m.events, err)
	}
}

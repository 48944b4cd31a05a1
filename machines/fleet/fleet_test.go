package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/internal/exclusive"
	"imagegen/internal/testspec"
	"imagegen/machines"
	"imagegen/operate"
)

const clusterID = "11111111-2222-3333-4444-555555555555"

// memory is a provider whose machines exist only in memory. Hosts in dead do not answer.
type memory struct {
	mu    sync.Mutex
	all   map[string]machines.State
	dead  map[string]bool
	calls []string
	list  error
	// Machines in broken cannot be started.
	broken bool
}

func (m *memory) did(format string, args ...any) {
	m.calls = append(m.calls, fmt.Sprintf(format, args...))
}

func (m *memory) Check(context.Context) error { return nil }

func (m *memory) List(context.Context) ([]machines.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []machines.State
	for _, s := range m.all {
		if m.dead[s.Host] {
			s.Power = machines.Unknown
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b machines.State) int { return strings.Compare(a.Node, b.Node) })
	return list, m.list
}

func (m *memory) Create(_ context.Context, n machines.Machine) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead[n.Host] {
		return errors.New("no route to " + n.Host)
	}
	m.did("create %s on %s, data %d, privileged %v", n.Node, n.Host, n.Data>>30, n.Privileged)
	m.all[n.Node] = machines.State{Node: n.Node, Host: n.Host, Power: machines.Off, Image: n.Image.Identity, Seed: n.Seed.Identity}
	return nil
}

func (m *memory) power(node string, p machines.Power) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.all[node]
	m.did("%s %s", p, node)
	s.Power = p
	m.all[node] = s
	return nil
}

func (m *memory) Start(_ context.Context, node string) error {
	if m.broken {
		return errors.New("it does not start")
	}
	return m.power(node, machines.On)
}
func (m *memory) Stop(_ context.Context, node string) error { return m.power(node, machines.Off) }

func (m *memory) Remove(_ context.Context, node string, data bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.did("remove %s, data %v", node, data)
	delete(m.all, node)
	return nil
}

func (m *memory) Console(context.Context, io.Writer, string, bool) error {
	return machines.ErrNoConsole
}
func (m *memory) Purge(context.Context) error { m.did("purge"); return nil }

// newFleet returns a fleet of three GlusterFS servers and two web servers, with all images and seeds built.
func newFleet(t *testing.T) (*Fleet, *memory, *[]string) {
	t.Helper()
	spec, _ := testspec.Parse(t, "cluster.yaml", `cluster: c
distro: debian12
network: {cidr: 10.0.0.0/24}
machines: {provider: incus, hosts: [h1, h2, h3]}
roles:
  glusterfs: {nodes: {g1: 10.0.0.1, g2: 10.0.0.2, g3: 10.0.0.3}}
  web: {nodes: {w1: 10.0.0.4, w2: 10.0.0.5}}
`)
	dir := t.TempDir()
	for _, d := range []string{"images", "seeds"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	seed := func(n cluster.Node) (cloudinit.Seed, error) { return cloudinit.New(spec, clusterID, n, nil) }
	f := &Fleet{Made: Made{Spec: spec, Dir: dir, Seed: seed}, ClusterID: clusterID}
	for _, r := range spec.Roles {
		for path, text := range map[string]string{f.ImagePath(r.Name): "image", filepath.Join(dir, "images", r.Name+".json"): `{"identity": "first"}`} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range spec.Nodes() {
		s, err := seed(n)
		if err == nil {
			err = s.WriteISO(f.SeedPath(n.Name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m := &memory{all: map[string]machines.State{}, dead: map[string]bool{}}
	var said []string
	var mu sync.Mutex
	f.Quorum = func(string) bool { return false }
	f.Provider, f.Log = m, func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, fmt.Sprintf(format, args...))
	}
	return f, m, &said
}

func all(f *Fleet) []string {
	var names []string
	for _, n := range f.Spec.Nodes() {
		names = append(names, n.Name)
	}
	return names
}

// A host that does not answer affects only its own nodes, and their placement is kept.
func TestADeadHost(t *testing.T) {
	f, m, _ := newFleet(t)
	if err := f.Up(t.Context(), all(f)...); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"create g1 on h1, data 10, privileged true", "create g2 on h2, data 10, privileged true", "create w1 on h1, data 0, privileged false"} {
		if !slices.Contains(m.calls, want) {
			t.Errorf("no %q in %q", want, m.calls)
		}
	}
	m.dead["h1"] = true
	if err := f.Kill(t.Context(), "g2"); err != nil {
		t.Fatal(err)
	}
	err := f.Up(t.Context(), all(f)...)
	if err == nil || !strings.Contains(err.Error(), "turn on g1: its host h1 does not answer") || strings.Contains(err.Error(), "g2") || strings.Contains(err.Error(), "g3") {
		t.Errorf("up: %v", err)
	}
	known, err := f.Known(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range known {
		got = append(got, strings.Join([]string{k.Node.Name, k.Host, k.Power, k.Build}, " "))
	}
	want := []string{"g1 h1 unknown current", "g2 h2 on current", "g3 h3 on current", "w1 h1 unknown current", "w2 h2 on current"}
	if !slices.Equal(got, want) {
		t.Errorf("known: %q", got)
	}
}

// A node is replaced on its host by the latest build, with its data disk or a blank one.
func TestReplace(t *testing.T) {
	f, m, _ := newFleet(t)
	if err := f.Up(t.Context(), all(f)...); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.Dir, "images", "glusterfs.json"), []byte(`{"identity": "second"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, blank := range []bool{false, true} {
		m.calls = nil
		if err := f.CheckReplace("g2"); err != nil {
			t.Fatal(err)
		}
		if err := f.Replace(t.Context(), "g2", blank); err != nil {
			t.Fatal(err)
		}
		want := []string{fmt.Sprintf("remove g2, data %v", blank), "create g2 on h2, data 10, privileged true", "on g2"}
		if !slices.Equal(m.calls, want) {
			t.Errorf("replaced by %q", m.calls)
		}
	}
	known, err := f.Known(t.Context())
	if err != nil || known[0].Build != operate.BuildOlder || known[1].Build != operate.BuildCurrent {
		t.Errorf("known: %+v, %v", known, err)
	}
}

// An interrupted creation is finished by up, not by start. Agents are asked even if the provider fails.
func TestUnfinishedAndUnknown(t *testing.T) {
	f, m, said := newFleet(t)
	m.all["w1"] = machines.State{Node: "w1", Host: "h3", Power: machines.Unfinished}
	if err := f.Start(t.Context(), "w1"); err == nil || !strings.Contains(err.Error(), "imagegen up w1 makes the rest") {
		t.Errorf("start: %v", err)
	}
	if err := f.Up(t.Context(), "w1"); err != nil || !slices.Contains(m.calls, "create w1 on h3, data 0, privileged false") {
		t.Errorf("up: %v, %q", err, m.calls)
	}
	m.list = errors.New("connection refused")
	for range 2 {
		known, err := f.Known(t.Context())
		if err != nil || len(known) != 5 || known[0].Power != operate.PowerUnknown || known[0].Build != operate.BuildUnknown || !known[0].Unasked {
			t.Errorf("known: %+v, %v", known, err)
		}
	}
	if n := strings.Count(strings.Join(*said, "\n"), "connection refused"); n != 1 {
		t.Errorf("said %d times: %q", n, *said)
	}
	if err := f.Replace(t.Context(), "w1", false); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("replace: %v", err)
	}
}

// A provider that hangs does not prevent asking the agents.
func TestProviderHangs(t *testing.T) {
	f, m, said := newFleet(t)
	synctest.Test(t, func(t *testing.T) {
		f.Provider = hanging{m}
		start := time.Now()
		known, err := f.Known(t.Context())
		if took := time.Since(start); err != nil || len(known) != 5 || !known[0].Unasked || took != listIn {
			t.Errorf("after %s: %+v, %v", took, known, err)
		}
		if !slices.Equal(*said, []string{"what the nodes run on is not known: the provider does not answer within 15s"}) {
			t.Errorf("said %q", *said)
		}
	})
}

type hanging struct{ *memory }

func (hanging) List(ctx context.Context) ([]machines.State, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// If losing a host costs more than its own nodes, up warns about the current placement, not the one of a new cluster.
func TestUpTellsLosses(t *testing.T) {
	f, m, said := newFleet(t)
	f.Quorum = func(role string) bool { return role == "glusterfs" }
	if err := f.Up(t.Context(), all(f)...); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(*said, "\n"), "losing host") {
		t.Errorf("said %q", *said)
	}
	m.all["g2"] = machines.State{Node: "g2", Host: "h1", Power: machines.On}
	if err := f.Up(t.Context(), all(f)...); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(*said, "note: losing host h1 loses the majority of glusterfs (2 of 3)") {
		t.Errorf("said %q", *said)
	}
}

// A machine never gets another cluster's seed.
func TestSeedOfAnotherCluster(t *testing.T) {
	f, m, _ := newFleet(t)
	f.ClusterID = "another"
	if err := f.Up(t.Context(), "w1"); err == nil || !strings.Contains(err.Error(), "is the seed of node w1 of cluster "+clusterID) {
		t.Errorf("up: %v", err)
	}
	if len(m.calls) > 0 {
		t.Errorf("did %q", m.calls)
	}
}

// Two imagegens with the same output folder do not change machines at the same time: the second reports that it waits.
func TestOneChangesMachines(t *testing.T) {
	f, m, said := newFleet(t)
	for what, do := range map[string]func(context.Context) error{
		"up":      func(ctx context.Context) error { return f.Up(ctx, "w1") },
		"kill":    func(ctx context.Context) error { return f.Kill(ctx, "w1") },
		"start":   func(ctx context.Context) error { return f.Start(ctx, "w1") },
		"replace": func(ctx context.Context) error { return f.Replace(ctx, "w1", false) },
		"remove":  func(ctx context.Context) error { return f.Remove(ctx, "gone") },
		"down":    func(ctx context.Context) error { return f.Down(ctx) },
	} {
		m.all["w1"] = machines.State{Node: "w1", Host: "h3", Power: machines.Off}
		m.calls, *said = nil, nil
		release, err := exclusive.Try(filepath.Join(f.Dir, "machines.lock"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		log := f.Log
		f.Log = func(format string, args ...any) { log(format, args...); cancel() }
		if err := do(ctx); !errors.Is(err, context.Canceled) || len(m.calls) > 0 || len(*said) != 1 || (*said)[0] != "waiting for another imagegen, which is changing the machines of c" {
			t.Errorf("%s beside another imagegen: %v, did %q, said %q", what, err, m.calls, *said)
		}
		f.Log = log
		release()
		if err := do(t.Context()); err != nil || len(m.calls) == 0 {
			t.Errorf("%s after it: %v, did %q", what, err, m.calls)
		}
		if _, err := os.Stat(f.ImagePath("web")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// After an interrupted replacement, a machine counts neither as current nor as stopped on purpose until it is on.
func TestInterruptedReplacement(t *testing.T) {
	f, m, _ := newFleet(t)
	build := func() string {
		t.Helper()
		known, err := f.Known(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return known[3].Power + " " + known[3].Build + " " + known[3].Detail
	}
	const interrupted = "off unknown its replacement was interrupted: imagegen roll or imagegen replace finishes it"
	for what, finish := range map[string]func() error{
		"replace": func() error { return f.Replace(t.Context(), "w1", false) },
		"start":   func() error { return f.Start(t.Context(), "w1") },
		"up":      func() error { return f.Up(t.Context(), "w1") },
	} {
		if err := f.Up(t.Context(), "w1"); err != nil {
			t.Fatal(err)
		}
		m.broken = true
		if err := f.Replace(t.Context(), "w1", false); err == nil {
			t.Fatal("a broken machine was started")
		}
		m.broken = false
		if got := build(); got != interrupted {
			t.Errorf("interrupted: %s", got)
		}
		if err := errors.Join(finish(), f.Kill(t.Context(), "w1")); err != nil {
			t.Fatal(err)
		}
		if got := build(); got != "off current " {
			t.Errorf("finished by %s, and killed: %s", what, got)
		}
	}
}

package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// Intervals bound latency only; correctness does not depend on them.
const (
	pollUnready  = 500 * time.Millisecond // between two turns of a component that is not ready
	pollReady    = time.Second            // between two turns of one that is
	pollCalm     = 2 * time.Second        // between two questions to a peer, once this node and the peer have been ready for calmAfter
	calmAfter    = 30 * time.Second
	observeLimit = 10 * time.Second // one observation; a component that takes longer is reported as failed
	pollLimit    = 2 * time.Second  // one request to a peer
)

// Agent runs the components of one node and talks to its peers' agents.
type Agent struct {
	facts    facts.Facts
	order    []string // names of the components in the facts
	runners  []*runner
	peers    *peers
	identity identity
	clock    clock
	console  func(line string)

	events  *events
	journal []string      // the program that shows the journal
	readers chan struct{} // a semaphore: one slot for each reader of the journal
	made    facts.Made
	// generations is nil in the simulator.
	generations *generations
	members     *memberships
	launch      func(loop func(ctx context.Context)) // runs another loop, beside those that loops returned

	takeover  *takeover
	verifier  verifier      // of generations; nil: seeds cannot be taken over
	switching chan struct{} // the node must become what the takeover's journal says
	changing  sync.Mutex    // held while a takeover's journal changes, except by its trial

	mu      sync.Mutex
	reports map[string]facts.ComponentReport // never modified, only replaced: answers and components' views share it
	looked  map[string]time.Time             // when each component that has a report last observed
	asks    []facts.Peer                     // see asked
	asksFor *facts.Joint                     // what asks was made from
	ready   bool                             // every component is
	holds   []string                         // virtual addresses
	trial   *facts.Trial                     // of the last takeover; nil: none
	yields  map[string]time.Time             // until when load balancers are to prefer another node, by component

	handing sync.Mutex // held while the node hands over what it leads
}

// runner drives one component.
type runner struct {
	facts.Component
	impl     Component
	decision decisionStore
	after    []string // components that must be ready before its turn
}

// New makes the agent of a node from its seed's files below root (normally "/"). made says what the node was made from. Each
// change of a component's status is passed to console as one line.
func New(root string, made facts.Made, console func(line string)) (*Agent, error) {
	data, err := os.ReadFile(filepath.Join(root, facts.FactsPath))
	if err != nil {
		return nil, fmt.Errorf("read the facts: %w", err)
	}
	known, err := facts.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", facts.FactsPath, err)
	}
	secrets := map[string]string{}
	data, err = os.ReadFile(filepath.Join(root, facts.SecretsPath))
	if err == nil {
		err = json.Unmarshal(data, &secrets)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil // a role without secrets
	}
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	id, err := loadIdentity(filepath.Join(root, facts.PKIDir))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(root, facts.StateDir), 0o700); err != nil {
		return nil, err
	}
	a := newAgent(known, systemClock{}, newHTTPNetwork(id), console)
	a.identity, a.made, a.takeover = id, made, newTakeover(root)
	a.events = openEvents(eventsPath(root))
	a.happened("", "the agent has started")
	if a.generations, err = openGenerations(root, known, id, a); err != nil {
		return nil, err
	}
	a.verifier = a.generations
	a.members.number = a.generations.conforms
	a.members.own = func() facts.Membership { return ensemble.Own(a.generations.made(), known.Node, known.Peers) }
	a.members.accepted = a.generations.memberships
	a.members.store = jointFiles{filepath.Join(root, facts.StateDir, jointFile), a.generations.onDisk(jointCopy)}
	for _, c := range known.Components {
		n := Node{
			Facts:    known,
			Secrets:  secrets,
			Identity: id,
			Dir:      filepath.Join(root, facts.StateDir, c.Name),
			Clock:    a.clock,
			Log:      func(format string, args ...any) { log.Print(oneLine(fmt.Sprintf(c.Name+": "+format, args...))) },
			Working: func(detail string) {
				a.setStatus(c.Name, facts.Status{State: facts.Working, Detail: detail})
			},
		}
		if err := os.MkdirAll(n.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("component %s: %w", c.Name, err)
		}
		impl, err := newComponent(n, c)
		if err != nil {
			return nil, fmt.Errorf("component %s: %w", c.Name, err)
		}
		a.add(c, impl, decisionFile{filepath.Join(n.Dir, "decision.json"), c.Name})
	}
	a.inherit(os.Getenv(readyVariable))
	return a, os.Unsetenv(readyVariable)
}

// newAgent makes an agent without components.
func newAgent(known facts.Facts, clock clock, network network, console func(line string)) *Agent {
	var order []string
	for _, c := range known.Components {
		order = append(order, c.Name)
	}
	return &Agent{
		members: &memberships{
			own:      func() facts.Membership { return ensemble.Own(0, known.Node, known.Peers) },
			accepted: func() []facts.Membership { return nil },
			number:   func() int { return 0 },
			store:    jointMemory{},
		},
		facts:     known,
		order:     order,
		clock:     clock,
		console:   func(line string) { console(printable(line)) },
		reports:   map[string]facts.ComponentReport{},
		looked:    map[string]time.Time{},
		peers:     newPeers(network, clock),
		events:    &events{},
		switching: make(chan struct{}, 1),
		journal:   []string{"journalctl"},
		readers:   make(chan struct{}, journalReaders),
	}
}

// add gives the agent a component.
func (a *Agent) add(c facts.Component, impl Component, decision decisionStore) {
	a.runners = append(a.runners, &runner{c, impl, decision, a.after(c)})
	a.replace(c.Name, facts.ComponentReport{Kind: c.Kind, Status: waitf("the agent has just started"), Since: a.clock.Now()})
}

// newComponent makes the component that c describes.
func newComponent(n Node, c facts.Component) (Component, error) {
	params, err := facts.DecodeParams(c.Kind, c.Params)
	if err != nil {
		return nil, err
	}
	switch p := params.(type) {
	case *facts.ServiceParams:
		return newService(n, c.Name, p), nil
	case *facts.DiskParams:
		return newDisk(n, c.Name, p), nil
	case *facts.GlusterParams:
		return newGluster(n, c.Name, p), nil
	case *facts.MountParams:
		return newMount(n, c.Name, p), nil
	case *facts.RedisParams:
		return newRedis(n, c.Name, p), nil
	case *facts.SentinelParams:
		return newSentinel(n, c.Name, p), nil
	case *facts.GaleraParams:
		return newGalera(n, c.Name, p), nil
	case *facts.SiteParams:
		return newSite(n, c.Name, p), nil
	}
	return nil, fmt.Errorf("this agent has no component of kind %q: bake the image anew", c.Kind)
}

// Run serves the peer API and the health port and drives the components until ctx ends, or until the agent must start anew: then
// the error is an Again.
func (a *Agent) Run(ctx context.Context) error {
	return a.run(ctx, func(ctx context.Context) error {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		var wg sync.WaitGroup
		wg.Go(func() { boundLogs(ctx, "/") })
		wg.Go(func() { a.watch(ctx) })
		wg.Go(func() { a.generations.run(ctx) })
		err := a.serve(ctx, a.identity)
		stop()
		wg.Wait()
		return err
	})
}

// run drives the components while serve runs. When the node must change its seed, they end first; serve goes on meanwhile.
func (a *Agent) run(ctx context.Context, serve func(context.Context) error) error {
	serving, stop := context.WithCancel(ctx)
	defer stop()
	driving, pause := context.WithCancel(serving)
	defer pause()
	var loops sync.WaitGroup
	a.launch = func(loop func(context.Context)) { loops.Go(func() { loop(driving) }) }
	for _, loop := range append(a.loops(), a.watchTrial) {
		a.launch(loop)
	}
	changed := make(chan error, 1)
	go func() {
		select {
		case <-serving.Done():
			changed <- nil
		case <-a.switching:
			pause()
			loops.Wait()
			changed <- a.carryOut(ctx)
			stop()
		}
	}()
	err := serve(serving)
	stop()
	loops.Wait()
	if change := <-changed; err == nil {
		err = change
	}
	return err
}

// loops returns the loops that the agent runs concurrently until ctx ends: one for each component and each peer that it
// knows at first. The simulator runs the same loops.
func (a *Agent) loops() []func(ctx context.Context) {
	var all []func(ctx context.Context)
	for _, r := range a.runners {
		all = append(all, func(ctx context.Context) { a.drive(ctx, r) })
	}
	for _, n := range a.asked() {
		a.peers.begin(n)
		all = append(all, a.asking(n))
	}
	return all
}

// drive gives a component its turns until ctx ends.
func (a *Agent) drive(ctx context.Context, r *runner) {
	if c, ok := r.impl.(interface{ close() }); ok {
		defer c.close()
	}
	for ctx.Err() == nil {
		pause := pollUnready
		if a.turn(ctx, r).State == facts.Ready {
			pause = pollReady
		}
		a.clock.Sleep(ctx, pause)
	}
}

// turn is one observation and at most one step.
func (a *Agent) turn(ctx context.Context, r *runner) facts.Status {
	if missing := a.missing(r.after); len(missing) > 0 {
		// It must not observe yet: an unmounted data folder looks empty. Peers are told nothing.
		a.publish(r.Name, nil)
		return a.setStatus(r.Name, waitf("for %s on this node", strings.Join(missing, ", ")))
	}
	observing, cancel := a.clock.Limit(ctx, observeLimit)
	report, err := r.impl.Observe(observing)
	cancel()
	if err != nil {
		report = nil
	}
	a.publish(r.Name, report)
	// Also after a failed observation: a hung daemon may be the cause.
	if status, killed, err := endHung(ctx, r.impl); err != nil {
		return a.setStatus(r.Name, facts.Status{State: facts.Failed, Detail: err.Error()})
	} else if killed {
		return a.setStatus(r.Name, status)
	}
	if err != nil {
		return a.setStatus(r.Name, facts.Status{State: facts.Failed, Detail: err.Error()})
	}
	w := World{Self: a.facts.Node, Peers: a.facts.Peers, Reports: a.peers.heard(), Own: a.own()}
	var status facts.Status
	if w.Joint, err = a.joint(r, w.Reports); err == nil {
		w.Without, err = r.without(w.Reports)
	}
	if err == nil {
		status, err = r.impl.Step(ctx, w)
	}
	if err == nil {
		err = a.settle(r, w)
	}
	if err == nil && status.State == facts.Ready && len(w.Without) > 0 {
		err = r.decision.write(nil) // it has served its purpose, and must not serve another
	}
	if err != nil {
		status = facts.Status{State: facts.Failed, Detail: err.Error()}
	}
	return a.setStatus(r.Name, status)
}

// after lists what must be ready before a component's turn: what its role names, and the node's packet filter, so that no
// daemon is ever reachable by more than its role allows.
func (a *Agent) after(c facts.Component) []string {
	filter := func(name string) bool { return name == facts.Firewall || name == facts.Firewall6 }
	if filter(c.Name) {
		return c.After
	}
	var names []string
	for _, other := range a.facts.Components {
		if filter(other.Name) {
			names = append(names, other.Name)
		}
	}
	return append(names, c.After...)
}

func describeStatus(s facts.Status) string {
	if s.Detail == "" {
		return string(s.State)
	}
	return string(s.State) + ": " + s.Detail
}

// missing returns those of the named components that are not ready.
func (a *Agent) missing(names []string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var missing []string
	for _, n := range names {
		if a.reports[n].Status.State != facts.Ready {
			missing = append(missing, n)
		}
	}
	return missing
}

// replace replaces a component's report.
func (a *Agent) replace(name string, r facts.ComponentReport) {
	reports := maps.Clone(a.reports)
	reports[name] = r
	a.reports = reports
}

// publish replaces the report of a component; nil withdraws it.
func (a *Agent) publish(name string, report any) {
	var raw json.RawMessage
	if report != nil {
		raw, _ = json.Marshal(report) // reports are plain structs
	}
	now := a.clock.Now()
	is := ""
	if r, ok := report.(interface{ is() string }); ok {
		is = r.is()
	}
	a.mu.Lock()
	r := a.reports[name]
	was := r.Is
	if is != was || !bytes.Equal(raw, r.Report) {
		r.Report, r.Is = raw, is
		a.replace(name, r)
	}
	if raw != nil {
		a.looked[name] = now
	} else {
		delete(a.looked, name)
	}
	a.mu.Unlock()
	if is != was && is != "" {
		a.happened(name, "is %s", is)
	}
}

// setStatus records a component's status, and logs it when more than a number has changed.
func (a *Agent) setStatus(name string, s facts.Status) facts.Status {
	s.Detail = oneLine(s.Detail)
	a.mu.Lock()
	r := a.reports[name]
	old := r.Status
	if old == s {
		a.mu.Unlock()
		return s
	}
	if old.State != s.State {
		r.Since = a.clock.Now()
	}
	r.Status = s
	a.replace(name, r)
	ready := true
	for _, r := range a.reports {
		ready = ready && r.Status.State == facts.Ready
	}
	became := ready && !a.ready
	a.ready = ready
	a.mu.Unlock()
	if old.State == s.State && noDigits(old.Detail) == noDigits(s.Detail) {
		return s // progress counters are shown by imagegen status only
	}
	a.happened(name, "%s", describeStatus(s))
	a.console(fmt.Sprintf("%s: %s: %s", a.facts.Node.Name, name, describeStatus(s)))
	if became {
		a.happened("", "ready")
		a.console(a.facts.Node.Name + ": ready")
	}
	return s
}

// oneLine makes a program's message fit a table cell and a console line.
func oneLine(s string) string {
	if isOneLine(s) {
		return s
	}
	s = strings.Join(strings.Fields(printable(s)), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}

// isOneLine tells whether oneLine would change nothing. Most messages are like that, and each turn has one.
func isOneLine(s string) bool {
	last := byte(' ')
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == ' ' && last == ' ' {
			return false
		}
		last = s[i]
	}
	return len(s) <= 300 && (last != ' ' || s == "")
}

// printable removes what a terminal would interpret rather than show: control characters, including the first bytes of
// escape sequences, and the format characters that change a line's direction.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r): // line ends as well
			return ' '
		case unicode.IsGraphic(r):
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func noDigits(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, s)
}

// status returns a component's status.
func (a *Agent) status(component string) facts.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reports[component].Status
}

func (a *Agent) isReady() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ready
}

// own is what this node's components are told of each other.
func (a *Agent) own() facts.NodeReport {
	now := a.clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	r := facts.NodeReport{Cluster: a.facts.Cluster, ClusterID: a.facts.ClusterID, Node: a.facts.Node, Ready: a.ready, Components: a.reports}
	var fresh map[string]facts.ComponentReport
	for name, at := range a.looked {
		if now.Sub(at) > a.peers.limit {
			if fresh == nil {
				fresh = maps.Clone(a.reports)
				r.Components = fresh
			}
			c := fresh[name]
			c.Report = nil
			fresh[name] = c
		}
	}
	return r
}

// report is what the peer API answers.
func (a *Agent) report() facts.NodeReport {
	heard := a.peers.names()
	var generation *facts.GenerationReport
	if a.generations != nil {
		generation = a.generations.report()
	}
	joint, _ := a.ownJoint()
	now := a.clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	r := facts.NodeReport{
		Cluster:    a.facts.Cluster,
		ClusterID:  a.facts.ClusterID,
		Node:       a.facts.Node,
		Ready:      a.ready,
		Components: a.reports,
		Order:      a.order,
		Heard:      heard,
		Holds:      a.holds,
		Made:       a.made,
		Trial:      a.trial,
		Generation: generation,
		Joint:      joint,
	}
	r.Ages = make(map[string]int64, len(a.looked))
	for name, at := range a.looked {
		r.Ages[name] = now.Sub(at).Milliseconds()
	}
	return r
}

// ApplySysctl sets the kernel parameters in a sysctl.d file below root. On the first boot, cloud-init writes the seed's file
// after systemd has read the folder. Parameters that cannot be set (in a container, most belong to the host) are returned
// as one error; the others are set nevertheless.
func ApplySysctl(root, file string) error {
	data, err := os.ReadFile(filepath.Join(root, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), "=")
		key = strings.TrimSpace(key)
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		if err := setParameter(filepath.Join(root, sysctlPath(key)), value); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sysctlPath is the file in which the kernel has a parameter.
func sysctlPath(key string) string { return "/proc/sys/" + strings.ReplaceAll(key, ".", "/") }

// setParameter writes a parameter of the kernel; one that the kernel does not have is an error.
func setParameter(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.TrimSpace(value) + "\n")
	return errors.Join(err, f.Close())
}

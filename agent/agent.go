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
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

// How often the agent looks, and how old an answer may be. The intervals bound how long a change goes unseen; nothing
// depends on them for being right.
const (
	restless     = 500 * time.Millisecond // between two looks of a component that is not ready
	restful      = time.Second            // between two looks of one that is
	observeLimit = 10 * time.Second       // one look; a component that takes longer is reported as failed
	pollLimit    = 2 * time.Second        // one question to a peer
	heardLimit   = 5 * time.Second        // a peer whose last answer is older counts as not heard
)

// Agent runs the components of one node and talks with its peers' agents.
type Agent struct {
	facts    facts.Facts
	runners  []*runner
	peers    *peers
	identity identity
	console  func(line string)

	events  *events
	journal []string      // the program that shows the journal
	readers chan struct{} // a place for each reader of the journal
	made    facts.Made

	mu      sync.Mutex
	reports map[string]facts.ComponentReport
	ready   bool     // every component is
	holds   []string // virtual addresses
}

// runner drives one component.
type runner struct {
	facts.Component
	impl Component
	// decision is the file that keeps an operator's facts.Decision until the component is ready.
	decision string
}

// New makes the agent of a node, which was made from made, from what its seed says, below root (normally "/"). Every change of a component's
// status is passed to console as one line.
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
	a := &Agent{
		facts:    known,
		console:  func(line string) { console(printable(line)) },
		reports:  map[string]facts.ComponentReport{},
		identity: id,
		peers:    newPeers(id, known.Peers),
		journal:  []string{"journalctl"},
		readers:  make(chan struct{}, journalReaders),
		made:     made,
	}
	if err := os.MkdirAll(filepath.Join(root, facts.StateDir), 0o700); err != nil {
		return nil, err
	}
	a.events = openEvents(eventsPath(root))
	a.happened("", "the agent has started")
	for _, c := range known.Components {
		n := Node{
			Facts:    known,
			Secrets:  secrets,
			Identity: id,
			Dir:      filepath.Join(root, facts.StateDir, c.Name),
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
		a.runners = append(a.runners, &runner{c, impl, filepath.Join(n.Dir, "decision.json")})
		a.reports[c.Name] = facts.ComponentReport{Kind: c.Kind, Status: waitf("the agent has just started"), Since: time.Now()}
	}
	return a, nil
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

// Run serves the peer API and the health port and drives the components until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { a.peers.poll(ctx, a.isReady) })
	wg.Go(func() { boundLogs(ctx, "/") })
	wg.Go(func() { a.watch(ctx) })
	for _, r := range a.runners {
		wg.Go(func() { a.drive(ctx, r) })
	}
	err := a.serve(ctx, a.identity)
	stop()
	wg.Wait()
	return err
}

// drive looks at one component and lets it take a step, again and again.
func (a *Agent) drive(ctx context.Context, r *runner) {
	for ctx.Err() == nil {
		pause := restless
		if a.turn(ctx, r).State == facts.Ready {
			pause = restful
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// turn is one look and at most one step.
func (a *Agent) turn(ctx context.Context, r *runner) facts.Status {
	if missing := a.missing(a.after(r.Component)); len(missing) > 0 {
		// What it would see now is not its world: an unmounted data folder looks empty. Peers are told nothing.
		a.publish(r.Name, nil)
		return a.setStatus(r.Name, waitf("for %s on this node", strings.Join(missing, ", ")))
	}
	observing, cancel := context.WithTimeout(ctx, observeLimit)
	report, err := r.impl.Observe(observing)
	cancel()
	if err != nil {
		report = nil
	}
	a.publish(r.Name, report)
	// Also when nothing could be seen: what hangs may be why.
	if status, killed, err := endHung(ctx, r.impl); err != nil {
		return a.setStatus(r.Name, facts.Status{State: facts.Failed, Detail: err.Error()})
	} else if killed {
		return a.setStatus(r.Name, status)
	}
	if err != nil {
		return a.setStatus(r.Name, facts.Status{State: facts.Failed, Detail: err.Error()})
	}
	w := World{Self: a.facts.Node, Peers: a.facts.Peers, Reports: a.peers.heard(), Own: a.report()}
	var status facts.Status
	if w.Without, err = r.without(w.Reports); err == nil {
		status, err = r.impl.Step(ctx, w)
	}
	if err == nil && status.State == facts.Ready && w.Without != nil {
		err = os.Remove(r.decision) // it has served its purpose, and must not serve another
	}
	if err != nil {
		status = facts.Status{State: facts.Failed, Detail: err.Error()}
	}
	return a.setStatus(r.Name, status)
}

// after lists what must be ready before a component takes a step: what its role names, and the node's packet filter, so
// that no daemon is ever reachable by more than its role allows.
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

// without returns the nodes that an operator has decided to go on without. The decision about one that is heard again
// has ended: what it has counts, now and if it falls silent once more.
func (r *runner) without(heard map[string]PeerReport) ([]string, error) {
	names, err := readDecision(r.decision)
	if err != nil || names == nil {
		return nil, err
	}
	silent := stillSilent(names, heard)
	switch len(silent) {
	case len(names):
		return names, nil
	case 0:
		return nil, os.Remove(r.decision)
	}
	return silent, writeDecision(r.decision, facts.Decision{Component: r.Name, Without: silent})
}

// stillSilent returns those of the named nodes whose agents do not answer.
func stillSilent(names []string, heard map[string]PeerReport) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, answers := heard[n]; return answers })
}

func writeDecision(path string, d facts.Decision) error {
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// readDecision returns the nodes that an operator has decided to go on without; nil: none.
func readDecision(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var d facts.Decision
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d.Without, nil
}

// decide takes an operator's decision, unless nothing needs to be decided.
func (a *Agent) decide(d facts.Decision) error {
	i := slices.IndexFunc(a.runners, func(r *runner) bool { return r.Name == d.Component })
	if i < 0 {
		return fmt.Errorf("%s has no component %s", a.facts.Node.Name, d.Component)
	}
	a.mu.Lock()
	status := a.reports[d.Component].Status
	a.mu.Unlock()
	if status.Missing == "" {
		return fmt.Errorf("%s on %s does not wait for a decision: it is %s", d.Component, a.facts.Node.Name, describeStatus(status))
	}
	missing := strings.Split(status.Missing, ",")
	for _, name := range d.Without {
		if !slices.Contains(missing, name) {
			return fmt.Errorf("%s on %s does not wait for %s, but for %s", d.Component, a.facts.Node.Name, name, strings.Join(missing, ", "))
		}
	}
	for name, r := range a.peers.heard() {
		if slices.Contains(d.Without, name) {
			return fmt.Errorf("the agent of %s answers, so what %s has is not lost (its %s is %s); switch %s off first if it is to be given up",
				name, name, d.Component, describeStatus(r.Components[d.Component].Status), name)
		}
	}
	if len(d.Without) == 0 {
		return fmt.Errorf("%s on %s waits for %s: none of these is named", d.Component, a.facts.Node.Name, strings.Join(missing, ", "))
	}
	// Who was named before is not missing any more, and this decision must not take that one back.
	before, err := readDecision(a.runners[i].decision)
	if err != nil {
		return err
	}
	all := slices.Concat(before, d.Without)
	slices.Sort(all)
	a.happened(d.Component, "an operator has decided to go on without %s", strings.Join(d.Without, ", "))
	a.console(fmt.Sprintf("%s: %s: an operator has decided to go on without %s", a.facts.Node.Name, d.Component, strings.Join(d.Without, ", ")))
	return writeDecision(a.runners[i].decision, facts.Decision{Component: d.Component, Without: slices.Compact(all)})
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
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		return a.reports[n].Status.State == facts.Ready
	})
}

// publish replaces what the peers are told that a component observed; nil withdraws it.
func (a *Agent) publish(name string, report any) {
	var raw json.RawMessage
	if report != nil {
		raw, _ = json.Marshal(report) // reports are plain structs
	}
	is := ""
	if r, ok := report.(interface{ is() string }); ok {
		is = r.is()
	}
	a.mu.Lock()
	r := a.reports[name]
	was := r.Is
	r.Report, r.Is = raw, is
	a.reports[name] = r
	a.mu.Unlock()
	if is != was && is != "" {
		a.happened(name, "is %s", is)
	}
}

// setStatus records where a component stands and says so when that has changed in more than a number.
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
		r.Since = time.Now()
	}
	r.Status = s
	a.reports[name] = r
	ready := true
	for _, r := range a.reports {
		ready = ready && r.Status.State == facts.Ready
	}
	became := ready && !a.ready
	a.ready = ready
	a.mu.Unlock()
	if old.State == s.State && noDigits(old.Detail) == noDigits(s.Detail) {
		return s // a count that goes on is for the status table
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
	s = strings.Join(strings.Fields(printable(s)), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}

// printable leaves out what a terminal would act upon rather than show: control characters, escape sequences' first bytes
// among them, and the format characters that turn a line's direction around.
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

func (a *Agent) isReady() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ready
}

// report is what the peer API answers.
func (a *Agent) report() facts.NodeReport {
	heard := slices.Sorted(maps.Keys(a.peers.heard()))
	a.mu.Lock()
	defer a.mu.Unlock()
	r := facts.NodeReport{
		Cluster:    a.facts.Cluster,
		ClusterID:  a.facts.ClusterID,
		Node:       a.facts.Node,
		Ready:      a.ready,
		Components: maps.Clone(a.reports),
		Heard:      heard,
		Holds:      a.holds,
		Made:       a.made,
	}
	for _, c := range a.facts.Components {
		r.Order = append(r.Order, c.Name)
	}
	return r
}

// ApplySysctl sets the kernel parameters in a sysctl.d file below root. On the first boot the seed's file comes after
// systemd has read the folder. Parameters that cannot be set (in a container most belong to the host) are returned as
// one error; the others are set all the same.
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
		path := filepath.Join(root, "/proc/sys", strings.ReplaceAll(key, ".", "/"))
		if err := os.WriteFile(path, []byte(strings.TrimSpace(value)+"\n"), 0); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

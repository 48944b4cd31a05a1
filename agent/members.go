package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

const (
	jointFile = "members.json"           // in the agent's state, on the root disk
	jointCopy = ".imagegen-members.json" // at the top of the data disk: the root disk is replaced in the middle of a change
)

// maxTold limits what is kept of what other nodes say, while there is no data disk to record it.
const maxTold = 64

// memberships is which memberships of its role count for a node: the one of its own seed, those of the generations that its
// acceptor has accepted, and those that count for others. Rules are in package ensemble.
type memberships struct {
	own      func() facts.Membership
	accepted func() []facts.Membership // by the node's acceptor
	number   func() int                // of the generation that the node conforms to
	store    jointStore

	mu     sync.Mutex
	loaded bool
	joint  facts.Joint
	told   []facts.Joint // by nodes that asked this one; not yet in joint
	// What follows is made when it is needed, and forgotten when joint changes. Most questions and answers say what the ones before said.
	shown *facts.Joint    // joint, for others
	text  string          // shown, as JSON
	stale map[string]bool // texts of others that say nothing new
}

// jointStore remembers which memberships count.
type jointStore interface {
	read() (facts.Joint, error)
	write(facts.Joint) error
}

// count returns the memberships that count, after what peers report. They are durable by then: no decision is made from what
// the node might forget.
func (m *memberships) count(reports map[string]PeerReport) (facts.Joint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	own := m.own()
	j := m.joint
	j.Role = own.Members[0].Role
	if !m.loaded {
		kept, err := m.store.read()
		if err != nil {
			return j, err
		}
		j = ensemble.Learn(j, kept)
	}
	j = ensemble.Count(j, own)
	for _, more := range m.accepted() {
		j = ensemble.Count(j, more)
	}
	for _, r := range reports {
		if r.Joint == nil || ensemble.Same(j, ensemble.Learn(j, *r.Joint)) {
			continue
		}
		// In the same order on all nodes; there is seldom anything new.
		for _, name := range slices.Sorted(maps.Keys(reports)) {
			if r := reports[name]; r.Joint != nil {
				j = ensemble.Learn(j, *r.Joint)
			}
		}
		break
	}
	for _, other := range m.told {
		j = ensemble.Learn(j, other)
	}
	j, err := m.keep(j)
	if err == nil {
		m.told = nil
	}
	return j, err
}

// hear takes note of what a node says that asked this one. That node may be one that this one does not know: it counts, as far as
// that node knows, and would not be asked.
func (m *memberships) hear(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var other facts.Joint
	if m.stale[text] || json.Unmarshal([]byte(text), &other) != nil {
		return
	}
	j := m.joint
	if !ensemble.Same(j, ensemble.Learn(j, other)) || !m.loaded {
		m.told = append(m.told[max(0, len(m.told)-maxTold):], other)
		return
	}
	if m.stale == nil || len(m.stale) >= maxTold {
		m.stale = map[string]bool{}
	}
	m.stale[text] = true
}

// settle forgets the memberships before a generation.
func (m *memberships) settle(number int) (facts.Joint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keep(ensemble.Settle(m.joint, number))
}

func (m *memberships) keep(j facts.Joint) (facts.Joint, error) {
	j.Number = m.number()
	if m.loaded && ensemble.Same(j, m.joint) {
		return m.joint, nil
	}
	if err := m.store.write(j); err != nil {
		m.loaded = false // the copies may differ
		return j, err
	}
	m.joint, m.loaded, m.shown, m.stale = j, true, nil, nil
	return j, nil
}

// known returns what counted last, without looking anywhere. As long as nothing changes, it is the same value.
func (m *memberships) known() *facts.Joint {
	j, _ := m.shows()
	return j
}

// shows returns what known does, and the same as JSON.
func (m *memberships) shows() (*facts.Joint, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if number := m.number(); m.shown == nil || m.shown.Number != number {
		j := m.joint
		j.Number = number
		text, _ := json.Marshal(j) // plain data
		m.shown, m.text = &j, string(text)
	}
	return m.shown, m.text
}

// jointFiles keeps two copies, on the root disk and on the data disk.
type jointFiles struct {
	root   string
	onData func() (path string, there bool) // see generations.onData
}

func (f jointFiles) paths() ([]string, error) {
	data, there := f.onData()
	switch {
	case !there:
		return nil, errNoDataDisk
	case data == "":
		return []string{f.root}, nil
	}
	return []string{f.root, data}, nil
}

func (f jointFiles) read() (all facts.Joint, err error) {
	paths, err := f.paths()
	if err != nil {
		return all, err
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var j facts.Joint
		if err == nil {
			err = json.Unmarshal(data, &j)
		}
		if err != nil {
			return all, fmt.Errorf("which nodes count: %s: %w", path, err)
		}
		all.Role = j.Role
		all = ensemble.Learn(all, j)
	}
	return all, nil
}

func (f jointFiles) write(j facts.Joint) error {
	paths, err := f.paths()
	if err != nil {
		return err
	}
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// jointMemory is for an agent without disks.
type jointMemory struct{}

func (jointMemory) read() (facts.Joint, error) { return facts.Joint{}, nil }
func (jointMemory) write(facts.Joint) error    { return nil }

// decidesTogether tells whether the components of a kind decide with the others of their role.
func decidesTogether(kind string) bool {
	return slices.Contains([]string{"galera", "gluster", "redis", "sentinel", "site"}, kind)
}

// settler is a component that can tell whether a membership in use works by itself.
type settler interface {
	// settled returns the number of the generation whose membership does; ok is false if there is none newer than the oldest.
	settled(w World) (number int, ok bool)
}

// joint returns the memberships that count for a component, and has the peers asked that they name.
func (a *Agent) joint(r *runner, heard map[string]PeerReport) (facts.Joint, error) {
	if !decidesTogether(r.Kind) {
		return facts.Joint{}, nil
	}
	j, err := a.members.count(heard)
	if err == nil {
		a.askMore()
	}
	return j, err
}

// settle forgets earlier memberships once a component says that the newer ones work without them.
func (a *Agent) settle(r *runner, w World) error {
	s, ok := r.impl.(settler)
	if !ok || len(w.Joint.InUse) < 2 {
		return nil
	}
	number, ok := s.settled(w)
	if !ok {
		return nil
	}
	if _, err := a.members.settle(number); err != nil {
		return err
	}
	a.happened(r.Name, "the members of generation %d work by themselves; earlier ones do not count any more", number)
	return nil
}

// asked returns the peers that the agent asks: those of its facts that have another role, and everybody of its own who counts, at
// every address that may be theirs.
func (a *Agent) asked() []facts.Peer {
	known := a.members.known()
	in := known.InUse
	if len(in) == 0 {
		return a.facts.Peers
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asksFor == known {
		return a.asks
	}
	var all []facts.Peer
	add := func(p facts.Peer) {
		if p.Name != a.facts.Node.Name && !slices.ContainsFunc(all, func(o facts.Peer) bool { return o.Name == p.Name && o.IP == p.IP }) {
			all = append(all, p)
		}
	}
	for _, p := range a.facts.Peers {
		if p.Role != a.facts.Node.Role {
			add(p)
		}
	}
	for _, m := range in {
		for _, p := range m.Members {
			add(p)
		}
	}
	a.asks, a.asksFor = all, known
	return all
}

// askMore starts to ask peers that have become known. Who does not count any more is no longer asked, by itself.
func (a *Agent) askMore() {
	for _, p := range a.asked() {
		if a.peers.begin(p) {
			a.launch(a.asking(p))
		}
	}
}

// asking is the loop that asks a peer while it counts.
func (a *Agent) asking(p facts.Peer) func(ctx context.Context) {
	return func(ctx context.Context) {
		a.peers.poll(ctx, p, a.isReady, func() bool {
			return slices.ContainsFunc(a.asked(), func(o facts.Peer) bool { return o.Name == p.Name && o.IP == p.IP })
		}, func() string { _, text := a.ownJoint(); return text })
	}
}

// ownJoint returns what the node tells its peers, and the same as JSON: nothing, for a node that decides nothing together with others.
func (a *Agent) ownJoint() (*facts.Joint, string) {
	if !slices.ContainsFunc(a.runners, func(r *runner) bool { return decidesTogether(r.Kind) }) {
		return nil, ""
	}
	return a.members.shows()
}

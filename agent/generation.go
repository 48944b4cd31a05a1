package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
	"imagegen/internal/atomicfile"
)

const (
	acceptorFile = "generation.json"           // in the agent's state, on the root disk
	acceptorCopy = ".imagegen-generation.json" // at the top of the data disk: the root disk may be replaced
	// maxGenerations limits a request with two generations, and an answer with one, in bytes. A member takes some 500.
	maxGenerations = 8 << 20
	// Intervals at which an agent asks other members: often until it may vote.
	askUnsure = 5 * time.Second
	askSure   = 20 * time.Second
)

// generations is what a node knows of the cluster's generations: the one that its seed belongs to, and what its acceptor has
// promised and accepted. Package agree has the rules.
type generations struct {
	node   string
	seed   func() string                       // digest of the seed that the node runs
	dir    string                              // the kept seed
	before func() (seed nocloud.Seed, ok bool) // to which the node can still go back
	verify func(envelope []byte) (facts.Generation, error)
	ask    func(ctx context.Context, m facts.Member, query string) ([]byte, error)
	said   func(format string, args ...any)
	// onData returns where the copy on the data disk is, and whether that is there now; empty: there is no data disk.
	onData func() (path string, there bool)
	onDisk func(name string) func() (path string, there bool) // the same for another file
	onRoot string
	role   string

	// step is held from reading the acceptor's state until its successor is on disk. A disk may hang, and the node's report must not
	// wait for it: that needs mu alone, which guards what follows.
	step    sync.Mutex
	mu      sync.Mutex
	running *facts.Generation // nil: the seed belongs to none
	broken  error             // why the seed's generation cannot be used
	unable  error             // why there is no memory
	loaded  bool              // both copies were read, and are the same
	state   agree.State
	asked   map[string]agree.Status // answers, while the acceptor remembers nothing
}

// openGenerations reads what the node kept. The data disk is not there yet.
func openGenerations(root string, known facts.Facts, id identity, a *Agent) (*generations, error) {
	authority, err := readAuthority(filepath.Join(root, facts.PKIDir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	g := &generations{
		node:   known.Node.Name,
		seed:   func() string { return a.made.Seed },
		dir:    filepath.Join(root, facts.SeedDir),
		before: a.takeover.previous,
		verify: func(envelope []byte) (facts.Generation, error) {
			return facts.Verify(envelope, authority, known.ClusterID)
		},
		ask: func(ctx context.Context, m facts.Member, query string) ([]byte, error) {
			return askMember(ctx, id, m, query)
		},
		said: func(format string, args ...any) {
			a.happened("", format, args...)
			a.console(known.Node.Name + ": " + fmt.Sprintf(format, args...))
		},
		onRoot: filepath.Join(root, facts.StateDir, acceptorFile),
		asked:  map[string]agree.Status{},
	}
	g.onDisk = func(string) func() (string, bool) { return func() (string, bool) { return "", true } }
	for _, c := range known.Components {
		params, err := facts.DecodeParams(c.Kind, c.Params)
		if err != nil {
			return nil, err
		}
		if p, ok := params.(*facts.DiskParams); ok {
			g.onDisk = func(name string) func() (string, bool) {
				path := filepath.Join(root, p.Mount, name)
				return func() (string, bool) { return path, a.status(c.Name).State == facts.Ready }
			}
		}
	}
	g.role, g.onData = known.Node.Role, g.onDisk(acceptorCopy)
	if err := g.readRunning(); err != nil {
		g.broken = err
		log.Print(err)
	}
	if s, err := g.read(g.onRoot); err == nil { // what it knows to be in use is reported at once; the rest counts once it is loaded
		g.state = s
	}
	return g, nil
}

// readAuthority reads the certificate of the cluster's authority.
func readAuthority(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's authority: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

// readRunning reads the generation of the kept seed.
func (g *generations) readRunning() error {
	data, err := os.ReadFile(filepath.Join(g.dir, "generation"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the generation of this node's seed: %w", err)
	}
	running, err := g.verify(data)
	if err != nil {
		return fmt.Errorf("the generation of this node's seed: %w", err)
	}
	g.running = &running
	return nil
}

// read reads a copy of the acceptor's state; a missing one remembers nothing.
func (g *generations) read(path string) (agree.State, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return agree.State{}, nil
	}
	var s agree.State
	if err == nil {
		err = agree.Decode(data, &s, g.verify)
	}
	if err != nil {
		return agree.State{}, fmt.Errorf("what this node has promised about generations: %s: %w", path, err)
	}
	return s, nil
}

// errNoDataDisk means that the acceptor cannot answer now. Why the disk is not there is the disk component's to say.
var errNoDataDisk = errors.New("the data disk is not ready")

// load reads both copies and makes them the same. Until then nothing is answered, since a new root disk remembers less. The caller
// holds step.
func (g *generations) load() error {
	g.mu.Lock()
	loaded := g.loaded
	g.mu.Unlock()
	if loaded {
		return nil
	}
	data, there := g.onData()
	if !there {
		return errNoDataDisk
	}
	s, err := g.read(g.onRoot)
	if err == nil && data != "" {
		var copied agree.State
		if copied, err = g.read(data); err == nil {
			s = agree.Merge(s, copied)
		}
	}
	if err != nil {
		return err
	}
	return g.write(s)
}

// write makes a state durable. The caller holds step.
func (g *generations) write(s agree.State) error {
	data, there := g.onData()
	if !there {
		return errNoDataDisk
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	for _, path := range []string{g.onRoot, data} {
		if path == "" {
			continue
		}
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
			continue
		}
		if err := atomicfile.Write(path, text, 0o600); err != nil {
			g.mu.Lock()
			g.loaded = false // the copies may differ
			g.mu.Unlock()
			return err
		}
	}
	g.mu.Lock()
	before := g.state
	g.state, g.loaded = s, true
	g.mu.Unlock()
	if s.Known != nil && (before.Known == nil || before.Known.Digest != s.Known.Digest) {
		g.said("generation %d of the cluster's configuration is in use", s.Known.Number)
	}
	return nil
}

// handle answers a proposer.
func (g *generations) handle(r agree.Request) (agree.Reply, error) {
	g.step.Lock()
	defer g.step.Unlock()
	if err := g.load(); err != nil {
		return agree.Reply{}, err
	}
	s, reply := g.state.Handle(r)
	return reply, g.write(s)
}

// learn takes note of a generation that another member knows to be in use.
func (g *generations) learn(known facts.Generation) error {
	g.step.Lock()
	defer g.step.Unlock()
	if err := g.load(); err != nil {
		return err
	}
	s, err := g.state.Learn(known)
	if err != nil {
		return err
	}
	return g.write(s)
}

// status is what peers and operators are told.
func (g *generations) status() (agree.Status, error) {
	g.step.Lock()
	defer g.step.Unlock()
	if err := g.load(); err != nil {
		return agree.Status{}, err
	}
	previous := agree.Name(g.previous())
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.state.Status()
	s.Node, s.Seed, s.Running, s.Previous = g.node, g.seed(), agree.Name(g.running), previous
	return s, nil
}

// previous returns the generation of the seed to which the node can still go back, or nil.
func (g *generations) previous() *facts.Generation {
	seed, ok := g.before()
	if !ok || len(seed.Generation) == 0 {
		return nil
	}
	previous, err := g.verify(seed.Generation)
	if err != nil {
		return nil // the node can go back, but not the others with it
	}
	return &previous
}

// signed returns the envelope of a generation that the node has named.
func (g *generations) signed(digest string) []byte {
	previous := g.previous()
	g.mu.Lock()
	defer g.mu.Unlock()
	all := []*facts.Generation{g.running, g.state.Known, previous}
	if v := g.state.Accepted; v != nil {
		all = append(all, &v.Generation)
	}
	for _, known := range all {
		if known != nil && known.Digest == digest {
			return known.Signed
		}
	}
	return nil
}

// member verifies a signed generation, and returns what it says of this node. It must be the one in use, unless only a plan is wanted:
// the node changes to no other.
func (g *generations) member(signed []byte, planOnly bool) (facts.Member, error) {
	wanted, err := g.verify(signed)
	if err != nil {
		return facts.Member{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch known := g.state.Known; {
	case planOnly:
	case known == nil:
		return facts.Member{}, fmt.Errorf("%s does not know that generation %d is in use", g.node, wanted.Number)
	case known.Digest != wanted.Digest:
		return facts.Member{}, fmt.Errorf("generation %d is in use as far as %s knows, and not this generation %d", known.Number, g.node, wanted.Number)
	}
	m, ok := wanted.Member(g.node)
	if !ok {
		return m, fmt.Errorf("generation %d has no node %s", wanted.Number, g.node)
	}
	return m, nil
}

// report is the part of the node's report about generations.
func (g *generations) report() *facts.GenerationReport {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := &facts.GenerationReport{}
	if err := cmp.Or(g.broken, g.unable); err != nil {
		r.Error = oneLine(err.Error())
	}
	if g.running != nil {
		r.Number, r.Digest = g.running.Number, g.running.Digest
	}
	known := g.state.Known
	if known == nil {
		return r
	}
	r.InUse = known.Number
	switch m, ok := known.Member(g.node); {
	case known.Digest == r.Digest:
	case !ok:
		r.Behind = fmt.Sprintf("generation %d has no node %s", known.Number, g.node)
	case m.Seed == g.seed(): // for this node they are the same
		r.Number, r.Digest = known.Number, known.Digest
	case known.Number > r.Number:
		r.Behind = fmt.Sprintf("generation %d is in use", known.Number)
	default:
		r.Behind = fmt.Sprintf("generation %d was never agreed on; generation %d is in use", r.Number, known.Number)
	}
	return r
}

// conforms returns the number of the generation that the node conforms to; 0: none.
func (g *generations) conforms() int { return g.report().Number }

// made returns the number of the generation that the node's seed came with; 0: none.
func (g *generations) made() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running == nil {
		return 0
	}
	return g.running.Number
}

// memberships returns what the generations that may be in use say of the node's role: the latest known one, and the one that the
// acceptor has voted for, which may be in use without its knowledge.
func (g *generations) memberships() []facts.Membership {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []facts.Membership
	for _, m := range []*facts.Generation{g.state.Known, acceptedValue(g.state)} {
		if m == nil {
			continue
		}
		in := facts.Membership{Number: m.Number}
		for _, n := range m.Members {
			if n.Role == g.role {
				in.Members = append(in.Members, facts.Peer{Name: n.Name, Role: n.Role, IP: n.IP, Index: n.Index})
			}
		}
		all = append(all, in)
	}
	return all
}

func acceptedValue(s agree.State) *facts.Generation {
	if s.Accepted == nil {
		return nil
	}
	return &s.Accepted.Generation
}

// run asks other members until ctx ends: what a new acceptor must know before it may vote, and later which generation is in use.
func (g *generations) run(ctx context.Context) {
	for {
		pause := askSure
		mayVote, err := g.look(ctx)
		if !mayVote {
			pause = askUnsure
		}
		g.mu.Lock()
		g.unable = err
		g.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// look asks one member, or all while the acceptor remembers nothing.
func (g *generations) look(ctx context.Context) (mayVote bool, err error) {
	own, err := g.status()
	if errors.Is(err, errNoDataDisk) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	members := g.others()
	if g.latest() == nil {
		return true, nil // made before generations: there is nothing to vote on
	}
	if own.Fence != nil {
		if len(members) > 0 {
			g.hear(ctx, members[rand.IntN(len(members))])
		}
		return true, nil
	}
	var wg sync.WaitGroup
	turn := make(chan struct{}, 8)
	for _, m := range members {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			g.hear(ctx, m)
		})
	}
	wg.Wait()
	return g.fence(ctx)
}

// latest returns the latest generation that the node knows of, or nil.
func (g *generations) latest() *facts.Generation {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k := g.state.Known; k != nil && (g.running == nil || k.Number > g.running.Number) {
		return k
	}
	return g.running
}

// others returns the other members of the latest generation that the node knows of.
func (g *generations) others() []facts.Member {
	latest := g.latest()
	if latest == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(latest.Members), func(m facts.Member) bool { return m.Name == g.node })
}

// hear asks a member and learns from it.
func (g *generations) hear(ctx context.Context, m facts.Member) {
	data, err := g.ask(ctx, m, "")
	if err != nil {
		return // silent, or an agent of an earlier imagegen
	}
	var s agree.Status
	if json.Unmarshal(data, &s) != nil || s.Node != m.Name {
		return
	}
	g.mu.Lock()
	g.asked[m.Name] = s
	known := g.state.Known
	g.mu.Unlock()
	if s.Known == nil || known != nil && s.Known.Number <= known.Number {
		return
	}
	newer, err := g.fetch(ctx, m, *s.Known)
	if err == nil {
		err = g.learn(newer)
	}
	if err != nil {
		log.Printf("generation %d, of which %s knows: %v", s.Known.Number, m.Name, err)
	}
}

// fetch gets a generation from a member that has named it.
func (g *generations) fetch(ctx context.Context, m facts.Member, n agree.Named) (facts.Generation, error) {
	data, err := g.ask(ctx, m, "?digest="+n.Digest)
	if err != nil {
		return facts.Generation{}, err
	}
	got, err := g.verify(data)
	if err == nil && got.Digest != n.Digest {
		err = fmt.Errorf("%s sent another generation than it named", m.Name)
	}
	return got, err
}

// fence finds out on what the acceptor may vote.
func (g *generations) fence(ctx context.Context) (ok bool, err error) {
	g.mu.Lock()
	running, asked := g.running, g.asked
	g.mu.Unlock()
	if running == nil {
		if running = g.latest(); running == nil {
			return true, nil
		}
	}
	byName := map[string]facts.Member{}
	for _, m := range g.others() {
		byName[m.Name] = m
	}
	fence, ok, err := agree.Fence(g.node, *running, asked, func(n agree.Named) (facts.Generation, error) {
		for name, s := range asked {
			if s.Known != nil && *s.Known == n || s.Accepted != nil && s.Accepted.Named == n {
				return g.fetch(ctx, byName[name], n)
			}
		}
		return facts.Generation{}, errors.New("nobody has it")
	})
	if err != nil || !ok {
		return false, err
	}
	g.step.Lock()
	defer g.step.Unlock()
	if err := g.load(); err != nil || g.state.Fence != nil {
		return err == nil, err
	}
	s := g.state // only who holds step changes it
	s.Fence = &fence
	g.mu.Lock()
	g.asked = map[string]agree.Status{}
	g.mu.Unlock()
	return true, g.write(s)
}

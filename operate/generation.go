package operate

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
	"imagegen/internal/words"
)

// Generations is what the nodes say about the generations of the cluster's configuration.
type Generations struct {
	// InUse is nil if no generation is in use: the nodes' seeds belong to none, or to too many.
	InUse *facts.Generation
	// Uncertain says why InUse may not be the latest, or why there is none; nil: it is certain.
	Uncertain error
	// Nodes are those of the spec, in its order, and then other members of the generations that were found.
	Nodes []NodeGeneration
	// Known are all generations that nodes have named and could show, the earliest first.
	Known []facts.Generation
}

// Find returns the generation with a digest, if a node has it.
func (g Generations) Find(digest string) *facts.Generation {
	for i := range g.Known {
		if g.Known[i].Digest == digest {
			return &g.Known[i]
		}
	}
	return nil
}

// NodeGeneration is a node's part of it.
type NodeGeneration struct {
	Node    string
	Address netip.Addr    // where the node was asked last
	Status  *agree.Status // nil: the node does not answer
	Error   string        // why it could not be asked
	// Behind says in how far the node does not run what the generation in use gives it; empty: it does, or is silent.
	Behind string
}

// Verify checks who has signed a generation.
func (a *Agents) Verify(envelope []byte) (facts.Generation, error) {
	id := a.clusterID
	if id == "" { // not on this computer; the authority identifies the cluster as well
		g, err := facts.OpenGeneration(envelope)
		if err != nil {
			return g, err
		}
		id = g.ClusterID
	}
	return facts.Verify(envelope, a.authority, id)
}

// generationStatus asks a node's agent about generations.
func (a *Agents) generationStatus(ctx context.Context, node string, ip netip.Addr) (agree.Status, error) {
	var s agree.Status
	body, _, err := a.request(ctx, node, ip, http.MethodGet, facts.GenerationPath, nil)
	var refused refusal
	switch {
	case errors.As(err, &refused) && refused.code == http.StatusNotFound:
		return s, errors.New("its agent is of an imagegen without generations")
	case errors.As(err, &refused):
		return s, errors.New(refused.text)
	case err != nil:
		return s, err
	}
	if err := json.Unmarshal(body, &s); err != nil || s.Node != node {
		return s, errors.New("the answer is no state of generations")
	}
	return s, nil
}

// survey is the state of Generation while it asks.
type survey struct {
	agents *Agents
	ctx    context.Context
	mu     sync.Mutex
	nodes  map[string]*NodeGeneration
	known  map[string]facts.Generation // by digest
}

// Generation asks all nodes of the spec and all members of the generations that these name, at the addresses that they have there,
// which generation is in use. The spec's nodes are also asked where their machines are, and Elsewhere: if all have moved, no node that
// answers names a generation. without are members that have been given up.
func (c *Cluster) Generation(ctx context.Context, without []string) (Generations, error) {
	s := &survey{agents: c.Agents, ctx: ctx, nodes: map[string]*NodeGeneration{}, known: map[string]facts.Generation{}}
	var order []string
	ask := map[string]netip.Addr{}
	for _, n := range c.Spec.Nodes() {
		order = append(order, n.Name)
		ask[n.Name] = n.IP
	}
	elsewhere := slices.Clone(c.Elsewhere)
	if c.Machines != nil {
		machines, err := c.Machines.Known(ctx)
		if err != nil {
			return Generations{}, err
		}
		for _, m := range machines {
			if m.Node.IP.IsValid() {
				elsewhere = append(elsewhere, facts.Member{Name: m.Node.Name, IP: m.Node.IP.String()})
			}
		}
	}
	elsewhere = slices.DeleteFunc(elsewhere, func(m facts.Member) bool { return !slices.Contains(order, m.Name) })
	for tried := map[string]bool{}; len(ask) > 0; {
		s.ask(ask)
		if ctx.Err() != nil {
			return Generations{}, ctx.Err()
		}
		for name, ip := range ask {
			tried[name+ip.String()] = true
		}
		ask = map[string]netip.Addr{}
		also := func(m facts.Member) {
			ip, err := netip.ParseAddr(m.IP)
			if err == nil && !tried[m.Name+m.IP] && (s.nodes[m.Name] == nil || s.nodes[m.Name].Status == nil) {
				ask[m.Name] = ip
			}
		}
		for _, m := range elsewhere {
			also(m)
		}
		for _, g := range s.generations() {
			for _, m := range g.Members {
				if !slices.Contains(order, m.Name) {
					order = append(order, m.Name)
				}
				also(m) // of several the latest generation's
			}
		}
	}
	all := s.result(order, without)
	all.Known = s.generations()
	return all, nil
}

// ask asks nodes concurrently.
func (s *survey) ask(nodes map[string]netip.Addr) {
	var asking sync.WaitGroup
	for name, ip := range nodes {
		asking.Go(func() {
			n := &NodeGeneration{Node: name, Address: ip}
			status, err := s.agents.generationStatus(s.ctx, name, ip)
			if err != nil {
				n.Error = err.Error()
			} else {
				n.Status = &status
			}
			s.mu.Lock()
			s.nodes[name] = n
			s.mu.Unlock()
		})
	}
	asking.Wait()
}

// generations returns the generations that nodes have named, as far as they can be had, the latest last.
func (s *survey) generations() []facts.Generation {
	for _, n := range s.nodes {
		if n.Status == nil {
			continue
		}
		named := []*agree.Named{n.Status.Running, n.Status.Known, n.Status.Previous}
		if v := n.Status.Accepted; v != nil {
			named = append(named, &v.Named)
		}
		for _, g := range named {
			if g != nil {
				s.fetch(*g) // an error appears again when it matters
			}
		}
	}
	all := slices.Collect(maps.Values(s.known))
	slices.SortFunc(all, func(a, b facts.Generation) int { return a.Number - b.Number })
	return all
}

// fetch gets a generation from one of those that have it.
func (s *survey) fetch(n agree.Named) (facts.Generation, error) {
	if g, ok := s.known[n.Digest]; ok {
		return g, nil
	}
	err := fmt.Errorf("no node that answers has generation %d", n.Number)
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		node := s.nodes[name]
		if node.Status == nil || !names(*node.Status, n) {
			continue
		}
		var body []byte
		if body, _, err = s.agents.request(s.ctx, name, node.Address, http.MethodGet, facts.GenerationPath+"?digest="+n.Digest, nil); err != nil {
			continue
		}
		var g facts.Generation
		if g, err = s.agents.Verify(body); err == nil && g.Digest == n.Digest {
			s.known[n.Digest] = g
			return g, nil
		}
	}
	return facts.Generation{}, err
}

func names(s agree.Status, n agree.Named) bool {
	return s.Running != nil && *s.Running == n || s.Known != nil && *s.Known == n || s.Previous != nil && *s.Previous == n || s.Accepted != nil && s.Accepted.Named == n
}

// result says which generation is in use, and who runs another.
func (s *survey) result(order, without []string) Generations {
	statuses := map[string]agree.Status{}
	for name, n := range s.nodes {
		if n.Status != nil {
			statuses[name] = *n.Status
		}
	}
	var all Generations
	g, err := agree.InUse(statuses, without, s.fetch)
	if all.Uncertain = err; g.Number > 0 {
		all.InUse = &g
	}
	for _, name := range order {
		n := *s.nodes[name]
		if n.Status != nil && all.InUse != nil {
			n.Behind = behind(g, n)
		}
		all.Nodes = append(all.Nodes, n)
	}
	return all
}

// behind says in how far a node that answers does not run what g gives it.
func behind(g facts.Generation, n NodeGeneration) string {
	m, ok := g.Member(n.Node)
	running := "a seed of no generation"
	if n.Status.Running != nil {
		running = fmt.Sprintf("generation %d", n.Status.Running.Number)
	}
	switch {
	case !ok:
		return fmt.Sprintf("it runs %s, and generation %d has no such node", running, g.Number)
	case m.Seed != n.Status.Seed:
		return fmt.Sprintf("it runs %s, and generation %d is in use", running, g.Number)
	}
	return ""
}

// OtherChosen says that another generation than the proposed one was chosen.
type OtherChosen struct{ Generation facts.Generation }

func (e *OtherChosen) Error() string {
	return fmt.Sprintf("somebody else has changed this cluster: generation %d is in use, which is not the one proposed here", e.Generation.Number)
}

// Undecided returns the nodes that have a vote on the successor of the generation in use, and do not know yet whether they may use it:
// agents of a new cluster, or with new disks, find that out some seconds after the others answer. One that is asked too early is kept from
// the vote after that as well.
func (c *Cluster) Undecided(ctx context.Context, found Generations) (nodes []string) {
	electorate := found.InUse.Electorate()
	for _, n := range found.Nodes {
		votes := slices.ContainsFunc(electorate, func(m facts.Member) bool { return m.Name == n.Node })
		if votes && n.Status != nil && mustFindOut(*n.Status) {
			if now, err := c.Agents.generationStatus(ctx, n.Node, n.Address); err == nil && mustFindOut(now) {
				nodes = append(nodes, n.Node)
			}
		}
	}
	return nodes
}

// mustFindOut is true for an acceptor without a memory. Before it has heard of any generation, it has nothing to find out.
func mustFindOut(s agree.Status) bool { return s.Fence == nil && (s.Running != nil || s.Known != nil) }

// Propose has the cluster agree on value as the successor of the generation that Generation has found to be in use. If another
// successor was chosen, the error is an OtherChosen, or agree.Behind. alone says that nobody else changes this cluster, so that nodes
// that may have forgotten a vote may vote.
func (c *Cluster) Propose(ctx context.Context, found Generations, value facts.Generation, alone bool) error {
	if found.Uncertain != nil {
		return found.Uncertain
	}
	id := make([]byte, 8)
	rand.Read(id) // never fails
	council := &council{agents: c.Agents, at: map[string]netip.Addr{}}
	for _, n := range found.Nodes {
		if n.Status != nil {
			council.at[n.Node] = n.Address
		}
	}
	chosen, err := agree.Propose(ctx, council, hex.EncodeToString(id), alone, *found.InUse, value)
	var few *agree.NoMajority
	switch {
	case errors.As(err, &few):
		return council.explain(few)
	case err != nil:
		return err
	case chosen.Digest != value.Digest:
		return &OtherChosen{chosen}
	}
	return nil
}

// voteLimit is the timeout of a vote, which a node writes to both of its disks before it answers.
const voteLimit = 10 * time.Second

// council reaches the acceptors through the agents.
type council struct {
	agents *Agents
	at     map[string]netip.Addr // where nodes have answered; the generation may have moved them since
	mu     sync.Mutex
	errors map[string]string // of the last request, by node
}

func (c *council) All(ctx context.Context, to []facts.Member, r agree.Request) map[string]agree.Reply {
	replies := map[string]agree.Reply{}
	body, err := json.Marshal(r)
	if err != nil {
		return replies
	}
	c.errors = map[string]string{}
	var asking sync.WaitGroup
	for _, m := range to {
		asking.Go(func() {
			reply, err := c.ask(ctx, m, body)
			c.mu.Lock()
			defer c.mu.Unlock()
			if err != nil {
				c.errors[m.Name] = err.Error()
				return
			}
			replies[m.Name] = reply
		})
	}
	asking.Wait()
	return replies
}

func (c *council) ask(ctx context.Context, m facts.Member, body []byte) (agree.Reply, error) {
	var reply agree.Reply
	ip, ok := c.at[m.Name]
	if !ok {
		var err error
		if ip, err = netip.ParseAddr(m.IP); err != nil {
			return reply, err
		}
	}
	answer, _, err := c.agents.requestWithin(ctx, max(voteLimit, c.agents.Limit), m.Name, ip, http.MethodPost, facts.GenerationPath, body)
	var refused refusal
	if errors.As(err, &refused) {
		return reply, errors.New(refused.text)
	}
	if err == nil {
		err = agree.Decode(answer, &reply, c.agents.Verify)
	}
	return reply, err
}

// Pause waits for a random time, so that two proposers do not outbid each other for ever.
func (c *council) Pause(ctx context.Context, attempt int) {
	select {
	case <-ctx.Done():
	case <-time.After(mathrand.N(200 * time.Millisecond * time.Duration(attempt))):
	}
}

// explain adds why nodes do not answer.
func (c *council) explain(few *agree.NoMajority) error {
	var why []string
	for _, name := range few.Silent {
		if reason := c.errors[name]; reason != "" && !slices.Contains(why, reason) {
			why = append(why, reason)
		}
	}
	if why == nil {
		return few
	}
	return fmt.Errorf("%w (%s)", few, strings.Join(why, "; "))
}

// KeptSeed returns a seed that a node has, with its secrets: the one that it runs or, if that has another digest, the one to which it can
// still go back. Without a digest, it is the one that it runs.
func (c *Cluster) KeptSeed(ctx context.Context, node string, ip netip.Addr, digest string) (facts.KeptSeed, error) {
	var kept facts.KeptSeed
	path := facts.SeedPath
	if digest != "" {
		path += "?digest=" + url.QueryEscape(digest)
	}
	body, _, err := c.Agents.request(ctx, node, ip, http.MethodGet, path, nil)
	var refused refusal
	switch {
	case errors.As(err, &refused) && refused.code == http.StatusNotFound:
		return kept, errors.New("its agent is of an imagegen that cannot show its seed")
	case errors.As(err, &refused):
		return kept, errors.New(refused.text)
	case err != nil:
		return kept, err
	}
	if err := json.Unmarshal(body, &kept); err != nil {
		return kept, fmt.Errorf("the answer of %s is no seed", words.Quote(node))
	}
	// An earlier imagegen's agent answers with the one that it runs.
	if have := nocloud.Digest(kept.UserData, kept.NetworkConfig); digest != "" && have != digest {
		return kept, fmt.Errorf("%s has the seed %s, and not %s", node, have, digest)
	}
	return kept, nil
}

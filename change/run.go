package change

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"imagegen/cloudinit"
	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
	"imagegen/internal/words"
	"imagegen/operate"
	"imagegen/roles"
)

const (
	askEvery = time.Second
	// silentLimit is how long nodes that do not answer are asked again, all at once, before that counts. One that is busy misses a request.
	silentLimit = 10 * time.Second
	// trialLimit is longer than any trial of a seed that goes back by itself.
	trialLimit = 15 * time.Minute
	// hearLimit is how long a node may take to hear from its peers which generation is in use.
	hearLimit = 30 * time.Second
)

// Power turns machines off.
type Power interface {
	Kill(ctx context.Context, nodes ...string) error
}

// Run changes a cluster.
type Run struct {
	Cluster   *operate.Cluster
	Power     Power // nil: a person does it
	Catalogue *roles.Catalogue
	Without   []string // nodes that have been given up
	Alone     bool     // nobody else changes this cluster, so nodes that may have forgotten a vote may vote
	Outage    bool     // nodes may get other addresses while all of their role are off
	Tied      string   // why the provider cannot move machines to another network; empty: it can
	Wait      operate.Wait
	Calm      time.Duration // the first node that is replaced must be ready for so long before the next
	Earlier   Earlier
	// Write puts seeds where new machines are made from.
	Write func(Target) error
	// Number makes the generation after the one in use, signed, from a manifest's content.
	Number func(m facts.Manifest, inUse facts.Generation) (facts.Generation, error)

	written bool              // the target's seeds
	before  *facts.Generation // what the cluster leaves; nil: not known yet
	lost    map[string]bool   // nodes whose new machine may be unable to answer
	stale   map[string]bool   // nodes that went back from a seed before this change
	silent  map[string]bool   // nodes that were asked again for silentLimit, in vain
	passed  map[string]bool   // digests of seeds whose trial has passed, which has been said
}

// Generation finds out which generation is in use.
func (r *Run) Generation(ctx context.Context) (g operate.Generations, err error) {
	err = r.insist(ctx, func() (silent []string, err error) {
		if g, err = r.generation(ctx); err != nil || g.Uncertain == nil {
			return nil, err
		}
		for _, n := range g.Nodes {
			if n.Status == nil && !slices.Contains(r.Without, n.Node) {
				silent = append(silent, n.Node)
			}
		}
		return silent, nil
	})
	return g, err
}

// firstLook is look that asks again while nodes that should answer do not.
func (r *Run) firstLook(ctx context.Context, t Target) (s *seen, err error) {
	err = r.insist(ctx, func() (silent []string, err error) {
		var few *agree.Silent
		if s, err = r.look(ctx, t); errors.As(err, &few) {
			return few.Nodes, err
		} else if err != nil {
			return nil, err
		}
		for _, n := range s.Nodes {
			if n.Silent && !n.Off && !slices.Contains(r.Without, n.Name) {
				silent = append(silent, n.Name)
			}
		}
		return silent, nil
	})
	return s, err
}

// insist repeats a question until no node is silent, for silentLimit at most, and once for each silent node.
func (r *Run) insist(ctx context.Context, ask func() (silent []string, err error)) error {
	for limit := (time.Time{}); ; {
		silent, err := ask()
		silent = slices.DeleteFunc(silent, func(name string) bool { return r.silent[name] })
		if len(silent) == 0 || ctx.Err() != nil {
			return err
		}
		if limit.IsZero() {
			limit = time.Now().Add(silentLimit)
			r.Wait.Say("%s: no answer yet, asking again for %s", words.List(silent, "and"), silentLimit)
		} else if time.Now().After(limit) {
			if r.silent == nil {
				r.silent = map[string]bool{}
			}
			for _, name := range silent {
				r.silent[name] = true
			}
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// Plan returns what is left to do for the cluster to run the target. It changes nothing.
func (r *Run) Plan(ctx context.Context, t Target) ([]Step, error) {
	s, err := r.firstLook(ctx, t)
	if err != nil {
		return nil, err
	}
	return Plan(s.State)
}

// Apply has the cluster agree on the target, unless it is in use already, and takes the nodes there one by one. If one does not become
// ready, all that have changed go back to what they were, and the error says so. Interrupted anywhere, it is continued by the next
// Apply with the same content.
func (r *Run) Apply(ctx context.Context, t Target) error {
	s, err := r.firstLook(ctx, t)
	if err != nil {
		return err
	}
	steps, err := Plan(s.State)
	if err != nil {
		return err
	}
	r.passed = map[string]bool{}
	before := Target{Generation: r.previous(s.generations, t), Seeds: map[string]cloudinit.Seed{}}
	r.before = &before.Generation
	if err := r.remember(ctx, s, t, before); err != nil {
		return err
	}
	if err := r.write(t); err != nil {
		return err
	}
	if err := r.canMake(steps); err != nil {
		return err
	}
	if err := r.use(ctx, s, t); err != nil {
		return err
	}
	err = r.carryOut(ctx, t, true)
	var broken *notReady
	if errors.As(err, &broken) {
		return r.undo(ctx, broken, t, before)
	}
	if err == nil && r.Outage {
		err = r.outageEnds(ctx, t)
	}
	if err != nil {
		return err
	}
	return r.finish(ctx, t)
}

// use makes the target the generation in use.
func (r *Run) use(ctx context.Context, s *seen, t Target) error {
	r.stale = map[string]bool{}
	if s.generations.InUse.Digest == t.Digest {
		return nil
	}
	for name, report := range s.reports {
		r.stale[name] = report.Trial != nil && report.Trial.State == facts.TrialReturned
	}
	if err := r.awaitVoters(ctx, s); err != nil {
		return err
	}
	err := r.Cluster.Propose(ctx, s.generations, t.Generation, r.Alone)
	var few *agree.NoMajority
	switch {
	case errors.As(err, &few) && few.Forgot != nil:
		return fmt.Errorf("generation %d is not in use: %w; if nobody else is changing this cluster: --alone", t.Number, err)
	case err != nil:
		return fmt.Errorf("generation %d is not in use: %w", t.Number, err)
	}
	r.Wait.Say("generation %d is in use", t.Number)
	return nil
}

// canMake fails if what the machines of these steps are made from is not there.
func (r *Run) canMake(steps []Step) error {
	var names []string
	for _, s := range steps {
		if s.Action == Replace || s.Action == Add {
			names = append(names, s.Node)
		}
	}
	if names == nil || r.Cluster.Machines == nil {
		return nil
	}
	return r.Cluster.Machines.CheckReplace(names...)
}

func (r *Run) write(t Target) error {
	err := r.Write(t)
	r.written = err == nil
	return err
}

// notReady says that nodes do not work with their new seeds, and why.
type notReady struct{ why map[string]error }

func (e *notReady) Error() string {
	var said []string
	for _, name := range slices.Sorted(maps.Keys(e.why)) {
		said = append(said, fmt.Sprintf("%s does not become ready: %v", name, e.why[name]))
	}
	return strings.Join(said, "; ")
}

// carryOut takes the nodes to the target, which is in use, one round after the other. With canary, if the first node to change gets a
// new machine, it must be ready for a while before the next changes; a node that takes over its seed must in any case.
func (r *Run) carryOut(ctx context.Context, t Target, canary bool) error {
	yielded := map[string]bool{}
	for {
		s, err := r.look(ctx, t)
		if err != nil {
			return err
		}
		if waited, err := r.settle(ctx, s, t); err != nil {
			return err
		} else if waited {
			continue // what was seen is not what is
		}
		steps, err := Plan(s.State)
		if err != nil || len(steps) == 0 {
			return err
		}
		if steps[0].outage {
			if err := r.outage(ctx, s, t, steps); err != nil {
				return err
			}
			canary = false
			continue
		}
		if step := steps[0]; step.Action == Await {
			if err := r.await(ctx, s, step.Node, step.Node+" is not changed", func(facts.NodeReport) bool { return true }); err != nil {
				return err
			}
			continue
		}
		if moved, err := r.yield(ctx, s, yielded); err != nil {
			return err
		} else if moved {
			continue
		}
		for i, step := range steps {
			if step.Round != steps[0].Round {
				break
			}
			if err := r.step(ctx, s, t, step, canary); err != nil {
				// What others of the round have begun must have ended before anything else is done.
				if i > 0 && ctx.Err() == nil {
					if broken := r.others(ctx, t); broken != nil {
						return broken
					}
				}
				return err
			}
		}
		canary = canary && (steps[0].Action == Stop || steps[0].Action == Remove)
	}
}

// others waits until no node is on trial; not nil: some have failed.
func (r *Run) others(ctx context.Context, t Target) (broken *notReady) {
	if s, err := r.look(ctx, t); err == nil {
		_, err = r.settle(ctx, s, t)
		errors.As(err, &broken)
	}
	return broken
}

// step carries out a step once it may begin.
func (r *Run) step(ctx context.Context, s *seen, t Target, step Step, canary bool) error {
	if err := r.needs(ctx, s, step); err != nil {
		return err
	}
	if err := r.handOver(ctx, s, step); err != nil {
		return err
	}
	if err := r.agree(ctx, s, t, step); err != nil {
		return err
	}
	return r.do(ctx, s, t, step, canary)
}

// do carries out a step.
func (r *Run) do(ctx context.Context, s *seen, t Target, step Step, canary bool) error {
	node := step.Node
	switch step.Action {
	case TakeOver:
		if err := r.takeOver(ctx, s, t, node); err != nil {
			return err
		}
		r.Wait.Say("%s: takes over its new seed", node)
	case Stop, Remove:
		return r.turnOff(ctx, s, step)
	case Replace, Add:
		r.Wait.Say("%s: gets a new machine", node)
		if err := r.Cluster.ReplaceMachine(ctx, r.Wait, node); err != nil {
			return err
		}
		nodes, err := r.Cluster.WaitReady(ctx, r.Wait, []string{node})
		if i := slices.IndexFunc(nodes, func(n operate.NodeStatus) bool { return n.Node == node }); err != nil && i >= 0 {
			err = fmt.Errorf("after %s it is %s", r.Wait.Timeout, strings.TrimSuffix(nodes[i].State+": "+nodes[i].Detail, ": "))
		}
		if err == nil && canary {
			err = r.calm(ctx, t.address(node), node)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return &notReady{map[string]error{node: err}}
		}
		r.Wait.Say("%s: ready", node)
	}
	return nil
}

// takeOver has a node's agent take over its seed. A node that has missed that the generation is in use hears it from others soon.
func (r *Run) takeOver(ctx context.Context, s *seen, t Target, node string) error {
	b, err := t.bundle(node)
	if err != nil {
		return err
	}
	r.stale[node] = false
	for limit := time.Now().Add(hearLimit); ; {
		_, err := r.Cluster.Agents.TakeOver(ctx, node, s.addresses[node], b)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s does not take over its seed: %w", node, err)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// turnOff turns a node's machine off.
func (r *Run) turnOff(ctx context.Context, s *seen, step Step) error {
	if r.Power != nil {
		if err := r.Power.Kill(ctx, step.Node); err != nil {
			return err
		}
		r.Wait.Say("%s: off", step.Node)
		return nil
	}
	r.Wait.Say("%s: turn its machine off now (%s)", step.Node, strings.Join(step.Why, "; "))
	ip := s.addresses[step.Node]
	limit := time.Now().Add(r.Wait.Timeout)
	for {
		if _, err := r.Cluster.Agents.Ask(ctx, step.Node, ip); err != nil {
			return ctx.Err()
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s still answers after %s: turn its machine off and run again, this goes on", step.Node, r.Wait.Timeout)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// yield has a master that moves to another address, or leaves, hand over before anything else changes, and tells whether it has: load
// balancers know its new address, or forget it, before it goes, and would send to nobody meanwhile. Once is enough, unless it has become the
// master again; an earlier agent hands over nothing.
func (r *Run) yield(ctx context.Context, s *seen, yielded map[string]bool) (bool, error) {
	for _, n := range s.Nodes {
		out := slices.ContainsFunc(s.Roles, func(role Role) bool { return role.Name == n.Role && s.down(role) }) // with all others of its role
		if n.Was == nil || n.stays() || n.done() || out || !operate.IsMaster(s.reports[n.Name]) {
			yielded[n.Name] = false
			continue
		}
		if yielded[n.Name] || !slices.ContainsFunc(s.of(n.Role), func(o Node) bool { return o.stays() && o.Ready }) {
			continue
		}
		yielded[n.Name] = true
		return true, r.Cluster.HandOver(ctx, r.Wait, n.Name, n.Name+" is not changed", s.addresses)
	}
	return false, nil
}

// handOver has the node of a step hand over what it leads, before its daemons stop. Where no other node works, nobody could take over.
func (r *Run) handOver(ctx context.Context, s *seen, step Step) error {
	if len(step.Needs) == 0 || s.node(step.Node).Leads == "" || !s.stops(step) {
		return nil
	}
	if err := r.Cluster.HandOver(ctx, r.Wait, step.Node, step.Node+" is not changed", s.addresses); err != nil {
		return err
	}
	return r.needs(ctx, s, step) // others may have to follow a new master first
}

// seedOf returns the digest of a node's seed; empty: the target has no such node.
func (t Target) seedOf(node string) string {
	m, _ := t.Member(node)
	return m.Seed
}

// address returns where the target has a node.
func (t Target) address(node string) netip.Addr {
	m, _ := t.Member(node)
	ip, _ := netip.ParseAddr(m.IP) // a manifest's addresses have been checked
	return ip
}

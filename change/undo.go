package change

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"imagegen/cloudinit"
	"imagegen/cluster/facts"
	"imagegen/internal/words"
)

// Earlier keeps what undoing a change takes, for as long as a node may need it: a machine that is made anew has no earlier seed to go back
// to, and an operator may be interrupted.
type Earlier interface {
	// Generation returns the generation that Keep was called with last; nil: nothing is kept.
	Generation() *facts.Generation
	// Seed returns a node's seed with this digest, if it is kept.
	Seed(node, digest string) (cloudinit.Seed, bool)
	// Image tells whether an earlier image of a role is kept. Write puts it back.
	Image(role, identity string) bool
	// Keep keeps a generation and the seeds of its members that are known. Others with the same digest stay.
	Keep(Target) error
	// BeginOutage notes which generation is in use, before so many nodes are turned off that nobody could say.
	BeginOutage(facts.Generation) error
	// Outage returns what BeginOutage has noted; nil: nothing.
	Outage() *facts.Generation
	// Erase erases all that is kept.
	Erase() error
}

// remember gets the earlier seeds of the nodes that change or have changed, and keeps them until all run the target. Nothing has changed
// yet, or they were kept before it did.
func (r *Run) remember(ctx context.Context, s *seen, t, before Target) error {
	if before.Digest == t.Digest {
		return nil
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, was := range before.Members {
		name := was.Name
		if is, ok := t.Member(name); ok && is == was {
			continue
		}
		if seed, ok := r.Earlier.Seed(name, was.Seed); ok {
			before.Seeds[name] = seed
			continue
		}
		report, answers := s.reports[name]
		if !answers || report.Seed != was.Seed && (report.Trial == nil || report.Trial.Previous != was.Seed) {
			continue
		}
		asking.Go(func() {
			kept, err := r.Cluster.KeptSeed(ctx, name, s.addresses[name], was.Seed)
			if err != nil {
				return // what is missing is said when it is needed
			}
			mu.Lock()
			defer mu.Unlock()
			before.Seeds[name] = cloudinit.Seed{MetaData: kept.MetaData, NetworkConfig: kept.NetworkConfig, UserData: kept.UserData, Generation: kept.Generation}
		})
	}
	asking.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := r.Earlier.Keep(before); err != nil {
		return fmt.Errorf("keep generation %d, in case the change must be undone: %w", before.Number, err)
	}
	return nil
}

// finish erases what undoing the change would have taken, on the nodes and here: all nodes run the target, and one that was given up
// needs only its part of that when it comes back. A crash leaves it to the next Apply with nothing to do.
func (r *Run) finish(ctx context.Context, t Target) error {
	s, err := r.look(ctx, t)
	if err != nil {
		return fmt.Errorf("all nodes run generation %d, but the earlier one was not erased: %w; run again, this goes on", t.Number, err)
	}
	for _, name := range slices.Sorted(maps.Keys(s.reports)) {
		trial := s.reports[name].Trial
		if trial == nil || trial.State != facts.TrialPassed || trial.Seed != t.seedOf(name) {
			continue
		}
		for limit := time.Now().Add(hearLimit); ; {
			err := r.Cluster.Agents.Confirm(ctx, name, s.addresses[name], trial.Seed)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if time.Now().After(limit) {
				return fmt.Errorf("all nodes run generation %d, but %s has not erased its earlier seed: %w; run again, this goes on", t.Number, name, err)
			}
			if err := pause(ctx); err != nil {
				return err
			}
		}
	}
	if err := r.Earlier.Erase(); err != nil {
		return fmt.Errorf("all nodes run generation %d, but the earlier one was not erased here: %w", t.Number, err)
	}
	return nil
}

// undo takes all nodes that have changed back to what they were, as a generation of its own.
func (r *Run) undo(ctx context.Context, broken *notReady, t, before Target) error {
	stopped := func(format string, args ...any) error {
		return fmt.Errorf("%w; the change stops here and is not undone: %s; nodes with the old and with the new configuration go on working side by side", broken, fmt.Sprintf(format, args...))
	}
	s, err := r.look(ctx, t)
	if err != nil {
		return stopped("%v", err)
	}
	var moved, missing, images, again []string
	for _, n := range s.Nodes {
		was, had := before.Member(n.Name)
		is, has := t.Member(n.Name)
		if !had || !has || was == is || !n.done() && broken.why[n.Name] == nil || n.Seed == was.Seed && was.Image == is.Image {
			continue
		}
		moved = append(moved, n.Name)
		if r.Outage && was.IP != is.IP {
			again = append(again, n.Name)
		}
		if _, ok := before.Seeds[n.Name]; !ok && was.Seed != is.Seed {
			missing = append(missing, n.Name)
		}
		if was.Image != "" && was.Image != is.Image && !r.Earlier.Image(was.Role, was.Image) {
			images = append(images, n.Name)
		}
	}
	switch {
	case images != nil:
		return stopped("the earlier image of %s is no longer there; build it from the earlier spec, and apply that", words.List(images, "and"))
	case again != nil:
		return stopped("%s would get their earlier addresses in another outage; apply the earlier spec with --outage", words.List(again, "and"))
	case missing != nil:
		return stopped("the earlier seed of %s is not known here; apply the earlier spec", words.List(missing, "and"))
	}
	m := before.Manifest
	m.Secrets = t.Secrets
	g, err := r.Number(m, t.Generation)
	if err != nil {
		return stopped("%v", err)
	}
	back := Target{Generation: g, Seeds: map[string]cloudinit.Seed{}}
	for name, seed := range before.Seeds {
		seed.Generation = g.Signed
		back.Seeds[name] = seed
	}
	r.Wait.Say("%v; the change is being undone", broken)
	r.lost = map[string]bool{}
	for name := range broken.why {
		r.lost[name] = true
	}
	r.before = &t.Generation
	if s, err = r.look(ctx, back); err == nil {
		err = r.write(back)
	}
	if err == nil {
		err = r.use(ctx, s, back)
	}
	if err == nil {
		err = r.carryOut(ctx, back, false) // which has worked before
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return stopped("%v", err)
	}
	what := "no other node had changed"
	if moved = slices.DeleteFunc(moved, func(name string) bool { return broken.why[name] != nil }); len(moved) > 0 {
		what = words.List(moved, "and") + " went back as well"
	}
	if err := r.finish(ctx, back); err != nil {
		what += "; " + err.Error()
	}
	return fmt.Errorf("%w; the change is undone: generation %d has the earlier configuration again, and %s", broken, g.Number, what)
}

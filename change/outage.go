package change

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"imagegen/internal/words"
)

// moves returns how many nodes of a role there are before and after the change, how many are where they were, and which get another
// address, whatever has been done of it.
func (s State) moves(r Role) (before, after, stay int, moved []string) {
	for _, n := range s.Nodes {
		if n.Role != r.Name {
			continue
		}
		was := cmp.Or(n.Before, n.Was)
		if was != nil {
			before++
		}
		if n.Is != nil {
			after++
		}
		switch {
		case was == nil || n.Is == nil:
		case was.IP == n.Is.IP:
			stay++
		default:
			moved = append(moved, n.Name)
		}
	}
	return before, after, stay, moved
}

// down tells whether the nodes of a role get their addresses while all of them are off.
func (s State) down(r Role) bool {
	before, after, stay, moved := s.moves(r)
	few := r.Quorum && !r.Joint || r.Joint && (2*stay <= before || 2*stay <= after)
	return s.Outage && before > 0 && after > 0 && (s.Elsewhere || len(moved) > 0 && (few || stay == 0) || len(moved) > 1)
}

// outage returns the steps of all roles whose nodes get their addresses while all of them are off. Those that connect to others are
// turned off before those, and made anew after them. No node starts before all are off: so nobody goes on with data that others have
// not seen.
func (s State) outage(order []Role) (steps []Step) {
	var anew, await []Step
	var down []string
	for _, r := range order {
		if !s.down(r) {
			continue
		}
		down = append(down, r.Name)
		var made []Step
		for _, n := range s.of(r.Name) {
			switch {
			case n.leaves():
				if !n.Off {
					steps = append(steps, n.step(Remove))
				}
				continue
			case n.done():
				continue
			case n.Silent && n.Made:
				wait := n.step(Await, "its machine is made anew, and does not answer yet")
				wait.outage = true
				await = append(await, wait)
				continue
			case !n.Off:
				stop := n.step(Stop)
				stop.outage = true
				steps = append(steps, stop)
			}
			again := n.step(Replace, "its machine is off")
			switch {
			case n.Was == nil:
				again = n.step(Add, "the spec has added it")
			case n.Was.IP != n.Is.IP:
				again = n.step(Replace, fmt.Sprintf("its address changes from %s to %s", n.Was.IP, n.Is.IP))
			}
			again.Notes, again.outage = nil, true
			made = append(made, again)
		}
		anew = append(made, anew...)
	}
	for i := range steps {
		if steps[i].Action == Stop {
			steps[i].Why = []string{"it is off until all nodes of " + words.List(down, "and") + " have their new addresses"}
		}
	}
	if len(steps) > 0 {
		steps[0].Notes = append(steps[0].Notes, "the outage begins here")
	}
	if i := len(anew) - 1; i >= 0 {
		anew[i].Notes = []string{"the outage ends when all of them are ready"}
	}
	return slices.Concat(steps, anew, await)
}

// outageRefused returns why the nodes of a role cannot get other addresses while all of them are off.
func (s State) outageRefused(r Role) (reasons []string) {
	refuse := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	before, after, stay, moved := s.moves(r)
	if r.Quorum && before+after > 2*(stay+len(moved)) {
		refuse("members of %s would be added or removed, and others get new addresses in an outage: one after the other, in two changes", r.Name)
	}
	if lost := len(s.lost(r.Name)); r.Quorum && lost > 0 && 2*(before-lost) <= before {
		refuse("without %s, the others of %s would be no majority after the outage", words.List(s.lost(r.Name), "and"), r.Name)
	}
	for _, n := range s.Nodes {
		for _, o := range s.Nodes {
			was := cmp.Or(o.Before, o.Was)
			if r.Quorum && n.Role == r.Name && o.Role == r.Name && n.Name != o.Name && was != nil && n.Is != nil && n.Is.IP == was.IP {
				refuse("%s would get the address %s of %s, and what the data of %s say of that could mean either: in two changes, with another address in between", n.Name, was.IP, o.Name, r.Name)
			}
		}
	}
	return reasons
}

// outage turns nodes off, role by role, makes them anew, or waits for them, whichever the first of these steps does. What fails there is not undone: that
// would be another outage, perhaps in a network that is no longer there.
func (r *Run) outage(ctx context.Context, s *seen, t Target, steps []Step) error {
	if err := r.Earlier.BeginOutage(t.Generation); err != nil {
		return fmt.Errorf("note that an outage begins: %w", err)
	}
	if steps[0].anew() {
		for _, step := range steps {
			if step.Round != steps[0].Round {
				break
			}
			r.Wait.Say("%s: gets a new machine", step.Node)
			if err := r.Cluster.ReplaceMachine(ctx, r.Wait, step.Node); err != nil {
				return fmt.Errorf("%w; run again with --outage, this goes on", err)
			}
		}
		return r.outageEnds(ctx, t)
	}
	if steps[0].Action == Await {
		return r.outageEnds(ctx, t)
	}
	// All rounds: to look again takes seconds when nobody answers, and nothing that it shows would change what follows.
	for len(steps) > 0 && steps[0].outage && steps[0].Action == Stop {
		var names []string
		for round := steps[0].Round; len(steps) > 0 && steps[0].Round == round; steps = steps[1:] {
			names = append(names, steps[0].Node)
			if r.Power == nil {
				if err := r.turnOff(ctx, s, steps[0]); err != nil {
					return err
				}
			}
		}
		if r.Power != nil {
			if err := r.Power.Kill(ctx, names...); err != nil {
				return fmt.Errorf("%w; run again with --outage, this goes on", err)
			}
		}
		r.Wait.Say("%s: off", words.List(names, "and"))
	}
	return nil
}

// outageEnds waits until the nodes of the roles that had an outage are ready.
func (r *Run) outageEnds(ctx context.Context, t Target) error {
	s, err := r.look(ctx, t)
	if err != nil {
		return err
	}
	var names []string
	for _, role := range s.Roles {
		if !s.down(role) {
			continue
		}
		for _, n := range s.of(role.Name) {
			if n.Is != nil {
				names = append(names, n.Name)
			}
		}
	}
	if names == nil {
		return nil
	}
	if _, err := r.Cluster.WaitReady(ctx, r.Wait, names); err != nil {
		return fmt.Errorf("the nodes have their new addresses, but %w; imagegen status says what they wait for. Nothing is undone, as that takes another outage: "+
			"run again with --outage, and this goes on; or apply the earlier spec with --outage", err)
	}
	return nil
}

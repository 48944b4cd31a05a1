package operate

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"imagegen/cluster/facts"
)

// Replace replaces a node's machine and waits until the node is ready. What the node leads is handed over first. Replace fails while
// another node of the role is not ready, or nobody takes over, unless force says that data which only this node has may be lost.
func (c *Cluster) Replace(ctx context.Context, w Wait, name string, blank, force bool) error {
	if err := c.canReplace(name); err != nil {
		return err
	}
	nodes, err := c.status(ctx)
	if err == nil && !force {
		if err = c.unreachable(nodes); err == nil {
			err = othersReady(nodes, name)
		}
		if err != nil {
			err = fmt.Errorf("%w; --force replaces %s all the same", err, name)
		}
	}
	if err == nil {
		err = c.yield(ctx, w, nodes, name, force)
	}
	if err == nil {
		err = c.replaceMachine(ctx, w, name, blank)
	}
	if err != nil {
		return err
	}
	_, err = c.WaitReady(ctx, w, []string{name})
	return err
}

// ReplaceMachine replaces a node's machine, or makes its first, whatever the others of its role are, and does not wait until the node
// is ready.
func (c *Cluster) ReplaceMachine(ctx context.Context, w Wait, name string) error {
	if err := c.canReplace(name); err != nil {
		return err
	}
	return c.replaceMachine(ctx, w, name, false)
}

// othersReady fails if another node of the role is not ready.
func othersReady(nodes []NodeStatus, name string) error {
	var missing []string
	for _, n := range others(nodes, name) {
		if !n.Ready() {
			missing = append(missing, Describe(n))
		}
	}
	if missing != nil {
		return fmt.Errorf("not replaced: %s", strings.Join(missing, "; "))
	}
	return nil
}

// others returns the other nodes of a node's role that the spec has.
func others(nodes []NodeStatus, name string) (others []NodeStatus) {
	i := slices.IndexFunc(nodes, func(n NodeStatus) bool { return n.Node == name })
	for _, n := range nodes {
		if n.Role == nodes[i].Role && n.Build != BuildRemoved && n.Node != name {
			others = append(others, n)
		}
	}
	return others
}

// leads returns what nodes lead, by their names.
func leads(nodes []NodeStatus) map[string]string {
	reports, all := map[string]facts.NodeReport{}, map[string]string{}
	for _, n := range nodes {
		if n.report != nil {
			reports[n.Node] = *n.report
		}
	}
	for name := range reports {
		if what := Leads(name, reports); what != "" {
			all[name] = what
		}
	}
	return all
}

// yield has a node that leads hand that over before it is replaced. Then it waits for the others that were ready, because they may have to
// follow a new master first. Where no other node works, nobody could take over. With force, it does not insist.
func (c *Cluster) yield(ctx context.Context, w Wait, nodes []NodeStatus, name string, force bool) error {
	var work []string
	for _, n := range others(nodes, name) {
		if n.Ready() {
			work = append(work, n.Node)
		}
	}
	if len(work) == 0 || leads(nodes)[name] == "" {
		return nil
	}
	if force {
		w.Timeout = min(w.Timeout, followLimit)
	}
	at := map[string]netip.Addr{}
	for _, n := range nodes {
		if ip, err := netip.ParseAddr(n.Address); err == nil && n.report != nil {
			at[n.Node] = ip
		}
	}
	undone := name + " is not replaced"
	err := c.HandOver(ctx, w, name, undone, at)
	if err == nil {
		if _, err = c.WaitReady(ctx, w, work); err != nil {
			err = fmt.Errorf("%s: %w", undone, err)
		}
	}
	if err != nil && force && ctx.Err() == nil {
		w.say("%s: --force waits no longer for others to take over", name)
		return nil
	}
	return err
}

// Roll replaces the outdated ones of the named nodes, one at a time, role by role in the spec's order. It calls replaced after each.
func (c *Cluster) Roll(ctx context.Context, w Wait, names []string, replaced func(node string)) error {
	if err := c.canReplace(names...); err != nil {
		return err
	}
	if err := c.canRoll(names); err != nil {
		return err
	}
	for _, r := range c.Spec.Roles {
		var members []string
		for _, n := range r.Nodes {
			if slices.Contains(names, n.Name) {
				members = append(members, n.Name)
			}
		}
		if err := c.rollRole(ctx, w, members, replaced); err != nil {
			return err
		}
	}
	return nil
}

// rollRole is Roll of nodes of one role.
func (c *Cluster) rollRole(ctx context.Context, w Wait, names []string, replaced func(node string)) error {
	some := false
	for {
		all, err := c.Status(ctx)
		if err == nil {
			err = unasked(among(all, names))
		}
		if err != nil {
			return err
		}
		next, more := nextToRoll(among(all, names), leads(all))
		if !more {
			if some { // also wait for the last one
				_, err = c.WaitReady(ctx, w, names)
			}
			return err
		}
		began := time.Now()
		all, err = c.waitFor(ctx, w, names, func(nodes []NodeStatus) bool { return settled(nodes, time.Since(began)) })
		if err != nil {
			return fmt.Errorf("%s is not replaced: %w", next, err)
		}
		nodes := among(all, names)
		if err := unasked(nodes); err != nil {
			return err
		}
		next, _ = nextToRoll(nodes, leads(all))
		for _, n := range nodes {
			if n.Node != next && n.Power == PowerOff {
				return fmt.Errorf("%s is not replaced: %s is off: imagegen start %[2]s", next, n.Node)
			}
		}
		if err := c.yield(ctx, w, all, next, false); err != nil {
			return err
		}
		if err := c.replaceMachine(ctx, w, next, false); err != nil {
			return err
		}
		some = true
		replaced(next)
	}
}

// unasked is the error that the provider could not be asked. Without it, a node whose image alone is older passes for current.
func unasked(nodes []NodeStatus) error {
	for _, n := range nodes {
		if n.unasked {
			return fmt.Errorf("the roll stops before %s: the provider of the machines does not answer, so their images are not known; imagegen roll goes on later", n.Role)
		}
	}
	return nil
}

// nextToRoll returns which node of a role to replace next; false if none is outdated. Nodes that are on but not ready come first, because
// they serve nobody, and those that lead last, so that they hand over once, to one that stays.
func nextToRoll(nodes []NodeStatus, leads map[string]string) (name string, more bool) {
	for _, n := range nodes {
		if n.Build == BuildCurrent {
			continue
		}
		if !n.Ready() && n.Power != PowerOff {
			return n.Node, true
		}
		if !more || leads[name] != "" && leads[n.Node] == "" {
			name, more = n.Node, true
		}
	}
	return name, more
}

// settled tells whether waiting longer is pointless: no node of the role, watched for this long, will become ready before another is
// replaced or turned on. Current nodes must become ready, unless they wait for outdated nodes that are not ready either. Outdated
// nodes need only have failed, or not have become ready for a while.
func settled(nodes []NodeStatus, watched time.Duration) bool {
	broken := 0 // and to be replaced
	for _, n := range nodes {
		if n.Build != BuildCurrent && !n.Ready() {
			broken++
		}
	}
	for _, n := range nodes {
		state := facts.State(n.State)
		ended := n.Ready() || n.Power == PowerOff
		if n.Build == BuildCurrent {
			ended = ended || broken > 0 && state == facts.Waiting && watched >= patience
		} else {
			ended = ended || state == facts.Failed || state == facts.Stopped || watched >= patience
		}
		if !ended {
			return false
		}
	}
	return true
}

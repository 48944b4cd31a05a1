package operate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"imagegen/cluster/facts"
)

// Decide lets a component go on without silent nodes, all of the same role. It tells all nodes of the role that answer, so that
// they agree on who goes first, and returns those that took the decision.
func (c *Cluster) Decide(ctx context.Context, component string, without []string) (told []string, err error) {
	nodes, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	role, asked := "", 0
	for _, n := range nodes {
		if slices.Contains(without, n.Node) {
			role = n.Role
		}
	}
	var errs []error
	for _, n := range nodes {
		if n.Role != role || n.Build == BuildRemoved || slices.Contains(without, n.Node) || n.Components == nil {
			continue
		}
		ip, err := netip.ParseAddr(n.Address)
		if err != nil {
			return nil, err
		}
		asked++
		if err := c.Agents.decide(ctx, n.Node, ip, facts.Decision{Component: component, Without: without}); err != nil {
			errs = append(errs, err)
			continue
		}
		told = append(told, n.Node)
	}
	if asked == 0 {
		return nil, fmt.Errorf("no other node of %s answers", role)
	}
	if len(told) == 0 {
		return nil, errors.Join(errs...)
	}
	return told, nil
}

// patience is how long a component may wait for silent nodes before it looks as if they will not come.
const patience = time.Minute

// Undecided says what an operator may decide, one line for each component that waits for silent nodes.
func Undecided(nodes []NodeStatus, now time.Time) []string {
	var lines []string
	for _, n := range nodes {
		for name, r := range n.Components {
			if r.Status.Missing == "" || now.Sub(r.Since) < patience {
				continue
			}
			line := fmt.Sprintf("%s waits for %s. If a node will never come back: imagegen replace --blank NODE, or imagegen decide %s --without NODE; what only that node has is then lost.",
				name, strings.ReplaceAll(r.Status.Missing, ",", ", "), name)
			if !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

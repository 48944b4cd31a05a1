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

// Decide lets a component continue without silent nodes, all of one role. It sends the decision to every node of the role that answers,
// so that they agree which one starts first, and returns those that accepted it.
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

// patience is how long a component may wait for silent nodes before an operator is told what to do.
const patience = time.Minute

// Undecided returns, for each component that waits for silent nodes, a line that says what an operator may decide.
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

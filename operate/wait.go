package operate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"imagegen/internal/words"
)

const (
	// askEvery is the interval between requests to awaited nodes.
	askEvery = 500 * time.Millisecond
	// knownEvery is the interval between requests to their provider, which runs a program or asks each host.
	knownEvery = 5 * time.Second
)

// Wait says how long to wait for nodes, and who is shown the progress.
type Wait struct {
	Timeout time.Duration
	// Progress, if set, is called with each status of the awaited nodes.
	Progress func(nodes []NodeStatus)
	// Say, if set, is called with what else an operator should know.
	Say func(format string, args ...any)
}

func (w Wait) say(format string, args ...any) {
	if w.Say != nil {
		w.Say(format, args...)
	}
}

// WaitReady waits until the named nodes are ready. It returns the last status of all nodes, also after a timeout.
func (c *Cluster) WaitReady(ctx context.Context, w Wait, names []string) ([]NodeStatus, error) {
	return c.waitFor(ctx, w, names, nil)
}

// waitFor is WaitReady that also ends when enough, if not nil, returns true for the named nodes.
func (c *Cluster) waitFor(ctx context.Context, w Wait, names []string, enough func([]NodeStatus) bool) ([]NodeStatus, error) {
	limited, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	var nodes []NodeStatus
	var machines []Machine
	var asked time.Time // the provider
	for {
		var err error
		if time.Since(asked) >= knownEvery {
			asked = time.Now()
			machines, err = c.known(limited)
		}
		var now []NodeStatus
		if err == nil {
			now, err = c.ask(limited, machines)
		}
		if err == nil {
			nodes = now
		} else if limited.Err() == nil {
			return nil, err
		}
		some := among(nodes, names)
		var missing []string
		for _, n := range some {
			if !n.Ready() {
				missing = append(missing, n.Node)
			}
		}
		if nodes != nil && (len(missing) == 0 || enough != nil && enough(some)) {
			if w.Progress != nil {
				w.Progress(some)
			}
			return nodes, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if limited.Err() != nil {
			if err := c.unreachable(nodes); err != nil && nodes != nil {
				return nodes, fmt.Errorf("not ready within %s: %w", w.Timeout, err)
			}
			return nodes, fmt.Errorf("%d of %s not ready within %s: %s", len(missing), words.Count(len(names), "node"), w.Timeout, cmp.Or(strings.Join(missing, ", "), "no answer"))
		}
		if w.Progress != nil {
			w.Progress(some)
		}
		select {
		case <-tick.C:
		case <-limited.Done():
		}
	}
}

// among returns the named ones of nodes.
func among(nodes []NodeStatus, names []string) []NodeStatus {
	var some []NodeStatus
	for _, n := range nodes {
		if slices.Contains(names, n.Node) {
			some = append(some, n)
		}
	}
	return some
}

// Describe returns a line with a node's state.
func Describe(n NodeStatus) string {
	if n.Detail == "" {
		return fmt.Sprintf("%s: %s", n.Node, n.State)
	}
	return fmt.Sprintf("%s: %s: %s", n.Node, n.State, n.Detail)
}

package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"imagegen/cluster/expected"
)

// canReplace fails if nodes cannot be replaced now.
func (c *Cluster) canReplace(names ...string) error {
	switch {
	case c.Machines != nil:
		return c.Machines.CheckReplace(names...)
	case c.Tell == nil:
		return errors.New("no provider is known that makes this cluster's machines")
	}
	return nil
}

// canRoll fails if it is not known which nodes are outdated.
func (c *Cluster) canRoll(names []string) error {
	if c.Machines != nil {
		return nil
	}
	if c.Expected == nil {
		return errors.New("it is not known which nodes are older: expected.json is missing; imagegen seed writes it into the output folder")
	}
	var missing []string
	for _, name := range names {
		if n, ok := c.Expected.Node(name); !ok || n.Seed == "" {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return fmt.Errorf("expected.json has no seed of %s: imagegen seed makes what is missing", strings.Join(missing, ", "))
	}
	return nil
}

// replaceMachine replaces a node's machine through the provider. Without one, it tells a person to, and waits for the new machine.
func (c *Cluster) replaceMachine(ctx context.Context, w Wait, name string, blank bool) error {
	if c.Machines != nil {
		return c.Machines.Replace(ctx, name, blank)
	}
	node, ok := c.Spec.Node(name)
	if !ok {
		return fmt.Errorf("cluster %s has no node %s", c.Spec.Cluster, name)
	}
	// If the old machine does not answer now, only image and seed distinguish its successor.
	before, _ := c.Agents.Ask(ctx, name, node.IP)
	var want expected.Node
	if c.Expected != nil {
		want, _ = c.Expected.Node(name)
	}
	c.Tell(node, blank)
	limited, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	waits := ""
	for {
		r, err := c.Agents.Ask(limited, name, node.IP)
		switch {
		case err != nil && limited.Err() != nil: // the request was cut short
			waits = cmp.Or(waits, "for its new machine to answer")
		case err != nil:
			waits = "for its new machine to answer"
		case r.Machine == "" || r.Machine == before.Machine:
			waits = "for its new machine: the old one still answers"
			if r.Machine == "" && before.Machine == "" {
				waits = "for its new machine: what answers is of an image that does not tell machines apart"
			}
		case want.Seed != "" && r.Seed != want.Seed:
			waits = "for its new machine: the one that answers has another seed"
		case otherImage(want.Image, r.Image):
			waits = "for its new machine: the one that answers has another image"
		default:
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if limited.Err() != nil {
			return fmt.Errorf("%s is not replaced: it waited %s within %s; run again, this goes on", name, waits, w.Timeout)
		}
		if w.Progress != nil {
			w.Progress([]NodeStatus{{Node: name, Role: node.Role, State: "waiting", Detail: waits}})
		}
		select {
		case <-tick.C:
		case <-limited.Done():
		}
	}
}

package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/words"
)

// handoverLimit is longer than an agent takes to hand over.
const handoverLimit = 45 * time.Second

// HandOver has a node hand over what it leads to others of its role, and returns what has moved. A node whose agent is of an imagegen
// that cannot do that hands over nothing. A HandoverRefused says why nobody takes over.
func (a *Agents) HandOver(ctx context.Context, node string, ip netip.Addr) ([]string, error) {
	answer, _, err := a.requestWithin(ctx, max(handoverLimit, a.Limit), node, ip, http.MethodPost, facts.HandoverPath, nil)
	var refused refusal
	switch {
	case errors.As(err, &refused) && refused.code == http.StatusNotFound:
		return nil, nil
	case errors.As(err, &refused):
		return nil, &HandoverRefused{refused.text}
	case err != nil:
		return nil, err
	}
	var h facts.Handover
	if err := json.Unmarshal(answer, &h); err != nil {
		return nil, fmt.Errorf("the answer of %s does not say what it has handed over", words.Quote(node))
	}
	return h.Moved, nil
}

// HandoverRefused is why a node goes on leading, as opposed to why it could not be asked.
type HandoverRefused struct{ Why string }

func (e *HandoverRefused) Error() string { return e.Why }

// IsMaster tells whether a node has the master of its role.
func IsMaster(r facts.NodeReport) bool {
	return slices.ContainsFunc(r.Order, func(name string) bool { return r.Components[name].Is == "master" })
}

// Leads says what a node leads, and so why it should be the last of its role to stop; empty: nothing, as far as the reports of all nodes
// that answer say.
func Leads(node string, reports map[string]facts.NodeReport) string {
	r, ok := reports[node]
	if !ok {
		return ""
	}
	if alone := slices.DeleteFunc(slices.Clone(r.Holds), func(address string) bool { return held(address, node, reports) }); len(alone) > 0 {
		return "holds " + strings.Join(alone, " and ")
	}
	if IsMaster(r) {
		return fmt.Sprintf("is the master of %s", r.Node.Role)
	}
	for _, name := range slices.Sorted(maps.Keys(reports)) {
		other := reports[name]
		for _, c := range other.Components {
			sends, ok := strings.CutPrefix(c.Is, "sending ")
			if !ok || len(other.Holds) == 0 {
				continue
			}
			for to := range strings.SplitSeq(sends, ", ") {
				if what, server, _ := strings.Cut(to, " to "); server == node {
					return fmt.Sprintf("gets what %s sends to %s", name, what)
				}
			}
		}
	}
	return ""
}

// held tells whether another node of a node's role says that it holds an address as well. Nodes with different VRRP settings do not hear each
// other, and none would give it up for long: there is nothing to hand over.
func held(address, node string, reports map[string]facts.NodeReport) bool {
	for name, r := range reports {
		if name != node && r.Node.Role == reports[node].Node.Role && slices.Contains(r.Holds, address) {
			return true
		}
	}
	return false
}

// followLimit is how long load balancers may take to send to another node: some checks, and then the agents that report it.
const followLimit = 20 * time.Second

// HandOver has a node that leads hand that over, before its daemons stop, and waits until others lead. A refusal is shown, and asked about
// again until w's timeout; a node that has become silent has nothing left to hand over. at are the addresses of all nodes that answer,
// and undone, with which an error begins, is what is not done to the node.
func (c *Cluster) HandOver(ctx context.Context, w Wait, node, undone string, at map[string]netip.Addr) error {
	limit := time.Now().Add(w.Timeout)
	for said := ""; ; {
		moved, err := c.Agents.HandOver(ctx, node, at[node])
		var refused *HandoverRefused
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			if len(moved) > 0 {
				w.say("%s: has handed over %s", node, words.List(moved, "and"))
			}
			return c.follow(ctx, node, at, limit)
		case !errors.As(err, &refused):
			// It may have done it, or be silent by now; the next answer tells.
			if _, asked := c.Agents.Ask(ctx, node, at[node]); asked != nil {
				return ctx.Err() // nothing is left that it could lead
			}
		case c.holdsTwice(ctx, node, at):
			return ctx.Err() // and it refuses, because the address comes back
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s: within %s, nobody takes over what it leads: %w; run again, this goes on", undone, w.Timeout, err)
		}
		if waits := err.Error(); waits != said {
			said = waits
			w.say("%s yet: %s", undone, waits)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askEvery):
		}
	}
}

// follow waits until all nodes say that another one leads: load balancers take some checks to find out. It does not wait for ever,
// because one may have no other server left that works for all it sends.
func (c *Cluster) follow(ctx context.Context, node string, at map[string]netip.Addr, limit time.Time) error {
	if soon := time.Now().Add(followLimit); soon.Before(limit) {
		limit = soon
	}
	for {
		if ctx.Err() != nil || Leads(node, c.reportsOf(ctx, at)) == "" || time.Now().After(limit) {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askEvery):
		}
	}
}

// holdsTwice tells whether a node holds addresses, others of its role hold them all as well, and it leads nothing else.
func (c *Cluster) holdsTwice(ctx context.Context, node string, at map[string]netip.Addr) bool {
	reports := c.reportsOf(ctx, at)
	return len(reports[node].Holds) > 0 && Leads(node, reports) == ""
}

// reportsOf returns what the nodes at these addresses report, of those that answer.
func (c *Cluster) reportsOf(ctx context.Context, at map[string]netip.Addr) map[string]facts.NodeReport {
	reports := map[string]facts.NodeReport{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for name, ip := range at {
		asking.Go(func() {
			if report, err := c.Agents.Ask(ctx, name, ip); err == nil {
				mu.Lock()
				reports[name] = report
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	return reports
}

package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/cluster/facts"
	"imagegen/internal/words"
)

// Cluster is a cluster under operation.
type Cluster struct {
	Spec     *cluster.Spec
	Agents   *Agents
	Machines Machines // nil: there is no provider
	// Elsewhere has addresses that nodes may have instead of the spec's.
	Elsewhere []facts.Member
	// Expected says which image and seed each node should have, for nodes that the provider does not know; nil: not known.
	Expected *expected.Expected
	// Tell asks a person to recreate a node's machine, with an empty data disk if blank is set. It is used without a provider; nil: nodes
	// cannot be replaced.
	Tell func(node cluster.Node, blank bool)
}

// Machines is the provider of the cluster's machines, or the lab.
type Machines interface {
	// Known returns the machines of the spec's nodes, in the spec's order, followed by those of nodes that are no longer in the spec.
	Known(ctx context.Context) ([]Machine, error)
	// CheckReplace fails if nodes cannot be replaced now, for example because their images have not been built.
	CheckReplace(names ...string) error
	// Replace replaces a node's machine with one made from the last build. The data disk is kept, unless blank is set.
	Replace(ctx context.Context, node string, blank bool) error
	// Console writes the console output of a node's machine to w: until now or, if follow is set, until ctx ends.
	Console(ctx context.Context, w io.Writer, node string, follow bool) error
}

// Machine is what its provider knows about a node's machine.
type Machine struct {
	Node   cluster.Node // its address is the one that it has now
	Power  string       // one of the constants below
	Since  time.Time    // when it was turned on; zero: not known
	Build  string       // one of the constants below, or empty: not made yet
	Host   string       // the computer that carries it; empty: not known, or there is one only
	Detail string       // what an operator should know of a machine that is not on
	// Unasked means that the provider did not answer, so only the agents' reports are known.
	Unasked bool
}

// Values of NodeStatus.Power.
const (
	PowerOn      = "on"
	PowerOff     = "off"
	PowerUnknown = "unknown"
)

// Values of NodeStatus.State that do not come from an agent.
const (
	Off    = "off"
	Silent = "silent" // not known to be off, and its agent does not answer (yet)
)

// Values of NodeStatus.Build.
const (
	BuildCurrent = "current" // the image and the seed that build made last
	BuildOlder   = "older"   // an earlier image or an earlier seed: replace and roll renew the node
	BuildRemoved = "removed" // the spec no longer has the node
	BuildUnknown = "unknown" // the node does not say, or there is nothing to compare with
)

// NodeStatus is the state of a node.
type NodeStatus struct {
	Node    string `json:"node"`
	Role    string `json:"role"`
	Address string `json:"address"`
	Power   string `json:"power"` // on, off or unknown
	// State is ready when all components are, else the state of the component that matters most (see
	// urgency), or off, or silent.
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"` // when State began, as far as it is known
	Host  string    `json:"host,omitempty"`
	// Is is the node's part in its role: the virtual address that it holds, whether its Redis is the master, the size of its database's
	// component, which servers its load balancer uses.
	Is string `json:"is,omitempty"`
	// Warnings need an operator's attention although the node is ready.
	Warnings []string `json:"warnings,omitempty"`
	// Detail says which component waits for what.
	Detail     string                           `json:"detail,omitempty"`
	Components map[string]facts.ComponentReport `json:"components,omitempty"` // without their raw reports
	Error      string                           `json:"error,omitempty"`      // why the agent could not be asked
	// Generation is the number of the generation that the node conforms to; 0: its seed belongs to none, or is not known.
	Generation int `json:"generation,omitempty"`
	// Build compares the node with the spec and the last build: one of the constants above, or empty if it has no machine.
	Build string `json:"build,omitempty"`

	unasked bool              // see Machine
	report  *facts.NodeReport // of its agent; nil: it does not answer
}

// Ready reports whether all of the node's components are ready.
func (s NodeStatus) Ready() bool { return s.State == string(facts.Ready) }

// urgency orders the states of components that are not ready: what an operator must look at comes first.
var urgency = map[facts.State]int{facts.Stopped: 4, facts.Failed: 3, facts.Working: 2, facts.Waiting: 1}

// add adds the report of the node's agent.
func (s *NodeStatus) add(r facts.NodeReport) {
	s.Components = map[string]facts.ComponentReport{}
	s.State, s.Since = string(facts.Ready), time.Time{}
	worst := 0
	var is []string
	for _, vip := range r.Holds {
		is = append(is, "holds "+vip)
	}
	for _, name := range r.Order {
		c, ok := r.Components[name]
		if !ok {
			continue
		}
		if c.Is != "" {
			is = append(is, name+": "+c.Is)
		}
		if c.Kind == "disk" && c.Status.State == facts.Ready && c.Status.Detail != "" {
			s.Warnings = append(s.Warnings, name+": "+c.Status.Detail)
		}
		c.Report = nil
		s.Components[name] = c
		u := urgency[c.Status.State]
		if u > worst { // of equals the first in order: the others often wait for it
			worst = u
			s.State, s.Since, s.Detail = string(c.Status.State), c.Since, name
			if c.Status.Detail != "" {
				s.Detail += ": " + c.Status.Detail
			}
		} else if worst == 0 && c.Since.After(s.Since) {
			s.Since = c.Since
		}
	}
	s.Is = strings.Join(is, ", ")
	if g := r.Generation; g != nil {
		s.Generation = g.Number
		switch {
		case g.Behind != "" && g.Number == 0:
			s.Warnings = append(s.Warnings, "its seed belongs to no generation: "+g.Behind)
		case g.Behind != "":
			s.Warnings = append(s.Warnings, fmt.Sprintf("runs generation %d: %s", g.Number, g.Behind))
		}
		if g.Error != "" {
			s.Warnings = append(s.Warnings, g.Error)
		}
	}
	if !r.Ready && worst == 0 {
		s.State, s.Since, s.Detail = string(facts.Working), time.Time{}, "the agent has not looked at everything yet"
	}
}

// Status asks all nodes concurrently and returns their status in the spec's order, followed by machines of nodes that are no longer in the
// spec. It fails if no node answers and nothing is known about any machine.
func (c *Cluster) Status(ctx context.Context) ([]NodeStatus, error) {
	nodes, err := c.status(ctx)
	if err == nil {
		err = c.unreachable(nodes)
	}
	if err != nil {
		return nil, err
	}
	return nodes, nil
}

// status is Status that does not fail if nothing is known.
func (c *Cluster) status(ctx context.Context) ([]NodeStatus, error) {
	machines, err := c.known(ctx)
	if err != nil {
		return nil, err
	}
	return c.ask(ctx, machines)
}

// ask asks the agents of the nodes whose machines are not off.
func (c *Cluster) ask(ctx context.Context, machines []Machine) ([]NodeStatus, error) {
	all := make([]NodeStatus, len(machines))
	var asking sync.WaitGroup
	for i, m := range machines {
		s := &all[i]
		*s = NodeStatus{Node: m.Node.Name, Role: m.Node.Role, Power: m.Power, State: Off, Since: m.Since, Host: m.Host, Build: m.Build, Detail: m.Detail, unasked: m.Unasked}
		if m.Node.IP.IsValid() {
			s.Address = m.Node.IP.String()
		}
		if m.Power == PowerOff {
			continue
		}
		s.State = Silent
		asking.Go(func() {
			r, err := c.Agents.Ask(ctx, m.Node.Name, m.Node.IP)
			if err != nil {
				s.Detail, s.Error = cmp.Or(m.Detail, "its agent does not answer"), err.Error()
				if trust := (untrusted{}); errors.As(err, &trust) {
					s.Detail = trust.Error()
				}
				return
			}
			s.add(r)
			s.report = &r
			if s.Build == BuildUnknown {
				s.Build = c.compare(s.Node, r.Made)
			}
		})
	}
	asking.Wait()
	return all, ctx.Err()
}

// compare compares the image and seed that a node reports with the expected ones. Images baked before imagegen wrote their identity into
// them report none; such nodes are compared only by their seed.
func (c *Cluster) compare(node string, made facts.Made) string {
	if c.Expected == nil || made.Seed == "" {
		return BuildUnknown
	}
	want, ok := c.Expected.Node(node)
	switch {
	case !ok || want.Seed == "":
		return BuildUnknown
	case want.Seed != made.Seed, otherImage(want.Image, made.Image):
		return BuildOlder
	}
	return BuildCurrent
}

// otherImage reports whether a node is known to have an unexpected image.
func otherImage(want, has string) bool { return want != "" && has != "" && want != has }

// known returns what the provider knows about the machines; without one, the spec's nodes.
func (c *Cluster) known(ctx context.Context) ([]Machine, error) {
	if c.Machines != nil {
		return c.Machines.Known(ctx)
	}
	nodes := c.Spec.Nodes()
	all := make([]Machine, len(nodes))
	for i, n := range nodes {
		all[i] = Machine{Node: n, Power: PowerUnknown, Build: BuildUnknown}
	}
	return all, nil
}

// unreachable returns an error with what was tried if no agent answered and no provider knows whether a machine is on.
func (c *Cluster) unreachable(nodes []NodeStatus) error {
	var reasons []string
	tried := map[string][]string{}
	for _, n := range nodes {
		if n.Power != PowerUnknown || n.Components != nil {
			return nil
		}
		if tried[n.Error] == nil {
			reasons = append(reasons, n.Error)
		}
		tried[n.Error] = append(tried[n.Error], n.Node+" ("+n.Address+")")
	}
	var said []string
	for _, reason := range reasons {
		who := tried[reason]
		if len(who) > 3 {
			who = append(who[:3:3], fmt.Sprintf("%d more", len(who)-3))
		}
		said = append(said, words.List(who, "and")+": "+reason)
	}
	return fmt.Errorf("no node of cluster %s can be asked (port %d): %s", c.Spec.Cluster, facts.APIPort, strings.Join(said, "; "))
}

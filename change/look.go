package change

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/distro"
	"imagegen/operate"
	"imagegen/roles"
)

// Target is a generation and the seeds of its members.
type Target struct {
	facts.Generation
	Seeds   map[string]cloudinit.Seed // by node
	Network netip.Prefix              // of its members; invalid: not known
}

// in tells whether an address is in the target's network.
func (t Target) in(ip netip.Addr) bool { return !t.Network.IsValid() || t.Network.Contains(ip) }

// bundle returns what a node's agent needs to take over its seed.
func (t Target) bundle(node string) (facts.Bundle, error) {
	seed := t.Seeds[node]
	b := facts.Bundle{Generation: t.Signed, MetaData: seed.MetaData, NetworkConfig: seed.NetworkConfig, UserData: seed.UserData, Files: map[string][]byte{}}
	files, err := seed.Files()
	for _, f := range files {
		if f.Path == facts.FactsPath {
			b.Facts = f.Content
		} else {
			b.Files[f.Path] = f.Content
		}
	}
	return b, err
}

// jointKinds are the kinds of components that decide with the members of two generations while the cluster changes from one to the
// other.
var jointKinds = []string{"galera", "gluster", "redis"}

// RolesOf returns what the catalogue says of these roles. Of one that it no longer has, the worst is assumed.
func RolesOf(c *roles.Catalogue, names []string) (all []Role) {
	for _, name := range names {
		role := c.Role(name)
		if name == "" { // of machines that are left over
			all = append(all, Role{})
			continue
		}
		if role == nil {
			all = append(all, Role{Name: name, Quorum: true})
			continue
		}
		r := Role{Name: name, Quorum: role.Quorum, VIP: role.VIP == cluster.VIPRequired || role.VIP == cluster.VIPOptional, Uses: slices.Clone(role.Needs)}
		r.Joint = role.Quorum && slices.ContainsFunc(role.Components, func(c roles.Component) bool { return slices.Contains(jointKinds, c.Kind) })
		for _, other := range names {
			o := c.Role(other)
			if o != nil && other != name && slices.ContainsFunc(o.Ports, func(p roles.Port) bool { return slices.Contains(p.From, name) }) {
				r.Uses = append(r.Uses, other)
			}
		}
		all = append(all, r)
	}
	return all
}

// seen is a state and what is needed to act on it.
type seen struct {
	State
	generations operate.Generations
	addresses   map[string]netip.Addr // where nodes answer
	reports     map[string]facts.NodeReport
}

// look asks all nodes what they are, and what taking over the target's seed would do to them.
func (r *Run) look(ctx context.Context, t Target) (*seen, error) {
	g, err := r.generation(ctx)
	switch {
	case err != nil:
		return nil, err
	case g.Uncertain != nil:
		return nil, g.Uncertain
	}
	s := &seen{generations: g, addresses: map[string]netip.Addr{}, reports: map[string]facts.NodeReport{}}
	s.Without, s.ByHand, s.Outage, s.Tied = r.Without, r.Cluster.Machines == nil, r.Outage, r.Tied

	machines := map[string]operate.Machine{}
	if r.Cluster.Machines != nil {
		all, err := r.Cluster.Machines.Known(ctx)
		if err != nil {
			return nil, err
		}
		for _, m := range all {
			if m.Unasked {
				return nil, errors.New("the provider of the machines does not answer, so it is not known which are off")
			}
			machines[m.Node.Name] = m
		}
	}
	before := r.previous(g, t)
	if r.before != nil {
		before = *r.before
	}
	for _, m := range before.Members {
		// A removed node is the last that runs the generation before, and then nobody else names it.
		if ip, err := netip.ParseAddr(m.IP); err == nil && !slices.ContainsFunc(g.Nodes, func(n operate.NodeGeneration) bool { return n.Node == m.Name }) {
			g.Nodes = append(g.Nodes, operate.NodeGeneration{Node: m.Name, Address: ip})
		}
	}
	s.generations = g
	plans := map[string]*facts.Plan{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, n := range g.Nodes {
		asking.Go(func() {
			report, err := r.Cluster.Agents.Ask(ctx, n.Node, n.Address)
			if err != nil {
				return
			}
			plan, err := r.ask(ctx, t, n, report)
			if err != nil {
				return // it counts as silent for now, rather than as one that must be replaced
			}
			mu.Lock()
			defer mu.Unlock()
			s.addresses[n.Node], s.reports[n.Node], plans[n.Node] = n.Address, report, plan
		})
	}
	asking.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}

	var names []string
	role := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, m := range t.Members { // the spec's order
		role(m.Role)
	}
	for _, n := range g.Nodes {
		report, answers := s.reports[n.Node]
		node := Node{Name: n.Node, Silent: !answers, Seed: report.Seed, Image: report.Image, Ready: report.Ready, Joint: report.Joint != nil, Leads: operate.Leads(n.Node, s.reports), Takeover: plans[n.Node]}
		if m, ok := t.Member(n.Node); ok {
			node.Is, node.Role = &m, m.Role
		}
		if m, ok := before.Member(n.Node); ok {
			node.Was, node.Before = &m, &m
			ip, err := netip.ParseAddr(m.IP)
			s.Elsewhere = s.Elsewhere || err == nil && node.Is != nil && !t.in(ip)
		}
		if n.Status != nil && n.Status.Running != nil {
			if runs := g.Find(n.Status.Running.Digest); runs != nil {
				if m, ok := runs.Member(n.Node); ok {
					node.Was = &m
				}
			}
		}
		if node.Was == nil && node.Is == nil {
			continue // of a generation that is long gone
		}
		if node.Role == "" {
			node.Role = node.Was.Role
			role(node.Role)
		}
		if node.Takeover != nil {
			node.Apart = strings.Join(node.Takeover.Fixed, "; ")
			node.Quiet = r.quiet(node.Takeover)
		}
		if m, known := machines[n.Node]; known {
			node.Off = !answers && m.Power == operate.PowerOff
			// Until the new seeds are written, those of the last build may be older.
			fromTarget := m.Build == operate.BuildCurrent && (r.written || node.Was != nil && node.Is != nil && *node.Was == *node.Is)
			node.Prepared, node.Made = node.Off && fromTarget, m.Power == operate.PowerOn && fromTarget
		} else {
			// The provider has no machine of it or, without one, nobody expects it to run.
			node.Off = !answers && (!s.ByHand || !node.stays())
		}
		if r.lost[n.Node] && !answers {
			node.Off = true // its machine was made anew with a seed that does not work
		}
		s.Nodes = append(s.Nodes, node)
	}
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		m := machines[name]
		if m.Build != operate.BuildRemoved || m.Power != operate.PowerOn || slices.ContainsFunc(s.Nodes, func(n Node) bool { return n.Name == name }) {
			continue
		}
		// Of a generation that nobody else knows any more.
		s.Nodes = append(s.Nodes, Node{Name: name, Was: &facts.Member{Name: name}, Silent: true})
		role("")
	}
	s.Roles = RolesOf(r.Catalogue, names)
	for i := range s.Roles {
		role := r.Catalogue.Role(s.Roles[i].Name)
		if role == nil || !slices.ContainsFunc(role.Components, func(c roles.Component) bool { return c.Kind == "gluster" }) {
			continue
		}
		if s.Roles[i].Lone, err = s.lone(t, s.Roles[i].Name); err != nil {
			return nil, err
		}
	}
	for i, n := range s.Nodes { // who stands behind another address agrees with nobody about it
		if k := slices.IndexFunc(s.Roles, func(o Role) bool { return o.Name == n.Role }); !s.Roles[k].VIP {
			s.Nodes[i].Apart = ""
		}
	}
	return s, nil
}

// generation finds out which generation is in use. During an outage few nodes answer, or none, and those may have missed the choice: then
// what was noted before counts.
func (r *Run) generation(ctx context.Context) (operate.Generations, error) {
	g, err := r.Cluster.Generation(ctx, r.Without)
	if err != nil {
		return g, err
	}
	chosen := r.Earlier.Outage()
	if chosen == nil || g.InUse != nil && (g.InUse.Number > chosen.Number || g.InUse.Number == chosen.Number && g.Uncertain == nil) {
		return g, nil
	}
	g.InUse, g.Uncertain = chosen, nil
	for _, known := range []*facts.Generation{r.Earlier.Generation(), chosen} {
		if known != nil && g.Find(known.Digest) == nil {
			g.Known = append(g.Known, *known)
		}
	}
	slices.SortFunc(g.Known, func(a, b facts.Generation) int { return a.Number - b.Number })
	return g, nil
}

// ask returns what a node's agent says of taking over its seed; nil: it has it already.
func (r *Run) ask(ctx context.Context, t Target, n operate.NodeGeneration, report facts.NodeReport) (*facts.Plan, error) {
	m, ok := t.Member(n.Node)
	if !ok || m.Seed == report.Seed {
		return nil, nil
	}
	b, err := t.bundle(n.Node)
	if err != nil {
		return nil, err
	}
	plan, err := r.Cluster.Agents.PlanTakeover(ctx, n.Node, n.Address, b)
	var refused *operate.TakeoverRefused
	if errors.As(err, &refused) {
		return &facts.Plan{Replace: []string{refused.Why}}, nil
	}
	return &plan, err
}

// quiet tells whether a takeover stops and reloads nothing but the packet filter.
func (r *Run) quiet(p *facts.Plan) bool {
	filter := distro.Named(r.Cluster.Spec.Distro).Firewall
	return len(p.Stop) == 0 && !slices.ContainsFunc(p.Reload, func(unit string) bool {
		return !slices.ContainsFunc(filter, func(f distro.Ruleset) bool { return f.Unit == unit })
	})
}

// lone tells whether one server of a role's GlusterFS volume may take writes alone: now, or with the target's seeds.
func (s *seen) lone(t Target, role string) (bool, error) {
	fixed := func(options map[string]string) bool { return options["cluster.quorum-type"] == "fixed" }
	for _, report := range s.reports {
		for _, c := range report.Components {
			var r struct {
				Volume struct {
					Options map[string]string `json:"options"`
				} `json:"volume"`
			}
			if report.Node.Role == role && c.Kind == "gluster" && json.Unmarshal(c.Report, &r) == nil && fixed(r.Volume.Options) {
				return true, nil
			}
		}
	}
	for _, m := range t.Members {
		if m.Role != role {
			continue
		}
		if _, ok := t.Seeds[m.Name]; !ok {
			continue // it does not change, so its report has said it
		}
		b, err := t.bundle(m.Name)
		if err != nil {
			return false, err
		}
		known, err := facts.Decode(b.Facts)
		if err != nil {
			return false, fmt.Errorf("%s: %w", m.Name, err)
		}
		for _, c := range known.Components {
			params, err := facts.DecodeParams(c.Kind, c.Params)
			if p, ok := params.(*facts.GlusterParams); err == nil && ok && fixed(p.Options) {
				return true, nil
			}
		}
		return false, nil // the others of the role have the same options
	}
	return false, nil
}

// previous returns the generation that the cluster leaves for the target.
func (r *Run) previous(g operate.Generations, t Target) facts.Generation {
	if g.InUse.Digest != t.Digest {
		return *g.InUse
	}
	if parent := g.Find(t.Parent); parent != nil {
		return *parent
	}
	if kept := r.Earlier.Generation(); kept != nil && kept.Digest == t.Parent {
		return *kept
	}
	for _, known := range slices.Backward(g.Known) {
		if known.Number < t.Number {
			return known
		}
	}
	return *g.InUse // nobody runs an earlier one
}

package change

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/words"
	"imagegen/operate"
)

// await waits until a node is as wanted, and says what for.
func (r *Run) await(ctx context.Context, s *seen, node, what string, wanted func(facts.NodeReport) bool) error {
	limit := time.Now().Add(r.Wait.Timeout)
	ip, known := s.addresses[node]
	for _, n := range s.generations.Nodes {
		if n.Node == node && !known {
			ip = n.Address
		}
	}
	said := ""
	for {
		report, err := r.Cluster.Agents.Ask(ctx, node, ip)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && wanted(report):
			return nil
		}
		waits := whyNot(report, err)
		if time.Now().After(limit) {
			return fmt.Errorf("%s: it waited %s for %s: %s; run again, this goes on (if %[3]s is gone for good: --without %[3]s)", what, r.Wait.Timeout, node, waits)
		}
		if waits != said {
			said = waits
			r.Wait.Say("%s yet: it waits for %s: %s", what, node, waits)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// votersLimit is how long nodes may take to find out whether they may vote: an agent asks the others every 7.5 s at most.
const votersLimit = 20 * time.Second

// awaitVoters waits until nodes that answer know whether they may vote. After a while the vote is tried without them.
func (r *Run) awaitVoters(ctx context.Context, s *seen) error {
	said := false
	for limit := time.Now().Add(votersLimit); !r.Alone; {
		undecided := r.Cluster.Undecided(ctx, s.generations)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if undecided == nil || time.Now().After(limit) {
			return nil
		}
		if !said {
			said = true
			r.Wait.Say("nothing is changed yet: %s may vote only after hearing the others", words.List(undecided, "and"))
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// needs waits until the nodes that a step needs are ready.
func (r *Run) needs(ctx context.Context, s *seen, step Step) error {
	for _, name := range step.Needs {
		if err := r.await(ctx, s, name, step.Node+" is not changed", func(n facts.NodeReport) bool { return n.Ready }); err != nil {
			return err
		}
	}
	return nil
}

// agree waits until the nodes that a step names count the members that it needs, and says what for.
func (r *Run) agree(ctx context.Context, s *seen, t Target, step Step) error {
	var becomes *facts.Member
	if m, ok := t.Member(step.Node); ok {
		becomes = &m
	}
	limit := time.Now().Add(r.Wait.Timeout)
	for said := ""; ; {
		// Sentinel may make another one that leaves the master. It must be one that stays.
		if step.Action == Remove && len(step.Agree) > 0 {
			for _, n := range s.Nodes {
				ip, answered := s.addresses[n.Name]
				if n.Role != step.Role || !n.leaves() || !answered {
					continue
				}
				if report, err := r.Cluster.Agents.Ask(ctx, n.Name, ip); err == nil && operate.IsMaster(report) {
					r.Cluster.Agents.HandOver(ctx, n.Name, ip) // a refusal also keeps the others from agreeing, which is said then
				}
			}
		}
		reports := map[string]facts.NodeReport{}
		for _, name := range step.Agree {
			if report, err := r.Cluster.Agents.Ask(ctx, name, s.addresses[name]); err == nil {
				reports[name] = report
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		waits := disagree(step, becomes, reports)
		if waits == "" {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s is not changed: after %s, %s; run again, this goes on", step.Node, r.Wait.Timeout, waits)
		}
		if waits != said {
			said = waits
			r.Wait.Say("%s is not changed yet: %s", step.Node, waits)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// disagree says why the members of a role cannot become more or fewer yet; empty: they can. The node of the step shall become a
// member as is says, or be one no longer (nil).
//
// A node that joins must be a member for all, or some would not know that it may have newer data. A node that leaves must be one for
// nobody: only once the agents find that those who stay have all data, and work without it, they forget the earlier members.
func disagree(step Step, is *facts.Member, reports map[string]facts.NodeReport) string {
	var first *facts.NodeReport
	for _, name := range step.Agree {
		report, answers := reports[name]
		switch {
		case !answers:
			return name + " does not answer"
		case report.Joint == nil || len(report.Joint.InUse) == 0:
			return name + " does not say who the members of " + step.Role + " are"
		case !report.Ready:
			return name + " is not ready: " + whyNot(report, nil)
		}
		in := report.Joint.InUse
		if is != nil {
			in = in[len(in)-1:]
		}
		for _, m := range in {
			at := slices.IndexFunc(m.Members, func(p facts.Peer) bool { return p.Name == step.Node })
			switch {
			case is == nil && at >= 0:
				return fmt.Sprintf("%s still counts %s as a member", name, step.Node)
			case is != nil && (at < 0 || m.Members[at].IP != is.IP):
				return fmt.Sprintf("%s does not count %s at %s as a member yet", name, step.Node, is.IP)
			}
		}
		if first == nil {
			first = &report
		} else if !slices.EqualFunc(first.Joint.InUse, report.Joint.InUse, func(a, b facts.Membership) bool {
			return a.Number == b.Number && slices.Equal(a.Members, b.Members)
		}) {
			return fmt.Sprintf("%s and %s count different members", first.Node.Name, name)
		}
	}
	return ""
}

// whyNot says why a node is not ready.
func whyNot(report facts.NodeReport, err error) string {
	if err != nil {
		return err.Error()
	}
	for _, name := range report.Order {
		if c := report.Components[name]; c.Status.State != facts.Ready {
			return strings.TrimSuffix(fmt.Sprintf("%s is %s: %s", name, c.Status.State, c.Status.Detail), ": ")
		}
	}
	return "it has not looked at everything yet"
}

// calm waits until a node has been ready for a while without a break.
func (r *Run) calm(ctx context.Context, ip netip.Addr, node string) error {
	limit, since := time.Now().Add(r.Wait.Timeout+r.Calm), time.Now()
	for time.Since(since) < r.Calm {
		if err := pause(ctx); err != nil {
			return err
		}
		report, err := r.Cluster.Agents.Ask(ctx, node, ip)
		if err == nil && report.Ready {
			continue
		}
		if since = time.Now(); since.After(limit) {
			return fmt.Errorf("it does not stay ready: %s", whyNot(report, err))
		}
	}
	return nil
}

// settle waits until no node is on trial with its new seed, and tells whether it had to wait. Those that have passed keep the one before
// until all nodes have changed. If some have failed, it still waits for the others, which can change again only after that.
func (r *Run) settle(ctx context.Context, s *seen, t Target) (waited bool, err error) {
	failed := map[string]error{}
	limit := time.Now().Add(trialLimit)
	for _, name := range slices.Sorted(maps.Keys(s.reports)) {
		took, err := r.trial(ctx, s, t, name, limit)
		if ctx.Err() != nil {
			return waited, ctx.Err()
		}
		if err != nil {
			failed[name] = err
		}
		waited = waited || took
	}
	if len(failed) > 0 {
		return waited, &notReady{failed}
	}
	return waited, nil
}

// trial waits until a node is not on trial with its new seed, and tells whether it had to wait; an error says why the node does not work
// with it.
func (r *Run) trial(ctx context.Context, s *seen, t Target, name string, limit time.Time) (waited bool, err error) {
	report := s.reports[name]
	for said := false; ; {
		trial := report.Trial
		if err == nil && (trial == nil || trial.Seed != t.seedOf(name)) {
			return waited, nil
		}
		if err == nil && trial.State == facts.TrialPassed {
			if !r.passed[trial.Seed] {
				r.passed[trial.Seed] = true
				r.Wait.Say("%s: ready with its new seed", name)
			}
			return waited, nil
		}
		if err == nil && trial.State == facts.TrialReturned {
			if r.stale[name] {
				return waited, nil
			}
			return waited, errors.New("it has gone back to its previous seed: " + cmp.Or(trial.Detail, "it did not say why"))
		}
		if !said && err == nil {
			said = true
			r.Wait.Say("%s: on trial with its new seed", name)
		}
		if time.Now().After(limit) {
			return waited, fmt.Errorf("its trial has not ended within %s: %s", trialLimit, whyNot(report, err))
		}
		waited = true
		if err := pause(ctx); err != nil {
			return waited, err
		}
		report, err = r.Cluster.Agents.Ask(ctx, name, s.addresses[name])
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(askEvery):
		return nil
	}
}

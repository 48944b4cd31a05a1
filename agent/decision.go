package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

// decisionStore stores the nodes that an operator has given up, until the component is ready. No names means no decision.
type decisionStore interface {
	read() ([]string, error)
	write(without []string) error
}

// decisionFile is a decisionStore on the root disk, so that a decision survives a restart of the agent.
type decisionFile struct{ path, component string }

func (f decisionFile) read() ([]string, error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var d facts.Decision
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	return d.Without, nil
}

func (f decisionFile) write(without []string) error {
	if len(without) == 0 {
		return os.Remove(f.path)
	}
	data, err := json.Marshal(facts.Decision{Component: f.component, Without: without})
	if err != nil {
		return err
	}
	return atomicfile.Write(f.path, data, 0o600)
}

// without returns the nodes that an operator has given up. The decision about a node that is heard again ends: its data counts
// from then on, also if it falls silent later.
func (r *runner) without(heard map[string]PeerReport) ([]string, error) {
	names, err := r.decision.read()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	silent := ensemble.StillSilent(names, heard)
	if len(silent) == len(names) {
		return names, nil
	}
	return silent, r.decision.write(silent)
}

// decide records an operator's decision. It fails if the component does not wait for the named nodes.
func (a *Agent) decide(d facts.Decision) error {
	i := slices.IndexFunc(a.runners, func(r *runner) bool { return r.Name == d.Component })
	if i < 0 {
		return fmt.Errorf("%s has no component %s", a.facts.Node.Name, d.Component)
	}
	status := a.status(d.Component)
	if status.Missing == "" {
		return fmt.Errorf("%s on %s does not wait for a decision: it is %s", d.Component, a.facts.Node.Name, describeStatus(status))
	}
	missing := strings.Split(status.Missing, ",")
	for _, name := range d.Without {
		if !slices.Contains(missing, name) {
			return fmt.Errorf("%s on %s does not wait for %s, but for %s", d.Component, a.facts.Node.Name, name, strings.Join(missing, ", "))
		}
	}
	for name, r := range a.peers.heard() {
		if slices.Contains(d.Without, name) {
			return fmt.Errorf("the agent of %s answers, so what %s has is not lost (its %s is %s); switch %s off first if it is to be given up",
				name, name, d.Component, describeStatus(r.Components[d.Component].Status), name)
		}
	}
	if len(d.Without) == 0 {
		return fmt.Errorf("%s on %s waits for %s: none of these is named", d.Component, a.facts.Node.Name, strings.Join(missing, ", "))
	}
	// A node that was given up earlier is no longer listed as missing, but the decision about it still holds.
	before, err := a.runners[i].decision.read()
	if err != nil {
		return err
	}
	all := slices.Concat(before, d.Without)
	slices.Sort(all)
	a.happened(d.Component, "an operator has decided to go on without %s", strings.Join(d.Without, ", "))
	a.console(fmt.Sprintf("%s: %s: an operator has decided to go on without %s", a.facts.Node.Name, d.Component, strings.Join(d.Without, ", ")))
	return a.runners[i].decision.write(slices.Compact(all))
}

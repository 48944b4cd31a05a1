package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
)

// Limits of a bundle. A seed of a cluster with hundreds of nodes has some hundred KiB.
const (
	maxBundle  = 16 << 20
	bundleTime = time.Minute // to send it, and for the answer
)

// verifier verifies signed generations.
type verifier interface {
	// member returns what a signed generation says of this node. The node may only change to the generation in use; a plan can be
	// had for any, so that an operator knows what a change does before the cluster agrees on it.
	member(signed []byte, planOnly bool) (facts.Member, error)
}

// Again is the error of Run when the agent must start anew, because the node has changed its seed. Ready lists the components that
// were ready, and that the change did not touch.
type Again struct{ Ready []string }

func (a Again) Error() string { return "the agent starts anew with other facts" }

// readyVariable is the variable of the environment in which an agent tells the one that replaces it, as the same process, which
// components are ready. Otherwise load balancers would find no component ready until each has been looked at.
const readyVariable = "IMAGEGEN_READY"

// Environment is what the agent must be started with.
func (a Again) Environment() string { return readyVariable + "=" + strings.Join(a.Ready, ",") }

// Resume completes a change of seeds that was interrupted. It must be called before New. It returns lines for the console.
func Resume(ctx context.Context, root string) ([]string, error) { return newTakeover(root).resume(ctx) }

// Resumed records lines about a change of seeds, such as those that Resume returned.
func (a *Agent) Resumed(said []string) {
	for _, line := range said {
		a.happened("", "%s", line)
		a.console(a.facts.Node.Name + ": " + line)
	}
}

// Replaces tells whether this agent replaces one that has changed the seed, in the same process: then systemd has read its units
// again, and reading them once more would only keep load balancers waiting for the health port. It must be called before New.
func Replaces() bool {
	_, is := os.LookupEnv(readyVariable)
	return is
}

// inherit takes over which components are ready from the agent that this one replaces.
func (a *Agent) inherit(names string) {
	all := len(a.runners) > 0
	for _, r := range a.runners {
		if !slices.Contains(strings.Split(names, ","), r.Name) {
			all = false
			continue
		}
		c := a.reports[r.Name]
		c.Status = ready("")
		a.reports[r.Name] = c
	}
	a.ready = all
}

// verify checks a bundle against the signed generation, and everything in it against that.
func (a *Agent) verify(b facts.Bundle, planOnly bool) (incoming, error) {
	var in incoming
	if a.verifier == nil {
		return in, errors.New("this node knows no key that signs generations: it can only be replaced")
	}
	says, err := a.verifier.member(b.Generation, planOnly)
	if err != nil {
		return in, err
	}
	in.digest, in.image = says.Seed, says.Image
	in.seed = nocloud.Seed{MetaData: b.MetaData, NetworkConfig: b.NetworkConfig, UserData: b.UserData, Generation: b.Generation}
	want := nocloud.Identity{Cluster: a.facts.ClusterID, Node: a.facts.Node.Name, Digest: says.Seed}
	if err := in.seed.Genuine(a.facts.Cluster, want); err != nil {
		return in, fmt.Errorf("the seed is not the one that the generation names: %w", err)
	}
	if have := facts.FileDigest(nil, b.Facts, false); have != says.Facts {
		return in, fmt.Errorf("the facts are not those that the generation names: digest %s instead of %s", have, says.Facts)
	}
	if in.facts, err = facts.Decode(b.Facts); err != nil {
		if in.image != "" && in.image != a.made.Image {
			in.unreadable = err // facts for the agent in that image
			return in, nil
		}
		return in, err
	}
	if n, own := in.facts.Node, a.facts.Node; n.Name != own.Name || n.Role != own.Role || in.facts.ClusterID != a.facts.ClusterID || in.facts.Cluster != a.facts.Cluster {
		return in, fmt.Errorf("the facts are those of node %s (%s) of cluster %s", n.Name, n.Role, in.facts.Cluster)
	}
	in.raw, in.content = b.Facts, map[string][]byte{}
	return in, nil
}

// plan says what taking over a verified seed does.
func (a *Agent) plan(in incoming) (facts.Plan, error) {
	const otherImage = "it has another image"
	if in.unreadable != nil {
		return facts.Plan{Seed: in.digest, Files: []facts.FileChange{}, Replace: []string{otherImage, in.unreadable.Error()}}, nil
	}
	p := planTakeover(a.facts, in.facts)
	p.Seed = in.digest
	if in.image != "" && in.image != a.made.Image {
		p.Replace = append(p.Replace, otherImage)
	}
	if a.facts.Distro != in.facts.Distro {
		p.Replace = append(p.Replace, fmt.Sprintf("it runs %s, and the seed is for %s", a.facts.Distro, in.facts.Distro))
	}
	current, err := a.takeover.disk.Current()
	if err != nil {
		return p, fmt.Errorf("the node's copy of its seed: %w", err)
	}
	if !current.SameMachine(in.seed) {
		p.Replace = append(p.Replace, "its address, its network, its time zone or who may log in is another one")
	}
	p.Replace = append(p.Replace, a.takeover.drift(a.facts)...)
	return p, nil
}

// collect takes the contents of the files that the node needs, and checks them.
func (a *Agent) collect(in incoming, p facts.Plan, b facts.Bundle) error {
	key, err := os.ReadFile(filepath.Join(a.takeover.root, facts.PKIDir, "node.key"))
	if err != nil {
		return err
	}
	for _, c := range p.Files {
		f, is := in.facts.File(c.Path)
		if !is {
			continue
		}
		content, ok := b.Files[c.Path]
		if !ok {
			return fmt.Errorf("the bundle lacks %s", c.Path)
		}
		if have := facts.FileDigest(key, content, f.Secret); have != f.Digest {
			return fmt.Errorf("%s in the bundle is not what the facts say: digest %s instead of %s", c.Path, have, f.Digest)
		}
		in.content[c.Path] = content
	}
	return nil
}

// serveTakeover takes over a newer seed, or only says what that would do.
func (a *Agent) serveTakeover(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	deadline := time.Now().Add(bundleTime)
	errors.Join(control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline)) // without them, the server's own limits hold
	var b facts.Bundle
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBundle))
	in.DisallowUnknownFields()
	if err := in.Decode(&b); err != nil {
		http.Error(w, "this is no bundle: "+err.Error(), http.StatusBadRequest)
		return
	}
	p, begun, err := a.takeOver(b, r.FormValue("plan") == "1")
	if err != nil {
		http.Error(w, oneLine(err.Error()), http.StatusConflict)
		return
	}
	data, err := json.Marshal(p)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	if begun {
		w.WriteHeader(http.StatusAccepted)
	}
	w.Write(data)
	if begun {
		control.Flush() // the API ends soon
		a.changeSeed()
	}
}

// takeOver verifies a bundle and, unless only the plan is wanted, decides the change to its seed.
func (a *Agent) takeOver(b facts.Bundle, planOnly bool) (p facts.Plan, begun bool, err error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	in, err := a.verify(b, planOnly)
	if err != nil {
		return p, false, err
	}
	if in.digest == a.made.Seed {
		return facts.Plan{Seed: in.digest, Files: []facts.FileChange{}}, false, nil
	}
	if p, err = a.plan(in); err != nil || planOnly {
		return p, false, err
	}
	if len(p.Replace) > 0 {
		return p, false, fmt.Errorf("%s must be replaced: %s", a.facts.Node.Name, strings.Join(p.Replace, "; "))
	}
	j, err := a.takeover.read()
	if err != nil {
		return p, false, err
	}
	switch j.Phase {
	case facts.TrialSwitching, facts.TrialRunning, facts.TrialReturning, facts.TrialConfirmed:
		return p, false, fmt.Errorf("%s %s; wait until that has ended", a.facts.Node.Name, j.describe())
	}
	if err := a.collect(in, p, b); err != nil {
		return p, false, err
	}
	if err := a.takeover.begin(a.facts, p, in); err != nil {
		return p, false, fmt.Errorf("prepare the new seed: %w", err)
	}
	a.Resumed([]string{"takes over the seed " + in.digest})
	return p, true, nil
}

// serveTrial answers with the state of the last takeover.
func (a *Agent) serveTrial(w http.ResponseWriter, _ *http.Request) {
	j, err := a.takeover.read()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if j.Phase == noJournalYet {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(j.trial())
}

// serveConfirm erases the previous seed after a trial that has passed.
func (a *Agent) serveConfirm(w http.ResponseWriter, r *http.Request) {
	a.changing.Lock()
	defer a.changing.Unlock()
	if err := a.takeover.confirm(r.FormValue("seed")); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	a.setTrial(takeoverJournal{})
	w.WriteHeader(http.StatusNoContent)
}

// changeSeed has Run stop all components and carry out what the journal says.
func (a *Agent) changeSeed() {
	select {
	case a.switching <- struct{}{}:
	default: // it has been told already
	}
}

// setTrial publishes how far a takeover is.
func (a *Agent) setTrial(j takeoverJournal) {
	a.mu.Lock()
	a.trial = j.trial()
	a.mu.Unlock()
}

// carryOut makes the node what the journal says; no component runs. The API still answers.
func (a *Agent) carryOut(ctx context.Context) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	j, err := a.takeover.read()
	if err != nil {
		return err
	}
	a.setTrial(j)
	stopped := slices.Concat(j.Stop, j.StopBack)
	for _, r := range a.runners {
		if slices.ContainsFunc(unitsOf(r.Component), func(u string) bool { return slices.Contains(stopped, u) }) {
			a.setStatus(r.Name, workf("stops, to start with another seed"))
		}
	}
	said, err := a.takeover.resume(ctx)
	a.Resumed(said)
	if err != nil {
		return fmt.Errorf("change the seed: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(a.takeover.root, facts.FactsPath))
	if err != nil {
		return err
	}
	now, err := facts.Decode(data)
	if err != nil {
		return err
	}
	return Again{a.untouched(now, stopped)}
}

// untouched returns the components of the facts in force that are ready and were not stopped, nor anything that they need.
func (a *Agent) untouched(now facts.Facts, stopped []string) (names []string) {
	before := map[string]facts.Component{}
	for _, r := range a.runners {
		before[r.Name] = r.Component
	}
	for _, c := range now.Components {
		was, ran := before[c.Name]
		if ran && a.status(c.Name).State == facts.Ready && was.Kind == c.Kind && sameParams(was, c) &&
			!slices.ContainsFunc(unitsOf(c), func(u string) bool { return slices.Contains(stopped, u) }) &&
			!slices.ContainsFunc(c.After, func(n string) bool { return !slices.Contains(names, n) }) {
			names = append(names, c.Name)
		}
	}
	return names
}

// watchTrial ends the trial of a seed, in one way or the other.
func (a *Agent) watchTrial(ctx context.Context) {
	j, err := a.takeover.read()
	if err != nil {
		a.console(fmt.Sprintf("%s: %v", a.facts.Node.Name, err))
		return
	}
	a.setTrial(j)
	if j.Phase != facts.TrialRunning {
		return
	}
	var calm, unnoted time.Duration
	last := a.clock.Now()
	for {
		a.clock.Sleep(ctx, watchEvery)
		if ctx.Err() != nil {
			return
		}
		now := a.clock.Now()
		passed := now.Sub(last)
		last = now
		j.Spent, calm, unnoted = j.Spent+passed, calm+passed, unnoted+passed
		if !a.isReady() {
			calm = 0
		}
		switch {
		case calm >= trialReady:
			j.Phase = facts.TrialPassed
		case j.Spent >= trialLimit:
			j.Phase, j.Why = facts.TrialReturning, fmt.Sprintf("not ready within %s: %s", trialLimit, a.unready())
		case unnoted < trialNoted:
			continue
		}
		unnoted = 0
		if err := a.takeover.write(j); err != nil {
			// Without a note there is no end of the trial: it is tried again at the next turn.
			a.console(fmt.Sprintf("%s: note the trial of the new seed: %v", a.facts.Node.Name, err))
			j.Phase, unnoted = facts.TrialRunning, trialNoted
			continue
		}
		a.setTrial(j)
		switch j.Phase {
		case facts.TrialPassed:
			a.Resumed([]string{"the new seed has passed its trial"})
			return
		case facts.TrialReturning:
			a.Resumed([]string{"goes back to the previous seed: " + j.Why})
			a.changeSeed()
			return
		}
	}
}

// unready says which components are not ready, and why.
func (a *Agent) unready() string {
	var all []string
	for _, r := range a.runners {
		if s := a.status(r.Name); s.State != facts.Ready {
			all = append(all, r.Name+": "+describeStatus(s))
		}
	}
	if len(all) == 0 {
		return "it does not stay ready"
	}
	return strings.Join(all, "; ")
}

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

// A node that takes over a seed runs it on trial: it goes back by itself unless it has been ready for trialReady within
// trialLimit. Both are times that the agent has run, so reboots and a wrong clock do not matter.
const (
	trialReady = 30 * time.Second
	trialLimit = 10 * time.Minute
	trialNoted = 10 * time.Second // how often the time spent is written to disk
	trialStart = time.Second      // what each start of the agent counts, so that one that crashes at once goes back as well
)

// takeover changes a node's seed while it runs. Everything that it needs to go to the new seed or back to the old one is on disk
// before anything changes. Then the journal is written, which decides: whatever happens after that, the agent runs no component
// until the node has wholly become what the journal says.
type takeover struct {
	root    string // "/", except in tests
	disk    nocloud.Disk
	daemons daemons
	owner   func(userGroup string) (uid, gid int, err error)
	// step is called before each change to the node; tests stop there. nil: nothing.
	step func(what string)
}

// daemons is systemd, as far as a takeover needs it.
type daemons interface {
	// stop stops a unit and returns when it has stopped, which includes killing it if it hangs. A unit that does not exist or does
	// not run has stopped.
	stop(ctx context.Context, unit string) error
	// reload makes a running unit read its files again. One that does not run will read them when it starts.
	reload(ctx context.Context, unit string) error
	// reread makes systemd read its units again.
	reread(ctx context.Context) error
	// label gives files the SELinux labels that the policy has for their paths.
	label(ctx context.Context, files []string) error
}

func newTakeover(root string) *takeover {
	return &takeover{root: root, disk: nocloud.Disk{Root: root}, daemons: systemd{}, owner: lookupOwner}
}

// takeoverJournal is the state of the last takeover.
type takeoverJournal struct {
	Phase    facts.TrialState `json:"phase"`
	Seed     string           `json:"seed"`     // digest of the new seed
	Previous string           `json:"previous"` // and of the old one
	Why      string           `json:"why,omitempty"`
	Spent    time.Duration    `json:"spent,omitempty"` // on trial

	// How each changed path looks with either seed; null: nothing is there.
	Old map[string]*fileState `json:"old,omitempty"`
	New map[string]*fileState `json:"new,omitempty"`
	// Folders are those that the new seed's files need and that were not there, outermost first.
	Folders []string `json:"folders,omitempty"`
	// Units to stop before, and to reload after, the change to the new seed, and back.
	Stop       []string `json:"stop,omitempty"`
	Reload     []string `json:"reload,omitempty"`
	StopBack   []string `json:"stop_back,omitempty"`
	ReloadBack []string `json:"reload_back,omitempty"`
	// Sysctl has the values, before, of the kernel parameters that only the new seed sets.
	Sysctl map[string]string `json:"sysctl,omitempty"`
}

// A takeover's files, below the agent's state.
const (
	takeoverDir  = "takeover"
	journalFile  = "journal.json"
	oldSide      = "old"
	newSide      = "new"
	sideSeed     = "seed"
	sideFiles    = "files"
	newFileMark  = ".imagegen-new" // ends the name of a file before it is renamed into place
	noJournalYet = ""
)

func (t *takeover) path(name string) string { return filepath.Join(t.root, name) }

func (t *takeover) state(parts ...string) string {
	return filepath.Join(append([]string{t.root, facts.StateDir, takeoverDir}, parts...)...)
}

func (t *takeover) before(format string, args ...any) {
	if t.step != nil {
		t.step(fmt.Sprintf(format, args...))
	}
}

// read returns the journal; one without a phase if there is none.
func (t *takeover) read() (takeoverJournal, error) {
	var j takeoverJournal
	data, err := os.ReadFile(t.state(journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &j)
	}
	if err != nil {
		return j, fmt.Errorf("the journal of the last change of seeds: %w", err)
	}
	return j, nil
}

func (t *takeover) write(j takeoverJournal) error {
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	t.before("note %s", j.Phase)
	return atomicfile.Write(t.state(journalFile), data, 0o600)
}

// incoming is a newer seed that has been verified.
type incoming struct {
	seed   nocloud.Seed
	digest string
	image  string // identity of the node's image; empty: not known
	facts  facts.Facts
	// unreadable is why this agent cannot read the facts, if they are for another image; then all below is missing.
	unreadable error
	raw        []byte // the facts' file
	content    map[string][]byte
}

// begin puts everything that the change and its undoing need on disk, and then decides it. If it returns an error, nothing has
// changed. The caller must then stop all components and call resume.
func (t *takeover) begin(old facts.Facts, p facts.Plan, in incoming) (err error) {
	if err := t.erase(); err != nil { // of an earlier takeover, or of one that was not decided
		return err
	}
	if err := os.Mkdir(t.state(), 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.erase())
		}
	}()
	seed, err := t.disk.Current()
	if err != nil {
		return fmt.Errorf("the node's copy of its seed: %w", err)
	}
	id, err := seed.Identity()
	if err != nil {
		return fmt.Errorf("the node's copy of its seed: %w", err)
	}
	j := takeoverJournal{
		Phase: facts.TrialSwitching, Seed: in.digest, Previous: id.Digest,
		Old: map[string]*fileState{}, New: map[string]*fileState{}, Sysctl: map[string]string{},
		Stop: p.Stop, Reload: p.Reload,
	}
	j.StopBack, j.ReloadBack = touchedUnits(in.facts, old, p.Files)
	own := facts.File{Path: facts.FactsPath, Mode: "0644", Owner: "root:root"}
	in.content[own.Path] = in.raw
	changes := append(slices.Clone(p.Files), facts.FileChange{Path: own.Path, What: fileChanged})
	for _, c := range changes {
		have, content, err := t.look(c.Path)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
		if j.Old[c.Path] = have; have != nil {
			if err := t.store(oldSide, c.Path, content); err != nil {
				return err
			}
		}
		f, is := in.facts.File(c.Path)
		switch {
		case c.Path == own.Path:
			f = own
		case !is:
			j.New[c.Path] = nil
			continue
		}
		want, err := t.wanted(f)
		if err != nil {
			return err
		}
		j.New[c.Path] = &want
		if err := t.store(newSide, c.Path, in.content[c.Path]); err != nil {
			return err
		}
		for _, dir := range slices.Backward(parents(c.Path, "/")) {
			if _, err := os.Stat(t.path(dir)); errors.Is(err, fs.ErrNotExist) && !slices.Contains(j.Folders, dir) {
				j.Folders = append(j.Folders, dir)
			}
		}
	}
	for _, key := range in.facts.Sysctl {
		if value, err := os.ReadFile(t.path(sysctlPath(key))); err == nil && !slices.Contains(old.Sysctl, key) {
			j.Sysctl[key] = string(value)
		}
	}
	for side, s := range map[string]nocloud.Seed{oldSide: seed, newSide: in.seed} {
		t.before("stage the %s seed", side)
		if err := s.Store(t.state(side, sideSeed)); err != nil {
			return err
		}
	}
	// The folder itself as well: a journal that a power cut takes away, but not the changes after it, would leave a mixed node.
	if err := errors.Join(syncTree(t.state()), syncFolder(filepath.Dir(t.state()))); err != nil {
		return err
	}
	return t.write(j)
}

// erase removes everything about the last takeover, the journal first: what it names must not be missing.
func (t *takeover) erase() error {
	t.before("erase the journal")
	if err := os.Remove(t.state(journalFile)); err == nil {
		if err := syncFolder(t.state()); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	t.before("erase the files")
	return os.RemoveAll(t.state())
}

// eraseSides removes both seeds and their files.
func (t *takeover) eraseSides() error {
	t.before("erase the seeds")
	return errors.Join(os.RemoveAll(t.state(oldSide)), os.RemoveAll(t.state(newSide)))
}

// resume makes the node wholly what the journal says. It is called while no component runs: when the agent starts, and when it
// has decided to change its seed. said is for the console and the events.
func (t *takeover) resume(ctx context.Context) (said []string, err error) {
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	j, err := t.read()
	if err != nil {
		return nil, err
	}
	if j.Phase == noJournalYet {
		return nil, os.RemoveAll(t.state())
	}
	if kept, err := t.disk.Kept(); err == nil && kept != nil {
		switch {
		case kept.Digest != j.Seed && kept.Digest != j.Previous, kept.Digest == j.Seed && j.Phase == facts.TrialReturned:
			say("another seed was applied at boot: what was known of the last change of seeds does not matter any more")
			return said, t.abandon(ctx, j)
		case kept.Digest == j.Previous && (j.Phase == facts.TrialRunning || j.Phase == facts.TrialPassed || j.Phase == facts.TrialConfirmed):
			j.Phase, j.Why = facts.TrialReturning, "the previous seed was applied at boot"
			if err := t.write(j); err != nil {
				return said, err
			}
		}
	}
	if j.Phase == facts.TrialSwitching {
		err := t.forward(ctx, j)
		if ctx.Err() != nil {
			return said, ctx.Err()
		}
		j.Phase = facts.TrialRunning
		if err != nil {
			j.Phase, j.Why = facts.TrialReturning, err.Error()
		} else {
			say("runs the new seed on trial: %s", j.Seed)
		}
		if err := t.write(j); err != nil {
			return said, err
		}
	}
	switch j.Phase {
	case facts.TrialReturning:
		faults, err := t.back(ctx, j)
		if err != nil {
			return said, fmt.Errorf("go back to the previous seed: %w", err)
		}
		j.Phase = facts.TrialReturned
		if err := t.write(j); err != nil {
			return said, err
		}
		say("runs the previous seed again: %s", j.Why)
		for _, f := range faults {
			say("while going back: %v", f)
		}
		err = t.eraseSides()
		return said, err
	case facts.TrialReturned:
		return said, t.eraseSides() // after an interruption
	case facts.TrialRunning:
		if j.Spent += trialStart; j.Spent < trialLimit {
			return said, t.write(j)
		}
		j.Phase, j.Why = facts.TrialReturning, fmt.Sprintf("not ready within %s: the agent does not stay up", trialLimit)
		if err := t.write(j); err != nil {
			return said, err
		}
		again, err := t.resume(ctx)
		return append(said, again...), err
	case facts.TrialConfirmed:
		return said, t.forget()
	}
	return said, nil
}

// forward makes the node one that runs the new seed.
func (t *takeover) forward(ctx context.Context, j takeoverJournal) error {
	for _, u := range j.Stop {
		t.before("stop %s", u)
		if err := t.daemons.stop(ctx, u); err != nil {
			return fmt.Errorf("stop %s: %w", u, err)
		}
	}
	if err := t.put(ctx, newSide, j.New); err != nil {
		return err
	}
	if err := t.keep(newSide); err != nil {
		return err
	}
	if err := t.reread(ctx, j); err != nil {
		return err
	}
	for _, u := range j.Reload {
		t.before("reload %s", u)
		if err := t.daemons.reload(ctx, u); err != nil {
			return fmt.Errorf("reload %s: %w", u, err)
		}
	}
	return nil
}

// back makes the node one that runs the old seed again. Units that refuse do not keep the files from going back, but are said:
// a unit that was not stopped still has what it was started with.
func (t *takeover) back(ctx context.Context, j takeoverJournal) (faults []error, err error) {
	for _, u := range j.StopBack {
		t.before("stop %s", u)
		if err := t.daemons.stop(ctx, u); err != nil {
			faults = append(faults, fmt.Errorf("stop %s: %w", u, err))
		}
	}
	if err := t.put(ctx, oldSide, j.Old); err != nil {
		return faults, err
	}
	for _, dir := range slices.Backward(j.Folders) {
		t.before("remove %s", dir)
		if os.Remove(t.path(dir)) != nil {
			continue // something else is in it
		}
		if err := syncFolder(filepath.Dir(t.path(dir))); err != nil {
			return faults, err
		}
	}
	for key, value := range j.Sysctl {
		t.before("set %s", key)
		if err := setParameter(t.path(sysctlPath(key)), value); err != nil {
			faults = append(faults, err)
		}
	}
	if err := t.keep(oldSide); err != nil {
		return faults, err
	}
	if err := t.reread(ctx, j); err != nil {
		return faults, err
	}
	for _, u := range j.ReloadBack {
		t.before("reload %s", u)
		if err := t.daemons.reload(ctx, u); err != nil {
			faults = append(faults, fmt.Errorf("reload %s: %w", u, err))
		}
	}
	return faults, ctx.Err()
}

// reread makes systemd read its units again, if any has changed: it takes about a second on a busy node, while what restarts is stopped.
func (t *takeover) reread(ctx context.Context, j takeoverJournal) error {
	for path := range j.New {
		if strings.HasPrefix(path, unitFolder+"/") {
			t.before("reread units")
			return t.daemons.reread(ctx)
		}
	}
	return nil
}

// keep makes the seed of a side the one that the node boots with.
func (t *takeover) keep(side string) error {
	seed, err := nocloud.Load(t.state(side, sideSeed))
	if err != nil {
		return err
	}
	t.before("keep the %s seed", side)
	return t.disk.TakeOver(seed)
}

// abandon forgets a takeover because cloud-init has applied another seed in full, and removes what that does not have.
func (t *takeover) abandon(ctx context.Context, j takeoverJournal) error {
	data, err := os.ReadFile(t.path(facts.FactsPath))
	if err != nil {
		return err
	}
	now, err := facts.Decode(data)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(j.New)) {
		if err := removeIfThere(asideOf(t.path(name))); err != nil {
			return err
		}
		if _, is := now.File(name); !is && name != facts.FactsPath && removable(name) {
			if err := t.remove(name); err != nil {
				return err
			}
		}
	}
	if err := t.reread(ctx, j); err != nil {
		return err
	}
	return t.erase()
}

// confirm makes the new seed the only one: the node cannot go back any more. The seed must have passed its trial.
func (t *takeover) confirm(seed string) error {
	j, err := t.read()
	if err != nil {
		return err
	}
	if j.Phase == noJournalYet {
		if kept, err := t.disk.Kept(); err == nil && kept != nil && kept.Digest == seed {
			return nil // there is nothing else to erase
		}
	}
	if (j.Phase != facts.TrialPassed && j.Phase != facts.TrialConfirmed) || j.Seed != seed {
		return fmt.Errorf("the node does not have the seed %s with its trial passed: %s", seed, j.describe())
	}
	j.Phase = facts.TrialConfirmed
	if err := t.write(j); err != nil {
		return err
	}
	return t.forget()
}

// forget erases the previous seed.
func (t *takeover) forget() error {
	t.before("forget what cloud-init applied")
	if err := t.disk.Forget(); err != nil {
		return err
	}
	return t.erase()
}

// previous returns the seed to which the node can still go back: until its new one is confirmed, an operator may need it to undo the
// change on all nodes. ok is false if there is none.
func (t *takeover) previous() (seed nocloud.Seed, ok bool) {
	j, err := t.read()
	if err != nil || j.Phase != facts.TrialRunning && j.Phase != facts.TrialPassed {
		return seed, false
	}
	seed, err = nocloud.Load(t.state(oldSide, sideSeed))
	return seed, err == nil
}

// describe says in a few words how far a takeover is.
func (j takeoverJournal) describe() string {
	switch j.Phase {
	case noJournalYet:
		return "no seed was taken over"
	case facts.TrialSwitching:
		return "changes to " + j.Seed
	case facts.TrialRunning:
		return fmt.Sprintf("runs %s on trial, for %s so far", j.Seed, j.Spent.Round(time.Second))
	case facts.TrialReturning:
		return "goes back to " + j.Previous + ": " + j.Why
	case facts.TrialReturned:
		return "went back to " + j.Previous + ": " + j.Why
	}
	return "runs " + j.Seed + ", trial passed"
}

// trial is what the agent reports about the last takeover; nil: nothing.
func (j takeoverJournal) trial() *facts.Trial {
	if j.Phase == noJournalYet {
		return nil
	}
	detail := oneLine(j.Why)
	if j.Phase == facts.TrialRunning {
		detail = fmt.Sprintf("must be ready for %s within %s, of which %s have passed", trialReady, trialLimit, j.Spent.Round(time.Second))
	}
	return &facts.Trial{State: j.Phase, Seed: j.Seed, Previous: j.Previous, Detail: detail}
}

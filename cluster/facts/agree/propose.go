package agree

import (
	"context"
	"fmt"
	"slices"

	"imagegen/cluster/facts"
)

// Council is how a proposer reaches the acceptors.
type Council interface {
	// All sends a request to these members' agents and returns the replies that came.
	All(ctx context.Context, to []facts.Member, r Request) map[string]Reply
	// Pause waits before another attempt, for a time that differs between proposers and grows.
	Pause(ctx context.Context, attempt int)
}

// maxAttempts limits the ballots of a proposer that is outbid again and again.
const maxAttempts = 20

// Propose has the electorate of parent, which is in use, choose its successor. If another value may have been chosen before,
// that one is completed: the caller must compare what is returned with value. proposer is unique to this call.
//
// After an error, value may have been chosen or may still be: ask InUse, and propose again.
func Propose(ctx context.Context, c Council, proposer string, alone bool, parent, value facts.Generation) (facts.Generation, error) {
	if err := Follows(parent.Manifest, parent.Digest, value.Manifest); err != nil {
		return facts.Generation{}, err
	}
	electorate := parent.Electorate()
	ballot := Ballot{1, proposer}
	for attempt := 1; ; attempt++ {
		replies := c.All(ctx, electorate, Request{Step: Prepare, Ballot: ballot, Parent: &parent, Alone: alone})
		higher, err := outcome(electorate, replies, alone)
		if err == nil {
			v := pick(value, replies)
			replies = c.All(ctx, electorate, Request{Step: Accept, Ballot: ballot, Parent: &parent, Value: &v, Alone: alone})
			if higher, err = outcome(electorate, replies, alone); err == nil {
				c.All(ctx, everyone(parent, v), Request{Step: Chosen, Value: &v}) // who misses it learns it from others
				return v, nil
			}
		}
		if ctx.Err() != nil {
			return facts.Generation{}, ctx.Err()
		}
		if higher == nil || attempt == maxAttempts {
			return facts.Generation{}, err
		}
		ballot.Round = higher.Round + 1
		c.Pause(ctx, attempt)
	}
}

// pick returns what must be proposed after these promises: the vote of the highest ballot, since it may have been chosen.
func pick(own facts.Generation, promises map[string]Reply) facts.Generation {
	var last *Vote
	for _, r := range promises {
		if r.Done && r.Accepted != nil && (last == nil || r.Accepted.Ballot.Compare(last.Ballot) > 0) {
			last = r.Accepted
		}
	}
	if last == nil {
		return own
	}
	return last.Generation
}

// outcome returns nil if a majority of the electorate has done what was asked. Otherwise it returns the reason, and the highest
// ballot that others have promised if another attempt makes sense. If it counts members without a memory (alone), each of the
// others that answers must have done it as well, because only their votes are remembered.
func outcome(electorate []facts.Member, replies map[string]Reply, alone bool) (higher *Ballot, err error) {
	done := 0
	var silent, forgot []string
	for _, m := range electorate {
		r, heard := replies[m.Name]
		switch {
		case !heard:
			silent = append(silent, m.Name)
		case r.Done:
			done++
		case r.Known != nil:
			err = &Behind{*r.Known}
		case r.Refused != "":
			err = fmt.Errorf("%s refuses: %s", m.Name, r.Refused)
		case r.Forgot:
			forgot = append(forgot, m.Name)
		default:
			if higher == nil || r.Promised.Compare(*higher) > 0 {
				higher = &r.Promised
			}
		}
	}
	switch {
	case done >= majority(len(electorate)) && (!alone || higher == nil):
		return nil, nil
	case err != nil:
		return nil, err
	case higher != nil:
		return higher, fmt.Errorf("somebody else is changing this cluster at the same time")
	}
	return nil, &NoMajority{Need: majority(len(electorate)), Of: len(electorate), Silent: silent, Forgot: forgot}
}

// everyone returns the members of both generations.
func everyone(a, b facts.Generation) []facts.Member {
	all := slices.Clone(b.Members)
	for _, m := range a.Members {
		if !slices.ContainsFunc(all, func(n facts.Member) bool { return n.Name == m.Name }) {
			all = append(all, m)
		}
	}
	return all
}

// Behind says that a later generation than the proposer's parent is in use.
type Behind struct{ InUse facts.Generation }

func (e *Behind) Error() string {
	return fmt.Sprintf("generation %d is in use already", e.InUse.Number)
}

// NoMajority says that too few members can vote.
type NoMajority struct {
	Need, Of       int
	Silent, Forgot []string
}

func (e *NoMajority) Error() string {
	said := fmt.Sprintf("%d of %d votes are needed for a new generation", e.Need, e.Of)
	if len(e.Silent) > 0 {
		said += "; not answering: " + list(e.Silent)
	}
	if len(e.Forgot) > 0 {
		said += "; with new disks since the last generation, so that they may have forgotten a vote: " + list(e.Forgot)
	}
	return said
}

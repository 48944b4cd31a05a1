// Package agree makes sure that a generation has one successor: single-decree Paxos among the members of the generation in use.
// Everything here is pure; the agent keeps an acceptor's state and serves it, the operator's program is the proposer.
//
// A generation is chosen once a majority of its parent's electorate has durably accepted it for one ballot. Chosen generations
// form a chain with growing numbers, so no number is ever chosen twice.
//
// Nodes are replaced all the time, and an acceptor must not forget its votes. Therefore members with a data disk vote, where
// there are any, and an acceptor that has lost its memory does not vote on what it may have voted on before (see Fence).
package agree

import (
	"cmp"
	"fmt"

	"imagegen/cluster/facts"
)

// Ballot is an attempt of a proposer.
type Ballot struct {
	Round    int    `json:"round"`
	Proposer string `json:"proposer"` // unique to each run of each proposer
}

// Compare orders ballots.
func (b Ballot) Compare(o Ballot) int {
	return cmp.Or(cmp.Compare(b.Round, o.Round), cmp.Compare(b.Proposer, o.Proposer))
}

// Vote is a generation that an acceptor has accepted.
type Vote struct {
	Ballot     Ballot           `json:"ballot"`
	Generation facts.Generation `json:"generation"`
}

// State is an acceptor's memory. It must be durable before a reply is sent. The zero value remembers nothing.
type State struct {
	// Fence is the number of the latest generation on whose successor the acceptor must not vote: before it lost its memory it may
	// have voted on it. nil: not known yet, it does not vote at all.
	Fence *int `json:"fence,omitempty"`
	// Known is the latest generation that is known to be in use. Promised and Accepted are about its successor.
	Known    *facts.Generation `json:"known,omitempty"`
	Promised Ballot            `json:"promised"`
	Accepted *Vote             `json:"accepted,omitempty"`
}

// Step is what a request asks for.
type Step string

const (
	Prepare Step = "prepare" // promise to ignore lower ballots
	Accept  Step = "accept"  // vote for Value
	Chosen  Step = "chosen"  // learn that Value is in use
)

// Request is what a proposer asks of an acceptor.
type Request struct {
	Step   Step              `json:"step"`
	Ballot Ballot            `json:"ballot"`
	Parent *facts.Generation `json:"parent,omitempty"` // in use; not for Chosen
	Value  *facts.Generation `json:"value,omitempty"`  // not for Prepare
	// Alone says that an operator has made sure that nobody else proposes anything, so that acceptors without a memory may vote.
	Alone bool `json:"alone,omitempty"`
}

// Reply is an acceptor's answer.
type Reply struct {
	Done     bool              `json:"done"`               // it promised, accepted or learned
	Known    *facts.Generation `json:"known,omitempty"`    // instead: this later generation is in use
	Promised Ballot            `json:"promised"`           // instead: it has promised this higher ballot
	Forgot   bool              `json:"forgot,omitempty"`   // instead: it may have forgotten a vote
	Refused  string            `json:"refused,omitempty"`  // instead: why Value can never be accepted
	Accepted *Vote             `json:"accepted,omitempty"` // what it has accepted before
}

// Handle returns an acceptor's state after a request, and its reply.
func (s State) Handle(r Request) (State, Reply) {
	if r.Step == Chosen {
		next, err := s.Learn(*r.Value)
		if err != nil {
			return s, Reply{Refused: err.Error()}
		}
		return next, Reply{Done: true}
	}
	if s.Known != nil && r.Parent.Number < s.Known.Number {
		return s, Reply{Known: s.Known}
	}
	s, err := s.Learn(*r.Parent)
	if err != nil {
		return s, Reply{Refused: err.Error()}
	}
	if s.Fence == nil || r.Parent.Number <= *s.Fence {
		if !r.Alone {
			return s, Reply{Forgot: true}
		}
		fence := r.Parent.Number - 1
		s.Fence = &fence
	}
	if r.Ballot.Compare(s.Promised) < 0 {
		return s, Reply{Promised: s.Promised}
	}
	if r.Step == Accept {
		if err := Follows(r.Parent.Manifest, r.Parent.Digest, r.Value.Manifest); err != nil {
			return s, Reply{Refused: err.Error()}
		}
		s.Accepted = &Vote{r.Ballot, *r.Value}
	}
	s.Promised = r.Ballot
	return s, Reply{Done: true, Accepted: s.Accepted}
}

// Learn returns the state after hearing that g is in use.
func (s State) Learn(g facts.Generation) (State, error) {
	switch {
	case s.Known == nil || g.Number > s.Known.Number:
		return State{Fence: s.Fence, Known: &g}, nil
	case g.Number == s.Known.Number && g.Digest != s.Known.Digest:
		return s, fmt.Errorf("another generation %d is in use", g.Number)
	}
	return s, nil
}

// Follows returns an error if value may not become the successor of parent.
func Follows(parent facts.Manifest, digest string, value facts.Manifest) error {
	switch {
	case value.ClusterID != parent.ClusterID:
		return fmt.Errorf("generation %d is of another cluster", value.Number)
	case value.Parent != digest:
		return fmt.Errorf("generation %d was not made for a cluster that runs generation %d", value.Number, parent.Number)
	case value.Number <= parent.Number:
		return fmt.Errorf("generation %d is older than generation %d, which is in use", value.Number, parent.Number)
	case value.Secrets < parent.Secrets:
		return fmt.Errorf("generation %d was made with revision %d of the cluster's secrets, and generation %d, which is in use, with revision %d: "+
			"get the newer copy of the folder secrets", value.Number, value.Secrets, parent.Number, parent.Secrets)
	}
	return nil
}

// Merge returns the memory of two copies of an acceptor's state, either of which may be older, or zero.
func Merge(a, b State) State {
	fence := a.Fence
	if fence == nil || b.Fence != nil && *b.Fence < *fence {
		fence = b.Fence
	}
	newer := a
	switch {
	case a.Known == nil || b.Known != nil && b.Known.Number > a.Known.Number:
		newer = b
	case b.Known != nil && b.Known.Number == a.Known.Number:
		if b.Promised.Compare(a.Promised) > 0 {
			newer.Promised = b.Promised
		}
		if b.Accepted != nil && (a.Accepted == nil || b.Accepted.Ballot.Compare(a.Accepted.Ballot) > 0) {
			newer.Accepted = b.Accepted
		}
	}
	newer.Fence = fence
	return newer
}

// Status is what an agent tells of its acceptor. Generations are named only: see facts.GenerationPath.
type Status struct {
	Node     string     `json:"node"`
	Seed     string     `json:"seed,omitempty"`     // digest of the seed that the node runs
	Running  *Named     `json:"running,omitempty"`  // the generation that the node's seed came with; nil: it came with none
	Previous *Named     `json:"previous,omitempty"` // the generation of the seed to which the node can still go back; nil: it cannot
	Fence    *int       `json:"fence,omitempty"`
	Known    *Named     `json:"known,omitempty"`
	Accepted *NamedVote `json:"accepted,omitempty"`
}

// Named identifies a generation.
type Named struct {
	Number int    `json:"number"`
	Digest string `json:"digest"`
}

// NamedVote is a Vote.
type NamedVote struct {
	Ballot Ballot `json:"ballot"`
	Named
}

// Name returns what identifies g; nil for nil.
func Name(g *facts.Generation) *Named {
	if g == nil {
		return nil
	}
	return &Named{g.Number, g.Digest}
}

// Status returns what an agent tells of this state.
func (s State) Status() Status {
	status := Status{Fence: s.Fence, Known: Name(s.Known)}
	if s.Accepted != nil {
		status.Accepted = &NamedVote{s.Accepted.Ballot, *Name(&s.Accepted.Generation)}
	}
	return status
}

func majority(n int) int { return n/2 + 1 }

// Decode reads a State, a Request or a Reply into v. Every generation in it is checked with verify (see facts.Verify).
func Decode(data []byte, v interface{ generations() []*facts.Generation }, verify func(envelope []byte) (facts.Generation, error)) error {
	if err := facts.DecodeJSON(data, v, false); err != nil {
		return err
	}
	for _, g := range v.generations() {
		if g == nil {
			continue
		}
		if _, err := verify(g.Signed); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) generations() []*facts.Generation {
	return []*facts.Generation{s.Known, s.Accepted.generation()}
}

func (r *Request) generations() []*facts.Generation { return []*facts.Generation{r.Parent, r.Value} }

func (r *Reply) generations() []*facts.Generation {
	return []*facts.Generation{r.Known, r.Accepted.generation()}
}

func (v *Vote) generation() *facts.Generation {
	if v == nil {
		return nil
	}
	return &v.Generation
}

// Complete returns an error for a request that lacks what its step needs.
func (r *Request) Complete() error {
	ok := false
	switch r.Step {
	case Prepare:
		ok = r.Parent != nil && r.Value == nil
	case Accept:
		ok = r.Parent != nil && r.Value != nil
	case Chosen:
		ok = r.Parent == nil && r.Value != nil
	}
	if !ok || r.Step != Chosen && (r.Ballot.Round < 1 || r.Ballot.Proposer == "") {
		return fmt.Errorf("a request to %q needs a ballot and other generations than these", r.Step)
	}
	return nil
}

// Package ensemble is what all components share that decide together with their peers: who the members are, which of
// them were heard and what they reported, whom an operator has given up, and when to try again. It does no input or
// output and reads no clock, so that the agent and the simulator run the same code.
package ensemble

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"imagegen/cluster/facts"
)

// HeardLimit is the age above which a report counts in no decision.
const HeardLimit = 5 * time.Second

// World is what a component may base a decision on, beside its own observation.
type World struct {
	Self  facts.Peer
	Peers []facts.Peer // that the node knows (facts.PeerRoles), self excluded
	// Reports has what each peer that answered lately published, by node name. Nothing may be assumed about a peer that
	// is not in it.
	Reports map[string]PeerReport
	// Own is what this node publishes itself: components of one node decide with each other in view.
	Own facts.NodeReport
	// Joint has the memberships of this node's role that count. Without any, those are counted that Self and Peers name.
	Joint facts.Joint
	// Without has the nodes that the component is to go on without while they are silent, by an operator's decision.
	Without []string
}

// PeerReport is one peer's answer.
type PeerReport struct {
	facts.NodeReport
	Age time.Duration // since the question was sent
}

// In returns the peers that have the role, in the spec's order.
func (w World) In(role string) []facts.Peer {
	var ps []facts.Peer
	for _, p := range w.Peers {
		if p.Role == role {
			ps = append(ps, p)
		}
	}
	return ps
}

// Fresh returns r without the observations that are older than limit, where the answer itself is already of an age. A
// component that hangs, or is busy with a long step, does not look; what it saw before says nothing about now.
func Fresh(r facts.NodeReport, age, limit time.Duration) facts.NodeReport {
	oldest := int64(0)
	for _, ms := range r.Ages {
		oldest = max(oldest, ms)
	}
	if age+time.Duration(oldest)*time.Millisecond <= limit {
		return r
	}
	var fresh map[string]facts.ComponentReport
	for name, c := range r.Components {
		if len(c.Report) == 0 || age+time.Duration(r.Ages[name])*time.Millisecond <= limit {
			continue
		}
		if fresh == nil {
			fresh = maps.Clone(r.Components)
		}
		c.Report = nil
		fresh[name] = c
	}
	if fresh != nil {
		r.Components = fresh
	}
	return r
}

// Reader reads the reports of the components of one kind, whatever their names are. The zero value is ready for use.
// It keeps what it has read: most reports say what the one before said.
type Reader[T any] struct {
	read map[string]reading[T] // by node
}

type reading[T any] struct {
	raw []byte
	v   T
}

// Of returns what a node's component of a kind observed, as far as it is known. The value is shared between calls and
// must not be changed. runs is false for a node that has no such component, which has then said all there is to say.
func (r *Reader[T]) Of(report facts.NodeReport, kind string) (v T, runs, known bool) {
	if report.Components == nil {
		return v, true, false
	}
	for _, c := range report.Components {
		if c.Kind != kind {
			continue
		}
		if len(c.Report) == 0 {
			return v, true, false
		}
		node := report.Node.Name
		if last, ok := r.read[node]; ok && bytes.Equal(last.raw, c.Report) {
			return last.v, true, true
		}
		if json.Unmarshal(c.Report, &v) != nil {
			var none T
			return none, true, false
		}
		if r.read == nil {
			r.read = map[string]reading[T]{}
		}
		r.read[node] = reading[T]{c.Report, v}
		return v, true, true
	}
	return v, false, true
}

// From returns the same of a peer. A peer that does not answer, or has no such component, is not known.
func (r *Reader[T]) From(w World, peer, kind string) (v T, known bool) {
	report, ok := w.Reports[peer]
	if !ok {
		return v, false
	}
	v, runs, known := r.Of(report.NodeReport, kind)
	return v, runs && known
}

// Silent returns the names of the members that were not heard and still count.
func Silent(members []Member) []string {
	var names []string
	for _, m := range members {
		if !m.Heard && !m.GivenUp {
			names = append(names, m.Name)
		}
	}
	return names
}

// Await is the status of a component that waits for silent members, and that a decision of an operator's would let go
// on. A node whose agent answers is not lost, so it cannot be given up.
func Await(members []Member, silent []string, format string, args ...any) facts.Status {
	missing := slices.DeleteFunc(slices.Clone(silent), func(name string) bool {
		return slices.ContainsFunc(members, func(m Member) bool { return m.Name == name && m.Answers })
	})
	return facts.Status{
		State:   facts.Waiting,
		Detail:  fmt.Sprintf("for "+strings.Join(silent, ", ")+format, args...),
		Missing: strings.Join(missing, ","),
	}
}

// Foreign is the error of data that belongs to another cluster: nothing is done with it. It is nil where the mark
// is this cluster's.
func Foreign(where, mark, cluster string) error {
	if mark == cluster {
		return nil
	}
	return fmt.Errorf("%s of the cluster %s, and this one is %s: remove the data disk if it may be lost", where, mark, cluster)
}

// StillSilent returns those of the named nodes whose agents do not answer. A decision about one that does has ended.
func StillSilent(names []string, heard map[string]PeerReport) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, answers := heard[n]; return answers })
}

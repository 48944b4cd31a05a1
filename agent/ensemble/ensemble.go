// Package ensemble is the part of decisions that all components with peers share: who the members are, which of them were
// heard, what they reported, which of them an operator has given up, and when to try again. It does no input or output and
// reads no clock, so that the agent and the simulator run the same code.
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

// World is what a component may base a decision on, in addition to its own observation.
type World struct {
	Self  facts.Peer
	Peers []facts.Peer // the peers listed in the node's facts (see facts.PeerRoles), without the node itself
	// Reports holds the latest report of each peer, by node name, unless it is older than HeardLimit. Nothing may be
	// assumed about a peer that is missing here.
	Reports map[string]PeerReport
	// Own is what this node publishes, so that a component sees the state of the node's other components.
	Own facts.NodeReport
	// Joint has the memberships of this node's role that count. Without any, those are counted that Self and Peers name.
	Joint facts.Joint
	// Without lists the nodes that an operator has given up. It counts only while they are silent.
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

// Fresh returns r, which was received age ago, without the observations that are older than limit. A component that hangs or
// is busy with a long step does not observe, and its last observation may no longer be true.
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

// Reader decodes the reports of the components of one kind, whatever their names are. The zero value is ready for use.
// It caches the last report of each node, because most reports equal the previous one.
type Reader[T any] struct {
	read map[string]reading[T] // by node
}

type reading[T any] struct {
	raw []byte
	v   T
}

// Of returns the observation of a node's component of a kind; known is false if there is none in the report. The value is
// shared between calls and must not be changed. runs is false for a node that has no such component; known is then true,
// since there is nothing more to learn.
func (r *Reader[T]) Of(report facts.NodeReport, kind string) (v T, runs, known bool) {
	if report.Components == nil {
		return v, true, false
	}
	c, runs := report.Components[kind] // usually a component is called as its kind
	if !runs || c.Kind != kind {
		runs = false
		for _, other := range report.Components {
			if other.Kind == kind {
				c, runs = other, true
				break
			}
		}
	}
	switch {
	case !runs:
		return v, false, true
	case len(c.Report) == 0:
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

// From returns the observation of a peer's component. known is false if the peer does not answer or has no such component.
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

// Await is the status of a component that waits for silent members. An operator may give up those whose agents do not answer;
// the status lists them as missing.
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

// Foreign returns an error if data carries the mark of another cluster. Such data must not be touched.
func Foreign(where, mark, cluster string) error {
	if mark == cluster {
		return nil
	}
	return fmt.Errorf("%s of the cluster %s, and this one is %s: remove the data disk if it may be lost", where, mark, cluster)
}

// StillSilent returns those of the named nodes whose agents do not answer. A decision ends for a node that answers.
func StillSilent(names []string, heard map[string]PeerReport) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, answers := heard[n]; return answers })
}

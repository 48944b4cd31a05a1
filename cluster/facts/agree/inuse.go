package agree

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"imagegen/cluster/facts"
	"imagegen/internal/words"
)

// Fetch returns a generation that an acceptor has named.
type Fetch func(Named) (facts.Generation, error)

// Fence returns the fence of an acceptor that remembers nothing: the number of the latest generation on whose successor it may
// have voted. others is what the other members' acceptors said after this one had begun. ok is false until enough of them have
// answered: so many that any majority in which this one has voted has a member among them, or all.
func Fence(self string, running facts.Generation, others map[string]Status, fetch Fetch) (fence int, ok bool, err error) {
	asked := map[string]facts.Generation{running.Digest: running}
	var known *Named
	for _, name := range slices.Sorted(maps.Keys(others)) {
		s := others[name]
		if s.Fence != nil {
			fence = max(fence, *s.Fence)
		}
		if s.Known != nil && (known == nil || s.Known.Number > known.Number) {
			known = s.Known
		}
	}
	var need []Named
	if known != nil {
		fence = max(fence, known.Number)
		need = append(need, *known)
	}
	for _, name := range slices.Sorted(maps.Keys(others)) {
		// It may have been chosen, and this acceptor may have voted on its successor.
		if v := others[name].Accepted; v != nil && (known == nil || v.Number > known.Number) {
			fence = max(fence, v.Number)
			need = append(need, v.Named)
		}
	}
	for _, n := range need {
		if _, ok := asked[n.Digest]; ok {
			continue
		}
		g, err := fetch(n)
		if err != nil {
			return 0, false, err
		}
		asked[n.Digest] = g
	}
	for _, g := range asked {
		electorate := g.Electorate()
		if !slices.ContainsFunc(electorate, func(m facts.Member) bool { return m.Name == self }) {
			continue // it has had no vote there
		}
		answered, remember := 1, 0
		for _, m := range electorate {
			s, heard := others[m.Name]
			if m.Name == self || !heard {
				continue
			}
			answered++
			if s.Fence != nil {
				remember++
			}
		}
		if answered < len(electorate) && remember < len(electorate)-majority(len(electorate))+1 {
			return 0, false, nil
		}
	}
	return fence, true, nil
}

// InUse finds out which generation is in use from what the acceptors say; without are members that have been given up.
//
// A generation is in use if an acceptor knows it to be, if it was chosen, or, in a cluster that has never agreed on one, if a
// majority of its members run what it says. The last holds only once all members have answered.
func InUse(statuses map[string]Status, without []string, fetch Fetch) (facts.Generation, error) {
	nodes := slices.Sorted(maps.Keys(statuses))
	var known *Named
	for _, name := range nodes {
		k := statuses[name].Known
		if k == nil {
			continue
		}
		if known != nil && known.Number == k.Number && known.Digest != k.Digest {
			return facts.Generation{}, fmt.Errorf("there are two generations %d: %s knows another one than the others", k.Number, name)
		}
		if known == nil || k.Number > known.Number {
			known = k
		}
	}
	if known == nil {
		return first(statuses, without, fetch)
	}
	g, err := fetch(*known)
	for err == nil {
		next := chosen(g, statuses)
		if next == nil {
			break
		}
		g, err = fetch(*next)
	}
	return g, err
}

// chosen returns the successor of g that a majority of its electorate has accepted, or nil.
func chosen(g facts.Generation, statuses map[string]Status) *Named {
	votes := map[NamedVote]int{}
	electorate := g.Electorate()
	for _, m := range electorate {
		s := statuses[m.Name]
		if s.Accepted == nil || s.Known == nil || s.Known.Digest != g.Digest {
			continue
		}
		if votes[*s.Accepted]++; votes[*s.Accepted] >= majority(len(electorate)) {
			return &s.Accepted.Named
		}
	}
	return nil
}

// first returns the generation in use where none was ever agreed on: the latest with which a majority of its members were made.
func first(statuses map[string]Status, without []string, fetch Fetch) (facts.Generation, error) {
	var best *facts.Generation
	tried := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(statuses)) {
		n := statuses[name].Running
		if n == nil || tried[n.Digest] {
			continue
		}
		tried[n.Digest] = true
		g, err := fetch(*n)
		if err != nil {
			return facts.Generation{}, err
		}
		same := 0
		for _, m := range g.Members {
			if statuses[m.Name].Seed == m.Seed {
				same++
			}
		}
		if same < majority(len(g.Members)) || best != nil && best.Number > g.Number {
			continue
		}
		if best != nil && best.Number == g.Number {
			return facts.Generation{}, fmt.Errorf("there are two generations %d, and none was agreed on: replace the nodes that were made by another copy of the secrets", g.Number)
		}
		best = &g
	}
	if best == nil {
		return facts.Generation{}, ErrNone
	}
	var silent []string
	for _, m := range best.Members {
		if _, heard := statuses[m.Name]; !heard && !slices.Contains(without, m.Name) {
			silent = append(silent, m.Name)
		}
	}
	if silent != nil {
		return *best, &Silent{silent}
	}
	return *best, nil
}

// ErrNone says that no generation is in use.
var ErrNone = errors.New("no generation is in use: too few nodes run from seeds that belong to one")

// Silent says that the generation in use is not certain, because of members that may run a later one.
type Silent struct{ Nodes []string }

func (e *Silent) Error() string {
	return "these nodes do not answer and may run a later generation: " + list(e.Nodes)
}

// list joins at most so many names that a line stays readable.
func list(names []string) string {
	const most = 8
	if len(names) > most {
		names = append(names[:most:most], fmt.Sprintf("%d more", len(names)-most))
	}
	return words.List(names, "and")
}

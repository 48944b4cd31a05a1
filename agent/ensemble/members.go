package ensemble

import (
	"cmp"
	"slices"

	"imagegen/cluster/facts"
)

// Member is a node of an ensemble as decisions see it.
type Member struct {
	facts.Peer // with the address that it says it has, or else the newest known one
	// In has bit i set if the node is in World.Joint.InUse[i].
	In uint64
	// Number is the generation that the node says it conforms to.
	Number int
	// Answers: its agent does, whatever that knows of the component.
	Answers bool
	// Heard: what its component observed is known. The node itself always is.
	Heard bool
	// Hears: it has heard this node lately, as this node has been told. The node itself always does.
	Hears bool
	// GivenUp: an operator has decided to go on without it, and its agent does not answer.
	GivenUp bool
}

// Members returns the nodes of this node's role in all memberships in use, and which of them is the node itself. They are in the
// order of the oldest membership; newcomers come after. So whoever is first among some nodes stays the first when one of
// them learns of another generation. Who was heard is for the caller to fill in; see Reader.
func Members(w World) (members []Member, self int) {
	find := func(name string) int {
		return slices.IndexFunc(members, func(m Member) bool { return m.Name == name })
	}
	inUse := w.inUse()
	members = make([]Member, 0, len(inUse[0].Members)+2)
	for i, in := range inUse {
		for _, p := range in.Members {
			at := find(p.Name)
			if at < 0 {
				at = len(members)
				members = append(members, Member{})
			}
			members[at].Peer = p
			members[at].In |= 1 << i
		}
	}
	if find(w.Self.Name) < 0 {
		members = append(members, Member{}) // it has left
		members[len(members)-1].Name = w.Self.Name
	}
	for i := range members {
		m := &members[i]
		if m.Name == w.Self.Name {
			m.Peer, m.Number, m.Answers, m.Heard, m.Hears = w.Self, w.Joint.Number, true, true, true
			continue
		}
		var report PeerReport
		if report, m.Answers = w.Reports[m.Name]; report.Node.IP != "" {
			m.IP = report.Node.IP
		}
		m.Hears = slices.Contains(report.Heard, w.Self.Name)
		if report.Joint != nil {
			m.Number = report.Joint.Number
		}
		m.GivenUp = !m.Answers && slices.Contains(w.Without, m.Name)
	}
	return members, find(w.Self.Name)
}

// inUse returns the memberships that count.
func (w World) inUse() []facts.Membership {
	if len(w.Joint.InUse) > 0 {
		return w.Joint.InUse
	}
	return []facts.Membership{Own(0, w.Self, w.Peers)}
}

// Own returns the membership that a node's facts name.
func Own(number int, self facts.Peer, peers []facts.Peer) facts.Membership {
	m := facts.Membership{Number: number, Members: []facts.Peer{self}}
	for _, p := range peers {
		if p.Role == self.Role {
			m.Members = append(m.Members, p)
		}
	}
	slices.SortStableFunc(m.Members, func(a, b facts.Peer) int { return cmp.Compare(a.Index, b.Index) })
	return m
}

// Addresses returns, for each address that memberships in use and reports tell of, the present address of the node that it is or was
// of. An address that a node has now is that node's, whoever had it before. A node which does not answer is taken to be where others
// say that it was last, as far as seen tells; or else where it was when the address was written down.
func Addresses(w World, members []Member, seen func(ip string) bool) map[string]string {
	now := map[string]string{}
	inUse := w.inUse()
	for i, in := range inUse {
		for _, p := range in.Members {
			now[p.IP] = p.IP
			at := slices.IndexFunc(members, func(m Member) bool { return m.Name == p.Name })
			switch {
			case at >= 0 && members[at].Answers:
				now[p.IP] = members[at].IP
			case i > 0 && seen(p.IP):
				for _, before := range inUse[:i] {
					for _, was := range before.Members {
						if was.Name == p.Name {
							now[was.IP] = p.IP
						}
					}
				}
			}
		}
	}
	for _, m := range members {
		if m.Answers {
			now[m.IP] = m.IP
		}
	}
	return now
}

// Majority tells whether the members that have something are a majority of every membership in use, and whether they are one of any.
// Members that name no membership are all of one.
func Majority(members []Member, has func(i int) bool) (every, any bool) {
	all := uint64(0)
	for _, m := range members {
		all |= m.In
	}
	every = true
	for bit := uint64(1); bit <= max(all, 1); bit <<= 1 {
		n, of := 0, 0
		for i, m := range members {
			if m.In&bit == 0 && all > 0 {
				continue
			}
			if of++; has(i) {
				n++
			}
		}
		every, any = every && 2*n > of, any || 2*n > of
	}
	return every, any
}

// Complete returns the number of the newest membership in use that works by itself: all of its members are well and conform to its
// generation or a later one, and there are as many as size. ok is false if there is none, or only the oldest.
func Complete(w World, members []Member, well func(i, size int) bool) (number int, ok bool) {
	inUse := w.inUse()
	for bit := len(inUse) - 1; bit > 0 && inUse[bit].Number > inUse[0].Number; bit-- {
		in := inUse[bit]
		whole := true
		for i, m := range members {
			whole = whole && (m.In>>bit&1 == 0 || m.Number >= in.Number && well(i, len(in.Members)))
		}
		if whole {
			return in.Number, true
		}
	}
	return 0, false
}

// Target returns the newest membership in use. ok is false unless all of its members conform to it, and none other has its number:
// of several that were proposed, one is chosen. A silent newcomer is not waited for: new members start one after the other.
func Target(w World, members []Member) (target facts.Membership, ok bool) {
	inUse := w.inUse()
	last := len(inUse) - 1
	if last > 0 && inUse[last-1].Number == inUse[last].Number {
		return facts.Membership{}, false
	}
	return inUse[last], !slices.ContainsFunc(members, func(m Member) bool {
		return m.In>>last&1 == 1 && !m.SilentNewcomer() && (!m.Answers || m.Number < inUse[last].Number)
	})
}

// SilentNewcomer tells whether a member does not answer, and has not been one in the oldest membership in use.
func (m Member) SilentNewcomer() bool { return m.In&1 == 0 && !m.Answers }

// Agreed tells whether all members count the same memberships, as far as they have not been given up. A node whose agent counts
// none, as earlier versions do, does not agree. Silent newcomers are not asked, if the others are a majority of every membership:
// no other generation can have been chosen without one of these.
func Agreed(w World, members []Member) bool {
	every, _ := Majority(members, func(i int) bool { return members[i].GivenUp || !members[i].SilentNewcomer() })
	return every && !slices.ContainsFunc(members, func(m Member) bool {
		if m.Name == w.Self.Name || m.GivenUp || m.SilentNewcomer() {
			return false
		}
		j := w.Reports[m.Name].Joint
		return j == nil || !slices.EqualFunc(j.InUse, w.Joint.InUse, same)
	})
}

// Leaves tells whether a node is to leave: it is not in the membership with this number or, if that is 0, in any.
func Leaves(w World, number int) bool {
	return Left(w, w.Self.Name, number)
}

// Left is Leaves for any node.
func Left(w World, name string, number int) bool {
	return !slices.ContainsFunc(w.inUse(), func(in facts.Membership) bool {
		return in.Number >= number && slices.ContainsFunc(in.Members, func(p facts.Peer) bool { return p.Name == name })
	})
}

// First returns the first of the members that were heard: the one that starts what must be started once.
func First(members []Member) Member {
	i := slices.IndexFunc(members, func(m Member) bool { return m.Heard })
	return members[max(0, i)]
}

// Count returns j with another membership, unless that is forgotten.
func Count(j facts.Joint, m facts.Membership) facts.Joint {
	if m.Number < j.Settled || slices.ContainsFunc(j.InUse, func(have facts.Membership) bool { return same(have, m) }) {
		return j
	}
	j.InUse = append(slices.Clone(j.InUse), m)
	slices.SortStableFunc(j.InUse, func(a, b facts.Membership) int { return cmp.Compare(a.Number, b.Number) })
	return j
}

// Settle returns j without the memberships before a generation.
func Settle(j facts.Joint, number int) facts.Joint {
	if number > j.Settled {
		j.Settled = number
		j.InUse = slices.DeleteFunc(slices.Clone(j.InUse), func(m facts.Membership) bool { return m.Number < number })
	}
	return j
}

// Learn returns j with what another node, or an earlier record, says. j.Number is kept. Nodes of another role have nothing to say.
func Learn(j, other facts.Joint) facts.Joint {
	if other.Role != j.Role {
		return j
	}
	j = Settle(j, other.Settled)
	for _, m := range other.InUse {
		j = Count(j, m)
	}
	return j
}

// Same tells whether a and b count the same.
func Same(a, b facts.Joint) bool {
	return a.Role == b.Role && a.Number == b.Number && a.Settled == b.Settled && slices.EqualFunc(a.InUse, b.InUse, same)
}

func same(a, b facts.Membership) bool {
	return a.Number == b.Number && slices.Equal(a.Members, b.Members)
}

package ensemble

import (
	"slices"
	"testing"

	"imagegen/cluster/facts"
)

// membership has nodes with the addresses 10.0.NUMBER.1, 10.0.NUMBER.2, …
func membership(number int, names ...string) facts.Membership {
	m := facts.Membership{Number: number}
	for i, name := range names {
		m.Members = append(m.Members, facts.Peer{Name: name, Role: "r", Index: i, IP: "10.0." + string(rune('0'+number)) + "." + string(rune('1'+i))})
	}
	return m
}

// changing is a world in which c leaves, d comes and b comes first, seen by one of them.
func changing(self string) World {
	w := World{Joint: facts.Joint{Number: 1, InUse: []facts.Membership{membership(1, "a", "b", "c"), membership(2, "b", "a", "d")}}, Reports: map[string]PeerReport{}}
	w.Self = facts.Peer{Name: self, Role: "r", IP: "10.9.9.9"}
	return w
}

func names(members []Member) (list []string) {
	for _, m := range members {
		list = append(list, m.Name)
	}
	return list
}

func TestMembersOfAllGenerationsInUse(t *testing.T) {
	w := changing("b")
	w.Reports["c"] = PeerReport{NodeReport: facts.NodeReport{Node: facts.Peer{Name: "c", IP: "10.0.1.3"}, Joint: &facts.Joint{Number: 1}}}
	w.Reports["a"] = PeerReport{NodeReport: facts.NodeReport{Node: facts.Peer{Name: "a", IP: "10.0.1.1"}, Joint: &facts.Joint{Number: 2}}}
	w.Without = []string{"c", "d"}
	members, self := Members(w)
	if got := names(members); self != 1 || !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Fatalf("%d of %v", self, got)
	}
	for i, want := range []Member{
		{In: 3, Number: 2, Peer: facts.Peer{IP: "10.0.1.1"}, Answers: true}, // it has not moved
		{In: 3, Number: 1, Peer: facts.Peer{IP: "10.9.9.9"}, Answers: true, Heard: true, Hears: true},
		{In: 1, Number: 1, Peer: facts.Peer{IP: "10.0.1.3"}, Answers: true},
		{In: 2, Peer: facts.Peer{IP: "10.0.2.3"}, GivenUp: true},
	} {
		m := members[i]
		m.Peer = facts.Peer{IP: m.IP}
		if m != want {
			t.Errorf("%s: %+v, want %+v", members[i].Name, m, want)
		}
	}
	now := Addresses(w, members, func(string) bool { return false })
	for ip, want := range map[string]string{"10.0.1.1": "10.0.1.1", "10.0.2.2": "10.0.1.1", "10.0.1.2": "10.9.9.9", "10.9.9.9": "10.9.9.9", "10.0.2.3": "10.0.2.3", "10.0.3.1": ""} {
		if now[ip] != want {
			t.Errorf("%s is now %q, want %q", ip, now[ip], want)
		}
	}
}

// Where a silent node is, others may know that have heard it there.
func TestAddressesOfSilentNodes(t *testing.T) {
	moved := func(number int, ip string) facts.Membership {
		m := membership(number, "a", "b")
		m.Members[1].IP = ip
		return m
	}
	w := World{Self: facts.Peer{Name: "a", Role: "r", IP: "10.0.3.1"}, Joint: facts.Joint{Number: 3, InUse: []facts.Membership{moved(1, "10.7.0.1"), moved(2, "10.7.0.2"), moved(3, "10.7.0.3")}}}
	members, _ := Members(w)
	for _, c := range []struct {
		seen []string
		want [3]string
	}{
		{nil, [3]string{"10.7.0.1", "10.7.0.2", "10.7.0.3"}},
		{[]string{"10.7.0.1"}, [3]string{"10.7.0.1", "10.7.0.2", "10.7.0.3"}},
		{[]string{"10.7.0.1", "10.7.0.2"}, [3]string{"10.7.0.2", "10.7.0.2", "10.7.0.3"}},
		{[]string{"10.7.0.2", "10.7.0.3"}, [3]string{"10.7.0.3", "10.7.0.3", "10.7.0.3"}},
	} {
		now := Addresses(w, members, func(ip string) bool { return slices.Contains(c.seen, ip) })
		if got := [3]string{now["10.7.0.1"], now["10.7.0.2"], now["10.7.0.3"]}; got != c.want {
			t.Errorf("seen at %v: %v, want %v", c.seen, got, c.want)
		}
	}
}

// Who is first does not change when another generation becomes known.
func TestFirstIsOfTheOldestGeneration(t *testing.T) {
	joint, _ := Members(changing("b"))
	old := changing("b")
	old.Joint.InUse = old.Joint.InUse[:1]
	before, _ := Members(old)
	for i := range before {
		before[i].Heard, joint[i].Heard = i > 0, i > 0
	}
	if a, b := First(before).Name, First(joint).Name; a != "b" || b != "b" {
		t.Errorf("%s before, %s during the change", a, b)
	}
}

func TestMajorityInEveryGeneration(t *testing.T) {
	members, _ := Members(changing("a"))
	for _, c := range []struct {
		have       string
		every, any bool
	}{{"ab", true, true}, {"ac", false, true}, {"ad", false, true}, {"cd", false, false}, {"acd", true, true}, {"", false, false}, {"a", false, false}} {
		every, any := Majority(members, func(i int) bool { return slices.Contains([]byte(c.have), members[i].Name[0]) })
		if every != c.every || any != c.any {
			t.Errorf("%q: %v, %v", c.have, every, any)
		}
	}
	plain := make([]Member, 3)
	if every, any := Majority(plain, func(i int) bool { return i < 2 }); !every || !any {
		t.Error("two of three are no majority")
	}
	if every, any := Majority(plain, func(i int) bool { return i < 1 }); every || any {
		t.Error("one of three is a majority")
	}
}

func TestComplete(t *testing.T) {
	w := changing("a")
	w.Joint.Number = 2
	for _, name := range []string{"b", "d"} {
		w.Reports[name] = PeerReport{NodeReport: facts.NodeReport{Joint: &facts.Joint{Number: 2}}}
	}
	well := func(_, size int) bool { return size == 3 }
	members, _ := Members(w)
	if number, ok := Complete(w, members, well); number != 2 || !ok {
		t.Errorf("%d, %v", number, ok)
	}
	if _, ok := Complete(w, members, func(i, _ int) bool { return members[i].Name != "d" }); ok {
		t.Error("complete without a member that is not well")
	}
	w.Joint.InUse[0].Number = 2
	if _, ok := Complete(w, members, well); ok {
		t.Error("of two memberships with the same number, none is newer")
	}
	w.Joint.InUse[0].Number = 1
	members[3].Number = 1
	if _, ok := Complete(w, members, well); ok {
		t.Error("complete while a member does not conform")
	}
	w.Joint.InUse = w.Joint.InUse[:1]
	if _, ok := Complete(w, members, well); ok {
		t.Error("there is nothing to settle with one membership")
	}
}

func TestLeaves(t *testing.T) {
	for self, want := range map[string][2]bool{"a": {false, false}, "c": {false, true}, "d": {false, false}, "x": {true, true}} {
		w := changing(self)
		if got := [2]bool{Leaves(w, 0), Leaves(w, 2)}; got != want {
			t.Errorf("%s: %v", self, got)
		}
	}
	w := changing("x")
	if members, self := Members(w); members[self].Name != "x" || members[self].In != 0 {
		t.Errorf("%+v", members)
	}
}

func TestMembershipsAreLearnedAndForgotten(t *testing.T) {
	one, two, three := membership(1, "a", "b", "c"), membership(2, "a", "b", "d"), membership(3, "a", "d")
	j := Count(facts.Joint{Number: 7}, two)
	j = Learn(j, facts.Joint{Number: 1, InUse: []facts.Membership{one, two}})
	want := facts.Joint{Number: 7, InUse: []facts.Membership{one, two}}
	if !Same(j, want) {
		t.Errorf("%+v", j)
	}
	j = Learn(j, facts.Joint{Settled: 2, InUse: []facts.Membership{two, three}})
	want = facts.Joint{Number: 7, Settled: 2, InUse: []facts.Membership{two, three}}
	if !Same(j, want) {
		t.Errorf("%+v", j)
	}
	if again := Count(Learn(j, facts.Joint{InUse: []facts.Membership{one}}), one); !Same(again, want) {
		t.Errorf("what was forgotten counts again: %+v", again)
	}
	if other := Learn(j, facts.Joint{Role: "other", Settled: 9, InUse: []facts.Membership{one}}); !Same(other, want) {
		t.Errorf("learned from another role: %+v", other)
	}
	if other := Count(j, membership(3, "a", "e")); len(other.InUse) != 3 {
		t.Error("two memberships of one number are taken for one")
	}
	if earlier := Settle(j, 1); !Same(earlier, want) {
		t.Errorf("%+v", earlier)
	}
}

func TestTargetAndAgreement(t *testing.T) {
	w := changing("a")
	w.Joint.Number = 2
	for name, number := range map[string]int{"b": 2, "c": 1, "d": 2} {
		w.Reports[name] = PeerReport{NodeReport: facts.NodeReport{Joint: &facts.Joint{Number: number, InUse: w.Joint.InUse}}}
	}
	members, _ := Members(w)
	if target, ok := Target(w, members); target.Number != 2 || !ok || !Agreed(w, members) {
		t.Errorf("%+v, %v, agreed: %v", target, ok, Agreed(w, members))
	}
	members[3].Answers = false
	if target, ok := Target(w, members); target.Number != 2 || !ok || !Agreed(w, members) {
		t.Errorf("before d has started: %+v, %v, agreed: %v", target, ok, Agreed(w, members))
	}
	members[1].In = 2
	if members[1].Answers = false; Agreed(w, members) {
		t.Error("a alone of a, b and d says what the generation is")
	}
	members[1].In, members[1].Answers, members[3].Answers = 3, true, true
	members[3].Number = 1
	if _, ok := Target(w, members); ok {
		t.Error("d does not conform yet")
	}
	w.Reports["c"].Joint.InUse = w.Joint.InUse[:1]
	if Agreed(w, members) {
		t.Error("c does not count the new generation")
	}
	delete(w.Reports, "c")
	if members[2].Answers = false; Agreed(w, members) {
		t.Error("c is silent")
	}
	if members[2].GivenUp = true; !Agreed(w, members) {
		t.Error("c was given up")
	}
	members[3].Number = 2
	w.Joint.InUse = append(slices.Clone(w.Joint.InUse), membership(2, "a", "b"))
	if _, ok := Target(w, members); ok {
		t.Error("two memberships have the same number")
	}
}

package change

import (
	"fmt"
	"slices"

	"imagegen/internal/words"
)

// refused returns all reasons why the change is not safe.
func (s State) refused() (reasons []string) {
	refuse := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	known := map[string]bool{}
	for _, n := range s.Nodes {
		known[n.Name] = true
		if n.Was != nil && n.Is != nil && n.Was.Role != n.Is.Role {
			refuse("%s was a %s and would become a %s: give the new node another name", n.Name, n.Was.Role, n.Is.Role)
		}
		if n.Takeover != nil {
			for _, why := range n.Takeover.Refuse {
				if !slices.Contains(reasons, why) { // once for all nodes of a role
					reasons = append(reasons, why)
				}
			}
		}
		if slices.Contains(s.Without, n.Name) && !n.Silent {
			refuse("%s answers, so it cannot be given up: leave out --without %[1]s", n.Name)
		}
	}
	for _, name := range s.Without {
		if !known[name] {
			refuse("there is no node %s that could be given up", name)
		}
	}
	switch {
	case s.Elsewhere && s.Tied != "":
		refuse("%s", s.Tied)
	case s.Elsewhere && !s.Outage:
		refuse("the cluster moves to another network, and nodes in one do not reach those in the other: --outage turns all nodes off, and on again in the new one")
	}
	for _, r := range s.Roles {
		var moved []string
		stay, before, after, lost := 0, 0, 0, 0
		changes := ""
		var old []string // their agents count the members of one generation only
		var removed []string
		for _, n := range s.Nodes {
			if n.Role != r.Name {
				continue
			}
			if n.Was != nil {
				before++
			}
			if n.Is != nil {
				after++
			}
			if n.Was != nil && n.arrives() {
				moved = append(moved, n.Name)
			}
			if n.stays() {
				stay++
			}
			if slices.Contains(s.Without, n.Name) {
				lost++
			} else if n.stays() && !n.done() && n.Ready {
				changes = n.Name
			}
			if n.Apart != "" && s.ByHand && n.stays() && !n.done() {
				refuse("%s; without a provider, turn off the others of %s and make the machines of all anew", n.Apart, r.Name)
			}
			if r.Lone && n.Was != nil && n.Is == nil {
				removed = append(removed, n.Name)
			}
			switch {
			case r.Joint && n.Was != nil && !n.Silent && !n.Joint:
				old = append(old, n.Name)
			case r.Quorum && !r.Joint:
				switch {
				case n.Was == nil:
					refuse("%s cannot be added while the cluster runs: the members of %s do not know how to take in another one", n.Name, r.Name)
				case n.Is == nil:
					refuse("%s cannot be removed while the cluster runs: the other members of %s would wait for it", n.Name, r.Name)
				case n.arrives() && !s.down(r) && !s.Elsewhere:
					refuse("%s cannot get another address while the members of %s run: with --outage, all nodes of %s are off until it has it", n.Name, r.Name, r.Name)
				case n.Was.Index != n.Is.Index:
					refuse("%s cannot get another place among the nodes of %s while the cluster runs", n.Name, r.Name)
				}
			}
		}
		down := s.down(r)
		together := func() {
			what := words.List(moved, "and") + " would get other addresses at the same time"
			if stay == 0 {
				what = fmt.Sprintf("no node of %s would keep its address, so none would serve meanwhile", r.Name)
			}
			refuse("%s: change one at a time, or with --outage: all nodes of %s are then off until they have their new addresses", what, r.Name)
		}
		if down {
			reasons = append(reasons, s.outageRefused(r)...)
		}
		if r.Joint && (stay < before || stay < after) {
			switch {
			case before == 0:
				refuse("%s would be a new role: its members start only together, and nodes are added one at a time", r.Name)
				continue
			case len(old) > 0 && after > 0:
				refuse("the agents of %s do not know how the members of %s change: give them the image that imagegen build makes now, in a change of its own", words.List(old, "and"), r.Name)
				continue
			case down || s.Elsewhere:
			case after > 0 && (2*stay <= before || 2*stay <= after):
				if len(moved) > 0 {
					together()
					continue
				}
				refuse("only %d of %d members of %s would stay where they are, of %d then, and a majority of both is needed: change fewer at a time", stay, before, r.Name, after)
				continue
			}
		}
		if len(removed) > 0 && after > 0 {
			refuse("%s cannot be removed: with the option quorum: fixed, one node may have files that no other node of %s knows of; set quorum: auto first, in a change of its own", words.List(removed, "and"), r.Name)
			continue
		}
		switch {
		case down || s.Elsewhere || r.Quorum && !r.Joint && len(moved) > 0:
		case before > 0 && after > 0 && stay == 0 && len(moved) == 0:
			refuse("no node of %s would keep its address, so none would serve meanwhile: change one at a time", r.Name)
		case before > 0 && after > 0 && stay == 0, len(moved) > 1:
			together()
		}
		if !down && r.Quorum && lost > 0 && changes != "" && before-lost-1 < before/2+1 {
			refuse("without %s, %s would have no majority while %s changes", words.List(s.lost(r.Name), "and"), r.Name, changes)
		}
	}
	return reasons
}

// lost returns the nodes of a role that have been given up.
func (s State) lost(role string) (names []string) {
	for _, n := range s.Nodes {
		if n.Role == role && slices.Contains(s.Without, n.Name) {
			names = append(names, n.Name)
		}
	}
	return names
}

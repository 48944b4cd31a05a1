package machines

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"imagegen/cluster"
)

// Place chooses a host for every node of the spec. Nodes that run already stay where placed says they are, so that adding a node
// moves no other. The rest go, in the spec's order, to the host with the fewest nodes of their role, of those to the one with the
// least memory in use by the cluster, of those to the first in hosts. Without hosts, all nodes are placed on "".
func Place(spec *cluster.Spec, hosts []string, placed map[string]string) map[string]string {
	at := map[string]string{}
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	used := map[string]cluster.Bytes{}
	ofRole := map[string]map[string]int{} // by role and host
	put := func(r cluster.Role, node, host string) {
		at[node] = host
		used[host] += r.Memory
		if ofRole[r.Name] == nil {
			ofRole[r.Name] = map[string]int{}
		}
		ofRole[r.Name][host]++
	}
	for _, r := range spec.Roles {
		for _, n := range r.Nodes {
			if host, is := placed[n.Name]; is && slices.Contains(hosts, host) {
				put(r, n.Name, host)
			}
		}
	}
	for _, r := range spec.Roles {
		for _, n := range r.Nodes {
			if _, is := at[n.Name]; is {
				continue
			}
			host := slices.MinFunc(hosts, func(a, b string) int {
				return cmp.Or(cmp.Compare(ofRole[r.Name][a], ofRole[r.Name][b]), cmp.Compare(used[a], used[b]))
			})
			put(r, n.Name, host)
		}
	}
	return at
}

// Losses says what the loss of each host would cost with this placement, one line for each host whose loss the cluster would not
// survive as a whole, in the order of hosts. None: any one host may die. quorum tells which roles decide by majority.
func Losses(spec *cluster.Spec, hosts []string, at map[string]string, quorum func(role string) bool) []string {
	var lines []string
	for _, h := range hosts {
		var costs []string
		for _, r := range spec.Roles {
			lost := 0
			for _, n := range r.Nodes {
				if at[n.Name] == h {
					lost++
				}
			}
			left := len(r.Nodes) - lost
			switch {
			case lost == 0:
			case left == 0 && lost == 1:
				costs = append(costs, fmt.Sprintf("the only node of %s", r.Name))
			case left == 0:
				costs = append(costs, fmt.Sprintf("all nodes of %s", r.Name))
			case quorum(r.Name) && left <= len(r.Nodes)/2:
				costs = append(costs, fmt.Sprintf("the majority of %s (%d of %d)", r.Name, lost, len(r.Nodes)))
			}
		}
		if costs != nil {
			lines = append(lines, fmt.Sprintf("losing host %s loses %s", h, strings.Join(costs, ", ")))
		}
	}
	return lines
}

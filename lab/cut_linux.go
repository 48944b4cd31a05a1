package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"imagegen/cluster/facts"
)

// cutTable is the nftables table, in the cluster's namespace, with the rules of all cuts.
const cutTable = "imagegen-cut"

// Cut drops all packets between nodes and others; without others, between nodes and everybody else, including visitors of the site;
// with oneWay, only packets that nodes send. Earlier cuts stay. Status and Exec still reach all nodes.
func (l *Lab) Cut(ctx context.Context, nodes, others []string, oneWay bool) error {
	if _, err := l.known(slices.Concat(nodes, others)); err != nil {
		return err
	}
	var rules string
	if len(others) == 0 {
		var addresses []string
		for _, n := range append(l.spec.Nodes(), l.removed()...) {
			if slices.Contains(nodes, n.Name) {
				addresses = append(addresses, addressOf(l.runs(n)))
			} else {
				others = append(others, n.Name)
			}
		}
		rules = visitorRules(ports(nodes), addresses, oneWay)
	}
	for _, n := range nodes {
		if slices.Contains(others, n) {
			return fmt.Errorf("%s cannot be cut from itself", n)
		}
	}
	if len(others) == 0 {
		return errors.New("there is no other node to cut from")
	}
	return l.filter(ctx, cutRules(ports(nodes), ports(others), oneWay)+rules)
}

// Mend undoes every Cut.
func (l *Lab) Mend(ctx context.Context) error {
	// Added first: deleting a table that does not exist is an error.
	return l.filter(ctx, fmt.Sprintf("add table bridge %[1]s\ndelete table bridge %[1]s\n", cutTable))
}

// filter runs nft in the cluster's namespace.
func (l *Lab) filter(ctx context.Context, rules string) error {
	c, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer c.release()
	if !l.network.Complete() {
		return l.notUp()
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		return errors.New("cutting the network needs nft, which this machine lacks: apt-get install nftables")
	}
	return l.network.Do(func() error {
		cmd := exec.CommandContext(ctx, nft, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cut the network: nft: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}

// cutRules is the input of nft. A bridge forwards frames from port to port, so the rules filter by port.
func cutRules(ports, others []string, oneWay bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "add table bridge %s\n", cutTable)
	fmt.Fprintf(&b, "add chain bridge %s forward { type filter hook forward priority 0; }\n", cutTable)
	rule := func(from, to []string) {
		fmt.Fprintf(&b, "add rule bridge %s forward iifname { %s } oifname { %s } drop\n", cutTable, strings.Join(from, ", "), strings.Join(to, ", "))
	}
	rule(ports, others)
	if !oneWay {
		rule(others, ports)
	}
	return b.String()
}

// visitorRules cut nodes off from this machine, which is the bridge itself: visitors' requests, and announcements of virtual
// addresses. Agents and SSH at the nodes' own addresses remain reachable.
func visitorRules(ports, addresses []string, oneWay bool) string {
	var b strings.Builder
	chain := func(hook, port, own, service string) {
		fmt.Fprintf(&b, "add chain bridge %s %s { type filter hook %[2]s priority 0; }\n", cutTable, hook)
		for _, what := range []string{"ip " + own + " { %s } tcp " + service + " { 22, " + strconv.Itoa(facts.APIPort) + " } accept", "arp " + own + " ip { %s } accept"} {
			fmt.Fprintf(&b, "add rule bridge %s %s %s { %s } "+what+"\n", cutTable, hook, port, strings.Join(ports, ", "), strings.Join(addresses, ", "))
		}
		fmt.Fprintf(&b, "add rule bridge %s %s %s { %s } drop\n", cutTable, hook, port, strings.Join(ports, ", "))
	}
	chain("input", "iifname", "saddr", "sport")
	if !oneWay {
		chain("output", "oifname", "daddr", "dport")
	}
	return b.String()
}

// ports returns the names of the nodes' ports on the bridge.
func ports(nodes []string) []string {
	var ports []string
	for _, name := range nodes {
		ports = append(ports, port(name))
	}
	return ports
}

// maxPort is the longest name that the kernel gives an interface, in bytes.
const maxPort = 15

// port returns the name of a node's port on the bridge. It depends on the node's name alone, so a node keeps its port when the spec
// changes. Node names may be longer than the names of interfaces.
func port(node string) string {
	if name := "port-" + node; len(name) <= maxPort {
		return name
	}
	return fmt.Sprintf("port%x", sha256.Sum256([]byte(node)))[:maxPort]
}

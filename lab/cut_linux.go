package lab

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"imagegen/cluster"
)

// cutTable is the nftables table, in the cluster's namespace, that has what is cut.
const cutTable = "imagegen-cut"

// Cut drops all packets between nodes and others, all other nodes when there are no others; with oneWay only those that
// nodes send. What was cut before stays so. This machine still reaches all of them.
func (l *Lab) Cut(ctx context.Context, nodes, others []string, oneWay bool) error {
	if _, err := l.pick(slices.Concat(nodes, others)); err != nil {
		return err
	}
	if len(others) == 0 {
		for _, n := range l.spec.Nodes() {
			if !slices.Contains(nodes, n.Name) {
				others = append(others, n.Name)
			}
		}
	}
	for _, n := range nodes {
		if slices.Contains(others, n) {
			return fmt.Errorf("%s cannot be cut from itself", n)
		}
	}
	if len(others) == 0 {
		return errors.New("there is no other node to cut from")
	}
	return l.filter(ctx, cutRules(l.ports(nodes), l.ports(others), oneWay))
}

// Mend undoes every Cut.
func (l *Lab) Mend(ctx context.Context) error {
	// Added first, since deleting a table that is not there is an error.
	return l.filter(ctx, fmt.Sprintf("add table bridge %[1]s\ndelete table bridge %[1]s\n", cutTable))
}

// filter runs nft in the cluster's namespace.
func (l *Lab) filter(ctx context.Context, rules string) error {
	c, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer c.release()
	if !l.network.complete(l.operator) {
		return fmt.Errorf("cluster %s is not up: imagegen up starts it", l.spec.Cluster)
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		return errors.New("cutting the network needs nft, which this machine lacks: apt-get install nftables")
	}
	return l.network.do(func() error {
		cmd := exec.CommandContext(ctx, nft, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cut the network: nft: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}

// cutRules is the input of nft. A bridge passes frames from port to port, so these are what is filtered.
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

// ports returns the names of the nodes' ports on the bridge.
func (l *Lab) ports(nodes []string) []string {
	var ports []string
	for _, name := range nodes {
		ports = append(ports, l.port(name))
	}
	return ports
}

// port is the name of a node's port on the bridge: names of interfaces are short, and those of nodes need not be.
func (l *Lab) port(node string) string {
	return "port" + strconv.Itoa(slices.IndexFunc(l.spec.Nodes(), func(n cluster.Node) bool { return n.Name == node }))
}

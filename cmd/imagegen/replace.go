package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/lab"
)

func replaceCommand() *cli.Command {
	return &cli.Command{
		Name:      "replace",
		Category:  labCategory,
		Usage:     "put a new node in the place of one, and wait until it is ready",
		ArgsUsage: "NODE",
		Description: "The new node has the name and the address of the old one, the image and the seed that imagegen build made last, and\n" +
			"its data disk: with --blank, an empty one instead, as after the loss of a disk. Refused while another node of the\n" +
			"role is not ready, unless --force says that what only this node has may be lost.",
		Flags: []cli.Flag{
			specFlag(), outFlag(),
			&cli.BoolFlag{Name: "blank", Usage: "with an empty data disk"},
			&cli.BoolFlag{Name: "force", Usage: "also while other nodes of the role are not ready"},
			timeoutFlag("give up waiting"),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return wrongf("replace takes one node")
			}
			b := newBlock(c)
			defer b.clear()
			l, names, err := openLab(c, b, c.Args().Slice())
			if err != nil {
				return err
			}
			if err := ready(l, names); err != nil {
				return err
			}
			if !c.Bool("force") {
				if err := othersReady(c.Context, l, names[0]); err != nil {
					return fmt.Errorf("%w; --force replaces %s all the same", err, names[0])
				}
			}
			return replace(c, b, l, names[0], c.Bool("blank"))
		},
	}
}

func rollCommand() *cli.Command {
	return &cli.Command{
		Name:      "roll",
		Category:  labCategory,
		Usage:     "replace all nodes that are not of the latest image and seed, one at a time",
		ArgsUsage: "[ROLE…]",
		Description: "Nodes keep their data disks. Each must be ready before the next is touched, and is not touched before all others of\n" +
			"its role are; at the first that does not become ready in time, the roll stops. Run again, it goes on where it\n" +
			"stopped, since nodes that are of the latest image and seed are left alone. Nodes that an earlier build broke come first:\n" +
			"those that have failed, or are not ready after a minute.",
		Flags: []cli.Flag{specFlag(), outFlag(), timeoutFlag("stop at a node that is not ready")},
		Action: func(c *cli.Context) error {
			p, err := load(c)
			if err != nil {
				return err
			}
			nodes, err := p.nodesOf(c.Args().Slice())
			if err != nil {
				return err
			}
			b := newBlock(c)
			defer b.clear()
			l, _, err := openLab(c, b, nil)
			if err != nil {
				return err
			}
			var names []string
			for _, n := range nodes {
				names = append(names, n.Name)
			}
			if err := ready(l, names); err != nil {
				return err
			}
			replaced := 0
			for _, r := range p.spec.Roles {
				n, err := rollRole(c, b, l, members(r.Name, nodes))
				replaced += n
				if err != nil {
					return err
				}
			}
			fmt.Fprintf(c.App.Writer, "replaced %s; %d up to date already\n", count(replaced, "node"), len(nodes)-replaced)
			return nil
		},
	}
}

// ready fails where nodes cannot be replaced now: build has to be run first, or the cluster is not up.
func ready(l *lab.Lab, names []string) error {
	if err := l.CheckFiles(names...); err != nil {
		return err
	}
	return l.CheckUp()
}

// members returns the names of a role's nodes among nodes.
func members(role string, nodes []cluster.Node) []string {
	var names []string
	for _, n := range nodes {
		if n.Role == role {
			names = append(names, n.Name)
		}
	}
	return names
}

// rollRole replaces the nodes of a role that are not of the latest image and seed, one after the other, and returns how
// many it has replaced.
func rollRole(c *cli.Context, b *block, l *lab.Lab, names []string) (replaced int, err error) {
	for {
		all, err := l.Status(c.Context)
		if err != nil {
			return replaced, err
		}
		next, more := nextToRoll(among(all, names))
		if !more {
			if replaced > 0 { // the last one is waited for, too
				_, err = wait(c, b, l, names)
			}
			return replaced, err
		}
		began := time.Now()
		all, err = waitFor(c, b, l, names, func(nodes []lab.NodeStatus) bool { return settled(nodes, time.Since(began)) })
		if err != nil {
			return replaced, fmt.Errorf("%s is not replaced: %w", next, err)
		}
		nodes := among(all, names)
		next, _ = nextToRoll(nodes)
		for _, n := range nodes {
			if n.Node != next && n.Power == "off" {
				return replaced, fmt.Errorf("%s is not replaced: %s is off: imagegen start %[2]s", next, n.Node)
			}
		}
		if err := l.Replace(c.Context, next, false); err != nil {
			return replaced, err
		}
		b.say("%s: replaced", next)
		replaced++
	}
}

// nextToRoll returns the node of a role that is to be replaced next: while any that is on and not ready is to be, one of
// these, since it serves nobody; false when all are of the latest image and seed.
func nextToRoll(nodes []lab.NodeStatus) (name string, more bool) {
	for _, n := range nodes {
		if n.Build == lab.BuildCurrent {
			continue
		}
		if !isReady(n) && n.Power == "on" {
			return n.Node, true
		}
		if !more {
			name, more = n.Node, true
		}
	}
	return name, more
}

func isReady(n lab.NodeStatus) bool { return n.State == string(facts.Ready) }

// settled tells whether no node of a role that has been watched for so long will become ready before another is replaced
// or turned on. What is of the latest image and seed must become ready, unless it waits for others that are still to be
// replaced because they are not ready either. For the rest it is enough to have failed, or not to be ready for long.
func settled(nodes []lab.NodeStatus, watched time.Duration) bool {
	broken := 0 // and to be replaced
	for _, n := range nodes {
		if n.Build != lab.BuildCurrent && !isReady(n) {
			broken++
		}
	}
	for _, n := range nodes {
		state := facts.State(n.State)
		ended := isReady(n) || n.Power == "off"
		if n.Build == lab.BuildCurrent {
			ended = ended || broken > 0 && state == facts.Waiting && watched >= patience
		} else {
			ended = ended || state == facts.Failed || state == facts.Stopped || watched >= patience
		}
		if !ended {
			return false
		}
	}
	return true
}

// othersReady fails while another node of the node's role is not ready.
func othersReady(ctx context.Context, l *lab.Lab, name string) error {
	nodes, err := l.Status(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(nodes, func(n lab.NodeStatus) bool { return n.Node == name })
	var missing []string
	for _, n := range nodes {
		if n.Role == nodes[i].Role && n.Build != lab.BuildRemoved && n.Node != name && !isReady(n) {
			missing = append(missing, describe(n))
		}
	}
	if missing != nil {
		return fmt.Errorf("not replaced: %s", strings.Join(missing, "; "))
	}
	return nil
}

func replace(c *cli.Context, b *block, l *lab.Lab, name string, blank bool) error {
	if err := l.Replace(c.Context, name, blank); err != nil {
		return err
	}
	if _, err := wait(c, b, l, []string{name}); err != nil {
		return err
	}
	b.say("%s: replaced", name)
	return nil
}

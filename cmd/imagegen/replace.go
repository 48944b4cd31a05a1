package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
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
			"stopped, since nodes that are of the latest image and seed are left alone.",
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
			replaced := 0
			for _, n := range nodes {
				current, err := l.Current(n.Name)
				if err != nil {
					return err
				}
				if current {
					continue
				}
				if _, err := wait(c, b, l, p.others(n)); err != nil {
					return fmt.Errorf("%s is not replaced: %w", n.Name, err)
				}
				if err := replace(c, b, l, n.Name, false); err != nil {
					return err
				}
				replaced++
			}
			fmt.Fprintf(c.App.Writer, "replaced %s; %d up to date already\n", count(replaced, "node"), len(nodes)-replaced)
			return nil
		},
	}
}

// others returns the names of the other nodes of a node's role.
func (p *project) others(n cluster.Node) []string {
	var names []string
	for _, other := range p.spec.Role(n.Role).Nodes {
		if other.Name != n.Name {
			names = append(names, other.Name)
		}
	}
	return names
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
		if n.Role == nodes[i].Role && n.Node != name && n.State != string(cluster.Ready) {
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

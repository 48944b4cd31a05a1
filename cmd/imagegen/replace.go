package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func replaceCommand() *cli.Command {
	return &cli.Command{
		Name:      "replace",
		Category:  operateCategory,
		Usage:     "put a new node in the place of one, and wait until it is ready",
		ArgsUsage: "NODE",
		Description: "The new node has the name and the address of the old one, the image and the seed that imagegen build made last, and\n" +
			"its data disk: with --blank, an empty one instead, as after the loss of a disk. Refused while another node of the\n" +
			"role is not ready, unless --force says that what only this node has may be lost.\n\n" +
			"Without a provider of machines it says which machine to make anew from which files, and waits until a new one answers.",
		Flags: []cli.Flag{
			specFlag(), outFlag(), viaFlag(), providerFlag(),
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
			p, err := load(c)
			if err != nil {
				return err
			}
			nodes, err := p.nodes(c.Args().Slice())
			if err != nil {
				return err
			}
			cl, err := p.reach(c, b)
			if err != nil {
				return err
			}
			if err := cl.Replace(c.Context, waiting(c, b), nodes[0].Name, c.Bool("blank"), c.Bool("force")); err != nil {
				return err
			}
			b.say("%s: replaced", nodes[0].Name)
			return nil
		},
	}
}

func rollCommand() *cli.Command {
	return &cli.Command{
		Name:      "roll",
		Category:  operateCategory,
		Usage:     "replace all nodes that are not of the latest image and seed, one at a time",
		ArgsUsage: "[ROLE…]",
		Description: "Nodes keep their data disks. Each must be ready before the next is touched, and is not touched before all others of\n" +
			"its role are; at the first that does not become ready in time, the roll stops. Run again, it goes on where it\n" +
			"stopped, since nodes that are of the latest image and seed are left alone. Nodes that an earlier build broke come first:\n" +
			"those that have failed, or are not ready after a minute.\n\n" +
			"Without a provider of machines it says for each node which machine to make anew from which files, waits until a new one answers with the latest\n" +
			"seed, and goes on. Which nodes are older is told by their seeds alone (DIR/expected.json): after a change of an image only, use\n" +
			"imagegen replace.",
		Flags: []cli.Flag{specFlag(), outFlag(), viaFlag(), providerFlag(), timeoutFlag("stop at a node that is not ready")},
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
			cl, err := p.reach(c, b)
			if err != nil {
				return err
			}
			replaced := 0
			err = cl.Roll(c.Context, waiting(c, b), nodeNames(nodes), func(node string) {
				b.say("%s: replaced", node)
				replaced++
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "replaced %s; %d up to date already\n", count(replaced, "node"), len(nodes)-replaced)
			return nil
		},
	}
}

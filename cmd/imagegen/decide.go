package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
)

func decideCommand() *cli.Command {
	return &cli.Command{
		Name:      "decide",
		Category:  operateCategory,
		Usage:     "let a component continue without nodes that it waits for",
		ArgsUsage: "COMPONENT",
		Description: "After an outage of all members, a database does not start while one of them is silent, because that one may have the\n" +
			"newest data. If it will never come back, there are two options: imagegen replace --blank NODE, if there is a machine\n" +
			"to replace it, or imagegen decide galera --without NODE. Either way, data that only that node has is lost.\n\n" +
			"A decision that is not needed is refused. It lapses when the component is ready, or the node answers again.",
		Flags: []cli.Flag{
			specFlag(), outFlag(), viaFlag(),
			&cli.StringFlag{Name: "without", Usage: "continue without the silent `NODE`, or NODE,NODE; data that only they have is lost"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return wrongf("decide takes one component, such as galera: imagegen decide galera --without NODE")
			}
			component := c.Args().First()
			if c.String("without") == "" {
				return wrongf("decide needs the silent nodes to continue without: imagegen decide %s --without NODE", component)
			}
			without := strings.Split(c.String("without"), ",")
			p, err := load(c)
			if err != nil {
				return err
			}
			nodes, err := p.nodes(without)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(nodes, func(n cluster.Node) bool { return n.Role != nodes[0].Role }) {
				return wrongf("%s are nodes of different roles: decide for one at a time", strings.Join(without, ", "))
			}
			cl, err := p.reach(c, newBlock(c))
			if err != nil {
				return err
			}
			told, err := cl.Decide(c.Context, component, without)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "%s continues without %s; told %s\n", component, strings.Join(without, ", "), strings.Join(told, ", "))
			return nil
		},
	}
}

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
		Usage:     "let a component go on without nodes that it waits for",
		ArgsUsage: "COMPONENT",
		Description: "After an outage of all members, a database does not start while one of them is silent: that one may have the newest\n" +
			"data. If it will never come back, there are two ways on: imagegen replace --blank NODE, if there is a machine to put\n" +
			"in its place, or imagegen decide galera --without NODE. Either way, what only that node has is lost.\n\n" +
			"A decision that is not needed is refused. It holds until the component is ready, or the node is heard again.",
		Flags: []cli.Flag{
			specFlag(), outFlag(), viaFlag(),
			&cli.StringFlag{Name: "without", Usage: "the silent `NODE`, or NODE,NODE, of which all data that no other node has may be lost"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return wrongf("decide takes one component, such as galera: imagegen decide galera --without NODE")
			}
			component := c.Args().First()
			if c.String("without") == "" {
				return wrongf("decide takes the silent nodes to go on without: imagegen decide %s --without NODE", component)
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
			fmt.Fprintf(c.App.Writer, "%s goes on without %s: decided on %s\n", component, strings.Join(without, ", "), strings.Join(told, ", "))
			return nil
		},
	}
}

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/cluster/facts"
	"imagegen/lab"
)

func decideCommand() *cli.Command {
	return &cli.Command{
		Name:      "decide",
		Category:  labCategory,
		Usage:     "let a component go on without nodes that it waits for",
		ArgsUsage: "COMPONENT",
		Description: "After an outage of all members, a database does not start while one of them is silent: that one may have the newest\n" +
			"data. If it will never come back, there are two ways on: imagegen replace --blank NODE, if there is a machine to put\n" +
			"in its place, or imagegen decide galera --without NODE. Either way, what only that node has is lost.\n\n" +
			"A decision that is not needed is refused. It holds until the component is ready, or the node is heard again.",
		Flags: []cli.Flag{
			specFlag(), outFlag(),
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
			l, _, err := openLab(c, newBlock(c), without)
			if err != nil {
				return err
			}
			nodes, err := l.Status(c.Context)
			if err != nil {
				return err
			}
			role := ""
			for _, n := range nodes {
				if slices.Contains(without, n.Node) {
					if role != "" && role != n.Role {
						return wrongf("%s are nodes of different roles: decide for one at a time", strings.Join(without, ", "))
					}
					role = n.Role
				}
			}
			// All that answer are told, so that they agree on who goes first.
			var told, all []string
			var errs []error
			for _, n := range nodes {
				if n.Role != role || n.Build == lab.BuildRemoved || slices.Contains(without, n.Node) || n.Components == nil {
					continue
				}
				all = append(all, n.Node)
				if err := l.Decide(c.Context, n.Node, facts.Decision{Component: component, Without: without}); err != nil {
					errs = append(errs, err)
					continue
				}
				told = append(told, n.Node)
			}
			if len(all) == 0 {
				return fmt.Errorf("no other node of %s answers", role)
			}
			if len(told) == 0 {
				return errors.Join(errs...)
			}
			fmt.Fprintf(c.App.Writer, "%s goes on without %s: decided on %s\n", component, strings.Join(without, ", "), strings.Join(told, ", "))
			return nil
		},
	}
}

// patience is how long a component may wait for silent nodes before it looks as if they will not come.
const patience = time.Minute

// undecided says what an operator may decide, one line for each component that waits for silent nodes.
func undecided(nodes []lab.NodeStatus, now time.Time) []string {
	var lines []string
	for _, n := range nodes {
		for name, r := range n.Components {
			if r.Status.Missing == "" || now.Sub(r.Since) < patience {
				continue
			}
			line := fmt.Sprintf("%s waits for %s. If a node will never come back: imagegen replace --blank NODE, or imagegen decide %s --without NODE; what only that node has is then lost.",
				name, strings.ReplaceAll(r.Status.Missing, ",", ", "), name)
			if !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

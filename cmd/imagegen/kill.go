package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

func killCommand() *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Category:  machinesCategory,
		Usage:     "stop nodes at once, as if their power were cut",
		ArgsUsage: "NODE…",
		Description: "The nodes' disks are kept; imagegen start boots them again. Also accepts nodes that were removed from the spec\n" +
			"(imagegen status shows them).",
		Flags: []cli.Flag{specFlag(), outFlag(), providerFlag()},
		Action: func(c *cli.Context) error {
			if err := someArguments(c); err != nil {
				return err
			}
			names := c.Args().Slice()
			p, err := load(c)
			if err != nil {
				return err
			}
			b := newBlock(c)
			removed, err := p.removed(c, b)
			if err != nil {
				return err
			}
			if _, err := p.nodes(without(names, removed)); err != nil {
				return err
			}
			m, err := p.power(c, b)
			if err != nil {
				return err
			}
			if err := m.Kill(c.Context, names...); err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "off: %s\n", strings.Join(names, ", "))
			return nil
		},
	}
}

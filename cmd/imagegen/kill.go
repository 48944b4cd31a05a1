package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

func killCommand() *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Category:  labCategory,
		Usage:     "stop nodes at once, as if their power were cut",
		ArgsUsage: "NODE…",
		Description: "The nodes' disks stay as they are; imagegen start boots them again. Nodes that have been removed from the spec can be\n" +
			"named, too (imagegen status shows them).",
		Flags: []cli.Flag{specFlag(), outFlag()},
		Action: func(c *cli.Context) error {
			if err := someArguments(c); err != nil {
				return err
			}
			names := c.Args().Slice()
			l, err := openLabOf(c, newBlock(c), names)
			if err != nil {
				return err
			}
			if err := l.Kill(c.Context, names...); err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "off: %s\n", strings.Join(names, ", "))
			return nil
		},
	}
}

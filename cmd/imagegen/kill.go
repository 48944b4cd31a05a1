package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

func killCommand() *cli.Command {
	return &cli.Command{
		Name:        "kill",
		Category:    labCategory,
		Usage:       "stop nodes at once, as if their power were cut",
		ArgsUsage:   "NODE…",
		Description: "The nodes' disks stay as they are; imagegen start boots them again.",
		Flags:       []cli.Flag{specFlag(), outFlag()},
		Action: func(c *cli.Context) error {
			if err := someArguments(c); err != nil {
				return err
			}
			l, names, err := openLab(c, newBlock(c), c.Args().Slice())
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

package main

import "github.com/urfave/cli/v2"

func startCommand() *cli.Command {
	return &cli.Command{
		Name:      "start",
		Category:  labCategory,
		Usage:     "boot nodes that were killed, with the disks that they had",
		ArgsUsage: "NODE…",
		Flags:     []cli.Flag{specFlag(), outFlag()},
		Action: func(c *cli.Context) error {
			if err := someArguments(c); err != nil {
				return err
			}
			l, names, err := openLab(c, newBlock(c), c.Args().Slice())
			if err != nil {
				return err
			}
			return l.Start(c.Context, names...) // which says of each node that it is on
		},
	}
}

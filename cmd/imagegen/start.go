package main

import "github.com/urfave/cli/v2"

func startCommand() *cli.Command {
	return &cli.Command{
		Name:      "start",
		Category:  machinesCategory,
		Usage:     "boot nodes that were killed, with their disks",
		ArgsUsage: "NODE…",
		Flags:     []cli.Flag{specFlag(), outFlag(), providerFlag()},
		Action: func(c *cli.Context) error {
			if err := someArguments(c); err != nil {
				return err
			}
			p, names, err := loadNodes(c, c.Args().Slice())
			if err != nil {
				return err
			}
			m, err := p.power(c, newBlock(c))
			if err != nil {
				return err
			}
			return m.Start(c.Context, names...) // Start reports each node
		},
	}
}

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func downCommand() *cli.Command {
	return &cli.Command{
		Name:        "down",
		Category:    labCategory,
		Usage:       "stop the cluster and remove all that the lab made, the nodes' disks included",
		Description: "Afterwards no process, mount, loop device, network interface or namespace of the lab is left. Images and seeds stay.",
		Flags:       []cli.Flag{specFlag(), outFlag()},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			l, _, err := openLab(c, newBlock(c), nil)
			if err != nil {
				return err
			}
			if err := l.Down(c.Context); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "the cluster is down; nothing of it is left running")
			return nil
		},
	}
}

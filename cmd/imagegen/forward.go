package main

import (
	"github.com/urfave/cli/v2"

	"imagegen/lab"
)

// forwardCommand is the hidden command that the lab runs in the background to forward the site.
func forwardCommand() *cli.Command {
	return &cli.Command{
		Name:   lab.ForwardCommand,
		Hidden: true,
		Action: func(c *cli.Context) error {
			failed := make(chan error, 1)
			go func() { failed <- lab.RunForward(c.Args().Slice()) }()
			select {
			case err := <-failed:
				return err
			case <-c.Context.Done():
				return nil
			}
		},
	}
}

package main

import "github.com/urfave/cli/v2"

func logsCommand() *cli.Command {
	return &cli.Command{
		Name:        "logs",
		Category:    labCategory,
		Usage:       "show a node's console: its boot, and what its agent does and waits for",
		ArgsUsage:   "NODE",
		Description: "Works on a node that is down, too. Control characters and escape sequences are left out: they would steer the terminal.",
		Flags: []cli.Flag{
			specFlag(), outFlag(),
			&cli.BoolFlag{Name: "follow", Aliases: []string{"F"}, Usage: "go on as lines come, until Ctrl-C"},
		},
		Action: func(c *cli.Context) error {
			node, err := oneArgument(c, "node")
			if err != nil {
				return err
			}
			l, err := openLabOf(c, newBlock(c), []string{node})
			if err != nil {
				return err
			}
			err = l.Console(c.Context, &plainWriter{w: c.App.Writer}, node, c.Bool("follow"))
			if c.Bool("follow") && c.Context.Err() != nil {
				return nil // Ctrl-C is how one ends it
			}
			return err
		},
	}
}

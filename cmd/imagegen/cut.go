package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

func cutCommand() *cli.Command {
	return &cli.Command{
		Name:      "cut",
		Category:  labCategory,
		Usage:     "cut nodes off from the network",
		ArgsUsage: "NODE…",
		Description: "Drops all packets between the named nodes and all others, including the site's visitors, or only the nodes of\n" +
			"--from. The named nodes still reach each other. Cuts add up until imagegen mend. status and exec still reach all nodes.",
		Flags: []cli.Flag{
			specFlag(), outFlag(),
			&cli.StringFlag{Name: "from", Usage: "cut off only from `NODE`,NODE…"},
			&cli.BoolFlag{Name: "one-way", Usage: "drop only what the named nodes send"},
		},
		Action: func(c *cli.Context) error {
			if err := someArguments(c); err != nil {
				return err
			}
			names := c.Args().Slice()
			var others []string
			if from := c.String("from"); from != "" {
				others = strings.Split(from, ",")
			}
			l, err := openLabOf(c, newBlock(c), names)
			if err != nil {
				return err
			}
			if err := l.Cut(c.Context, names, others, c.Bool("one-way")); err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "cut off: %s; imagegen mend undoes it\n", strings.Join(names, ", "))
			return nil
		},
	}
}

func mendCommand() *cli.Command {
	return &cli.Command{
		Name:     "mend",
		Category: labCategory,
		Usage:    "undo all cuts",
		Flags:    []cli.Flag{specFlag(), outFlag()},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			l, _, err := openLab(c, newBlock(c), nil)
			if err != nil {
				return err
			}
			if err := l.Mend(c.Context); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "all nodes reach each other")
			return nil
		},
	}
}

package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/lab"
)

func upCommand() *cli.Command {
	return &cli.Command{
		Name:      "up",
		Category:  labCategory,
		Usage:     "start the cluster on this machine, or the named nodes of it",
		ArgsUsage: "[NODE…]",
		Description: "Starts the nodes in the order given (default: all, in the spec's order) from the images and seeds that imagegen build\n" +
			"made. Nothing depends on the order. What an earlier run left after a crash is cleaned up first.\n\n" +
			"--provider qemu runs the nodes as virtual machines, with KVM where a guest boots with it, and else emulated: then as many\n" +
			"boot at the same time as there are processors, and each boot takes a minute or more.",
		Flags: append([]cli.Flag{
			specFlag(), outFlag(),
			&cli.StringFlag{Name: "site", DefaultText: lab.DefaultSite + ", or as before", Usage: "forward `HOST:PORT` of this machine to the site"},
			&cli.StringFlag{Name: "provider", DefaultText: lab.Nspawn + ", or as before", Usage: "run nodes with `NAME`: nspawn, system containers; or qemu, virtual machines"},
			&cli.BoolFlag{Name: "wait", Usage: "wait until the started nodes are ready"},
		}, timeoutFlag("with --wait: give up")),
		Action: func(c *cli.Context) error {
			site := c.String("site")
			if _, port, err := net.SplitHostPort(site); c.IsSet("site") && (err != nil || port == "") {
				return wrongf("--site %s is not HOST:PORT, such as %s", site, lab.DefaultSite)
			}
			if name := c.String("provider"); c.IsSet("provider") && name != lab.Nspawn && name != lab.Qemu {
				return wrongf("--provider %s: it is %s or %s", name, lab.Nspawn, lab.Qemu)
			}
			b := newBlock(c)
			defer b.clear()
			p, names, err := loadNodes(c, c.Args().Slice())
			if err != nil {
				return err
			}
			l, _, err := p.lab(c, b)
			if err != nil {
				return err
			}
			if err := l.Up(c.Context, names, lab.UpOptions{Site: site, Provider: p.provider}); err != nil {
				return err
			}
			if !c.Bool("wait") {
				fmt.Fprintf(c.App.Writer, "%s started; imagegen status shows how the cluster assembles itself\n", count(len(names), "node"))
				printSite(c, l)
				return nil
			}
			start := time.Now()
			nodes, err := l.Cluster().WaitReady(c.Context, waiting(c, b), names)
			b.clear()
			if err != nil {
				return errors.Join(printTable(c.App.Writer, nodes, time.Now()), err)
			}
			fmt.Fprintf(c.App.Writer, "%s ready after %s\n", count(len(names), "node"), age(start, time.Now()))
			printSite(c, l)
			return nil
		},
	}
}

func printSite(c *cli.Context, l *lab.Lab) {
	if site := l.Site(); site != "" {
		fmt.Fprintf(c.App.Writer, "the site is at http://%s/\n", site)
	}
}

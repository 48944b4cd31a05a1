package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/lab"
	"imagegen/operate"
)

func upCommand() *cli.Command {
	return &cli.Command{
		Name:      "up",
		Category:  machinesCategory,
		Usage:     "create and start the cluster's machines, or those of the named nodes",
		ArgsUsage: "[NODE…]",
		Description: "Starts the nodes in the order given (default: all, in the spec's order) from the images and seeds that imagegen build\n" +
			"made. Any order works. Leftovers of an interrupted run are cleaned up first. Unless the spec says otherwise (machines),\n" +
			"the cluster runs in the lab on this machine.\n\n" +
			"--provider qemu runs the nodes as virtual machines, with KVM if a test guest boots with it, and otherwise emulated: then\n" +
			"only as many boot at the same time as there are processors, and each boot takes a minute or more.",
		Flags: append([]cli.Flag{
			specFlag(), outFlag(),
			&cli.StringFlag{Name: "site", DefaultText: lab.DefaultSite + ", or as before", Usage: "forward `HOST:PORT` of this machine to the site"},
			providerFlag(),
			&cli.BoolFlag{Name: "wait", Usage: "wait until the started nodes are ready"},
		}, timeoutFlag("with --wait: give up")),
		Action: func(c *cli.Context) error {
			site := c.String("site")
			if _, port, err := net.SplitHostPort(site); c.IsSet("site") && (err != nil || port == "") {
				return wrongf("--site %s is not HOST:PORT, such as %s", site, lab.DefaultSite)
			}
			b := newBlock(c)
			defer b.clear()
			p, names, err := loadNodes(c, c.Args().Slice())
			if err != nil {
				return err
			}
			if !inLab(p.provider) {
				if c.IsSet("site") {
					return wrongf("--site is only for the lab; with provider %s the site is at its own address", p.provider)
				}
				return p.upMachines(c, b, names)
			}
			l, _, err := p.lab(c, b)
			if err != nil {
				return err
			}
			if err := l.Up(c.Context, names, lab.UpOptions{Site: site, Provider: p.provider}); err != nil {
				return err
			}
			return started(c, b, l.Cluster(), names, func() { p.printSite(c, l) })
		},
	}
}

// started reports that nodes were turned on or, with --wait, waits until they are ready. also prints what else there is
// to say then.
func started(c *cli.Context, b *block, cl *operate.Cluster, names []string, also func()) error {
	if !c.Bool("wait") {
		fmt.Fprintf(c.App.Writer, "%s started; imagegen status shows the cluster's progress\n", count(len(names), "node"))
		also()
		return nil
	}
	start := time.Now()
	nodes, err := cl.WaitReady(c.Context, waiting(c, b), names)
	b.clear()
	if err != nil {
		return errors.Join(printTable(c.App.Writer, nodes, time.Now()), err)
	}
	fmt.Fprintf(c.App.Writer, "%s ready after %s\n", count(len(names), "node"), age(start, time.Now()))
	also()
	return nil
}

// upMachines starts nodes outside the lab.
func (p *project) upMachines(c *cli.Context, b *block, names []string) error {
	f, err := p.fleet(c, b)
	if err != nil {
		return err
	}
	if err := f.Up(c.Context, names...); err != nil {
		return err
	}
	cl := &operate.Cluster{Spec: p.spec, Machines: f}
	if c.Bool("wait") {
		if cl, err = p.reach(c, b); err != nil {
			return err
		}
	}
	return started(c, b, cl, names, func() {})
}

func (p *project) printSite(c *cli.Context, l *lab.Lab) {
	scheme := "http"
	if p.spec.Site.TLS != nil {
		scheme = "https"
	}
	if site := l.Site(); site != "" {
		fmt.Fprintf(c.App.Writer, "the site is at %s://%s/\n", scheme, site)
	}
}

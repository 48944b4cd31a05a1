package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"imagegen/internal/exclusive"
)

// lockReplacing makes sure that one imagegen replaces nodes at a time: two would each see that all other nodes are ready, and take
// two of a role down together.
func (p *project) lockReplacing() (release func(), err error) {
	release, err = exclusive.Try(filepath.Join(p.out, "replace.lock"))
	if errors.Is(err, exclusive.ErrBusy) {
		return nil, fmt.Errorf("another imagegen is replacing nodes of cluster %s: one at a time", p.spec.Cluster)
	}
	return release, err
}

func replaceCommand() *cli.Command {
	return &cli.Command{
		Name:      "replace",
		Category:  operateCategory,
		Usage:     "replace a node by a new one, and wait until it is ready",
		ArgsUsage: "NODE",
		Description: "The new node has the old one's name, address and data disk, and the image and seed that imagegen build made last.\n" +
			"With --blank it has an empty data disk, as after the loss of a disk. What the node leads is handed over first: the virtual\n" +
			"address, the master of Redis, the database's writes. Refused while another node of the role is not ready, or nobody takes over,\n" +
			"unless --force accepts that data which only this node has is lost.\n\n" +
			"Without a provider, it prints which machine to recreate from which files, and waits until the new machine answers.",
		Flags: []cli.Flag{
			specFlag(), outFlag(), viaFlag(), providerFlag(),
			&cli.BoolFlag{Name: "blank", Usage: "with an empty data disk"},
			&cli.BoolFlag{Name: "force", Usage: "even while other nodes of the role are not ready, or nobody takes over what it leads"},
			timeoutFlag("give up waiting"),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return wrongf("replace takes one node")
			}
			b := newBlock(c)
			defer b.clear()
			p, err := load(c)
			if err != nil {
				return err
			}
			nodes, err := p.nodes(c.Args().Slice())
			if err != nil {
				return err
			}
			cl, err := p.reach(c, b)
			if err != nil {
				return err
			}
			release, err := p.lockReplacing()
			if err != nil {
				return err
			}
			defer release()
			if err := cl.Replace(c.Context, waiting(c, b), nodes[0].Name, c.Bool("blank"), c.Bool("force")); err != nil {
				return err
			}
			b.say("%s: replaced", nodes[0].Name)
			return nil
		},
	}
}

func rollCommand() *cli.Command {
	return &cli.Command{
		Name:      "roll",
		Category:  operateCategory,
		Usage:     "replace all nodes with an older image or seed, one at a time",
		ArgsUsage: "[ROLE…]",
		Description: "Nodes keep their data disks. A node is replaced only while all others of its role are ready, and the next one only once\n" +
			"it is ready itself. roll stops at the first node that does not become ready in time. Run again, it continues there,\n" +
			"because nodes with the latest image and seed are skipped. Nodes that an earlier build broke come first:\n" +
			"those that have failed, or are not ready after a minute. One that has the virtual address, is the master of Redis or gets the\n" +
			"database's writes comes last, and hands that over first.\n\n" +
			"Without a provider, it prints for each node which machine to recreate from which files, waits until a new machine answers\n" +
			"with the latest image and seed, and continues. DIR/expected.json says which these are. Images of older\n" +
			"imagegen versions do not contain their identity and are not compared: use imagegen replace for those.\n\n" +
			"Only one imagegen per output folder replaces nodes at a time.",
		Flags: []cli.Flag{specFlag(), outFlag(), viaFlag(), providerFlag(), timeoutFlag("stop at a node that is not ready")},
		Action: func(c *cli.Context) error {
			p, err := load(c)
			if err != nil {
				return err
			}
			nodes, err := p.nodesOf(c.Args().Slice())
			if err != nil {
				return err
			}
			b := newBlock(c)
			defer b.clear()
			cl, err := p.reach(c, b)
			if err != nil {
				return err
			}
			release, err := p.lockReplacing()
			if err != nil {
				return err
			}
			defer release()
			replaced := 0
			err = cl.Roll(c.Context, waiting(c, b), nodeNames(nodes), func(node string) {
				b.say("%s: replaced", node)
				replaced++
			})
			if err != nil {
				return err
			}
			if !c.Args().Present() { // no node has an earlier image or seed any more
				if err := p.earlier().Erase(); err != nil {
					return err
				}
			}
			fmt.Fprintf(c.App.Writer, "replaced %s; %d already up to date\n", count(replaced, "node"), len(nodes)-replaced)
			return nil
		},
	}
}

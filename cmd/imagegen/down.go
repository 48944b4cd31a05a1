package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"imagegen/cluster/secrets"
)

func downCommand() *cli.Command {
	return &cli.Command{
		Name:      "down",
		Category:  machinesCategory,
		Usage:     "stop the cluster and remove its machines and their disks",
		ArgsUsage: "[NODE…]",
		Description: "Images and seeds stay. In the lab, no process, mount, loop device, network interface or namespace is left; with another\n" +
			"provider, no machine, disk, image or network that it made for the cluster.\n\n" +
			"With names of nodes that were removed from the spec (imagegen status shows them), it stops only those, and removes\n" +
			"their disks, seeds and keys.",
		Flags: []cli.Flag{specFlag(), outFlag(), providerFlag()},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return downRemoved(c, c.Args().Slice())
			}
			p, err := load(c)
			if err != nil {
				return err
			}
			m, err := p.power(c, newBlock(c))
			if err != nil {
				return err
			}
			if err := m.Down(c.Context); err != nil {
				return err
			}
			if err := p.earlier().Erase(); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "the cluster is down; nothing of it is left running")
			return nil
		},
	}
}

// downRemoved stops nodes that were removed from the spec, and removes their disks, seeds and keys.
func downRemoved(c *cli.Context, names []string) error {
	p, err := load(c)
	if err != nil {
		return err
	}
	b := newBlock(c)
	there, err := p.removed(c, b)
	if err != nil {
		return err
	}
	left := p.leftOver()
	var running []string
	for _, name := range names {
		if _, ok := p.spec.Node(name); ok {
			return wrongf("%s is in the spec: imagegen kill %[1]s turns it off; down accepts only nodes that were removed from the spec", name)
		}
		if slices.Contains(there, name) {
			running = append(running, name)
		} else if left[name] == nil {
			return wrongf("there is no node %s, and nothing left of one", name)
		}
	}
	m, err := p.power(c, b)
	if err != nil {
		return err
	}
	if err := m.Remove(c.Context, running...); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(p.seedPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Remove(p.earlier().seedPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := secrets.RemoveNode(p.secretsDir(), name); err != nil {
			return err
		}
		removed := left[name]
		if slices.Contains(running, name) {
			removed = append([]string{"its disks"}, removed...)
		}
		fmt.Fprintf(c.App.Writer, "%s is gone: removed %s\n", name, strings.Join(removed, ", "))
	}
	return nil
}

// leftOver returns the seeds and keys of nodes that the spec no longer has, by the node's name.
func (p *project) leftOver() map[string][]string {
	left := map[string][]string{}
	for _, pattern := range []string{p.seedPath("*"), filepath.Join(p.secretsDir(), "nodes", "*.crt"), filepath.Join(p.secretsDir(), "nodes", "*.key")} {
		files, _ := filepath.Glob(pattern) // what is in a folder with a strange name stays
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
			if _, ok := p.spec.Node(name); !ok {
				left[name] = append(left[name], file)
			}
		}
	}
	return left
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/distro"
	"imagegen/internal/atomicfile"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name:      "init",
		Usage:     "write the reference cluster's spec, as a starting point",
		ArgsUsage: "[DIR]",
		Description: "Writes DIR/cluster.yaml with comments, and creates DIR if needed (default: the current folder). An existing spec is\n" +
			"never overwritten.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "network", Usage: "give the nodes addresses in `CIDR`, an IPv4 network of 256 addresses (default: 192.168.10.0/24)"},
			&cli.StringFlag{Name: "distro", Value: distro.Default, Usage: "make the cluster of `DISTRO`: " + strings.Join(distro.Names(), " or ")},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return wrongf("init takes one folder, but got %s", strings.Join(c.Args().Slice(), " "))
			}
			name := c.String("distro")
			if !slices.Contains(distro.Names(), name) {
				return wrongf("there is no distro %s; choose %s", name, strings.Join(distro.Names(), " or "))
			}
			spec := cluster.Reference(name)
			if network := c.String("network"); network != "" {
				cidr, err := netip.ParsePrefix(network)
				if err != nil || !cidr.Addr().Is4() || cidr.Bits() != 24 || cidr != cidr.Masked() {
					return wrongf("--network %s is not an IPv4 network of 256 addresses, such as 192.168.56.0/24", network)
				}
				spec = cluster.Renumber(spec, cidr)
			}
			dir := c.Args().First()
			if strings.HasPrefix(dir, "-") {
				// A leading - is probably a mistyped flag, and a folder with such a name is hard to remove.
				return wrongf("init writes into a folder, not to %s; for a folder of that name, write ./%s", dir, dir)
			}
			if dir != "" {
				if err := atomicfile.MakeDirs(dir); err != nil {
					return fmt.Errorf("make the folder of the spec: %w", err)
				}
			}
			path := filepath.Join(dir, "cluster.yaml")
			if err := writeNew(path, spec); err != nil {
				return fmt.Errorf("write the spec: %w", err)
			}
			at := ""
			if dir != "" {
				at = " -f " + path
			}
			fmt.Fprintf(c.App.Writer, "wrote %s: the reference cluster on %s\nnext: imagegen build%s, then imagegen up%s --wait\n", path, name, at, at)
			return nil
		},
	}
}

// writeNew writes a file that must not exist.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s already exists and is never overwritten", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, atomicfile.OwnFile(f), f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

package main

import (
	"fmt"
	"runtime"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/images"
)

func fetchCommand() *cli.Command {
	return &cli.Command{
		Name:      "fetch",
		Usage:     "bring what build needs from the network into the cache",
		ArgsUsage: "[ROLE…]",
		Description: "Fetches every package of the base and of the roles' images, and the roles' downloads, as far as the cache has not\n" +
			"got them, and checks them. What imagegen.lock does not pin yet is pinned. After that, imagegen build --offline bakes\n" +
			"without a network.",
		Flags: []cli.Flag{
			specFlag(),
			&cli.BoolFlag{Name: "locked", Usage: "fetch exactly what imagegen.lock pins, or fail and say what differs"},
			cacheFlag(),
		},
		Action: func(c *cli.Context) error {
			config, done, err := packages(c)
			if err != nil {
				return err
			}
			defer done()
			if err := images.Fetch(c.Context, config); err != nil {
				return err
			}
			done()
			fmt.Fprintf(c.App.Writer, "%s: all that is needed to build offline is there\n", config.CacheDir)
			return nil
		},
	}
}

func lockCommand() *cli.Command {
	return &cli.Command{
		Name:  "lock",
		Usage: "pin all packages anew, to what the archive has today",
		Description: "Writes imagegen.lock beside the spec, and says which packages have changed since it was written. Images that have any\n" +
			"of them are baked anew by the next build.",
		Flags: []cli.Flag{specFlag(), offlineFlag(), cacheFlag()},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			config, done, err := packages(c)
			if err != nil {
				return err
			}
			defer done()
			changed, err := images.Renew(c.Context, config)
			if err != nil {
				return err
			}
			done()
			state := "up to date"
			if changed {
				state = "pinned anew"
			}
			fmt.Fprintf(c.App.Writer, "%s: %s\n", config.LockPath(), state)
			return nil
		},
	}
}

// packages is how commands begin that are about packages alone. Done takes their progress off the screen.
func packages(c *cli.Context) (config images.Config, done func(), err error) {
	p, err := load(c)
	if err != nil {
		return config, nil, err
	}
	if _, err := p.nodesOf(c.Args().Slice()); err != nil {
		return config, nil, err
	}
	cache, err := cacheDir(c)
	if err != nil {
		return config, nil, err
	}
	b := newBlock(c)
	return images.Config{
		Spec: p.spec, Catalogue: p.catalogue, Roles: c.Args().Slice(), CacheDir: cache, OutDir: p.out, Jobs: runtime.NumCPU(),
		Locked: c.Bool("locked"), Offline: c.Bool("offline"), UI: &bakes{block: b, now: time.Now},
	}, b.clear, nil
}

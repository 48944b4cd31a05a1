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
		Usage:     "download what build needs into the cache",
		ArgsUsage: "[ROLE…]",
		Description: "Fetches and verifies every package of the base and of the roles' images, and the roles' downloads, unless the cache has\n" +
			"them. Packages that imagegen.lock does not pin yet are pinned. After that, imagegen build --offline bakes\n" +
			"without a network.",
		Flags: []cli.Flag{
			specFlag(),
			&cli.BoolFlag{Name: "locked", Usage: "fetch exactly what imagegen.lock pins, or fail and list the differences"},
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
			fmt.Fprintf(c.App.Writer, "%s: has everything that build --offline needs\n", config.CacheDir)
			return nil
		},
	}
}

func lockCommand() *cli.Command {
	return &cli.Command{
		Name:  "lock",
		Usage: "pin all packages to the archive's current versions",
		Description: "Writes imagegen.lock beside the spec, and lists the packages that have changed. The next build bakes the images that\n" +
			"contain any of them.",
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

// packages prepares a command that only deals with packages. done removes its progress from the screen.
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

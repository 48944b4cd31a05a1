package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"imagegen/images"
)

func planCommand() *cli.Command {
	return &cli.Command{
		Name:      "plan",
		Usage:     "list the images that build would bake, and why",
		ArgsUsage: "[ROLE…]",
		Description: "For each image, says that it is cached, or what has changed since the image in DIR/images was baked. Templates are part\n" +
			"of the seeds and not of the images, so they never cause a bake.\n\n" +
			"--json prints [{\"roles\", \"identity\", \"cached\", \"because\"}].",
		Flags: []cli.Flag{specFlag(), outFlag(), cacheFlag(), agentFlag(), jsonFlag("the images")},
		Action: func(c *cli.Context) error {
			p, err := load(c)
			if err != nil {
				return err
			}
			if _, err := p.nodesOf(c.Args().Slice()); err != nil {
				return err
			}
			agent, err := agentPath(c)
			if err != nil {
				return err
			}
			cache, err := cacheDir(c)
			if err != nil {
				return err
			}
			plan, err := images.Plan(c.Context, images.Config{
				Spec: p.spec, Catalogue: p.catalogue, Roles: c.Args().Slice(), CacheDir: cache, OutDir: p.out, Agent: agent,
			})
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, plan)
			}
			t := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "IMAGE\tSTATE\tBECAUSE")
			for _, i := range plan {
				state, why := "bake", strings.Join(i.Because, "; ")
				if i.Cached {
					state, why = "cached", "-"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\n", strings.Join(i.Roles, ", "), state, why)
			}
			return t.Flush()
		},
	}
}

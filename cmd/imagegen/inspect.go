package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"imagegen/cloudinit"
	"imagegen/cluster/facts"
	"imagegen/images"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show the contents of an image, a box or a seed, or how two of them differ",
		ArgsUsage: "FILE [FILE]",
		Description: "For an image or box, verifies the file's SHA-256 and prints the manifest that build wrote: identity and packages.\n" +
			"For a seed, prints the number and the digest of its generation and of that one's parent, and lists its files, but not\n" +
			"their contents, some of which are secret.\n\n" +
			"--json prints the manifest or the list of files or, with two files, the list of differences.",
		Flags: []cli.Flag{jsonFlag("it")},
		Action: func(c *cli.Context) error {
			paths := c.Args().Slice()
			if len(paths) != 1 && len(paths) != 2 {
				return wrongf("inspect takes one file, or two to compare: imagegen inspect FILE [FILE]")
			}
			seeds := 0
			for _, p := range paths {
				if filepath.Ext(p) == ".iso" {
					seeds++
				}
			}
			switch seeds {
			case 0:
				return inspectImages(c, paths)
			case len(paths):
				return inspectSeeds(c, paths)
			}
			return wrongf("inspect compares two seeds or two images, not one with the other")
		},
	}
}

func inspectImages(c *cli.Context, paths []string) error {
	var manifests []images.Manifest
	for _, p := range paths {
		m, err := images.Inspect(c.Context, p)
		if err != nil {
			return err
		}
		manifests = append(manifests, m)
	}
	m := manifests[0]
	if len(manifests) == 2 {
		return printDifferences(c, m.Changes(manifests[1]))
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, m)
	}
	fmt.Fprintf(c.App.Writer, "image of %s, identity %s\n%s matches the manifest\n", m.Role, m.Identity, paths[0])
	t := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PACKAGE\tVERSION\tARCHITECTURE")
	for _, p := range m.Packages {
		fmt.Fprintf(t, "%s\t%s\t%s\n", p.Name, p.Version, p.Architecture)
	}
	return t.Flush()
}

// seedFile describes a file on a seed.
type seedFile struct {
	Path  string `json:"path"`
	Mode  string `json:"mode"`
	Owner string `json:"owner"`
	Bytes int    `json:"bytes"`
}

func inspectSeeds(c *cli.Context, paths []string) error {
	var seeds [][]cloudinit.File
	var generations []facts.Generation
	for _, p := range paths {
		s, err := cloudinit.ReadISO(p)
		if err != nil {
			return err
		}
		var g facts.Generation
		if s.Generation != nil {
			if g, err = facts.OpenGeneration(s.Generation); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
		generations = append(generations, g)
		files, err := s.Files()
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		seeds = append(seeds, files)
	}
	if len(seeds) == 2 {
		// A node need not change when only the generation differs.
		if old, now := generations[0], generations[1]; old.Digest != now.Digest && !c.Bool("json") {
			fmt.Fprintf(c.App.Writer, "%s instead of %s\n", generationName(now), generationName(old))
		}
		return printDifferences(c, fileChanges(seeds[0], seeds[1]))
	}
	list := []seedFile{}
	for _, f := range seeds[0] {
		list = append(list, seedFile{f.Path, fmt.Sprintf("%04o", f.Mode), f.Owner, len(f.Content)})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, list)
	}
	g := generations[0]
	fmt.Fprintln(c.App.Writer, generationName(g))
	if g.Parent != "" {
		fmt.Fprintf(c.App.Writer, "made from the generation with the digest %s\n", g.Parent)
	}
	t := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FILE\tMODE\tOWNER\tBYTES")
	for _, f := range list {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", f.Path, f.Mode, f.Owner, f.Bytes)
	}
	return t.Flush()
}

// generationName returns what identifies a seed's generation.
func generationName(g facts.Generation) string {
	if g.Number == 0 {
		return "no generation"
	}
	return fmt.Sprintf("generation %d (%s)", g.Number, g.Digest)
}

// fileChanges lists which files differ and in which attributes, but no contents, which may be secret.
func fileChanges(old, now []cloudinit.File) []string {
	var changes []string
	find := func(files []cloudinit.File, path string) int {
		return slices.IndexFunc(files, func(f cloudinit.File) bool { return f.Path == path })
	}
	for _, f := range now {
		i := find(old, f.Path)
		if i < 0 {
			changes = append(changes, "+ "+f.Path)
			continue
		}
		var what []string
		if string(old[i].Content) != string(f.Content) {
			what = append(what, "content")
		}
		if old[i].Mode != f.Mode {
			what = append(what, fmt.Sprintf("mode %04o instead of %04o", f.Mode, old[i].Mode))
		}
		if old[i].Owner != f.Owner {
			what = append(what, "owner "+f.Owner+" instead of "+old[i].Owner)
		}
		if what != nil {
			changes = append(changes, f.Path+": "+strings.Join(what, ", "))
		}
	}
	for _, f := range old {
		if find(now, f.Path) < 0 {
			changes = append(changes, "- "+f.Path)
		}
	}
	return changes
}

func printDifferences(c *cli.Context, changes []string) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, append([]string{}, changes...))
	}
	if len(changes) == 0 {
		fmt.Fprintln(c.App.Writer, "no difference")
	}
	for _, s := range changes {
		fmt.Fprintln(c.App.Writer, s)
	}
	return nil
}

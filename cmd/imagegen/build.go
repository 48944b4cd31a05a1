package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/images"
	"imagegen/images/builder"
	"imagegen/images/format"
	"imagegen/internal/atomicfile"
	"imagegen/vagrant"
)

func buildCommand() *cli.Command {
	return &cli.Command{
		Name:      "build",
		Usage:     "make the images and seeds of all roles, or of those named",
		ArgsUsage: "[ROLE…]",
		Description: "Writes DIR/images/ROLE.raw with a manifest ROLE.json and an SBOM ROLE.spdx.json, and the seeds of the roles' nodes\n" +
			"(see imagegen seed). DIR/expected.json says which image and seed each node should have.\n" +
			"An image is baked if its inputs have changed, and otherwise comes from the cache; roles with the same inputs share one.\n" +
			"The image that it replaces is kept in DIR/images/earlier until no node runs it (see imagegen apply).\n" +
			"Baking needs Linux. The builder chroot installs into a folder on this machine and needs root; qemu and virtualbox boot\n" +
			"the base in a VM and install there. If the base is made on this machine, which needs root, all builders make the same image.\n\n" +
			"Every package is pinned in imagegen.lock beside the spec, by version and SHA-256, and images are baked from these pins.\n" +
			"Packages that are not pinned yet, or no longer available, are pinned to the archive's current versions and reported.\n" +
			"With --locked that is an error.",
		Flags: []cli.Flag{
			specFlag(), outFlag(),
			&cli.StringSliceFlag{Name: "format", Usage: "also write the images in `FORMAT`,…: " + strings.Join(format.Names, ", ") + "; box also writes DIR/Vagrantfile"},
			&cli.StringFlag{Name: "builder", Usage: "bake with `BUILDER`: " + strings.Join(builder.Names, ", "), DefaultText: "the first one that is usable here"},
			&cli.DurationFlag{Name: "time-limit", Value: builder.Limit, DefaultText: "1h", Usage: "stop a bake in a VM after `TIME`"},
			&cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Value: images.DefaultJobs(), DefaultText: "from cores and free memory", Usage: "bake up to `N` images in parallel"},
			&cli.BoolFlag{Name: "locked", Usage: "bake exactly what imagegen.lock pins, or fail and list the differences"},
			offlineFlag(), cacheFlag(), agentFlag(),
			jsonFlag("the images"),
		},
		Action: build,
	}
}

func offlineFlag() cli.Flag {
	return &cli.BoolFlag{Name: "offline", Usage: "use only the cache, no network (imagegen fetch fills the cache)"}
}

func cacheFlag() cli.Flag {
	return &cli.StringFlag{Name: "cache", EnvVars: []string{"IMAGEGEN_CACHE"}, Usage: "use the cache in `DIR` (default: imagegen in the user's cache folder)"}
}

func agentFlag() cli.Flag {
	return &cli.StringFlag{Name: "agent", Usage: "bake the agent `FILE` into the images (default: imagegen-node beside imagegen)"}
}

func build(c *cli.Context) error {
	p, err := load(c)
	if err != nil {
		return err
	}
	names := c.Args().Slice()
	nodes, err := p.nodesOf(names)
	if err != nil {
		return err
	}
	if c.Int("jobs") < 1 {
		return wrongf("--jobs %d: must be at least 1", c.Int("jobs"))
	}
	formats := c.StringSlice("format")
	for _, f := range formats {
		if !slices.Contains(format.Names, f) {
			return wrongf("--format %s: the formats are %s", f, strings.Join(format.Names, ", "))
		}
	}
	if by := c.String("builder"); by != "" && !slices.Contains(builder.Names, by) {
		return wrongf("--builder %s: the builders are %s", by, strings.Join(builder.Names, ", "))
	}
	agent, err := agentPath(c)
	if err != nil {
		return err
	}
	cache, err := cacheDir(c)
	if err != nil {
		return err
	}
	// Seeds are rendered first: they take no time, and an error in a template should appear before minutes of baking.
	secrets, err := p.issueSecrets(c)
	if err != nil {
		return err
	}
	all, err := p.render(secrets)
	if err != nil {
		return err
	}
	p.nameStaleSeeds(c.App.ErrWriter)
	b := newBlock(c)
	defer b.clear()
	config := images.Config{
		Spec: p.spec, Catalogue: p.catalogue, Roles: names, Formats: formats,
		CacheDir: cache, OutDir: p.out, Agent: agent, Jobs: c.Int("jobs"),
		Builder: c.String("builder"), Limit: c.Duration("time-limit"),
		Underway: p.earlier().exists(), Locked: c.Bool("locked"), Offline: c.Bool("offline"), UI: &bakes{block: b, now: time.Now},
	}
	results, err := images.Build(c.Context, config)
	var seeds string
	if err == nil { // the generation on the seeds names the images
		seeds, err = p.writeSeeds(secrets, all, nodes, nil)
	}
	// Also after a failure: some images may be new.
	if err := errors.Join(err, p.writeExpected(secrets.ClusterID)); err != nil {
		return err
	}
	b.clear()
	if slices.Contains(formats, "box") {
		if err := p.writeVagrantfile(c.Context, config, secrets.ClusterID); err != nil {
			return err
		}
		defer fmt.Fprint(c.App.ErrWriter, vagrantNote(p.spec))
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, results)
	}
	fmt.Fprintln(c.App.Writer, summary(filepath.Join(p.out, "images"), results))
	fmt.Fprintln(c.App.Writer, seeds)
	if slices.Contains(formats, "box") {
		fmt.Fprintf(c.App.Writer, "%s: %s\n", filepath.Join(p.out, "Vagrantfile"), count(len(p.spec.Nodes()), "machine"))
	}
	return nil
}

// writeVagrantfile writes the Vagrantfile of all nodes into the output folder.
func (p *project) writeVagrantfile(ctx context.Context, config images.Config, clusterID string) error {
	ids, err := images.Identities(ctx, config)
	if err != nil {
		return err
	}
	text, err := vagrant.Write(p.spec, clusterID, ids)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(p.out, "Vagrantfile"), text, 0o644)
}

// vagrantNote returns what must be set up before VirtualBox accepts the spec's network, or "".
func vagrantNote(spec *cluster.Spec) string {
	if problem := vagrant.HostOnlyProblem(spec); problem != "" {
		return "note: " + problem + "\n"
	}
	return ""
}

// summary describes in one line what was baked.
func summary(dir string, results []images.Result) string {
	var baked []string
	for _, r := range results {
		if !r.Cached {
			baked = append(baked, r.Role)
		}
	}
	if len(baked) == 0 {
		return fmt.Sprintf("%s: %s, up to date", dir, count(len(results), "image"))
	}
	said := fmt.Sprintf("%s: baked %s (%s)", dir, count(len(baked), "image"), strings.Join(baked, ", "))
	if n := len(results) - len(baked); n > 0 {
		said += fmt.Sprintf(", %d up to date", n)
	}
	return said
}

// bakes shows the progress of bakes, one line per running bake.
type bakes struct {
	block *block
	now   func() time.Time

	mu      sync.Mutex
	running []*bake // in start order
}

type bake struct {
	image, step string
	began       time.Time
}

// Step implements the interface of [images.Config]'s UI.
func (p *bakes) Step(image, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.index(image)
	if i < 0 {
		i = len(p.running)
		p.running = append(p.running, &bake{image: image, began: p.now()})
	}
	p.running[i].step = what
	if !p.block.terminal {
		p.block.say("%s: %s", image, what)
	}
	p.show()
}

// Done ends an image's line. Cached images appear only in the summary.
func (p *bakes) Done(image string, cached bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := p.index(image); i >= 0 {
		p.block.say("%s: done in %s", image, age(p.running[i].began, p.now()))
		p.running = slices.Delete(p.running, i, i+1)
	}
	p.show()
}

func (p *bakes) Note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.block.say("%s", text)
	p.show()
}

func (p *bakes) index(image string) int {
	return slices.IndexFunc(p.running, func(b *bake) bool { return b.image == image })
}

func (p *bakes) show() {
	lines := make([]string, len(p.running))
	for i, b := range p.running {
		lines[i] = fmt.Sprintf("%s: %s", b.image, b.step)
	}
	p.block.show(lines)
}

// nodesOf returns the nodes of the named roles, or of all roles if none is named.
func (p *project) nodesOf(names []string) ([]cluster.Node, error) {
	if len(names) == 0 {
		return p.spec.Nodes(), nil
	}
	var nodes []cluster.Node
	for i, name := range names {
		r := p.spec.Role(name)
		if r == nil {
			var all []string
			for _, r := range p.spec.Roles {
				all = append(all, r.Name)
			}
			return nil, wrongf("%s has no role %s; its roles are %s.%s", p.spec.File, name, strings.Join(all, ", "), guess(name, all))
		}
		if slices.Contains(names[:i], name) {
			return nil, wrongf("%s is named twice", name)
		}
		nodes = append(nodes, r.Nodes...)
	}
	return nodes, nil
}

func agentPath(c *cli.Context) (string, error) {
	path := c.String("agent")
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find the agent: %w; name it with --agent", err)
		}
		path = filepath.Join(filepath.Dir(self), "imagegen-node")
	}
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("there is no agent at %s; make build builds it, --agent FILE names another", path)
	}
	return path, nil
}

func cacheDir(c *cli.Context) (string, error) {
	if dir := c.String("cache"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w; name one with --cache", err)
	}
	return filepath.Join(dir, "imagegen"), nil
}

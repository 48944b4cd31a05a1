package main

import (
	"cmp"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/urfave/cli/v2"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/internal/atomicfile"
	"imagegen/machines/fleet"
)

func seedCommand() *cli.Command {
	return &cli.Command{
		Name:      "seed",
		Usage:     "make the seed ISOs of all nodes, or of those named",
		ArgsUsage: "[NODE…]",
		Description: "Writes DIR/seeds/NODE.iso, readable only by its owner, because it contains the node's secrets. The same spec and\n" +
			"secrets give the same bytes, and a seed that is up to date is not rewritten. Secrets are issued once and kept in secrets/\n" +
			"beside the spec; only seed and build issue them. A lost secret is an error and never replaced; so is a missing folder\n" +
			"secrets/ while DIR/seeds has seeds. Certificates are renewed in the last third of their life.\n\n" +
			"DIR/expected.json says which image and seed each node should have, and DIR/generation.json is the generation that the\n" +
			"seeds belong to: a number that grows with every change. Neither contains secrets (see docs/seeds.md).",
		Flags: []cli.Flag{
			specFlag(), outFlag(),
			&cli.BoolFlag{Name: "print", Usage: "print the seeds' files without their secrets, and write nothing"},
		},
		Action: func(c *cli.Context) error {
			p, err := load(c)
			if err != nil {
				return err
			}
			nodes, err := p.nodes(c.Args().Slice())
			if err != nil {
				return err
			}
			if c.Bool("print") {
				keys, err := p.readSecrets()
				if err != nil {
					return err
				}
				if err := p.currentCertificate(keys); err != nil {
					return err
				}
				p.standIns(keys)
				return p.printSeeds(c, keys, nodes)
			}
			keys, err := p.issueSecrets(c)
			if err != nil {
				return err
			}
			all, err := p.render(keys)
			if err != nil {
				return err
			}
			said, err := p.writeSeeds(keys, all, nodes, nil)
			if err != nil {
				return err
			}
			if err := p.writeExpected(keys.ClusterID); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, said)
			p.nameStaleSeeds(c.App.ErrWriter)
			return nil
		},
	}
}

func (p *project) seedPath(node string) string { return filepath.Join(p.out, "seeds", node+".iso") }

// writeSeeds writes those of the nodes' seeds that are missing or out of date, with the generation of all, and returns a one-line
// summary. If a seed of another cluster is in a node's place, it writes none. inUse is the generation in use; nil: not known.
func (p *project) writeSeeds(keys *secrets.Secrets, all []rendering, nodes []cluster.Node, inUse *facts.Generation) (string, error) {
	dir := filepath.Join(p.out, "seeds")
	if err := atomicfile.MakeDirs(dir); err != nil {
		return "", fmt.Errorf("make the folder of the seeds: %w", err)
	}
	seeds := map[string]cloudinit.Seed{}
	for _, r := range all {
		seeds[r.node.Name] = r.seed
	}
	wrote := make([]bool, len(nodes)) // not where only the generation is another, which changes nothing on the node
	err := eachNode(nodes, func(i int, n cluster.Node) error {
		have, err := cloudinit.ReadISO(p.seedPath(n.Name))
		if wrote[i] = err != nil || !fleet.SameSeed(have, seeds[n.Name]); err != nil || !wrote[i] {
			return nil // none, a damaged one, or this cluster's
		}
		if id, err := seedCluster(p.seedPath(n.Name)); err == nil && id != keys.ClusterID {
			return fmt.Errorf("%s is a seed of another cluster (id %s) than %s (id %s): restore that cluster's secrets, "+
				"or write to another folder (--out); to give up that cluster, remove %s first", p.seedPath(n.Name), id, p.secretsDir(), keys.ClusterID, dir)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	manifest, err := p.number(keys, all, inUse, secrets.Render)
	if err != nil {
		return "", err
	}
	for _, r := range all { // now with the generation
		seeds[r.node.Name] = r.seed
	}
	err = eachNode(nodes, func(i int, n cluster.Node) error {
		if seeds[n.Name].IsAt(p.seedPath(n.Name)) {
			return nil
		}
		return seeds[n.Name].WriteISO(p.seedPath(n.Name))
	})
	if err == nil {
		err = p.writeGeneration(manifest)
	}
	if err != nil {
		return "", err
	}
	var written []string
	for i, n := range nodes {
		if wrote[i] {
			written = append(written, n.Name)
		}
	}
	switch {
	case len(written) == 0:
		return fmt.Sprintf("%s: %s, up to date", dir, count(len(nodes), "seed")), nil
	case len(written) == len(nodes):
		return fmt.Sprintf("%s: wrote %s", dir, count(len(nodes), "seed")), nil
	}
	return fmt.Sprintf("%s: wrote %s (%s), %d up to date", dir, count(len(written), "seed"), strings.Join(written, ", "), len(nodes)-len(written)), nil
}

// nameStaleSeeds lists the seeds of nodes that are not in the spec. They contain valid secrets, but a node may still
// run from them, so removing them is up to the operator.
func (p *project) nameStaleSeeds(w io.Writer) {
	paths, _ := filepath.Glob(p.seedPath("*")) // the pattern is valid
	for _, path := range paths {
		node := strings.TrimSuffix(filepath.Base(path), ".iso")
		if _, ok := p.spec.Node(node); !ok {
			fmt.Fprintf(w, "imagegen: %s is the seed of %s, which is not in %s; it contains secrets: once that node is gone, rm %s\n", path, node, p.spec.File, path)
		}
	}
}

// eachNode calls do for all nodes, in parallel, because most of the time is spent writing YAML and in fsync. It returns
// the first error in the order of the list; others are usually the same (a full disk).
func eachNode(nodes []cluster.Node, do func(i int, n cluster.Node) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, len(nodes))
	for range min(len(nodes), 16*runtime.NumCPU()) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(nodes); i = int(next.Add(1)) - 1 {
				errs[i] = do(i, nodes[i])
			}
		})
	}
	wg.Wait()
	return cmp.Or(errs...)
}

// printSeeds prints the files on the seeds with placeholders instead of secrets. Everything else is as on the seed,
// including the instance-id.
func (p *project) printSeeds(c *cli.Context, keys *secrets.Secrets, nodes []cluster.Node) error {
	for _, n := range nodes {
		files, err := p.files(keys, n)
		if err != nil {
			return err
		}
		real, err := cloudinit.New(p.spec, keys.ClusterID, n, files)
		if err != nil {
			return err
		}
		shown, err := cloudinit.New(p.spec, keys.ClusterID, n, mask(files, keys))
		if err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "# %s: meta-data\n%s\n# %s: network-config\n%s\n# %s: user-data\n%s\n",
			n.Name, real.MetaData, n.Name, shown.NetworkConfig, n.Name, shown.UserData)
	}
	return nil
}

// mask returns the files without secrets. If a file is marked secret but contains none in a known form (but a hash, for
// example), all of its content is masked.
func mask(files []cloudinit.File, keys *secrets.Secrets) []cloudinit.File {
	return maskWith(newMasker(keys, nil), files)
}

// newMasker replaces the values of secrets by their names. passwords and private are further ones.
func newMasker(keys *secrets.Secrets, passwords map[string]string, private ...[]byte) *strings.Replacer {
	var pairs []string
	add := func(value, shown string) {
		if value != "" {
			pairs = append(pairs, value, shown)
		}
	}
	for _, all := range []map[string]string{keys.Passwords, passwords} {
		for name, value := range all {
			add(value, "(secret "+name+")")
		}
	}
	private = append(private, keys.CA.Key, keys.Operator.Key, keys.Generation.Key, keys.Site.Key)
	for _, k := range keys.Nodes {
		private = append(private, k.Key)
	}
	for _, key := range private {
		add(string(key), "(private key)\n")
	}
	return strings.NewReplacer(pairs...)
}

func maskWith(masker *strings.Replacer, files []cloudinit.File) []cloudinit.File {
	masked := slices.Clone(files)
	for i, f := range files {
		content := masker.Replace(string(f.Content))
		if f.Secret && content == string(f.Content) {
			content = "(secret)\n"
		}
		masked[i].Content = []byte(content)
	}
	return masked
}

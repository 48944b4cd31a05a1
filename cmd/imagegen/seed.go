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
	"imagegen/cluster/secrets"
	"imagegen/internal/atomicfile"
)

func seedCommand() *cli.Command {
	return &cli.Command{
		Name:      "seed",
		Usage:     "make the seed ISOs of all nodes, or of the named ones",
		ArgsUsage: "[NODE…]",
		Description: "Writes DIR/seeds/NODE.iso, readable by its owner alone, since it holds the node's secrets. The same spec and\n" +
			"secrets give the same bytes; a seed that is there already is left alone. Secrets are issued once, and kept in secrets/\n" +
			"beside the spec: only seed and build make them. One that is lost is an error, never replaced; so is a folder secrets/\n" +
			"that is gone while DIR/seeds holds seeds. Certificates are renewed in the last third of their life.\n\n" +
			"DIR/expected.json says which image and seed each node should have, and holds no secret (see docs/seeds.md).",
		Flags: []cli.Flag{
			specFlag(), outFlag(),
			&cli.BoolFlag{Name: "print", Usage: "print the files on the seeds, without their secrets, and write none"},
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
				p.standIns(keys)
				return p.printSeeds(c, keys, nodes)
			}
			keys, err := p.issueSecrets(c)
			if err != nil {
				return err
			}
			said, err := p.writeSeeds(keys, nodes)
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

// seedPath returns where a node's seed belongs.
func (p *project) seedPath(node string) string { return filepath.Join(p.out, "seeds", node+".iso") }

// writeSeeds makes the seeds that are not there yet, and returns what it did, in one line. Where a seed of another
// cluster is in a node's place, none is written.
func (p *project) writeSeeds(keys *secrets.Secrets, nodes []cluster.Node) (string, error) {
	dir := filepath.Join(p.out, "seeds")
	if err := atomicfile.MakeDirs(dir); err != nil {
		return "", fmt.Errorf("make the folder of the seeds: %w", err)
	}
	seeds := make([]cloudinit.Seed, len(nodes))
	wrote := make([]bool, len(nodes))
	err := eachNode(nodes, func(i int, n cluster.Node) (err error) {
		if seeds[i], err = p.seed(keys, n); err != nil || seeds[i].IsAt(p.seedPath(n.Name)) {
			return err
		}
		wrote[i] = true
		if id, err := seedCluster(p.seedPath(n.Name)); err == nil && id != keys.ClusterID {
			return fmt.Errorf("%s is a seed of another cluster (id %s) than %s is of (id %s): put back the secrets that belong to it, "+
				"or write to another folder (--out); if that cluster is to be given up, remove %s first", p.seedPath(n.Name), id, p.secretsDir(), keys.ClusterID, dir)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	err = eachNode(nodes, func(i int, n cluster.Node) error {
		if !wrote[i] {
			return nil
		}
		return seeds[i].WriteISO(p.seedPath(n.Name))
	})
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

// nameStaleSeeds names the seeds of nodes that the spec does not have. They hold secrets that still count, but a node may
// run from them, so removing them is the operator's.
func (p *project) nameStaleSeeds(w io.Writer) {
	paths, _ := filepath.Glob(p.seedPath("*")) // the pattern is a good one
	for _, path := range paths {
		node := strings.TrimSuffix(filepath.Base(path), ".iso")
		if _, ok := p.spec.Node(node); !ok {
			fmt.Fprintf(w, "imagegen: %s is the seed of %s, which is no node of %s; it holds secrets: when that node is gone, rm %s\n", path, node, p.spec.File, path)
		}
	}
}

// eachNode calls do for all nodes, several at once, since nearly all of the time is writing YAML and waiting for the
// disk. It returns the error of the first in the list that failed, which says enough: a disk that is full is full for all.
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

// printSeeds prints the files on the seeds, with a remark in place of each secret. The rest is as it is on the seed, the
// instance-id included.
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

// mask returns the files without secrets. Of a file that is said to hold one, but in a form that is not recognised
// (a hash, say), nothing is left.
func mask(files []cloudinit.File, keys *secrets.Secrets) []cloudinit.File {
	var pairs []string
	for name, value := range keys.Passwords {
		pairs = append(pairs, value, "(secret "+name+")")
	}
	for _, k := range keys.Nodes {
		pairs = append(pairs, string(k.Key), "(private key)\n")
	}
	pairs = append(pairs, string(keys.CA.Key), "(private key)\n", string(keys.Operator.Key), "(private key)\n")
	masker := strings.NewReplacer(pairs...)
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

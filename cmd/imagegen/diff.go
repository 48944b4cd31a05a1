package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/internal/unified"
	"imagegen/internal/words"
	"imagegen/operate"
)

func diffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Category:  operateCategory,
		Usage:     "compare what runs with what the spec says, node by node and file by file",
		ArgsUsage: "[NODE…]",
		Description: "Asks the nodes for the seeds that they run, renders those of the spec, and shows how they differ, as diff -u does; names of\n" +
			"secrets stand in for their values. Also says which nodes the spec has added, removed or moved to another address, and\n" +
			"whose image is not the one that imagegen build made last. Changes nothing.\n\n" +
			"Needs all of secrets/, because seeds are rendered with them. Exits with 0 whenever a node could be asked, whether anything differs\n" +
			"or not; nodes that do not answer are named.\n\n" +
			"--json prints {\"version\": 1, \"cluster\", \"generation\", \"uncertain\", \"nodes\": [{\"node\", \"change\", \"error\", \"generation\", \"address\", \"image\", \"files\"}]}.\n" +
			"change is same, changed, added, removed or silent; generation is a number, that of the whole is in use; address and image are\n" +
			"{\"runs\", \"spec\"} where they differ; files are [{\"path\", \"change\", \"mode\", \"owner\", \"secrets_only\", \"diff\"}]. user-data without its\n" +
			"files and network-config count as files. Fields may be added without a new version.",
		Flags: []cli.Flag{specFlag(), outFlag(), viaFlag(), jsonFlag("the differences")},
		Action: func(c *cli.Context) error {
			b := newBlock(c)
			defer b.clear()
			p, cl, err := openCluster(c, b)
			if err != nil {
				return err
			}
			nodes, err := p.nodes(c.Args().Slice())
			if err != nil {
				return err
			}
			keys, err := p.readSecrets()
			if err != nil {
				return err
			}
			if keys.CA.Key == nil {
				return fmt.Errorf("diff renders seeds, and %s has only the operator's secrets: run it where the seeds are made", p.secretsDir())
			}
			if err := p.currentCertificate(keys); err != nil {
				return err
			}
			p.standIns(keys)
			d, err := p.diff(c.Context, cl, keys, nodes, !c.Args().Present())
			b.clear()
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, d)
			}
			fmt.Fprint(c.App.Writer, printable(d.text()))
			return nil
		},
	}
}

// diffVersion is the version of diff --json. It does not change when fields are added.
const diffVersion = 1

// clusterDiff is the output of diff --json.
type clusterDiff struct {
	Version    int        `json:"version"`
	Cluster    string     `json:"cluster"`
	Generation int        `json:"generation,omitempty"` // in use; 0: none, or not known
	Uncertain  string     `json:"uncertain,omitempty"`  // why a later one may be
	Nodes      []nodeDiff `json:"nodes"`
}

// Values of nodeDiff.Change and of fileDiff.Change.
const (
	diffSame    = "same"
	diffChanged = "changed"
	diffAdded   = "added"
	diffRemoved = "removed"
	diffSilent  = "silent"
)

// nodeDiff says how a node differs from the spec.
type nodeDiff struct {
	Node       string     `json:"node"`
	Change     string     `json:"change"`
	Error      string     `json:"error,omitempty"`      // why it could not be asked
	Generation int        `json:"generation,omitempty"` // of its seed
	Address    *pairDiff  `json:"address,omitempty"`
	Image      *pairDiff  `json:"image,omitempty"`
	Files      []fileDiff `json:"files,omitempty"`
}

// pairDiff is a value that differs.
type pairDiff struct {
	Runs string `json:"runs"`
	Spec string `json:"spec"`
}

// fileDiff says how a file of a seed differs.
type fileDiff struct {
	Path   string    `json:"path"`
	Change string    `json:"change"`
	Mode   *pairDiff `json:"mode,omitempty"`
	Owner  *pairDiff `json:"owner,omitempty"`
	// SecretsOnly: the contents differ in nothing but secrets.
	SecretsOnly bool   `json:"secrets_only,omitempty"`
	Diff        string `json:"diff,omitempty"` // unified, without the lines that name the files
}

// diff compares these nodes with the spec and, if all are, the others that still run.
func (p *project) diff(ctx context.Context, cl *operate.Cluster, keys *secrets.Secrets, nodes []cluster.Node, all bool) (clusterDiff, error) {
	d := clusterDiff{Version: diffVersion, Cluster: p.spec.Cluster}
	g, err := cl.Generation(ctx, nil)
	if err != nil {
		return d, err
	}
	if g.InUse != nil {
		d.Generation = g.InUse.Number
		if g.Uncertain != nil {
			d.Uncertain = g.Uncertain.Error()
		}
	}
	d.Nodes = make([]nodeDiff, len(nodes))
	err = eachNode(nodes, func(i int, n cluster.Node) (err error) {
		d.Nodes[i], err = p.diffNode(ctx, cl, keys, g, n)
		return err
	})
	if err != nil {
		return d, err
	}
	answered := slices.ContainsFunc(d.Nodes, func(n nodeDiff) bool { return n.Error == "" })
	for _, n := range g.Nodes {
		answered = answered || n.Status != nil
		if _, ok := p.spec.Node(n.Node); !ok && all {
			gone := nodeDiff{Node: n.Node, Change: diffRemoved, Error: n.Error}
			if n.Status != nil && n.Status.Running != nil {
				gone.Generation = n.Status.Running.Number
			}
			d.Nodes = append(d.Nodes, gone)
		}
	}
	if !answered {
		if _, err := cl.Status(ctx); err != nil { // it says what was tried
			return d, err
		}
	}
	return d, ctx.Err()
}

// diffNode compares a node of the spec.
func (p *project) diffNode(ctx context.Context, cl *operate.Cluster, keys *secrets.Secrets, g operate.Generations, n cluster.Node) (nodeDiff, error) {
	d := nodeDiff{Node: n.Name, Change: diffSame}
	ip := n.IP
	for _, known := range g.Nodes {
		if known.Node == n.Name && known.Status != nil {
			ip = known.Address
		}
	}
	kept, err := cl.KeptSeed(ctx, n.Name, ip)
	if err != nil {
		d.Change, d.Error = diffSilent, err.Error()
		if g.InUse != nil {
			if _, ok := g.InUse.Member(n.Name); !ok {
				d.Change = diffAdded
			}
		}
		return d, nil
	}
	if kept.Generation != nil {
		if runs, err := facts.OpenGeneration(kept.Generation); err == nil {
			d.Generation = runs.Number
		}
	}
	files, err := p.files(keys, n)
	if err != nil {
		return d, err
	}
	want, err := cloudinit.New(p.spec, keys.ClusterID, n, files)
	if err != nil {
		return d, err
	}
	runs := cloudinit.Seed{MetaData: kept.MetaData, NetworkConfig: kept.NetworkConfig, UserData: kept.UserData}
	if d.Files, err = diffSeeds(keys, runs, want, files); err != nil {
		d.Change, d.Error = diffSilent, "its seed cannot be read: "+err.Error()
		return d, nil
	}
	if ip != n.IP {
		d.Address = &pairDiff{ip.String(), n.IP.String()}
	}
	if report, err := cl.Agents.Ask(ctx, n.Name, ip); err == nil {
		if image, err := p.made().ImageIdentity(n.Role); err == nil && report.Image != "" && report.Image != image {
			d.Image = &pairDiff{report.Image, image}
		}
	}
	if d.Files != nil || d.Address != nil || d.Image != nil {
		d.Change = diffChanged
	}
	return d, nil
}

// diffSeeds compares the seed that a node runs with the spec's, which has these files.
func diffSeeds(keys *secrets.Secrets, runs, want cloudinit.Seed, files []cloudinit.File) ([]fileDiff, error) {
	old, err := runs.Files()
	if err != nil {
		return nil, err
	}
	// Passwords and keys may have changed: those that the node has must not be shown either.
	passwords := map[string]string{}
	var private []byte
	for i, f := range old {
		var now *cloudinit.File
		if at := slices.IndexFunc(files, func(n cloudinit.File) bool { return n.Path == f.Path }); at >= 0 {
			now = &files[at]
		}
		// Seeds do not say which files are secret; none of these is world-readable.
		old[i].Secret = now != nil && now.Secret || f.Mode&0o004 == 0 && (now == nil || now.Mode != f.Mode)
		switch f.Path {
		case facts.SecretsPath:
			if err := json.Unmarshal(f.Content, &passwords); err != nil {
				return nil, fmt.Errorf("%s: %w", f.Path, err)
			}
		case facts.PKIDir + "/node.key":
			private = f.Content
		}
	}
	masker := newMasker(keys, passwords, private)
	shownOld, shownNow := maskWith(masker, old), maskWith(masker, files)

	all := []fileDiff{}
	for _, part := range []struct{ name, old, now string }{
		{"network-config", string(runs.NetworkConfig), string(want.NetworkConfig)},
		{"user-data", head(runs.UserData), head(want.UserData)},
	} {
		if diff := unified.Diff(part.old, part.now); diff != "" {
			all = append(all, fileDiff{Path: part.name, Change: diffChanged, Diff: diff})
		}
	}
	find := func(files []cloudinit.File, path string) int {
		return slices.IndexFunc(files, func(f cloudinit.File) bool { return f.Path == path })
	}
	for i, f := range files {
		at := find(old, f.Path)
		if at < 0 {
			all = append(all, fileDiff{Path: f.Path, Change: diffAdded, Diff: diffTexts(nil, shownNow[i].Content)})
			continue
		}
		d := fileDiff{Path: f.Path, Change: diffChanged}
		if was := old[at]; was.Mode != f.Mode {
			d.Mode = &pairDiff{fmt.Sprintf("%04o", was.Mode), fmt.Sprintf("%04o", f.Mode)}
		}
		if was, now := owner(old[at]), owner(f); was != now {
			d.Owner = &pairDiff{was, now}
		}
		was, now := old[at].Content, f.Content
		if f.Path == facts.FactsPath {
			was, now = withoutDigests(was), withoutDigests(now)
		}
		if !bytes.Equal(was, now) {
			if d.Diff = diffTexts(shownOld[at].Content, shownNow[i].Content); f.Path == facts.FactsPath {
				d.Diff = diffTexts(was, now) // facts contain no secrets
			}
			d.SecretsOnly = d.Diff == ""
		}
		if d.Mode != nil || d.Owner != nil || d.Diff != "" || d.SecretsOnly {
			all = append(all, d)
		}
	}
	for i, f := range old {
		if find(files, f.Path) < 0 {
			all = append(all, fileDiff{Path: f.Path, Change: diffRemoved, Diff: diffTexts(shownOld[i].Content, nil)})
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}

// digestForm is a digest in the facts.
var digestForm = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// withoutDigests removes digests: those in the facts are of other files, which are compared themselves.
func withoutDigests(content []byte) []byte { return digestForm.ReplaceAll(content, []byte("(digest)")) }

// owner returns a file's owner as it is in the seed.
func owner(f cloudinit.File) string {
	if f.Owner == "" {
		return "root:root"
	}
	return f.Owner
}

// head returns the part of user-data before the files.
func head(userData []byte) string {
	text, _, _ := strings.Cut(string(userData), "\nwrite_files:\n")
	return strings.TrimSuffix(text, "\n") + "\n"
}

// diffTexts compares contents, if they are texts.
func diffTexts(old, now []byte) string {
	for _, data := range [][]byte{old, now} {
		if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
			return "binary content\n"
		}
	}
	return unified.Diff(string(old), string(now))
}

// text is the output of diff for people.
func (d clusterDiff) text() string {
	var b strings.Builder
	if d.Generation > 0 {
		fmt.Fprintf(&b, "generation %d is in use\n", d.Generation)
	}
	if d.Uncertain != "" {
		fmt.Fprintf(&b, "not certain: %s\n", d.Uncertain)
	}
	var silent []string
	differ := 0
	for _, n := range d.Nodes {
		switch n.Change {
		case diffSame:
			continue
		case diffSilent:
			silent = append(silent, n.Node+" ("+n.Error+")")
			continue
		case diffAdded:
			fmt.Fprintf(&b, "%s: added, and does not run yet\n", n.Node)
		case diffRemoved:
			state := "still runs"
			if n.Error != "" {
				state = "does not answer: " + n.Error
			}
			fmt.Fprintf(&b, "%s: removed from the spec, and %s\n", n.Node, state)
		default:
			fmt.Fprintf(&b, "%s: changed\n", n.Node)
		}
		differ++
		for _, v := range []struct {
			name string
			pair *pairDiff
		}{{"address", n.Address}, {"image", n.Image}} {
			if v.pair != nil {
				fmt.Fprintf(&b, "%s: %s %s, should be %s\n", n.Node, v.name, v.pair.Runs, v.pair.Spec)
			}
		}
		for _, f := range n.Files {
			f.print(&b, n.Node)
		}
	}
	fmt.Fprintf(&b, "%d of %s differ from the spec\n", differ, count(len(d.Nodes), "node"))
	if silent != nil {
		fmt.Fprintf(&b, "not asked: %s\n", words.List(silent, "and"))
	}
	return b.String()
}

func (f fileDiff) print(b *strings.Builder, node string) {
	name := node + "/" + strings.TrimPrefix(f.Path, "/")
	if f.Mode != nil {
		fmt.Fprintf(b, "%s: mode %s, should be %s\n", name, f.Mode.Runs, f.Mode.Spec)
	}
	if f.Owner != nil {
		fmt.Fprintf(b, "%s: owner %s, should be %s\n", name, f.Owner.Runs, f.Owner.Spec)
	}
	switch {
	case f.SecretsOnly:
		fmt.Fprintf(b, "%s: other secrets\n", name)
	case f.Change == diffAdded:
		fmt.Fprintf(b, "--- /dev/null\n+++ %s\tspec\n%s", name, f.Diff)
	case f.Change == diffRemoved:
		fmt.Fprintf(b, "--- %s\truns\n+++ /dev/null\n%s", name, f.Diff)
	case f.Diff != "":
		fmt.Fprintf(b, "--- %s\truns\n+++ %s\tspec\n%s", name, name, f.Diff)
	}
}

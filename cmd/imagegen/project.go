package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/roles"
)

// project is the input of every command except init: the spec, its roles, and the output folder.
type project struct {
	spec      *cluster.Spec
	catalogue *roles.Catalogue
	out       string
	provider  string // from --provider or the spec; empty if neither sets it
	// earlier are seeds that machines are made from instead of the spec's, while a change is undone.
	earlier map[string]cloudinit.Seed
}

func specFlag() cli.Flag {
	return &cli.StringFlag{Name: "file", Aliases: []string{"f"}, Value: "cluster.yaml", Usage: "read the spec from `FILE` (-: standard input); roles/ and secrets/ are beside it"}
}

func outFlag() cli.Flag {
	return &cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "images, seeds and the lab's state are in `DIR` (default: dist beside the spec)"}
}

func jsonFlag(what string) cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print " + what + " as JSON"}
}

// load reads the spec and the roles. Errors in them are the user's to fix.
func load(c *cli.Context) (*project, error) { return loadFile(c, c.String("file")) }

func loadFile(c *cli.Context, file string) (*project, error) {
	if err := checkProvider(c.String("provider")); err != nil {
		return nil, err
	}
	name, dir := specPlace(file)
	catalogue, err := roles.Load(filepath.Join(dir, "roles"))
	if err != nil {
		return nil, wrongError{err}
	}
	var spec *cluster.Spec
	if name == file {
		spec, err = cluster.Load(file, catalogue.Rules())
	} else {
		spec, err = readSpec(c.App.Reader, file, name, catalogue.Rules())
	}
	if err != nil {
		return nil, wrongError{err}
	}
	p := &project{spec: spec, catalogue: catalogue, out: c.String("out"), provider: cmp.Or(c.String("provider"), spec.Machines.Provider)}
	if p.out == "" {
		p.out = filepath.Join(dir, "dist")
	}
	return p, nil
}

const stdinName = "<stdin>"

// specPlace returns the name of a spec for messages, and the folder with its roles, secrets and results. For a spec
// from a pipe or a device that is the current folder, not /dev.
func specPlace(file string) (name, dir string) {
	switch file {
	case "-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0":
		return stdinName, "."
	}
	info, err := os.Stat(file)
	piped := err == nil && !info.Mode().IsRegular() && !info.IsDir()
	if full, err := filepath.Abs(file); err == nil && (strings.HasPrefix(full, "/dev/fd/") || strings.HasPrefix(full, "/proc/")) {
		piped = true
	}
	if piped {
		return "<" + filepath.Base(file) + ">", "."
	}
	return file, filepath.Dir(file)
}

// readSpec reads a spec that is not a regular file; its size is limited.
func readSpec(stdin io.Reader, file, name string, rules map[string]cluster.Rules) (*cluster.Spec, error) {
	r := stdin
	if name != stdinName {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read the spec: %w", err)
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, cluster.SpecLimit+1))
	if err != nil {
		return nil, fmt.Errorf("read the spec: %w", err)
	}
	return cluster.Parse(name, data, rules)
}

func (p *project) secretsDir() string { return filepath.Join(filepath.Dir(p.spec.File), "secrets") }

// issueSecrets returns the cluster's secrets, and issues missing ones that were never issued. Only seed, build and
// apply call it. It reports renewed certificates.
func (p *project) issueSecrets(c *cli.Context) (*secrets.Secrets, error) {
	if err := p.refuseLostSecrets(); err != nil {
		return nil, err
	}
	s, err := secrets.Load(p.secretsDir(), p.spec, p.catalogue.SecretNames(p.spec))
	if err != nil {
		return nil, err
	}
	if len(s.Renewed) > 0 {
		fmt.Fprintf(c.App.ErrWriter, "imagegen: renewed certificates that would expire: %s; nodes use them once they run from their new seeds (imagegen roll)\n",
			strings.Join(s.Renewed, ", "))
	}
	return s, nil
}

// refuseLostSecrets fails if there are seeds but no secrets: new secrets would belong to a different cluster than these
// seeds.
func (p *project) refuseLostSecrets() error {
	none, err := secrets.NoSecrets(p.secretsDir())
	if err != nil || !none {
		return err
	}
	seeds, err := filepath.Glob(filepath.Join(p.out, "seeds", "*.iso"))
	if err != nil {
		return err
	}
	for _, path := range seeds {
		if id, err := seedCluster(path); err == nil {
			return fmt.Errorf("the folder %s is missing or empty, but %s is a seed of a cluster with secrets (id %s): restore the folder from a backup; "+
				"to replace that cluster by a new one, remove %s first", p.secretsDir(), path, id, filepath.Join(p.out, "seeds"))
		}
	}
	return nil
}

// seedCluster returns the ID of the cluster that a seed is for.
func seedCluster(path string) (string, error) {
	s, err := cloudinit.ReadISO(path)
	if err != nil {
		return "", err
	}
	files, err := s.Files()
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if f.Path == facts.FactsPath {
			return secrets.SeedClusterID(f.Content)
		}
	}
	return "", fmt.Errorf("%s holds no %s", path, facts.FactsPath)
}

// draftSecrets returns the cluster's secrets, with new ones in place of those that issueSecrets would issue, and writes nothing.
func (p *project) draftSecrets() (*secrets.Secrets, error) {
	if err := p.refuseLostSecrets(); err != nil {
		return nil, err
	}
	return secrets.Draft(p.secretsDir(), p.spec, p.catalogue.SecretNames(p.spec))
}

// readSecrets returns the existing secrets and issues none.
func (p *project) readSecrets() (*secrets.Secrets, error) {
	return secrets.Read(p.secretsDir(), p.spec, p.catalogue.SecretNames(p.spec))
}

// standIns sets a placeholder for each secret that is not issued yet, so that files can be rendered.
func (p *project) standIns(s *secrets.Secrets) {
	stand := secrets.KeyPair{Cert: []byte("(certificate not issued yet)\n"), Key: []byte("(private key not issued yet)\n")}
	if s.ClusterID == "" {
		s.ClusterID = "00000000-0000-0000-0000-000000000000"
	}
	if s.CA.Cert == nil {
		s.CA = stand
	}
	if s.Operator.Cert == nil {
		s.Operator = stand
	}
	for i, name := range p.catalogue.SecretNames(p.spec) {
		if s.Passwords[name] == "" {
			s.Passwords[name] = fmt.Sprintf("notIssued%03d", i)
		}
	}
	for _, n := range p.spec.Nodes() {
		if s.Nodes[n.Name].Cert == nil {
			s.Nodes[n.Name] = stand
		}
	}
	if p.spec.Site.TLS != nil && s.Site.Cert == nil {
		s.Site = stand
	}
}

// currentCertificate replaces the site's certificate that was rendered last by the one in the files that the spec names. The output
// of a command is known only after seed, build or apply has run it.
func (p *project) currentCertificate(s *secrets.Secrets) (err error) {
	if t := p.spec.Site.TLS; t != nil && t.Certificate != "" {
		s.Site, err = secrets.SiteFiles(p.spec, s.Site, time.Now())
	}
	return err
}

// warnOfExpiry warns on w about certificates in the last third of their life, in commands that do not renew them.
func warnOfExpiry(w io.Writer, s *secrets.Secrets) {
	for _, said := range s.Expiring(time.Now()) {
		fmt.Fprintf(w, "imagegen: %s; imagegen seed renews it, and nodes use it once they run from their new seeds (imagegen roll)\n", said)
	}
	if said := s.SiteExpiring(time.Now()); said != "" {
		fmt.Fprintf(w, "imagegen: %s; once it has been renewed, imagegen apply brings it to the nodes\n", said)
	}
}

// nodes returns the named nodes in that order, or all nodes of the spec if there are no names.
func (p *project) nodes(names []string) ([]cluster.Node, error) {
	if len(names) == 0 {
		return p.spec.Nodes(), nil
	}
	var nodes []cluster.Node
	seen := map[string]bool{}
	for _, name := range names {
		n, ok := p.spec.Node(name)
		if !ok {
			var all []string
			for _, n := range p.spec.Nodes() {
				all = append(all, n.Name)
			}
			return nil, wrongf("%s has no node %s; its nodes are %s.%s", p.spec.File, name, strings.Join(all, ", "), guess(name, all))
		}
		if seen[name] {
			return nil, wrongf("%s is named twice", name)
		}
		seen[name] = true
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func nodeNames(nodes []cluster.Node) []string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	return names
}

// files renders the files of the node's seed.
func (p *project) files(keys *secrets.Secrets, node cluster.Node) ([]cloudinit.File, error) {
	r, err := p.catalogue.Render(p.spec, keys, node.Name)
	if err != nil {
		return nil, err
	}
	files := make([]cloudinit.File, len(r.Files))
	for i, f := range r.Files {
		files[i] = cloudinit.File{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Content: f.Content, Secret: f.Secret}
	}
	return files, nil
}

// seed renders the node's seed.
func (p *project) seed(keys *secrets.Secrets, node cluster.Node) (cloudinit.Seed, error) {
	files, err := p.files(keys, node)
	if err != nil {
		return cloudinit.Seed{}, err
	}
	return cloudinit.New(p.spec, keys.ClusterID, node, files)
}

// noArguments rejects arguments of a command that takes none.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return wrongf("%s takes no names, but got %s", c.Command.Name, strings.Join(c.Args().Slice(), " "))
	}
	return nil
}

// someArguments rejects an empty list of names, where "all nodes" would be a dangerous default.
func someArguments(c *cli.Context) error {
	if !c.Args().Present() {
		return wrongf("%s needs the names of nodes: imagegen %s NODE…", c.Command.Name, c.Command.Name)
	}
	return nil
}

// oneArgument returns the argument of a command that takes exactly one.
func oneArgument(c *cli.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", wrongf("%s takes one %s, but got %d: imagegen %s %s", c.Command.Name, what, c.NArg(), c.Command.Name, strings.ToUpper(what))
	}
	return c.Args().First(), nil
}

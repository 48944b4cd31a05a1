package main

import (
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/roles"
)

// project is what every command but init begins with: a spec, its roles, and where results go.
type project struct {
	spec      *cluster.Spec
	catalogue *roles.Catalogue
	out       string
}

func specFlag() cli.Flag {
	return &cli.StringFlag{Name: "file", Aliases: []string{"f"}, Value: "cluster.yaml", Usage: "read the spec from `FILE`; roles/ and secrets/ are beside it"}
}

func outFlag() cli.Flag {
	return &cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "images, seeds and the lab's state are in `DIR` (default: dist beside the spec)"}
}

func jsonFlag(what string) cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print " + what + " as JSON"}
}

// load reads the spec and the roles. Whatever is wrong with them, a person has to mend it.
func load(c *cli.Context) (*project, error) {
	file := c.String("file")
	dir := filepath.Dir(file)
	catalogue, err := roles.Load(filepath.Join(dir, "roles"))
	if err != nil {
		return nil, wrongError{err}
	}
	spec, err := cluster.Load(file, catalogue.Rules())
	if err != nil {
		return nil, wrongError{err}
	}
	p := &project{spec: spec, catalogue: catalogue, out: c.String("out")}
	if p.out == "" {
		p.out = filepath.Join(dir, "dist")
	}
	return p, nil
}

// secrets returns the cluster's secrets, and makes those that are missing.
func (p *project) secrets() (*cluster.Secrets, error) {
	return cluster.LoadSecrets(filepath.Join(filepath.Dir(p.spec.File), "secrets"), p.spec, p.catalogue.SecretNames(p.spec))
}

// nodes returns the nodes with these names in their order, or all nodes of the spec when there are no names.
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
			return nil, wrongf("%s has no node %s; its nodes are %s", p.spec.File, name, strings.Join(all, ", "))
		}
		if seen[name] {
			return nil, wrongf("%s is named twice", name)
		}
		seen[name] = true
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// files renders what the node's seed writes.
func (p *project) files(secrets *cluster.Secrets, node cluster.Node) ([]cloudinit.File, error) {
	r, err := p.catalogue.Render(p.spec, secrets, node.Name)
	if err != nil {
		return nil, err
	}
	files := make([]cloudinit.File, len(r.Files))
	for i, f := range r.Files {
		files[i] = cloudinit.File{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Content: f.Content, Secret: f.Secret}
	}
	return files, nil
}

// seed renders the node's files and makes its seed.
func (p *project) seed(secrets *cluster.Secrets, node cluster.Node) (cloudinit.Seed, error) {
	files, err := p.files(secrets, node)
	if err != nil {
		return cloudinit.Seed{}, err
	}
	return cloudinit.New(p.spec, node, files)
}

// noArguments rejects names where a command takes none.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return wrongf("%s takes no names, but got %s", c.Command.Name, strings.Join(c.Args().Slice(), " "))
	}
	return nil
}

// someArguments rejects an empty list of names where it would be too easily written by mistake.
func someArguments(c *cli.Context) error {
	if !c.Args().Present() {
		return wrongf("%s takes the names of nodes: imagegen %s NODE…", c.Command.Name, c.Command.Name)
	}
	return nil
}

// oneArgument returns the name where a command takes exactly one.
func oneArgument(c *cli.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", wrongf("%s takes one %s, but got %d: imagegen %s %s", c.Command.Name, what, c.NArg(), c.Command.Name, strings.ToUpper(what))
	}
	return c.Args().First(), nil
}

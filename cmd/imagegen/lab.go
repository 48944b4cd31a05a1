package main

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/urfave/cli/v2"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/secrets"
	"imagegen/internal/words"
	"imagegen/lab"
)

// labCategory groups the commands that exist only in the lab.
const labCategory = "The lab (Linux, root)"

// machinesCategory groups the commands that create machines and turn them on and off.
const machinesCategory = "Machines (in the lab: Linux, root)"

// openLab opens the lab of the spec for a command on the nodes called names. It returns these names, or those of all
// nodes if names is empty. The lab's messages are shown as progress.
func openLab(c *cli.Context, b *block, names []string) (*lab.Lab, []string, error) {
	p, names, err := loadNodes(c, names)
	if err != nil {
		return nil, nil, err
	}
	l, _, err := p.lab(c, b)
	return l, names, err
}

// inLab reports whether a provider's machines run in the lab on this machine.
func inLab(provider string) bool {
	_, ok := labProviders[provider]
	return ok || provider == ""
}

// loadNodes loads the spec for a command on the nodes called names. It returns these names, or those of all nodes if
// names is empty.
func loadNodes(c *cli.Context, names []string) (*project, []string, error) {
	p, err := load(c)
	if err != nil {
		return nil, nil, err
	}
	nodes, err := p.nodes(names)
	if err != nil {
		return nil, nil, err
	}
	return p, nodeNames(nodes), nil
}

// openLabOf opens the lab for a command on the nodes called names, which may have been removed from the spec.
func openLabOf(c *cli.Context, b *block, names []string) (*lab.Lab, error) {
	p, err := load(c)
	if err != nil {
		return nil, err
	}
	if _, err := p.nodes(without(names, lab.Removed(p.spec, p.out))); err != nil {
		return nil, err
	}
	l, _, err := p.lab(c, b)
	return l, err
}

// without returns the names that are not in others.
func without(names, others []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(others, name) })
}

// lab opens the lab. Without readable secrets it warns and returns empty ones.
func (p *project) lab(c *cli.Context, b *block) (*lab.Lab, *secrets.Secrets, error) {
	if !inLab(p.provider) {
		return nil, nil, wrongf("the provider in %s is %s, but %s works only in the lab, with the providers %s",
			p.spec.File, p.provider, c.Command.Name, words.List(slices.Sorted(maps.Keys(labProviders)), "and"))
	}
	keys, err := p.readSecrets()
	if err == nil {
		err = p.refuseLostSecrets()
	}
	if err != nil {
		// Agents cannot be asked without secrets, but the cluster can still be listed, stopped and taken down.
		fmt.Fprintf(c.App.ErrWriter, "imagegen: %v\n", err)
		keys = &secrets.Secrets{}
	}
	l, err := lab.Open(lab.Config{Spec: p.spec, Secrets: keys, Providers: labProviders, Dir: p.out, Seed: p.seeds(), Log: b.say})
	return l, keys, err
}

// seeds returns a function that renders a node's seed, for comparison with the one that build wrote.
func (p *project) seeds() func(cluster.Node) (cloudinit.Seed, error) {
	keys := sync.OnceValues(func() (*secrets.Secrets, error) {
		s, err := p.readSecrets()
		if err == nil {
			p.standIns(s) // a seed rendered with all secrets differs from this one
		}
		return s, err
	})
	return func(n cluster.Node) (cloudinit.Seed, error) {
		if seed, ok := p.undone[n.Name]; ok {
			return seed, nil
		}
		s, err := keys()
		if err != nil {
			return cloudinit.Seed{}, err
		}
		return p.seed(s, n)
	}
}

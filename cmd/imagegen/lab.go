package main

import (
	"fmt"
	"slices"
	"sync"

	"github.com/urfave/cli/v2"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/secrets"
	"imagegen/lab"
)

// labCategory groups the commands that work on the cluster on this machine.
const labCategory = "The lab (Linux, root)"

// machinesCategory groups the commands that make machines and turn them on and off.
const machinesCategory = "Machines (in the lab: Linux, root)"

// openLab opens the lab of the spec for a command that works on the nodes called names. It returns them, or all nodes of
// the spec when names is empty. What the lab says about its work is progress.
func openLab(c *cli.Context, b *block, names []string) (*lab.Lab, []string, error) {
	p, names, err := loadNodes(c, names)
	if err != nil {
		return nil, nil, err
	}
	l, _, err := p.lab(c, b)
	return l, names, err
}

// inLab tells whether a provider's machines are in the lab on this machine.
func inLab(provider string) bool {
	return provider == "" || provider == lab.Nspawn || provider == lab.Qemu
}

// loadNodes is load for a command that works on the nodes called names. It returns them, or all nodes of the spec when names is
// empty.
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

// openLabOf opens the lab for a command that works on the nodes called names, of the spec or removed from it.
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

// without returns the names that are not among others.
func without(names, others []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(others, name) })
}

// lab opens the lab.
func (p *project) lab(c *cli.Context, b *block) (*lab.Lab, *secrets.Secrets, error) {
	if !inLab(p.provider) {
		return nil, nil, wrongf("%s says that machines are made by %s; %s works in the lab alone, with the providers %s and %s",
			p.spec.File, p.provider, c.Command.Name, lab.Nspawn, lab.Qemu)
	}
	keys, err := p.readSecrets()
	if err == nil {
		err = p.refuseLostSecrets()
	}
	if err != nil {
		// Without them nobody can ask the agents, but a cluster can still be seen, stopped and taken down.
		fmt.Fprintf(c.App.ErrWriter, "imagegen: %v\n", err)
		keys = &secrets.Secrets{}
	}
	l, err := lab.Open(lab.Config{Spec: p.spec, Secrets: keys, Dir: p.out, Seed: p.seeds(), Log: b.say})
	return l, keys, err
}

// seeds returns a function that makes the seeds which the spec gives nodes, to compare those that build has made with.
func (p *project) seeds() func(cluster.Node) (cloudinit.Seed, error) {
	keys := sync.OnceValues(func() (*secrets.Secrets, error) {
		s, err := p.readSecrets()
		if err == nil {
			p.standIns(s) // a seed that has all secrets is then another one
		}
		return s, err
	})
	return func(n cluster.Node) (cloudinit.Seed, error) {
		s, err := keys()
		if err != nil {
			return cloudinit.Seed{}, err
		}
		return p.seed(s, n)
	}
}

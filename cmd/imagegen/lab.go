package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/lab"
)

// labCategory groups the commands that work on the cluster on this machine.
const labCategory = "The lab (Linux, root)"

// openLab opens the lab of the spec for a command that works on the nodes called names. It returns them, or all nodes of
// the spec when names is empty. What the lab says about its work is progress.
func openLab(c *cli.Context, b *block, names []string) (*lab.Lab, []string, error) {
	l, names, _, err := openWithSecrets(c, b, names)
	return l, names, err
}

// openWithSecrets is openLab for who wants to see the secrets, too.
func openWithSecrets(c *cli.Context, b *block, names []string) (*lab.Lab, []string, *cluster.Secrets, error) {
	p, err := load(c)
	if err != nil {
		return nil, nil, nil, err
	}
	nodes, err := p.nodes(names)
	if err != nil {
		return nil, nil, nil, err
	}
	names = make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	secrets, err := p.readSecrets()
	if err == nil {
		err = p.refuseLostSecrets()
	}
	if err != nil {
		// Without them nobody can ask the agents, but a cluster can still be seen, stopped and taken down.
		fmt.Fprintf(c.App.ErrWriter, "imagegen: %v\n", err)
		secrets = &cluster.Secrets{}
	}
	l, err := lab.Open(lab.Config{Spec: p.spec, Secrets: secrets, Dir: p.out, Log: b.say})
	return l, names, secrets, err
}

package main

import (
	"github.com/urfave/cli/v2"

	"imagegen/lab"
)

// labCategory groups the commands that work on the cluster on this machine.
const labCategory = "The lab (Linux, root)"

// openLab opens the lab of the spec for a command that works on the nodes called names. It returns them, or all nodes of
// the spec when names is empty. What the lab says about its work is progress.
func openLab(c *cli.Context, b *block, names []string) (*lab.Lab, []string, error) {
	p, err := load(c)
	if err != nil {
		return nil, nil, err
	}
	nodes, err := p.nodes(names)
	if err != nil {
		return nil, nil, err
	}
	names = make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	secrets, err := p.secrets()
	if err != nil {
		return nil, nil, err
	}
	l, err := lab.Open(lab.Config{Spec: p.spec, Secrets: secrets, Dir: p.out, Log: b.say})
	return l, names, err
}

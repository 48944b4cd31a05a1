package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/cluster/secrets"
	"imagegen/machines"
)

// validation is the output of validate --json.
type validation struct {
	Spec     string    `json:"spec"`
	Valid    bool      `json:"valid"`
	Problems []problem `json:"problems"` // empty when valid
	Losses   []string  `json:"losses"`   // see hostLosses
}

type problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // from 1
	Column  int    `json:"column"`
	Path    string `json:"path"` // in the file, such as roles.web.nodes.web1
	Message string `json:"message"`
}

func validateCommand() *cli.Command {
	return &cli.Command{
		Name:  "validate",
		Usage: "check the spec and the roles",
		Description: "Checks the spec, the roles beside it, the files in site.tls, and that every file of every node can be rendered. Writes nothing\n" +
			"and runs nothing: what a command in site.tls prints is checked by seed, build and apply, which run it.\n" +
			"All errors are listed, one per line: FILE:LINE:COLUMN: PATH: what is wrong; how to fix it.\n\n" +
			"If the spec has machines.hosts, each host whose failure the cluster would not survive as a whole is listed, with what\n" +
			"would be lost. That is not an error.\n\n" +
			"--json prints {\"spec\", \"valid\", \"problems\": [{\"file\", \"line\", \"column\", \"path\", \"message\"}], \"losses\": [TEXT]}.",
		Flags: []cli.Flag{specFlag(), jsonFlag("the result")},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			p, err := load(c)
			if err == nil {
				err = p.renderAll()
			}
			// Secrets are not part of the validation; commands that need them report that they are unreadable.
			keys, secretsErr := &secrets.Secrets{}, error(nil)
			if err == nil {
				if keys, secretsErr = p.readSecrets(); secretsErr != nil {
					keys = &secrets.Secrets{}
				}
				err = p.currentCertificate(keys)
			}
			if c.Bool("json") {
				return printValidation(c, p, err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "%s: %s in %s on %s, no errors\n", p.spec.File,
				count(len(p.spec.Nodes()), "node"), count(len(p.spec.Roles), "role"), p.spec.Distro)
			fmt.Fprint(c.App.Writer, vagrantNote(p.spec))
			for _, line := range p.hostLosses() {
				fmt.Fprintf(c.App.Writer, "note: %s\n", line)
			}
			if t := p.spec.Site.TLS; t != nil && !t.SelfSigned {
				if note := secrets.SiteNote(keys.Site); note != "" {
					fmt.Fprintf(c.App.Writer, "note: %s\n", note)
				}
			}
			if secretsErr != nil {
				fmt.Fprintf(c.App.ErrWriter, "imagegen: %v\n", secretsErr)
			}
			warnOfExpiry(c.App.ErrWriter, keys)
			return nil
		},
	}
}

// renderAll renders every node with placeholders for secrets, because validate must not issue any.
func (p *project) renderAll() error {
	s := &secrets.Secrets{Passwords: map[string]string{}, Nodes: map[string]secrets.KeyPair{}}
	p.standIns(s)
	nodes := p.spec.Nodes()
	if err := eachNode(nodes, func(_ int, n cluster.Node) error {
		_, err := p.seed(s, n)
		return err
	}); err != nil {
		return wrongError{err}
	}
	return nil
}

// hostLosses describes the loss of each host that the cluster would not survive as a whole, for a new placement of all
// nodes.
func (p *project) hostLosses() []string {
	hosts := p.spec.Machines.Hosts
	return machines.Losses(p.spec, hosts, machines.Place(p.spec, hosts, nil), p.quorum())
}

// quorum tells whether a role decides by majority.
func (p *project) quorum() func(role string) bool {
	rules := p.catalogue.Rules()
	return func(role string) bool { return rules[role].Quorum }
}

func printValidation(c *cli.Context, p *project, err error) error {
	v := validation{Spec: c.String("file"), Valid: err == nil, Problems: []problem{}, Losses: []string{}}
	if err == nil {
		v.Losses = append(v.Losses, p.hostLosses()...)
	}
	var problems cluster.Problems
	if errors.As(err, &problems) {
		for _, p := range problems {
			v.Problems = append(v.Problems, problem{p.File, p.Line, p.Col, p.Path, p.Msg})
		}
	} else if err != nil {
		v.Problems = append(v.Problems, problem{File: v.Spec, Line: 1, Column: 1, Message: err.Error()})
	}
	if e := printJSON(c.App.Writer, v); e != nil {
		return e
	}
	if err != nil {
		return exitError(exitWrong)
	}
	return nil
}

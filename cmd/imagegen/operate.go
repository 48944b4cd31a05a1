package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/lab"
	"imagegen/operate"
)

// operateCategory groups the commands that talk to the nodes' agents.
const operateCategory = "Operating (any cluster whose nodes can be reached)"

// How agents are asked directly. Tests have nodes on loopback, and more time.
var (
	dialNode    operate.Dial = new(net.Dialer).DialContext
	answerLimit              = operate.AnswerLimit
)

func viaFlag() cli.Flag {
	return &cli.StringFlag{Name: "via", Usage: "reach the nodes through the SSH server `HOST`, with the ssh program"}
}

// reach returns the cluster to operate: through the lab on this machine if its nodes run there, otherwise at the nodes'
// addresses, which needs only the spec and the operator's certificate. The lab's messages are shown as progress.
func (p *project) reach(c *cli.Context, b *block) (*operate.Cluster, error) {
	via := c.String("via")
	if via == "" && !c.IsSet("via") && inLab(p.provider) && lab.Here(p.spec, p.out) {
		l, keys, err := p.lab(c, b)
		if err != nil {
			return nil, err
		}
		warnOfExpiry(c.App.ErrWriter, keys)
		cl := l.Cluster()
		cl.Elsewhere = p.elsewhere()
		return cl, nil
	}
	keys, err := p.operatorSecrets()
	if err != nil {
		return nil, err
	}
	warnOfExpiry(c.App.ErrWriter, keys)
	dial, limit, atOnce := dialNode, answerLimit, 0
	if c.IsSet("via") {
		if dial, err = operate.Via(via); err != nil {
			return nil, wrongf("--via: %v", err)
		}
		limit, atOnce = operate.ViaLimit, operate.ViaAtOnce
	}
	agents, err := operate.NewAgents(keys, dial)
	if err != nil {
		return nil, err
	}
	agents.Limit, agents.AtOnce = limit, atOnce
	cl := &operate.Cluster{Spec: p.spec, Agents: agents, Elsewhere: p.elsewhere(), Tell: func(n cluster.Node, blank bool) { b.say("%s", p.byHand(n, blank)) }}
	want, err := expected.Read(expected.Path(p.out))
	switch {
	case err == nil && (keys.ClusterID == "" || want.ClusterID == keys.ClusterID):
		cl.Expected = &want
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if !inLab(p.provider) && p.provider != cluster.NoMachines {
		// Agents can be asked even if this computer cannot reach the provider.
		f, err := p.fleet(c, b)
		if wrong := (wrongError{}); errors.As(err, &wrong) {
			return nil, err
		}
		if err != nil {
			b.say("the provider cannot be asked: %v", err)
			return cl, nil
		}
		cl.Machines = f
	}
	return cl, nil
}

// elsewhere returns where the generations that were rendered and applied last have the nodes. The spec may have moved all of them, and
// then none answers where it says.
func (p *project) elsewhere() (all []facts.Member) {
	add := func(m facts.Manifest, err error) {
		if err == nil && m.Cluster == p.spec.Cluster {
			all = append(all, m.Members...)
		}
	}
	last, _, err := secrets.Rendered(p.secretsDir())
	add(last, err)
	for _, path := range []string{p.generationPath(), p.earlier().generationPath()} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if m, err := facts.DecodeManifest(data); err == nil {
			add(m, nil)
		} else if g, err := facts.OpenGeneration(data); err == nil {
			add(g.Manifest, nil)
		}
	}
	return all
}

// openCluster loads the spec and returns its cluster as it is operated.
func openCluster(c *cli.Context, b *block) (*project, *operate.Cluster, error) {
	p, err := load(c)
	if err != nil {
		return nil, nil, err
	}
	cl, err := p.reach(c, b)
	return p, cl, err
}

// operatorSecrets returns what the operator needs to speak with agents and, where all of the cluster's secrets are, the nodes'
// and the site's certificates, whose end is then seen coming.
func (p *project) operatorSecrets() (*secrets.Secrets, error) {
	if err := p.refuseLostSecrets(); err != nil {
		return nil, err
	}
	keys, err := secrets.ReadOperator(p.secretsDir(), time.Now())
	if err != nil {
		return nil, err
	}
	if all, err := p.readSecrets(); err == nil {
		keys.Nodes, keys.Site = all.Nodes, all.Site
	}
	return keys, nil
}

// byHand tells a person how to recreate a node's machine.
func (p *project) byHand(n cluster.Node, blank bool) string {
	role := p.spec.Role(n.Role)
	said := fmt.Sprintf("%s: recreate its machine now: power off the old one; the new one needs a root disk copied from %s, %s as its CD-ROM, a network card with MAC address %s",
		n.Name, filepath.Join(p.out, "images", n.Role+".*"), p.seedPath(n.Name), n.MAC)
	switch {
	case role.Data > 0 && blank:
		said += fmt.Sprintf(", an empty data disk of %s", role.Data)
	case role.Data > 0:
		said += ", the old one's data disk"
	}
	return said + "; power it on"
}

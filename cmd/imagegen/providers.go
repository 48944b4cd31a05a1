package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/internal/words"
	"imagegen/lab"
	"imagegen/machines"
	"imagegen/machines/exec"
	"imagegen/machines/fleet"
	"imagegen/machines/incus"
	"imagegen/machines/nspawn"
	"imagegen/machines/qemu"
	"imagegen/machines/virtualbox"
)

// labProviders creates the providers inside the lab, by their names in the spec.
var labProviders = map[string]lab.Provider{
	"nspawn": nspawn.New,
	"qemu":   qemu.New,
}

// providers creates the providers outside the lab, by their names in the spec.
var providers = map[string]func(providerConfig) (machines.Provider, error){
	"exec": func(c providerConfig) (machines.Provider, error) {
		if c.Program == "" {
			return nil, wrongf("%s: provider exec needs a program: write machines: {provider: exec, program: ./PROGRAM} (docs/exec.md)", c.spec.File)
		}
		return exec.New(exec.Config{Program: c.Program, Cluster: c.spec.Cluster, ClusterID: c.clusterID, Hosts: c.Hosts, Network: c.Network, Storage: c.Storage,
			Record: filepath.Join(c.dir, "machines.json"), Log: func(line string) { c.log("%s", line) }}), nil
	},
	"virtualbox": func(c providerConfig) (machines.Provider, error) {
		return virtualbox.New(virtualbox.Config{Spec: c.spec, ClusterID: c.clusterID, Dir: c.dir})
	},
	"incus": func(c providerConfig) (machines.Provider, error) {
		return incus.New(incus.Config{Cluster: c.spec.Cluster, ClusterID: c.clusterID, Hosts: c.Hosts, Network: c.Network, Storage: c.Storage, Log: c.log}), nil
	},
}

// tiedNetworks has the providers that cannot move a cluster's machines to another network, and why.
var tiedNetworks = map[string]string{
	"virtualbox": "provider virtualbox makes one host-only network for a cluster, and cannot change its addresses: another network needs a new cluster",
}

// providerConfig is the input of a provider's constructor.
type providerConfig struct {
	cluster.Machines
	spec      *cluster.Spec
	clusterID string
	dir       string // output folder of build
	log       func(format string, args ...any)
}

func providerFlag() cli.Flag {
	return &cli.StringFlag{Name: "provider", DefaultText: "the spec's machines.provider, or else the lab's nspawn",
		Usage: "use the provider of machines `NAME`: " + strings.Join(cluster.Providers, ", ")}
}

// checkProvider rejects unknown providers.
func checkProvider(name string) error {
	if name != "" && !slices.Contains(cluster.Providers, name) {
		return wrongf("--provider %s: there is no such provider%s", name, words.Hint(name, "it may be", cluster.Providers))
	}
	return nil
}

// fleet returns the cluster's machines outside the lab. Its messages are shown as progress.
func (p *project) fleet(c *cli.Context, b *block) (*fleet.Fleet, error) {
	if p.provider == cluster.NoMachines {
		return nil, wrongf("%s: %s creates no machines with provider none: create one for each node yourself, from %s and %s, with the MAC address in the seed's network-config; "+
			"imagegen status --wait then waits for the nodes", p.spec.File, c.Command.Name, filepath.Join(p.out, "images", "ROLE.*"), filepath.Join(p.out, "seeds", "NODE.iso"))
	}
	make, ok := providers[p.provider]
	if !ok {
		return nil, wrongf("this imagegen does not support provider %s", p.provider)
	}
	id, err := p.clusterID()
	if err != nil {
		return nil, err
	}
	in := providerConfig{Machines: p.spec.Machines, spec: p.spec, clusterID: id, dir: p.out, log: b.say}
	if strings.ContainsAny(in.Program, `/\`) && !filepath.IsAbs(in.Program) {
		if in.Program, err = filepath.Abs(filepath.Join(filepath.Dir(p.spec.File), in.Program)); err != nil {
			return nil, err
		}
	}
	provider, err := make(in)
	if err != nil {
		return nil, err
	}
	return &fleet.Fleet{Made: p.made(), ClusterID: id, Provider: provider, Quorum: p.quorum(), Log: b.say}, nil
}

// clusterID returns the ID that the cluster's machines are marked with.
func (p *project) clusterID() (string, error) {
	e, err := expected.Read(expected.Path(p.out))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err == nil && e.Cluster != p.spec.Cluster {
		return "", fmt.Errorf("%s is of cluster %s, and the spec's is %s: imagegen build", expected.Path(p.out), e.Cluster, p.spec.Cluster)
	}
	keys, secretsErr := p.readSecrets()
	switch {
	case secretsErr == nil && keys.ClusterID != "" && e.ClusterID != "" && keys.ClusterID != e.ClusterID:
		return "", fmt.Errorf("%s is of another cluster (id %s) than %s (id %s): imagegen build", expected.Path(p.out), e.ClusterID, p.secretsDir(), keys.ClusterID)
	case e.ClusterID == "" && secretsErr != nil:
		return "", secretsErr
	case e.ClusterID == "" && keys.ClusterID == "":
		return "", err // neither exists
	case e.ClusterID == "":
		return keys.ClusterID, nil
	}
	return e.ClusterID, nil
}

// power turns nodes on and off: the lab, or a fleet.
type power interface {
	Start(ctx context.Context, names ...string) error
	Kill(ctx context.Context, names ...string) error
	Remove(ctx context.Context, names ...string) error
	Down(ctx context.Context) error
}

// power opens the lab or the fleet of the cluster.
func (p *project) power(c *cli.Context, b *block) (power, error) {
	if inLab(p.provider) {
		l, _, err := p.lab(c, b)
		return l, err
	}
	return p.fleet(c, b)
}

// removed returns the nodes that have a machine but are no longer in the spec.
func (p *project) removed(c *cli.Context, b *block) ([]string, error) {
	if inLab(p.provider) {
		return lab.Removed(p.spec, p.out), nil
	}
	f, err := p.fleet(c, b)
	if err != nil {
		return nil, err
	}
	return f.Removed(c.Context)
}

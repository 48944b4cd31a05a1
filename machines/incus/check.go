package incus

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"slices"
	"strings"
)

// Check is as [machines.Provider] says.
func (p *Provider) Check(ctx context.Context) error {
	if _, err := exec.LookPath(p.config.Program); err != nil {
		return fmt.Errorf("there is no program %s on this computer: install the package incus-client (Debian 13) or incus", p.config.Program)
	}
	server, err := p.server(ctx)
	if err != nil {
		return err
	}
	name := server.Environment.Name
	switch {
	case server.Environment.Clustered:
		if err := p.checkMembers(ctx); err != nil {
			return err
		}
	case len(p.config.Hosts) != 1 || p.config.Hosts[0] != name:
		return fmt.Errorf("the Incus server is a single host, %s: write machines: hosts: [%[1]s], or make a cluster of it (incus cluster enable NAME) that the others join", name)
	}
	var errs []error
	for _, h := range p.config.Hosts {
		if err := p.checkHost(ctx, h); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if _, err := p.project(ctx); err != nil {
		return err
	}
	p.warnOfLimits(ctx)
	return nil
}

func (p *Provider) checkMembers(ctx context.Context) error {
	var members []member
	if err := p.client.query(ctx, "GET", "/1.0/cluster/members?recursion=1", nil, &members); err != nil {
		return fmt.Errorf("list the hosts of Incus: %w", err)
	}
	var errs []error
	for _, h := range p.config.Hosts {
		i := slices.IndexFunc(members, func(m member) bool { return m.Name == h })
		switch {
		case i < 0:
			var names []string
			for _, m := range members {
				names = append(names, m.Name)
			}
			errs = append(errs, fmt.Errorf("host %s is not in the Incus cluster, which has %s: incus cluster add %[1]s gives a token with which it joins", h, strings.Join(names, ", ")))
		case members[i].Status != "Online":
			errs = append(errs, fmt.Errorf("host %s is %s for Incus: %s: look at it with incus cluster info %[1]s", h, strings.ToLower(members[i].Status), members[i].Message))
		}
	}
	return errors.Join(errs...)
}

// checkHost makes sure that a host has the bridge and the storage pool.
func (p *Provider) checkHost(ctx context.Context, h string) error {
	var network struct {
		Type string `json:"type"`
	}
	if err := p.client.query(ctx, "GET", "/1.0/networks/"+url.PathEscape(p.config.Network)+"?"+p.target(h).Encode(), nil, &network); err != nil || network.Type != "bridge" {
		if err == nil {
			err = fmt.Errorf("it is of type %s", network.Type)
		}
		return fmt.Errorf("host %s has no bridge %s: %w: make it, with a port in the network that all hosts share, or name another (machines: network: …)", h, p.config.Network, err)
	}
	var pool struct {
		Status    string   `json:"status"`
		Locations []string `json:"locations"`
	}
	err := p.client.query(ctx, "GET", "/1.0/storage-pools/"+url.PathEscape(p.config.Storage), nil, &pool)
	if err == nil && pool.Status != "Created" {
		err = fmt.Errorf("its state is %s", pool.Status)
	}
	if err == nil && p.asked.Environment.Clustered && !slices.Contains(pool.Locations, h) {
		err = errors.New("it is on " + strings.Join(pool.Locations, ", "))
	}
	if err != nil {
		return fmt.Errorf("host %s has no storage pool %s: %w: incus storage create makes it, or name another (machines: storage: …)", h, p.config.Storage, err)
	}
	return nil
}

// warnOfLimits tells which hosts cannot limit memory because their cgroup2 lacks the controller.
func (p *Provider) warnOfLimits(ctx context.Context) {
	var warnings []struct {
		Type     string `json:"type"`
		Location string `json:"location"`
		Status   string `json:"status"`
	}
	if p.client.query(ctx, "GET", "/1.0/warnings?recursion=1", nil, &warnings) != nil {
		return // who may not read them does without
	}
	var hosts []string
	for _, w := range warnings {
		if w.Type == "Couldn't find the CGroup memory controller" && w.Status != "resolved" && !slices.Contains(hosts, w.Location) {
			hosts = append(hosts, w.Location)
		}
	}
	if len(hosts) > 0 {
		slices.Sort(hosts)
		p.config.Log("memory is not limited on %s: no memory controller in cgroup2", strings.Join(hosts, ", "))
	}
}

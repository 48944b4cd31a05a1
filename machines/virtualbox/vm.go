package virtualbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"imagegen/internal/vbox"
	"imagegen/machines"
)

// owner is whose a machine is that has the name of one of ours.
type owner int

const (
	foreign owner = iota
	ours
	vagrants // of this cluster, but made by Vagrant
)

// vm is what VirtualBox says of a machine.
type vm struct {
	id     string
	owner  owner
	info   map[string]string // of showvminfo
	extra  map[string]string
	locked bool // a process of VirtualBox has it
}

// registration is a machine in VirtualBox's list. Two may have the same name, in different folders.
type registration struct{ name, id string }

var registrationLine = regexp.MustCompile(`^"(.*)" \{([0-9a-f-]{36})\}$`)

func (p *Provider) registered(ctx context.Context) ([]registration, error) {
	out, err := vbox.Manage(ctx, "list", "vms")
	if err != nil {
		return nil, err
	}
	var all []registration
	for line := range strings.Lines(out) {
		if m := registrationLine.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			all = append(all, registration{m[1], m[2]})
		}
	}
	return all, nil
}

// all returns the cluster's machines by their nodes, Vagrant's included.
func (p *Provider) all(ctx context.Context) (map[string]*vm, error) {
	list, err := p.registered(ctx)
	if err != nil {
		return nil, err
	}
	// A machine that somebody has renamed, or whose settings cannot be read, is known by its UUID alone.
	known := map[string]string{}
	for _, n := range p.spec.Nodes() {
		known[p.uuid("machine", n.Name)] = n.Name
	}
	all := map[string]*vm{}
	for _, r := range list {
		node, is := known[r.id]
		if !is {
			if node, is = strings.CutPrefix(r.name, p.spec.Cluster+"-"); !is {
				continue
			}
		}
		m, err := p.look(ctx, node, r)
		if err != nil {
			return nil, err
		}
		if m != nil && m.owner != foreign {
			all[node] = m
		}
	}
	return all, nil
}

// find returns the node's machine; nil: there is none. A machine of somebody else with its name is an error, unless there is ours too.
func (p *Provider) find(ctx context.Context, node string) (*vm, error) {
	all, err := p.registered(ctx)
	if err != nil {
		return nil, err
	}
	var stranger bool
	for _, r := range all {
		if r.id != p.uuid("machine", node) && r.name != p.name(node) {
			continue
		}
		m, err := p.look(ctx, node, r)
		if err != nil || m != nil && m.owner != foreign {
			return m, err
		}
		stranger = stranger || m != nil
	}
	if stranger {
		return nil, machines.Foreign("machine " + p.name(node))
	}
	return nil, nil
}

// look asks VirtualBox for a machine that has the name or UUID of the node's; nil: it is gone.
func (p *Provider) look(ctx context.Context, node string, r registration) (*vm, error) {
	m := &vm{id: r.id, extra: map[string]string{}}
	out, err := vbox.Manage(ctx, "getextradata", r.id, "enumerate")
	if vbox.IsCode(err, "VBOX_E_OBJECT_NOT_FOUND") {
		return nil, nil
	}
	if err != nil && r.id != p.uuid("machine", node) {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if key, value, is := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "Key: "), ", Value: "); is {
			m.extra[key] = value
		}
	}
	switch mark := m.extra[clusterKey]; {
	case r.id == p.uuid("machine", node):
		m.owner = ours
	case mark == p.clusterID, mark == "" && r.id == p.vagrantID(node):
		m.owner = vagrants
	default:
		return m, nil
	}
	out, err = vbox.Manage(ctx, "showvminfo", r.id, "--machinereadable")
	if vbox.IsCode(err, "VBOX_E_OBJECT_NOT_FOUND") {
		return nil, nil
	}
	if ctx.Err() != nil || err != nil && m.owner != ours {
		return nil, err
	}
	// One of ours may be inaccessible.
	m.info = parseInfo(out)
	m.locked = m.info["SessionName"] != ""
	return m, nil
}

// parseInfo reads lines such as VMState="poweroff", memory=256 and "SATA-0-0"="none".
func parseInfo(out string) map[string]string {
	info := map[string]string{}
	for line := range strings.Lines(out) {
		if key, value, is := strings.Cut(strings.TrimSpace(line), "="); is {
			info[strings.Trim(key, `"`)] = strings.Trim(value, `"`)
		}
	}
	return info
}

// inaccessible is a machine whose settings VirtualBox cannot read.
func (m *vm) inaccessible() bool { return m.info["VMState"] == "" }

func (m *vm) unfinished() bool {
	return m.owner == ours && (m.extra[clusterKey] == "" || m.inaccessible())
}

// settled is false while the machine is on its way to another state.
func (m *vm) settled() bool {
	switch m.info["VMState"] {
	case "starting", "stopping", "saving", "restoring":
		return false
	}
	return true
}

func (m *vm) power() machines.Power {
	switch m.info["VMState"] {
	case "poweroff", "aborted", "saved", "aborted-saved", "teleported", "":
		return machines.Off
	}
	return machines.On
}

func (m *vm) state(node string) machines.State {
	if m.unfinished() {
		return machines.State{Node: node, Power: machines.Unfinished}
	}
	since, _ := time.Parse("2006-01-02T15:04:05", m.info["VMStateChangeTime"]) // a fraction is accepted
	return machines.State{Node: node, Power: m.power(), Since: since, Image: m.extra[imageKey], Seed: m.extra[seedKey]}
}

// vagrantID is the UUID of the machine that Vagrant has for a node, as its folder beside the Vagrantfile says; empty: none.
func (p *Provider) vagrantID(node string) string {
	id, err := os.ReadFile(filepath.Join(p.dir, ".vagrant", "machines", node, "virtualbox", "id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// pause waits before VirtualBox is asked again.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(200 * time.Millisecond):
		return nil
	}
}

// cause returns why ctx has ended, or else err.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(err, c) {
		return c
	}
	return err
}

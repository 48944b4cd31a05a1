// Package incus makes machines of system containers on an Incus server or cluster of servers, with the incus program.
//
// Everything of a cluster is in a project of its own, imagegen-CLUSTER, and carries the cluster's UUID in user.imagegen.cluster,
// the project included. A node's machine is the instance of its name, without profiles; its data disk is the custom volume
// NODE-data on the same host. The seed, which holds secrets, is pushed into the instance as files; instance configuration, which
// anyone who may look at the project can read, has identities only.
package incus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"imagegen/cloudinit"
	"imagegen/machines"
)

// Config is what the provider must know of the cluster and of Incus.
type Config struct {
	Cluster   string
	ClusterID string
	Hosts     []string // members of the Incus cluster, or the one server
	Network   string   // bridge on every host; default br0
	Storage   string   // pool on every host; default default
	Program   string   // default incus, from PATH
	Log       func(format string, args ...any)
}

// Keys in the configuration of instances, volumes and projects, and in the properties of images.
const (
	clusterKey = "user.imagegen.cluster" // the mark
	nodeKey    = "user.imagegen.node"
	imageKey   = "user.imagegen.image" // identity; set on an image once its import is complete
	seedKey    = "user.imagegen.seed"  // identity
	stateKey   = "user.imagegen.state" // finished; absent while the machine is being made
	finished   = "finished"
)

// seedFolder is where cloud-init in a container looks for its seed.
const seedFolder = "/var/lib/cloud/seed/nocloud"

// dataFolder is where the agent looks for a container's data disk.
const dataFolder = "/data"

// Provider is a [machines.Provider].
type Provider struct {
	config Config
	client client
	change func() error // called before every change; tests set it

	images sync.Mutex     // one import at a time
	making map[string]int // identities of images that machines are being made from; guarded by images

	asking sync.Mutex
	asked  *server // nil: not yet; set before anything else is asked
}

var _ machines.Provider = (*Provider)(nil)

// New returns a provider. It asks nothing: Check does.
func New(c Config) *Provider {
	for _, d := range []struct {
		value *string
		def   string
	}{{&c.Network, "br0"}, {&c.Storage, "default"}, {&c.Program, "incus"}} {
		if *d.value == "" {
			*d.value = d.def
		}
	}
	if c.Log == nil {
		c.Log = func(string, ...any) {}
	}
	return &Provider{config: c, client: client{program: c.Program, project: "imagegen-" + c.Cluster}, change: func() error { return nil }, making: map[string]int{}}
}

// What the API says of things.
type (
	instance struct {
		Name     string            `json:"name"`
		Status   string            `json:"status"`
		Location string            `json:"location"`
		Config   map[string]string `json:"config"`
		LastUsed time.Time         `json:"last_used_at"`
	}
	volume struct {
		Name     string            `json:"name"`
		Location string            `json:"location"`
		Config   map[string]string `json:"config"`
	}
	image struct {
		Fingerprint string            `json:"fingerprint"`
		Properties  map[string]string `json:"properties"`
	}
	project struct {
		Name   string            `json:"name"`
		Config map[string]string `json:"config"`
		UsedBy []string          `json:"used_by"`
	}
	member struct {
		Name    string `json:"server_name"`
		Status  string `json:"status"`
		Message string `json:"message"`
	}
	object = map[string]any
)

// server is what a server says of itself.
type server struct {
	Auth        string `json:"auth"`
	Environment struct {
		Name      string `json:"server_name"`
		Clustered bool   `json:"server_clustered"`
	} `json:"environment"`
}

// server asks who the server is, once.
func (p *Provider) server(ctx context.Context) (*server, error) {
	p.asking.Lock()
	defer p.asking.Unlock()
	if p.asked != nil {
		return p.asked, nil
	}
	var s server
	if err := p.client.query(ctx, "GET", "/1.0", nil, &s); err != nil {
		return nil, fmt.Errorf("the Incus server does not answer: %w: incus remote list shows which one it is, and INCUS_REMOTE names another; on the server itself, be root or in the group incus-admin", err)
	}
	if s.Auth != "trusted" {
		return nil, errors.New("the Incus server does not trust this user: incus config trust add on the server gives a token, incus remote add here uses it")
	}
	p.asked = &s
	return p.asked, nil
}

// host is where an instance or volume is; empty: on all hosts.
func (p *Provider) host(location string) string {
	if location == "none" {
		return p.asked.Environment.Name
	}
	return location
}

// target is the parameter that chooses a host. A server that is in no cluster refuses it.
func (p *Provider) target(host string) url.Values {
	if host == "" || !p.asked.Environment.Clustered {
		return url.Values{}
	}
	return url.Values{"target": {host}}
}

func (p *Provider) ours(config map[string]string) bool {
	return config[clusterKey] == p.config.ClusterID
}

// do changes something.
func (p *Provider) do(ctx context.Context, method, path string, in any) error {
	if err := p.change(); err != nil {
		return err
	}
	return p.client.query(ctx, method, path, in, nil)
}

// project returns the cluster's project, or nil if there is none.
func (p *Provider) project(ctx context.Context) (*project, error) {
	if _, err := p.server(ctx); err != nil {
		return nil, err
	}
	var all []project
	if err := p.client.query(ctx, "GET", "/1.0/projects?recursion=1", nil, &all); err != nil {
		return nil, fmt.Errorf("list the projects of Incus: %w", err)
	}
	for _, pr := range all {
		if pr.Name != p.client.project {
			continue
		}
		if !p.ours(pr.Config) {
			return nil, machines.Foreign("Incus project " + pr.Name)
		}
		return &pr, nil
	}
	return nil, nil
}

// ensureProject makes the cluster's project if there is none.
func (p *Provider) ensureProject(ctx context.Context) error {
	have, err := p.project(ctx)
	if have != nil || err != nil {
		return err
	}
	err = p.do(ctx, "POST", "/1.0/projects", object{
		"name": p.client.project, "description": "cluster " + p.config.Cluster + " of imagegen",
		"config": map[string]string{clusterKey: p.config.ClusterID, "features.images": "true", "features.storage.volumes": "true",
			"features.profiles": "false", "features.networks": "false"},
	})
	if err != nil {
		if have, again := p.project(ctx); have != nil && again == nil { // somebody else was faster
			return nil
		}
		return fmt.Errorf("make the Incus project %s: %w", p.client.project, err)
	}
	return nil
}

// instances returns what is in the cluster's project; nothing if there is no such project.
func (p *Provider) instances(ctx context.Context) ([]instance, error) {
	if have, err := p.project(ctx); have == nil || err != nil {
		return nil, err
	}
	var all []instance
	if err := p.client.query(ctx, "GET", p.client.path(url.Values{"recursion": {"1"}}, "instances"), nil, &all); err != nil {
		return nil, fmt.Errorf("list the instances of the Incus project %s: %w", p.client.project, err)
	}
	return all, nil
}

// unreachable tells that an instance's host does not answer. Incus then knows little more of the instance than its name.
func (i *instance) unreachable() bool { return i.Status == "Error" && len(i.Config) == 0 }

// find returns a node's instance, or nil if there is none. It first waits for operations on it that are still running.
func (p *Provider) find(ctx context.Context, node string) (*instance, error) {
	if err := p.settle(ctx, node); err != nil {
		return nil, err
	}
	all, err := p.instances(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		switch {
		case i.Name != node:
		case i.unreachable():
			return nil, fmt.Errorf("%s is on host %s, which does not answer: bring that host back, or, if it is lost for ever, run incus cluster remove --force %[2]s", node, i.Location)
		case !p.ours(i.Config):
			return nil, machines.Foreign(fmt.Sprintf("Incus instance %s of project %s", node, p.client.project))
		default:
			return &i, nil
		}
	}
	return nil, nil
}

// settle waits for operations on a node's instance that an earlier process started: Incus continues them without the client.
func (p *Provider) settle(ctx context.Context, node string) error {
	var byState map[string][]struct {
		ID        string              `json:"id"`
		Class     string              `json:"class"`
		Resources map[string][]string `json:"resources"`
	}
	if err := p.client.query(ctx, "GET", p.client.path(url.Values{"recursion": {"1"}}, "operations"), nil, &byState); err != nil {
		if have, again := p.project(ctx); have == nil && again == nil {
			return nil // and no operations
		}
		return fmt.Errorf("list the operations of Incus: %w", err)
	}
	for state, ops := range byState {
		if state != "running" && state != "pending" {
			continue
		}
		for _, op := range ops {
			if op.Class != "task" || !slices.ContainsFunc(op.Resources["instances"], func(r string) bool {
				name, _, _ := strings.Cut(r[strings.LastIndex(r, "/")+1:], "?")
				return name == node
			}) {
				continue
			}
			// Its error belongs to whoever started it.
			p.client.query(ctx, "GET", "/1.0/operations/"+op.ID+"/wait", nil, nil)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// List is as [machines.Provider] says.
func (p *Provider) List(ctx context.Context) ([]machines.State, error) {
	all, err := p.instances(ctx)
	if err != nil {
		return nil, err
	}
	list := []machines.State{}
	for _, i := range all {
		s := machines.State{Node: i.Name, Host: p.host(i.Location), Image: i.Config[imageKey], Seed: i.Config[seedKey]}
		switch {
		case i.unreachable(): // its mark cannot be read, but the project is ours
			s.Power = machines.Unknown
		case !p.ours(i.Config):
			continue
		case i.Config[stateKey] != finished:
			s.Power = machines.Unfinished
		case i.Status == "Stopped":
			s.Power = machines.Off
		case i.Status == "Error":
			s.Power = machines.Unknown
		default:
			s.Power = machines.On
			if i.LastUsed.Unix() > 0 {
				s.Since = i.LastUsed
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b machines.State) int { return strings.Compare(a.Node, b.Node) })
	return list, nil
}

// on names a node with its host, for messages.
func on(node, host string) string {
	if host == "" {
		return node
	}
	return node + " on host " + host
}

// Create is as [machines.Provider] says. A machine is made on the host of its data disk, whatever m.Host says.
func (p *Provider) Create(ctx context.Context, m machines.Machine) error {
	if err := p.ensureProject(ctx); err != nil {
		return err
	}
	have, err := p.find(ctx, m.Node)
	if err != nil {
		return err
	}
	if have != nil {
		if have.Config[stateKey] == finished {
			return nil
		}
		if err := p.delete(ctx, have); err != nil {
			return err
		}
	}
	if err := p.create(ctx, &m); err != nil {
		return fmt.Errorf("make %s: %w", on(m.Node, m.Host), err)
	}
	return nil
}

func (p *Provider) create(ctx context.Context, m *machines.Machine) error {
	seed, err := cloudinit.ReadISO(m.Seed.Path)
	if err != nil {
		return err
	}
	defer p.use(m.Image.Identity)()
	fingerprint, err := p.ensureImage(ctx, m)
	if err != nil {
		return err
	}
	devices := object{
		"root": object{"type": "disk", "path": "/", "pool": p.config.Storage},
		"eth0": object{"type": "nic", "nictype": "bridged", "parent": p.config.Network, "name": "eth0", "hwaddr": m.MAC},
	}
	if m.Data > 0 {
		if err := p.ensureData(ctx, m); err != nil {
			return err
		}
		devices["data"] = object{"type": "disk", "pool": p.config.Storage, "source": dataName(m.Node), "path": dataFolder}
	}
	config := map[string]string{clusterKey: p.config.ClusterID, nodeKey: m.Node, imageKey: m.Image.Identity, seedKey: m.Seed.Identity}
	if m.CPUs > 0 {
		config["limits.cpu"] = strconv.Itoa(m.CPUs)
	}
	if m.Memory > 0 {
		config["limits.memory"] = strconv.FormatInt(m.Memory, 10) + "B"
	}
	if m.Privileged {
		config["security.privileged"] = "true"
	}
	if err := p.do(ctx, "POST", p.client.path(p.target(m.Host), "instances"), object{
		"name": m.Node, "type": "container", "description": m.Role + " of cluster " + p.config.Cluster,
		"source": object{"type": "image", "fingerprint": fingerprint}, "profiles": []string{}, "devices": devices, "config": config,
	}); err != nil {
		return err
	}
	files := seed.FilesOnISO()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := p.change(); err != nil {
			return err
		}
		if _, err := p.client.run(ctx, files[name], "file", "push", "--quiet", "--project", p.client.project, "--create-dirs", "--mode", "0600", "--uid", "0", "--gid", "0",
			"-", m.Node+seedFolder+"/"+name); err != nil {
			return fmt.Errorf("push the seed: %w", err)
		}
	}
	if err := p.do(ctx, "PATCH", p.client.path(nil, "instances", m.Node), object{"config": map[string]string{stateKey: finished}}); err != nil {
		return err
	}
	return p.dropOldImages(ctx, m.Role)
}

func dataName(node string) string { return node + "-data" }

// data returns the volumes that are a node's data disk: none or one; more only if somebody copied it to other hosts.
func (p *Provider) data(ctx context.Context, node string) ([]volume, error) {
	var all []volume
	if err := p.client.query(ctx, "GET", p.client.path(url.Values{"recursion": {"1"}}, "storage-pools", p.config.Storage, "volumes", "custom"), nil, &all); err != nil {
		return nil, fmt.Errorf("list the volumes of the storage pool %s: %w", p.config.Storage, err)
	}
	all = slices.DeleteFunc(all, func(v volume) bool { return v.Name != dataName(node) })
	for _, v := range all {
		if !p.ours(v.Config) {
			return nil, machines.Foreign(fmt.Sprintf("Incus volume %s of project %s", v.Name, p.client.project))
		}
	}
	return all, nil
}

// ensureData makes a machine's data disk. If there is one already, it sets m.Host to the host of that.
func (p *Provider) ensureData(ctx context.Context, m *machines.Machine) error {
	have, err := p.data(ctx, m.Node)
	if err != nil {
		return err
	}
	for _, v := range have {
		if at := p.host(v.Location); at == m.Host || at == "" {
			return nil
		}
	}
	if len(have) > 0 {
		at := p.host(have[0].Location)
		p.config.Log("%s goes to host %s, where its data disk is", m.Node, at)
		m.Host = at
		return nil
	}
	if err := p.do(ctx, "POST", p.client.path(p.target(m.Host), "storage-pools", p.config.Storage, "volumes", "custom"), object{
		"name": dataName(m.Node), "type": "custom", "content_type": "filesystem", "description": "data disk of " + m.Node,
		"config": map[string]string{clusterKey: p.config.ClusterID, nodeKey: m.Node, "size": strconv.FormatInt(m.Data, 10) + "B"},
	}); err != nil {
		return fmt.Errorf("make the data disk: %w", err)
	}
	return nil
}

// power sets an instance's state.
func (p *Provider) power(ctx context.Context, i *instance, action string, force bool) error {
	return p.do(ctx, "PUT", p.client.path(nil, "instances", i.Name, "state"), object{"action": action, "force": force, "timeout": -1})
}

// Start is as [machines.Provider] says.
func (p *Provider) Start(ctx context.Context, node string) error {
	i, err := p.find(ctx, node)
	switch {
	case err != nil:
		return err
	case i == nil:
		return fmt.Errorf("there is no Incus instance %s in project %s: imagegen up makes it", node, p.client.project)
	case i.Config[stateKey] != finished:
		return fmt.Errorf("making %s was interrupted: imagegen up finishes it", on(node, p.host(i.Location)))
	case i.Status != "Stopped":
		return nil
	}
	if err := p.power(ctx, i, "start", false); err != nil {
		return fmt.Errorf("start %s: %w: incus info --project %s --show-log %s says more", on(node, p.host(i.Location)), err, p.client.project, node)
	}
	return nil
}

// Stop is as [machines.Provider] says.
func (p *Provider) Stop(ctx context.Context, node string) error {
	i, err := p.find(ctx, node)
	if i == nil || err != nil {
		return err
	}
	return p.stop(ctx, i)
}

// How long a container that ends itself may take before it is stopped by force, and how often to look.
const (
	endsWithin = 5 * time.Second
	endedPoll  = 50 * time.Millisecond
)

// powerKey is where Incus keeps whether an instance runs. It sets it after the status: until then it is still busy with the stop.
const powerKey = "volatile.last_state.power"

// end ends a running container from the inside, at once and without notice to its processes: reboot(2) kills all of a PID
// namespace. A forced stop alone may never return: before LXC kills a container, it waits until all processes are frozen, and a
// process that waits for a file system whose FUSE server has been frozen before it does not freeze. Whatever prevents this is left
// to the forced stop.
func (p *Provider) end(ctx context.Context, i *instance) (stopped bool) {
	ctx, cancel := context.WithTimeout(ctx, endsWithin)
	defer cancel()
	p.do(ctx, "POST", p.client.path(nil, "instances", i.Name, "exec"), object{"command": []string{"poweroff", "-n", "-ff"}})
	for ctx.Err() == nil {
		now, err := p.find(ctx, i.Name)
		if err == nil && (now == nil || now.Status == "Stopped" && now.Config[powerKey] == "STOPPED") {
			return true
		}
		select {
		case <-ctx.Done():
		case <-time.After(endedPoll):
		}
	}
	return false
}

func (p *Provider) stop(ctx context.Context, i *instance) error {
	if i.Status == "Stopped" || i.Status == "Running" && p.end(ctx, i) {
		return nil
	}
	err := p.power(ctx, i, "stop", true)
	if err == nil {
		return nil
	}
	if now, again := p.find(ctx, i.Name); again == nil && (now == nil || now.Status == "Stopped") {
		return nil // it ended by itself meanwhile
	}
	return fmt.Errorf("stop %s: %w", on(i.Name, p.host(i.Location)), err)
}

// delete removes an instance. It clears the finished state first: Incus may remove the files before the entry.
func (p *Provider) delete(ctx context.Context, i *instance) error {
	if err := p.stop(ctx, i); err != nil {
		return err
	}
	if i.Config[stateKey] == finished {
		if err := p.do(ctx, "PATCH", p.client.path(nil, "instances", i.Name), object{"config": map[string]string{stateKey: ""}}); err != nil {
			return fmt.Errorf("remove %s: %w", on(i.Name, p.host(i.Location)), err)
		}
	}
	if err := p.do(ctx, "DELETE", p.client.path(nil, "instances", i.Name), nil); err != nil {
		return fmt.Errorf("remove %s: %w", on(i.Name, p.host(i.Location)), err)
	}
	return nil
}

// Remove is as [machines.Provider] says.
func (p *Provider) Remove(ctx context.Context, node string, data bool) error {
	i, err := p.find(ctx, node)
	if err != nil {
		return err
	}
	if i != nil {
		if err := p.delete(ctx, i); err != nil {
			return err
		}
	}
	if !data {
		return nil
	}
	if have, err := p.project(ctx); have == nil || err != nil {
		return err
	}
	volumes, err := p.data(ctx, node)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := p.do(ctx, "DELETE", p.client.path(p.target(p.host(v.Location)), "storage-pools", p.config.Storage, "volumes", "custom", v.Name), nil); err != nil {
			return fmt.Errorf("remove the data disk of %s: %w", on(node, p.host(v.Location)), err)
		}
	}
	return nil
}

// consolePoll is how often a console that is followed is read.
const consolePoll = time.Second

// Console is as [machines.Provider] says. Incus keeps the last part of a container's output.
func (p *Provider) Console(ctx context.Context, w io.Writer, node string, follow bool) error {
	i, err := p.find(ctx, node)
	if err != nil {
		return err
	}
	if i == nil {
		return fmt.Errorf("there is no Incus instance %s in project %s", node, p.client.project)
	}
	var before []byte
	for {
		now, err := p.client.run(ctx, nil, "console", "--project", p.client.project, "--show-log", node)
		if err != nil {
			if follow && ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read the console of %s: %w", on(node, p.host(i.Location)), err)
		}
		if _, err := w.Write(fresh(before, now)); err != nil || !follow {
			return err
		}
		before = now
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(consolePoll):
		}
	}
}

// fresh returns what was appended to a log, the beginning of which may have been dropped.
func fresh(before, now []byte) []byte {
	const enough = 1024 // bytes that do not repeat
	if rest, is := bytes.CutPrefix(now, before); is {
		return rest
	}
	end := before[max(0, len(before)-enough):]
	if i := bytes.LastIndex(now, end); i >= 0 {
		return now[i+len(end):]
	}
	return now
}

// Purge is as [machines.Provider] says. A project that holds anything else is kept.
func (p *Provider) Purge(ctx context.Context) error {
	have, err := p.project(ctx)
	if have == nil || err != nil {
		return err
	}
	images, err := p.ownImages(ctx)
	if err != nil {
		return err
	}
	for _, i := range images {
		if err := p.do(ctx, "DELETE", p.client.path(nil, "images", i.Fingerprint), nil); err != nil {
			return fmt.Errorf("remove an image from Incus: %w", err)
		}
	}
	have, err = p.project(ctx)
	if have == nil || err != nil {
		return err
	}
	if len(have.UsedBy) > 0 {
		p.config.Log("the Incus project %s is kept: it holds things that are not this cluster's: %s", have.Name, strings.Join(have.UsedBy, ", "))
		return nil
	}
	if err := p.do(ctx, "DELETE", "/1.0/projects/"+url.PathEscape(have.Name), nil); err != nil {
		return fmt.Errorf("remove the Incus project %s: %w", have.Name, err)
	}
	return nil
}

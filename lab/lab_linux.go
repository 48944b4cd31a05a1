package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"imagegen/cluster"
	"imagegen/internal/cgroup"
	"imagegen/internal/netns"
	"imagegen/internal/program"
	"imagegen/machines"
	"imagegen/machines/fleet"
	"imagegen/machines/local"
	"imagegen/operate"
)

// Lab is one cluster on this machine. Several processes may call its methods at once: those that change something wait for each
// other.
type Lab struct {
	spec      *cluster.Spec
	clusterID string // empty: the secrets are lost
	providers map[string]Provider
	paths     paths
	made      fleet.Made
	log       func(format string, args ...any)
	agents    *operate.Agents
	operator  netip.Prefix
	network   netns.Name
	group     cgroup.Group // has one for each node, and those of helper
	// bootLimit is how long the next machine waits for a boot when not all may boot at once.
	bootLimit time.Duration
}

// Open returns the lab of a cluster. It starts nothing. It fails without root, or without a program that every lab needs.
func Open(c Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root: it makes namespaces, mounts and devices (run it with sudo)")
	}
	if err := program.Lacks([][2]string{{"ip", "iproute2"}}, nil); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	root, err := cgroup.Root()
	if err != nil {
		return nil, err
	}
	name := "imagegen-" + c.Spec.Cluster
	l := &Lab{
		spec: c.Spec, clusterID: c.Secrets.ClusterID, providers: c.Providers, paths: paths{dir}, made: fleet.Made{Spec: c.Spec, Dir: c.Dir, Seed: c.Seed},
		log: c.Log, network: netns.Name(name), group: root.Sub(name), bootLimit: 5 * time.Minute,
	}
	if l.log == nil {
		l.log = func(string, ...any) {}
	}
	if l.operator, err = operatorAddress(c.Spec); err != nil {
		return nil, err
	}
	if l.agents, err = operate.NewAgents(c.Secrets, l.network.Dial); err != nil {
		return nil, err
	}
	if p, err := l.provider(); err == nil {
		l.bePatient(p)
	}
	return l, nil
}

// emulatedLimit is how long an agent on an emulated processor may take to answer.
const emulatedLimit = 15 * time.Second

func (l *Lab) bePatient(p *local.Provider) {
	if p.Emulated() {
		l.agents.Limit = emulatedLimit
	}
}

// Up makes the cluster's network, forwards the site, if the cluster has a virtual address, and turns on the nodes with these names
// in this order; without names, all nodes in the spec's order. Nodes that are on are left alone.
func (l *Lab) Up(ctx context.Context, names []string, with UpOptions) error {
	nodes, err := l.pick(names)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		nodes = l.spec.Nodes()
	}
	return l.turnOn(ctx, nodes, func() error {
		if err := l.choose(ctx, with.Provider); err != nil {
			return err
		}
		if l.network.Complete() {
			if err := l.join(); err != nil {
				return err
			}
		} else if err := l.network.Create(l.operator); err != nil { // it is not there, or half made
			return err
		}
		return l.forwardFrom(ctx, with.Site)
	})
}

// Start turns on nodes of a cluster that is up. Nodes that are on are left alone.
func (l *Lab) Start(ctx context.Context, names ...string) error {
	nodes, err := l.pick(names)
	if err != nil {
		return err
	}
	return l.turnOn(ctx, nodes, func() error {
		if !l.network.Complete() {
			return l.notUp()
		}
		if err := l.join(); err != nil {
			return err
		}
		return l.forwardOn(ctx)
	})
}

// join gives this machine its address in the spec's network. It keeps the one in another network while nodes run there: the spec may have
// moved the cluster.
func (l *Lab) join() error {
	var running []netip.Addr
	for _, n := range append(l.spec.Nodes(), l.removed()...) {
		if l.group.Sub(n.Name).Busy() {
			running = append(running, l.runs(n).IP)
		}
	}
	return l.network.Move(l.operator, func(had netip.Prefix) bool {
		return slices.ContainsFunc(running, func(ip netip.Addr) bool { return had.Contains(ip) && !l.operator.Contains(ip) })
	})
}

func (l *Lab) turnOn(ctx context.Context, nodes []cluster.Node, prepare func() error) error {
	if err := l.made.Check(nodes); err != nil {
		return err
	}
	c, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer c.release()
	nodes = slices.DeleteFunc(nodes, func(n cluster.Node) bool {
		on := l.group.Sub(n.Name).Busy()
		if on {
			l.log("%s is on already", n.Name)
		}
		return on
	})
	if err := l.checkAddresses(nodes); err != nil {
		return err
	}
	if err := c.take(); err != nil {
		return err
	}
	if err := prepare(); err != nil {
		return err
	}
	p, err := l.provider()
	if err != nil {
		return err
	}
	if err := p.CheckRoom(len(nodes)); err != nil {
		return err
	}
	// Starts overlap: nobody waits for a machine to be on before the next is started.
	var starting []func() error
	var errs []error
	for i, n := range nodes {
		if most := atOnce(p); most > 0 && i >= most {
			l.booted(ctx, nodes[i-most])
		}
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		started, err := l.powerOn(ctx, p, n)
		if err != nil {
			errs = append(errs, fmt.Errorf("turn on %s: %w", n.Name, err))
			continue
		}
		starting = append(starting, func() error {
			if err := started(); err != nil {
				return fmt.Errorf("turn on %s: %w", n.Name, err)
			}
			l.log("%s is on", n.Name)
			return nil
		})
	}
	for _, started := range starting {
		errs = append(errs, started())
	}
	return errors.Join(errs...)
}

// CheckReplace fails when nodes cannot be replaced now: build has to run first, or the cluster is not up.
func (l *Lab) CheckReplace(names ...string) error {
	if err := l.CheckFiles(names...); err != nil {
		return err
	}
	return l.CheckUp()
}

// CheckUp fails when the cluster is not up.
func (l *Lab) CheckUp() error {
	owner, err := currentOwner(l.spec.Cluster)
	if err == nil && (!owner.is(l.paths.lab()) || !l.network.Complete()) {
		err = l.notUp()
	}
	return err
}

// pick returns the nodes with these names, in this order.
func (l *Lab) pick(names []string) ([]cluster.Node, error) {
	var nodes []cluster.Node
	for _, name := range names {
		n, ok := l.spec.Node(name)
		if !ok {
			return nil, fmt.Errorf("cluster %s has no node %s", l.spec.Cluster, name)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// helper returns the cgroup of a process that belongs to no node. No node's name begins with an underscore.
func (l *Lab) helper(name string) cgroup.Group { return l.group.Sub("_" + name) }

// Kill cuts the power of nodes: all their processes are killed at once. Their disks are kept.
func (l *Lab) Kill(ctx context.Context, names ...string) error {
	nodes, err := l.known(names)
	if err != nil {
		return err
	}
	c, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer c.release()
	var all sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		all.Go(func() { errs[i] = l.powerOff(ctx, n.Name) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// powerOff cuts a node's power and waits until its disks are free.
func (l *Lab) powerOff(ctx context.Context, node string) error {
	group := l.group.Sub(node)
	if !group.Busy() {
		l.log("%s is off already", node)
	}
	p, err := l.provider()
	switch {
	case errors.Is(err, errNotUp): // or somebody has removed the lab's folder
		err = group.Kill(ctx)
	case err == nil:
		err = p.Stop(ctx, node)
	}
	if err != nil {
		return fmt.Errorf("kill %s: %w", node, err)
	}
	return nil
}

// Replace puts a new machine in the place of a node's, from the image and the seed that build has made last. The data disk is kept,
// unless blank is set.
func (l *Lab) Replace(ctx context.Context, name string, blank bool) error {
	nodes, err := l.pick([]string{name})
	if err != nil {
		return err
	}
	if err := l.made.Check(nodes); err != nil {
		return err
	}
	c, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer c.release()
	if !l.network.Complete() {
		return l.notUp()
	}
	if err := l.join(); err != nil {
		return err
	}
	if err := l.checkAddresses(nodes); err != nil {
		return err
	}
	p, err := l.provider()
	if err != nil {
		return err
	}
	m, err := l.machine(nodes[0])
	if err != nil {
		return err
	}
	if err := machines.Replace(ctx, p, m, blank); err != nil {
		return err
	}
	return l.forwardOn(ctx)
}

// Down kills all nodes and removes everything that the lab has made, including the nodes' disks. Images and seeds stay.
func (l *Lab) Down(ctx context.Context) error {
	c, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer c.release()
	if err := l.endFormer(ctx); err != nil {
		return err
	}
	if err := l.group.Kill(ctx); err != nil {
		return err
	}
	// All that runs has been killed at once. What the provider does not know goes with the folder.
	if p, err := l.provider(); err == nil {
		if err := machines.RemoveAll(ctx, p, local.Nodes(l.paths.lab())); err != nil {
			return err
		}
	} else if !errors.Is(err, errNotUp) {
		return err
	}
	if err := l.network.Delete(); err != nil {
		return err
	}
	if err := os.RemoveAll(l.paths.lab()); err != nil {
		return err
	}
	c.owner = owner{}
	return nil
}

// Known returns what is known of the machines of the spec's nodes, in the spec's order, and after those of nodes that the spec no
// longer has.
func (l *Lab) Known(ctx context.Context) ([]operate.Machine, error) {
	owner, err := currentOwner(l.spec.Cluster)
	if err != nil {
		return nil, err
	}
	have := map[string]machines.State{}
	if p, err := l.provider(); err == nil {
		list, err := p.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			have[s.Node] = s
		}
	} else if !errors.Is(err, errNotUp) {
		return nil, err
	}
	mine, former := owner.is(l.paths.lab()), l.former()
	nodes := append(l.spec.Nodes(), l.removed()...)
	all := make([]operate.Machine, len(nodes))
	for i, n := range nodes {
		m := &all[i]
		s, made := have[n.Name]
		*m = operate.Machine{Node: n, Power: operate.PowerOff}
		if made || !l.inSpec(n.Name) {
			m.Build = l.build(n, s)
		}
		group := l.group.Sub(n.Name)
		if i := slices.IndexFunc(former, func(f *Lab) bool { return f.group.Sub(n.Name).Busy() }); i >= 0 {
			m.Detail = "still runs as a node of cluster " + former[i].spec.Cluster + ": imagegen down ends that"
			continue
		}
		switch {
		case !mine && group.Busy():
			m.Detail = "another cluster of this name runs from " + owner.dir
		case !mine:
		case s.Power == machines.On:
			m.Power, m.Since, m.Node.IP = operate.PowerOn, s.Since, l.runs(n).IP
		case group.Busy():
			m.Detail = "something else runs in its place: imagegen down ends that"
		case s.Power == machines.Unfinished:
			m.Detail = "its machine is not finished: imagegen up makes the rest"
		case group.Exists(): // Kill removes it
			m.Detail = "ended by itself; see its console: imagegen logs " + n.Name
		}
	}
	return all, nil
}

func (l *Lab) inSpec(node string) bool {
	_, ok := l.spec.Node(node)
	return ok
}

// Cluster returns the cluster as it is operated here: its agents are asked through the lab's network.
func (l *Lab) Cluster() *operate.Cluster {
	return &operate.Cluster{Spec: l.spec, Agents: l.agents, Machines: l}
}

// Console writes a node's console to w: from its beginning to now or, when follow is set, until ctx ends.
func (l *Lab) Console(ctx context.Context, w io.Writer, node string, follow bool) error {
	if _, err := l.known([]string{node}); err != nil {
		return err
	}
	p, err := l.provider()
	if err != nil {
		return err
	}
	return p.Console(ctx, w, node, follow)
}

// Site returns the address on this machine that is forwarded to the cluster's site; empty if there is none, or if no node that
// could serve the site is on.
func (l *Lab) Site() string {
	role, ok := siteRole(l.spec)
	if !ok || !slices.ContainsFunc(role.Nodes, func(n cluster.Node) bool { return l.group.Sub(n.Name).Busy() }) {
		return ""
	}
	site, _ := l.forwarded()
	return site
}

// forwarded returns the address on this machine that is forwarded to the cluster's site, and the virtual address there; empty if there
// is none.
func (l *Lab) forwarded() (site, target string) {
	text, _ := os.ReadFile(l.paths.site()) // none without a forward
	site, target, _ = strings.Cut(string(text), " ")
	return site, target
}

// forwardOn has a forward that runs lead to the spec's virtual address, which may be another one now.
func (l *Lab) forwardOn(ctx context.Context) error {
	if !l.helper("forward").Busy() {
		return nil
	}
	return l.forwardFrom(ctx, "")
}

// forwardFrom makes sure that connections to the address site on this machine reach the cluster's site.
func (l *Lab) forwardFrom(ctx context.Context, site string) (err error) {
	target, ok := siteAddress(l.spec)
	if !ok {
		if site != "" {
			return fmt.Errorf("cluster %s has no virtual address that its site could be forwarded to", l.spec.Cluster)
		}
		return nil
	}
	group := l.helper("forward")
	if group.Busy() {
		now, to := l.forwarded()
		if site = cmp.Or(site, now); site == now && to == target.String() {
			return nil
		}
	}
	site = cmp.Or(site, DefaultSite)
	if err := group.Kill(ctx); err != nil {
		return fmt.Errorf("forward the site: %w", err)
	}
	listener, err := net.Listen("tcp", site)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("forward the site: %s is in use on this machine: choose another address with --site", site)
		}
		return fmt.Errorf("forward the site: %w", err)
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer socket.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(l.paths.forwardLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	in, err := group.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := exec.Command(self, ForwardCommand, net.JoinHostPort(target.String(), "80"), net.JoinHostPort(target.String(), "443"))
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(in.Fd())}
	if err := l.network.Do(cmd.Start); err != nil {
		return fmt.Errorf("forward the site: %w", err)
	}
	go cmd.Wait() // for as long as this process lives
	return os.WriteFile(l.paths.site(), []byte(site+" "+target.String()), 0o600)
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"imagegen/cluster"
	"imagegen/machines/fleet"
	"imagegen/operate"
)

// Lab is one cluster on this machine. Its methods may be called by several processes at once: those that change
// something wait for each other.
type Lab struct {
	spec     *cluster.Spec
	paths    paths
	made     fleet.Made
	log      func(format string, args ...any)
	agents   *operate.Agents
	operator netip.Prefix
	network  netns
	group    cgroup // one for each node, and those of helper
	// bootLimit is how long others wait for a node's boot when not all may boot at once.
	bootLimit time.Duration
}

// Open returns the lab of a cluster, and starts nothing. It fails where a lab cannot be: without root or without a
// program that it needs.
func Open(c Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root: it makes namespaces, mounts and devices (run it with sudo)")
	}
	if err := lacks([][2]string{{"ip", "iproute2"}}, nil); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	name := "imagegen-" + c.Spec.Cluster
	l := &Lab{spec: c.Spec, paths: paths{dir}, made: fleet.Made{Spec: c.Spec, Dir: c.Dir, Seed: c.Seed}, log: c.Log, network: netns(name), group: root.sub(name), bootLimit: 5 * time.Minute}
	if l.log == nil {
		l.log = func(string, ...any) {}
	}
	if l.operator, err = operatorAddress(c.Spec); err != nil {
		return nil, err
	}
	if l.agents, err = operate.NewAgents(c.Secrets, l.network.dial); err != nil {
		return nil, err
	}
	return l, l.bePatient()
}

// emulatedLimit is how long an agent may take to answer where the node's processor is emulated.
const emulatedLimit = 15 * time.Second

// bePatient gives agents on emulated processors more time to answer.
func (l *Lab) bePatient() error {
	_, accel, err := l.record()
	if accel == "tcg" {
		l.agents.Limit = emulatedLimit
	}
	return err
}

// Up turns on the nodes with these names in this order, all nodes in the spec's order when there are no names. What is
// on already is left alone. It makes the cluster's network and forwards the site, where the cluster has one, to its
// virtual address.
func (l *Lab) Up(ctx context.Context, names []string, with UpOptions) error {
	nodes, err := l.pick(names)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		nodes = l.spec.Nodes()
	}
	return l.turnOn(ctx, nodes, func() error {
		if err := l.choose(ctx, with.Provider, nodes[0]); err != nil {
			return err
		}
		if !l.network.complete(l.operator) { // not there, or half made
			if err := l.network.create(l.operator); err != nil {
				return err
			}
		}
		return l.forwardFrom(ctx, with.Site)
	})
}

// Start turns on nodes of a cluster that is up. What is on already is left alone.
func (l *Lab) Start(ctx context.Context, names ...string) error {
	nodes, err := l.pick(names)
	if err != nil {
		return err
	}
	return l.turnOn(ctx, nodes, func() error {
		if !l.network.complete(l.operator) {
			return l.notUp()
		}
		return nil
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
		on := l.group.sub(n.Name).busy()
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
	if err := p.check(len(nodes)); err != nil {
		return err
	}
	// Each is started before the one before is known to be on: a boot takes all the processors that there are.
	var starting []func() error
	var errs []error
	for i, n := range nodes {
		if most := p.atOnce(); most > 0 && i >= most {
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

// CheckReplace fails where nodes cannot be replaced now: build has to be run first, or the cluster is not up.
func (l *Lab) CheckReplace(names ...string) error {
	if err := l.CheckFiles(names...); err != nil {
		return err
	}
	return l.CheckUp()
}

// CheckUp fails where the cluster is not up.
func (l *Lab) CheckUp() error {
	owner, err := currentOwner(l.spec.Cluster)
	if err == nil && (!owner.is(l.paths.lab()) || !l.network.complete(l.operator)) {
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

// helper is the cgroup of a process of the lab that is no node: no node's name begins like it.
func (l *Lab) helper(name string) cgroup { return l.group.sub("_" + name) }

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

// powerOff kills a node and waits until its disks are free.
func (l *Lab) powerOff(ctx context.Context, node string) error {
	group := l.group.sub(node)
	if !group.busy() {
		l.log("%s is off already", node)
	}
	if err := group.kill(ctx); err != nil {
		return fmt.Errorf("kill %s: %w", node, err)
	}
	return l.released(ctx, node)
}

// Replace cuts a node's power, takes its root disk away, and its data disk as well where blank is set, and turns on a new
// one in its place: from the image and the seed that build has made last.
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
	if !l.network.complete(l.operator) {
		return l.notUp()
	}
	if err := l.checkAddresses(nodes); err != nil {
		return err
	}
	if err := l.powerOff(ctx, name); err != nil {
		return err
	}
	p, err := l.provider()
	if err != nil {
		return err
	}
	// Renamed at once, so that no node ever boots from half of its disk; what an earlier run left goes as well.
	gone := l.paths.in(name, "gone")
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	changes := p.changes()
	if err := os.Rename(l.paths.in(name, changes[0]), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parts := slices.Concat([]string{"gone", imageFile}, changes[1:])
	if blank {
		parts = append(parts, dataDisk)
	}
	for _, part := range parts {
		if err := os.RemoveAll(l.paths.in(name, part)); err != nil {
			return err
		}
	}
	started, err := l.powerOn(ctx, p, nodes[0])
	if err == nil {
		err = started()
	}
	if err != nil {
		return fmt.Errorf("turn on %s: %w", name, err)
	}
	return nil
}

// released waits until the kernel has let go of the disks of a node that is off.
func (l *Lab) released(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	if !poll(ctx, func() bool { return !attached(l.paths.in(node, dataDisk)) }) {
		return fmt.Errorf("%s is off, but its data disk is still attached (see losetup)", node)
	}
	return nil
}

// Down kills all nodes and removes everything that the lab has made, the nodes' disks included. Images and seeds stay.
func (l *Lab) Down(ctx context.Context) error {
	c, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer c.release()
	if err := l.endFormer(ctx); err != nil {
		return err
	}
	if err := l.group.kill(ctx); err != nil {
		return err
	}
	disks, err := filepath.Glob(l.paths.in("*", "*")) // the pattern is well formed unless the folder's name is strange
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	for _, d := range disks {
		// An image may be in use by the lab of another cluster, through another name.
		if filepath.Base(d) == dataDisk && !poll(waiting, func() bool { return !attached(d) }) {
			return fmt.Errorf("%s is still attached to a loop device (see losetup)", d)
		}
	}
	if err := l.network.delete(); err != nil {
		return err
	}
	if err := os.RemoveAll(l.paths.lab()); err != nil {
		return err
	}
	c.owner = owner{}
	return nil
}

// Known returns what this machine knows of the spec's nodes, in the spec's order, and after those of nodes of this lab that the
// spec no longer has.
func (l *Lab) Known(context.Context) ([]operate.Machine, error) {
	owner, err := currentOwner(l.spec.Cluster)
	if err != nil {
		return nil, err
	}
	mine, former := owner.is(l.paths.lab()), l.former()
	nodes := append(l.spec.Nodes(), l.removed()...)
	all := make([]operate.Machine, len(nodes))
	for i, n := range nodes {
		m := &all[i]
		*m = operate.Machine{Node: n, Power: operate.PowerOff, Build: l.build(n)}
		group := l.group.sub(n.Name)
		if i := slices.IndexFunc(former, func(f *Lab) bool { return f.group.sub(n.Name).busy() }); i >= 0 {
			m.Detail = "still runs as a node of cluster " + former[i].spec.Cluster + ": imagegen down ends that"
			continue
		}
		if !mine {
			if group.busy() {
				m.Detail = "another cluster of this name runs from " + owner.dir
			}
			continue
		}
		if !group.busy() {
			if group.exists() { // Kill removes it
				m.Detail = "ended by itself; see its console: imagegen logs " + n.Name
			}
			continue
		}
		m.Power = operate.PowerOn
		if info, err := os.Stat(l.paths.in(n.Name, turnedOn)); err == nil {
			m.Since = info.ModTime()
		}
		if m.Build == operate.BuildOlder { // perhaps of another address, too
			if was, err := l.bootedAs(n.Name); err == nil && was.IP.IsValid() {
				m.Node.IP = was.IP
			}
		}
	}
	return all, nil
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
	return copyConsole(ctx, w, l.paths, node, follow)
}

// Site returns the address on this machine that is forwarded to the cluster's site; empty: none is, or no node that
// could serve it is on.
func (l *Lab) Site() string {
	role, ok := siteRole(l.spec)
	if !ok || !slices.ContainsFunc(role.Nodes, func(n cluster.Node) bool { return l.group.sub(n.Name).busy() }) {
		return ""
	}
	return l.forwarded()
}

// forwarded returns the address on this machine that is forwarded to the cluster's virtual address; empty: none is.
func (l *Lab) forwarded() string {
	site, _ := os.ReadFile(l.paths.site()) // none without a forward
	return string(site)
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
	if group.busy() && (site == "" || site == l.forwarded()) {
		return nil
	}
	if site == "" {
		site = DefaultSite
	}
	if err := group.kill(ctx); err != nil {
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
	in, err := group.open()
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := exec.Command(self, ForwardCommand, target.String())
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(in.Fd())}
	if err := l.network.do(cmd.Start); err != nil {
		return fmt.Errorf("forward the site: %w", err)
	}
	go cmd.Wait() // for as long as this process lives
	return os.WriteFile(l.paths.site(), []byte(site), 0o600)
}

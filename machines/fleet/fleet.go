// Package fleet keeps the machines of a cluster's nodes: it places nodes on hosts and has a provider make their machines from
// what build has made.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"imagegen/cluster"
	"imagegen/internal/exclusive"
	"imagegen/machines"
	"imagegen/operate"
)

// Fleet is the machines of a cluster's nodes.
type Fleet struct {
	Made
	ClusterID string
	Provider  machines.Provider
	Quorum    func(role string) bool // whether a role decides by majority
	Log       func(format string, args ...any)

	unasked sync.Once
}

// exclusively waits until no other imagegen with this output folder changes the cluster's machines, and then does something.
func (f *Fleet) exclusively(ctx context.Context, do func() error) error {
	release, err := exclusive.Take(ctx, filepath.Join(f.Dir, "machines.lock"), func() {
		f.Log("waiting for another imagegen, which is changing the machines of %s", f.Spec.Cluster)
	})
	if err != nil {
		return fmt.Errorf("lock the machines of %s: %w", f.Spec.Cluster, err)
	}
	defer release()
	return do()
}

// replacing is a file that is there from before a node's old machine is removed until its new one is on. A machine that is off
// meanwhile is not one that somebody turned off on purpose.
func (f *Fleet) replacing(node string) string { return filepath.Join(f.Dir, "replacing", node) }

func (f *Fleet) beginReplacing(node string) error {
	path := f.replacing(node)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o644)
}

// endReplacing is called when a node's machine is on, or gone for good.
func (f *Fleet) endReplacing(node string) error {
	err := os.Remove(f.replacing(node))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// start turns a machine on.
func (f *Fleet) start(ctx context.Context, node string) error {
	if err := f.Provider.Start(ctx, node); err != nil {
		return err
	}
	return f.endReplacing(node)
}

// Fleet is what operate needs to know of machines.
var _ operate.Machines = (*Fleet)(nil)

// Up makes the machines of the named nodes that have none, in this order, and turns them all on. What is on already is left
// alone. A node whose machine fails does not keep the others from theirs.
func (f *Fleet) Up(ctx context.Context, names ...string) error {
	nodes, err := f.pick(names)
	if err != nil {
		return err
	}
	if err := f.Check(nodes); err != nil {
		return err
	}
	if err := f.Provider.Check(ctx); err != nil {
		return err
	}
	return f.exclusively(ctx, func() error { return f.up(ctx, names) })
}

func (f *Fleet) up(ctx context.Context, names []string) error {
	list, err := f.Provider.List(ctx)
	if err != nil {
		return err
	}
	have := map[string]machines.State{}
	for _, s := range list {
		have[s.Node] = s
		if _, ok := f.Spec.Node(s.Node); !ok && s.Power != machines.Off {
			f.Log("%s is not in the spec any more, and its machine may still use an address that another node has: imagegen kill %[1]s", s.Node)
		}
	}
	at := f.place(list)
	for _, line := range machines.Losses(f.Spec, f.Spec.Machines.Hosts, at, f.Quorum) {
		f.Log("note: %s", line)
	}
	return eachHost(ctx, names, func(name string) string { return at[name] }, func(name string) error {
		if have[name].Power == machines.On {
			f.Log("%s is on already", name)
			return nil
		}
		n, _ := f.Spec.Node(name)
		if err := f.turnOn(ctx, n, at[name], have[name].Power); err != nil {
			return fmt.Errorf("turn on %s: %w", name, err)
		}
		f.Log("%s is on%s", name, onHost(at[name]))
		return nil
	})
}

// eachHost calls do for each node in this order, for those on different hosts at the same time: a provider is not asked for two
// things on one host at once. It returns all errors.
func eachHost(ctx context.Context, names []string, host func(node string) string, do func(node string) error) error {
	of := map[string][]int{}
	for i, name := range names {
		of[host(name)] = append(of[host(name)], i)
	}
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for _, mine := range of {
		all.Go(func() {
			for _, i := range mine {
				if ctx.Err() != nil {
					errs[i] = ctx.Err()
					return
				}
				errs[i] = do(names[i])
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (f *Fleet) turnOn(ctx context.Context, n cluster.Node, host string, power machines.Power) error {
	if power == machines.Unknown {
		return fmt.Errorf("its host %s does not answer", host)
	}
	if power != machines.Off {
		m, err := f.machine(n, host)
		if err != nil {
			return err
		}
		if err := f.Provider.Create(ctx, m); err != nil {
			return err
		}
	}
	return f.start(ctx, n.Name)
}

func onHost(host string) string {
	if host == "" {
		return ""
	}
	return " (" + host + ")"
}

// place returns the host of every node of the spec: where its machine is, or where it will be.
func (f *Fleet) place(list []machines.State) map[string]string {
	placed := map[string]string{}
	for _, s := range list {
		placed[s.Node] = s.Host
	}
	return machines.Place(f.Spec, f.Spec.Machines.Hosts, placed)
}

// machine is what a node's machine is to be.
func (f *Fleet) machine(n cluster.Node, host string) (machines.Machine, error) {
	m, err := f.Made.Machine(f.ClusterID, n)
	if err != nil {
		return m, err
	}
	m.Host = host
	if m.Image.Identity, err = f.ImageIdentity(n.Role); err != nil {
		return m, fmt.Errorf("the image's manifest: %w; imagegen build writes it", err)
	}
	id, err := f.SeedIdentity(n.Name)
	if err != nil {
		return m, err
	}
	if id.Cluster != f.ClusterID || id.Node != n.Name {
		return m, fmt.Errorf("%s is the seed of node %s of cluster %s: imagegen seed %s", f.SeedPath(n.Name), id.Node, id.Cluster, n.Name)
	}
	m.Seed.Identity = id.Digest
	return m, nil
}

// Start turns on nodes that have a machine.
func (f *Fleet) Start(ctx context.Context, names ...string) error {
	return f.exclusively(ctx, func() error { return f.startAll(ctx, names) })
}

func (f *Fleet) startAll(ctx context.Context, names []string) error {
	have, err := f.list(ctx)
	if err != nil {
		return err
	}
	return eachHost(ctx, names, func(name string) string { return have[name].Host }, func(name string) error {
		s, ok := have[name]
		switch {
		case !ok:
			return fmt.Errorf("%s has no machine: imagegen up %[1]s makes it", name)
		case s.Power == machines.Unfinished:
			return fmt.Errorf("the machine of %s is not finished: imagegen up %[1]s makes the rest", name)
		case s.Power == machines.On:
			f.Log("%s is on already", name)
			return nil
		}
		if err := f.start(ctx, name); err != nil {
			return fmt.Errorf("turn on %s: %w", name, err)
		}
		f.Log("%s is on%s", name, onHost(s.Host))
		return nil
	})
}

// Kill cuts the power of nodes, of the spec or removed from it. Their disks are kept.
func (f *Fleet) Kill(ctx context.Context, names ...string) error {
	have, err := f.checkKnown(ctx, names)
	if err != nil {
		return err
	}
	return f.exclusively(ctx, func() error {
		return eachHost(ctx, names, func(name string) string { return have[name].Host }, func(name string) error {
			if err := f.Provider.Stop(ctx, name); err != nil {
				return fmt.Errorf("kill %s: %w", name, err)
			}
			return nil
		})
	})
}

// Remove removes the machines of nodes that the spec no longer has, with their disks.
func (f *Fleet) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		if _, ok := f.Spec.Node(name); ok {
			return fmt.Errorf("%s is in the spec: only nodes that the spec no longer has are removed one by one", name)
		}
	}
	return f.exclusively(ctx, func() error {
		for _, name := range names {
			if err := f.Provider.Remove(ctx, name, true); err != nil {
				return err
			}
			if err := f.endReplacing(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// Down removes all of the cluster's machines with their disks, and what they shared.
func (f *Fleet) Down(ctx context.Context) error {
	var names []string
	for _, n := range f.Spec.Nodes() {
		names = append(names, n.Name)
	}
	return f.exclusively(ctx, func() error {
		if err := machines.RemoveAll(ctx, f.Provider, names); err != nil {
			return err
		}
		for _, name := range names {
			if err := f.endReplacing(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// Removed returns the names of the nodes that have a machine and that the spec no longer has.
func (f *Fleet) Removed(ctx context.Context) ([]string, error) {
	list, err := f.Provider.List(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range list {
		if _, ok := f.Spec.Node(s.Node); !ok {
			names = append(names, s.Node)
		}
	}
	return names, nil
}

// listIn is how long a provider may take to list the machines. Agents answer also while it does not, such as after the loss of most
// hosts.
const listIn = 15 * time.Second

// Known returns what the provider knows of the nodes' machines. See [operate.Machines]. Agents can be asked from computers that
// cannot ask the provider: then the error is said once, and nothing is known.
func (f *Fleet) Known(ctx context.Context) ([]operate.Machine, error) {
	limited, cancel := context.WithTimeoutCause(ctx, listIn, fmt.Errorf("the provider does not answer within %s", listIn))
	defer cancel()
	list, err := f.Provider.List(limited)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		f.unasked.Do(func() { f.Log("what the nodes run on is not known: %v", err) })
		var all []operate.Machine
		for _, n := range f.Spec.Nodes() {
			all = append(all, operate.Machine{Node: n, Power: operate.PowerUnknown, Build: operate.BuildUnknown, Unasked: true})
		}
		return all, nil
	}
	images := map[string]string{}
	var all []operate.Machine
	for _, n := range f.Spec.Nodes() {
		m := operate.Machine{Node: n, Power: operate.PowerOff, Detail: "has no machine: imagegen up makes it"}
		i := slices.IndexFunc(list, func(s machines.State) bool { return s.Node == n.Name })
		if i >= 0 {
			m = known(n, list[i])
			if _, asked := images[n.Role]; !asked {
				images[n.Role], _ = f.ImageIdentity(n.Role) // not built: unknown
			}
			seed, _ := f.SeedIdentity(n.Name)
			m.Build = age(list[i], images[n.Role], seed.Digest)
			if _, err := os.Stat(f.replacing(n.Name)); err == nil && m.Power == operate.PowerOff {
				m.Build, m.Detail = operate.BuildUnknown, "its replacement was interrupted: imagegen roll or imagegen replace finishes it"
			}
		}
		all = append(all, m)
	}
	for _, s := range list {
		if _, ok := f.Spec.Node(s.Node); !ok {
			m := known(cluster.Node{Name: s.Node}, s)
			m.Build = operate.BuildRemoved
			all = append(all, m)
		}
	}
	return all, nil
}

func known(n cluster.Node, s machines.State) operate.Machine {
	m := operate.Machine{Node: n, Host: s.Host, Since: s.Since}
	switch s.Power {
	case machines.On:
		m.Power = operate.PowerOn
	case machines.Off:
		m.Power = operate.PowerOff
	case machines.Unfinished:
		m.Power, m.Detail = operate.PowerOff, "its machine is not finished: imagegen up makes the rest"
	case machines.Unknown:
		m.Power, m.Detail = operate.PowerUnknown, "host "+s.Host+" does not answer"
	}
	return m
}

// age compares what a machine was made from with what build has made last.
func age(s machines.State, image, seed string) string {
	switch {
	case s.Power == machines.Unfinished || s.Image == "" || s.Seed == "" || image == "" || seed == "":
		return operate.BuildUnknown
	case s.Image == image && s.Seed == seed:
		return operate.BuildCurrent
	}
	return operate.BuildOlder
}

// CheckReplace fails when build has not made what the named nodes would be replaced with.
func (f *Fleet) CheckReplace(names ...string) error {
	nodes, err := f.pick(names)
	if err != nil {
		return err
	}
	return f.Check(nodes)
}

// Replace puts a new machine in the place of a node's old one, on the same host, from what build has made last.
func (f *Fleet) Replace(ctx context.Context, name string, blank bool) error {
	nodes, err := f.pick([]string{name})
	if err != nil {
		return err
	}
	return f.exclusively(ctx, func() error {
		list, err := f.Provider.List(ctx)
		if err != nil {
			return err
		}
		m, err := f.machine(nodes[0], f.place(list)[name])
		if err != nil {
			return err
		}
		if err := f.beginReplacing(name); err != nil {
			return err
		}
		if err := machines.Replace(ctx, f.Provider, m, blank); err != nil {
			return err
		}
		return f.endReplacing(name)
	})
}

// Console writes what a node's machine has printed to w. See [machines.Provider].
func (f *Fleet) Console(ctx context.Context, w io.Writer, node string, follow bool) error {
	if _, err := f.checkKnown(ctx, []string{node}); err != nil {
		return err
	}
	return f.Provider.Console(ctx, w, node, follow)
}

// pick returns the spec's nodes with these names, in this order.
func (f *Fleet) pick(names []string) ([]cluster.Node, error) {
	var nodes []cluster.Node
	for _, name := range names {
		n, ok := f.Spec.Node(name)
		if !ok {
			return nil, fmt.Errorf("cluster %s has no node %s", f.Spec.Cluster, name)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func (f *Fleet) list(ctx context.Context) (map[string]machines.State, error) {
	list, err := f.Provider.List(ctx)
	if err != nil {
		return nil, err
	}
	have := map[string]machines.State{}
	for _, s := range list {
		have[s.Node] = s
	}
	return have, nil
}

// checkKnown fails for a name that neither the spec has nor a machine. It returns the machines by node.
func (f *Fleet) checkKnown(ctx context.Context, names []string) (map[string]machines.State, error) {
	have, err := f.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		_, machine := have[name]
		if _, ok := f.Spec.Node(name); !ok && !machine {
			return nil, fmt.Errorf("cluster %s has no node %s", f.Spec.Cluster, name)
		}
	}
	return have, nil
}

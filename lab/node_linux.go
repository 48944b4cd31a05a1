package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"imagegen/cluster"
	"imagegen/internal/words"
	"imagegen/machines"
	"imagegen/machines/local"
)

// errNotUp is wrapped by errors of a cluster that has no provider.
var errNotUp = errors.New("is not up")

func (l *Lab) notUp() error {
	return fmt.Errorf("cluster %s %w: imagegen up starts it", l.spec.Cluster, errNotUp)
}

// chosen returns the name of the provider that Up has chosen; empty: none yet.
func (l *Lab) chosen() (string, error) {
	data, err := os.ReadFile(l.paths.provider())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	name, _, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	return name, nil
}

// provider returns the provider that Up has chosen. It is kept until Down, since another cannot use its disks.
func (l *Lab) provider() (*local.Provider, error) {
	name, err := l.chosen()
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, l.notUp()
	}
	return l.newProvider(name)
}

func (l *Lab) newProvider(name string) (*local.Provider, error) {
	provider, ok := l.providers[name]
	if !ok {
		return nil, fmt.Errorf("the lab has no provider %s, but %s", name, words.List(slices.Sorted(maps.Keys(l.providers)), "and"))
	}
	return provider(local.Config{
		ClusterID: l.clusterID, Dir: l.paths.lab(), Group: l.group, Network: string(l.network), Port: port, SSH: l.spec.SSH, Log: l.log,
	}), nil
}

// choose makes sure that there is a provider: the one called name or, if name is empty, the one that there is, or else
// DefaultProvider.
func (l *Lab) choose(ctx context.Context, name string) error {
	have, err := l.chosen()
	if err != nil {
		return err
	}
	if have != "" {
		if name != "" && name != have {
			return fmt.Errorf("the nodes of cluster %s have been made for %s and cannot run with %s: imagegen down removes them", l.spec.Cluster, have, name)
		}
		return nil
	}
	if name == "" {
		name = DefaultProvider
	}
	p, err := l.newProvider(name)
	if err != nil {
		return err
	}
	if err := p.Check(ctx); err != nil {
		return err
	}
	aside := l.paths.provider() + ".new"
	if err := os.WriteFile(aside, []byte(name+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(aside, l.paths.provider())
}

// atOnce is how many machines should boot at the same time; 0: all. With more, emulated ones take so much processor time from
// each other that systemd gives up on units.
func atOnce(p *local.Provider) int {
	if p.Emulated() {
		return runtime.NumCPU()
	}
	return 0
}

// powerOn begins to turn on a node that is off, with the seed and the hardware that it has in the spec now. Its root disk stays, if
// there is one. The function that it returns waits until the node is on, or tells why it is not.
func (l *Lab) powerOn(ctx context.Context, p *local.Provider, n cluster.Node) (started func() error, err error) {
	m, err := l.machine(n)
	if err != nil {
		return nil, err
	}
	if err := p.Create(ctx, m); err != nil {
		if errors.Is(err, machines.ErrForeign) { // by other secrets, or by an imagegen that did not mark machines
			err = fmt.Errorf("%w: imagegen down removes it", err)
		}
		return nil, err
	}
	if err := p.Update(ctx, m); err != nil {
		return nil, err
	}
	l.bePatient(p)
	return p.Begin(ctx, n.Name)
}

// booted waits until a node's agent answers, or the node is off again, for bootLimit at most.
func (l *Lab) booted(ctx context.Context, n cluster.Node) {
	ctx, cancel := context.WithTimeout(ctx, l.bootLimit)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for l.group.Sub(n.Name).Busy() {
		if _, err := l.agents.Ask(ctx, n.Name, n.IP); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			l.log("%s has not booted within %s; the next is turned on all the same", n.Name, l.bootLimit)
			return
		case <-tick.C:
		}
	}
}

// Exec runs a command on a node and returns its exit code: 128 and the signal's number when a signal ended it.
func (l *Lab) Exec(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	if _, err := l.known([]string{node}); err != nil {
		return 0, err
	}
	if len(argv) == 0 {
		return 0, errors.New("no command to run")
	}
	owner, err := currentOwner(l.spec.Cluster)
	if err != nil {
		return 0, err
	}
	group := l.group.Sub(node)
	if !owner.is(l.paths.lab()) || !group.Busy() {
		return 0, fmt.Errorf("%s is off: imagegen start %s turns it on", node, node)
	}
	p, err := l.provider()
	if err != nil {
		return 0, err
	}
	cmd, err := p.Command(node, argv)
	if err != nil {
		return 0, err
	}
	// In a cgroup of the node's, so that a power cut ends the command as well.
	in, err := group.Sub("exec").Open()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.Fd())}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			return 128 + int(status.Signal()), ctx.Err()
		}
		return exit.ExitCode(), ctx.Err()
	}
	return 0, err
}

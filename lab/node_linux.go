package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"imagegen/cluster"
	"imagegen/internal/accel"
)

// A node's folder, beside its console's log and what its provider keeps there.
const (
	imageFile = "image.raw" // hard link: the node keeps the image that it was made from
	seedFile  = "seed.iso"  // hard link: the seed that the node was last turned on with
	dataDisk  = "data.img"
	turnedOn  = "turned-on" // empty; its time says when
)

// provider is how the nodes of a lab are made to run.
type provider interface {
	// check finds what this machine lacks for turning on that many more nodes.
	check(nodes int) error
	// atOnce is how many nodes had better boot at the same time; 0: all.
	atOnce() int
	// makeNode adds to a node's folder, which has the image, the seed and the data disk, what else it takes.
	makeNode(ctx context.Context, n cluster.Node) error
	// changes are the parts of a node's folder that hold what the node has changed on its root disk. A node is turned on
	// without any of them after the first is gone.
	changes() []string
	// start starts a node that is off, in its cgroup, which is open as in, and returns without waiting. The function that
	// it returns waits until the node is on, or tells why it is not.
	start(n cluster.Node, in *os.File) (started func() error, err error)
	// exec is the command, to be run in the node's cgroup, that runs argv as root on a node that is on.
	exec(n cluster.Node, argv []string) (*exec.Cmd, error)
}

// record is what the lab's file about its provider says.
func (l *Lab) record() (name, accel string, err error) {
	data, err := os.ReadFile(l.paths.provider())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	name, accel, _ = strings.Cut(strings.TrimSpace(string(data)), " ")
	return name, accel, nil
}

// provider returns the provider that Up has chosen. It is kept until Down: the disks of one are nothing to another.
func (l *Lab) provider() (provider, error) {
	name, accel, err := l.record()
	if err != nil {
		return nil, err
	}
	switch name {
	case Nspawn:
		return nspawn{l}, nil
	case Qemu:
		return qemu{l, accel}, nil
	}
	return nil, l.notUp()
}

func (l *Lab) notUp() error {
	return fmt.Errorf("cluster %s is not up: imagegen up starts it", l.spec.Cluster)
}

// choose makes sure that there is a provider: the one called name, or with an empty name the one that the nodes have
// already, or else nspawn. A guest that is booted to see what works is n's.
func (l *Lab) choose(ctx context.Context, name string, n cluster.Node) error {
	have, _, err := l.record()
	if err != nil {
		return err
	}
	if have != "" {
		if name != "" && name != have {
			return fmt.Errorf("the nodes of cluster %s have been made for %s and cannot run with %s: imagegen down removes them", l.spec.Cluster, have, name)
		}
		return nil
	}
	record := name
	switch name {
	case "", Nspawn:
		record = Nspawn
		if err := (nspawn{l}).check(1); err != nil {
			return err
		}
	case Qemu:
		if err := (qemu{Lab: l}).check(1); err != nil {
			return err
		}
		found, why, err := accel.Find(ctx, l.paths.image(n.Role), "raw")
		if err != nil {
			return err
		}
		l.log("virtual machines run %s", why)
		record += " " + found
	default:
		return fmt.Errorf("there is no provider %s; there are %s and %s", name, Nspawn, Qemu)
	}
	aside := l.paths.provider() + ".new"
	if err := os.WriteFile(aside, []byte(record+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(aside, l.paths.provider()); err != nil {
		return err
	}
	return l.bePatient()
}

// powerOn starts a node that is off, and returns without waiting. The function that it returns waits until the node is
// on, or tells why it is not.
func (l *Lab) powerOn(ctx context.Context, p provider, n cluster.Node) (started func() error, err error) {
	group := l.group.sub(n.Name)
	if err := group.remove(); err != nil { // of the last time
		return nil, err
	}
	if err := l.released(ctx, n.Name); err != nil {
		return nil, err
	}
	if err := l.makeNode(n); err != nil {
		return nil, err
	}
	if err := p.makeNode(ctx, n); err != nil {
		return nil, err
	}
	in, err := group.open()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if started, err = p.start(n, in); err != nil {
		return nil, err
	}
	if err := os.WriteFile(l.paths.in(n.Name, turnedOn), nil, 0o600); err != nil {
		l.log("%s: %v", n.Name, err) // for status alone
	}
	return started, nil
}

// makeNode makes a node's folder, with its disks if it has none yet, and its seed as it is now.
func (l *Lab) makeNode(n cluster.Node) error {
	if err := os.MkdirAll(l.paths.node(n.Name), 0o700); err != nil {
		return err
	}
	if err := os.Link(l.paths.image(n.Role), l.paths.in(n.Name, imageFile)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	aside := l.paths.in(n.Name, seedFile+".new")
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) { // an interrupted run's
		return err
	}
	if err := os.Link(l.paths.seed(n.Name), aside); err != nil {
		return err
	}
	if err := os.Rename(aside, l.paths.in(n.Name, seedFile)); err != nil {
		return err
	}
	// Renaming a file to another name of itself does nothing.
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if size := l.spec.Role(n.Role).Data; size > 0 {
		return growFile(l.paths.in(n.Name, dataDisk), int64(size))
	}
	return nil
}

// growFile makes a file of this size that takes no space yet, or makes it larger. A smaller size changes nothing.
func growFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() >= size {
		return nil
	}
	return f.Truncate(size)
}

// booted waits until a node's agent answers or the node is off again, but no longer than bootLimit.
func (l *Lab) booted(ctx context.Context, n cluster.Node) {
	ctx, cancel := context.WithTimeout(ctx, l.bootLimit)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for l.group.sub(n.Name).busy() {
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
	nodes, err := l.known([]string{node})
	if err != nil {
		return 0, err
	}
	if len(argv) == 0 {
		return 0, errors.New("no command to run")
	}
	owner, err := currentOwner(l.spec.Cluster)
	if err != nil {
		return 0, err
	}
	group := l.group.sub(node)
	if !owner.is(l.paths.lab()) || !group.busy() {
		return 0, fmt.Errorf("%s is off: imagegen start %s turns it on", node, node)
	}
	p, err := l.provider()
	if err != nil {
		return 0, err
	}
	cmd, err := p.exec(nodes[0], argv)
	if err != nil {
		return 0, err
	}
	// In a cgroup of the node's, so that a power cut ends the command, too.
	in, err := group.sub("exec").open()
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

// lacks finds which programs, and the Debian packages that bring them, and which devices this machine lacks.
func lacks(programs, devices [][2]string) error {
	var names, packages []string
	for _, p := range programs {
		if _, err := exec.LookPath(p[0]); err != nil {
			names, packages = append(names, p[0]), append(packages, p[1])
		}
	}
	var errs []error
	if names != nil {
		slices.Sort(packages)
		errs = append(errs, fmt.Errorf("the lab needs %s, which this machine lacks: apt-get install %s", strings.Join(names, ", "), strings.Join(slices.Compact(packages), " ")))
	}
	for _, d := range devices {
		if _, err := os.Stat(d[0]); err != nil {
			errs = append(errs, fmt.Errorf("the lab needs %s: modprobe %s", d[0], d[1]))
		}
	}
	return errors.Join(errs...)
}

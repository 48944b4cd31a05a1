// Package virtualbox makes machines with VirtualBox's VBoxManage, without Vagrant, on Linux, macOS and Windows. Machines that
// Vagrant made from the Vagrantfile of package vagrant are recognised, and replaced through Vagrant.
//
// In the folder that build writes to:
//
//	virtualbox/images/HASH.vdi      the disk that all machines with one image share; each has what it has changed
//	virtualbox/machines/CLUSTER-NODE/  VirtualBox's settings, the root disk and the copy of the seed
//	virtualbox/vagrant/NODE         is there while a machine of Vagrant's is being replaced
//	disks/NODE.vdi                  the data disk, the same for the Vagrantfile
//	consoles/NODE.log               what the node prints on its serial port
//
// A machine's UUID is derived from the cluster's UUID and the node's name, so that it is ours from its first moment. Its extra data
// imagegen/cluster is written last, and deleted first: without it, a machine is unfinished.
package virtualbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"imagegen/cluster"
	"imagegen/internal/vbox"
	"imagegen/machines"
)

// Config says whose machines these are, and where their files are.
type Config struct {
	Spec      *cluster.Spec
	ClusterID string
	Dir       string // that build writes to, with the Vagrantfile if there is one
}

// Provider is a [machines.Provider].
type Provider struct {
	spec      *cluster.Spec
	clusterID string
	dir       string // absolute
	host      netip.Addr
	os        string       // GOOS
	step      func() error // is called before every change
	shared    sync.Mutex   // held while images or the network are made or removed
}

var _ machines.Provider = (*Provider)(nil)

// New returns the provider of a cluster's machines. It asks VirtualBox for nothing.
func New(c Config) (*Provider, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	host, err := c.Spec.HostAddr()
	if err != nil {
		return nil, err
	}
	return &Provider{spec: c.Spec, clusterID: c.ClusterID, dir: dir, host: host, os: runtime.GOOS, step: func() error { return nil }}, nil
}

// Keys of a machine's extra data. The Vagrantfile sets the first two.
const (
	clusterKey = "imagegen/cluster"
	imageKey   = "imagegen/image"
	seedKey    = "imagegen/seed"
)

func (p *Provider) own(parts ...string) string {
	return filepath.Join(append([]string{p.dir, "virtualbox"}, parts...)...)
}

func (p *Provider) name(node string) string   { return p.spec.Cluster + "-" + node }
func (p *Provider) folder(node string) string { return p.own("machines", p.name(node)) }
func (p *Provider) root(node string) string   { return filepath.Join(p.folder(node), "root.vdi") }
func (p *Provider) seed(node string) string   { return filepath.Join(p.folder(node), "seed.iso") }
func (p *Provider) disk(node string) string   { return filepath.Join(p.dir, "disks", node+".vdi") }
func (p *Provider) diskPart(node string) string {
	return filepath.Join(p.dir, "disks", node+".part.vdi")
}
func (p *Provider) console(node string) string { return filepath.Join(p.dir, "consoles", node+".log") }

func (p *Provider) image(identity string) string {
	return p.own("images", fmt.Sprintf("%.32x.vdi", sha256.Sum256([]byte(identity))))
}

// uuid is that of a thing of this cluster.
func (p *Provider) uuid(kind, name string) string {
	u := sha256.Sum256([]byte("imagegen virtualbox\x00" + p.clusterID + "\x00" + kind + "\x00" + name))
	u[6] = u[6]&0x0f | 0x80 // version 8, RFC 9562
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Check fails when VBoxManage is missing or too old.
func (p *Provider) Check(ctx context.Context) error {
	v, err := p.version(ctx)
	if err != nil {
		return err
	}
	if v.less(6, 1) {
		return fmt.Errorf("VirtualBox %d.%d is too old: install 6.1 or later, see https://www.virtualbox.org", v.major, v.minor)
	}
	return nil
}

// List returns the cluster's machines, Vagrant's included.
func (p *Provider) List(ctx context.Context) ([]machines.State, error) {
	all, err := p.all(ctx)
	if err != nil {
		return nil, err
	}
	var list []machines.State
	for node, m := range all {
		list = append(list, m.state(node))
	}
	slices.SortFunc(list, func(a, b machines.State) int { return strings.Compare(a.Node, b.Node) })
	return list, nil
}

// Create makes a machine, off. One that is unfinished is removed first. The machine of a node whose last one was Vagrant's is made
// by vagrant up, which also starts it.
func (p *Provider) Create(ctx context.Context, m machines.Machine) error {
	vm, err := p.find(ctx, m.Node)
	if err != nil {
		return err
	}
	if vm != nil && !vm.unfinished() {
		return nil
	}
	if err := p.remove(ctx, m.Node, vm); err != nil {
		return err
	}
	if p.throughVagrant(m.Node) {
		return p.vagrantUp(ctx, m)
	}
	adapter, err := p.network(ctx)
	if err != nil {
		return err
	}
	id := p.uuid("machine", m.Node)
	if err := p.change(ctx, "createvm", "--name", p.name(m.Node), "--uuid", id, "--basefolder", p.own("machines"), "--ostype", "Linux26_64", "--register"); err != nil {
		return err
	}
	if err := p.hardware(ctx, id, m, adapter); err != nil {
		return err
	}
	if err := p.rootDisk(ctx, id, m); err != nil {
		return err
	}
	if err := p.insertSeed(ctx, id, m); err != nil {
		return err
	}
	if m.Data > 0 {
		if err := p.dataDisk(ctx, id, m); err != nil {
			return err
		}
	}
	for _, mark := range [][2]string{{seedKey, m.Seed.Identity}, {clusterKey, p.clusterID}} {
		if err := p.change(ctx, "setextradata", id, mark[0], mark[1]); err != nil {
			return err
		}
	}
	return nil
}

// hardware gives the machine what the OVF and the Vagrantfile give theirs.
func (p *Provider) hardware(ctx context.Context, id string, m machines.Machine, adapter []string) error {
	if err := os.MkdirAll(filepath.Dir(p.console(m.Node)), 0o755); err != nil {
		return err
	}
	v, err := p.version(ctx)
	if err != nil {
		return err
	}
	args := []string{"modifyvm", id, "--memory", strconv.FormatInt((m.Memory+4<<20-1)>>22<<2, 10), "--cpus", strconv.Itoa(m.CPUs),
		"--ioapic", "on", "--rtcuseutc", "on", "--boot1", "disk", "--boot2", "none", "--boot3", "none", "--boot4", "none",
		"--graphicscontroller", "vmsvga", "--vram", "16", "--uart1", "0x3F8", "4", "--uartmode1", "file", p.console(m.Node),
		// Cloud-init finds adapter 2 by the MAC address, which is in the seed.
		"--nic1", "nat", "--nictype1", "82540EM", "--nictype2", "82540EM", "--macaddress2", strings.ToUpper(strings.ReplaceAll(m.MAC, ":", ""))}
	if v.less(7, 0) {
		args = append(args, "--audio", "none")
	} else {
		args = append(args, "--audio-enabled", "off")
	}
	// VirtualBox's own choice for NAT must not be part of the cluster's network.
	if p.spec.Network.CIDR.Overlaps(netip.MustParsePrefix("10.0.2.0/24")) {
		args = append(args, "--natnet1", "172.31.254.0/24")
	}
	if err := p.change(ctx, append(args, adapter...)...); err != nil {
		return err
	}
	return p.change(ctx, "storagectl", id, "--name", "SATA", "--add", "sata", "--controller", "IntelAhci", "--portcount", "4", "--bootable", "on", "--hostiocache", "off")
}

func (p *Provider) attach(ctx context.Context, id string, port int, kind, medium string, more ...string) error {
	return p.change(ctx, append([]string{"storageattach", id, "--storagectl", "SATA", "--port", strconv.Itoa(port), "--device", "0",
		"--type", kind, "--medium", medium}, more...)...)
}

// rootDisk attaches a disk that holds the differences from the image.
func (p *Provider) rootDisk(ctx context.Context, id string, m machines.Machine) error {
	create := func() error {
		// Images of machines without this mark are pruned.
		if err := p.change(ctx, "setextradata", id, imageKey, m.Image.Identity); err != nil {
			return err
		}
		p.shared.Lock()
		defer p.shared.Unlock()
		image, err := p.importImage(ctx, m.Image)
		if err != nil {
			return err
		}
		return p.change(ctx, "createmedium", "disk", "--diffparent", image, "--filename", p.root(m.Node))
	}
	if err := create(); err != nil {
		return err
	}
	return p.attach(ctx, id, 0, "hdd", p.root(m.Node))
}

// importImage converts a raw disk, unless that was done before. The caller holds p.shared.
func (p *Provider) importImage(ctx context.Context, image machines.File) (string, error) {
	path := p.image(image.Identity)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := p.pruneImages(ctx); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	part := path + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	// The UUID is that of the content, so that root disks find an image that had to be converted again.
	if err := p.change(ctx, "convertfromraw", image.Path, part, "--format", "VDI", "--uuid", p.uuid("image", image.Identity)); err != nil {
		return "", err
	}
	if err := flush(part); err != nil {
		return "", err
	}
	return path, os.Rename(part, path)
}

// pruneImages removes the images that no machine has. The caller holds p.shared.
func (p *Provider) pruneImages(ctx context.Context) error {
	images, err := filepath.Glob(p.own("images", "*"))
	if err != nil || images == nil {
		return err
	}
	all, err := p.all(ctx)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, m := range all {
		if m.inaccessible() {
			return nil // its image is not known
		}
		used[p.image(m.extra[imageKey])] = true
	}
	for _, path := range images {
		if used[path] {
			continue
		}
		if err := p.removeMedium(ctx, "disk", path); err != nil {
			return err
		}
	}
	return nil
}

// insertSeed gives the machine a copy of its seed, so that the next seed does not reach a machine that is not replaced.
func (p *Provider) insertSeed(ctx context.Context, id string, m machines.Machine) error {
	if err := p.step(); err != nil {
		return err
	}
	data, err := os.ReadFile(m.Seed.Path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.seed(m.Node), data, 0o600); err != nil {
		return err
	}
	if err := flush(p.seed(m.Node)); err != nil {
		return err
	}
	return p.attach(ctx, id, 1, "dvddrive", p.seed(m.Node))
}

// dataDisk attaches the node's data disk, and makes an empty one if there is none.
func (p *Provider) dataDisk(ctx context.Context, id string, m machines.Machine) error {
	if _, err := os.Stat(p.disk(m.Node)); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(p.disk(m.Node)), 0o755); err != nil {
			return err
		}
		part := p.diskPart(m.Node)
		if err := p.change(ctx, "createmedium", "disk", "--filename", part, "--format", "VDI", "--size", strconv.FormatInt((m.Data+1<<20-1)>>20, 10)); err != nil {
			return err
		}
		if err := p.change(ctx, "closemedium", "disk", part); err != nil {
			return err
		}
		if err := os.Rename(part, p.disk(m.Node)); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// Writethrough: snapshots of the machine leave the data alone.
	if err := p.attach(ctx, id, 2, "hdd", p.disk(m.Node), "--mtype", "writethrough"); err != nil {
		return err
	}
	// VirtualBox ignores a guest's request to flush its disk, unless told otherwise.
	return p.change(ctx, "setextradata", id, "VBoxInternal/Devices/ahci/0/LUN#2/Config/IgnoreFlush", "0")
}

// Start turns a machine on.
func (p *Provider) Start(ctx context.Context, node string) error {
	return p.power(ctx, node, true)
}

// Stop cuts the power.
func (p *Provider) Stop(ctx context.Context, node string) error {
	return p.power(ctx, node, false)
}

// power turns a machine on or off. VirtualBox refuses to while a machine is on its way from one to the other.
func (p *Provider) power(ctx context.Context, node string, on bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("machine %s: VirtualBox has not finished within 2 min", p.name(node)))
	defer cancel()
	for {
		vm, err := p.find(ctx, node)
		if err != nil {
			return cause(ctx, err)
		}
		switch {
		case vm == nil && on:
			return fmt.Errorf("there is no machine %s", p.name(node))
		case vm == nil:
			return nil
		case on && vm.unfinished():
			return fmt.Errorf("machine %s is unfinished: it must be made again first", p.name(node))
		case vm.locked && vm.power() == machines.Off: // it is starting, or its process is ending
		case vm.settled() && (vm.power() == machines.On) == on:
			return nil
		default:
			args := []string{"controlvm", vm.id, "poweroff"}
			if on {
				args = []string{"startvm", vm.id, "--type", "headless"}
			}
			if err := p.step(); err != nil {
				return err
			}
			_, err := vbox.Manage(ctx, args...)
			if err == nil || busy(err) {
				break // look again
			}
			return cause(ctx, err)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// Remove removes a machine, and its data disk if data is set.
func (p *Provider) Remove(ctx context.Context, node string, data bool) error {
	vm, err := p.find(ctx, node)
	if err != nil {
		return err
	}
	if vm != nil && vm.owner == vagrants {
		if err := p.vagrantDestroy(ctx, node, vm); err != nil {
			return err
		}
		vm = nil
	}
	if err := p.remove(ctx, node, vm); err != nil {
		return err
	}
	if !data {
		return nil
	}
	return p.removeMedium(ctx, "disk", p.disk(node))
}

// remove removes a machine of ours (nil: there is none) and what it, or one that somebody else removed, has left. The data disk is
// taken out first: VirtualBox's own clean-up removes a machine together with its disks.
func (p *Provider) remove(ctx context.Context, node string, vm *vm) error {
	if vm != nil {
		if vm.info["SnapshotName"] != "" {
			return fmt.Errorf("machine %s has snapshots, which hold its disks; remove them first: VBoxManage snapshot %[1]s delete SNAPSHOT", p.name(node))
		}
		if vm.extra[clusterKey] != "" {
			if err := p.change(ctx, "setextradata", vm.id, clusterKey); err != nil {
				return err
			}
		}
		if vm.info["VMState"] == "saved" {
			if err := p.change(ctx, "discardstate", vm.id); err != nil {
				return err
			}
		} else if err := p.Stop(ctx, node); err != nil {
			return err
		}
		if at := vm.info["SATA-2-0"]; at != "" && at != "none" {
			if err := p.change(ctx, "storageattach", vm.id, "--storagectl", "SATA", "--port", "2", "--device", "0", "--medium", "none"); err != nil {
				return err
			}
		}
		if err := p.change(ctx, "unregistervm", vm.id); err != nil {
			return err
		}
	}
	for _, medium := range [][2]string{{"dvd", p.seed(node)}, {"disk", p.root(node)}, {"disk", p.diskPart(node)}} {
		if err := p.removeMedium(ctx, medium[0], medium[1]); err != nil {
			return err
		}
	}
	if _, err := os.Stat(p.disk(node)); err == nil {
		if err := p.closeMedium(ctx, "disk", p.disk(node)); err != nil {
			return err
		}
	}
	return errors.Join(p.delete(p.folder(node)), p.delete(p.console(node)))
}

// delete removes a file or folder.
func (p *Provider) delete(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := p.step(); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// removeMedium removes a disk or seed from VirtualBox's lists, and its file.
func (p *Provider) removeMedium(ctx context.Context, kind, path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := p.closeMedium(ctx, kind, path); err != nil {
		return err
	}
	return p.delete(path)
}

// closeMedium removes a disk or seed from VirtualBox's lists. It fails for one that a machine has.
func (p *Provider) closeMedium(ctx context.Context, kind, path string) error {
	if err := p.step(); err != nil {
		return err
	}
	_, err := vbox.Manage(ctx, "closemedium", kind, path)
	if err == nil || ctx.Err() != nil || vbox.IsCode(err, "VBOX_E_OBJECT_IN_USE") || vbox.IsCode(err, "VBOX_E_INVALID_OBJECT_STATE") {
		return err
	}
	return nil // it was in no list, and cannot be opened
}

// Purge removes images and the network.
func (p *Provider) Purge(ctx context.Context) error {
	p.shared.Lock()
	defer p.shared.Unlock()
	all, err := p.all(ctx)
	if err != nil {
		return err
	}
	for node, m := range all {
		if m.owner == ours {
			return fmt.Errorf("machine %s is still there", p.name(node))
		}
	}
	images, err := filepath.Glob(p.own("images", "*"))
	if err != nil {
		return err
	}
	for _, path := range images {
		if err := p.removeMedium(ctx, "disk", path); err != nil {
			return err
		}
	}
	if err := p.removeNetwork(ctx); err != nil {
		return err
	}
	if err := p.delete(p.own()); err != nil {
		return err
	}
	for _, dir := range []string{"disks", "consoles"} {
		os.Remove(filepath.Join(p.dir, dir)) // stays if there is something in it
	}
	return nil
}

// Console copies the serial port's file. VirtualBox begins it anew with each start of the machine.
func (p *Provider) Console(ctx context.Context, w io.Writer, node string, follow bool) error {
	var at int64
	for {
		n, err := copyFrom(w, p.console(node), at)
		if err != nil {
			return err
		}
		if at = n; !follow || pause(ctx) != nil {
			return nil
		}
	}
}

// copyFrom writes what a file has from an offset on, and returns its new end. A file that has become shorter is a new one.
func copyFrom(w io.Writer, path string, at int64) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return at, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return at, err
	}
	if info.Size() < at {
		at = 0
	}
	n, err := io.Copy(w, io.NewSectionReader(f, at, info.Size()-at))
	return at + n, err
}

// flush writes what the system has of a file to the disk.
func flush(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

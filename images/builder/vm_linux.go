package builder

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"imagegen/cloudinit"
	"imagegen/images/disk"
	"imagegen/internal/ctxio"
	"imagegen/internal/program"
)

// A bake in a VM boots the base with its own seed. cloud-init runs the same script as the chroot builder.
//
// If the base is a tree, the VM boots from a temporary disk made of it. The image is an overlay on a second, untouched
// copy of the tree. The upper layer comes back as an archive, and this machine writes the disk from it as in the chroot
// builder. Nothing that the boot writes can get into the image, and both builders make the same image, bit for bit. If
// the base is a disk, the VM boots from the image's disk.

// hypervisor runs VMs.
type hypervisor interface {
	// check returns an error that says which programs are missing.
	check() error
	// prepare is called before run, with a disk that boots. The first call tells the user how VMs are run, through
	// note.
	prepare(ctx context.Context, file string, note func(string)) error
	// run runs a VM until it powers off or ctx ends. It writes the output of the serial ports to console and bake.
	run(ctx context.Context, m vm, console, bake io.Writer) error
}

// vm describes a VM. All disks are raw.
type vm struct {
	work    string   // the bake's folder, for the hypervisor's files
	disks   []string // boots from the first; QEMU attaches the others read-only
	made    string   // disk that the result is written to
	seed    string   // ISO
	memory  int64    // MiB
	network bool     // allow access to this machine's network
}

// The VM's only NIC, on the NAT network of QEMU and VirtualBox.
const (
	vmMAC     = "52:54:00:12:34:56"
	vmNetwork = "version: 1\nconfig:\n  - type: physical\n    name: eth0\n    mac_address: '" + vmMAC + "'\n" +
		"    subnets: [{type: static, address: 10.0.2.15/24, gateway: 10.0.2.2, dns_nameservers: [10.0.2.3]}]\n"
)

// seedName is the seed's name in the bake's folder.
const seedName = "seed.iso"

// Contents by which the VM recognizes its disks of inputs and results.
const (
	inputsMark = "imagegen-bake"
	madeMark   = "imagegen-made"
)

// vmBuilder runs the script in a VM.
type vmBuilder struct {
	hypervisor
	limit time.Duration // for a VM
}

func (vmBuilder) VM() bool { return true }

func (v vmBuilder) Install(ctx context.Context, j *Job) error {
	path := func(name string) string { return filepath.Join(j.Work, name) }
	m := vm{work: j.Work, disks: []string{j.Disk()}, made: path("made"), seed: path(seedName), network: j.Network}
	env := map[string]string{}
	stage := "runcmd" // after the file system has grown
	if j.Base != nil {
		j.Begin("make the VM's disks")
		stage = "bootcmd" // as soon as the disks exist
		m.disks = []string{path("boot"), path("base")}
		image := j.Base.Disk
		image.Bytes += 1 << 30 // for unpacked inputs and the log of the boot
		tree := disk.Tree{Lower: j.Base.Root, Upper: path("nothing")}
		for i, id := range []string{image.UUID, j.Base.Below} {
			image.UUID = id
			if err := disk.Write(ctx, m.disks[i], tree, image); err != nil {
				return err
			}
		}
		env["LOWER"], env["SOURCE_DATE_EPOCH"] = j.Base.Below, fmt.Sprint(disk.Newest)
		if err := os.WriteFile(j.Input("layer"), []byte(j.Enter), 0o644); err != nil {
			return err
		}
	} else if info, err := os.Stat(m.disks[0]); err != nil {
		return err
	} else if info.Size() < j.Bytes { // cloud-init grows the partition and the file system
		if err := os.Truncate(m.disks[0], j.Bytes); err != nil {
			return err
		}
	}
	if m.network {
		for _, kv := range program.ProxyEnv() { // in the input folder, which is not part of the image
			name, value, _ := strings.Cut(kv, "=")
			env[name] = fromVM(name, value)
		}
	}
	if err := os.WriteFile(j.Input("env"), []byte(Assignments(env)), 0o600); err != nil {
		return err
	}
	inputs := path("inputs.tar")
	size, err := writeTar(ctx, j.Input(""), inputs)
	if err != nil {
		return fmt.Errorf("pack the inputs: %w", err)
	}
	m.disks = append(m.disks, inputs)
	m.memory = 1024 + size>>20 // inputs are unpacked into memory
	err = errors.Join(
		os.WriteFile(m.made, []byte(madeMark), 0o600),
		os.Truncate(m.made, j.Bytes+1<<30),
		bakeSeed(j.ID, stage).WriteISO(m.seed))
	if err != nil {
		return err
	}
	j.Begin("check how to run VMs")
	if err := v.prepare(ctx, m.disks[0], j.Note); err != nil {
		return err
	}
	j.Begin("boot the VM")
	limited, cancel := context.WithTimeoutCause(ctx, v.limit, fmt.Errorf("the VM did not finish within %s (--time-limit)", v.limit))
	defer cancel()
	r := newReport(j.Log, j.Begin)
	err = r.end(v.run(limited, m, &lines{pass: r.consoleLine}, &lines{pass: r.bakeLine}))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return j.withLog(err)
	}
	if err := program.Run(ctx, "tar", "tar", "-C", j.Work, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-x", "-f", m.made); err != nil {
		return fmt.Errorf("unpack the result: %w; the cache must be on a file system that supports overlayfs, such as ext4 or XFS", err)
	}
	for _, used := range append(m.disks, m.made) { // no longer needed, and space may be scarce
		if filepath.Dir(used) == j.Work {
			if err := os.Remove(used); err != nil {
				return err
			}
		}
	}
	return os.Rename(path("packages"), j.Input("packages"))
}

// bakeSeed returns a seed that makes cloud-init run the script in the given stage.
func bakeSeed(id, stage string) cloudinit.Seed {
	data, err := yaml.Marshal(map[string]any{
		"preserve_hostname": true, "users": []string{}, "ssh_genkeytypes": []string{"ed25519"},
		stage: [][]string{{"sh", "-c", VMScript}},
	})
	if err != nil {
		panic(err) // cannot fail: only strings
	}
	return cloudinit.Seed{
		UserData: append([]byte("#cloud-config\n"), data...), NetworkConfig: []byte(vmNetwork),
		MetaData: []byte("instance-id: bake-" + id + "\nlocal-hostname: bake\n"),
	}
}

// fromVM translates a proxy variable for use in a VM, where this machine's loopback address is 10.0.2.2.
func fromVM(name, value string) string {
	if strings.EqualFold(name, "no_proxy") {
		return value
	}
	return strings.NewReplacer("//127.0.0.1:", "//10.0.2.2:", "//localhost:", "//10.0.2.2:", "//[::1]:", "//10.0.2.2:").Replace(value)
}

// writeTar packs a folder and returns the archive's size. The first entry is an empty file, by which the VM recognizes
// the archive.
func writeTar(ctx context.Context, dir, path string) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t := tar.NewWriter(ctxio.Writer(ctx, f))
	if err := t.WriteHeader(&tar.Header{Name: inputsMark, Mode: 0o644}); err != nil {
		return 0, err
	}
	if err := t.AddFS(os.DirFS(dir)); err != nil {
		return 0, err
	}
	if err := t.Close(); err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekEnd)
}

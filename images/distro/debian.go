package distro

import (
	_ "embed"
	"fmt"
	"strings"

	"imagegen/images/builder"
	"imagegen/images/disk"
	"imagegen/images/packages"
	"imagegen/internal/jsonhash"
	"imagegen/internal/program"
	"imagegen/roles"
)

//go:embed scripts/base.sh
var baseScript string

//go:embed scripts/debian12.sh
var debianScript string

//go:embed scripts/install.sh
var installScript string

// debian makes Debian images. The base is a file tree made by mmdebstrap. An image is a layer on top of it, from which a disk is written.
type debian struct{ Options }

func newDebian(o Options) Distro { return debian{o} }

// debianBase lists the packages of every Debian image. The kernel is the full one: Debian's cloud kernel has no driver for
// AHCI, which is what VirtualBox offers.
var debianBase = []string{
	"linux-image-amd64", "initramfs-tools", "systemd-sysv", "udev", "dbus", "kmod",
	"systemd-timesyncd", "iproute2", "nftables", "netplan.io", // cloud-init depends on it; networkd is used directly
	"cloud-init", "cloud-guest-utils", "fdisk", "e2fsprogs", "openssh-server", "sudo", "ca-certificates", "procps", "less",
}

func (debian) Tools() []program.Tool {
	return append([]program.Tool{
		{Name: "mmdebstrap", Package: "mmdebstrap"}, {Name: "extlinux", Package: "extlinux"}, {Name: disk.BootSector, Package: "syslinux-common"},
		{Name: "mkfs.ext4", Package: "e2fsprogs"}, {Name: "apt-get", Package: "apt"}, {Name: "dpkg-deb", Package: "dpkg"},
	}, everyTool...)
}

func (debian) IsDisk() bool { return false }

func (d debian) Base() (Base, error) {
	sources, err := d.sources()
	if err != nil {
		return Base{}, err
	}
	return Base{Distro: d.Spec.Distro, Sources: sources, Packages: debianBase, Script: jsonhash.Of(baseScript)}, nil
}

// sources returns the APT sources as lines of sources.list: the spec's mirror, or this machine's own sources.
func (d debian) sources() ([]string, error) {
	if d.Spec.Mirror == "" {
		lines, err := packages.HostSources("/", d.known())
		if err != nil {
			return nil, fmt.Errorf("find the archive to bake from: %w", err)
		}
		return lines, nil
	}
	lines, err := packages.MirrorSources(d.Spec.Mirror, d.known())
	if err != nil {
		return nil, fmt.Errorf("mirror in %s: %w", d.Spec.File, err)
	}
	return lines, nil
}

// diskVersion must be increased when the same tree produces a different disk.
const diskVersion = 2

func (debian) Complete(in *Inputs, _ roles.Distro) {
	in.Install = jsonhash.Of([]any{installScript, debianScript, diskVersion})
}

func (debian) Enter() string { return installScript }

func (debian) Script(in Inputs) string {
	return builder.Assignments(map[string]string{
		"PACKAGES": strings.Join(in.Packages, " "), "USERS": userList(in.Users), "DISABLE": strings.Join(in.Disable, " "),
		"REMOVE": strings.Join(in.Remove, " "), "KEYS": strings.Join(packages.Keyrings(in.Base.Sources), " "),
	}) + debianScript
}

// userList formats users for the scripts.
func userList(users []roles.User) string {
	var list []string
	for _, u := range users {
		group := u.Group
		if group == "" {
			group = u.Name
		}
		list = append(list, fmt.Sprintf("%s:%d:%s:%d", u.Name, u.UID, group, u.GID))
	}
	return strings.Join(list, " ")
}

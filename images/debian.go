package images

import (
	"fmt"

	known "imagegen/distro"

	"embed"
	"errors"
	"io/fs"
	"path"
	"strings"

	"imagegen/images/packages"
	"imagegen/internal/jsonhash"
)

//go:embed scripts/base.sh
var baseScript string

//go:embed scripts/debian12.sh
var debianScript string

//go:embed scripts/install.sh
var installScript string

//go:embed scripts/*.service
var unitFiles embed.FS

// agentUnits are the units that an image gets with the agent.
var agentUnits = func() []unit {
	var units []unit
	paths, err := fs.Glob(unitFiles, "scripts/*.service") // sorted
	for _, p := range paths {
		data, readErr := unitFiles.ReadFile(p)
		err = errors.Join(err, readErr)
		units = append(units, unit{path.Base(p), string(data)})
	}
	if err != nil {
		panic(err) // they are in the program
	}
	return units
}()

// debianBase is what every debian12 image holds. The kernel is the full one: Debian's cloud kernel has no driver for
// AHCI, which is what VirtualBox offers.
var debianBase = []string{
	"linux-image-amd64", "initramfs-tools", "systemd-sysv", "udev", "dbus", "kmod",
	"systemd-timesyncd", "iproute2", "nftables", "netplan.io", // cloud-init depends on it; networkd is used directly
	"cloud-init", "cloud-guest-utils", "fdisk", "e2fsprogs", "openssh-server", "sudo", "ca-certificates", "procps", "less",
}

func (c *Config) baseInputs() (baseInputs, error) {
	if c.Spec.Distro == "centos7" {
		return c.centosInputs(), nil
	}
	sources, err := c.sources()
	if err != nil {
		return baseInputs{}, err
	}
	return baseInputs{Distro: c.Spec.Distro, Sources: sources, Packages: debianBase, Script: jsonhash.Of(baseScript)}, nil
}

// sources returns the APT sources to bake from, as lines of sources.list: the spec's mirror, or what this machine itself uses.
func (c *Config) sources() ([]string, error) {
	d := known.Named(c.Spec.Distro)
	if c.Spec.Mirror == "" {
		lines, err := packages.HostSources("/", d)
		if err != nil {
			return nil, fmt.Errorf("find the archive to bake from: %w", err)
		}
		return lines, nil
	}
	lines, err := packages.MirrorSources(c.Spec.Mirror, d)
	if err != nil {
		return nil, fmt.Errorf("mirror in %s: %w", c.Spec.File, err)
	}
	return lines, nil
}

// debianVars are the script's variables.
func debianVars(in inputs) map[string]string {
	return map[string]string{
		"PACKAGES": strings.Join(in.Packages, " "), "USERS": userList(in.Users), "DISABLE": strings.Join(in.Disable, " "),
		"REMOVE": strings.Join(in.Remove, " "), "KEYS": strings.Join(packages.Keyrings(in.Base.Sources), " "),
	}
}

// diskVersion is raised when the same tree is to make another disk.
const diskVersion = 2

package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"imagegen/internal/program"
)

// A builder runs the script that makes an image, on the copy of the base or in a tree on top of it, with what was laid for
// it, and leaves the list of packages where the script does.
type builder interface {
	install(context.Context, *bake) error
}

// chrootBuilder works in a root file system that is mounted on this machine.
type chrootBuilder struct{}

func (chrootBuilder) install(ctx context.Context, b *bake) error {
	vars := map[string]string{"WORK": b.work, "BAKE": filepath.Join(b.work, "bake")}
	if b.base.SHA256 != "" {
		vars["DISK"] = filepath.Join(b.work, "result", diskName)
		vars["BYTES"] = strconv.FormatInt(b.plan.inputs.DiskBytes, 10)
		return b.script(ctx, centosChrootScript, vars)
	}
	vars["BASE"] = filepath.Join(b.config.baseDir(b.base), treeName)
	vars["UPPER"] = b.upper()
	if err := os.Mkdir(vars["UPPER"], 0o755); err != nil {
		return err
	}
	return b.script(ctx, installScript, vars)
}

// chooseBuilder returns the builder that was asked for, or the first of Builders that can be used here, and for people
// which and why.
func (c *Config) chooseBuilder() (_ builder, why string, err error) {
	var not []string
	for _, name := range Builders {
		if c.Builder != "" && c.Builder != name {
			continue
		}
		by, err := c.builder(name)
		if err == nil {
			switch {
			case c.Builder != "":
				why = "as asked for"
			case name == "chroot":
				why = "root on Linux, with all programs that it needs"
			default:
				why = strings.Join(not, "; ")
			}
			return by, fmt.Sprintf("%s (%s)", name, why), nil
		}
		if c.Builder != "" {
			return nil, "", fmt.Errorf("builder %s: %w", name, err)
		}
		not = append(not, fmt.Sprintf("not %s: %v", name, err))
	}
	return nil, "", errors.New("no builder can be used here: " + strings.Join(not, "; "))
}

// builder returns a builder if it can be used here. The base and the disks of debian12 are made on this machine in any
// case.
func (c *Config) builder(name string) (builder, error) {
	if name == "chroot" {
		return chrootBuilder{}, cmp.Or(checkTools(program.Path, c.Spec.Distro), checkMounting())
	}
	v := vmBuilder{hypervisor: &qemu{}, limit: cmp.Or(c.Limit, BakeLimit)}
	if name == "virtualbox" {
		v.hypervisor = virtualBox{}
	}
	if c.Spec.Distro == "debian12" {
		if err := cmp.Or(checkTools(program.Path, c.Spec.Distro), checkMounting()); err != nil {
			return nil, err
		}
	}
	return v, v.check()
}

package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"imagegen/internal/program"
)

// Builder runs the script that makes an image.
type Builder interface {
	Install(context.Context, *Job) error
	// VM reports whether it runs in a virtual machine, whose disks need additional space.
	VM() bool
}

// Options select a builder and say what it needs.
type Options struct {
	Name  string        // one of Names; empty: the first of them that can be used here
	Limit time.Duration // for a bake in a VM; 0: Limit
	// Tools are the programs that a bake on this machine needs.
	Tools []program.Tool
	// Local is set if the base and the disks are made on this machine with every builder.
	Local bool
}

// chrootBuilder runs the script in a root file system that is mounted on this machine.
type chrootBuilder struct{}

func (chrootBuilder) VM() bool { return false }

func (chrootBuilder) Install(ctx context.Context, j *Job) error {
	vars := map[string]string{"WORK": j.Work, "BAKE": filepath.Join(j.Work, "bake")}
	if j.Base == nil {
		vars["DISK"], vars["BYTES"] = j.Disk(), strconv.FormatInt(j.Bytes, 10)
		return j.Script(ctx, j.Enter, vars)
	}
	vars["BASE"], vars["UPPER"] = j.Base.Root, j.Upper()
	if err := os.Mkdir(j.Upper(), 0o755); err != nil {
		return err
	}
	return j.Script(ctx, j.Enter, vars)
}

// Choose returns the requested builder, or the first that works on this machine, and the reason as a text for the user.
func Choose(o Options) (_ Builder, why string, err error) {
	var not []string
	for _, name := range Names {
		if o.Name != "" && o.Name != name {
			continue
		}
		by, err := o.builder(name)
		if err == nil {
			switch {
			case o.Name != "":
				why = "as requested"
			case name == "chroot":
				why = "root on Linux, with all required programs"
			default:
				why = strings.Join(not, "; ")
			}
			return by, fmt.Sprintf("%s (%s)", name, why), nil
		}
		if o.Name != "" {
			return nil, "", fmt.Errorf("builder %s: %w", name, err)
		}
		not = append(not, fmt.Sprintf("not %s: %v", name, err))
	}
	return nil, "", errors.New("no builder can be used here: " + strings.Join(not, "; "))
}

// builder returns a builder if it works on this machine.
func (o Options) builder(name string) (Builder, error) {
	if name == "chroot" {
		return chrootBuilder{}, cmp.Or(CheckTools(program.Path, o.Tools), checkMounting())
	}
	v := vmBuilder{hypervisor: &qemu{}, limit: cmp.Or(o.Limit, Limit)}
	if name == "virtualbox" {
		v.hypervisor = virtualBox{}
	}
	if o.Local {
		if err := cmp.Or(CheckTools(program.Path, o.Tools), checkMounting()); err != nil {
			return nil, err
		}
	}
	return v, v.check()
}

package virtualbox

import (
	"context"
	"fmt"
	"strings"
	"time"

	"imagegen/internal/vbox"
)

// busy tells whether the machine was on its way from one state to another.
func busy(err error) bool {
	return vbox.IsCode(err, "VBOX_E_INVALID_OBJECT_STATE") || vbox.IsCode(err, "VBOX_E_INVALID_VM_STATE") || vbox.IsCode(err, "is not currently running")
}

// change runs a VBoxManage that changes something. While a process of VirtualBox that is about to end has the machine, it is tried
// again.
func (p *Provider) change(ctx context.Context, args ...string) error {
	if err := p.step(); err != nil {
		return err
	}
	limit := time.Now().Add(30 * time.Second)
	for {
		_, err := vbox.Manage(ctx, args...)
		if !vbox.IsCode(err, "VBOX_E_INVALID_OBJECT_STATE") || time.Now().After(limit) {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// version is VirtualBox's.
type version struct{ major, minor int }

func (v version) less(major, minor int) bool {
	return v.major < major || v.major == major && v.minor < minor
}

func (p *Provider) version(ctx context.Context) (version, error) {
	out, err := vbox.Manage(ctx, "--version")
	if err != nil {
		return version{}, err
	}
	// Warnings may come before it.
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var v version
	if _, err := fmt.Sscanf(lines[len(lines)-1], "%d.%d", &v.major, &v.minor); err != nil {
		return v, fmt.Errorf("VBoxManage --version says %q, which is no version", lines[len(lines)-1])
	}
	return v, nil
}

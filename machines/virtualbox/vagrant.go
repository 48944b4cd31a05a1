package virtualbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"imagegen/machines"
)

// marker is there from before Vagrant removes a machine until it has made the next, so that the next is Vagrant's too.
func (p *Provider) marker(node string) string { return p.own("vagrant", node) }

func (p *Provider) throughVagrant(node string) bool {
	_, err := os.Stat(p.marker(node))
	return err == nil
}

func (p *Provider) vagrantDestroy(ctx context.Context, node string, vm *vm) error {
	if p.vagrantID(node) != vm.id {
		return fmt.Errorf("machine %s was made by Vagrant, but not in %s: run `vagrant destroy -f %s` beside the Vagrantfile that made it", p.name(node), p.dir, node)
	}
	if _, err := p.vagrantfile(node); err != nil {
		return err
	}
	if err := p.step(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.marker(node)), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(p.marker(node), nil, 0o600); err != nil {
		return err
	}
	return p.vagrant(ctx, "destroy", "-f", node)
}

func (p *Provider) vagrantfile(node string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(p.dir, "Vagrantfile"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("machine %s was made by Vagrant, but there is no Vagrantfile in %s: write it with imagegen build --format box", p.name(node), p.dir)
	}
	return text, err
}

// vagrantUp makes and starts a machine, and waits until its SSH server greets.
func (p *Provider) vagrantUp(ctx context.Context, m machines.Machine) error {
	text, err := p.vagrantfile(m.Node)
	if err != nil {
		return err
	}
	// The box's name, as package vagrant writes it.
	if box := fmt.Sprintf("%s/%s-%.12s", p.spec.Cluster, m.Role, m.Image.Identity); !bytes.Contains(text, []byte(`"`+box+`"`)) {
		return fmt.Errorf("the Vagrantfile in %s has an older image for %s: write it again with imagegen build --format box", p.dir, m.Node)
	}
	if err := p.vagrant(ctx, "up", "--provider", "virtualbox", m.Node); err != nil {
		return err
	}
	return p.delete(p.marker(m.Node))
}

// vagrant runs Vagrant beside the Vagrantfile.
func (p *Provider) vagrant(ctx context.Context, args ...string) error {
	if err := p.step(); err != nil {
		return err
	}
	path, err := exec.LookPath("vagrant")
	if err != nil {
		return fmt.Errorf("the machine was made by Vagrant, and there is no vagrant: install it, see https://www.vagrantup.com")
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, append([]string{"--no-color"}, args...)...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "VAGRANT_CWD="+p.dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	// Asked to end, Vagrant undoes what it has begun. Windows knows no such request.
	cmd.Cancel = func() error {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			return cmd.Process.Kill()
		}
		return nil
	}
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) { // VirtualBox's server may have the output, too
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		return fmt.Errorf("vagrant %s: %w: %s", strings.Join(args, " "), err, strings.Join(lines[max(0, len(lines)-6):], "\n"))
	}
	return nil
}

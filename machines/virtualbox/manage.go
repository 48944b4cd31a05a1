package virtualbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// manageError is what VBoxManage failed with.
type manageError struct {
	verb, said string
	err        error
}

func (e *manageError) Error() string {
	// The lines after the first say where in VirtualBox.
	for line := range strings.Lines(e.said) {
		if text, is := strings.CutPrefix(strings.TrimSpace(line), "VBoxManage: error: "); is {
			return fmt.Sprintf("VBoxManage %s: %s", e.verb, text)
		}
	}
	return fmt.Sprintf("VBoxManage %s: %v: %s", e.verb, e.err, strings.TrimSpace(e.said))
}

func (e *manageError) Unwrap() error { return e.err }

// isCode tells whether VirtualBox has named a code such as VBOX_E_OBJECT_NOT_FOUND.
func isCode(err error, code string) bool {
	var e *manageError
	return errors.As(err, &e) && strings.Contains(e.said, code)
}

// busy tells whether the machine was on its way from one state to another.
func busy(err error) bool {
	return isCode(err, "VBOX_E_INVALID_OBJECT_STATE") || isCode(err, "VBOX_E_INVALID_VM_STATE") || isCode(err, "is not currently running")
}

// program finds VBoxManage. VirtualBox's installer for Windows leaves PATH alone.
func program() (string, error) {
	path, err := exec.LookPath("VBoxManage")
	if err == nil {
		return path, nil
	}
	for _, variable := range []string{"VBOX_MSI_INSTALL_PATH", "VBOX_INSTALL_PATH"} {
		if dir := os.Getenv(variable); dir != "" {
			if path, err := exec.LookPath(filepath.Join(dir, "VBoxManage")); err == nil {
				return path, nil
			}
		}
	}
	return "", errors.New("there is no VBoxManage: install VirtualBox, see https://www.virtualbox.org")
}

// run runs VBoxManage and returns what it has printed.
func (p *Provider) run(ctx context.Context, args ...string) (string, error) {
	path, err := program()
	if err != nil {
		return "", err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, append([]string{"-q"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = time.Second // VirtualBox's server, which it may have started, has its output too
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return out.String(), &manageError{args[0], said.String() + out.String(), err}
	}
	return out.String(), nil
}

// change runs a VBoxManage that changes something. While a process of VirtualBox that is about to end has the machine, it is tried
// again.
func (p *Provider) change(ctx context.Context, args ...string) error {
	if err := p.step(); err != nil {
		return err
	}
	limit := time.Now().Add(30 * time.Second)
	for {
		_, err := p.run(ctx, args...)
		if !isCode(err, "VBOX_E_INVALID_OBJECT_STATE") || time.Now().After(limit) {
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
	out, err := p.run(ctx, "--version")
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

// Package vbox runs VBoxManage, the program that VirtualBox is driven with.
package vbox

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

// Error is what VBoxManage failed with.
type Error struct {
	verb, said string
	err        error
}

func (e *Error) Error() string {
	// The lines after the first say where in VirtualBox.
	for line := range strings.Lines(e.said) {
		if text, is := strings.CutPrefix(strings.TrimSpace(line), "VBoxManage: error: "); is {
			return fmt.Sprintf("VBoxManage %s: %s", e.verb, text)
		}
	}
	return fmt.Sprintf("VBoxManage %s: %v: %s", e.verb, e.err, strings.TrimSpace(e.said))
}

func (e *Error) Unwrap() error { return e.err }

// IsCode tells whether VirtualBox has named a code such as VBOX_E_OBJECT_NOT_FOUND.
func IsCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && strings.Contains(e.said, code)
}

// Program finds VBoxManage. VirtualBox's installer for Windows leaves PATH alone.
func Program() (string, error) {
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

// Manage runs VBoxManage and returns what it has printed.
func Manage(ctx context.Context, args ...string) (string, error) {
	path, err := Program()
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
		return out.String(), &Error{args[0], said.String() + out.String(), err}
	}
	return out.String(), nil
}

//go:build !linux

package lab

import (
	"context"
	"errors"
	"io"

	"imagegen/cluster"
	"imagegen/operate"
)

var errLinux = errors.New("the lab runs on Linux alone: it is made of Linux namespaces")

// Lab is one cluster on this machine, which must run Linux.
type Lab struct{}

func leftBehind(*cluster.Spec, string) bool { return false }

// Open fails.
func Open(Config) (*Lab, error) { return nil, errLinux }

// Up fails.
func (*Lab) Up(context.Context, []string, UpOptions) error { return errLinux }

// Site returns the empty string.
func (*Lab) Site() string { return "" }

// Start fails.
func (*Lab) Start(context.Context, ...string) error { return errLinux }

// Kill fails.
func (*Lab) Kill(context.Context, ...string) error { return errLinux }

// Replace fails.
func (*Lab) Replace(context.Context, string, bool) error { return errLinux }

// Current fails.
func (*Lab) Current(string) (bool, error) { return false, errLinux }

// CheckFiles fails.
func (*Lab) CheckFiles(...string) error { return errLinux }

// CheckReplace fails.
func (*Lab) CheckReplace(...string) error { return errLinux }

// CheckUp fails.
func (*Lab) CheckUp() error { return errLinux }

// Remove fails.
func (*Lab) Remove(context.Context, ...string) error { return errLinux }

// Cut fails.
func (*Lab) Cut(context.Context, []string, []string, bool) error { return errLinux }

// Mend fails.
func (*Lab) Mend(context.Context) error { return errLinux }

// Down fails.
func (*Lab) Down(context.Context) error { return errLinux }

// Known fails.
func (*Lab) Known(context.Context) ([]operate.Machine, error) { return nil, errLinux }

// Cluster returns nil.
func (*Lab) Cluster() *operate.Cluster { return nil }

// Console fails.
func (*Lab) Console(context.Context, io.Writer, string, bool) error { return errLinux }

// Exec fails.
func (*Lab) Exec(context.Context, string, []string, io.Reader, io.Writer, io.Writer) (int, error) {
	return 0, errLinux
}

//go:build !linux

package qemu

import "imagegen/machines/local"

// New returns nil: the tap devices and cgroups of the virtual machines take Linux.
func New(local.Config) *local.Provider { return nil }

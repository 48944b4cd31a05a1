//go:build !linux

package nspawn

import "imagegen/machines/local"

// New returns nil: containers take Linux.
func New(local.Config) *local.Provider { return nil }

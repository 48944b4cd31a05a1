//go:build !linux && !windows

package exec

import "syscall"

// endWithUs does nothing: only Linux tells a program that its parent has died.
func endWithUs(*syscall.SysProcAttr) {}

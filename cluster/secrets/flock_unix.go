//go:build unix

package secrets

import (
	"os"
	"syscall"
)

// flock waits until it has the lock of a file or folder, which closing it gives back.
func flock(f *os.File, exclusive bool) error {
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	return syscall.Flock(int(f.Fd()), how)
}

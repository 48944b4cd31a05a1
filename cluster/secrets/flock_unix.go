//go:build unix

package secrets

import (
	"os"
	"syscall"
)

// flock waits for the lock on a file or folder. Closing the file releases it.
func flock(f *os.File, exclusive bool) error {
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	return syscall.Flock(int(f.Fd()), how)
}

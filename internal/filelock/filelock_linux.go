package filelock

import (
	"context"
	"fmt"
	"os"
	"syscall"
)

// Lock creates a file if needed and locks it with flock(2). The lock ends with the process or when the file is closed. If it is held
// elsewhere, Lock waits, or returns EWOULDBLOCK with LOCK_NB.
func Lock(ctx context.Context, path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- syscall.Flock(int(f.Fd()), how) }()
	select {
	case err = <-locked:
	case <-ctx.Done():
		go func() {
			<-locked
			f.Close()
		}()
		return nil, ctx.Err()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

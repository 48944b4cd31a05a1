package filelock

import (
	"context"
	"fmt"
	"os"
	"syscall"
)

// Lock locks a file, which it makes, as flock(2) has it; the lock ends with the process or when the file is closed. If
// another has it, Lock waits for it, or returns EWOULDBLOCK with LOCK_NB.
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

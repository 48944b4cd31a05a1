// Package exclusive lets one process of this computer at a time do something, on every system that imagegen runs on.
package exclusive

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// ErrBusy is returned by Try while another process has the lock.
var ErrBusy = errors.New("locked by another process")

// pollEvery is how often a lock that is waited for is tried.
const pollEvery = 100 * time.Millisecond

// Try takes the lock of the file at path, which it makes. The lock ends with the process or with release. The file stays: removing it
// would let two processes have it.
func Try(path string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := try(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// Take is Try that waits, until ctx ends. busy is called once if there is something to wait for.
func Take(ctx context.Context, path string, busy func()) (release func(), err error) {
	release, err = Try(path)
	if !errors.Is(err, ErrBusy) {
		return release, err
	}
	busy()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		if release, err = Try(path); !errors.Is(err, ErrBusy) {
			return release, err
		}
	}
}

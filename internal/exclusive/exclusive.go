// Package exclusive locks files so that only one process on this computer does something at a time. It works on every system that imagegen
// runs on.
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

// pollEvery is the interval at which Take tries again.
const pollEvery = 100 * time.Millisecond

// Try locks the file at path, and creates it if needed. The lock ends with the process or with release. The file is not removed, since two
// processes could then hold locks on different files of that name.
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

// Take is Try, but waits until ctx ends. It calls busy once if it has to wait.
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

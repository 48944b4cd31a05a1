package agent

import (
	"context"
	"os"
	"time"
)

// systemd is the daemons of every real node.
type systemd struct{}

func (systemd) stop(ctx context.Context, name string) error {
	running.Lock()
	delete(running.units, name)
	running.Unlock()
	done := make(chan error, 1)
	go func() {
		_, err := run(ctx, nil, "systemctl", "stop", name)
		done <- err
	}()
	for {
		select {
		case err := <-done:
			if u, stateErr := unitState(ctx, name); stateErr == nil && u.Load == "not-found" {
				return nil
			}
			return err
		case <-time.After(pollUnready):
		}
		if _, err := unitState(ctx, name); err != nil {
			continue // the answer of stop counts
		}
		if why, killMode := overdue(name); why != "" {
			killHung(ctx, name, killMode) // if it fails, it is tried again
		}
	}
}

func (s systemd) reload(ctx context.Context, name string) error {
	running.Lock()
	delete(running.units, name)
	running.Unlock()
	u, err := unitState(ctx, name)
	if err != nil {
		return err
	}
	switch u.Active {
	case "active", "reloading":
		_, err := run(ctx, nil, "systemctl", "reload", name)
		return err
	case "activating", "deactivating": // it may have read the old files
		return s.stop(ctx, name)
	}
	return nil
}

func (systemd) reread(ctx context.Context) error {
	_, err := run(ctx, nil, "systemctl", "daemon-reload")
	return err
}

func (systemd) label(ctx context.Context, files []string) error {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil || len(files) == 0 {
		return nil // a kernel without SELinux, or one that has it off
	}
	_, err := run(ctx, nil, append([]string{"restorecon", "-F"}, files...)...)
	return err
}

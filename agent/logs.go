package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	logLimit = 8 << 20 // bytes of disk that a log file may take
	logKeep  = 4 << 20 // bytes from its end that are kept as FILE.1 when it takes more
	logPause = time.Minute
)

// logPlaces are the folders whose files are logs. The image's journald configuration limits the logs of what writes to the
// journal: nginx, HAProxy, keepalived, Redis, Sentinel and the agent.
var logPlaces = []string{
	"/var/log",                // GlusterFS, PHP-FPM, MariaDB, mysqld.log, cloud-init, rsyslog's on centos7
	"/var/opt/remi/*/log",     // PHP-FPM on centos7
	"/var/lib/proxysql/*.log", // beside ProxySQL's database
}

// logsLeftAlone must not be truncated: the journal and the audit trail limit themselves, and lastlog is a table with a row
// for each user.
var logsLeftAlone = []string{"journal", "audit", "lastlog", "faillog", "tallylog"}

// boundLogs keeps every log below root within its limit until ctx ends. Files are truncated in place: no daemon needs a
// signal, and no logrotate configuration is needed.
func boundLogs(ctx context.Context, root string) {
	for ctx.Err() == nil {
		if err := cutLogs(root); err != nil {
			log.Printf("logs: %v", printable(err.Error()))
		}
		select {
		case <-ctx.Done():
		case <-time.After(logPause):
		}
	}
}

// cutLogs cuts each log that is too large once.
func cutLogs(root string) error {
	var errs []error
	for _, place := range logPlaces {
		found, err := filepath.Glob(filepath.Join(root, place))
		errs = append(errs, err)
		for _, p := range found {
			errs = append(errs, cutBelow(p))
		}
	}
	return errors.Join(errs...)
}

// cutBelow cuts the logs of a folder, or one log. The folders belong to daemons, so nothing is followed out of them (os.Root).
func cutBelow(place string) error {
	dir, name := place, "."
	if fi, err := os.Lstat(place); err != nil || !fi.IsDir() {
		dir, name = filepath.Split(place)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var errs []error
	err = fs.WalkDir(root.FS(), name, func(p string, e fs.DirEntry, err error) error {
		if slices.Contains(logsLeftAlone, p) {
			if err == nil && e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if err == nil && e.Type().IsRegular() && !strings.HasSuffix(p, ".1") {
			err = cutLog(root, p)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a daemon may remove its own
			errs = append(errs, err)
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// cutLog truncates a log that takes more disk than it may, and keeps its end as FILE.1. Lines written between the copy and
// the truncation are lost.
func cutLog(root *os.Root, name string) error {
	f, err := root.OpenFile(name, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	// Disk usage, not length: a writer without O_APPEND leaves a hole where the truncated log was.
	if !fi.Mode().IsRegular() || st.Nlink > 1 || st.Blocks*512 <= logLimit {
		return nil
	}
	from := max(0, fi.Size()-logKeep)
	tmp := path.Join(path.Dir(name), ".imagegen-"+path.Base(name)+".1")
	if err := root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fi.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(f, from, fi.Size()-from))
	err = errors.Join(err, out.Chown(int(st.Uid), int(st.Gid)), out.Close())
	if err == nil {
		err = root.Rename(tmp, name+".1")
	}
	if err != nil {
		root.Remove(tmp)
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		// A full disk must not prevent the truncation.
	}
	return f.Truncate(0)
}

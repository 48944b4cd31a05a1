package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Daemons that keep their log files open write for a year: no log ever exceeds twice its limit, the latest lines are
// present, and the logs of the year need no more space than those of a day.
func TestLogsAreBoundedForAYear(t *testing.T) {
	root := t.TempDir()
	hourly := map[string]int{ // bytes
		"var/log/glusterfs/cli.log":                   54 << 10, // as measured: 0.9 kB a minute
		"var/log/glusterfs/bricks/data-brick-gv0.log": 4 << 10,
		"var/log/mysqld.log":                          8 << 10,
		"var/log/php8.2-fpm.log":                      4 << 10,
		"var/log/messages":                            16 << 10, // no name in .log
		"var/log/cloud-init.log":                      1 << 10,
		"var/opt/remi/php72/log/php-fpm/error.log":    4 << 10,
		"var/lib/proxysql/proxysql.log":               4 << 10,
	}
	files := map[string]*os.File{}
	for name := range hourly {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[name] = f
	}
	usage := func() (total int64) {
		filepath.Walk(root, func(_ string, fi os.FileInfo, _ error) error {
			if fi.Mode().IsRegular() {
				total += fi.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return nil
		})
		return total
	}
	const step = 12 // hours
	for hour := 0; hour < 365*24; hour += step {
		for name, n := range hourly {
			line := bytes.Repeat([]byte("x"), n*step)
			copy(line[len(line)-32:], fmt.Sprintf("\n%030d\n", hour))
			if _, err := files[name].Write(line); err != nil {
				t.Fatal(err)
			}
		}
		if err := cutLogs(root); err != nil {
			t.Fatal(err)
		}
		if got, most := usage(), int64(len(hourly))*2*logLimit; got > most {
			t.Fatalf("hour %d: the logs take %d bytes, more than %d", hour, got, most)
		}
	}
	for name := range hourly {
		now, _ := os.ReadFile(filepath.Join(root, name))
		before, _ := os.ReadFile(filepath.Join(root, name+".1"))
		all := append(before, now...)
		for _, hour := range []int{364*24 + 12, 364 * 24, 363*24 + 12} {
			if !bytes.Contains(all, fmt.Appendf(nil, "\n%030d\n", hour)) {
				t.Errorf("%s: nothing of hour %d is left", name, hour)
			}
		}
		if fi, err := os.Stat(filepath.Join(root, name+".1")); err == nil && fi.Mode().Perm() != 0o640 {
			t.Errorf("%s.1 has mode %o", name, fi.Mode().Perm())
		}
	}
	if fi, err := os.Stat(filepath.Join(root, "var/log/glusterfs/cli.log.1")); err != nil || fi.Size() < logKeep {
		t.Errorf("a log of 470 MB was never cut: %v", err)
	}
}

// Files that are limited otherwise, are not logs, or are outside the folder are not changed.
func TestLogsLeftAlone(t *testing.T) {
	root, outside := t.TempDir(), filepath.Join(t.TempDir(), "database")
	large := bytes.Repeat([]byte("x"), logLimit+1<<20)
	write := func(path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, large, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	logs := filepath.Join(root, "var/log")
	kept := []string{filepath.Join(logs, "journal/m/system.journal"), filepath.Join(logs, "audit/audit.log"), filepath.Join(logs, "lastlog"), filepath.Join(root, "var/lib/proxysql/proxysql.db"), outside}
	for _, path := range kept {
		write(path)
	}
	write(filepath.Join(logs, "redis/redis.log"))
	os.Symlink(outside, filepath.Join(logs, "redis/link.log"))
	os.Symlink(filepath.Dir(outside), filepath.Join(logs, "linked"))
	os.Link(outside, filepath.Join(logs, "redis/hard.log"))
	if err := cutLogs(root); err != nil {
		t.Error(err)
	}
	for _, path := range kept {
		if fi, err := os.Stat(path); err != nil || fi.Size() != int64(len(large)) {
			t.Errorf("%s was cut: %v", path, err)
		}
	}
	if fi, err := os.Stat(filepath.Join(logs, "redis/redis.log")); err != nil || fi.Size() != 0 {
		t.Errorf("a log that is too large was not cut: %v", err)
	}
}

package agent

import (
	"path/filepath"
	"syscall"
	"time"
)

// diskFault is why a file system takes no writes; empty: it does.
type diskFault string

const (
	diskFull   diskFault = "full"
	diskFrozen diskFault = "frozen"
)

const (
	// A database that is about to run out of space fails some writes and not others.
	spaceLimit = 8 << 20
	// A snapshot may freeze a file system for a second or two.
	frozenLimit = 3 * time.Second
)

// diskProbe watches a folder's file system without writing to it.
type diskProbe struct {
	answer chan error // of a call that has not been seen to return; nil: there is none
	began  time.Time
	full   bool
}

// look says what is wrong. It never blocks. A call that needs a file system which takes writes is made now, and has returned by the next
// look, or the file system is frozen.
func (p *diskProbe) look(dir string) diskFault {
	select {
	case <-p.answer: // never, if it is nil
		p.answer = nil
	default:
	}
	if p.answer == nil {
		p.began, p.answer = time.Now(), make(chan error, 1)
		go func(answer chan<- error) {
			// There is no such file. Before the kernel looks, it waits for a frozen file system.
			answer <- syscall.Unlink(filepath.Join(dir, ".imagegen-not-there"))
		}(p.answer)
	}
	if time.Since(p.began) >= frozenLimit {
		return diskFrozen
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return "" // whoever needs the folder says so
	}
	// With a margin, so that it does not change all the time.
	limit := uint64(spaceLimit)
	if p.full {
		limit *= 2
	}
	if p.full = fs.Bavail*uint64(fs.Bsize) < limit || fs.Files > 0 && fs.Ffree == 0; p.full {
		return diskFull
	}
	return ""
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
)

// siteWriter writes a tree below root, the folders at once, the files by a pool of workers.
type siteWriter struct {
	root    string
	pool    *workers
	without map[string][]byte // files of the source that are left out
}

func (w siteWriter) skips(name string) bool {
	_, ok := w.without[name]
	return ok
}

// dir makes a folder. It is there before anything in it is written.
func (w siteWriter) dir(name string) error {
	if name == "." {
		return nil
	}
	done := make(chan error, 1)
	if err := w.pool.do(func() error {
		err := os.Mkdir(filepath.Join(w.root, name), 0o755)
		done <- err
		return err
	}); err != nil {
		return err
	}
	return <-done
}

// file has a worker write a file.
func (w siteWriter) file(name string, mode fs.FileMode, r io.ReadCloser) error {
	err := w.pool.do(func() error {
		defer r.Close()
		f, err := os.OpenFile(filepath.Join(w.root, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, r); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	})
	if err != nil {
		r.Close()
	}
	return err
}

// folder copies a folder into the one called into. Packages put links to files of other packages into it; they are
// followed, and those that lead nowhere are left out.
func (w siteWriter) folder(source, into string) error {
	var walk func(name string, above []string) error
	walk = func(name string, above []string) error {
		path := filepath.Join(source, name)
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return err
		}
		if slices.Contains(above, real) {
			return fmt.Errorf("%s is inside itself", path)
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		if err := w.dir(filepath.Join(into, name)); err != nil {
			return err
		}
		for _, e := range entries {
			child := filepath.Join(name, e.Name())
			to := filepath.Join(into, child)
			info, err := os.Stat(filepath.Join(source, child))
			switch {
			case errors.Is(err, fs.ErrNotExist) || w.skips(to):
				continue
			case err != nil:
				return err
			case info.IsDir():
				if err := walk(child, append(above, real)); err != nil {
					return err
				}
			case info.Mode().IsRegular():
				f, err := os.Open(filepath.Join(source, child))
				if err != nil {
					return err
				}
				if err := w.file(to, 0o644, f); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return walk(".", nil)
}

// workers do file system work concurrently, with another user's identity if one is given: files belong to that user from the
// start, without a round trip to change the owner.
type workers struct {
	ctx    context.Context
	jobs   chan func() error
	wg     sync.WaitGroup
	done   atomic.Int64
	mu     sync.Mutex
	failed error
}

func newWorkers(ctx context.Context, n, uid, gid int) *workers {
	w := &workers{ctx: ctx, jobs: make(chan func() error)}
	for range n {
		w.wg.Go(func() {
			// The identity for file access is the thread's. It is never unlocked, so the thread ends with the goroutine.
			runtime.LockOSThread()
			syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(gid), 0, 0)
			syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(uid), 0, 0)
			for job := range w.jobs {
				if err := job(); err != nil {
					w.fail(err)
				}
				w.done.Add(1)
			}
		})
	}
	return w
}

func (w *workers) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		w.failed = err
	}
}

// do hands a job to a worker. It returns the first error of an earlier job, and then does not take this one.
func (w *workers) do(job func() error) error {
	w.mu.Lock()
	err := w.failed
	w.mu.Unlock()
	if err == nil {
		err = w.ctx.Err()
	}
	if err == nil {
		w.jobs <- job
	}
	return err
}

// wait ends the workers and returns the first error.
func (w *workers) wait() error {
	close(w.jobs)
	w.wg.Wait()
	return w.failed
}

package packages

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"imagegen/internal/sparse"
)

// Files that are not in packages, mostly bases, are downloaded with net/http. packer-plugin-sdk's StepDownload can
// resume too, but it links 25 MB of S3 and Google storage clients, ignores the context while it waits for its lock, and
// halts on a corrupt cached file instead of downloading it again.

// fetcher downloads files with a known SHA-256 into a folder, and resumes interrupted downloads.
type fetcher struct {
	dir    string
	client *http.Client
	pause  time.Duration // after the first failure; doubled after each further one
	stall  time.Duration // maximum time without a byte
	tries  int           // maximum number of failures in a row without progress
	say    func(what string)
}

// fetchTries is the default of tries.
const fetchTries = 4

func newFetcher(dir string, say func(string)) *fetcher {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = time.Minute
	transport.DisableCompression = true // the hash is that of the file as stored
	return &fetcher{dir: dir, client: &http.Client{Transport: transport}, pause: time.Second, stall: time.Minute, tries: fetchTries, say: say}
}

// fetch returns the path of the file with a SHA-256. It downloads the file from the given address if it is not in the
// folder.
func (f *fetcher) fetch(ctx context.Context, from, sum string) (string, error) {
	path := filepath.Join(f.dir, sum)
	switch err := sparse.HasSum(ctx, path, sum); {
	case err == nil:
		return path, nil
	case errors.Is(err, fs.ErrNotExist):
	case errors.As(err, new(sparse.WrongSum)): // damaged or modified
		if err := os.Remove(path); err != nil {
			return "", err
		}
	default:
		return "", err
	}
	part := path + ".part"
	// The partial file may be from another version of the file at this address. If its hash is wrong, start over once.
	_, err := os.Stat(part)
	resumed := err == nil
	for {
		if err := f.download(ctx, from, part); err != nil {
			return "", fmt.Errorf("%s: %w", from, err)
		}
		err := sparse.HasSum(ctx, part, sum)
		if err == nil {
			break
		}
		if rmErr := os.Remove(part); rmErr != nil || !errors.As(err, new(sparse.WrongSum)) {
			return "", errors.Join(err, rmErr)
		}
		if !resumed {
			return "", fmt.Errorf("%s: %w", from, err)
		}
		resumed = false
	}
	file, err := os.Open(part)
	if err != nil {
		return "", err
	}
	if err := errors.Join(file.Chmod(0o444), sparse.Flush(ctx, file), file.Close()); err != nil {
		return "", err
	}
	return path, os.Rename(part, path)
}

// refused is an error that a retry would not fix.
type refused string

func (r refused) Error() string { return string(r) }

// download completes the file at part. It retries as long as there is progress.
func (f *fetcher) download(ctx context.Context, from, part string) error {
	pause, failures := f.pause, 0
	for {
		before := size(part)
		err := f.attempt(ctx, from, part)
		switch {
		case err == nil || ctx.Err() != nil:
			return cmp.Or(ctx.Err(), err)
		case errors.As(err, new(refused)), isGone(err):
			return err
		case size(part) > before:
			pause, failures = f.pause, 0
		}
		if failures++; failures >= f.tries {
			return err
		}
		f.say(fmt.Sprintf("retry after: %v", err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			pause *= 2
		}
	}
}

// isGone reports whether the host does not exist.
func isGone(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// attempt requests the missing part of the file at part once.
func (f *fetcher) attempt(ctx context.Context, from, part string) (err error) {
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return refused(err.Error())
	}
	file, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return refused(err.Error())
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	have, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	dead := time.AfterFunc(f.stall, func() { cut(fmt.Errorf("no data for %v", f.stall)) })
	defer dead.Stop()
	resp, err := f.client.Do(req)
	if err != nil {
		var told *url.Error // its text repeats the address
		if errors.As(err, &told) {
			err = told.Err
		}
		return cmp.Or(stalled(ctx), err)
	}
	defer resp.Body.Close()
	total := have + resp.ContentLength
	switch {
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have)):
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent:
		// The server sends the whole file, or a different range.
		have, total = 0, resp.ContentLength
		if err := file.Truncate(0); err != nil {
			return err
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if resp.StatusCode == http.StatusPartialContent {
			return fmt.Errorf("the server sent %s instead of what was requested", resp.Header.Get("Content-Range"))
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && have > 0:
		if resp.Header.Get("Content-Range") == fmt.Sprintf("bytes */%d", have) {
			return nil // already complete
		}
		return errors.Join(errors.New("the file on the server is shorter than the part that was downloaded earlier"), file.Truncate(0))
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusRequestTimeout:
		return fmt.Errorf("the server answered %s", resp.Status)
	default:
		return refused("the server answered " + resp.Status)
	}
	buf := make([]byte, 1<<20)
	shown := time.Now()
	for {
		n, err := resp.Body.Read(buf)
		if _, err := file.Write(buf[:n]); err != nil {
			return refused(err.Error())
		}
		have += int64(n)
		dead.Reset(f.stall)
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF) && resp.ContentLength >= 0:
			return fmt.Errorf("the connection ended after %d of %d bytes", have, total)
		case err != nil:
			return cmp.Or(stalled(ctx), err)
		}
		if time.Since(shown) > time.Second && resp.ContentLength > 0 {
			shown = time.Now()
			f.say(fmt.Sprintf("download, %d of %d MiB", have>>20, total>>20))
		}
	}
}

// stalled returns the reason why an attempt was cut off, or nil.
func stalled(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

package packages

import (
	"context"
	"syscall"

	"imagegen/internal/filelock"
)

// Fetch brings a file from outside any package into the store. What is there is looked at: a corrupt file is got anew.
func (s Store) Fetch(ctx context.Context, url, sum string, step func(string)) error {
	lock, err := filelock.Lock(ctx, s.Path(sum)+".lock", syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	step("fetch " + url)
	_, err = newFetcher(string(s), step).fetch(ctx, url, sum)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

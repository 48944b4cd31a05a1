package packages

import (
	"context"
	"syscall"

	"imagegen/internal/filelock"
)

// Fetch downloads a file into the store. If the store's copy is damaged, it is downloaded again.
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

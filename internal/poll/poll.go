// Package poll waits for conditions that nothing announces.
package poll

import (
	"context"
	"time"
)

// every is short: what is waited for is usually done within milliseconds.
const every = 5 * time.Millisecond

// Until calls done until it returns true, or ctx ends; then Until returns false.
func Until(ctx context.Context, done func() bool) bool {
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(every):
		}
	}
	return true
}

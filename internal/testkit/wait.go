package testkit

import (
	"testing"
	"time"
)

// waitPause is the time between two checks.
const waitPause = 50 * time.Millisecond

// Eventually calls check until it returns no error, and returns how long that took. After limit, the test ends with check's last
// error. Choose a limit that a busy machine keeps: a test that passes does not wait for it.
func Eventually(t testing.TB, limit time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	for start := time.Now(); ; time.Sleep(waitPause) {
		err := check()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
	}
}

// Until is [Eventually] for a condition.
func Until(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	for start := time.Now(); !holds(); time.Sleep(waitPause) {
		if time.Since(start) > limit {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

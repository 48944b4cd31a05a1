package agent

import (
	"context"
	"time"
)

// clock is the time that an agent goes by. The simulator has one of its own.
type clock interface {
	Now() time.Time
	// Sleep returns after d, or when ctx ends.
	Sleep(ctx context.Context, d time.Duration)
	// Limit is context.WithTimeout.
	Limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc)
}

// systemClock is the clock of every real agent.
type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// Sleep ends together with all others of the same length: waking up the process costs as much as what a loop then does.
func (systemClock) Sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(together(time.Since(began), d)):
	}
}

// began is the beginning of the second, by the wall clock, in which the process started. So the agents of nodes whose clocks agree wake up at
// the same time, and are awake when their peers ask.
var began = func() time.Time {
	t := time.Now()
	return t.Add(-time.Duration(t.Nanosecond()))
}()

// together returns the time that is left until a multiple of d: the first one that is more than d/2 after now.
func together(now, d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	past := (now + d/2) % d
	if past < 0 {
		past += d
	}
	return d + d/2 - past
}

func (systemClock) Limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

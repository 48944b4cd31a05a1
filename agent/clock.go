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

func (systemClock) Sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (systemClock) Limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

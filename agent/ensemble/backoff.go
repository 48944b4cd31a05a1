package ensemble

import (
	"fmt"
	"time"

	"imagegen/cluster/facts"
)

// MaxPause is the longest pause between two attempts.
const MaxPause = 30 * time.Second

// Backoff spaces out repeated attempts: 1 s after the first, then twice as long each time, up to MaxPause.
type Backoff struct {
	pause time.Duration
	until time.Time
}

// Next records an attempt.
func (b *Backoff) Next(now time.Time) {
	b.pause = min(max(time.Second, 2*b.pause), MaxPause)
	b.until = now.Add(b.pause)
}

// Reset forgets all attempts.
func (b *Backoff) Reset() { *b = Backoff{} }

// Settle forgets the attempts once MaxPause has passed since the last one was allowed. It waits because a daemon that dies
// soon after every start is not healthy.
func (b *Backoff) Settle(now time.Time) {
	if b.pause > 0 && now.Sub(b.until) > MaxPause {
		b.Reset()
	}
}

// Left returns how long the next attempt must wait.
func (b *Backoff) Left(now time.Time) time.Duration { return max(0, b.until.Sub(now)) }

// Held is the status of a component that has failed and waits for its next attempt, a "start" or a "try".
func Held(failure, attempt string, left time.Duration) facts.Status {
	return facts.Status{State: facts.Failed, Detail: fmt.Sprintf("%s; next %s in %d s", failure, attempt, Seconds(left))}
}

// Seconds rounds up, so that the last second counts down to 1.
func Seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

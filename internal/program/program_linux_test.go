package program

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestOutput: a program that fails says why, and one that was stopped with its context is an interruption, not a failure.
func TestOutput(t *testing.T) {
	t.Parallel()
	if out, err := Output(t.Context(), "sh", "-c", "echo said; echo aside >&2"); err != nil || string(out) != "said\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := Output(t.Context(), "sh", "-c", "echo no such package >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "sh: exit status 3: no such package") {
		t.Errorf("failed: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Output(ctx, "sleep", "60"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stopped while it ran: %v", err)
	}
}

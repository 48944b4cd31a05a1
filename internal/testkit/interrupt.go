package testkit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// asked is a context that ends when it has been asked often enough whether it has, so that work can be interrupted at
// each of the places where it can be.
type asked struct {
	context.Context
	times, limit atomic.Int64
}

func (a *asked) Err() error {
	if a.times.Add(1) > a.limit.Load() {
		return context.Canceled
	}
	return nil
}

// Interrupt makes sure that work which writes the file out ends with its context, does not ask only at the beginning, and leaves
// nothing.
func Interrupt(t *testing.T, out string, do func(context.Context) error) {
	t.Helper()
	run := func(limit int64) (int64, error) {
		defer os.Remove(out)
		ctx := &asked{Context: t.Context()}
		ctx.limit.Store(limit)
		err := do(ctx)
		return ctx.times.Load(), err
	}
	times, err := run(1 << 40)
	if err != nil {
		t.Fatal(err)
	}
	if times < 4 {
		t.Fatalf("it asks %d times whether it is still wanted", times)
	}
	for _, limit := range []int64{0, 1, times / 2, times - 1} {
		if _, err := run(limit); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted at %d of %d: %v", limit, times, err)
		}
	}
	if left, _ := filepath.Glob(out + "*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

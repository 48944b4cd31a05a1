package exclusive

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
)

func TestOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dist", "lock")
	release, err := Try(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Try(path); !errors.Is(err, ErrBusy) {
		t.Errorf("a lock that is taken: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Take(ctx, path, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting was not ended: %v", err)
	}
	waited := false
	again, err := Take(t.Context(), path, func() { waited = true; release() })
	if err != nil || !waited {
		t.Fatalf("%v, waited: %t", err, waited)
	}
	again()
	free, err := Take(t.Context(), path, func() { t.Error("nobody has the lock") })
	if err != nil {
		t.Fatal(err)
	}
	free()
}

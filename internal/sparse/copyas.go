package sparse

import (
	"context"
	"fmt"
)

// CopyAs copies a file, and returns an error if its SHA-256 is not sum.
func CopyAs(ctx context.Context, from, to, sum string) error {
	if err := Copy(ctx, from, to); err != nil {
		return err
	}
	got, err := SHA256(ctx, to)
	if err == nil && got != sum {
		err = fmt.Errorf("%s has changed since the build began; build again", from)
	}
	return err
}

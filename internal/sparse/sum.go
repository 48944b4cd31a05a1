package sparse

import (
	"context"
	"fmt"
)

// WrongSum is the error for a file with another hash than expected.
type WrongSum struct{ got, want string }

func (w WrongSum) Error() string {
	return fmt.Sprintf("its SHA-256 is %s and should be %s", w.got, w.want)
}

// HasSum returns nil if the file has this SHA-256, and WrongSum if it has another.
func HasSum(ctx context.Context, path, sum string) error {
	got, err := SHA256(ctx, path)
	if err == nil && got != sum {
		err = WrongSum{got, sum}
	}
	return err
}

package sparse

import (
	"context"
	"fmt"
)

// WrongSum is the error of a file that is not what it should be.
type WrongSum struct{ got, want string }

func (w WrongSum) Error() string {
	return fmt.Sprintf("its SHA-256 is %s and should be %s", w.got, w.want)
}

func HasSum(ctx context.Context, path, sum string) error {
	got, err := SHA256(ctx, path)
	if err == nil && got != sum {
		err = WrongSum{got, sum}
	}
	return err
}

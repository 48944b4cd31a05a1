//go:build !linux

package program

import (
	"context"
	"os/exec"
)

// Command prepares a program that ends with ctx.
func Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, program, args...)
}

//go:build !linux

package program

import (
	"context"
	"os/exec"
)

// Command returns a command that is killed with ctx.
func Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, program, args...)
}

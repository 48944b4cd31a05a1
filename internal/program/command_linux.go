package program

import (
	"context"
	"os/exec"
	"syscall"
	"time"
)

// Command prepares a program that ends with ctx, with all that it has started: APT's methods, say, would hold its output open.
// A Ctrl-C is for imagegen, which ends the program.
func Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

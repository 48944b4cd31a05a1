package program

import (
	"context"
	"os/exec"
	"syscall"
	"time"
)

// Command returns a command that is killed with ctx, together with the processes it has started: APT's methods, for example, would keep
// its output open. Ctrl-C reaches only imagegen, which then kills the program.
func Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// sqlClient is the command-line client of a database server, kept running between questions: starting it takes far more CPU time than
// a question does.
type sqlClient struct {
	argv []string

	cmd   *exec.Cmd // nil: it does not run
	in    *os.File
	out   *os.File
	lines *bufio.Reader // of out
	errs  bytes.Buffer
	made  time.Time
	asked int
}

// ask has the client execute statements, each on lines of its own, and returns the rows that it prints. The client ends at the first error.
func (c *sqlClient) ask(ctx context.Context, statements string) ([]byte, error) {
	if c.cmd != nil && time.Since(c.made) > keepLimit {
		c.close()
	}
	kept := c.cmd != nil
	rows, err := c.execute(ctx, statements)
	if err != nil && kept && ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		rows, err = c.execute(ctx, statements) // the server may have been started anew
	}
	return rows, err
}

func (c *sqlClient) execute(ctx context.Context, statements string) ([]byte, error) {
	if c.cmd == nil {
		if err := c.start(); err != nil {
			return nil, err
		}
	}
	rows, err := c.exchange(ctx, statements)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", c.argv[0], err, c.close())
	}
	return rows, nil
}

func (c *sqlClient) start() error {
	stdin, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		in.Close()
		return err
	}
	defer stdout.Close()
	cmd := exec.Command(c.argv[0], append(c.argv[1:len(c.argv):len(c.argv)], "--unbuffered")...) // else it prints nothing before its end
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	c.errs.Reset()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, &c.errs
	if err := cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return err
	}
	c.cmd, c.in, c.out, c.lines, c.made = cmd, in, out, bufio.NewReader(out), time.Now()
	return nil
}

// exchange sends statements and reads what they print, up to a row that marks the end.
func (c *sqlClient) exchange(ctx context.Context, statements string) ([]byte, error) {
	deadline, _ := ctx.Deadline() // zero: none
	if err := errors.Join(c.in.SetWriteDeadline(deadline), c.out.SetReadDeadline(deadline)); err != nil {
		return nil, err
	}
	c.asked++
	end := fmt.Sprintf("end of question %d\n", c.asked)
	if _, err := fmt.Fprintf(c.in, "%sSELECT '%s';\n", statements, strings.TrimSpace(end)); err != nil {
		return nil, err
	}
	var rows []byte
	for len(rows) <= maxBulk {
		line, err := c.lines.ReadString('\n')
		if err != nil {
			return nil, err
		}
		if line == end {
			return rows, nil
		}
		rows = append(rows, line...)
	}
	return nil, fmt.Errorf("it prints more than %d bytes", maxBulk)
}

// close ends the client and returns the last line that it wrote to standard error.
func (c *sqlClient) close() string {
	if c.cmd == nil {
		return ""
	}
	c.in.Close()
	c.out.Close()
	syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // fails if it has ended
	c.cmd.Wait()
	c.cmd = nil
	lines := strings.Split(strings.TrimSpace(c.errs.String()), "\n")
	return lines[len(lines)-1]
}

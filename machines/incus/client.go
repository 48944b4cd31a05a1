package incus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// client runs the incus program, which knows the servers and has the user's certificate.
type client struct {
	program string
	project string
	env     []string // nil: this process's
}

// killedWithin is how long to wait for the output of a killed program to be closed.
const killedWithin = time.Second

func (c *client) command(ctx context.Context, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	cmd = exec.CommandContext(ctx, c.program, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay, cmd.Env = stdout, stderr, killedWithin, c.env
	return cmd, stdout, stderr
}

// failed is what the program said, without its prefix.
func failed(ctx context.Context, err error, stderr []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	text := strings.TrimSpace(string(stderr))
	if i := strings.LastIndex(text, "Error: "); i >= 0 {
		text = text[i+len("Error: "):]
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && text != "" {
		return errors.New(strings.Join(strings.Fields(text), " "))
	}
	return fmt.Errorf("incus: %w", err)
}

// run runs a command of the program with input, and returns what it printed.
func (c *client) run(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	cmd, stdout, stderr := c.command(ctx, args...)
	cmd.Stdin = bytes.NewReader(input)
	if err := cmd.Run(); err != nil {
		return nil, failed(ctx, err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

// query asks the API, waits for the operation if there is one, and decodes the answer into out unless that is nil. in, unless
// nil, becomes an argument of a process: it must hold no secret.
func (c *client) query(ctx context.Context, method, path string, in, out any) error {
	args := []string{"query", "--request", method, "--wait", path}
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		args = append(args, "--data", string(data))
	}
	answer, err := c.run(ctx, nil, args...)
	if err != nil {
		return err
	}
	var op struct {
		Class      string `json:"class"`
		StatusCode int    `json:"status_code"`
		Err        string `json:"err"`
	}
	if json.Unmarshal(answer, &op) == nil && op.Class == "task" && (op.StatusCode >= 400 || op.Err != "") {
		return errors.New(op.Err)
	}
	if out == nil || len(bytes.TrimSpace(answer)) == 0 { // an empty map is not printed
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("the answer of incus to %s %s: %w", method, path, err)
	}
	return nil
}

// path returns the API's path of a thing in the cluster's project.
func (c *client) path(params url.Values, elements ...string) string {
	if params == nil {
		params = url.Values{}
	}
	params.Set("project", c.project)
	p := "/1.0"
	for _, e := range elements {
		p += "/" + url.PathEscape(e)
	}
	return p + "?" + params.Encode()
}

// importImage imports the image that write produces, with one property. If this process dies meanwhile, the server may take the
// part that it has received for a whole image.
func (c *client) importImage(ctx context.Context, property string, write func(io.Writer) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	cmd, _, stderr := c.command(ctx, "image", "import", "/dev/fd/3", "--project", c.project, property)
	cmd.ExtraFiles = []*os.File{out}
	err = cmd.Start()
	out.Close()
	if err != nil {
		return err
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		err := write(in)
		if err == nil {
			err = in.Close()
		}
		if err != nil && !errors.Is(err, syscall.EPIPE) { // the reader reports its own error
			cancel(err) // before the pipe is closed: a part must not look like a whole image
		}
	}()
	err = cmd.Wait()
	in.Close()
	<-written
	if err != nil {
		return failed(ctx, err, stderr.Bytes())
	}
	return context.Cause(ctx)
}

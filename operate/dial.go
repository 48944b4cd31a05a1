package operate

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// untrusted is a failed TLS handshake: something answers, but one side rejects the other's certificate.
type untrusted struct{ error }

// explain rewords connection errors for people and returns all others unchanged.
func explain(err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var alert tls.AlertError
	var op *net.OpError
	switch {
	case errors.As(err, &unknown):
		return untrusted{errors.New("what answers there is no node of this cluster: its certificate is not signed by the authority in ca.crt")}
	case errors.As(err, &name):
		return untrusted{errors.New("something else answers there: its certificate is not the node's")}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return untrusted{errors.New("the node's certificate has expired, or this computer's clock is wrong")}
	case errors.As(err, &alert), errors.As(err, &op) && op.Op == "remote error":
		return untrusted{errors.New("the agent refuses the operator's certificate: it is of another cluster, or has expired by the node's clock")}
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused: no agent runs there")
	case errors.As(err, &op) && op.Op == "dial":
		return op.Err // without the address, which the caller knows
	}
	return err
}

// ViaLimit is the timeout of a request through SSH, where connecting is slow. ViaAtOnce limits concurrent SSH connections: OpenSSH's
// default MaxStartups drops more than 10.
const (
	ViaLimit  = 15 * time.Second
	ViaAtOnce = 8
)

// Via returns a Dial that connects through an SSH server with the program ssh, using the user's configuration and keys. It never
// prompts.
func Via(host string) (Dial, error) {
	if host == "" || strings.HasPrefix(host, "-") {
		return nil, fmt.Errorf("%q is not the name of a host", host)
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return nil, fmt.Errorf("--via needs the program ssh, which this computer lacks (Debian: apt-get install openssh-client): %w", err)
	}
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		cmd := exec.Command(ssh, sshArgs(host, address)...)
		c := &sshConn{cmd: cmd, host: host, address: address}
		if c.in, err = cmd.StdinPipe(); err != nil {
			return nil, err
		}
		if c.out, err = cmd.StdoutPipe(); err != nil {
			return nil, err
		}
		cmd.Stderr = &c.said
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("ssh: %w", err)
		}
		return c, nil
	}, nil
}

func sshArgs(host, address string) []string {
	return []string{"-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-W", address, "--", host}
}

// sshConn is a connection over the standard input and output of a running ssh.
type sshConn struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     io.ReadCloser
	host    string
	address string
	said    bytes.Buffer // standard error; read after the end only
	closing sync.Once
	ended   error
}

func (c *sshConn) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	if err != nil && n == 0 {
		if ended := c.end(); ended != nil {
			return 0, ended
		}
		return 0, io.EOF
	}
	return n, nil
}

func (c *sshConn) Write(p []byte) (int, error) {
	n, err := c.in.Write(p)
	if err != nil {
		if ended := c.end(); ended != nil {
			err = ended
		}
	}
	return n, err
}

// end waits for ssh to exit and returns its error, unless we closed the connection.
func (c *sshConn) end() error {
	c.closing.Do(func() {
		c.in.Close()
		if err := c.cmd.Wait(); err != nil {
			lines := strings.Split(strings.TrimSpace(c.said.String()), "\n")
			c.ended = fmt.Errorf("ssh %s: %s", c.host, cmp.Or(strings.TrimSpace(lines[len(lines)-1]), err.Error()))
		}
	})
	return c.ended
}

func (c *sshConn) Close() error {
	c.cmd.Process.Kill() // fails when it has ended
	c.end()
	return nil
}

func (c *sshConn) LocalAddr() net.Addr  { return sshAddr("ssh") }
func (c *sshConn) RemoteAddr() net.Addr { return sshAddr(c.address) }

// Deadlines are not supported; requests end by closing the connection.
func (c *sshConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *sshConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *sshConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type sshAddr string

func (sshAddr) Network() string  { return "ssh" }
func (a sshAddr) String() string { return string(a) }

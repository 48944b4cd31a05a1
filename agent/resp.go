package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	maxBulk  = 1 << 20 // bytes; what is asked here is far shorter
	maxArray = 1 << 10
	maxDepth = 4
)

// redisError is an answer with which Redis or Sentinel refuses a command.
type redisError string

func (e redisError) Error() string { return string(e) }

// respServer is a Redis or a Sentinel.
type respServer struct {
	addr     string
	tls      *tls.Config // nil: plain text
	password string
}

// respServer returns the server of this node that listens on a port.
func (n Node) respServer(port int, encrypted bool, secret string) respServer {
	s := respServer{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), password: n.Secrets[secret]}
	if encrypted {
		s.tls = n.Identity.client(n.Facts.Node.Name)
	}
	return s
}

// errTLS is the error of a server with which TLS fails for good.
var errTLS = errors.New("no TLS")

// distrusted tells whether TLS failed for a reason that retrying does not change.
func distrusted(err error) bool {
	var certificate *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var op *net.OpError // how package tls reports the other side's alert
	return errors.As(err, &certificate) || errors.As(err, &header) || errors.As(err, &op) && op.Op == "remote error"
}

// ask authenticates at a Redis or Sentinel and sends it commands, one after the other, in the RESP protocol
// (https://redis.io/docs/latest/develop/reference/protocol-spec/). An answer is a string, an int64, a redisError, nil,
// or a []any of these. An error means that there are not as many answers as commands.
func (s respServer) ask(ctx context.Context, commands ...[]string) ([]any, error) {
	c, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	answers, err := c.exchange(ctx, commands)
	return answers, s.fault(err)
}

// fault marks the errors of a server with which TLS fails for good.
func (s respServer) fault(err error) error {
	if s.tls != nil && distrusted(err) {
		return fmt.Errorf("%w with %s: %w", errTLS, s.addr, err)
	}
	return err
}

// respConn is a connection to a respServer, after authentication.
type respConn struct {
	conn net.Conn
	r    *bufio.Reader
	made time.Time
}

func (s respServer) connect(ctx context.Context) (*respConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	if s.tls != nil {
		conn = tls.Client(conn, s.tls) // shakes hands with the first command
	}
	c := &respConn{conn, bufio.NewReader(conn), time.Now()}
	if s.password == "" {
		return c, nil
	}
	answers, err := c.exchange(ctx, [][]string{{"AUTH", s.password}})
	if err == nil {
		if refused, ok := answers[0].(redisError); ok {
			err = fmt.Errorf("%s refuses the password: %w", s.addr, refused)
		}
	}
	if err != nil {
		conn.Close()
		return nil, s.fault(err)
	}
	return c, nil
}

// exchange sends commands and reads their answers. After an error, the connection is of no more use.
func (c *respConn) exchange(ctx context.Context, commands [][]string) ([]any, error) {
	deadline, _ := ctx.Deadline() // zero: none
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	var all []byte
	for _, words := range commands {
		all = append(all, encodeCommand(words)...)
	}
	if _, err := c.conn.Write(all); err != nil {
		return nil, err
	}
	answers := make([]any, 0, len(commands))
	for range commands {
		answer, err := readRESP(c.r, 0)
		if err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

// keptServer is a respServer that is asked again and again, over one connection: setting up another each time takes both sides
// some milliseconds of CPU, most of it for TLS.
type keptServer struct {
	respServer
	conn *respConn // nil: none
}

// keepLimit is how long a connection is kept: it would hide that the server takes no new ones.
const keepLimit = time.Minute

func (s *keptServer) ask(ctx context.Context, commands ...[]string) ([]any, error) {
	if s.conn != nil && time.Since(s.conn.made) > keepLimit {
		s.close()
	}
	if s.conn != nil {
		answers, err := s.conn.exchange(ctx, commands)
		if err == nil {
			return answers, nil
		}
		s.close()
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
		// The server may have been started anew, or has closed the connection, as Sentinel has it do when it changes the server's role.
	}
	c, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	answers, err := c.exchange(ctx, commands)
	if err != nil {
		c.conn.Close()
		return nil, s.fault(err)
	}
	s.conn = c
	return answers, nil
}

func (s *keptServer) close() {
	if s.conn != nil {
		s.conn.conn.Close()
		s.conn = nil
	}
}

func encodeCommand(words []string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	return []byte(b.String())
}

// readRESP reads one answer of RESP version 2.
func readRESP(r *bufio.Reader, depth int) (any, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	text := strings.TrimRight(string(line), "\r\n")
	if text == "" {
		return nil, errors.New("empty answer")
	}
	kind, text := text[0], text[1:]
	switch kind {
	case '+':
		return text, nil
	case '-':
		return redisError(text), nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("answer %q", string(kind)+text)
	}
	switch {
	case kind == ':':
		return n, nil
	case n == -1 && (kind == '$' || kind == '*'):
		return nil, nil
	case kind == '$' && n >= 0 && n <= maxBulk:
		data := make([]byte, n+2)
		if _, err := io.ReadFull(r, data); err != nil {
			return nil, err
		}
		return string(data[:n]), nil
	case kind == '*' && n >= 0 && n <= maxArray && depth < maxDepth:
		list := make([]any, 0, n)
		for range n {
			v, err := readRESP(r, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	}
	return nil, fmt.Errorf("answer %q", string(kind)+text)
}

// pairs makes a map of an answer that lists names and values in turn.
func pairs(answer any) map[string]string {
	list, _ := answer.([]any)
	m := map[string]string{}
	for i := 0; i+1 < len(list); i += 2 {
		k, _ := list[i].(string)
		v, _ := list[i+1].(string)
		m[k] = v
	}
	return m
}

// infoFields reads the answer to INFO.
func infoFields(answer any) map[string]string {
	text, _ := answer.(string)
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			m[k] = v
		}
	}
	return m
}

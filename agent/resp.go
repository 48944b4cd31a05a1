package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
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
	answers, err := s.exchange(ctx, commands)
	if s.tls != nil && distrusted(err) {
		return nil, fmt.Errorf("%w with %s: %w", errTLS, s.addr, err)
	}
	return answers, err
}

func (s respServer) exchange(ctx context.Context, commands [][]string) ([]any, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	if s.tls != nil {
		conn = tls.Client(conn, s.tls) // shakes hands with the first command
	}
	r := bufio.NewReader(conn)
	if s.password != "" {
		if _, err := conn.Write(encodeCommand([]string{"AUTH", s.password})); err != nil {
			return nil, err
		}
		answer, err := readRESP(r, 0)
		if err != nil {
			return nil, err
		}
		if refused, ok := answer.(redisError); ok {
			return nil, fmt.Errorf("%s refuses the password: %w", s.addr, refused)
		}
	}
	var answers []any
	for _, c := range commands {
		if _, err := conn.Write(encodeCommand(c)); err != nil {
			return nil, err
		}
		answer, err := readRESP(r, 0)
		if err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	return answers, nil
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

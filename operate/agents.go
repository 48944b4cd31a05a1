// Package operate is the client of a cluster's agents: it reads and awaits their state, forwards decisions, and knows in which order
// nodes may be replaced.
//
// It needs the spec, the authority's certificate and the operator's. It knows nothing about machines: power, host, console and
// replacement are behind [Machines].
package operate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
)

// AnswerLimit is the timeout of a request to an agent.
const AnswerLimit = 2 * time.Second

// maxReport limits the size of an agent's answer, in bytes.
const maxReport = 1 << 20

// Dial connects to an agent, like [net.Dialer.DialContext].
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Agents sends requests to a cluster's agents, with the operator's certificate.
type Agents struct {
	// Limit is the timeout of a request.
	Limit time.Duration
	// AtOnce limits the number of concurrent requests; 0: no limit.
	AtOnce int

	clusterID string
	operator  tls.Certificate
	ca        *x509.CertPool
	authority *x509.Certificate
	unable    error // why requests are impossible; nil: they are not
	dial      Dial

	once  sync.Once
	turns chan struct{}
}

// NewAgents returns the agents of the cluster that s belongs to. Without the operator's certificate, every request fails.
func NewAgents(s *secrets.Secrets, dial Dial) (*Agents, error) {
	if s.Operator.Cert == nil || s.CA.Cert == nil {
		return &Agents{Limit: AnswerLimit, unable: errors.New("the cluster's secrets, by which its agents know the operator, are not here")}, nil
	}
	cert, err := tls.X509KeyPair(s.Operator.Cert, s.Operator.Key)
	if err != nil {
		return nil, fmt.Errorf("the operator's certificate: %w", err)
	}
	ca := x509.NewCertPool()
	if !ca.AppendCertsFromPEM(s.CA.Cert) {
		return nil, errors.New("the cluster's authority has no certificate")
	}
	block, _ := pem.Decode(s.CA.Cert) // not nil, since ca has it
	authority, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the certificate of the cluster's authority: %w", err)
	}
	return &Agents{clusterID: s.ClusterID, operator: cert, ca: ca, authority: authority, Limit: AnswerLimit, dial: dial}, nil
}

// takeTurn waits until fewer than AtOnce requests are running.
func (a *Agents) takeTurn(ctx context.Context) (done func(), err error) {
	if a.AtOnce == 0 {
		return func() {}, nil
	}
	a.once.Do(func() { a.turns = make(chan struct{}, a.AtOnce) })
	select {
	case a.turns <- struct{}{}:
		return func() { <-a.turns }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// request sends a request to a node's agent. It returns the answer, and how far the node's clock is behind, to about a second. A status
// other than success becomes an error with the answer's text.
func (a *Agents) request(ctx context.Context, node string, ip netip.Addr, method, path string, body []byte) (answer []byte, behind time.Duration, err error) {
	return a.requestWithin(ctx, a.Limit, node, ip, method, path, body)
}

// requestWithin is request with another timeout.
func (a *Agents) requestWithin(ctx context.Context, limit time.Duration, node string, ip netip.Addr, method, path string, body []byte) (answer []byte, behind time.Duration, err error) {
	done, err := a.takeTurn(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp, err := a.send(ctx, node, ip, method, path, body)
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no answer within %s", limit)
		}
		return nil, 0, err
	}
	defer resp.Body.Close()
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		behind = time.Since(date)
	}
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxReport))
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode >= 300 {
		return nil, 0, refusal{resp.StatusCode, string(bytes.TrimSpace(answer))}
	}
	return answer, behind, nil
}

// send sends a request to a node's agent and returns the response, whose body is not read yet.
func (a *Agents) send(ctx context.Context, node string, ip netip.Addr, method, path string, body []byte) (*http.Response, error) {
	if a.unable != nil {
		return nil, a.unable
	}
	transport := &http.Transport{
		DialContext:       a.dial,
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			Certificates: []tls.Certificate{a.operator}, RootCAs: a.ca, ServerName: node, MinVersion: tls.VersionTLS12,
		},
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+net.JoinHostPort(ip.String(), strconv.Itoa(facts.APIPort))+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, explain(err)
	}
	return resp, nil
}

// refusal is an agent's answer with a status other than success.
type refusal struct {
	code int
	text string
}

func (r refusal) Error() string {
	return fmt.Sprintf("%d %s: %.300s", r.code, http.StatusText(r.code), r.text)
}

// sameClock is the largest difference between two clocks that are considered correct, including the time that the answer takes.
const sameClock = 5 * time.Second

// Ask returns the report of a node's agent, with times converted to this computer's clock.
func (a *Agents) Ask(ctx context.Context, node string, ip netip.Addr) (facts.NodeReport, error) {
	body, behind, err := a.request(ctx, node, ip, http.MethodGet, facts.StatePath, nil)
	if err != nil {
		return facts.NodeReport{}, err
	}
	var r facts.NodeReport
	if err := json.Unmarshal(body, &r); err != nil {
		return facts.NodeReport{}, fmt.Errorf("the answer is no report: %w", err)
	}
	if r.Node.Name != node || a.clusterID != "" && r.ClusterID != a.clusterID {
		return facts.NodeReport{}, fmt.Errorf("node %s of cluster %s answered instead", r.Node.Name, strings.TrimSpace(r.Cluster+" "+r.ClusterID))
	}
	if behind.Abs() > sameClock {
		for name, c := range r.Components {
			c.Since = c.Since.Add(behind)
			r.Components[name] = c
		}
	}
	return r, nil
}

// decide sends an operator's decision about a component to a node's agent, which refuses it if it is not needed.
func (a *Agents) decide(ctx context.Context, node string, ip netip.Addr, d facts.Decision) error {
	body, err := json.Marshal(d)
	if err != nil {
		return err
	}
	_, _, err = a.request(ctx, node, ip, http.MethodPost, facts.DecidePath, body)
	var refused refusal
	switch {
	case errors.As(err, &refused):
		return errors.New(refused.text)
	case err != nil:
		return fmt.Errorf("tell %s: %w", node, err)
	}
	return nil
}

// Package operate is the client of a cluster's agents: it asks them for their state, waits for it, passes decisions on, and knows
// in which order nodes may be replaced.
//
// It needs the spec, the authority's certificate and the operator's. It knows nothing of machines: what only their provider can
// say (power, host, console) and do (replace) comes in through [Machines].
package operate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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

// AnswerLimit is how long an agent may take to answer.
const AnswerLimit = 2 * time.Second

// maxReport is the largest answer that is read from an agent, in bytes.
const maxReport = 1 << 20

// Dial connects to an agent. It has the meaning of [net.Dialer.DialContext].
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Agents are the agents of a cluster, as the operator asks them.
type Agents struct {
	// Limit is how long an answer may take.
	Limit time.Duration
	// AtOnce is how many agents are asked at the same time; 0: all.
	AtOnce int

	clusterID string
	operator  tls.Certificate
	ca        *x509.CertPool
	unable    error // why no agent can be asked; nil: they can
	dial      Dial

	once  sync.Once
	turns chan struct{}
}

// NewAgents returns the agents that s lets the operator ask. Without the operator's certificate every question fails.
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
	return &Agents{clusterID: s.ClusterID, operator: cert, ca: ca, Limit: AnswerLimit, dial: dial}, nil
}

// takeTurn waits until no more than AtOnce questions are asked.
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

// request sends a request to a node's agent and returns its answer, and how far the node's clock is behind, to about a
// second. An answer that is no success is an error with what the agent says.
func (a *Agents) request(ctx context.Context, node string, ip netip.Addr, method, path string, body []byte) (answer []byte, behind time.Duration, err error) {
	done, err := a.takeTurn(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, a.Limit)
	defer cancel()
	resp, err := a.send(ctx, node, ip, method, path, body)
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no answer within %s", a.Limit)
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

// send sends a request to a node's agent and returns the beginning of its answer.
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

// refusal is an agent's answer that it does not do what it was asked.
type refusal struct {
	code int
	text string
}

func (r refusal) Error() string {
	return fmt.Sprintf("%d %s: %.300s", r.code, http.StatusText(r.code), r.text)
}

// sameClock is the largest difference that two clocks which are set right seem to have, including the answer's way.
const sameClock = 5 * time.Second

// Ask returns what a node's agent reports, its times by this computer's clock.
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

// decide tells a component of a node an operator's decision. The node's agent refuses one that is not needed.
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

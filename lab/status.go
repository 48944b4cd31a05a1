package lab

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
	"time"

	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
)

// statusLimit is how long a node's agent may take to answer; emulatedLimit: where the node's processor is emulated.
const (
	statusLimit   = 2 * time.Second
	emulatedLimit = 15 * time.Second
)

// maxReport is the largest answer that is read from an agent, in bytes.
const maxReport = 1 << 20

// What a node's State is when no agent tells it.
const (
	stateOff    = "off"
	stateSilent = "silent" // turned on, and its agent does not answer (yet)
)

// NodeStatus is how a node is doing.
type NodeStatus struct {
	Node    string `json:"node"`
	Role    string `json:"role"`
	Address string `json:"address"`
	Power   string `json:"power"` // on or off
	// State is ready when all components are, else the state of the component that matters most (see
	// cluster.State), or off, or silent.
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"` // when State began, as far as it is known
	// Detail says which component waits for what, in a few words.
	Detail     string                           `json:"detail,omitempty"`
	Components map[string]facts.ComponentReport `json:"components,omitempty"` // without their raw reports
	Error      string                           `json:"error,omitempty"`      // why the agent could not be asked
	// Build says how what the node was made of compares with the spec and with what build made last: one of the
	// constants below, or empty when the node has not been made yet.
	Build string `json:"build,omitempty"`
}

// Values of NodeStatus.Build.
const (
	BuildCurrent = "current" // the image and the seed that build made last
	BuildOlder   = "older"   // an earlier image or an earlier seed: replace and roll renew the node
	BuildRemoved = "removed" // the spec no longer has the node
)

// urgency orders the states of components that are not ready: what an operator must look at comes first.
var urgency = map[facts.State]int{facts.Stopped: 4, facts.Failed: 3, facts.Working: 2, facts.Waiting: 1}

// add puts what the node's agent reports into s.
func (s *NodeStatus) add(r facts.NodeReport) {
	s.Components = map[string]facts.ComponentReport{}
	s.State, s.Since = string(facts.Ready), time.Time{}
	worst := 0
	for _, name := range r.Order {
		c, ok := r.Components[name]
		if !ok {
			continue
		}
		c.Report = nil
		s.Components[name] = c
		u := urgency[c.Status.State]
		if u > worst { // of equals the first in order: the others often wait for it
			worst = u
			s.State, s.Since, s.Detail = string(c.Status.State), c.Since, name
			if c.Status.Detail != "" {
				s.Detail += ": " + c.Status.Detail
			}
		} else if worst == 0 && c.Since.After(s.Since) {
			s.Since = c.Since
		}
	}
	if !r.Ready && worst == 0 {
		s.State, s.Since, s.Detail = string(facts.Working), time.Time{}, "the agent has not looked at everything yet"
	}
}

// asker asks the agents of a cluster for their reports.
type asker struct {
	clusterID string
	operator  tls.Certificate
	ca        *x509.CertPool
	limit     time.Duration // for an answer
	unable    error         // why no agent can be asked; nil: they can
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
}

func newAsker(s *secrets.Secrets, dial func(context.Context, string, string) (net.Conn, error)) (*asker, error) {
	if s.Operator.Cert == nil || s.CA.Cert == nil {
		return &asker{limit: statusLimit, unable: errors.New("the cluster's secrets, by which its agents know the operator, are not here")}, nil
	}
	cert, err := tls.X509KeyPair(s.Operator.Cert, s.Operator.Key)
	if err != nil {
		return nil, fmt.Errorf("the operator's certificate: %w", err)
	}
	ca := x509.NewCertPool()
	if !ca.AppendCertsFromPEM(s.CA.Cert) {
		return nil, errors.New("the cluster's authority has no certificate")
	}
	return &asker{clusterID: s.ClusterID, operator: cert, ca: ca, limit: statusLimit, dial: dial}, nil
}

// request sends a request to a node's agent and returns its answer, and how far the node's clock is behind, to about a
// second; an answer that is no success is an error, with what the agent says.
func (a *asker) request(ctx context.Context, node string, ip netip.Addr, method, path string, body []byte) (answer []byte, behind time.Duration, err error) {
	if a.unable != nil {
		return nil, 0, a.unable
	}
	ctx, cancel := context.WithTimeout(ctx, a.limit)
	defer cancel()
	transport := &http.Transport{
		DialContext:       a.dial,
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			Certificates: []tls.Certificate{a.operator}, RootCAs: a.ca, ServerName: node, MinVersion: tls.VersionTLS12,
		},
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+net.JoinHostPort(ip.String(), strconv.Itoa(facts.APIPort))+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no answer within %s", a.limit)
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

// refusal is an agent's answer that it does not do what it was asked.
type refusal struct {
	code int
	text string
}

func (r refusal) Error() string {
	return fmt.Sprintf("%d %s: %.300s", r.code, http.StatusText(r.code), r.text)
}

// sameClock is the largest difference that two clocks which are set right seem to have, an answer's way included.
const sameClock = 5 * time.Second

// ask returns what a node's agent reports, its times by this machine's clock.
func (a *asker) ask(ctx context.Context, node string, ip netip.Addr) (facts.NodeReport, error) {
	body, behind, err := a.request(ctx, node, ip, http.MethodGet, facts.StatePath, nil)
	if err != nil {
		return facts.NodeReport{}, err
	}
	var r facts.NodeReport
	if err := json.Unmarshal(body, &r); err != nil {
		return facts.NodeReport{}, fmt.Errorf("the answer is no report: %w", err)
	}
	if r.Node.Name != node || r.ClusterID != a.clusterID {
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

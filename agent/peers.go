package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// maxReport is the largest answer that is read from a peer, in bytes.
const maxReport = 1 << 20

// identity is a node's certificate and the authority that it and its peers trust.
type identity struct {
	cert tls.Certificate
	ca   *x509.CertPool
}

func loadIdentity(dir string) (identity, error) {
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return identity{}, fmt.Errorf("read the cluster's authority: %w", err)
	}
	ca := x509.NewCertPool()
	if !ca.AppendCertsFromPEM(pem) {
		return identity{}, fmt.Errorf("%s: no certificate in it", filepath.Join(dir, "ca.crt"))
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"))
	if err != nil {
		return identity{}, fmt.Errorf("read the node's certificate: %w", err)
	}
	return identity{cert, ca}, nil
}

// network is how an agent reaches its peers' agents. The simulator has one of its own.
type network interface {
	// ask returns what a peer's agent reports, and tells it which memberships count for this node (see facts.JointHeader); empty:
	// this node decides nothing together with others. It takes no longer than pollLimit.
	ask(ctx context.Context, n facts.Peer, joint string) (facts.NodeReport, error)
}

// peers asks other nodes' agents for their state and remembers the latest answers.
type peers struct {
	network network
	clock   clock
	limit   time.Duration // ensemble.HeardLimit

	mu      sync.Mutex
	asked   []facts.Peer // by the loops that run
	answers map[string]answer
}

type answer struct {
	asked  time.Time // monotonic: setting the clock does not change an answer's age
	report facts.NodeReport
}

// client returns the TLS settings for asking the peer called name: its certificate must carry that name, whatever
// address answers.
func (id identity) client(name string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{id.cert}, RootCAs: id.ca, ServerName: name, MinVersion: tls.VersionTLS12}
}

// server returns the TLS settings of the peer API: who asks must have a certificate of the cluster's authority.
func (id identity) server() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{id.cert},
		ClientCAs:    id.ca,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS12,
	}
}

func newPeers(network network, clock clock) *peers {
	return &peers{network: network, clock: clock, limit: ensemble.HeardLimit, answers: map[string]answer{}}
}

// begin notes that a peer is going to be asked at its address, unless it already is.
func (p *peers) begin(n facts.Peer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.ContainsFunc(p.asked, func(o facts.Peer) bool { return o.Name == n.Name && o.IP == n.IP }) {
		return false
	}
	p.asked = append(p.asked, n)
	return true
}

// end forgets a peer that does not count any more.
func (p *peers) end(n facts.Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = slices.DeleteFunc(p.asked, func(o facts.Peer) bool { return o.Name == n.Name && o.IP == n.IP })
	if !slices.ContainsFunc(p.asked, func(o facts.Peer) bool { return o.Name == n.Name }) { // nor at another address
		delete(p.answers, n.Name)
	}
}

// poll asks one peer at one address, again and again, until ctx ends or the peer counts no more: often while this node is not
// ready, less so afterwards, and least once all has been well for a while. What a peer that is ready says decides nothing on a node that is.
func (p *peers) poll(ctx context.Context, n facts.Peer, settled, counts func() bool, joint func() string) {
	defer p.end(n)
	var calm time.Time // since when both nodes have been ready; zero: one is not, or the peer does not answer
	for ctx.Err() == nil && counts() {
		asked := p.clock.Now()
		report, err := p.network.ask(ctx, n, joint())
		if err == nil {
			p.mu.Lock()
			p.answers[n.Name] = answer{asked, report}
			p.mu.Unlock()
		}
		wasCalm := !calm.IsZero() && asked.Sub(calm) > calmAfter
		switch {
		case err != nil || !report.Ready || !settled():
			calm = time.Time{}
		case calm.IsZero():
			calm = asked
		}
		if err != nil && wasCalm {
			continue // at once: if a single answer is late, the next one must come before the one before it does not count any more
		}
		if !settled() {
			p.clock.Sleep(ctx, pollUnready)
			continue
		}
		p.clock.Sleep(ctx, pollReady)
		// Each second it is seen whether the node is still ready.
		if !calm.IsZero() && p.clock.Now().Sub(calm) > calmAfter && settled() {
			p.clock.Sleep(ctx, pollCalm-pollReady)
		}
	}
}

// heard returns the answers that are recent enough, without the observations in them that are not.
func (p *peers) heard() map[string]PeerReport {
	now := p.clock.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	m := make(map[string]PeerReport, len(p.answers))
	for name, a := range p.answers {
		if age := now.Sub(a.asked); age <= p.limit {
			m[name] = PeerReport{NodeReport: ensemble.Fresh(a.report, age, p.limit), Age: age}
		}
	}
	return m
}

// names returns the peers that are heard.
func (p *peers) names() []string {
	now := p.clock.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	names := make([]string, 0, len(p.answers))
	for name, a := range p.answers {
		if now.Sub(a.asked) <= p.limit {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// httpNetwork is the network of every real agent: HTTPS with mutual TLS. Each peer is asked over a connection that is kept.
type httpNetwork struct {
	id    identity
	limit time.Duration // pollLimit
	port  string        // of all agents

	mu    sync.Mutex
	conns map[facts.Peer]*peerConn // that nobody uses now
}

// peerConn is a connection to a peer's agent. It is used without http.Client, whose two goroutines for each connection take as much processor
// time as a question does.
type peerConn struct {
	conn net.Conn
	r    *bufio.Reader
	used time.Time
	last lastReport
}

func newHTTPNetwork(id identity) *httpNetwork {
	return &httpNetwork{id: id, limit: pollLimit, port: strconv.Itoa(facts.APIPort), conns: map[facts.Peer]*peerConn{}}
}

func (h *httpNetwork) ask(ctx context.Context, n facts.Peer, joint string) (facts.NodeReport, error) {
	ctx, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(n.IP, h.port)+facts.StatePath, nil)
	if err != nil {
		return facts.NodeReport{}, err
	}
	if joint != "" {
		req.Header.Set(facts.JointHeader, joint)
	}
	c := h.take(n)
	if c != nil {
		r, err := h.askOver(c, req, n)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errPeerConn) {
			return r, err
		}
		// The agent may have been started anew, or has closed a connection that it took for idle.
	}
	if c, err = h.connect(ctx, n, req.URL.Host); err != nil {
		return facts.NodeReport{}, err
	}
	return h.askOver(c, req, n)
}

// errPeerConn is the error of a connection over which no answer came.
var errPeerConn = errors.New("no answer")

// connect makes a connection to a peer, whatever has its address: it must have the certificate of the peer's name.
func (h *httpNetwork) connect(ctx context.Context, n facts.Peer, addr string) (*peerConn, error) {
	conn, err := (&tls.Dialer{Config: h.id.client(n.Name)}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &peerConn{conn: conn, r: bufio.NewReader(conn)}, nil
}

// take returns the connection to a peer that is kept; nil: there is none.
func (h *httpNetwork) take(n facts.Peer) *peerConn {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.conns[n]
	delete(h.conns, n)
	return c
}

// keep keeps a connection, and closes those to peers that are not asked any more.
func (h *httpNetwork) keep(n facts.Peer, c *peerConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.used = time.Now()
	h.conns[n] = c
	for other, c := range h.conns {
		if time.Since(c.used) > keepLimit {
			c.conn.Close()
			delete(h.conns, other)
		}
	}
}

// askOver asks a peer over a connection, and keeps that if it can be used again.
func (h *httpNetwork) askOver(c *peerConn, req *http.Request, n facts.Peer) (r facts.NodeReport, err error) {
	usable := false
	defer func() {
		if usable {
			h.keep(n, c)
		} else {
			c.conn.Close()
		}
	}()
	deadline, _ := req.Context().Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return r, err
	}
	stop := context.AfterFunc(req.Context(), func() { c.conn.SetDeadline(time.Now()) }) // the agent ends
	defer stop()
	if err := req.Write(c.conn); err != nil {
		return r, fmt.Errorf("%w: %w", errPeerConn, err)
	}
	resp, err := http.ReadResponse(c.r, req)
	if err != nil {
		return r, fmt.Errorf("%w: %w", errPeerConn, err)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReport))
	if err != nil {
		return r, err
	}
	if resp.StatusCode != http.StatusOK {
		return r, fmt.Errorf("%s answered %s", n.Name, resp.Status)
	}
	if r, err = c.last.decode(data); err != nil {
		return r, fmt.Errorf("%s: %w", n.Name, err)
	}
	if r.Node.Name != n.Name {
		return r, fmt.Errorf("%s answered as %q", n.Name, r.Node.Name)
	}
	usable = len(data) < maxReport && !resp.Close
	return r, nil
}

// lastReport is a peer's last answer. Where nothing happens, the next one differs in the ages of its observations alone, and the rest need not
// be decoded again.
type lastReport struct {
	before, after []byte // the ages
	report        facts.NodeReport
}

// agesStart is where the ages in an encoded report begin. In a text, its quotes would be escaped.
var agesStart = []byte(`"ages_ms":{`)

func (l *lastReport) decode(data []byte) (facts.NodeReport, error) {
	at := bytes.Index(data, agesStart)
	end := -1
	if at >= 0 {
		at += len(agesStart) - 1
		end = at + 1 + bytes.IndexByte(data[at:], '}')
	}
	if end > at && bytes.Equal(data[:at], l.before) && bytes.Equal(data[end:], l.after) {
		r := l.report
		r.Ages = nil
		if err := json.Unmarshal(data[at:end], &r.Ages); err == nil {
			return r, nil
		}
	}
	var r facts.NodeReport
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	*l = lastReport{}
	var ages map[string]int64
	if end > at && json.Unmarshal(data[at:end], &ages) == nil && maps.Equal(ages, r.Ages) { // else it is something of that name inside another
		*l = lastReport{data[:at], data[end:], r}
	}
	return r, nil
}

package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
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
	// ask returns what a peer's agent reports, and tells it which memberships count for this node; nil: this node decides nothing
	// together with others. It takes no longer than pollLimit.
	ask(ctx context.Context, n facts.Peer, own *facts.Joint) (facts.NodeReport, error)
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
func (p *peers) poll(ctx context.Context, n facts.Peer, settled, counts func() bool, own func() *facts.Joint) {
	defer p.end(n)
	var calm time.Time // since when both nodes have been ready; zero: one is not, or the peer does not answer
	for ctx.Err() == nil && counts() {
		asked := p.clock.Now()
		report, err := p.network.ask(ctx, n, own())
		if err == nil {
			p.mu.Lock()
			p.answers[n.Name] = answer{asked, report}
			p.mu.Unlock()
		}
		switch {
		case !settled():
			calm = time.Time{}
			p.clock.Sleep(ctx, pollUnready)
			continue
		case err != nil || !report.Ready:
			calm = time.Time{}
		case calm.IsZero():
			calm = asked
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

// httpNetwork is the network of every real agent: HTTPS with mutual TLS.
type httpNetwork struct {
	id      identity
	mu      sync.Mutex
	clients map[string]*http.Client // by name: a peer may have a new address, and must have the same certificate there
}

func newHTTPNetwork(id identity) *httpNetwork {
	return &httpNetwork{id: id, clients: map[string]*http.Client{}}
}

func (h *httpNetwork) client(name string) *http.Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clients[name] == nil {
		h.clients[name] = &http.Client{Timeout: pollLimit, Transport: &http.Transport{TLSClientConfig: h.id.client(name)}}
	}
	return h.clients[name]
}

func (h *httpNetwork) ask(ctx context.Context, n facts.Peer, own *facts.Joint) (r facts.NodeReport, err error) {
	url := "https://" + net.JoinHostPort(n.IP, strconv.Itoa(facts.APIPort)) + facts.StatePath
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return r, err
	}
	if own != nil {
		text, err := json.Marshal(own)
		if err != nil {
			return r, err
		}
		req.Header.Set(facts.JointHeader, string(text))
	}
	resp, err := h.client(n.Name).Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return r, fmt.Errorf("%s answered %s", n.Name, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReport))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", n.Name, err)
	}
	if r.Node.Name != n.Name {
		return r, fmt.Errorf("%s answered as %q", n.Name, r.Node.Name)
	}
	return r, nil
}

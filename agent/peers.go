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
	"strconv"
	"sync"
	"time"

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

// peers asks other nodes' agents for their state and remembers the latest answers.
type peers struct {
	nodes   []facts.Peer
	clients map[string]*http.Client

	mu      sync.Mutex
	answers map[string]answer
}

type answer struct {
	asked  time.Time // monotonic, so that a jump of the clock does not make an answer younger
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

func newPeers(id identity, nodes []facts.Peer) *peers {
	p := &peers{nodes: nodes, clients: map[string]*http.Client{}, answers: map[string]answer{}}
	for _, n := range nodes {
		p.clients[n.Name] = &http.Client{Timeout: pollLimit, Transport: &http.Transport{TLSClientConfig: id.client(n.Name)}}
	}
	return p
}

// poll asks every peer, again and again, until ctx ends: often while this node is not ready, less so afterwards.
func (p *peers) poll(ctx context.Context, settled func() bool) {
	var wg sync.WaitGroup
	for _, n := range p.nodes {
		wg.Go(func() {
			for ctx.Err() == nil {
				asked := time.Now()
				if report, err := p.ask(ctx, n); err == nil {
					p.mu.Lock()
					p.answers[n.Name] = answer{asked, report}
					p.mu.Unlock()
				}
				pause := restless
				if settled() {
					pause = restful
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	wg.Wait()
}

func (p *peers) ask(ctx context.Context, n facts.Peer) (r facts.NodeReport, err error) {
	url := "https://" + net.JoinHostPort(n.IP, strconv.Itoa(facts.APIPort)) + facts.StatePath
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return r, err
	}
	resp, err := p.clients[n.Name].Do(req)
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

// heard returns the answers that are young enough to be believed.
func (p *peers) heard() map[string]PeerReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := map[string]PeerReport{}
	for name, a := range p.answers {
		if age := time.Since(a.asked); age <= heardLimit {
			m[name] = PeerReport{NodeReport: a.report, Age: age}
		}
	}
	return m
}

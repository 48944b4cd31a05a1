package operate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/internal/testkit"
)

// fakes are agents on loopback that all listen on one port and are told apart by the name that they are asked for.
type fakes struct {
	spec  *cluster.Spec
	keys  *secrets.Secrets
	mux   *http.ServeMux
	addr  string
	gone  map[string]bool // addresses that nobody answers at
	certs map[string]*tls.Certificate
	// report, if set, changes what agents report.
	report func(*facts.NodeReport)
}

// newFakes makes a cluster of so many nodes of the role web, all of them ready.
func newFakes(t *testing.T, nodes int) *fakes {
	t.Helper()
	f := &fakes{mux: http.NewServeMux(), gone: map[string]bool{}, certs: map[string]*tls.Certificate{}}
	role := cluster.Role{Name: "web"}
	for i := range nodes {
		role.Nodes = append(role.Nodes, cluster.Node{Name: fmt.Sprint("web", i+1), Role: "web", Index: i, IP: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})})
	}
	f.spec = &cluster.Spec{Cluster: "otus", Roles: []cluster.Role{role}}
	var err error
	if f.keys, err = secrets.Load(filepath.Join(t.TempDir(), "secrets"), f.spec, nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range role.Nodes {
		pair, err := tls.X509KeyPair(f.keys.Nodes[n.Name].Cert, f.keys.Nodes[n.Name].Key)
		if err != nil {
			t.Fatal(err)
		}
		f.certs[n.Name] = &pair
	}
	f.mux.HandleFunc("GET "+facts.StatePath, func(w http.ResponseWriter, r *http.Request) {
		report := facts.NodeReport{
			Cluster: "otus", ClusterID: f.keys.ClusterID, Node: facts.Peer{Name: r.TLS.ServerName}, Ready: true, Order: []string{"nginx"},
			Components: map[string]facts.ComponentReport{"nginx": {Kind: "service", Status: facts.Status{State: facts.Ready}, Since: time.Now()}},
		}
		if f.report != nil {
			f.report(&report)
		}
		json.NewEncoder(w).Encode(report)
	})
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(f.keys.CA.Cert)
	server := httptest.NewUnstartedServer(f.mux)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return f.certs[h.ServerName], nil
	}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	f.addr = server.Listener.Addr().String()
	return f
}

// cluster returns the cluster as the owner of these secrets operates it.
func (f *fakes) cluster(t *testing.T, keys *secrets.Secrets) *Cluster {
	t.Helper()
	agents, err := NewAgents(keys, func(ctx context.Context, network, address string) (net.Conn, error) {
		if host, _, _ := net.SplitHostPort(address); f.gone[host] {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("no route to host")}
		}
		var d net.Dialer
		return d.DialContext(ctx, network, f.addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	agents.Limit = 10 * time.Minute // a busy machine answers late
	return &Cluster{Spec: f.spec, Agents: agents}
}

// Without a provider a node that does not answer is silent, not off; and when none answers, that is an error with what was tried.
func TestStatusWithoutProvider(t *testing.T) {
	f := newFakes(t, 5)
	cl := f.cluster(t, f.keys)
	f.gone["10.1.0.1"] = true
	nodes, err := cl.Status(t.Context())
	if err != nil || len(nodes) != 5 {
		t.Fatalf("%+v, %v", nodes, err)
	}
	if n := nodes[0]; !n.Ready() || n.Power != PowerUnknown || n.Address != "10.1.0.0" {
		t.Errorf("%+v", n)
	}
	if n := nodes[1]; n.State != Silent || n.Power != PowerUnknown || n.Error != "no route to host" || n.Detail == "" {
		t.Errorf("%+v", n)
	}
	for _, n := range f.spec.Nodes() {
		f.gone[n.IP.String()] = true
	}
	nodes, err = cl.Status(t.Context())
	want := "no node of cluster otus can be asked (port 7373): web1 (10.1.0.0), web2 (10.1.0.1), web3 (10.1.0.2) and 2 more: no route to host"
	if err == nil || err.Error() != want || nodes != nil {
		t.Errorf("%+v, %v; want %s", nodes, err, want)
	}
	// Waiting is for nodes that do not answer yet.
	nodes = nil
	for limit := 50 * time.Millisecond; nodes == nil && limit < time.Minute; limit *= 2 { // until a busy machine has asked all of them
		nodes, err = cl.WaitReady(t.Context(), Wait{Timeout: limit}, []string{"web1"})
	}
	if err == nil || len(nodes) != 5 || !strings.Contains(err.Error(), want) {
		t.Errorf("%+v, %v", nodes, err)
	}
	if err := cl.Replace(t.Context(), Wait{}, "web1", false, false); err == nil {
		t.Error("a node is replaced without a provider")
	}
}

// Who has the wrong certificate learns that, and nothing of the cluster.
func TestStrangersLearnNothing(t *testing.T) {
	f, other := newFakes(t, 2), newFakes(t, 2)
	asked := false
	f.mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) { asked = true })
	mixed := *other.keys
	mixed.CA = f.keys.CA
	for name, c := range map[string]struct {
		keys *secrets.Secrets
		want string
	}{
		"another cluster's secrets":               {other.keys, "no node of this cluster"},
		"another operator with this one's ca.crt": {&mixed, "refuses the operator's certificate"},
		"no certificate":                          {&secrets.Secrets{}, "secrets, by which its agents know the operator, are not here"},
	} {
		nodes, err := f.cluster(t, c.keys).Status(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || nodes != nil {
			t.Errorf("%s: %+v, %v", name, nodes, err)
		}
	}
	if asked {
		t.Error("a stranger's question came through")
	}
}

// Asking 1,000 nodes takes no more than two seconds of two cores.
func TestThousandNodes(t *testing.T) {
	f := newFakes(t, 1000)
	cl := f.cluster(t, f.keys)
	start, before := time.Now(), testkit.ProcessorTime(t)
	nodes, err := cl.Status(t.Context())
	took, busy := time.Since(start), testkit.ProcessorTime(t)-before
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if !n.Ready() {
			t.Fatalf("%+v", n)
		}
	}
	// Time on the clock depends on what else runs; processor time, the fake agents' included, does not.
	t.Logf("%d nodes in %s, %s of processor time", len(nodes), took, busy)
	if busy > 4*time.Second {
		t.Errorf("%s of processor time for both sides: more than 2 s on two cores", busy)
	}
}

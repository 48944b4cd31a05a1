package operate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
)

func TestStateOfNode(t *testing.T) {
	at := func(s int) time.Time { return time.Date(2026, 1, 1, 12, 0, s, 0, time.UTC) }
	component := func(state facts.State, detail string, since int) facts.ComponentReport {
		kind := "service"
		if strings.HasPrefix(detail, "/dev/") {
			kind = "disk"
		}
		return facts.ComponentReport{Kind: kind, Status: facts.Status{State: state, Detail: detail}, Since: at(since), Report: json.RawMessage("{}")}
	}
	order := []string{"disk", "galera", "site"}
	for name, c := range map[string]struct {
		components map[string]facts.ComponentReport
		ready      bool
		holds      []string
		want       NodeStatus
	}{
		"ready since the last component is": {
			components: map[string]facts.ComponentReport{"disk": component("ready", "/dev/vdb is 93 % full", 1), "galera": component("ready", "", 7), "site": component("ready", "", 3)},
			ready:      true,
			want:       NodeStatus{State: "ready", Since: at(7), Warnings: []string{"disk: /dev/vdb is 93 % full"}},
		},
		"the first of those that wait": {
			components: map[string]facts.ComponentReport{"disk": component("ready", "", 1), "galera": component("waiting", "for percona3", 2), "site": component("waiting", "for galera", 3)},
			want:       NodeStatus{State: "waiting", Since: at(2), Detail: "galera: for percona3"},
		},
		"what needs an operator comes first": {
			components: map[string]facts.ComponentReport{"disk": component("waiting", "for a disk", 1), "galera": component("failed", "", 2), "site": component("stopped", "not ours", 3)},
			want:       NodeStatus{State: "stopped", Since: at(3), Detail: "site: not ours"},
		},
		"what it is": {
			components: map[string]facts.ComponentReport{"galera": {Is: "in a component of 3", Status: facts.Status{State: facts.Ready}}},
			holds:      []string{"192.168.10.39"}, ready: true,
			want: NodeStatus{State: "ready", Is: "holds 192.168.10.39, galera: in a component of 3"},
		},
		"no detail": {
			components: map[string]facts.ComponentReport{"disk": component("failed", "", 1), "galera": component("working", "", 2)},
			want:       NodeStatus{State: "failed", Since: at(1), Detail: "disk"},
		},
		"not looked at yet": {
			components: map[string]facts.ComponentReport{"disk": component("ready", "", 1)},
			want:       NodeStatus{State: "working", Detail: "the agent has not looked at everything yet"},
		},
	} {
		got := NodeStatus{State: Silent, Since: at(0)}
		got.add(facts.NodeReport{Ready: c.ready, Components: c.components, Order: order, Holds: c.holds})
		for _, r := range got.Components {
			if r.Report != nil {
				t.Errorf("%s: a raw report is passed on", name)
			}
		}
		if len(got.Components) != len(c.components) {
			t.Errorf("%s: components %v", name, got.Components)
		}
		got.Components = nil
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, c.want)
		}
	}
}

// TestAsk asks a server that has a node's certificate, as an agent does, and some that should not be believed.
func TestAsk(t *testing.T) {
	spec := &cluster.Spec{Cluster: "otus", Roles: []cluster.Role{{Name: "web", Nodes: []cluster.Node{
		{Name: "web1", Role: "web", IP: netip.MustParseAddr("192.168.10.42")},
		{Name: "web2", Role: "web", IP: netip.MustParseAddr("192.168.10.43")},
	}}}}
	keys, err := secrets.Load(filepath.Join(t.TempDir(), "secrets"), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	strangers, err := secrets.Load(filepath.Join(t.TempDir(), "secrets"), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	since := time.Now().Add(-time.Minute)
	const late = 20 * time.Minute
	good := facts.NodeReport{Cluster: "otus", ClusterID: keys.ClusterID, Node: facts.Peer{Name: "web1"}, Ready: true,
		Components: map[string]facts.ComponentReport{"nginx": {Since: since}}}
	behind := good
	behind.Components = map[string]facts.ComponentReport{"nginx": {Since: since.Add(-late)}}
	otherCluster, otherNode := good, good
	otherCluster.ClusterID = strangers.ClusterID
	otherNode.Node.Name = "web2"
	body := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for name, c := range map[string]struct {
		cert   secrets.KeyPair
		status int
		body   string
		want   string // in the error; empty: none
		late   time.Duration
	}{
		"the node":                     {keys.Nodes["web1"], 200, body(good), "", 0},
		"a node whose clock is behind": {keys.Nodes["web1"], 200, body(behind), "", late},
		"another node's certificate":   {keys.Nodes["web2"], 200, body(good), "not the node's", 0},
		"another cluster's":            {strangers.Nodes["web1"], 200, body(good), "no node of this cluster", 0},
		"a report of another cluster":  {keys.Nodes["web1"], 200, body(otherCluster), "answered instead", 0},
		"a report of another node":     {keys.Nodes["web1"], 200, body(otherNode), "web2", 0},
		"no report":                    {keys.Nodes["web1"], 200, "hello", "no report", 0},
		"an error":                     {keys.Nodes["web1"], 500, "out of order\n", "500 Internal Server Error: out of order", 0},
		"an answer that never ends":    {keys.Nodes["web1"], 200, strings.Repeat(" ", 2*maxReport) + body(good), "no report", 0},
		"an answer that is cut short":  {keys.Nodes["web1"], 200, body(good)[:20], "no report", 0},
		"an answer with another field": {keys.Nodes["web1"], 200, strings.Replace(body(good), "{", `{"new": 1, `, 1), "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != facts.StatePath || r.TLS.PeerCertificates[0].Subject.CommonName != "operator" {
					t.Errorf("%s asked for %s", r.TLS.PeerCertificates[0].Subject, r.URL)
				}
				w.Header().Set("Date", time.Now().Add(-c.late).UTC().Format(http.TimeFormat))
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			}))
			cert, err := tls.X509KeyPair(c.cert.Cert, c.cert.Key)
			if err != nil {
				t.Fatal(err)
			}
			ca := x509.NewCertPool()
			ca.AppendCertsFromPEM(keys.CA.Cert)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca}
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			defer server.Close()
			var asked string
			a, err := NewAgents(keys, func(ctx context.Context, network, address string) (net.Conn, error) {
				asked = address
				var d net.Dialer
				return d.DialContext(ctx, network, server.Listener.Addr().String())
			})
			if err != nil {
				t.Fatal(err)
			}
			a.Limit = time.Minute // a busy machine answers late
			r, err := a.Ask(t.Context(), "web1", spec.Roles[0].Nodes[0].IP)
			switch {
			case asked != "192.168.10.42:7373":
				t.Errorf("asked %s", asked)
			case c.want == "" && (err != nil || !r.Ready):
				t.Errorf("%+v, %v", r, err)
			case c.want == "" && r.Components["nginx"].Since.Sub(since).Abs() > 20*time.Second:
				t.Errorf("in this state since %s, a minute before %s", r.Components["nginx"].Since, time.Now())
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

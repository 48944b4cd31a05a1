package main

import (
	"bytes"
	"context"
	"crypto/sha256"
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
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
	"imagegen/cluster/secrets"
	"imagegen/internal/testkit"
)

// runningNodes are agents that run the seeds in a folder, told apart by the name that they are asked for. Nothing answers at the
// addresses in silent.
func runningNodes(t *testing.T, seeds string, images map[string]string, silent ...string) {
	t.Helper()
	mux := http.NewServeMux()
	seed := func(node string) cloudinit.Seed {
		s, err := cloudinit.ReadISO(seeds + "/" + node + ".iso")
		if err != nil {
			t.Error(err)
		}
		return s
	}
	mux.HandleFunc("GET "+facts.StatePath, func(w http.ResponseWriter, r *http.Request) {
		report := facts.NodeReport{Node: facts.Peer{Name: r.TLS.ServerName}}
		id, err := os.ReadFile("secrets/cluster_id")
		if err != nil {
			t.Error(err)
		}
		report.ClusterID = string(bytes.TrimSpace(id))
		report.Image = images[r.TLS.ServerName]
		json.NewEncoder(w).Encode(report)
	})
	mux.HandleFunc("GET "+facts.SeedPath, func(w http.ResponseWriter, r *http.Request) {
		s := seed(r.TLS.ServerName)
		json.NewEncoder(w).Encode(facts.KeptSeed{MetaData: s.MetaData, NetworkConfig: s.NetworkConfig, UserData: s.UserData, Generation: s.Generation})
	})
	mux.HandleFunc("GET "+facts.GenerationPath, func(w http.ResponseWriter, r *http.Request) {
		g, err := facts.OpenGeneration(seed(r.TLS.ServerName).Generation)
		if err != nil {
			t.Error(err)
		}
		if r.FormValue("digest") != "" {
			w.Write(g.Signed)
			return
		}
		m, _ := g.Member(r.TLS.ServerName)
		json.NewEncoder(w).Encode(agree.Status{Node: r.TLS.ServerName, Seed: m.Seed, Running: agree.Name(&g)})
	})
	ca := x509.NewCertPool()
	data, err := os.ReadFile("secrets/ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	ca.AppendCertsFromPEM(data)
	server := httptest.NewUnstartedServer(mux)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair("secrets/nodes/"+h.ServerName+".crt", "secrets/nodes/"+h.ServerName+".key")
		return &pair, err
	}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	before, limit := dialNode, answerLimit
	answerLimit = time.Minute // for a busy machine
	dialNode = func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, _ := net.SplitHostPort(address)
		for _, ip := range silent {
			if ip == host {
				return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("no route to host")}
			}
		}
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	t.Cleanup(func() { dialNode, answerLimit = before, limit; server.Close() })
}

// TestDiff: what a changed spec would change, shown without any secret.
func TestDiff(t *testing.T) {
	inNewFolder(t)
	done(t, "init", ".")
	done(t, "seed")
	// The values that the nodes run with, before they are changed below.
	known := secretsOf(t, "secrets")
	if err := os.CopyFS("running", os.DirFS("dist/seeds")); err != nil {
		t.Fatal(err)
	}
	runningNodes(t, "running", nil)
	if got := done(t, "diff"); got != "generation 1 is in use\n0 of 17 nodes differ from the spec\n" {
		t.Errorf("nothing has changed:\n%s", got)
	}

	spec, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	changed := string(spec)
	for _, r := range [][2]string{
		{"title: A site that stays up", "title: Another title"},
		{"redis1: 192.168.10.49", "redis1: 192.168.10.149"},
		{"web2: 192.168.10.43", "web3: 192.168.10.143"},
	} {
		if !strings.Contains(changed, r[0]) {
			t.Fatalf("the spec has no %q", r[0])
		}
		changed = strings.ReplaceAll(changed, r[0], r[1])
	}
	testkit.Write(t, "cluster.yaml", changed)
	testkit.Write(t, "dist/images/web.json", `{"schema": 1, "role": "web", "identity": "0123abcd"}`)
	runningNodes(t, "running", map[string]string{"web1": "ba5eba11"}, "192.168.10.149", "192.168.10.143", "192.168.10.44")

	got := done(t, "diff", "web1", "web3", "redis1", "backend1", "glusterfs1")
	testkit.Golden(t, filepath.Join(testDir, "testdata/diff.txt"), []byte(got))
	all := done(t, "diff")
	if !strings.Contains(all, "\nweb2: removed from the spec, and still runs\n") || strings.Contains(all, "\n+++ /dev/null\n") {
		t.Errorf("all nodes:\n%s", all)
	}
	asJSON := done(t, "diff", "--json")
	var d clusterDiff
	if err := json.Unmarshal([]byte(asJSON), &d); err != nil || d.Version != 1 || len(d.Nodes) != 18 {
		t.Fatalf("%v: %s", err, asJSON)
	}
	byName := map[string]nodeDiff{}
	for _, n := range d.Nodes {
		byName[n.Node] = n
	}
	for node, want := range map[string]string{"web1": "changed", "web3": "added", "web2": "removed", "redis1": "changed", "glusterfs1": "silent"} {
		if byName[node].Change != want {
			t.Errorf("%s: %+v", node, byName[node])
		}
	}
	if a := byName["redis1"].Address; a == nil || a.Runs != "192.168.10.49" || a.Spec != "192.168.10.149" {
		t.Errorf("redis1: address %+v", a)
	}
	if i := byName["web1"].Image; i == nil || i.Runs != "ba5eba11" || i.Spec != "0123abcd" {
		t.Errorf("web1: image %+v", i)
	}

	// Other passwords: neither the old nor the new ones are shown.
	passwords := map[string]string{}
	data, err := os.ReadFile("secrets/passwords.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &passwords); err != nil {
		t.Fatal(err)
	}
	for name, value := range passwords {
		passwords[name] = fmt.Sprintf("%x", sha256.Sum256([]byte(name)))[:len(value)]
	}
	if data, err = json.Marshal(passwords); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("secrets/passwords.json", data, 0o600); err != nil {
		t.Fatal(err)
	}
	others := done(t, "diff") + done(t, "diff", "--json")
	for name, secret := range known {
		if strings.Contains(got+all+asJSON+others, secret) {
			t.Errorf("diff shows %s", name)
		}
	}
	for name, value := range passwords {
		if strings.Contains(others, value) {
			t.Errorf("diff shows the new %s", name)
		}
	}
	if !strings.Contains(others, "redis2/etc/imagegen/secrets.json: other secrets\n") {
		t.Errorf("other passwords:\n%s", others)
	}

	if r := imagegen("diff", "web9"); r.code != exitWrong {
		t.Errorf("a node that is not there: %+v", r)
	}
	runningNodes(t, "running", nil, "192.168.10.42")
	dialNode = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("no route to host")}
	}
	if r := imagegen("diff"); r.code != exitFailed || !strings.Contains(r.stderr, "no node of cluster otus can be asked") {
		t.Errorf("nobody answers: %+v", r)
	}
	if err := os.Remove("secrets/ca.key"); err != nil {
		t.Fatal(err)
	}
	if r := imagegen("diff"); r.code != exitFailed || !strings.Contains(r.stderr, "ca.key is missing") {
		t.Errorf("without the authority's key: %+v", r)
	}
}

// TestDiffSeeds: what a seed may contain that those of the reference cluster do not.
func TestDiffSeeds(t *testing.T) {
	digest := func(s string) string { return facts.Digest([]byte(s)) }
	spec := &cluster.Spec{Cluster: "otus", Timezone: "UTC", Network: cluster.Network{CIDR: netip.MustParsePrefix("192.168.10.0/24")}}
	node := cluster.Node{Name: "web1", Role: "web", IP: netip.MustParseAddr("192.168.10.42"), MAC: "02:00:00:00:00:01"}
	seed := func(files []cloudinit.File) cloudinit.Seed {
		s, err := cloudinit.New(spec, "6f1c0a52-8a6a-4c0e-9c1b-0123456789ab", node, files)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	file := func(path string, mode uint32, content string, secret bool) cloudinit.File {
		return cloudinit.File{Path: path, Mode: mode, Content: []byte(content), Secret: secret}
	}
	old := []cloudinit.File{
		file(facts.SecretsPath, 0o600, `{"db": "oldPassword"}`, true),
		file(facts.FactsPath, 0o644, `{"digest": "`+digest("a")+`"}`, false),
		file("/etc/db.conf", 0o640, "password oldPassword\nport 1\n", true),
		file("/etc/hash", 0o600, "$6$old", true),
		file("/etc/gone", 0o600, "nobody knows what this is", true),
		file("/etc/open", 0o644, "text\n", false),
		file("/etc/binary", 0o644, "a\x00b", false),
	}
	now := []cloudinit.File{
		file(facts.SecretsPath, 0o600, `{"db": "newPassword"}`, true),
		file(facts.FactsPath, 0o644, `{"digest": "`+digest("b")+`"}`, false),
		file("/etc/db.conf", 0o600, "password newPassword\nport 2\n", true),
		file("/etc/hash", 0o600, "$6$new", true),
		{Path: "/etc/open", Mode: 0o644, Content: []byte("text\n"), Owner: "www:www"},
		file("/etc/binary", 0o644, "a\x00c", false),
		file("/etc/new", 0o600, "newPassword\n", true),
	}
	files, err := diffSeeds(&secrets.Secrets{Passwords: map[string]string{"db": "newPassword"}}, seed(old), seed(now), now)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, f := range files {
		f.print(&got, "web1")
	}
	const want = `web1/etc/imagegen/secrets.json: other secrets
web1/etc/db.conf: mode 0640, should be 0600
--- web1/etc/db.conf	runs
+++ web1/etc/db.conf	spec
@@ -1,2 +1,2 @@
 password (secret db)
-port 1
+port 2
web1/etc/hash: other secrets
web1/etc/open: owner root:root, should be www:www
--- web1/etc/binary	runs
+++ web1/etc/binary	spec
binary content
--- /dev/null
+++ web1/etc/new	spec
@@ -0,0 +1 @@
+(secret db)
--- web1/etc/gone	runs
+++ /dev/null
@@ -1 +0,0 @@
-(secret)
`
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

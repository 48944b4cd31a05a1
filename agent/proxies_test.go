package agent

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

// A real HAProxy reports which servers it uses, while servers come and go.
func TestWhereHAProxySends(t *testing.T) {
	testkit.Program(t, "haproxy", "haproxy")
	listen := func(addr string) net.Listener {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	var addrs []string
	var servers []net.Listener
	for range 3 { // databases
		l := listen(testkit.FreeAddress(t))
		servers, addrs = append(servers, l), append(addrs, l.Addr().String())
	}
	for range 3 { // HAProxy's own
		addrs = append(addrs, testkit.FreeAddress(t))
	}
	config := fmt.Sprintf(`defaults
    mode tcp
    timeout connect 1s
    timeout client 1s
    timeout server 1s
    timeout check 1s
listen mysql
    bind %[4]s
    default-server check inter 50ms fall 1 rise 1
    server p1 %[1]s
    server p2 %[2]s backup
    server p3 %[3]s backup
listen web
    bind %[6]s
    server w1 %[2]s
    server w2 %[3]s
frontend alive
    mode http
    bind %[5]s
    monitor-uri /alive
    stats enable
    stats uri /stats
`, addrs[0], addrs[1], addrs[2], addrs[3], addrs[4], addrs[5])
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("haproxy", "-db", "-f", path)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	s := &service{params: &facts.ServiceParams{Statistics: "http://" + addrs[4] + "/stats;csv"}}
	s.seen.Unit.Active = "active"
	expect := func(want string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			s.proxied = time.Time{}
			if s.observeProxies(t.Context()); s.seen.is() == want {
				return
			}
			if time.Now().After(end) {
				cmd.Process.Kill()
				t.Fatalf("%q, want %q; haproxy says %s", s.seen.is(), want, said.String())
			}
		}
	}
	expect("sending mysql to p1, web to w1 and w2")
	servers[0].Close()
	expect("sending mysql to p2, web to w1 and w2")
	servers[1].Close()
	servers[2].Close()
	expect("sending mysql to no server, web to w1 and w2")
	listen(addrs[0])
	expect("sending mysql to p1, web to w1 and w2")
	s.seen.Fault = "127.0.0.1:8404: no answer in time"
	s.observeProxies(t.Context())
	if s.seen.is() != "" {
		t.Errorf("something is known of an HAProxy that does not answer: %q", s.seen.is())
	}
}

func TestStatisticsThatAreNone(t *testing.T) {
	for _, page := range []string{"", "<html>", "# pxname,svname\nmysql,p1\n", "# pxname,svname,status,act,type,check_status\nmysql,p1\n",
		"# pxname,svname,status,act,type,check_status\nstats,FRONTEND,OPEN,,0,\n", "# pxname,svname,status,act,type,check_status\nmysql,p1,UP,1,2,INI\n"} {
		if got := sendsTo(strings.NewReader(page)); got != "" {
			t.Errorf("%q: %q", page, got)
		}
	}
}

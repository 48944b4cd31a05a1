package agent

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

func TestRESP(t *testing.T) {
	for text, want := range map[string]any{
		"+OK\r\n":                              "OK",
		":42\r\n":                              int64(42),
		"$5\r\nhello\r\n":                      "hello",
		"$0\r\n\r\n":                           "",
		"$-1\r\n":                              nil,
		"*-1\r\n":                              nil,
		"*2\r\n$1\r\na\r\n:1\r\n":              []any{"a", int64(1)},
		"-NOAUTH Authentication required.\r\n": redisError("NOAUTH Authentication required."),
	} {
		if got, err := readRESP(bufio.NewReader(strings.NewReader(text)), 0); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %#v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "\r\n", "+OK", "?\r\n", ":x\r\n", "$5\r\nhel", "$-2\r\n", "$99999999999\r\n", "*99999999\r\n", "*1\r\n", strings.Repeat("*1\r\n", 10)} {
		if got, err := readRESP(bufio.NewReader(strings.NewReader(text)), 0); err == nil {
			t.Errorf("%q: %#v", text, got)
		}
	}
}

func FuzzRESP(f *testing.F) {
	for _, s := range []string{"+OK\r\n", "$5\r\nhello\r\n", "*2\r\n$1\r\na\r\n:1\r\n", "-ERR\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := readRESP(bufio.NewReader(strings.NewReader(string(data))), 0); err == nil {
			pairs(v)
			infoFields(v)
		}
	})
}

// Real servers read the configurations that the agent writes.
func TestRedisConfigurations(t *testing.T) {
	text := []byte("port 6379\n")
	if got := string(redisConfig(text, "", 6379, true)); strings.Contains(got, "replica") {
		t.Errorf("a master:\n%s", got)
	}
	if got := string(redisConfig(text, "10.0.0.1", 6379, true)); !strings.HasSuffix(got, "\nreplicaof 10.0.0.1 6379\n") {
		t.Errorf("a replica with data:\n%s", got)
	}
	if got := string(redisConfig(text, "10.0.0.1", 6379, false)); !strings.Contains(got, "\nreplicaof 10.0.0.1 6379\n") || !strings.HasSuffix(got, "\nreplica-priority 0\n") {
		t.Errorf("a replica without data:\n%s", got)
	}
	p := &facts.SentinelParams{Master: "mymaster", RedisPort: 6379, Quorum: 2, DownAfter: 5000, FailoverTimeout: 15000, ParallelSyncs: 1}
	made := sentinelConfig([]byte("port 26379\n"), p, "10.0.0.1", "secret")
	if got := parseSentinelConfig(made, "mymaster"); got.Master != "10.0.0.1" || got.Epoch != 0 {
		t.Errorf("%+v from\n%s", got, made)
	}
	rewritten := "port 26379\nsentinel monitor mymaster 10.0.0.2 6379 2\nsentinel config-epoch mymaster 7\nsentinel monitor other 10.0.0.9 6379 2\nsentinel config-epoch other 9\n"
	if got := parseSentinelConfig([]byte(rewritten), "mymaster"); got.Master != "10.0.0.2" || got.Epoch != 7 {
		t.Errorf("%+v", got)
	}
	if got := parseSentinelConfig(nil, "mymaster"); got.Master != "" {
		t.Errorf("%+v", got)
	}
}

// Queries to a real Redis with the right and a wrong password, over TLS and in plain text; over TLS also to a server
// with another name, and to one that does not trust the agent.
func TestAskRedis(t *testing.T) {
	program := testkit.Program(t, "redis-server", "")
	dir := t.TempDir()
	ca, foreign := newAuthority(t), newAuthority(t)
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	redis1 := ca.issue(t, "redis1", tomorrow)
	key, err := x509.MarshalPKCS8PrivateKey(redis1.cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write("ca.crt", "CERTIFICATE", ca.cert.Raw)
	write("node.crt", "CERTIFICATE", redis1.cert.Certificate[0])
	write("node.key", "PRIVATE KEY", key)
	const encrypted = "port 0\ntls-port %d\ntls-cert-file node.crt\ntls-key-file node.key\ntls-ca-cert-file ca.crt\n"
	node := func(name string, id identity, password string) Node {
		return Node{Facts: facts.Facts{Node: facts.Peer{Name: name}}, Identity: id, Secrets: map[string]string{"redis": password}}
	}
	plainPort := serveRedis(t, program, dir, "port %d\n")
	tlsPort := serveRedis(t, program, dir, encrypted)
	ask := func(n Node, port int, encrypted bool) ([]any, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return n.respServer(port, encrypted, "redis").ask(ctx, []string{"PING"}, []string{"INFO"}, []string{"NONSENSE"})
	}
	good := node("redis1", redis1, "secret")
	for _, encrypted := range []bool{false, true} {
		port := plainPort
		if encrypted {
			port = tlsPort
		}
		var answers []any
		testkit.Eventually(t, time.Minute, "Redis answers", func() error {
			answers, err = ask(good, port, encrypted)
			if errors.Is(err, errTLS) {
				t.Fatal(err)
			}
			return err
		})
		if answers[0] != "PONG" || infoFields(answers[1])["role"] != "master" {
			t.Errorf("%.200v", answers)
		}
		if _, is := answers[2].(redisError); !is {
			t.Errorf("NONSENSE: %v", answers[2])
		}
		var refused redisError
		if _, err := ask(node("redis1", redis1, "wrong"), port, encrypted); !errors.As(err, &refused) || strings.Contains(err.Error(), "wrong\"") {
			t.Errorf("a wrong password: %v", err)
		}
	}
	for what, n := range map[string]Node{
		"another node's name":              node("redis2", redis1, "secret"),
		"a server of an unknown authority": node("redis1", identity{redis1.cert, foreign.issue(t, "redis1", tomorrow).ca}, "secret"),
		"an agent of an unknown authority": node("redis1", identity{foreign.issue(t, "redis1", tomorrow).cert, redis1.ca}, "secret"),
		"an agent without a certificate":   node("redis1", identity{ca: redis1.ca}, "secret"),
		"an agent with an expired one":     node("redis1", identity{ca.issue(t, "redis1", time.Now().Add(-time.Hour)).cert, redis1.ca}, "secret"),
	} {
		_, err := ask(n, tlsPort, true)
		if err == nil {
			t.Errorf("%s: answered", what)
		}
		// If the connection is closed before the server's TLS alert is read, the error is that of a write.
		if !strings.HasPrefix(what, "an agent") && !errors.Is(err, errTLS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ask(good, tlsPort, false); err == nil {
		t.Error("a server with TLS answers in the clear")
	}
}

// A Redis is asked over one connection, until it closes that, is started anew, or does not answer.
func TestConnectionToRedisIsKept(t *testing.T) {
	program := testkit.Program(t, "redis-server", "")
	dir, port := t.TempDir(), testkit.FreePort(t)
	serve := func() *os.Process { return startRedis(t, program, dir, fmt.Sprintf("port %d\n", port)) }
	server := serve()
	node := Node{Secrets: map[string]string{"redis": "secret"}}
	kept := &keptServer{respServer: node.respServer(port, false, "redis")}
	n := 0
	echo := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		n++
		answers, err := kept.ask(ctx, []string{"ECHO", fmt.Sprint(n)})
		if err == nil && answers[0] != fmt.Sprint(n) {
			t.Fatalf("the answer to %d is %v", n, answers[0])
		}
		return err
	}
	must := func(what string) {
		t.Helper()
		if err := echo(time.Minute); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	testkit.Eventually(t, time.Minute, "Redis answers", func() error { return echo(time.Minute) })
	connections := func() string {
		answers, err := kept.ask(t.Context(), []string{"INFO", "stats"})
		if err != nil {
			t.Fatal(err)
		}
		return infoFields(answers[0])["total_connections_received"]
	}
	before := connections()
	for range 5 {
		must("again")
	}
	if after := connections(); after != before {
		t.Errorf("there were %s connections, and are %s", before, after)
	}

	if _, err := kept.respServer.ask(t.Context(), []string{"CLIENT", "KILL", "TYPE", "normal"}); err != nil {
		t.Fatal(err)
	}
	must("after all connections were closed")

	server.Kill()
	server.Wait()
	if err := echo(time.Minute); err == nil {
		t.Error("a server that does not run answers")
	}
	server = serve()
	testkit.Eventually(t, time.Minute, "Redis answers again", func() error { return echo(time.Minute) })

	server.Signal(syscall.SIGSTOP)
	err := echo(100 * time.Millisecond)
	server.Signal(syscall.SIGCONT)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a server that hangs: %v", err)
	}
	must("after it hung") // with an answer to this question, not to the earlier one

	kept.conn.made = time.Now().Add(-2 * keepLimit)
	before = connections()
	must("after a while")
	if after := connections(); after != before {
		t.Errorf("a connection that has just been renewed is renewed again")
	}
	if time.Since(kept.conn.made) > keepLimit {
		t.Error("an old connection is kept: it could hide that no new ones are accepted")
	}
}

// serveRedis starts a Redis in dir and returns its port, which replaces the verb in directives.
func serveRedis(t *testing.T, program, dir, directives string) int {
	t.Helper()
	port := testkit.FreePort(t)
	startRedis(t, program, dir, fmt.Sprintf(directives, port))
	return port
}

// startRedis starts a Redis in dir.
func startRedis(t *testing.T, program, dir, directives string) *os.Process {
	t.Helper()
	server := exec.Command(program, "-")
	server.Dir = dir
	server.Stdin = strings.NewReader(directives + "bind 127.0.0.1\nrequirepass secret\nsave \"\"\n")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	return server.Process
}

// redisNodes returns a view of nodes redis1, redis2, … at 10.0.0.1, …, none of which is silent.
func redisNodes(self int, nodes ...redisMember) redisView {
	v := redisView{self: self}
	for i, m := range nodes {
		m.Member = ensemble.Member{Peer: facts.Peer{Name: fmt.Sprintf("redis%d", i+1), IP: fmt.Sprintf("10.0.0.%d", i+1)}, Heard: true, Hears: true}
		v.members = append(v.members, m)
	}
	return v
}

// Nobody has data. Who has not heard the first node may have been told to go on without it, and be about to become the first master.
func TestFirstMasterIsHeard(t *testing.T) {
	for hears, want := range map[bool]redisStep{true: redisFound, false: redisWait} {
		v := redisNodes(0, redisMember{}, redisMember{}, redisMember{})
		v.members[1].Hears = hears
		if step, _, status := decideRedis(v); step != want {
			t.Errorf("another node hears this one: %t: step %d, %+v", hears, step, status)
		}
	}
}

// The first master lost its disk. It starts again as the first if nobody has data, which a replica that Sentinel may choose has, although
// that is noted only next.
func TestFirstMasterWithoutItsDisk(t *testing.T) {
	const me = "10.0.0.1"
	knows := sentinelReport{Running: true, Master: me, Down: true, Others: 2}
	replica := func(eligible bool) redisMember {
		return redisMember{redisReport: redisReport{Running: true, Role: "slave", Master: me, Eligible: eligible}, sentinel: knows}
	}
	for eligible, want := range map[bool]redisStep{false: redisFound, true: redisWait} {
		if step, _, status := decideRedis(redisNodes(0, redisMember{sentinel: knows}, replica(eligible), replica(false))); step != want {
			t.Errorf("Sentinel may choose another: %t: step %d, %+v", eligible, step, status)
		}
	}
}

// A master whose Sentinels consider it down and can elect another waits for that. Otherwise there would be two.
func TestMasterThatIsBeingReplacedWaits(t *testing.T) {
	const me = "10.0.0.1"
	stopped := redisMember{redisReport: redisReport{HasData: true, Founder: true}, sentinel: sentinelReport{Master: me, Epoch: 3}}
	other := func(down, running, member bool) redisMember {
		return redisMember{redisReport: redisReport{Running: running, HasData: member, Role: "slave", Master: me},
			sentinel: sentinelReport{Running: true, Master: me, Epoch: 3, Down: down, Others: 2}}
	}
	off := other(true, true, true)
	off.sentinel.Running = false
	more := other(true, true, true)
	more.sentinel.Others = 3
	unable := other(true, true, true)
	unable.sentinel.Quorum = "3 of 4 are needed"
	elsewhere := other(true, true, true)
	elsewhere.sentinel.Master, elsewhere.sentinel.Epoch = "10.0.0.2", 2
	for name, c := range map[string]struct {
		others [2]redisMember
		want   redisStep
	}{
		"both hold it to be down":            {[2]redisMember{other(true, true, true), other(true, true, true)}, redisWait},
		"one does":                           {[2]redisMember{other(true, true, true), other(false, true, true)}, redisWait},
		"none does":                          {[2]redisMember{other(false, true, true), other(false, true, true)}, redisLead},
		"there is nobody to choose":          {[2]redisMember{other(true, false, true), other(true, true, false)}, redisLead},
		"one Sentinel of three is no quorum": {[2]redisMember{other(true, true, true), off}, redisLead},
		"one has an earlier master":          {[2]redisMember{other(true, true, true), elsewhere}, redisLead},
		"two are no majority of four":        {[2]redisMember{more, more}, redisLead},
		"two have no quorum":                 {[2]redisMember{unable, unable}, redisLead},
		"one has a quorum":                   {[2]redisMember{unable, other(true, true, true)}, redisWait},
	} {
		if step, master, status := decideRedis(redisNodes(0, stopped, c.others[0], c.others[1])); step != c.want {
			t.Errorf("%s: step %d, %s, %+v", name, step, master, status)
		}
	}
}

// The disks of the master and of another node were replaced. The third, with the only data, was started as a replica, and is the master for
// all Sentinels, who promote nobody: the others have nothing.
func TestLastWithDataBecomesTheMaster(t *testing.T) {
	const me = "10.0.0.1"
	last := redisMember{redisReport: redisReport{Running: true, HasData: true, Role: "slave", Master: "10.0.0.2"}, sentinel: sentinelReport{Running: true, Master: me, Down: true}}
	empty := redisMember{redisReport: redisReport{Running: true, Role: "slave", Master: me}, sentinel: sentinelReport{Running: true, Master: me, Down: true}}
	if step, _, status := decideRedis(redisNodes(0, last, empty, empty)); step != redisStop {
		t.Errorf("it runs: step %d, %+v", step, status)
	}
	stopped := last
	stopped.redisReport = redisReport{HasData: true}
	if step, _, status := decideRedis(redisNodes(0, stopped, empty, empty)); step != redisLead {
		t.Errorf("it has stopped: step %d, %+v", step, status)
	}
	for name, change := range map[string]func(last, other *redisMember){
		"Sentinel does not hold it to be down": func(last, _ *redisMember) { last.sentinel.Down = false },
		"it has the master's data":             func(last, _ *redisMember) { last.Synced = true },
		"it has no data of its own":            func(last, _ *redisMember) { last.HasData = false },
		"another has data":                     func(_, other *redisMember) { other.HasData = true },
		"another Sentinel has another master":  func(_, other *redisMember) { other.sentinel.Master = "10.0.0.2" },
	} {
		last, other := last, empty
		change(&last, &other)
		if step, _, status := decideRedis(redisNodes(0, last, other, empty)); step == redisStop {
			t.Errorf("%s: %+v", name, status)
		}
	}
	alone := redisNodes(0, last, empty, empty)
	alone.members[1].Heard, alone.members[2].Heard = false, false
	if step, _, status := decideRedis(alone); step == redisStop {
		t.Errorf("nobody else is heard: %+v", status)
	}
}

// A running master that its own Sentinel does not follow has not been told about the new one yet.
func TestMasterThatItsSentinelDoesNotFollow(t *testing.T) {
	stale := redisMember{redisReport: redisReport{Running: true, HasData: true, Role: "master"}, sentinel: sentinelReport{Running: true, Master: "10.0.0.3", Epoch: 4}}
	stopped := redisMember{redisReport: redisReport{HasData: true}, sentinel: sentinelReport{Master: "10.0.0.2", Epoch: 3}}
	chosen := redisMember{redisReport: redisReport{HasData: true}, sentinel: sentinelReport{Master: "10.0.0.3", Epoch: 4}}
	if step, master, status := decideRedis(redisNodes(0, stopped, stale, chosen)); step != redisFollow || master != "10.0.0.3" {
		t.Errorf("step %d, %s, %+v", step, master, status)
	}
	if step, master, status := decideRedis(redisNodes(2, stopped, stale, chosen)); step != redisLead {
		t.Errorf("the chosen one: step %d, %s, %+v", step, master, status)
	}
	stale.sentinel.Master = "10.0.0.2"
	if step, master, status := decideRedis(redisNodes(0, stopped, stale, chosen)); step != redisFollow || master != "10.0.0.2" {
		t.Errorf("one that its Sentinel follows: step %d, %s, %+v", step, master, status)
	}
}

// Half of the nodes are not enough: the other half may have replaced the master that they know.
func TestHalfIsNoMajority(t *testing.T) {
	for nodes, need := range map[int]int{1: 1, 2: 2, 3: 2, 4: 3, 5: 3} {
		for heard := 1; heard <= nodes; heard++ {
			var all []redisMember
			for range nodes {
				all = append(all, redisMember{redisReport: redisReport{HasData: true}, sentinel: sentinelReport{Master: "10.0.0.1", Epoch: 3}})
			}
			v := redisNodes(0, all...)
			for i := heard; i < nodes; i++ {
				v.members[i] = redisMember{Member: ensemble.Member{Peer: v.members[i].Peer}}
			}
			step, _, status := decideRedis(v)
			if leads := step == redisLead; leads != (heard >= need) {
				t.Errorf("%d of %d nodes heard: step %d, %+v", heard, nodes, step, status)
			}
		}
	}
}

// Data of another cluster is never used.
func TestRedisDataOfAnotherCluster(t *testing.T) {
	r := &redisUnit{node: Node{Facts: facts.Facts{ClusterID: "ours"}}, params: &facts.RedisParams{Dir: t.TempDir()}}
	for text, want := range map[string]string{
		`{"cluster":"ours","founder":true}`: "",
		`{"cluster":"theirs"}`:              "of the cluster theirs, and this one is ours",
		`{"cluster":""}`:                    "of the cluster",
		`{"cluster":`:                       "unexpected end",
		"":                                  "unexpected end",
	} {
		if err := os.WriteFile(filepath.Join(r.params.Dir, memberName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := r.member()
		if want == "" && (err != nil || !m.Founder) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %+v, %v", text, m, err)
		}
	}
	if err := os.Remove(filepath.Join(r.params.Dir, memberName)); err != nil {
		t.Fatal(err)
	}
	if m, err := r.member(); err != nil || m.Cluster != "" {
		t.Errorf("without a mark: %+v, %v", m, err)
	}
}

// A Sentinel without its master and all other Sentinels promotes its replica only when told to.
func TestSentinelFailsOverAlone(t *testing.T) {
	server := testkit.Program(t, "redis-server", "")
	program := testkit.Program(t, "redis-sentinel", "")
	dir := t.TempDir()
	node := Node{Secrets: map[string]string{"redis": "secret"}}
	master := serveRedis(t, server, dir, "port %d\n")
	replica := serveRedis(t, server, dir, fmt.Sprintf("port %%d\nmasterauth secret\nreplicaof 127.0.0.1 %d\n", master))
	port := testkit.FreePort(t)
	config := filepath.Join(dir, "sentinel.conf")
	text := fmt.Sprintf("port %d\nbind 127.0.0.1\nrequirepass secret\ndir %s\nsentinel monitor m 127.0.0.1 %d 2\nsentinel auth-pass m secret\n"+
		"sentinel down-after-milliseconds m 500\nsentinel failover-timeout m 4000\nsentinel known-replica m 127.0.0.1 %d\n", port, dir, master, replica)
	for _, gone := range []string{"redis1", "redis3"} {
		text += fmt.Sprintf("sentinel known-sentinel m 127.0.0.1 1 %s\n", sentinelID("c", gone))
	}
	view := redisNodes(0, redisMember{redisReport: redisReport{Epoch: 1_700_000_000}})
	text += string(firstEpoch(&facts.SentinelParams{Master: "m"}, view.members[0].IP, view))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	process := exec.Command(program, config)
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Process.Kill(); process.Wait() })

	u := &sentinelUnit{node: node, params: &facts.SentinelParams{Port: port, Secret: "redis", Master: "m"}, server: keptServer{respServer: node.respServer(port, false, "redis")}}
	await := func(what string, is func() bool) {
		t.Helper()
		testkit.Until(t, 2*time.Minute, what, is)
	}
	info := func(port int) map[string]string {
		answers, err := node.respServer(port, false, "redis").ask(t.Context(), []string{"INFO"})
		if err != nil {
			return nil
		}
		return infoFields(answers[0])
	}
	seen := func() (s sentinelReport) { u.ask(t.Context(), &s); return s }
	await("the replica is in sync", func() bool { return info(replica)["master_link_status"] == "up" })
	await("Sentinel has the master", func() bool { s := seen(); return s.Running && !s.Down })
	node.respServer(master, false, "redis").ask(t.Context(), []string{"SHUTDOWN", "NOSAVE"}) // closes the connection
	await("Sentinel holds the master to be down", func() bool { s := seen(); return s.Down && s.Quorum != "" })
	if role := info(replica)["role"]; role != "slave" {
		t.Errorf("without a majority, the replica has become %s", role)
	}
	asked := time.Time{}
	await("the replica is promoted", func() bool {
		if time.Since(asked) > 5*time.Second {
			if err := u.failover(t.Context()); err != nil {
				t.Log(err)
			}
			asked = time.Now()
		}
		return info(replica)["role"] == "master"
	})
	await("Sentinel has the new master", func() bool { s := seen(); return s.Running && !s.Down && s.Epoch > 1_700_000_000 })
}

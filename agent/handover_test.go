package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

// A real Sentinel makes the replica the master, while a client writes: no write that the old master has acknowledged is lost.
func TestMasterIsHandedOver(t *testing.T) {
	server := testkit.Program(t, "redis-server", "")
	program := testkit.Program(t, "redis-sentinel", "")
	dir := t.TempDir()
	node := Node{Secrets: map[string]string{"redis": "secret"}}
	master := serveRedis(t, server, dir, "port %d\nmasterauth secret\n")
	replica := serveRedis(t, server, dir, fmt.Sprintf("port %%d\nmasterauth secret\nreplicaof 127.0.0.1 %d\n", master))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	config := filepath.Join(dir, "sentinel.conf")
	text := fmt.Sprintf("port %d\nbind 127.0.0.1\nrequirepass secret\ndir %s\nsentinel monitor m 127.0.0.1 %d 1\nsentinel auth-pass m secret\n"+
		"sentinel down-after-milliseconds m 60000\nsentinel failover-timeout m 60000\n", port, dir, master)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	process := exec.Command(program, config)
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Process.Kill(); process.Wait() })

	h := redisHandover{redis: node.respServer(master, false, "redis"), sentinel: node.respServer(port, false, "redis"), master: "m"}
	const limit = 3 * time.Minute
	testkit.Until(t, limit, "the replica is in sync, and Sentinel knows it", func() bool {
		answer, err := h.ask(t.Context(), h.sentinel, "SENTINEL", "REPLICAS", "m")
		all, _ := answer.([]any)
		return err == nil && len(all) == 1 && pairs(all[0])["master-link-status"] == "ok"
	})

	// One write after the other, until the master takes no more.
	acknowledged := make(chan int, 1)
	go func() {
		n := 0
		for {
			answer, err := h.ask(t.Context(), h.redis, "INCR", "n")
			if err != nil {
				break
			}
			n, _ = strconv.Atoi(fmt.Sprint(answer))
		}
		acknowledged <- n
	}()
	testkit.Until(t, limit, "writes", func() bool {
		answer, err := h.ask(t.Context(), h.redis, "GET", "n")
		return err == nil && answer != nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	at, err := h.run(ctx)
	if err != nil || at != "127.0.0.1" {
		t.Fatalf("handed over to %q: %v", at, err)
	}
	info := infoFields(mustAsk(t, h, h.redis, "INFO", "replication"))
	if info["role"] != "slave" || info["master_port"] != strconv.Itoa(replica) {
		t.Errorf("the old master is a %s of port %s, and the replica has port %d", info["role"], info["master_port"], replica)
	}
	n := <-acknowledged
	other := node.respServer(replica, false, "redis")
	if role := infoFields(mustAsk(t, h, other, "INFO", "replication"))["role"]; role != "master" {
		t.Errorf("the replica has become a %s", role)
	}
	if has, _ := strconv.Atoi(fmt.Sprint(mustAsk(t, h, other, "GET", "n"))); n == 0 || has < n {
		t.Errorf("the new master has %d of %d writes", has, n)
	}
	mustAsk(t, h, other, "SET", "after", "1") // it takes writes
}

func mustAsk(t *testing.T, h redisHandover, server respServer, command ...string) any {
	t.Helper()
	answer, err := h.ask(t.Context(), server, command...)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return answer
}

func TestCanHandOver(t *testing.T) {
	const me = "10.0.0.1"
	master := redisMember{redisReport: redisReport{Running: true, HasData: true, Role: "master", Replicas: 2}, sentinel: sentinelReport{Running: true, Master: me}}
	replica := redisMember{redisReport: redisReport{Running: true, HasData: true, Role: "slave", Master: me, Synced: true, Eligible: true}, sentinel: sentinelReport{Running: true, Master: me}}
	for name, c := range map[string]struct {
		edit func(v *redisView)
		want string
	}{
		"all are in sync":            {func(*redisView) {}, ""},
		"one is silent":              {func(v *redisView) { v.members[1].Heard = false }, ""},
		"all are silent":             {func(v *redisView) { v.members[1].Heard, v.members[2].Heard = false, false }, "there is no replica that could become the master"},
		"one is not in sync":         {func(v *redisView) { v.members[2].Synced = false }, "redis3 is not in sync with this master, and Sentinel could choose it"},
		"one follows another":        {func(v *redisView) { v.members[1].Master = "10.0.0.3" }, "redis2 is not in sync with this master, and Sentinel could choose it"},
		"none may be chosen":         {func(v *redisView) { v.members[1].Eligible, v.members[2].Eligible = false, false }, "there is no replica that could become the master"},
		"too few Sentinels":          {func(v *redisView) { v.members[0].sentinel.Quorum = "NOQUORUM" }, "the Sentinels do not agree that this node is the master, or are too few"},
		"Sentinel has another":       {func(v *redisView) { v.members[0].sentinel.Master = "10.0.0.2" }, "the Sentinels do not agree that this node is the master, or are too few"},
		"Sentinel takes it for dead": {func(v *redisView) { v.members[0].sentinel.Down = true }, "the Sentinels do not agree that this node is the master, or are too few"},
	} {
		v := redisNodes(0, master, replica, replica)
		c.edit(&v)
		said := ""
		if err := canHandOver(v); err != nil {
			said = err.Error()
		}
		if said != c.want {
			t.Errorf("%s: %q, want %q", name, said, c.want)
		}
	}
}

func TestCaughtUp(t *testing.T) {
	replica := func(state string, offset int) string {
		return fmt.Sprintf("ip=10.0.0.2,port=6379,state=%s,offset=%d,lag=0", state, offset)
	}
	for name, c := range map[string]struct {
		info map[string]string
		want bool
	}{
		"nobody":         {map[string]string{}, false},
		"all":            {map[string]string{"slave0": replica("online", 7), "slave1": replica("online", 9)}, true},
		"one lacks some": {map[string]string{"slave0": replica("online", 7), "slave1": replica("online", 6)}, false},
		"one begins":     {map[string]string{"slave0": replica("online", 7), "slave1": replica("wait_bgsave", 7)}, false},
		"nonsense":       {map[string]string{"slave0": "online"}, false},
	} {
		if got := caughtUp(c.info, 7); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// keeper is keepalived on two nodes, of which another one may be there.
type keeper struct {
	now          time.Time
	has, runs    bool
	other, stuck bool
	told         []string
}

func (k *keeper) Now() time.Time { return k.now }
func (k *keeper) Sleep(_ context.Context, d time.Duration) {
	k.now = k.now.Add(d)
	k.has = k.has && (k.runs || k.stuck) || k.runs && !k.other
}
func (k *keeper) Limit(ctx context.Context, _ time.Duration) (context.Context, context.CancelFunc) {
	return context.WithCancel(ctx)
}
func (k *keeper) holds() []string {
	if k.has {
		return []string{"10.0.0.9"}
	}
	return nil
}
func (k *keeper) stop(context.Context) error {
	k.runs, k.told = false, append(k.told, "stop")
	return nil
}
func (k *keeper) start(context.Context) error {
	k.runs, k.told = true, append(k.told, "start")
	return nil
}

func TestAddressIsGivenAway(t *testing.T) {
	for name, c := range map[string]struct {
		keeper
		moved, fails, told string
	}{
		"another takes it": {keeper{has: true, runs: true, other: true}, "10.0.0.9", "", "stop start"},
		"nobody else":      {keeper{has: true, runs: true}, "", "no other node takes 10.0.0.9", "stop start"},
		"it does not stop": {keeper{has: true, runs: true, other: true, stuck: true}, "", "it does not give up 10.0.0.9", "stop start"},
		"it has none":      {keeper{runs: true, other: true}, "", "", ""},
	} {
		moved, err := giveAway(t.Context(), &c.keeper, &c.keeper)
		said := ""
		if err != nil {
			said = err.Error()
		}
		if moved != c.moved || said != c.fails || strings.Join(c.keeper.told, " ") != c.told {
			t.Errorf("%s: %q, %q, %q", name, moved, said, c.keeper.told)
		}
	}
}

// A member yields if another serves, wherever load balancers send writes now.
func TestWritesAreHandedOver(t *testing.T) {
	members := []facts.Peer{{Name: "percona1", Role: "percona", IP: "10.0.0.1"}, {Name: "percona2", Role: "percona", IP: "10.0.0.2", Index: 1}}
	report := func(p facts.Peer, state galeraState) facts.NodeReport {
		data, err := json.Marshal(galeraReport{State: state})
		if err != nil {
			t.Fatal(err)
		}
		return facts.NodeReport{Node: p, Components: map[string]facts.ComponentReport{"galera": {Kind: "galera", Report: data}}}
	}
	for name, c := range map[string]struct {
		own, other   galeraState
		moved, fails string
	}{
		"both serve":           {galeraServing, galeraServing, "the writes", ""},
		"the other is joining": {galeraServing, galeraJoining, "", "no other member serves"},
		"this one does not":    {galeraJoining, galeraServing, "", ""},
	} {
		w := World{Self: members[0], Peers: members[1:], Own: report(members[0], c.own), Reports: map[string]ensemble.PeerReport{"percona2": {NodeReport: report(members[1], c.other)}}}
		moved, yields, err := new(galera).handOver(t.Context(), w)
		said := ""
		if err != nil {
			said = err.Error()
		}
		if moved != c.moved || yields != (c.moved != "") || said != c.fails {
			t.Errorf("%s: %q, %v, %q", name, moved, yields, said)
		}
	}
}

// leads is a component that hands over.
type leads struct {
	scripted
	moved string
	err   error
}

func (l leads) handOver(context.Context, World) (string, bool, error) {
	return l.moved, l.moved != "", l.err
}

// Load balancers are told to prefer others for a while; the component itself stays ready. Only the operator may ask.
func TestHandover(t *testing.T) {
	state := scripted{
		observe: func() (any, error) { return nil, nil },
		step:    func(World) (facts.Status, error) { return ready(""), nil },
	}
	clock := &keeper{now: time.Unix(1_700_000_000, 0)}
	first, second := component("quiet", nil, state), component("galera", nil, leads{scripted: state, moved: "the writes"})
	a := testAgent(func(string) {}, first, second)
	a.clock = clock
	for _, r := range a.runners {
		a.turn(t.Context(), r)
	}
	healthy := func() bool {
		w := httptest.NewRecorder()
		a.healthHandler().ServeHTTP(w, httptest.NewRequest("GET", "/galera", nil))
		return w.Code == http.StatusOK
	}
	if !healthy() {
		t.Fatal("it is not ready")
	}
	for range 2 {
		moved, err := a.handOver(t.Context())
		if err != nil || !slices.Equal(moved, []string{"the writes"}) || healthy() || !a.isReady() {
			t.Errorf("%q, %v, healthy: %v, ready: %v", moved, err, healthy(), a.isReady())
		}
	}
	clock.now = clock.now.Add(yieldTime)
	if !healthy() {
		t.Error("it yields for ever")
	}
	second.impl = leads{scripted: state, err: errors.New("no other member serves")}
	if _, err := a.handOver(t.Context()); err == nil || err.Error() != "galera is not handed over: no other member serves" || !healthy() {
		t.Errorf("nobody takes over: %v, healthy: %v", err, healthy())
	}
	second.impl = leads{scripted: state}
	if moved, err := a.handOver(t.Context()); err != nil || len(moved) > 0 || !healthy() {
		t.Errorf("there is nothing to hand over: %q, %v", moved, err)
	}
	w := httptest.NewRecorder()
	a.serveHandover(w, httptest.NewRequest("POST", facts.HandoverPath, nil))
	if w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != `{"moved":[]}` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

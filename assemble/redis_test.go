package assemble

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
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

// The configurations as the agent writes them, read by real servers.
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
	p := &cluster.SentinelParams{Master: "mymaster", RedisPort: 6379, Quorum: 2, DownAfter: 5000, FailoverTimeout: 15000, ParallelSyncs: 1}
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

// A real Redis is asked with its password, with a wrong one, and not at all.
func TestAskRedis(t *testing.T) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("SKIPPED: no redis-server on this machine (package redis-server)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	server := exec.Command(program, "-")
	server.Dir = t.TempDir()
	server.Stdin = strings.NewReader("port " + strconv.Itoa(port) + "\nbind 127.0.0.1\nrequirepass secret\nsave \"\"\n")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })

	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	ask := func(password string) ([]any, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return askRedis(ctx, addr, password, []string{"PING"}, []string{"INFO"}, []string{"NONSENSE"})
	}
	var answers []any
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if answers, err = ask("secret"); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if answers[0] != "PONG" || infoFields(answers[1])["role"] != "master" {
		t.Errorf("%.200v", answers)
	}
	if _, is := answers[2].(redisError); !is {
		t.Errorf("NONSENSE: %v", answers[2])
	}
	var refused redisError
	if _, err := ask("wrong"); !errors.As(err, &refused) || strings.Contains(err.Error(), "wrong\"") {
		t.Errorf("a wrong password: %v", err)
	}
}

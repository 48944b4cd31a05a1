package agent

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

// clientAs returns a client of an agent's API, with a certificate for as.
func clientAs(t *testing.T, ca authority, addr, as string) func(path string) *http.Response {
	t.Helper()
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: ca.issue(t, as, time.Now().Add(time.Hour)).client("web1")}}
	t.Cleanup(c.CloseIdleConnections)
	return func(path string) *http.Response {
		t.Helper()
		resp, err := c.Get("https://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
}

// Only the operator may read the journal. It is followed until the client disconnects, and the number of readers is
// limited.
func TestJournal(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	a := testAgent(func(string) {})
	// The program prints its arguments, and with --follow keeps running.
	a.journal = []string{"sh", "-c", `echo "$@"; case "$*" in *--follow*) echo $$ >> ` + pids + `; exec sleep 1000;; esac`, "journalctl"}
	ca := newAuthority(t)
	addr := serveAPI(t, a.apiHandler(), ca.issue(t, "web1", time.Now().Add(time.Hour)))
	operator, peer := clientAs(t, ca, addr, facts.OperatorName), clientAs(t, ca, addr, "web2")

	for _, path := range []string{facts.LogsPath, facts.EventsPath} {
		if resp := peer(path); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s answers a peer: %s", path, resp.Status)
		}
		if resp := operator(path + "?since=yesterday"); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s takes a time that is none: %s", path, resp.Status)
		}
	}
	for query, want := range map[string]string{
		"":                   "--no-pager --output=short-iso --lines=1000\n",
		"?since=15m":         "--no-pager --output=short-iso --lines=100000 --since=-901s\n",
		"?since=1s;rm&x=--y": "",
	} {
		resp := operator(facts.LogsPath + query)
		text, _ := io.ReadAll(resp.Body)
		if want != "" && string(text) != want || want == "" && resp.StatusCode == http.StatusOK && strings.Contains(string(text), "rm") {
			t.Errorf("%s: %q, want %q", query, text, want)
		}
	}

	var following []*http.Response
	for range journalReaders {
		resp := operator(facts.LogsPath + "?follow=1")
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		if err != nil || !strings.HasSuffix(line, " --follow\n") {
			t.Fatalf("%q, %v", line, err)
		}
		following = append(following, resp)
	}
	if resp := operator(facts.LogsPath); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("one reader too many: %s", resp.Status)
	}
	for _, resp := range following {
		resp.Body.Close()
	}
	testkit.Until(t, time.Minute, "journalctl ends with its reader", func() bool {
		text, _ := os.ReadFile(pids)
		alive := 0
		for pid := range strings.FieldsSeq(string(text)) {
			var n int
			fmt.Sscan(pid, &n)
			if syscall.Kill(n, 0) == nil {
				alive++
			}
		}
		return alive == 0
	})
	testkit.Until(t, time.Minute, "another may read", func() bool { return operator(facts.LogsPath).StatusCode == http.StatusOK })
}

// The journal is rate-limited, but nothing of it is lost.
func TestJournalIsWhole(t *testing.T) {
	a := testAgent(func(string) {})
	a.journal = []string{"sh", "-c", "seq 1 100000"}
	ca := newAuthority(t)
	addr := serveAPI(t, a.apiHandler(), ca.issue(t, "web1", time.Now().Add(time.Hour)))
	text, err := io.ReadAll(clientAs(t, ca, addr, facts.OperatorName)(facts.LogsPath).Body)
	if err != nil || strings.Count(string(text), "\n") != 100000 || !strings.HasSuffix(string(text), "\n100000\n") {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// Events survive a restart, take limited space, and a line truncated by a power failure does no harm.
func TestEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.json")
	e := openEvents(path)
	long := strings.Repeat("x", 300)
	for i := range 5 * eventsKept {
		e.add(facts.Event{Time: time.Unix(int64(i), 0), Component: "galera", Text: fmt.Sprint(i, long)})
		if info, err := os.Stat(path); err != nil || info.Size() > eventsSize {
			t.Fatalf("%d bytes, %v", info.Size(), err)
		}
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"time":"2026-`)
	f.Close()
	e = openEvents(path)
	e.add(facts.Event{Time: time.Unix(10000, 0), Text: "ready"})
	e = openEvents(path)
	all := e.since(time.Time{})
	if len(all) != eventsKept || all[len(all)-1].Text != "ready" || !strings.HasPrefix(all[0].Text, "4001x") {
		t.Errorf("%d events, from %.20s to %.20s", len(all), all[0].Text, all[len(all)-1].Text)
	}
	if some := e.since(time.Unix(4998, 0)); len(some) != 2 {
		t.Errorf("%d events since then", len(some))
	}
}

// Changes of roles, silent nodes and moved virtual addresses are events.
func TestWhatHappens(t *testing.T) {
	role := "slave"
	redis := component("redis", nil, scripted{
		observe: func() (any, error) { return redisReport{Running: true, Role: role}, nil },
		step:    func(World) (facts.Status, error) { return ready(""), nil },
	})
	a := testAgent(func(string) {}, redis)
	a.turn(t.Context(), redis)
	a.turn(t.Context(), redis)
	role = "master"
	a.turn(t.Context(), redis)
	a.hold([]string{"10.0.0.39"})
	a.hold([]string{"10.0.0.39"})
	a.hold(nil)
	ca := newAuthority(t)
	addr := serveAPI(t, a.apiHandler(), ca.issue(t, "web1", time.Now().Add(time.Hour)))
	operator := clientAs(t, ca, addr, facts.OperatorName)
	var got facts.Events
	if err := json.NewDecoder(operator(facts.EventsPath + "?since=1h").Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, v := range got.Events {
		texts = append(texts, strings.TrimSpace(v.Component+" "+v.Text))
	}
	want := []string{"redis is replica", "redis ready", "ready", "redis is master", "holds 10.0.0.39", "gave up 10.0.0.39"}
	if got.Node != "web1" || !slices.Equal(texts, want) {
		t.Errorf("%s: %q, want %q", got.Node, texts, want)
	}
	if is := a.report().Components["redis"].Is; is != "master" {
		t.Errorf("redis is %q", is)
	}
}

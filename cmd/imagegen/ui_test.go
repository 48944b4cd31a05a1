package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"imagegen/images"
	"imagegen/operate"
)

func TestBlockOnTerminal(t *testing.T) {
	var out bytes.Buffer
	b := &block{w: &out, terminal: true}
	b.show([]string{"one", "two"})
	b.show([]string{"three"})
	b.say("stays")
	b.show(nil)
	b.clear()
	const open, end, erase = "\x1b[?7l", "\n\x1b[?7h", "\r\x1b[J"
	want := erase + open + "one\ntwo" + end +
		"\x1b[2A" + erase + open + "three" + end +
		"\x1b[1A" + erase + "stays\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}

	out.Reset()
	b.show(strings.Split(strings.Repeat("x ", 30), " "))
	if n := strings.Count(out.String(), "\n"); n != maxHeight || !strings.Contains(out.String(), "… and 12 more") {
		t.Errorf("%d lines: %q", n, out.String())
	}
}

func TestBlockElsewhere(t *testing.T) {
	var out bytes.Buffer
	b := &block{w: &out}
	b.show([]string{"one", "two"})
	b.say("said")
	b.clear()
	if out.String() != "said\n" {
		t.Errorf("got %q", out.String())
	}
}

func TestBakes(t *testing.T) {
	now := time.Unix(0, 0)
	tell := func(p images.Progress) {
		p.Step("base", "download")
		now = now.Add(62 * time.Second)
		p.Done("base", false)
		p.Step("web", "install")
		p.Step("redis", "install")
		p.Done("web", false)
		p.Done("percona", true)
	}
	var out bytes.Buffer
	tell(&bakes{block: &block{w: &out}, now: func() time.Time { return now }})
	want := "base: download\nbase: done in 1m02s\nweb: install\nredis: install\nweb: done in 0s\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
	out.Reset()
	b := &block{w: &out, terminal: true}
	tell(&bakes{block: b, now: func() time.Time { return now }})
	if !strings.HasSuffix(out.String(), "\x1b[?7lredis: install\n\x1b[?7h") || b.height != 1 {
		t.Errorf("got %q", out.String())
	}
}

func TestSummary(t *testing.T) {
	for want, cached := range map[string][]bool{
		"d: 2 images, up to date":            {true, true},
		"d: baked 2 images (a, b)":           {false, false},
		"d: baked 1 image (b), 1 up to date": {true, false},
	} {
		var rs []images.Result
		for i, c := range cached {
			rs = append(rs, images.Result{Role: string(rune('a' + i)), Cached: c})
		}
		if got := summary("d", rs); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestStatusTable(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var out bytes.Buffer
	err := printTable(&out, []operate.NodeStatus{
		{Node: "balancer1", Role: "balancer", Address: "192.168.10.40", State: "ready", Since: now.Add(-75 * time.Second), Build: operate.BuildCurrent, Is: "holds 192.168.10.39", Warnings: []string{"disk: /dev/vdb is 93 % full"}},
		{Node: "redis1", Role: "redis", Address: "192.168.10.49", State: "waiting", Since: now.Add(-3 * time.Hour), Detail: "redis: redis2 and redis3 to answer", Build: operate.BuildOlder},
		{Node: "web1", Role: "web", Address: "192.168.10.42", State: "silent", Error: "no answer within 2s"},
		{Node: "web2", Role: "web", Address: "192.168.10.43", State: "off", Since: now.Add(-72 * time.Hour)},
		{Node: "web3", Role: "web", Address: "192.168.10.44", Power: "on", State: "ready", Build: operate.BuildRemoved},
		{Node: "web4", State: "off", Build: operate.BuildRemoved},
	}, now)
	want := `NODE       ROLE      ADDRESS        STATE    SINCE  BUILD    IS                   WAITS FOR
balancer1  balancer  192.168.10.40  ready    1m15s  current  holds 192.168.10.39  -
redis1     redis     192.168.10.49  waiting  3h00m  older    -                    redis: redis2 and redis3 to answer
web1       web       192.168.10.42  silent   -      -        -                    no answer within 2s
web2       web       192.168.10.43  off      3d     -        -                    -
web3       web       192.168.10.44  ready    -      removed  -                    -
web4       -         -              off      -      removed  -                    -

web3 is not in the spec any more: imagegen kill web3 turns it off; imagegen down web3 also removes its disks, seed and key.

web4 is not in the spec any more: imagegen down web4 removes its disks, seed and key.

balancer1: disk: /dev/vdb is 93 % full
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// The table has a HOST column if machines have hosts.
func TestStatusTableWithHosts(t *testing.T) {
	var out bytes.Buffer
	err := printTable(&out, []operate.NodeStatus{{Node: "web1", Role: "web", Address: "10.0.0.1", Host: "h1", State: "ready"}, {Node: "web2", State: "off"}}, time.Now())
	want := `NODE  ROLE  ADDRESS   HOST  STATE  SINCE  BUILD  IS  WAITS FOR
web1  web   10.0.0.1  h1    ready  -      -      -   -
web2  -     -         -     off    -      -      -   -
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// Control characters, and only these, are removed from a journal, however it is split into writes.
func TestPrintableWriter(t *testing.T) {
	var out bytes.Buffer
	w := &printableWriter{w: &out}
	for _, b := range []byte("gr\u00fc\u00dfe \U0001f600\x1b[31m\tred\n") {
		w.Write([]byte{b})
	}
	if want := "gr\u00fc\u00dfe \U0001f600[31m\tred\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// Without a terminal, --wait prints each change of a node once, and nothing for every retry.
func TestWaitSaysNewsOnce(t *testing.T) {
	said := news{}
	long := strings.Repeat("ä", 300)
	for _, c := range []struct {
		state, detail string
		fresh         bool
	}{
		{"silent", "its agent does not answer", true},
		{"waiting", "galera: for percona2, percona3", true},
		{"waiting", "galera: for percona3", true}, // another node: new
		{"failed", "site: exit status 1 after 12s (job 4711): " + long, true},
		{"working", "site: starting anew", true},
		{"failed", "site: exit status 1 after 1m02s (job 4712): " + long, false},
		{"working", "site: starting anew", false},
		{"failed", "site: no id 5d41402a-bc4b-2a76-b971-9d911017c592 at 10.0.0.7:3306", true},
		{"failed", "site: no id 7d793037-a076-8186-974b-0282f2f435e7 at 10.0.0.8:3306", false},
		{"ready", "", true},
		{"ready", "", false},
		{"working", "site: starting anew", true}, // it was ready in between
		{"ready", "", true},
	} {
		n := operate.NodeStatus{Node: "web1", State: c.state, Detail: c.detail}
		line, fresh := said.of(n)
		if fresh != c.fresh {
			t.Errorf("%.60s: news: %t, want %t", line, fresh, c.fresh)
		}
		if len([]rune(line)) > longestNews {
			t.Errorf("a line of %d characters", len([]rune(line)))
		}
	}
	if _, fresh := said.of(operate.NodeStatus{Node: "web2", State: "ready"}); !fresh {
		t.Error("what is said of one node is no news of another")
	}
}

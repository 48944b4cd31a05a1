package facts

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"imagegen/internal/testkit"
)

const goodFacts = `{"version": 2, "cluster": "otus", "cluster_id": "6f1c0a52-8a6a-4c0e-9c1b-0123456789ab", "distro": "debian12",
 "node": {"name": "web1", "role": "web", "ip": "192.168.10.42", "index": 0},
 "peers": [{"name": "glusterfs1", "role": "glusterfs", "ip": "192.168.10.44", "index": 0}],
 "components": [
  {"name": "mount", "kind": "mount", "params": {"unit": "mnt-gluster.mount", "path": "/mnt/gluster", "role": "glusterfs"}},
  {"name": "nginx", "kind": "service", "after": ["mount"], "params": {"unit": "nginx.service", "check": {"http": "http://127.0.0.1/?a=1&b=<2>"}}}],
 "files": [
  {"path": "/etc/hosts", "mode": "0644", "owner": "root:root", "digest": "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae", "change": "none"},
  {"path": "/etc/imagegen/secrets.json", "mode": "0600", "owner": "root:root", "digest": "sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9", "secret": true},
  {"path": "/etc/nginx/nginx.conf", "mode": "0644", "owner": "root:root", "digest": "sha256:baa5a0964d3320fbc0c6a922140453c8513ea24ab8fd0577034804a967248096", "change": "reload", "unit": "nginx.service", "fixed": "port 80"}],
 "sysctl": ["net.core.somaxconn"]}`

func TestFactsRoundTrip(t *testing.T) {
	f, err := Decode([]byte(goodFacts))
	if err != nil {
		t.Fatal(err)
	}
	data, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "testdata/facts.json", data)
	// The order of keys in the parameters does not matter.
	f.Components[0].Params = json.RawMessage(`{"role":"glusterfs",  "path":"/mnt/gluster", "unit":"mnt-gluster.mount"}`)
	again, err := f.Encode()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("encoded as\n%s%v, before as\n%s", again, err, data)
	}
	if _, err := Decode(data); err != nil {
		t.Error(err)
	}
}

// TestBrokenFacts: facts that an agent must refuse, and its messages.
func TestBrokenFacts(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{goodFacts, ``, "not a facts file: must be a JSON object, {…}"},
		{goodFacts, `null`, "not a facts file: must be a JSON object, {…}"},
		{goodFacts, `{}`, "not a facts file: it has no version"},
		{goodFacts, `{"version": "1"}`, "not a facts file: version: a string does not belong here"},
		{`"version": 2`, `"version": 3, "new": {}`, "the facts have version 3, this agent reads versions 1 and 2: image and seed are from different releases of imagegen; build both with the same one"},
		{`"distro"`, `"distribution"`, `broken facts: the key "distribution" is not known`},
		{`"unit": "nginx.service"`, `"unti": "nginx.service"`, `broken facts: component nginx: params: the key "unti" is not known`},
		{`"unit": "nginx.service"`, `"unit": 7`, `broken facts: component nginx: params: unit: a number does not belong here`},
		{`"http"`, `"tcp": "127.0.0.1:80", "http"`, "broken facts: component nginx: params: check: give exactly one of tcp, http, fastcgi and exec"},
		{`"http": "http://127.0.0.1/?a=1&b=<2>"`, ``, "broken facts: component nginx: params: check: give exactly one of tcp, http, fastcgi and exec"},
		{`"kind": "service"`, `"kind": "services"`, "broken facts: component nginx: there is no kind of component services; it may be disk, galera, gluster, mount, redis, sentinel, service or site"},
		{`"name": "nginx"`, `"name": "mount"`, "broken facts: component mount: there are two"},
		{`"after": ["mount"]`, `"after": ["disk"]`, "broken facts: component nginx: after: disk must be a component that stands before it in the list"},
		{`"kind": "mount",`, `"kind": "mount", "after": ["nginx"],`, "broken facts: component mount: after: nginx must be a component that stands before it in the list"},
		{`"name": "nginx"`, `"name": "../nginx"`, "broken facts: component ../nginx: a name has lower-case letters, digits, - and _"},
		{`"name": "glusterfs1"`, `"name": "web1"`, "broken facts: node web1: web1 is given to two nodes"},
		{`192.168.10.44`, `192.168.10.42`, "broken facts: node glusterfs1: 192.168.10.42 is given to two nodes"},
		{`192.168.10.44`, `fd00::1`, "broken facts: node glusterfs1: ip: fd00::1 is not an IPv4 address"},
		{`6f1c0a52`, `6f1c0a5`, "broken facts: cluster_id: 6f1c0a5-8a6a-4c0e-9c1b-0123456789ab is not a UUID"},
		{`"version": 2`, `"version": 1`, "broken facts: facts of version 1 have neither files nor sysctl"},
		{`"/etc/hosts"`, `"etc/hosts"`, "broken facts: file etc/hosts: must be a clean absolute path, and not that of the facts"},
		{`"/etc/hosts"`, `"/etc/../hosts"`, "broken facts: file /etc/../hosts: must be a clean absolute path, and not that of the facts"},
		{`"/etc/hosts"`, `"/etc/imagegen/node.json"`, "broken facts: file /etc/imagegen/node.json: must be a clean absolute path, and not that of the facts"},
		{`"/etc/hosts"`, `"/etc/nginx/nginx.conf"`, "broken facts: file /etc/imagegen/secrets.json: files must be sorted by path, each listed once"},
		{`"0600"`, `"4755"`, "broken facts: file /etc/imagegen/secrets.json: mode: 4755 is not an octal mode of four digits"},
		{`"root:root"`, `"root"`, "broken facts: file /etc/hosts: owner: root is not user:group"},
		{`sha256:2c`, `2c`, "broken facts: file /etc/hosts: digest: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266… is not sha256: and 64 hexadecimal digits"},
		{`"none"`, `"reboot"`, "broken facts: file /etc/hosts: change: there is no reboot"},
		{`"none"`, `"none", "unit": "nginx.service"`, "broken facts: file /etc/hosts: unit: is only for files that need a reload or a restart"},
		{`"reload", "unit": "nginx.service"`, `"reload", "unit": "apache.service"`, "broken facts: file /etc/nginx/nginx.conf: reload apache.service: no component of this node runs that unit"},
		{`"net.core.somaxconn"]}`, `"net.core.somaxconn"]}{}`, "not a facts file: something comes after the JSON object"},
		{`"net.core.somaxconn"]}`, ``, "not a facts file: the JSON is cut off"},
	} {
		text := strings.Replace(goodFacts, c.old, c.new, 1)
		_, err := Decode([]byte(text))
		if err == nil || err.Error() != c.want {
			t.Errorf("%s for %s:\n got %v\nwant %s", c.new, c.old, err, c.want)
		}
	}
}

// Facts of the version before are read, and never written.
func TestFactsOfTheVersionBefore(t *testing.T) {
	text, _, _ := strings.Cut(goodFacts, `"files"`)
	text = strings.TrimRight(strings.Replace(text, `"version": 2`, `"version": 1`, 1), ", \n") + "}"
	f, err := Decode([]byte(text))
	if err != nil || f.Version != 1 || len(f.Components) != 2 {
		t.Fatalf("%+v, %v", f, err)
	}
	if _, err := f.Encode(); err == nil {
		t.Error("encoded")
	}
}

// A digest of a short password must not be one that anybody can compute.
func TestDigestsOfSecretsAreKeyed(t *testing.T) {
	one, other := FileDigest([]byte("key 1"), []byte("pass"), true), FileDigest([]byte("key 2"), []byte("pass"), true)
	if one == other || one == FileDigest([]byte("key 1"), []byte("pass"), false) {
		t.Error("the key makes no difference")
	}
	if FileDigest([]byte("key 1"), []byte("text"), false) != FileDigest([]byte("key 2"), []byte("text"), false) {
		t.Error("the digest of a public file depends on the node")
	}
}

// Facts that an agent would refuse are already an error on the build host.
func TestEncodeRefusesWhatDecodeWould(t *testing.T) {
	f, err := Decode([]byte(goodFacts))
	if err != nil {
		t.Fatal(err)
	}
	f.Components[1].After = []string{"disk"}
	if _, err := f.Encode(); err == nil {
		t.Error("encoded a component after one that is not there")
	}
}

// FuzzDecodeFacts: accepted facts survive encoding and decoding; others are refused with readable errors.
func FuzzDecodeFacts(f *testing.F) {
	f.Add([]byte(goodFacts))
	f.Add([]byte(`{"version": 2}`))
	f.Add([]byte(`{"version": 1, "components": [{"name": "d", "kind": "disk", "params": {"mount": "/data", "filesystem": "ext4", "dirs": [{"path": "/data/a", "owner": "a:a", "mode": "0750"}]}}]}`))
	f.Add([]byte(`{"version": 1, "components": [{"name": "g", "kind": "gluster", "params": {"options": {"a": "b"}, "uid": 1}}]}`))
	f.Add([]byte(`[1`))
	f.Fuzz(func(t *testing.T, data []byte) {
		facts, err := Decode(data)
		if err != nil {
			for _, word := range []string{"cluster.", "Go struct", "Go value", "unmarshal", "json:", "map[", "%!"} {
				if strings.Contains(err.Error(), word) && !bytes.Contains(data, []byte(word)) {
					t.Errorf("%q is for programmers: %v", word, err)
				}
			}
			if strings.ContainsAny(err.Error(), "\n\r\x1b") {
				t.Errorf("not one line of text: %q", err)
			}
			return
		}
		once, err := facts.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(once)
		if err != nil {
			t.Fatalf("%v: %s", err, once)
		}
		if twice, err := back.Encode(); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v: %s is written as %s", err, once, twice)
		}
	})
}

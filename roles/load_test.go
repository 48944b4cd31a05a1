package roles

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

// folder writes files below a new folder and returns it.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		testkit.Write(t, filepath.Join(dir, name), content)
	}
	return dir
}

// TestWalkthrough does what docs/roles.md says: a role is added in a folder beside the spec.
func TestWalkthrough(t *testing.T) {
	files, lines := testkit.Walkthrough(t)
	c := mustLoad(t, folder(t, files))
	s := parse(t, c, string(cluster.Reference("debian12"))+lines)
	r, err := c.Render(s, testSecrets(c, s), "memcached1")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range r.Files {
		if !strings.HasPrefix(f.Path, facts.PKIDir) {
			b.WriteString(show(f))
		}
	}
	testkit.Golden(t, "testdata/golden/memcached1.txt", []byte(b.String()))
	if got := c.Role("memcached").Distros["debian12"].Packages; !slices.Equal(got, []string{"memcached"}) {
		t.Errorf("its image is made from %v", got)
	}
	// The other nodes know the new one, and are otherwise as before.
	web, err := c.Render(s, testSecrets(c, s), "web1")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range web.Files {
		if f.Path == "/etc/hosts" && !strings.Contains(string(f.Content), "192.168.10.60 memcached1\n") {
			t.Errorf("web1 does not know memcached1:\n%s", f.Content)
		}
	}
	// The cache alone is a cluster, too.
	s = parse(t, c, "cluster: cache\ndistro: debian12\nnetwork: {cidr: 192.168.10.0/24}\nroles:\n"+lines)
	if _, err := c.Render(s, testSecrets(c, s), "memcached1"); err != nil {
		t.Error(err)
	}
}

// TestOverride replaces a built-in role as a whole.
func TestOverride(t *testing.T) {
	c := mustLoad(t, folder(t, map[string]string{
		"redis/role.yaml": "description: my own\ndistros: {debian12: {packages: [valkey]}}\n",
		"README":          "not a role",
		".git/config":     "not a role either",
	}))
	if r := c.Role("redis"); r.Description != "my own" || len(r.Components) != 0 || r.Quorum {
		t.Errorf("redis is not the overlay's alone: %+v", r)
	}
	if c.Role("percona") == nil || c.Rules()["redis"].Memory != 256<<20 {
		t.Error("the other roles or the defaults are gone")
	}
	if built := mustLoad(t, filepath.Join(t.TempDir(), "absent")); !built.Role("redis").Quorum {
		t.Error("an absent folder changes something")
	}
}

func TestFolderIsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "roles")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path+" is not a folder") {
		t.Errorf("got %v", err)
	}
}

// TestBroken has a fault a case, made in the role of the walk-through by replacing old with new.
func TestBroken(t *testing.T) {
	broken := map[string]string{}
	for _, b := range []struct{ name, old, new string }{
		{"unknown key", "memory:", "memroy:"},
		{"unknown key below", "    disable:", "    disabled:"},
		{"key twice", "memory: 512MiB", "memory: 512MiB\nmemory: 1GiB"},
		{"two documents", "memory: 512MiB", "memory: 512MiB\n---\nx: 1"},
		{"not YAML", "options:", "options: ]"},
		{"tab", "  share:", "\tshare:"},
		{"list for text", "memory: 512MiB", "memory: [512MiB]"},
		{"text for list", "packages: [memcached]", "packages: memcached"},
		{"text for mapping", "distros:\n", "distros: x\nignored:\n"},
		{"nothing for text", "memory: 512MiB", "memory:"},
		{"text for number", "memory: 512MiB", "cpus: two"},
		{"text for yes or no", "memory: 512MiB", "quorum: maybe"},
		{"alias", "memory: 512MiB", "memory: &m 512MiB\ndisk: *m"},
		{"no description", "description: cache for the backends\n", ""},
		{"bad size", "512MiB", "512 megs"},
		{"bad vip", "memory: 512MiB", "vip: always"},
		{"VIP without VRRP id", "memory: 512MiB", "vip: required"},
		{"VRRP id without VIP", "memory: 512MiB", "vrrp_id: 7"},
		{"fewer than no nodes", "memory: 512MiB", "min_nodes: -1"},
		{"max below min", "memory: 512MiB", "min_nodes: 3\nmax_nodes: 2"},
		{"unknown needed role", "memory: 512MiB", "needs: [redys]"},
		{"option without help", "    help: percent of the node's memory that the cache may take\n", ""},
		{"option's name", "  share:", "  Share:"},
		{"option's pattern", `"[1-9][0-9]"`, `"["`},
		{"default against pattern", `default: "75"`, `default: "lots"`},
		{"default against one_of", `pattern: "[1-9][0-9]"`, "one_of: [few, many]"},
		{"secret's name", "memory: 512MiB", "secrets: [My-Secret]"},
		{"port", `"11211"`, `"112111"`},
		{"port range", `"11211"`, `"20-10"`},
		{"protocol", `from: [backend]`, `proto: sctp, from: [backend]`},
		{"VRRP with a port", `from: [backend]`, `proto: vrrp, from: [backend]`},
		{"from nobody", `from: [backend]`, `from: []`},
		{"from an unknown role", `from: [backend]`, `from: [backends]`},
		{"no reason", `, why: cache}`, `}`},
		{"quotes in the reason", `why: cache}`, `why: 'the "cache"'}`},
		{"sysctl's name", "memory: 512MiB", "sysctl: {somaxconn: '1'}"},
		{"sysctl's value", "memory: 512MiB", "sysctl: {net.core.somaxconn: ''}"},
		{"unknown distro", "  debian12:", "  debian13:"},
		{"two packages in one", "[memcached]", "[memcached libmemcached]"},
		{"unit", "memcached.service] #", "memcached] #"},
		{"repository without a key", "    disable:", "    repos: [{name: x, urls: ['https://example.org']}]\n    disable:"},
		{"user's ids", "    disable:", "    users: [{name: cache, uid: 0, gid: 5}]\n    disable:"},
		{"two users with one id", "    disable:", "    users: [{name: a, uid: 5, gid: 5}, {name: b, uid: 5, gid: 5}]\n    disable:"},
		{"checksum", "    disable:", "    downloads: [{url: 'https://example.org/x', sha256: ABC, path: /x}]\n    disable:"},
		{"minimum on Debian", "    disable:", "    minimum: {memcached: '1.6'}\n    disable:"},
		{"minimum of no package, no version", "  debian12:", "  centos7:\n    packages: [a]\n    minimum: {a: 1.6-2, b: '2'}\n  debian12:"},
		{"relative removal", "    disable:", "    remove: [var/log]\n    disable:"},
		{"relative path", "/etc/memcached.conf", "etc/memcached.conf"},
		{"unclean path", "/etc/memcached.conf", "/etc/../memcached.conf"},
		{"missing template", "template: memcached.conf", "template: memcache.conf"},
		{"missing common template", "template: memcached.conf", "template: common/x.conf"},
		{"template elsewhere", "template: memcached.conf", "template: ../../cluster.yaml"},
		{"mode", "template: memcached.conf}", "template: memcached.conf, mode: u=rw}"},
		{"mode too large", "template: memcached.conf}", `template: memcached.conf, mode: "4755"}`},
		{"owner", "template: memcached.conf}", "template: memcached.conf, owner: root}"},
		{"check", "template: memcached.conf}", "template: memcached.conf, check: magic}"},
		{"change", "template: memcached.conf}", "template: memcached.conf, change: reboot}"},
		{"change without a unit", "template: memcached.conf}", "template: memcached.conf, change: restart}"},
		{"change of another unit", "template: memcached.conf}", "template: memcached.conf, change: restart redis.service}"},
		{"change is a template", "template: memcached.conf}", `template: memcached.conf, change: "{{if}}"}`},
		{"fixed without change", "template: memcached.conf}", "template: memcached.conf, fixed: x}"},
		{"file for another distro", "template: memcached.conf}", "template: memcached.conf, distros: [centos7]}"},
		{"template's syntax", "-p 11211", "-p {{if}}"},
		{"template's function", "-p 11211", "-p 1{{port}}"},
		{"template in role.yaml", "{{.Node.IP}}:11211", "{{.Node.IP:11211"},
		{"component's name", "- name: memcached", "- name: Memcached"},
		{"component called firewall", "- name: memcached", "- name: firewall"},
		{"kind", "kind: service", "kind: servise"},
		{"behind an unknown component", "unit: memcached.service", "unit: memcached.service\n      gate: site"},
		{"after an unknown component", "kind: service", "kind: service\n    after: [disk]"},
		{"no parameters", "    params:\n      unit: memcached.service\n      check: {tcp: \"{{.Node.IP}}:11211\"}\n", ""},
		{"missing parameter", "      unit: memcached.service\n", ""},
		{"unknown parameter", "      unit:", "      units:"},
		{"parameter's type", "unit: memcached.service\n", "unit: 7\n"},
		{"parameter below", "check: {tcp:", "check: {udp:"},
		{"two checks", "check: {tcp:", "check: {exec: [memcached-tool], tcp:"},
		{"service's unit", "unit: memcached.service\n", "unit: memcached\n"},
		{"disk", "  - name: memcached\n", "  - name: disk\n    kind: disk\n    params: {mount: data, filesystem: btrfs, dirs: [{path: /x/../y, owner: root, mode: u=rwx, bind: y}]}\n  - name: memcached\n"},
		{"disk without folders", "  - name: memcached\n", "  - name: disk\n    kind: disk\n    params: {mount: /data, filesystem: ext4}\n  - name: memcached\n"},
		{"folder elsewhere", "  - name: memcached\n", "  - name: disk\n    kind: disk\n    params: {mount: /data, filesystem: ext4, dirs: [{path: /database, owner: 'root:root', mode: '0750'}]}\n  - name: memcached\n"},
	} {
		t.Run(b.name, func(t *testing.T) {
			files, _ := testkit.Walkthrough(t)
			changed := 0
			for name, content := range files {
				if strings.Contains(content, b.old) {
					files[name] = strings.Replace(content, b.old, b.new, 1)
					changed++
				}
			}
			if changed != 1 {
				t.Fatalf("%q is in %d files", b.old, changed)
			}
			dir := folder(t, files)
			_, err := Load(dir)
			if err == nil {
				t.Fatal("no error")
			}
			if _, ok := err.(cluster.Problems); !ok {
				t.Errorf("a %T", err)
			}
			broken[b.name] = strings.ReplaceAll(err.Error(), dir, "roles")
		})
	}
	var all strings.Builder
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		fmt.Fprintf(&all, "# %s\n%s\n\n", name, broken[name])
	}
	testkit.Golden(t, "testdata/broken.txt", []byte(all.String()))
}

// TestEveryFaultAtOnce shows that faults of one kind do not hide those of another: what has the wrong shape, what has a
// wrong value, what names something that is not there, and what is no template. None of them is said twice.
func TestEveryFaultAtOnce(t *testing.T) {
	dir := folder(t, map[string]string{
		"rb/role.yaml": `descripton: x
memory: [512MiB]
cpus: 0
cpus: 2
needs: [nothing]
distros:
  debian12: {packages: [rabbitmq-server], disable: rabbitmq.service, remove: [var]}
files:
  - {path: etc/x, template: nope.conf, mode: "0644"}
  - {path: /etc/y, template: y.conf, moed: "0644"}
components:
  - {name: rb, kind: service, params: {unit: x.service}}
  - {name: rb2, kind: service, after: [foo], params: {unit: x.service, check: {exec: ["rabbitmqctl"], tcp: "x:1"}}}
  - {name: d, kind: disk, params: {mount: /data, filesystem: ext4}}
  - {name: e, kind: disk, params: {mount: 7}}
`,
		"rb/y.conf": "a\n{{if}}\n",
	})
	_, err := Load(dir)
	if err == nil {
		t.Fatal("no error")
	}
	testkit.Golden(t, "testdata/every.txt", []byte(strings.ReplaceAll(err.Error(), dir, "roles")+"\n"))
}

// TestManyFaults shows that all faults of all roles come at once, in order.
func TestManyFaults(t *testing.T) {
	dir := folder(t, map[string]string{
		"a/role.yaml":      "description: a\nmemory: lots\nvip: no\ndistros: {debian12: {packages: [x]}}\n",
		"b/role.yaml":      "description: b\nneeds: [nothing]\ndistros: {}\n",
		"c/README":         "no role.yaml",
		"common/role.yaml": "description: c\ndistros: {debian12: {packages: [x]}}\n",
		"D/role.yaml":      "description: d\ndistros: {debian12: {packages: [x]}}\n",
	})
	_, err := Load(dir)
	if err == nil {
		t.Fatal("no error")
	}
	testkit.Golden(t, "testdata/many.txt", []byte(strings.ReplaceAll(err.Error(), dir, "roles")+"\n"))
}

// TestRenderFaults has what cannot be known before there is a spec.
func TestRenderFaults(t *testing.T) {
	for _, b := range []struct{ name, old, new, want string }{
		{"undeclared secret", "-p 11211", `-p {{secret "redis"}}`, `roles/memcached/memcached.conf:2:5: executing "roles/memcached/memcached.conf" at <secret "redis">: error calling secret: "redis" is not among the role's secrets; add it to secrets in role.yaml`},
		{"secret in facts", "{{.Node.IP}}:11211", `{{secret \"x\"}}`, "facts hold no secrets"},
		{"no such option", ".Options.share", ".Options.shares", `map has no entry for key "shares"`},
		{"no such field", "{{.Node.IP}}\n", "{{.Node.Ip}}\n", "can't evaluate field Ip"},
		{"readable secret", "-p 11211", `-p {{secret "pw"}}`, "/etc/memcached.conf contains a secret and must not be world-readable: use 0600 or 0640"},
		{"path", "path: /etc/memcached.conf", `path: "{{.Node.Name}}"`, `"memcached1" is not a clean absolute path`},
		{"owner", "template: memcached.conf}", `template: memcached.conf, owner: "{{.Node.IP}}"}`, `"192.168.10.60" is not user:group`},
		{"one path twice", "template: memcached.conf}", "template: memcached.conf}\n  - {path: /etc/memcached.conf, template: memcached.conf}", "two files have the path /etc/memcached.conf"},
		{"path of its own", "path: /etc/memcached.conf", "path: /etc/imagegen/node.json", "two files have the path /etc/imagegen/node.json"},
		{"parameter empty", "unit: memcached.service\n", `unit: '{{if false}}x{{end}}'` + "\n", "components[0].params.unit: renders to nothing"},
		{"change", "template: memcached.conf}", `template: memcached.conf, change: "{{.Node.Name}}"}`, "files[0].change: memcached1 is not one of none, reload UNIT, restart UNIT"},
		{"change of no unit", "template: memcached.conf}", `template: memcached.conf, change: "{{if true}}restart{{end}} x.service"}`,
			"file /etc/memcached.conf: restart x.service: no component of this node runs that unit"},
		{"secret in fixed", "template: memcached.conf}", `template: memcached.conf, change: none, fixed: "{{secret \"pw\"}}"}`, "facts hold no secrets"},
		{"fail", "-p 11211", `{{fail "no way"}}`, "no way"},
	} {
		t.Run(b.name, func(t *testing.T) {
			files, lines := testkit.Walkthrough(t)
			files["memcached/role.yaml"] += "secrets: [pw]\n"
			changed := 0
			for name, content := range files {
				if strings.Contains(content, b.old) {
					files[name] = strings.Replace(content, b.old, b.new, 1)
					changed++
				}
			}
			if changed != 1 {
				t.Fatalf("%q is in %d files", b.old, changed)
			}
			dir := folder(t, files)
			c := mustLoad(t, dir)
			s := parse(t, c, string(cluster.Reference("debian12"))+lines)
			sec := testSecrets(c, s)
			_, err := c.Render(s, sec, "memcached1")
			if err == nil {
				t.Fatal("no error")
			}
			got := strings.ReplaceAll(err.Error(), dir, "roles")
			if !strings.Contains(got, b.want) || !strings.HasPrefix(got, "render memcached1: ") {
				t.Errorf("got  %s\nwant %s", got, b.want)
			}
			for name, p := range sec.Passwords {
				if strings.Contains(got, p) {
					t.Errorf("the error shows the secret %s: %s", name, got)
				}
			}
		})
	}
}

// TestDocs finds every key of role.yaml, every function, and every built-in role's options in docs/roles.md.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/roles.md")
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Role](), reflect.TypeFor[Container](), reflect.TypeFor[Port](), reflect.TypeFor[Distro](), reflect.TypeFor[Repo](), reflect.TypeFor[User](),
		reflect.TypeFor[Download](), reflect.TypeFor[File](), reflect.TypeFor[Component](), reflect.TypeFor[cluster.Option](),
	} {
		words = append(words, keysOf(typ, "yaml")...)
	}
	words = slices.AppendSeq(words, maps.Keys(unbound))
	for name, rules := range mustLoad(t, "").Rules() {
		words = append(append(words, name), slices.Collect(maps.Keys(rules.Options))...)
	}
	for _, w := range words {
		if !strings.Contains(string(page), "`"+w+"`") && !strings.Contains(string(page), "`"+w+" ") {
			t.Errorf("docs/roles.md does not explain `%s`", w)
		}
	}
}

// TestDocsOfComponents checks that docs/agent.md has every parameter of every kind of component.
func TestDocsOfComponents(t *testing.T) {
	page, err := os.ReadFile("../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	for kind, params := range facts.ParamsFor {
		_, section, found := strings.Cut(string(page), "\n**`"+kind+"`**\n")
		if !found {
			t.Errorf("docs/agent.md has no parameters of %s", kind)
			continue
		}
		section, _, _ = strings.Cut(section, "\n**`")
		keys := keysOf(reflect.TypeOf(params()).Elem(), "json")
		switch kind {
		case "service":
			keys = append(keys, keysOf(reflect.TypeFor[facts.Check](), "json")...)
		case "disk":
			keys = append(keys, keysOf(reflect.TypeFor[facts.Dir](), "json")...)
		}
		for _, key := range keys {
			if !strings.Contains(section, "`"+key+"`") {
				t.Errorf("docs/agent.md does not explain %s of %s", key, kind)
			}
		}
	}
}

// FuzzRole feeds anything to the reader of role.yaml: a role or faults, never a crash, and never a fault without a place.
func FuzzRole(f *testing.F) {
	for _, name := range mustLoad(f, "").Names() {
		data, err := builtin.ReadFile(name + "/role.yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	for _, s := range []string{"", "---", "a: &a [*a]", "<<: {a: 1}", "? [a]\n: b", "components: [{kind: disk, params: {dirs: [1]}}]", "files: [{path: '{{'}]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := &source{name: "x", dir: "roles/x", fsys: fstest.MapFS{"role.yaml": {Data: []byte(text)}}, common: fstest.MapFS{}}
		if s.load() == nil && len(s.problems) == 0 {
			t.Error("neither a role nor a fault")
		}
		s.checkNames(nil)
		for _, p := range s.problems {
			if p.Line < 1 || p.Col < 1 || p.Msg == "" || p.File == "" || strings.Contains(p.Msg, "roles.Role") {
				t.Errorf("%#v", p)
			}
		}
	})
}

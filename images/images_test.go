package images

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/images/distro"
	"imagegen/images/packages"
	"imagegen/internal/program"
	"imagegen/internal/testkit"
	"imagegen/roles"
)

const testAgent = "#!/bin/sh\nexit 0\n"

const tinyRole = `description: one small package with a service
distros:
  debian12:
    packages: [cron]
    disable: [cron.service]
    users: [{name: app, uid: 2000, gid: 3000}]
    remove: [/etc/cron.daily/*]
`

const tinySpec = `cluster: tiny
distro: debian12
network: {cidr: 192.168.10.0/24}
roles:
  tiny: {disk: 4GiB, nodes: {tiny1: 192.168.10.60}}
`

// testDir writes a project: cluster.yaml, roles/NAME/role.yaml and an agent.
func testDir(t testing.TB, spec string, roles map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"cluster.yaml": spec, "agent": testAgent}
	for name, text := range roles {
		files["roles/"+name+"/role.yaml"] = text
	}
	for name, text := range files {
		testkit.Write(t, filepath.Join(dir, name), text)
	}
	return dir
}

// testConfig is the configuration for a build of the project in dir.
func testConfig(dir, cache string) (Config, error) {
	catalogue, err := roles.Load(filepath.Join(dir, "roles"))
	if err != nil {
		return Config{}, err
	}
	spec, err := cluster.Load(filepath.Join(dir, "cluster.yaml"), catalogue.Rules())
	if err != nil {
		return Config{}, err
	}
	return Config{
		Spec: spec, Catalogue: catalogue, CacheDir: cache, OutDir: filepath.Join(dir, "dist"), Agent: filepath.Join(dir, "agent"), Jobs: 2,
		UI: silent{},
	}, nil
}

func mustConfig(t testing.TB, dir, cache string) Config {
	t.Helper()
	c, err := testConfig(dir, cache)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type silent struct{}

func (silent) Step(image, what string)        {}
func (silent) Done(image string, cached bool) {}
func (silent) Note(text string)               {}

const twoRoles = `cluster: two
distro: debian12
network: {cidr: 192.168.10.0/24}
mirror: http://archive.example.com/debian
roles:
  tiny: {disk: 4GiB, nodes: {tiny1: 192.168.10.60}}
  small: {disk: 4GiB, nodes: {small1: 192.168.10.61}}
`

// lockText is a lock with one package in the base, and one of this requested name for the role tiny.
func lockText(version, requested string) string {
	sum := strings.Repeat("0a", 32)
	return "schema: 1\ndistro: debian12\nbase:\n  requested: [" + strings.Join(basePackages("debian12"), ", ") + "]\n  packages: [udev " + version + " amd64 " + sum + "]\n" +
		"roles:\n  tiny:\n    requested: [" + requested + "]\n    packages: [cron 1.0 amd64 " + sum + "]\n"
}

// TestPackageFilePath: the path of a package file beside a spec without a folder is one that APT takes for a file, not
// a package name.
func TestPackageFilePath(t *testing.T) {
	dir := testDir(t, strings.Replace(tinySpec, "{disk", "{packages: [my.deb], disk", 1), map[string]string{"tiny": tinyRole})
	testkit.Write(t, filepath.Join(dir, "my.deb"), "a package")
	t.Chdir(dir)
	c, err := testConfig("", "")
	if err != nil {
		t.Fatal(err)
	}
	in, err := c.inputs(t.Context(), "tiny", distro.Base{}, "", nil)
	if err != nil || len(in.Local) != 1 || !filepath.IsAbs(in.Local[0].Path) {
		t.Errorf("%+v, %v", in.Local, err)
	}
}

// TestIdentity changes one input or setting at a time: inputs change the identity, settings do not.
func TestIdentity(t *testing.T) {
	identity := func(t *testing.T, spec, role string, change func(dir string)) string {
		t.Helper()
		dir := testDir(t, spec, map[string]string{"tiny": role, "small": tinyRole})
		testkit.Write(t, filepath.Join(dir, "roles/tiny/tiny.conf"), "name {{.Node.Name}}\n")
		testkit.Write(t, filepath.Join(dir, "my.deb"), "a package")
		if change != nil {
			change(dir)
		}
		c := mustConfig(t, dir, "")
		plans, err := c.plan(t.Context(), []string{"tiny"})
		if err != nil {
			t.Fatal(err)
		}
		return plans[0].identity
	}
	spec, role := twoRoles, tinyRole
	first := identity(t, spec, role, nil)
	if len(first) != 32 || identity(t, spec, role, nil) != first {
		t.Fatalf("the identity is %q and then another", first)
	}
	seen := map[string]string{first: "nothing"}
	in := func(text, old, new string) string {
		t.Helper()
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in %q", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	for _, c := range []struct {
		what, spec, role string
		change           func(dir string)
		same             bool
	}{
		{what: "a package more", role: in(role, "[cron]", "[cron, less]")},
		{what: "the packages in different order", role: in(role, "[cron]", "[less, cron]")},
		{what: "a package from the spec", spec: in(spec, "tiny: {", "tiny: {packages: [htop], ")},
		{what: "a package file", spec: in(spec, "tiny: {", "tiny: {packages: [my.deb], ")},
		{what: "another package file of that name", spec: in(spec, "tiny: {", "tiny: {packages: [my.deb], "), change: func(dir string) { testkit.Write(t, filepath.Join(dir, "my.deb"), "another") }},
		{what: "the disk's size", spec: in(spec, "tiny: {disk: 4GiB", "tiny: {disk: 5GiB")},
		{what: "the mirror", spec: in(spec, "archive.example.com", "mirror.example.com")},
		{what: "a user's id", role: in(role, "uid: 2000", "uid: 2001")},
		{what: "a unit to disable", role: in(role, "[cron.service]", "[cron.service, ssh.service]")},
		{what: "a path to remove", role: in(role, "[/etc/cron.daily/*]", "[/etc/cron.daily]")},
		{what: "a download", role: role + "    downloads: [{url: 'https://example.com/x', sha256: " + strings.Repeat("0a", 32) + ", path: /opt/x}]\n"},
		{what: "the agent", change: func(dir string) { testkit.Write(t, filepath.Join(dir, "agent"), "another") }},
		{what: "what the base's packages are pinned to", change: func(dir string) { testkit.Write(t, filepath.Join(dir, packages.LockName), lockText("1.0", "")) }},
		{what: "that to another version", change: func(dir string) { testkit.Write(t, filepath.Join(dir, packages.LockName), lockText("2.0", "")) }},
		{what: "what the role's packages are pinned to", change: func(dir string) { testkit.Write(t, filepath.Join(dir, packages.LockName), lockText("1.0", "cron")) }},

		{what: "the description", role: in(role, "one small", "a small"), same: true},
		{what: "a template", role: role + "files: [{path: /etc/tiny.conf, template: tiny.conf}]\n", same: true},
		{what: "a template's text", change: func(dir string) { testkit.Write(t, filepath.Join(dir, "roles/tiny/tiny.conf"), "x") }, same: true},
		{what: "a kernel parameter", role: role + "sysctl: {vm.swappiness: \"1\"}\n", same: true},
		{what: "a node more", spec: in(spec, "tiny1: 192.168.10.60", "tiny1: 192.168.10.60, tiny2: 192.168.10.62"), same: true},
		{what: "memory", spec: in(spec, "tiny: {", "tiny: {memory: 1GiB, "), same: true},
		{what: "the cluster's name", spec: in(spec, "cluster: two", "cluster: three"), same: true},
		{what: "another role", spec: in(spec, "small: {disk: 4GiB", "small: {disk: 8GiB"), same: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			got := identity(t, cmp.Or(c.spec, spec), cmp.Or(c.role, role), c.change)
			if c.same {
				if got != first {
					t.Error("the image has changed")
				}
				return
			}
			if other, ok := seen[got]; ok {
				t.Errorf("the image is the same as with %s changed", other)
			}
			seen[got] = c.what
		})
	}
}

// TestInputsAreHashed: every field of the inputs, nested ones included, is part of the hash.
func TestInputsAreHashed(t *testing.T) {
	var in distro.Inputs
	fill(reflect.ValueOf(&in).Elem())
	first := in.Identity()
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() && f.Tag.Get("json") != "-" {
					walk(path+"."+f.Name, v.Field(i))
				}
			}
		case reflect.Slice:
			walk(path+"[]", v.Index(0))
		case reflect.Pointer:
			walk(path, v.Elem())
		default:
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			v.SetZero()
			if in.Identity() == first {
				t.Errorf("inputs%s is not part of the identity", path)
			}
			v.Set(old)
		}
	}
	walk("", reflect.ValueOf(&in).Elem())
	// Sources of the same content do not change the image.
	in.Base.URL, in.Base.File, in.Local[0].Path, in.Repos = "", "", "", nil
	if in.Identity() != first {
		t.Error("the test has changed the inputs")
	}
}

// fill gives every exported field a value that is not zero, and every list one element.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.String:
		v.SetString("x")
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	default:
		panic("an input of kind " + v.Kind().String())
	}
}

func TestPlanShares(t *testing.T) {
	c := mustConfig(t, testDir(t, twoRoles, map[string]string{"tiny": tinyRole, "small": tinyRole}), "")
	plans, err := c.plan(t.Context(), []string{"tiny", "small"})
	if err != nil || len(plans) != 1 || plans[0].name() != "tiny, small" {
		t.Fatalf("%v: %d plans", err, len(plans))
	}
	c = mustConfig(t, testDir(t, strings.Replace(twoRoles, "disk: 4GiB", "disk: 5GiB", 1), map[string]string{"tiny": tinyRole, "small": tinyRole}), "")
	if plans, err = c.plan(t.Context(), []string{"tiny", "small"}); err != nil || len(plans) != 2 {
		t.Fatalf("%v: %d plans", err, len(plans))
	}
}

func TestMissingPackageFile(t *testing.T) {
	spec := strings.Replace(tinySpec, "{disk", "{packages: [gone.deb], disk", 1) + "mirror: http://archive.example.com/debian\n"
	dir := testDir(t, spec, map[string]string{"tiny": tinyRole})
	testkit.Write(t, filepath.Join(dir, "gone.deb"), "")
	c := mustConfig(t, dir, t.TempDir())
	if err := os.Remove(filepath.Join(dir, "gone.deb")); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), c); err == nil || !strings.Contains(err.Error(), "image of tiny: open "+filepath.Join(dir, "gone.deb")) {
		t.Errorf("%v", err)
	}
}

func TestPlace(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	testkit.Write(t, from, "new")
	testkit.Write(t, to, "old, longer")
	testkit.Write(t, to+".tmp", "left over")
	same := func(a, b string) bool {
		ia, errA := os.Stat(a)
		ib, errB := os.Stat(b)
		return errA == nil && errB == nil && os.SameFile(ia, ib)
	}
	for range 2 {
		if err := place(t.Context(), from, to); err != nil || !same(from, to) {
			t.Fatalf("%v, linked: %v", err, same(from, to))
		}
	}
	// A copy instead of a link, on another file system, is made once.
	other, err := os.MkdirTemp("/dev/shm", "images")
	if err != nil {
		t.Skipf("copies to another file system are NOT tested: %v", err)
	}
	defer os.RemoveAll(other)
	to = filepath.Join(other, "to")
	if err := os.Chtimes(from, time.Time{}, time.Unix(1700000000, 123456789)); err != nil {
		t.Fatal(err)
	}
	if err := place(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if same(from, to) {
		t.Skip("/dev/shm is on the file system of the temporary folder: copies are NOT tested")
	}
	first, err := os.Stat(to)
	if err != nil || first.Mode().Perm() != 0o444 {
		t.Fatalf("%v, %v", first, err)
	}
	if err := place(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if second, err := os.Stat(to); err != nil || !os.SameFile(first, second) {
		t.Errorf("it was copied again: %v", err)
	}
	testkit.Write(t, from, "newer")
	if err := place(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(to); string(data) != "newer" {
		t.Errorf("%q, %v", data, err)
	}
	if left, _ := filepath.Glob(filepath.Join(other, "*.tmp")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestUpToDate builds from a cache that has the image: nothing is baked, both roles get it, and a second build changes
// no file. It needs no root.
func TestUpToDate(t *testing.T) {
	cache := t.TempDir()
	c := mustConfig(t, testDir(t, twoRoles, map[string]string{"tiny": tinyRole, "small": tinyRole}), cache)
	pinned := &packages.Pins{Requested: []string{"cron"}, Packages: []packages.Pin{{Name: "cron", Version: "1.0", Architecture: "amd64", SHA256: strings.Repeat("0a", 32)}}}
	base := &packages.Pins{Requested: basePackages("debian12"), Packages: []packages.Pin{{Name: "udev", Version: "1.0", Architecture: "amd64", SHA256: strings.Repeat("0b", 32)}}}
	if err := (&packages.Lock{Schema: 1, Distro: "debian12", Base: base, Roles: map[string]*packages.Pins{"tiny": pinned, "small": pinned}}).Write(c.LockPath()); err != nil {
		t.Fatal(err)
	}
	plans, err := c.plan(t.Context(), []string{"tiny", "small"})
	if err != nil || !slices.Equal(plans[0].inputs.Pinned, pinned.Packages) || !slices.Equal(plans[0].inputs.Base.Pinned, base.Packages) {
		t.Fatalf("%v, %+v", err, plans)
	}
	dir := c.cache().imageDir(plans[0].identity)
	testkit.Write(t, filepath.Join(dir, diskName), "a disk")
	data, err := Manifest{Schema: 1, Role: "tiny", Identity: plans[0].identity, Inputs: plans[0].inputs}.encode()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(dir, manifestName), string(data))
	var stamps []time.Time
	for range 2 {
		results, err := Build(t.Context(), c)
		if err != nil || len(results) != 2 {
			t.Fatalf("%+v, %v", results, err)
		}
		for i, name := range []string{"tiny", "small"} {
			r := results[i]
			if r.Role != name || !r.Cached || r.Identity != plans[0].identity || filepath.Base(r.Path) != name+".raw" {
				t.Errorf("%+v", r)
			}
			if got, err := os.ReadFile(r.Path); string(got) != "a disk" {
				t.Errorf("%s: %q, %v", r.Path, got, err)
			}
			var m Manifest
			if data, err := os.ReadFile(r.Manifest); err != nil || json.Unmarshal(data, &m) != nil || m.Role != name || m.Identity != r.Identity {
				t.Errorf("%v, %+v", err, m)
			}
			var d struct{ Name string }
			if data, err := os.ReadFile(filepath.Join(filepath.Dir(r.Path), name+".spdx.json")); err != nil || json.Unmarshal(data, &d) != nil || d.Name != name {
				t.Errorf("%v, %+v", err, d)
			}
			info, err := os.Stat(r.Manifest)
			if err != nil {
				t.Fatal(err)
			}
			stamps = append(stamps, info.ModTime())
		}
	}
	if !stamps[0].Equal(stamps[2]) || !stamps[1].Equal(stamps[3]) {
		t.Errorf("manifests were written again: %v", stamps)
	}

	testkit.Write(t, filepath.Join(dir, manifestName), "{")
	if _, err := Build(t.Context(), c); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "remove that folder") {
		t.Errorf("a damaged manifest: %v", err)
	}
}

func TestManifest(t *testing.T) {
	list, err := packages.ParseInstalled("cron\t3.0pl1-162\tamd64\tcron@3.0pl1-162\tJane Doe <jane@example.com>\nlibc6\t2.36-9+deb12u10\tamd64\tglibc@2.36-9+deb12u10\t(none)\n")
	if err != nil {
		t.Fatal(err)
	}
	m := Manifest{Schema: 1, Role: "tiny", Identity: "0123", Packages: list, Disk: Output{Format: "raw", Bytes: 4 << 30, Data: "abcd"}}
	m.Inputs.Packages = []string{"cron"}
	m.Inputs.Units = []distro.Unit{{Name: "a.service", Text: "[Unit]\nDescription=<a> & b\n"}}
	data, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"name": "cron",` + "\n      " + `"version": "3.0pl1-162",`, `"bytes": 4294967296`, `<a> & b`, `"sparse_sha256": "abcd"`, `"source": "glibc@2.36-9+deb12u10"`, `"supplier": "Jane Doe <jane@example.com>"`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("there is no %s in\n%s", want, data)
		}
	}
	var back Manifest
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("%v: read back as %+v", err, back)
	}
	for _, bad := range []string{"cron\t1\n", "cron\n", "a\tb\tc\td\n", "a\tb\tc\td\te\tf\n"} {
		if _, err := packages.ParseInstalled(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestJobs(t *testing.T) {
	for _, c := range []struct {
		cores   int
		meminfo string
		want    int
	}{
		{8, "MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:    8388608 kB\n", 8},
		{8, "MemTotal:        2048000 kB\nMemAvailable:    1572864 kB\n", 3},
		{8, "MemAvailable:     100000 kB\n", 1},
		{2, "nothing\n", 2},
	} {
		if got := jobs(c.cores, c.meminfo); got != c.want {
			t.Errorf("%d cores, %q: %d, want %d", c.cores, c.meminfo, got, c.want)
		}
	}
}

// ofDistro returns the implementation of a distro for an otherwise empty spec.
func ofDistro(name string) distro.Distro {
	return distro.New(distro.Options{Spec: &cluster.Spec{Distro: name, Mirror: "http://archive.example.com/debian"}})
}

// basePackages returns the packages of every image of a distro.
func basePackages(name string) []string {
	base, err := ofDistro(name).Base()
	if err != nil {
		panic(err)
	}
	return base.Packages
}

func toolsOf(name string) []program.Tool { return ofDistro(name).Tools() }

// baseOf returns the base of a configuration's images.
func baseOf(t testing.TB, c *Config) distro.Base {
	t.Helper()
	base, err := c.distro().Base()
	if err != nil {
		t.Fatal(err)
	}
	return base
}

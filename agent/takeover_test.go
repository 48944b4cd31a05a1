package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/internal/generationtest"
	"imagegen/roles"
)

// gadget is a role with a file of each kind.
const gadget = `
description: for tests
sysctl: {net.core.somaxconn: "1024"}
ports:
  - {port: "80", from: [any], why: site}
distros:
  debian12: {packages: [gadget]}
files:
  - {path: /etc/gadget/gadget.conf, template: gadget.conf, change: restart gadget.service}
  - {path: /etc/gadget/live.conf, template: live.conf, change: reload live.service}
  - {path: /etc/gadget/lazy.conf, template: lazy.conf, mode: "0640", owner: "root:gadget", change: none}
  - {path: /etc/gadget/rigid.conf, template: rigid.conf}
  - {path: /etc/gadget/shared.conf, template: shared.conf, change: restart gadget.service, fixed: "id 7"}
  - {path: /etc/imagegen/gadget/deep/key, template: key, mode: "0600", change: none}
  - {path: /etc/systemd/system/gadget.service.d/90-imagegen.conf, template: dropin, change: restart gadget.service}
  - {path: /etc/systemd/system/job.timer, template: timer, change: restart job.timer}
components:
  - {name: live, kind: service, params: {unit: live.service}}
  - {name: gadget, kind: service, after: [live], params: {unit: gadget.service}}
  - {name: job, kind: service, after: [gadget], params: {unit: job.timer}}
`

// gadgetFiles are its templates.
var gadgetFiles = map[string]string{
	"gadget.conf": "size 1\n", "live.conf": "peers {{join \" \" (ips \"gadget\")}}\n", "lazy.conf": "lazy\n", "rigid.conf": "rigid\n",
	"shared.conf": "shared\n", "key": "k\n", "dropin": "[Service]\nNice=1\n", "timer": "[Timer]\nOnActiveSec=1min\n", "more.conf": "more\n",
}

// edit is an edit of text.
type edit struct{ old, new string }

// seedOf renders the seed of gadget1 after edits of the role's files and of the spec.
func seedOf(t testing.TB, edits ...edit) cloudinit.Seed {
	t.Helper()
	files := maps.Clone(gadgetFiles)
	files["role.yaml"] = gadget
	spec := "cluster: otus\ndistro: debian12\nnetwork: {cidr: 192.168.10.0/24}\nroles:\n  gadget: {nodes: {gadget1: 192.168.10.60, gadget2: 192.168.10.61}}\n"
	for _, e := range edits {
		n := strings.Count(spec, e.old)
		spec = strings.Replace(spec, e.old, e.new, 1)
		for name, content := range files {
			n += strings.Count(content, e.old)
			files[name] = strings.Replace(content, e.old, e.new, 1)
		}
		if n != 1 {
			t.Fatalf("%q is there %d times", e.old, n)
		}
	}
	dir := t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, "gadget", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return renderSeeds(t, dir, spec, "gadget1")["gadget1"]
}

// renderSeeds renders the seeds of the named nodes of a spec, or of all, with the built-in roles and those in dir.
func renderSeeds(t testing.TB, dir, text string, names ...string) map[string]cloudinit.Seed {
	t.Helper()
	catalogue, err := roles.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Parse("cluster.yaml", []byte(text), catalogue.Rules())
	if err != nil {
		t.Fatal(err)
	}
	s := &secrets.Secrets{
		ClusterID: generationtest.ClusterID, Passwords: map[string]string{}, Nodes: map[string]secrets.KeyPair{},
		CA: secrets.KeyPair{Cert: []byte("certificate of the CA\n")},
	}
	for _, name := range catalogue.SecretNames(spec) {
		s.Passwords[name] = "pass" + name[:2] + "99"
	}
	for _, n := range spec.Nodes() {
		// As the authority does, for the node's name and addresses.
		s.Nodes[n.Name] = secrets.KeyPair{Cert: fmt.Appendf(nil, "certificate of %s %s %s\n", n.Name, n.IP, spec.Role(n.Role).VIP), Key: []byte("key of " + n.Name + "\n")}
	}
	seeds := map[string]cloudinit.Seed{}
	for _, n := range spec.Nodes() {
		if len(names) > 0 && !slices.Contains(names, n.Name) {
			continue
		}
		r, err := catalogue.Render(spec, s, n.Name)
		if err != nil {
			t.Fatal(err)
		}
		var files []cloudinit.File
		for _, f := range r.Files {
			files = append(files, cloudinit.File{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Content: f.Content, Secret: f.Secret})
		}
		if seeds[n.Name], err = cloudinit.New(spec, s.ClusterID, n, files); err != nil {
			t.Fatal(err)
		}
	}
	return seeds
}

// seeded is a simulated node: a tree of files, systemd, and the boot up to the agent's start.
type seeded struct {
	testing.TB
	root    string
	running map[string]string // units, with the files as they were when they last read them
	known   string            // systemd's units, as it last read them
	calls   []string          // of systemd
	stuck   map[string]bool   // units that do not stop
	labels  []string          // files that were given their label
}

// imageFiles are files of the image, with mode and owner.
var imageFiles = []struct {
	path, content, owner string
	mode                 fs.FileMode
}{
	{"/etc/hosts", "127.0.0.1 localhost\n", "root:root", 0o644},
	{"/etc/nftables.conf", "flush ruleset\n", "root:root", 0o755},
	{"/etc/gadget/package.conf", "of the package\n", "gadget:root", 0o640},
	{"/usr/local/sbin/imagegen-node", "agent\n", "root:root", 0o755},
	{"/proc/sys/net/core/somaxconn", "4096\n", "root:root", 0o644},
	{"/proc/sys/net/ipv4/ip_nonlocal_bind", "0\n", "root:root", 0o644},
	{"/proc/sys/net/ipv4/tcp_keepalive_intvl", "75\n", "root:root", 0o644},
	{"/proc/sys/net/ipv4/tcp_keepalive_probes", "9\n", "root:root", 0o644},
	{"/proc/sys/net/ipv4/tcp_keepalive_time", "7200\n", "root:root", 0o644},
	{"/proc/sys/vm/overcommit_memory", "0\n", "root:root", 0o644},
	{"/proc/sys/vm/swappiness", "60\n", "root:root", 0o644},
}

// newSeeded makes a machine from the image and boots it with a seed.
func newSeeded(t testing.TB, seed cloudinit.Seed) *seeded {
	t.Helper()
	m := &seeded{TB: t, root: memoryDir(t), running: map[string]string{}, stuck: map[string]bool{}}
	for _, f := range imageFiles {
		m.write(f.path, f.content, f.mode, f.owner)
	}
	m.must(os.MkdirAll(m.path("/etc/systemd/system/multi-user.target.wants"), 0o755))
	m.must(os.Symlink("/lib/systemd/system/x.service", m.path("/etc/systemd/system/multi-user.target.wants/x.service")))
	m.must(os.MkdirAll(m.path("/run/cloud-init"), 0o755))
	m.must(nocloud.Disk{Root: m.root}.Keep(nocloud.Seed(seed)))
	m.boot()
	return m
}

// memoryDir returns a folder in memory where there is one: a takeover syncs every file, and these tests make thousands.
func memoryDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "imagegen-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (m *seeded) path(name string) string { return filepath.Join(m.root, name) }

func (m *seeded) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// write writes a file as cloud-init does.
func (m *seeded) write(name, content string, mode fs.FileMode, owner string) {
	m.Helper()
	uid, gid, err := fakeOwner(owner)
	m.must(err)
	m.must(os.MkdirAll(filepath.Dir(m.path(name)), 0o755))
	m.must(os.WriteFile(m.path(name), []byte(content), 0o600))
	m.must(os.Chmod(m.path(name), mode))
	m.must(os.Chown(m.path(name), uid, gid))
}

// fakeOwner gives each name an id; an ordinary user has only its own.
func fakeOwner(owner string) (uid, gid int, err error) {
	user, group, ok := strings.Cut(owner, ":")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not user:group", owner)
	}
	if os.Getuid() != 0 {
		return os.Getuid(), os.Getgid(), nil
	}
	id := func(name string) int {
		if name == "root" {
			return 0
		}
		h := fnv.New32a()
		h.Write([]byte(name))
		return 1000 + int(h.Sum32()%1000)
	}
	return id(user), id(group), nil
}

// boot is a boot of the machine up to the start of the agent: imagegen-seed, cloud-init, imagegen-seed-applied.
func (m *seeded) boot() {
	m.Helper()
	m.running = map[string]string{}
	for _, f := range imageFiles {
		if strings.HasPrefix(f.path, "/proc/") {
			m.write(f.path, f.content, f.mode, f.owner)
		}
	}
	disk := nocloud.Disk{Root: m.root}
	kept, err := disk.Kept()
	m.must(err)
	m.must(disk.Prepare(*kept))
	const memory = "/var/lib/cloud/data/instance-id"
	if _, err := os.Stat(m.path(memory)); errors.Is(err, fs.ErrNotExist) {
		seed, err := disk.Current()
		m.must(err)
		files, err := cloudinit.Seed(seed).Files()
		m.must(err)
		for _, f := range files {
			m.write(f.Path, string(f.Content), fs.FileMode(f.Mode), f.Owner)
		}
		m.write(memory, kept.Instance+"\n", 0o644, "root:root")
		m.write("/var/lib/cloud/instances/"+kept.Instance+"/user-data.txt", string(seed.UserData), 0o600, "root:root")
	}
	m.must(disk.Applied(func() {}, nil))
	m.must(os.WriteFile(m.path("/run/cloud-init/result.json"), nil, 0o644))
	m.must(m.reread(context.Background()))
}

// boots boots the machine with a newer seed attached.
func (m *seeded) boots(seed cloudinit.Seed) {
	m.Helper()
	seed.Generation = sign(m, bundle(m, seed), "").Generation
	m.must(nocloud.Disk{Root: m.root}.Keep(nocloud.Seed(seed)))
	m.boot()
}

// facts are those on the machine.
func (m *seeded) facts() facts.Facts {
	m.Helper()
	data, err := os.ReadFile(m.path(facts.FactsPath))
	m.must(err)
	f, err := facts.Decode(data)
	m.must(err)
	return f
}

// reads returns what a unit reads when it starts or is reloaded.
func (m *seeded) reads(unit string) string {
	m.Helper()
	var b strings.Builder
	for _, f := range m.facts().Files {
		if f.Unit == unit {
			data, err := os.ReadFile(m.path(f.Path))
			fmt.Fprintf(&b, "%s: %s%v\n", f.Path, data, err)
		}
	}
	return b.String()
}

func (m *seeded) stop(_ context.Context, unit string) error {
	m.calls = append(m.calls, "stop "+unit)
	if m.stuck[unit] {
		return errors.New("target is busy")
	}
	delete(m.running, unit)
	return nil
}

func (m *seeded) reload(_ context.Context, unit string) error {
	m.calls = append(m.calls, "reload "+unit)
	if _, ok := m.running[unit]; !ok {
		return nil
	}
	if m.known != m.unitFiles() {
		m.Errorf("%s is reloaded by systemd's old idea of it", unit)
	}
	read := m.reads(unit)
	if strings.Contains(read, "BROKEN") {
		return errors.New("the configuration is wrong")
	}
	m.running[unit] = read
	return nil
}

func (m *seeded) reread(context.Context) error {
	if m.known == m.unitFiles() {
		m.calls = append(m.calls, "reread units that have not changed")
	}
	m.known = m.unitFiles()
	return nil
}

// unitFiles returns the units of the seed and their drop-ins.
func (m *seeded) unitFiles() (all string) {
	m.Helper()
	m.must(filepath.WalkDir(m.path("/etc/systemd/system"), func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		all += strings.TrimPrefix(name, m.root) + ": " + string(data) + "\n"
		return err
	}))
	return all
}

func (m *seeded) label(_ context.Context, files []string) error {
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return err
		}
		m.labels = append(m.labels, strings.TrimPrefix(f, m.root))
	}
	return nil
}

// agentStarts is what the agent does when it starts: kernel parameters, and each component in order. It tells whether all are ready.
func (m *seeded) agentStarts() (ready bool) {
	m.Helper()
	m.must(ApplySysctl(m.root, "/etc/sysctl.d/90-imagegen.conf"))
	if m.known != m.unitFiles() {
		m.Errorf("units start by systemd's old idea of them")
	}
	for _, c := range m.facts().Components {
		for _, u := range unitsOf(c) {
			if _, ok := m.running[u]; !ok {
				read := m.reads(u)
				if strings.Contains(read, "BROKEN") {
					return false
				}
				m.running[u] = read
			}
		}
	}
	return true
}

// takeover returns the machine's takeover. step may be nil.
func (m *seeded) takeover(step func(string)) *takeover {
	return &takeover{root: m.root, disk: nocloud.Disk{Root: m.root}, daemons: m, owner: fakeOwner, step: step}
}

// bundle is what the operator sends of a seed.
func bundle(t testing.TB, seed cloudinit.Seed) facts.Bundle {
	t.Helper()
	files, err := seed.Files()
	if err != nil {
		t.Fatal(err)
	}
	b := facts.Bundle{MetaData: seed.MetaData, NetworkConfig: seed.NetworkConfig, UserData: seed.UserData, Files: map[string][]byte{}}
	for _, f := range files {
		if f.Path == facts.FactsPath {
			b.Facts = f.Content
		} else {
			b.Files[f.Path] = f.Content
		}
	}
	return b
}

// agent returns an agent of the machine that takes any generation.
func (m *seeded) agent(step func(string)) *Agent {
	a := newAgent(m.facts(), systemClock{}, nil, func(string) {})
	a.takeover = m.takeover(step)
	kept, err := a.takeover.disk.Kept()
	m.must(err)
	a.made.Seed = kept.Digest
	a.verifier = anyGeneration{authorityOf(m)}
	for _, c := range a.facts.Components {
		a.add(c, nil, nil)
	}
	return a
}

// anyGeneration takes each generation that this authority has signed.
type anyGeneration struct{ *generationtest.Authority }

func (a anyGeneration) member(signed []byte, _ bool) (facts.Member, error) {
	g, err := a.Verify(signed)
	if err != nil {
		return facts.Member{}, err
	}
	return g.Members[0], nil
}

// signer signs the generations of these tests.
var signer *generationtest.Authority

func authorityOf(t testing.TB) *generationtest.Authority {
	if signer == nil {
		signer = generationtest.New(t)
	}
	return signer
}

// sign makes the generation that a bundle belongs to. image may be empty.
func sign(t testing.TB, b facts.Bundle, image string) facts.Bundle {
	t.Helper()
	s := nocloud.Seed{MetaData: b.MetaData, NetworkConfig: b.NetworkConfig, UserData: b.UserData}
	id, err := s.Identity()
	if err != nil && id.Node == "" {
		t.Fatal(err)
	}
	b.Generation = authorityOf(t).Sign(t, 7, "", facts.Member{
		Name: id.Node, Role: "r", IP: "192.168.10.1", Image: image, Seed: nocloud.Digest(b.UserData, b.NetworkConfig), Facts: facts.Digest(b.Facts),
	}).Signed
	return b
}

// takesOver has the machine take over a seed, up to its trial.
func (m *seeded) takesOver(seed cloudinit.Seed, step func(string)) (facts.Plan, error) {
	m.Helper()
	a := m.agent(step)
	p, begun, err := a.takeOver(sign(m, bundle(m, seed), ""), false)
	if err != nil || !begun {
		return p, err
	}
	_, err = a.takeover.resume(context.Background())
	return p, err
}

// looks describes everything that must be the same on two nodes with the same seed.
func (m *seeded) looks() map[string]string {
	m.Helper()
	all := map[string]string{"systemd": m.known}
	for u, read := range m.running {
		all["unit "+u] = read
	}
	err := filepath.WalkDir(m.root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		shown := strings.TrimPrefix(name, m.root)
		if shown == facts.StateDir || shown == "/var/lib/cloud" || shown == "/run" {
			return fs.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		is := fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(name)
			if err != nil {
				return err
			}
			is += " -> " + to
		case info.Mode().IsRegular():
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			is += " " + string(data)
		}
		all["file "+shown] = is
		return nil
	})
	m.must(err)
	kept, err := nocloud.Disk{Root: m.root}.Kept()
	m.must(err)
	all["seed"] = kept.Digest
	return all
}

// differences compares two machines.
func differences(have, want map[string]string) (all []string) {
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if h, ok := have[k]; !ok {
			all = append(all, k+" is missing")
		} else if h != want[k] {
			all = append(all, fmt.Sprintf("%s is %q instead of %q", k, h, want[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[k]; !ok {
			all = append(all, k+" is left over")
		}
	}
	return all
}

// takeoverCases are changes that a running node takes over, one of each kind, with what its units see of it.
var takeoverCases = []struct {
	name  string
	edits []edit
	calls []string
}{
	{"a file with a restart", []edit{{"size 1\n", "size 2\n"}}, []string{"stop job.timer", "stop gadget.service"}},
	{"a file with a reload", []edit{{"peers {{", "all peers {{"}}, []string{"reload live.service"}},
	{"a file without either", []edit{{"lazy\n", "lazier\n"}}, nil},
	{"a reload of what restarts anyway", []edit{{"template: shared.conf, change: restart", "template: shared.conf, change: reload"}, {"shared\n", "common\n"}, {"size 1\n", "size 2\n"}},
		[]string{"stop job.timer", "stop gadget.service"}},
	{"a new node", []edit{{"gadget2: 192.168.10.61", "gadget2: 192.168.10.61, gadget3: 192.168.10.62"}}, []string{"reload nftables.service", "reload live.service"}},
	{"the packet filter", []edit{{`{port: "80", from: [any], why: site}`, `{port: "81", from: [any], why: site}`}}, []string{"reload nftables.service"}},
	{"a drop-in", []edit{{"Nice=1", "Nice=2"}}, []string{"stop job.timer", "stop gadget.service"}},
	{"a timer", []edit{{"OnActiveSec=1min", "OnActiveSec=2min"}}, []string{"stop job.timer"}},
	{"a drop-in that is gone", []edit{{"  - {path: /etc/systemd/system/gadget.service.d/90-imagegen.conf, template: dropin, change: restart gadget.service}\n", ""}},
		[]string{"stop job.timer", "stop gadget.service"}},
	{"a file in folders of its own that is gone", []edit{{"  - {path: /etc/imagegen/gadget/deep/key, template: key, mode: \"0600\", change: none}\n", ""}}, nil},
	{"a new file in new folders", []edit{{"components:\n", "  - {path: /etc/new/folder/more.conf, template: more.conf, change: reload live.service}\ncomponents:\n"}}, []string{"reload live.service"}},
	{"a new file in place of the image's", []edit{{"components:\n", "  - {path: /etc/gadget/package.conf, template: more.conf, change: none}\ncomponents:\n"}}, nil},
	{"a mode", []edit{{`mode: "0640", owner: "root:gadget"`, `mode: "0600", owner: "root:gadget"`}}, nil},
	{"an owner", []edit{{`owner: "root:gadget"`, `owner: "gadget:root"`}}, nil},
	{"a kernel parameter's value", []edit{{`somaxconn: "1024"`, `somaxconn: "2048"`}}, nil},
	{"a new kernel parameter", []edit{{`{net.core.somaxconn: "1024"}`, `{net.core.somaxconn: "1024", vm.swappiness: "1"}`}}, nil},
	{"a new component", []edit{{"components:\n", "components:\n  - {name: new, kind: service, params: {unit: new.service}}\n"}}, nil},
	{"a component that is gone", []edit{
		{"  - {path: /etc/systemd/system/job.timer, template: timer, change: restart job.timer}\n", ""},
		{"  - {name: job, kind: service, after: [gadget], params: {unit: job.timer}}\n", ""},
	}, []string{"stop job.timer"}},
	{"a component's unit", []edit{{"params: {unit: job.timer}", "params: {unit: other.timer}"}, {"change: restart job.timer", "change: restart other.timer"}}, []string{"stop job.timer"}},
	{"no file at all", []edit{{"kind: service, after: [gadget]", "kind: service, after: [live]"}}, nil},
	{"everything at once", []edit{
		{"size 1\n", "size 2\n"}, {"peers {{", "all peers {{"}, {"lazy\n", "lazier\n"}, {"Nice=1", "Nice=2"},
		{`{port: "80", from: [any], why: site}`, `{port: "81", from: [any], why: site}`},
		{"  - {path: /etc/imagegen/gadget/deep/key, template: key, mode: \"0600\", change: none}\n", ""},
		{"components:\n", "  - {path: /etc/new/folder/more.conf, template: more.conf, change: reload live.service}\n  - {path: /etc/gadget/package.conf, template: more.conf, change: none}\ncomponents:\n"},
		{`owner: "root:gadget"`, `owner: "gadget:root"`},
		{`{net.core.somaxconn: "1024"}`, `{net.core.somaxconn: "2048", vm.swappiness: "1"}`},
	}, []string{"stop job.timer", "stop gadget.service", "reload nftables.service", "reload live.service"}},
}

// TestTakeoverIsLikeANewNode: after every kind of change, files and running units are those of a new node with the same seed; after
// going back, those of a new node with the old one.
func TestTakeoverIsLikeANewNode(t *testing.T) {
	old := seedOf(t)
	before := newSeeded(t, old)
	before.agentStarts()
	for _, c := range takeoverCases {
		t.Run(c.name, func(t *testing.T) {
			seed := seedOf(t, c.edits...)
			fresh := newSeeded(t, seed)
			fresh.agentStarts()
			m := newSeeded(t, old)
			m.agentStarts()
			p, err := m.takesOver(seed, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(m.calls, c.calls) {
				t.Errorf("systemd was told to %q, want %q; plan %+v", m.calls, c.calls, p)
			}
			for _, f := range p.Files {
				if f.What != fileRemoved && !slices.Contains(m.labels, f.Path) {
					t.Errorf("%s has no label of its own", f.Path)
				}
			}
			m.agentStarts()
			for _, d := range differences(m.looks(), fresh.looks()) {
				t.Error(d)
			}
			m.boot()
			if _, err := m.takeover(nil).resume(context.Background()); err != nil {
				t.Fatal(err)
			}
			m.agentStarts()
			for _, d := range differences(m.looks(), fresh.looks()) {
				t.Errorf("after a reboot: %s", d)
			}
			m.goesBack("for the test")
			if _, err := m.takeover(nil).resume(context.Background()); err != nil {
				t.Fatal(err)
			}
			m.agentStarts()
			for _, d := range differences(m.looks(), before.looks()) {
				t.Errorf("after going back: %s", d)
			}
			if left, err := os.ReadDir(m.takeover(nil).state()); err != nil || len(left) != 1 {
				t.Errorf("after going back, more than the journal is left: %v, %v", left, err)
			}
		})
	}
}

// TestTakeoverFromAnyToAny goes from seeds of these cases to others of them.
func TestTakeoverFromAnyToAny(t *testing.T) {
	seeds, fresh := []cloudinit.Seed{seedOf(t)}, []map[string]string{}
	for _, c := range takeoverCases {
		seeds = append(seeds, seedOf(t, c.edits...))
	}
	for _, s := range seeds {
		m := newSeeded(t, s)
		m.agentStarts()
		fresh = append(fresh, m.looks())
	}
	followed := 0
	for i, from := range seeds {
		for j, to := range seeds {
			if (i+j)%4 > 0 { // all of them take long
				continue
			}
			m := newSeeded(t, from)
			m.agentStarts()
			p, err := m.takesOver(to, nil)
			want := fresh[j]
			switch {
			case len(p.Replace) > 0:
				want = fresh[i]
			case err != nil:
				t.Errorf("from case %d to %d: %v", i, j, err)
			default:
				followed++
			}
			m.agentStarts()
			for _, d := range differences(m.looks(), want) {
				t.Errorf("from case %d to %d: %s", i, j, d)
			}
		}
	}
	if followed < 80 {
		t.Errorf("only %d changes were followed", followed)
	}
}

// goesBack ends the trial.
func (m *seeded) goesBack(why string) {
	m.Helper()
	x := m.takeover(nil)
	j, err := x.read()
	m.must(err)
	j.Phase, j.Why = facts.TrialReturning, why
	m.must(x.write(j))
}

// crashes is what a test's step panics with.
type crashes struct{}

// crashAt returns a step that stops the machine at the nth call, and the number of calls so far.
func crashAt(n int) (step func(string), seen *int) {
	seen = new(int)
	return func(string) {
		*seen++
		if *seen == n {
			panic(crashes{})
		}
	}, seen
}

// survive runs do and tells whether it ended before a crash.
func survive(do func()) (ended bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crashes); !ok {
				panic(r)
			}
		}
	}()
	do()
	return true
}

// TestTakeoverCrashes stops the machine, or only the agent, between any two steps of a change to a new seed and back, and once more
// while that is completed. The node is then wholly the one or the other, and nothing is left over.
func TestTakeoverCrashes(t *testing.T) {
	edits := takeoverCases[len(takeoverCases)-1].edits
	old, seed := seedOf(t), seedOf(t, edits...)
	looks := func(s cloudinit.Seed) map[string]string {
		m := newSeeded(t, s)
		m.agentStarts()
		return m.looks()
	}
	was, is := looks(old), looks(seed)
	for _, way := range []struct {
		name  string
		start func(m *seeded)
		run   func(m *seeded, step func(string)) error
		end   map[string]string
	}{
		{"forward", func(*seeded) {}, func(m *seeded, step func(string)) error { _, err := m.takesOver(seed, step); return err }, is},
		{"back", func(m *seeded) {
			_, err := m.takesOver(seed, nil)
			m.must(err)
			m.agentStarts()
			m.goesBack("for the test")
		}, func(m *seeded, step func(string)) error {
			_, err := m.takeover(step).resume(context.Background())
			return err
		}, was},
	} {
		for _, power := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/power=%v", way.name, power), func(t *testing.T) {
				undecided, decided := 0, 0
				for n, ended := 1, false; !ended; n++ {
					m := newSeeded(t, old)
					m.agentStarts()
					way.start(m)
					step, _ := crashAt(n)
					ended = survive(func() { m.must(way.run(m, step)) })
					// It is interrupted again while it is completed, at some step.
					again, _ := crashAt(1 + n*7%23)
					for _, step := range []func(string){again, nil} {
						if power {
							m.boot()
						}
						survive(func() {
							_, err := m.takeover(step).resume(context.Background())
							m.must(err)
						})
					}
					m.agentStarts()
					j, err := m.takeover(nil).read()
					m.must(err)
					want := way.end
					if j.Phase == noJournalYet {
						want = was
						undecided++
					} else {
						decided++
					}
					for _, d := range differences(m.looks(), want) {
						t.Errorf("crash %d: %s", n, d)
					}
					left := ""
					switch j.Phase {
					case noJournalYet:
						left = "/takeover"
					case facts.TrialReturned: // the other seed has secrets, perhaps
						left = "/takeover/new"
					}
					if _, err := os.Stat(m.path(facts.StateDir + left)); left != "" && !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("crash %d: %s is left", n, left)
					}
					if t.Failed() {
						return
					}
				}
				if decided < 20 || way.name == "forward" && undecided == 0 {
					t.Errorf("%d crashes before the decision, %d after it", undecided, decided)
				}
			})
		}
	}
}

// TestTakeoverGoesBackByItself: what a daemon refuses, or a unit that does not stop, ends in the old seed.
func TestTakeoverGoesBackByItself(t *testing.T) {
	old := seedOf(t)
	before := newSeeded(t, old)
	before.agentStarts()
	for _, c := range []struct {
		name  string
		edits []edit
		stuck string
		why   string
	}{
		{"a reload fails", []edit{{"peers {{", "BROKEN {{"}, {"size 1\n", "size 2\n"}}, "", "reload live.service: the configuration is wrong"},
		{"a unit does not stop", []edit{{"size 1\n", "size 2\n"}}, "gadget.service", "stop gadget.service: target is busy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newSeeded(t, old)
			m.agentStarts()
			m.stuck[c.stuck] = true
			if _, err := m.takesOver(seedOf(t, c.edits...), nil); err != nil {
				t.Fatal(err)
			}
			m.agentStarts()
			for _, d := range differences(m.looks(), before.looks()) {
				t.Error(d)
			}
			j, err := m.takeover(nil).read()
			if err != nil || j.Phase != facts.TrialReturned || j.Why != c.why {
				t.Errorf("%+v, %v", j, err)
			}
		})
	}
}

// TestTakeoverOfAFileThatCannotBeWritten goes back as well, whichever file it is.
func TestTakeoverOfAFileThatCannotBeWritten(t *testing.T) {
	edits := takeoverCases[len(takeoverCases)-1].edits
	old, seed := seedOf(t), seedOf(t, edits...)
	before := newSeeded(t, old)
	before.agentStarts()
	failed := 0
	for n, ended := 1, false; !ended; n++ {
		m := newSeeded(t, old)
		m.agentStarts()
		written := 0
		ended = true
		if _, err := m.takesOver(seed, func(what string) {
			if file, ok := strings.CutPrefix(what, "write "); ok {
				if written++; written == n {
					m.must(os.Mkdir(asideOf(m.path(file)), 0o700)) // in the way
					ended, failed = false, failed+1
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		if ended {
			break // all files were written
		}
		m.agentStarts()
		for _, d := range differences(m.looks(), before.looks()) {
			t.Errorf("file %d: %s", n, d)
		}
		if j, err := m.takeover(nil).read(); err != nil || j.Phase != facts.TrialReturned || !strings.Contains(j.Why, newFileMark) {
			t.Errorf("file %d: %+v, %v", n, j, err)
		}
	}
	if failed < 8 {
		t.Errorf("only %d files failed", failed)
	}
}

// TestSystemdStops: a unit that ignores SIGTERM is killed, since a takeover waits for the stop; one that the node does not have has
// stopped.
func TestSystemdStops(t *testing.T) {
	limits(t, changeLimits{idle: 500 * time.Millisecond, silent: time.Hour}, startLimits)
	u := newRealUnit(t, deaf)
	u.is(t, "deactivating", "stop-sigterm", "control-group")
	// As systemd's own, this one's stop returns when the unit has stopped.
	shim, dir := filepath.Join(filepath.Dir(u.state), "systemctl"), t.TempDir()
	script := "#!/bin/sh\nif [ \"$1\" = stop ]; then while grep -q . " + u.group + "/cgroup.procs; do sleep 0.05; done; exit 0; fi\nexec " + shim + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	go u.started.Wait() // a zombie is still in its control group
	if err := (systemd{}).stop(t.Context(), u.name); err != nil || u.processes() > 0 {
		t.Errorf("%v, %d processes", err, u.processes())
	}
}

// TestSystemdReloads: only what runs is reloaded, and what may be reading the old files is stopped.
func TestSystemdReloads(t *testing.T) {
	for _, c := range []struct{ load, active, want string }{
		{"loaded", "active", "reload x.service"},
		{"loaded", "reloading", "reload x.service"},
		{"loaded", "activating", "stop x.service"},
		{"loaded", "deactivating", "stop x.service"},
		{"loaded", "inactive", ""},
		{"loaded", "failed", ""},
		{"not-found", "inactive", ""},
	} {
		state, asked := fakeSystemd(t)
		if err := os.WriteFile(state, []byte("LoadState="+c.load+"\nActiveState="+c.active+"\nSubState=x\nResult=success\nMainPID=0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := (systemd{}).reload(t.Context(), "x.service"); err != nil {
			t.Errorf("%s: %v", c.active, err)
		}
		did := ""
		data, _ := os.ReadFile(asked)
		for line := range strings.Lines(string(data)) {
			if !strings.HasPrefix(line, "show ") {
				did += strings.TrimSpace(line)
			}
		}
		if did != c.want {
			t.Errorf("%s: told systemd to %q, want %q", c.active, did, c.want)
		}
	}
}

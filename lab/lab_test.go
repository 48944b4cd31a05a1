//go:build linux

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/internal/netns"
	"imagegen/internal/testkit"
	"imagegen/machines/local/localtest"
	"imagegen/machines/nspawn"
	"imagegen/machines/qemu"
	"imagegen/operate"
)

// Like imagegen, the test program plays several parts: the forwarder, an `imagegen up` or `down` that is killed, and
// the agent of the small image that the nodes boot.
func TestMain(m *testing.M) {
	localtest.Init()
	switch {
	case filepath.Base(os.Args[0]) == filepath.Base(facts.AgentPath):
		fatal(stubAgent())
	case len(os.Args) > 1 && os.Args[1] == ForwardCommand:
		fatal(RunForward(os.Args[2:]))
	case len(os.Args) > 1 && os.Args[1] == "test-up":
		l, err := openTest(os.Args[2], os.Args[3])
		if err == nil {
			err = l.Up(context.Background(), nil, UpOptions{Site: os.Args[4], Provider: os.Args[5]})
		}
		fatal(err)
	case len(os.Args) > 1 && os.Args[1] == "test-down":
		l, err := openTest(os.Args[2], os.Args[3])
		if err == nil {
			err = l.Down(context.Background())
		}
		fatal(err)
	}
	code := m.Run()
	if bakeDir != "" {
		os.RemoveAll(bakeDir)
	}
	os.Exit(code)
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// testSpec is a cluster of a balancer with a virtual address and two nodes with data disks.
func testSpec(name string) *cluster.Spec {
	node := func(role string, i int, ip string) cluster.Node {
		n := cluster.Node{Name: fmt.Sprint(role, i+1), Role: role, IP: netip.MustParseAddr(ip), Index: i}
		n.MAC = fmt.Sprintf("02:00:5e:00:00:%02x", n.IP.As4()[3])
		return n
	}
	return &cluster.Spec{
		Cluster: name, Distro: "debian12", Timezone: "UTC",
		Network: cluster.Network{CIDR: netip.MustParsePrefix("192.168.10.0/24")},
		Roles: []cluster.Role{
			{Name: "balancer", VIP: netip.MustParseAddr("192.168.10.39"), Nodes: []cluster.Node{node("balancer", 0, "192.168.10.40")}},
			{Name: "store", Data: 64 << 20, Nodes: []cluster.Node{node("store", 0, "192.168.10.44"), node("store", 1, "192.168.10.45")}},
		},
	}
}

// testSeed returns a node's seed.
func testSeed(spec *cluster.Spec, keys *secrets.Secrets, n cluster.Node) (cloudinit.Seed, error) {
	known, err := json.Marshal(facts.Facts{
		Version: facts.FactsVersion, Cluster: spec.Cluster, ClusterID: keys.ClusterID,
		Node: facts.Peer{Name: n.Name, Role: n.Role, IP: n.IP.String(), Index: n.Index},
	})
	if err != nil {
		return cloudinit.Seed{}, err
	}
	return cloudinit.New(spec, keys.ClusterID, n, []cloudinit.File{
		{Path: facts.FactsPath, Mode: 0o644, Content: known},
		{Path: facts.PKIDir + "/ca.crt", Mode: 0o644, Content: keys.CA.Cert},
		{Path: facts.PKIDir + "/node.crt", Mode: 0o644, Content: keys.Nodes[n.Name].Cert},
		{Path: facts.PKIDir + "/node.key", Mode: 0o600, Content: keys.Nodes[n.Name].Key, Secret: true},
	})
}

// openTest opens the lab of testSpec(name) in dir, where its secrets are.
func openTest(dir, name string) (*Lab, error) { return openSpec(dir, testSpec(name)) }

func openSpec(dir string, spec *cluster.Spec) (*Lab, error) {
	keys, err := secrets.Load(filepath.Join(dir, "secrets"), spec, nil)
	if err != nil {
		return nil, err
	}
	seed := func(n cluster.Node) (cloudinit.Seed, error) { return testSeed(spec, keys, n) }
	l, err := Open(Config{Spec: spec, Secrets: keys, Providers: testProviders, Dir: filepath.Join(dir, "dist"), Seed: seed, Log: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%s: %s\n", spec.Cluster, fmt.Sprintf(format, args...))
	}})
	if err == nil {
		l.bootLimit = 100 * time.Millisecond // the tests' machines have no agent
	}
	return l, err
}

var testProviders = map[string]Provider{"nspawn": nspawn.New, "qemu": qemu.New}

// testLab is a lab with images and seeds.
type testLab struct {
	*Lab
	dir, name string
	site      string
}

// newTestLab makes everything that imagegen build would, with one image for all roles.
func newTestLab(t *testing.T, name, image string) *testLab {
	t.Helper()
	b := &testLab{dir: t.TempDir(), name: name}
	b.site = testkit.FreeAddress(t)
	var err error
	if b.Lab, err = openTest(b.dir, name); err != nil {
		t.Fatal(err)
	}
	b.makeInputs(t, image)
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(b.dir, "dist/lab/nodes/*/console.log"))
			for _, f := range logs {
				data, _ := os.ReadFile(f)
				t.Logf("%s:\n%s", f, data[max(0, len(data)-3000):])
			}
		}
		if err := b.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *testLab) makeInputs(t *testing.T, image string) {
	t.Helper()
	keys, err := secrets.Load(filepath.Join(b.dir, "secrets"), b.spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"images", "seeds"} {
		if err := os.MkdirAll(filepath.Join(b.dir, "dist", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range b.spec.Roles {
		if err := os.Link(image, b.made.ImagePath(r.Name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	for _, n := range b.spec.Nodes() {
		seed, err := testSeed(b.spec, keys, n)
		if err != nil {
			t.Fatal(err)
		}
		if err := seed.WriteISO(b.made.SeedPath(n.Name)); err != nil {
			t.Fatal(err)
		}
	}
}

// testImage returns the smallest Debian that boots, in the layout of imagegen's images, with this test program as its
// agent.
func testImage(t *testing.T) string {
	t.Helper()
	if os.Getenv("IMAGEGEN_E2E") == "" {
		t.Skip("SKIPPED: boots containers: run it with IMAGEGEN_E2E=1, as root: make e2e")
	}
	for _, program := range []string{"mmdebstrap", "sfdisk", "mkfs.ext4", "systemd-nspawn"} {
		if _, err := exec.LookPath(program); err != nil || os.Geteuid() != 0 {
			t.Skipf("SKIPPED: needs root and %s: make tools", program)
		}
	}
	image, err := bake()
	if err != nil {
		t.Fatalf("bake the test's image: %v", err)
	}
	return image
}

// bakeDir is where the tests' image is baked, once for all tests.
var bakeDir string

var bake = sync.OnceValues(func() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if bakeDir, err = os.MkdirTemp("", "imagegen-labtest"); err != nil {
		return "", err
	}
	image := filepath.Join(bakeDir, "test.raw")
	const script = `
	unit='[Unit]
After=network.target
[Service]
ExecStart=` + facts.AgentPath + `
StandardOutput=journal+console
[Install]
WantedBy=multi-user.target'
	mkdir root
	mmdebstrap --quiet --variant=minbase --include=systemd-sysv,iproute2,e2fsprogs,mount bookworm root.tar
	tar -C root -xpf root.tar
	install -m 755 "$1" root` + facts.AgentPath + `
	echo "$unit" >root/etc/systemd/system/` + facts.AgentUnit + `
	systemctl --root=root enable ` + facts.AgentUnit + `
	: >root/etc/machine-id
	rm -f root/etc/hostname root/etc/resolv.conf
	truncate -s 1G "$2"
	echo start=2048,type=83,bootable | sfdisk -q "$2"
	mkfs.ext4 -q -d root -E offset=1048576 "$2" 1000M
	rm -r root root.tar`
	cmd := exec.Command("sh", "-euc", script, "bake", self, image)
	cmd.Dir = bakeDir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return image, nil
})

// TestNodes uses every method of a lab, in the order of a typical session.
func TestNodes(t *testing.T) {
	image := testImage(t)
	ctx := t.Context()
	b := newTestLab(t, "labtest", image)

	if err := b.Start(ctx, "store1"); err == nil || !strings.Contains(err.Error(), "imagegen up") {
		t.Errorf("start before up: %v", err)
	}
	if err := b.Up(ctx, nil, UpOptions{Site: b.site}); err != nil {
		t.Fatal(err)
	}
	b.waitReady(t)
	if got := b.page(t); got != "balancer1" {
		t.Errorf("the site is %q", got)
	}

	t.Run("the other lab", func(t *testing.T) {
		other := newTestLab(t, "labtest2", image)
		if err := other.Up(ctx, nil, UpOptions{Site: other.site}); err != nil {
			t.Fatal(err)
		}
		other.waitReady(t)
		if err := other.Up(ctx, nil, UpOptions{Site: b.site}); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("up with the other lab's address: %v", err)
		}
		if err := other.Down(ctx); err != nil {
			t.Fatal(err)
		}
		other.nothingLeft(t)
		namesake, err := openTest(other.dir, "labtest")
		if err != nil {
			t.Fatal(err)
		}
		(&testLab{Lab: namesake, dir: other.dir, name: "labtest"}).makeInputs(t, image)
		for what, do := range map[string]func() error{
			"up":   func() error { return namesake.Up(ctx, nil, UpOptions{}) },
			"kill": func() error { return namesake.Kill(ctx, "store1") },
			"down": func() error { return namesake.Down(ctx) },
		} {
			if err := do(); err == nil || !strings.Contains(err.Error(), b.dir) {
				t.Errorf("%s of a cluster of the same name: %v; want the other's folder", what, err)
			}
		}
		for _, s := range statusOf(t, namesake) {
			if s.Power != "off" {
				t.Errorf("the other folder's node is shown: %+v", s)
			}
		}
	})

	t.Run("exec", func(t *testing.T) {
		var out, errs bytes.Buffer
		code, err := b.Exec(ctx, "store1", []string{"sh", "-c", "cat; hostname; echo oops >&2; exit 7"}, strings.NewReader("in\n"), &out, &errs)
		if code != 7 || err != nil || out.String() != "in\nstore1\n" || errs.String() != "oops\n" {
			t.Errorf("exit %d, %v, %q, %q", code, err, &out, &errs)
		}
		if code, err := b.Exec(ctx, "store1", []string{"sh", "-c", "kill -9 $$"}, nil, nil, nil); code != 137 || err != nil {
			t.Errorf("killed command: exit %d, %v", code, err)
		}
	})

	t.Run("a node is a machine", func(t *testing.T) {
		for _, c := range machineChecks {
			if out, ok := b.in(t, "store1", c.script); !ok {
				t.Errorf("%s: %s", c.what, out)
			}
		}
	})

	t.Run("power cut", func(t *testing.T) {
		if err := b.Kill(ctx, "store1"); err != nil {
			t.Fatal(err)
		}
		if s := b.status(t)["store1"]; s.Power != "off" || s.State != "off" || s.Detail != "" {
			t.Errorf("after the kill: %+v", s)
		}
		if b.group.Sub("store1").Exists() {
			t.Error("its cgroup is still there")
		}
		if _, err := b.Exec(ctx, "store1", []string{"true"}, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "off") {
			t.Errorf("exec on a node that is off: %v", err)
		}
		if err := b.Start(ctx, "store1", "store2"); err != nil { // store2 is already on
			t.Fatal(err)
		}
		b.waitReady(t)
		if out, ok := b.in(t, "store1", "mount /dev/imagegen-data /data && cat /data/file /root/file"); out != "kept\nkept\n" || !ok {
			t.Errorf("on the disks after a power cut: %q", out)
		}
	})

	t.Run("cut", func(t *testing.T) {
		const reach = "timeout 2 bash -c 'exec 3<>/dev/tcp/192.168.10.45/7373'"
		if err := b.Cut(ctx, []string{"store1"}, []string{"store2"}, false); err != nil {
			t.Fatal(err)
		}
		if _, ok := b.in(t, "store1", reach); ok {
			t.Error("store1 still reaches store2")
		}
		b.await(t, "this machine still reaches store1", "store1", func(s operate.NodeStatus) bool { return s.State == "ready" })
		if err := b.Mend(ctx); err != nil {
			t.Fatal(err)
		}
		// An ARP request sent before the network was repaired may still be unanswered.
		testkit.Eventually(t, time.Minute, "mended, store1 reaches store2", func() error {
			out, ok := b.in(t, "store1", reach)
			if !ok {
				return errors.New(out)
			}
			return nil
		})
		if err := b.Mend(ctx); err != nil {
			t.Errorf("nothing to mend: %v", err)
		}

		// Cut from everybody, including visitors, who use a virtual address.
		visit := func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			conn, err := b.network.Dial(ctx, "tcp", "192.168.10.99:7373")
			if err == nil {
				conn.Close()
			}
			return err
		}
		if out, ok := b.in(t, "store1", "ip address add 192.168.10.99/32 dev $(ls /sys/class/net | grep -vx lo)"); !ok {
			t.Fatal(out)
		}
		testkit.Eventually(t, time.Minute, "a visit before the cut", visit)
		if err := b.Cut(ctx, []string{"store1"}, nil, false); err != nil {
			t.Fatal(err)
		}
		if err := visit(); err == nil {
			t.Error("a visitor still reaches store1")
		}
		b.await(t, "status still reaches store1", "store1", func(s operate.NodeStatus) bool { return s.State == "ready" })
		if err := b.Mend(ctx); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, time.Minute, "a visit after the cut is mended", visit)
	})

	t.Run("replaced", func(t *testing.T) {
		if err := b.Replace(ctx, "store1", false); err != nil {
			t.Fatal(err)
		}
		b.waitReady(t)
		if out, ok := b.in(t, "store1", "mkdir -p /data && mount /dev/imagegen-data /data && cat /data/file && ! test -e /root/file"); out != "kept\n" || !ok {
			t.Errorf("on the disks of the new node: %q", out)
		}
		if s := b.status(t)["store1"]; s.Build != operate.BuildCurrent {
			t.Errorf("the new node is of the latest image: %+v", s)
		}
		if err := b.Replace(ctx, "store1", true); err != nil {
			t.Fatal(err)
		}
		b.waitReady(t)
		if out, ok := b.in(t, "store1", "! blkid /dev/imagegen-data"); !ok {
			t.Errorf("the data disk is not blank: %s", out)
		}
	})

	t.Run("it ends by itself", func(t *testing.T) {
		b.in(t, "store2", "systemctl poweroff")
		b.await(t, "power off", "store2", func(s operate.NodeStatus) bool { return s.Power == "off" && strings.Contains(s.Detail, "by itself") })
		if err := b.Up(ctx, nil, UpOptions{Site: b.site}); err != nil {
			t.Fatal(err)
		}
		b.waitReady(t)
	})

	t.Run("console", func(t *testing.T) {
		testkit.Eventually(t, time.Minute, "four boots are on the console", func() error { // through the journal, which takes its time
			var log bytes.Buffer
			if err := b.Console(ctx, &log, "store1", false); err != nil || strings.Count(log.String(), "imagegen: stub ready") != 4 {
				return fmt.Errorf("%v\n%s", err, &log)
			}
			return nil
		})
		following, stop := context.WithCancel(ctx)
		defer stop()
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- b.Console(following, w, "store2", true) }()
		go b.in(t, "store2", "echo fresh news >/dev/console")
		var seen []byte
		buf := make([]byte, 4096)
		for !bytes.Contains(seen, []byte("fresh news")) {
			n, err := r.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, buf[:n]...)
		}
		stop()
		go io.Copy(io.Discard, r)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	if err := b.Down(ctx); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t)
}

// machineChecks are run on a node in this order.
var machineChecks = []struct{ what, script string }{
	{"the data disk is a block device", "mkfs.ext4 -q /dev/imagegen-data && mkdir /data && mount /dev/imagegen-data /data"},
	{"it writes to its disks", "echo kept >/data/file && echo kept >/root/file"},
	{"the network's parameters can be set", "echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind"},
	{"FUSE is there", "test -c /dev/fuse && exec 3<>/dev/fuse"},
	{"peers answer", "bash -c 'exec 3<>/dev/tcp/192.168.10.45/7373'"},
	{"there is no way out", `test -z "$(ip route show default)"`},
	{"the host's kernel cannot be changed", "! echo 1 >/proc/sys/vm/overcommit_memory"},
	{"the host's disks cannot be reached", "! mknod /root/disk b 7 0"},
	{"the seed is for root alone", `test "$(stat -c %a /var/lib/cloud/seed/nocloud/user-data)" = 600`},
	{"nothing has failed", `test -z "$(systemctl --failed --plain --no-legend)" || { systemctl --failed; false; }`},
}

// TestKilledUp kills imagegen at different times during up, and then runs up again.
func TestKilledUp(t *testing.T) {
	image := testImage(t)
	b := newTestLab(t, "labtest3", image)
	b.killedUp(t, "nspawn", 4*time.Millisecond)
	if err := b.Up(t.Context(), nil, UpOptions{Site: b.site}); err != nil {
		t.Fatal(err)
	}
	b.waitReady(t)
	b.page(t)
	if err := b.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t)
}

// killedUp kills up after 0, step, 2*step, … until up finishes first.
func (b *testLab) killedUp(t *testing.T, provider string, step time.Duration) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	finished := false
	for after := time.Duration(0); !finished; after += step {
		cmd := exec.Command(self, "test-up", b.dir, b.name, b.site, provider)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		finished = err == nil
		switch len(b.group.Below()) % 2 { // sometimes start from nothing
		case 0:
			if err := b.Down(t.Context()); err != nil {
				t.Fatalf("down after %s of up: %v", after, err)
			}
			b.nothingLeft(t)
		}
	}
}

// TestKilledDown kills imagegen at different times during down, and then runs down or up.
func TestKilledDown(t *testing.T) {
	image := testImage(t)
	b := newTestLab(t, "labtest6", image)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The intervals are shortest at the beginning, where down does one thing after the other. Later it waits for nodes
	// to stop.
	finished := false
	for i, after := 0, time.Duration(0); !finished; i, after = i+1, after*3/2+4*time.Millisecond {
		if err := b.Up(t.Context(), nil, UpOptions{Site: b.site}); err != nil {
			t.Fatalf("up, the %dth time after a down that was killed: %v", i, err)
		}
		cmd := exec.Command(self, "test-down", b.dir, b.name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		finished = err == nil
		if i%2 == 0 || finished {
			if err := b.Down(t.Context()); err != nil {
				t.Fatalf("down after %s of down: %v", after, err)
			}
			b.nothingLeft(t)
		}
	}
}

// TestChangedSpec changes the spec and folder of a running lab: it removes a node, gives its address to another,
// inserts one, moves the folder, and renames the cluster.
// the folder is moved, the cluster is renamed.
func TestChangedSpec(t *testing.T) {
	image := testImage(t)
	ctx := t.Context()
	b := newTestLab(t, "labtest7", image)
	if err := b.Up(ctx, nil, UpOptions{Site: b.site}); err != nil {
		t.Fatal(err)
	}
	b.waitReady(t)

	// store0 precedes store1, and store3 replaces store2.
	spec := testSpec(b.name)
	store := &spec.Roles[1]
	renamed := store.Nodes[1]
	renamed.Name, renamed.MAC = "store3", "02:00:5e:00:00:03"
	first := cluster.Node{Name: "store0", Role: "store", IP: netip.MustParseAddr("192.168.10.43"), MAC: "02:00:5e:00:00:2b"}
	store.Nodes = []cluster.Node{first, store.Nodes[0], renamed}
	reopen := func() {
		t.Helper()
		l, err := openSpec(b.dir, spec)
		if err != nil {
			t.Fatal(err)
		}
		b.Lab = l
	}
	reopen()
	b.makeInputs(t, image)
	if err := b.Up(ctx, nil, UpOptions{}); err == nil || !strings.Contains(err.Error(), "imagegen kill store2") {
		t.Errorf("up while store2 has the address of store3: %v", err)
	}
	if err := b.Up(ctx, []string{"store0"}, UpOptions{}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "store0 beside the others", func() error {
		all := b.status(t)
		for name, want := range map[string]string{"balancer1": "", "store0": "", "store1": "", "store2": operate.BuildRemoved} {
			if s := all[name]; s.State != "ready" || want != "" && s.Build != want {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	if out, ok := b.in(t, "store2", "hostname"); out != "store2\n" || !ok {
		t.Errorf("exec on a node that was removed: %q", out)
	}

	moved := b.dir + "-moved"
	if err := os.Rename(b.dir, moved); err != nil {
		t.Fatal(err)
	}
	defer os.Rename(moved, b.dir)
	was := b.dir
	b.dir = moved
	reopen()
	b.await(t, "ready after the folder was moved", "store1", func(s operate.NodeStatus) bool { return s.State == "ready" })
	if err := b.Kill(ctx, "store2"); err != nil {
		t.Fatal(err)
	}
	if s := b.status(t)["store2"]; s.Power != "off" {
		t.Errorf("a removed node that was killed: %+v", s)
	}
	if err := b.Remove(ctx, "store2"); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.status(t)["store2"]; ok {
		t.Error("store2 was removed, and is shown")
	}
	if err := b.Up(ctx, []string{"store3"}, UpOptions{}); err != nil {
		t.Fatal(err)
	}
	b.await(t, "store3 in the place of store2", "store3", func(s operate.NodeStatus) bool { return s.State == "ready" })

	before := b.name
	spec.Cluster, b.name = "labtest7b", "labtest7b"
	reopen()
	b.makeInputs(t, image)
	if s := b.status(t)["store1"]; !strings.Contains(s.Detail, "cluster "+before) {
		t.Errorf("after the cluster was renamed: %+v", s)
	}
	if err := b.Up(ctx, nil, UpOptions{}); err == nil || !strings.Contains(err.Error(), "cluster "+before+" still runs") {
		t.Errorf("up by another name: %v", err)
	}
	if err := b.Down(ctx); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t)
	b.Lab, b.name = b.named(before), before
	b.nothingLeft(t)
	b.dir = was
}

// nothingLeft fails if anything of the lab is left on this machine.
func (b *testLab) nothingLeft(t *testing.T) {
	t.Helper()
	if b.group.Exists() {
		t.Error("cgroup left:", b.group)
	}
	for what, pattern := range map[string]string{
		"namespace": b.network.Path(), "claim": filepath.Join(registry, b.name), "state": b.paths.lab(),
		"nspawn's": "/run/systemd/nspawn/*/store1",
	} {
		if left, _ := filepath.Glob(pattern); left != nil {
			t.Errorf("%s left: %s", what, left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, b.dir) || strings.Contains(line, string(b.network)+" ") {
			t.Errorf("mount left: %s", line)
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range backing {
		if data, _ := os.ReadFile(f); strings.HasPrefix(string(data), b.dir) {
			t.Errorf("loop device left: %s: %s", f, data)
		}
	}
	cards, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cards {
		if strings.HasPrefix(c.Name, "port") || c.Name == netns.Bridge {
			t.Errorf("interface left: %s", c.Name)
		}
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range dirs {
		cwd, _ := os.Readlink(p + "/cwd")
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if strings.HasPrefix(cwd, b.dir) || p != fmt.Sprint("/proc/", os.Getpid()) && bytes.Contains(cmdline, []byte(b.dir)) {
			t.Errorf("process left: %s %q", p, cmdline)
		}
		fds, _ := os.ReadDir(p + "/fd")
		for _, fd := range fds {
			if file, _ := os.Readlink(p + "/fd/" + fd.Name()); strings.HasPrefix(file, b.dir) && p != fmt.Sprint("/proc/", os.Getpid()) {
				t.Errorf("process left with %s open: %s %q", file, p, cmdline)
			}
		}
	}
}

func statusOf(t *testing.T, l *Lab) []operate.NodeStatus {
	t.Helper()
	all, err := l.Cluster().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (b *testLab) status(t *testing.T) map[string]operate.NodeStatus {
	t.Helper()
	m := map[string]operate.NodeStatus{}
	for _, s := range statusOf(t, b.Lab) {
		m[s.Node] = s
	}
	return m
}

// await waits until a node's status is as wanted: on a busy machine, agents do not always answer in time.
func (b *testLab) await(t *testing.T, what, node string, wanted func(operate.NodeStatus) bool) {
	t.Helper()
	testkit.Eventually(t, time.Minute, what, func() error {
		if s := b.status(t)[node]; !wanted(s) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

func (b *testLab) waitReady(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, time.Minute, "all nodes ready", func() error {
		all := statusOf(t, b.Lab)
		if i := slices.IndexFunc(all, func(s operate.NodeStatus) bool { return s.State != "ready" }); i >= 0 {
			return fmt.Errorf("%+v", all[i])
		}
		return nil
	})
}

func (b *testLab) page(t *testing.T) string {
	t.Helper()
	var body []byte
	testkit.Eventually(t, time.Minute, "the site", func() error {
		resp, err := http.Get("http://" + b.site + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err
	})
	return string(body)
}

// in runs a shell command on a node. It returns false if the command fails.
func (b *testLab) in(t *testing.T, node, script string) (string, bool) {
	t.Helper()
	var out bytes.Buffer
	code, err := b.Exec(t.Context(), node, []string{"sh", "-c", script}, nil, &out, &out)
	if err != nil {
		t.Error(err)
	}
	return out.String(), code == 0
}

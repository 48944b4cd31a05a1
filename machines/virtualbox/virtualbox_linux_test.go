package virtualbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/internal/testkit"
	"imagegen/internal/vboxtest"
	"imagegen/machines"
	"imagegen/machines/conformance"
)

const clusterID = "11111111-2222-4333-8444-555555555555"

func manage(t *testing.T, args ...string) string {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command("VBoxManage", append([]string{"-q"}, args...)...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("VBoxManage %s: %v\n%s%s", strings.Join(args, " "), err, out, &said)
	}
	return string(out)
}

func put(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// backend tests a real VirtualBox.
type backend struct {
	provider *Provider
	files    [2]struct{ image, seed machines.File }
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	dir := t.TempDir()
	spec := &cluster.Spec{Cluster: "otus", Network: cluster.Network{CIDR: netip.MustParsePrefix("192.168.10.0/24")},
		Roles: []cluster.Role{{Name: "redis", Nodes: []cluster.Node{{Name: "node1", IP: netip.MustParseAddr("192.168.10.1")}}}}}
	p, err := New(Config{Spec: spec, ClusterID: clusterID, Dir: filepath.Join(dir, "dist")})
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{provider: p}
	for v := range b.files {
		b.files[v].image = machines.File{Path: put(t, filepath.Join(dir, fmt.Sprint("image", v)), testkit.Speaker(4<<20, testkit.COM1, fmt.Sprintf("image %d\n", v))), Identity: fmt.Sprint("image", v)}
		b.files[v].seed = machines.File{Path: put(t, filepath.Join(dir, fmt.Sprint("seed", v)), bytes.Repeat([]byte{byte(v)}, 64<<10)), Identity: fmt.Sprint("seed", v)}
	}
	return b
}

func (b *backend) Provider(_ *testing.T, step func() error) machines.Provider {
	p := b.provider
	return &Provider{spec: p.spec, clusterID: p.clusterID, dir: p.dir, host: p.host, os: p.os, step: step}
}

func (b *backend) Machine(node string, version int) machines.Machine {
	return machines.Machine{Cluster: "otus", ClusterID: clusterID, Node: node, Role: "redis", CPUs: 1, Memory: 62 << 20, Data: 3 << 20, MAC: "52:54:00:0a:0b:0c",
		Image: b.files[version].image, Seed: b.files[version].seed}
}

func (b *backend) Foreign(t *testing.T, node string) {
	manage(t, "createvm", "--name", "otus-"+node, "--basefolder", filepath.Join(b.provider.dir, "..", "foreign"), "--ostype", "Linux26_64", "--register")
	manage(t, "setextradata", "otus-"+node, clusterKey, "99999999-2222-4333-8444-555555555555")
	disk := filepath.Join(b.provider.dir, "..", "foreign", "data.vdi")
	manage(t, "createmedium", "disk", "--filename", disk, "--size", "1")
	manage(t, "storagectl", "otus-"+node, "--name", "SATA", "--add", "sata")
	manage(t, "storageattach", "otus-"+node, "--storagectl", "SATA", "--port", "2", "--type", "hdd", "--medium", disk)
	t.Cleanup(func() { manage(t, "unregistervm", "otus-"+node, "--delete") })
}

func (b *backend) ForeignIntact(t *testing.T, node string) {
	if info := manage(t, "showvminfo", "otus-"+node, "--machinereadable"); !strings.Contains(info, `"SATA-2-0"="`) || strings.Contains(info, `"SATA-2-0"="none"`) {
		t.Errorf("the foreign machine:\n%s", info)
	}
}

func (b *backend) Vanish(t *testing.T, node string) {
	if err := b.provider.Stop(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	manage(t, "storageattach", "otus-"+node, "--storagectl", "SATA", "--port", "2", "--device", "0", "--medium", "none")
	manage(t, "unregistervm", "otus-"+node, "--delete")
}

// withData calls do with a raw copy of a node's data disk.
func (b *backend) withData(t *testing.T, node string, do func(path string)) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	manage(t, "clonemedium", "disk", b.provider.disk(node), raw, "--format", "RAW")
	do(raw)
	manage(t, "closemedium", "disk", raw)
}

func (b *backend) WriteData(t *testing.T, node, text string) {
	b.withData(t, node, func(raw string) {
		f, err := os.OpenFile(raw, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), 512); err != nil {
			t.Fatal(err)
		}
		// The medium gets the UUID that the machine's settings name.
		manage(t, "clonemedium", "disk", raw, b.provider.disk(node), "--existing")
	})
}

func (b *backend) ReadData(t *testing.T, node string) (text string) {
	b.withData(t, node, func(raw string) {
		data, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		text = strings.TrimRight(string(data[512:1024]), "\x00")
	})
	return text
}

func (b *backend) Leftovers(t *testing.T) []string {
	var left []string
	for _, kind := range []string{"vms", "hdds", "dvds", "hostonlyifs"} {
		if out := strings.TrimSpace(manage(t, "list", kind)); out != "" {
			left = append(left, kind+": "+out)
		}
	}
	if out := manage(t, "getextradata", "global", "enumerate"); strings.Contains(out, clusterID) {
		left = append(left, out)
	}
	files, err := filepath.Glob(filepath.Join(b.provider.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(left, files...)
}

func TestConformance(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("SKIPPED: IMAGEGEN_E2E is not vm: many minutes with a real VirtualBox; make e2e-vm")
	}
	if !vboxtest.Rerun(t, vboxtest.OwnNetwork) {
		return
	}
	conformance.Run(t, func(t *testing.T) conformance.Backend { return newBackend(t) })
}

// A machine has what the OVF and the Vagrantfile give theirs, and boots its own root disk.
func TestMachine(t *testing.T) {
	if !vboxtest.Rerun(t, vboxtest.OwnNetwork) {
		return
	}
	b, ctx := newBackend(t), t.Context()
	p, m := b.provider, b.Machine("node1", 0)
	m.Data = 5<<20 + 1
	if err := machines.Replace(ctx, p, m, false); err != nil {
		t.Fatal(err)
	}
	info := manage(t, "showvminfo", "otus-node1", "--machinereadable")
	for _, line := range []string{
		`firmware="BIOS"`, `cpus=1`, `memory=64`, `boot1="disk"`, `boot2="none"`, `ioapic="on"`, `rtcuseutc="on"`, `longmode="on"`, `x2apic="on"`,
		`graphicscontroller="vmsvga"`, `vram=16`, `vrde="off"`, `audio="none"`, `usb="off"`, `storagecontrollertype0="IntelAhci"`,
		`"SATA-0-0"="` + p.root("node1") + `"`, `"SATA-1-0"="` + p.seed("node1") + `"`, `"SATA-2-0"="` + p.disk("node1") + `"`, `"SATA-3-0"="none"`,
		`nic1="nat"`, `nictype1="82540EM"`, `nic2="null"`, `nictype2="82540EM"`, `macaddress2="5254000A0B0C"`, `cableconnected2="on"`, `nic3="none"`,
		`uart1="0x03f8,4"`, `uartmode1="file,` + p.console("node1") + `"`, `VMState="running"`,
	} {
		if !strings.Contains(info, "\n"+line+"\n") {
			t.Errorf("the machine has no %s", line)
		}
	}
	if disk := manage(t, "showmediuminfo", "disk", p.disk("node1")); !strings.Contains(disk, "writethrough") || !strings.Contains(disk, "6 MBytes") {
		t.Errorf("the data disk:\n%s", disk)
	}
	if root := manage(t, "showmediuminfo", "disk", p.root("node1")); !strings.Contains(root, "differencing") || !strings.Contains(root, p.uuid("image", "image0")) {
		t.Errorf("the root disk:\n%s", root)
	}
	if extra := manage(t, "getextradata", "otus-node1", "enumerate"); !strings.Contains(extra, "LUN#2/Config/IgnoreFlush, Value: 0\n") {
		t.Errorf("flushes are ignored:\n%s", extra)
	}
	if info, err := os.Stat(p.seed("node1")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the seed: %v, %v", info, err)
	}
	// Following the console continues after a replacement, and ends with its context.
	follow, end := context.WithCancel(ctx)
	var said safeBuffer
	ended := make(chan error, 1)
	go func() { ended <- p.Console(follow, &said, "node1", true) }()
	says := func(text string) func() error {
		return func() error {
			if got := said.String(); !strings.HasSuffix(got, text) {
				return fmt.Errorf("the console is %q", got)
			}
			return nil
		}
	}
	testkit.Eventually(t, 2*time.Minute, "image 0 speaks", says("image 0\n"))
	if err := machines.Replace(ctx, p, b.Machine("node1", 1), false); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 2*time.Minute, "image 1 speaks", says("image 1\n"))
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// An image that no machine uses any more is removed when another one is added.
	if images, _ := filepath.Glob(p.own("images", "*")); len(images) != 1 || images[0] != p.image("image1") {
		t.Errorf("images: %q", images)
	}
	manage(t, "snapshot", "otus-node1", "take", "now")
	if err := p.Remove(ctx, "node1", true); err == nil || !strings.Contains(err.Error(), "VBoxManage snapshot otus-node1 delete") {
		t.Errorf("removed with a snapshot: %v", err)
	}
	manage(t, "snapshot", "otus-node1", "delete", "now")
	if err := machines.RemoveAll(ctx, p, nil); err != nil {
		t.Fatal(err)
	}
	if left := b.Leftovers(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// safeBuffer is a buffer for concurrent use.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// The host-only network is created once, whatever step the process dies after, and removed if this cluster created it.
func TestNetwork(t *testing.T) {
	if !vboxtest.Rerun(t, vboxtest.OwnNetwork) {
		return
	}
	b, ctx := newBackend(t), t.Context()
	manage(t, "hostonlyif", "create")
	manage(t, "hostonlyif", "ipconfig", "vboxnet0", "--ip", "192.168.56.1", "--netmask", "255.255.255.0")
	before := vboxtest.Networks(t)
	died := errors.New("died")
	for n := 0; ; n++ {
		steps := n
		p := b.Provider(t, func() error {
			if steps--; steps < 0 {
				return died
			}
			return nil
		}).(*Provider)
		_, err := p.network(ctx)
		if steps >= 0 {
			if err != nil || n < 4 {
				t.Fatalf("%d steps: %v", n, err)
			}
			break
		}
		if !errors.Is(err, died) {
			t.Fatalf("died after %d steps: %v", n, err)
		}
		got, err := b.provider.network(ctx)
		if err != nil || got[3] != "vboxnet1" {
			t.Fatalf("died after %d steps, again: %q, %v", n, got, err)
		}
		if all := parseNetworks(vboxtest.Networks(t)); len(all) != 2 || all[1].prefix != b.provider.spec.Network.CIDR {
			t.Errorf("died after %d steps, again: %v", n, all)
		}
		if err := b.provider.Purge(ctx); err != nil {
			t.Fatal(err)
		}
		if after := vboxtest.Networks(t); after != before {
			t.Errorf("died after %d steps, purged: %s", n, after)
		}
	}
	// An existing network with the cluster's addresses is used, and not removed.
	if err := b.provider.Purge(ctx); err != nil {
		t.Fatal(err)
	}
	manage(t, "hostonlyif", "ipconfig", "vboxnet0", "--ip", "192.168.10.77", "--netmask", "255.255.255.0")
	before = vboxtest.Networks(t)
	if got, err := b.provider.network(ctx); err != nil || got[3] != "vboxnet0" {
		t.Errorf("with another's network: %q, %v", got, err)
	}
	if err := b.provider.Purge(ctx); err != nil {
		t.Fatal(err)
	}
	if after := vboxtest.Networks(t); after != before {
		t.Errorf("another's network: %s", after)
	}
}

// Machines are created and removed in parallel. What they share is created once.
func TestTogether(t *testing.T) {
	if !vboxtest.Rerun(t, vboxtest.OwnNetwork) {
		return
	}
	b, ctx := newBackend(t), t.Context()
	nodes := []string{"node1", "node2", "node3", "node4"}
	together := func(do func(node string) error) {
		t.Helper()
		errs := make(chan error)
		for _, n := range nodes {
			go func() { errs <- do(n) }()
		}
		for range nodes {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
	for version := range 2 {
		together(func(node string) error {
			return machines.Replace(ctx, b.provider, b.Machine(node, version), false)
		})
	}
	list, err := b.provider.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		if len(list) != len(nodes) || list[i].Node != n || list[i].Power != machines.On || list[i].Image != "image1" {
			t.Fatalf("listed %v", list)
		}
	}
	if n := len(parseNetworks(vboxtest.Networks(t))); n != 1 {
		t.Errorf("%d networks", n)
	}
	together(func(node string) error { return b.provider.Remove(ctx, node, true) })
	if err := b.provider.Purge(ctx); err != nil {
		t.Fatal(err)
	}
	if left := b.Leftovers(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// A machine without settings is unfinished, and is made again with its data disk. A renamed machine still belongs to
// the cluster.
func TestLostSettings(t *testing.T) {
	if !vboxtest.Rerun(t, vboxtest.OwnNetwork) {
		return
	}
	b, ctx := newBackend(t), t.Context()
	p, m := b.provider, b.Machine("node1", 0)
	expect := func(want string) {
		t.Helper()
		list, err := p.List(ctx)
		if err != nil || len(list) != 1 || list[0].Node != "node1" || fmt.Sprint(list[0].Power, list[0].Image) != want {
			t.Fatalf("listed %v, %v; want %s", list, err, want)
		}
	}
	if err := p.Create(ctx, m); err != nil {
		t.Fatal(err)
	}
	b.WriteData(t, "node1", "precious")
	manage(t, "modifyvm", "otus-node1", "--name", "mine")
	expect("offimage0")
	if err := machines.Replace(ctx, p, b.Machine("node1", 1), false); err != nil {
		t.Fatal(err)
	}
	expect("onimage1")
	if err := p.Stop(ctx, "node1"); err != nil {
		t.Fatal(err)
	}
	// VirtualBox's server keeps the settings in memory.
	endServer(t)
	settings := filepath.Join(p.folder("node1"), "otus-node1.vbox")
	if err := os.Truncate(settings, 0); err != nil {
		t.Fatal(err)
	}
	if out := manage(t, "list", "vms"); !strings.Contains(out, "<inaccessible>") {
		t.Fatalf("VirtualBox still reads the settings: %s", out)
	}
	expect("unfinished")
	if err := p.Purge(ctx); err == nil {
		t.Error("purged with a machine")
	}
	if err := p.Start(ctx, "node1"); err == nil {
		t.Error("started without settings")
	}
	if err := p.Create(ctx, m); err != nil {
		t.Fatal(err)
	}
	expect("offimage0")
	if got := b.ReadData(t, "node1"); got != "precious" {
		t.Errorf("the data disk holds %q", got)
	}
	if err := machines.RemoveAll(ctx, p, nil); err != nil {
		t.Fatal(err)
	}
	if left := b.Leftovers(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// endServer stops VirtualBox's server in the test's own process namespace.
func endServer(t *testing.T) {
	t.Helper()
	running := func() (pid int) {
		comms, err := filepath.Glob("/proc/[0-9]*/comm")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range comms {
			name, _ := os.ReadFile(path)
			status, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
			if string(name) == "VBoxSVC\n" && !strings.Contains(string(status), "State:\tZ") {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
			}
		}
		return pid
	}
	if pid := running(); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, 2*time.Minute, "VirtualBox's server has ended", func() bool { return running() == 0 })
}

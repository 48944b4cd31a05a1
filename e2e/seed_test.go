package e2e

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cloudinit"
)

//go:embed testdata/seed-boot.sh
var seedBoot string

//go:embed testdata/seed-report.sh
var seedReport string

// seedMachine is a node's disk that boots in a container, with systemd and the distro's own cloud-init, and with
// whatever seed a test gives it.
type seedMachine struct {
	dir, image string
	alone      bool // runs only cloud-init, without our units
}

// state is what must not change when the seed does.
type state struct {
	Address, Network, Instance, HostKey, Users, Hostname, Timezone, Facts string
}

const seedSpec = `cluster: %s
distro: debian12
timezone: %s
network: {cidr: 192.168.56.0/24}
ssh: {user: jane, keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICqY6VkTJZ1XXBu4iGtgtStl/J3BBp7W5GVKpYAVYEyF me@desk"]}
roles:
  redis: {nodes: {redis1: 192.168.56.49, redis2: 192.168.56.50, redis3: 192.168.56.51}}
`

// TestSeeds boots one node repeatedly, with other seeds or none.
func TestSeeds(t *testing.T) {
	t.Parallel()
	b := newBenchOf(t, "e2e-seeds")
	for _, p := range [][2]string{{"systemd-nspawn", "systemd-container"}, {"unshare", "util-linux"}, {"ip", "iproute2"}} {
		if _, err := exec.LookPath(p[0]); err != nil {
			t.Skipf("needs %s: package %s", p[0], p[1])
		}
	}
	// seeds makes all seeds of a spec, in a folder whose secrets are the cluster's.
	seeds := func(folder, out, timezone string) func(node string) cloudinit.Seed {
		dir := filepath.Join(b.dir, folder)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		spec := filepath.Join(dir, "cluster.yaml")
		if err := os.WriteFile(spec, fmt.Appendf(nil, seedSpec, "e2e-seeds", timezone), 0o644); err != nil {
			t.Fatal(err)
		}
		b.run(t, "seed", "-f", spec, "-o", filepath.Join(dir, out))
		return func(node string) cloudinit.Seed {
			s, err := cloudinit.ReadISO(filepath.Join(dir, out, "seeds", node+".iso"))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	}
	other := seeds("other-cluster", "dist", "UTC")
	first := seeds(".", "dist-first", "UTC")
	changed := seeds(".", "dist-changed", "Asia/Tokyo") // the next generation
	b.lab(t, "build")

	m := &seedMachine{dir: t.TempDir(), image: filepath.Join(b.dist(), "images", "redis.raw")}
	own, newer := first("redis1"), changed("redis1")

	console, _ := m.boot(t, nil, until("imagegen: this disk has no seed yet: attach the seed of one node"))
	m.sameAfter(t, "a first boot without a seed leaves no trace", console, func() bool {
		_, err := os.Stat(filepath.Join(m.dir, "upper/var/lib/imagegen/seed"))
		return os.IsNotExist(err)
	})

	// A power cut during the first boot: cloud-init has recorded that files are written, but they are not on the disk.
	m.boot(t, &own, func(string) bool {
		found, _ := filepath.Glob(filepath.Join(m.dir, "upper/var/lib/cloud/instances/*/sem/config_write_files*"))
		return len(found) > 0
	})
	if err := os.RemoveAll(filepath.Join(m.dir, "upper/etc/imagegen")); err != nil {
		t.Fatal(err)
	}
	_, want := m.boot(t, &own, nil)
	if strings.TrimSpace(want.Address) != "192.168.56.49/24" || strings.TrimSpace(want.Network) != "Address=192.168.56.49/24 DHCP=no" || want.Hostname != "redis1" || want.Facts != "redis1" ||
		!strings.HasPrefix(want.Instance, "e2e-seeds-redis1-") || !strings.Contains(want.Users, "jane") {
		t.Fatalf("after a first boot that was cut short, and a second: %+v", want)
	}

	damaged := own
	damaged.UserData = own.UserData[:len(own.UserData)/2]
	empty := cloudinit.Seed{}
	foreign, foreignCluster := first("redis2"), other("redis1")
	for _, c := range []struct {
		name string
		seed *cloudinit.Seed
		says string
	}{
		{"the same", &own, ""},
		{"missing", nil, "imagegen: no seed is attached: this stays node redis1, instance e2e-seeds-redis1-"},
		{"empty", &empty, "imagegen: cannot use the seed on /var/lib/cloud/seed/nocloud: "},
		{"damaged", &damaged, "imagegen: cannot use the seed on /var/lib/cloud/seed/nocloud: damaged"},
		{"another node's", &foreign, "imagegen: refused the seed on /var/lib/cloud/seed/nocloud: it is for node redis2 of cluster "},
		{"another cluster's", &foreignCluster, "imagegen: refused the seed on /var/lib/cloud/seed/nocloud: it is for node redis1 of cluster "},
		{"still missing", nil, ""},
	} {
		console, got := m.boot(t, c.seed, nil)
		if got != want {
			t.Errorf("seed %s: the node became\n%+v, and was\n%+v", c.name, got, want)
		}
		if c.says == "" && strings.Contains(console, "imagegen: refused") || !strings.Contains(console, c.says) {
			t.Errorf("seed %s: want %q on the console:\n%s", c.name, c.says, console)
		}
	}

	wantNewer := want
	_, got := m.boot(t, &newer, nil)
	wantNewer.Instance, wantNewer.Timezone = got.Instance, "/usr/share/zoneinfo/Asia/Tokyo"
	if got != wantNewer || got.Instance == want.Instance {
		t.Errorf("a new seed: the node became\n%+v, want\n%+v with another instance", got, wantNewer)
	}
	if _, got := m.boot(t, nil, nil); got != wantNewer {
		t.Errorf("the new seed is gone: the node became\n%+v, and was\n%+v", got, wantNewer)
	}
	console, got = m.boot(t, &own, nil)
	if want := "imagegen: refused the seed on /var/lib/cloud/seed/nocloud: it is of generation 1, and this node runs generation 2 already"; got != wantNewer || !strings.Contains(console, want) {
		t.Errorf("the old seed again: the node became\n%+v, and was\n%+v; want %q on the console:\n%s", got, wantNewer, want, console)
	}
	// cloud-init itself keeps the node's state when our units do not run.
	m.alone = true
	console, got = m.boot(t, nil, nil)
	got.Address, got.Hostname = wantNewer.Address, wantNewer.Hostname // systemd sets them at boot
	if got != wantNewer {
		t.Errorf("cloud-init alone, without a seed: the node became\n%+v, and was\n%+v:\n%s", got, wantNewer, console)
	}
	// A new root disk accepts any node's seed.
	fresh := &seedMachine{dir: t.TempDir(), image: m.image}
	if _, got := fresh.boot(t, &foreignCluster, nil); got.Facts != "redis1" || got.HostKey == want.HostKey {
		t.Errorf("a new disk: %+v", got)
	}
}

func (m *seedMachine) sameAfter(t *testing.T, what, console string, ok func() bool) {
	t.Helper()
	if !ok() {
		t.Errorf("not so: %s\n%s", what, console)
	}
}

// readState parses the output of testdata/seed-report.sh.
func readState(t *testing.T, report []byte) state {
	t.Helper()
	f := strings.Split(strings.TrimSuffix(string(report), "\n"), "\n")
	if len(f) != 8 {
		t.Fatalf("the node reports %q", report)
	}
	return state{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]}
}

func until(text string) func(string) bool {
	return func(console string) bool { return strings.Contains(console, text) }
}

// boot turns the machine on and cuts its power when enough returns true for its console; nil: when it has reported its
// state.
func (m *seedMachine) boot(t *testing.T, seed *cloudinit.Seed, enough func(console string) bool) (console string, s state) {
	t.Helper()
	report := filepath.Join(m.dir, "upper", "report")
	if err := os.RemoveAll(report); err != nil {
		t.Fatal(err)
	}
	seedDir := filepath.Join(m.dir, "seed")
	if err := os.RemoveAll(seedDir); err != nil {
		t.Fatal(err)
	}
	args := []string{"--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", seedBoot, "seed-boot", m.image, m.dir}
	if seed != nil {
		if err := os.Mkdir(seedDir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, data := range seed.FilesOnISO() {
			if err := os.WriteFile(filepath.Join(seedDir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		args = append(args, seedDir)
	}
	log := filepath.Join(m.dir, "console")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), "REPORT="+seedReport)
	if m.alone {
		cmd.Env = append(cmd.Env, "ALONE=1")
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	defer func() { cmd.Process.Kill(); <-ended }()
	deadline := time.Now().Add(4 * time.Minute)
	for {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		console = string(data)
		if enough != nil && enough(console) {
			return console, state{}
		}
		if data, err := os.ReadFile(report); enough == nil && err == nil {
			return console, readState(t, data)
		}
		select {
		case <-ended:
			t.Fatalf("the node went off:\n%s", console)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the node is not up after four minutes:\n%s", console)
		}
	}
}

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/internal/accel"
	"imagegen/internal/testkit"
)

const seedVMName = "e2e-seed-vm"

// aVMIn limits each step of one virtual machine: emulated, on a busy machine.
const aVMIn = 30 * time.Minute

// seedVM is a node in a virtual machine whose CD-ROM drive a test fills, empties and breaks.
type seedVM struct {
	dir, iso, mac string
	machine       []string // QEMU's arguments for processor and memory
	ssh           []string // including the login
	port          string   // on the loopback interface, forwarded to the node's SSH
}

// TestBootWithoutSeed cuts a virtual machine's power and turns it on with its seed in the CD-ROM drive late, missing,
// or unreadable: the node is the same each time. Three emulated boots take two and a half minutes of CPU time, so it
// runs only with IMAGEGEN_E2E=vm (make e2e-vm).
func TestBootWithoutSeed(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("boots of a virtual machine without its seed run with IMAGEGEN_E2E=vm, as root: make e2e-vm")
	}
	b := newBenchOf(t, seedVMName)
	for _, p := range [][2]string{{accel.QEMU, "qemu-system-x86"}, {"qemu-img", "qemu-utils"}, {"ssh", "openssh-client"}} {
		if _, err := exec.LookPath(p[0]); err != nil {
			t.Skipf("needs %s: package %s", p[0], p[1])
		}
	}
	const node, address = "redis1", "192.168.56.49"
	spec := regexp.MustCompile(`(?m)^ssh: .*\n`).ReplaceAllString(fmt.Sprintf(seedSpec, seedVMName, "UTC"), "")
	if err := os.WriteFile(b.spec(), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	b.letIn(t)
	b.lab(t, "build")
	m := newSeedVM(t, b, node)

	// A new disk and an empty drive: it waits for the seed, which comes late.
	off := m.on(t, "empty", "-drive", "id=cd,if=none,media=cdrom", "-device", "ide-cd,drive=cd")
	m.says(t, "empty", "imagegen: this disk has no seed yet: attach the seed of one node")
	m.insert(t)
	m.says(t, "empty", "imagegen: new seed on /dev/sr0: this is node redis1, instance "+seedVMName+"-redis1-")
	testkit.Eventually(t, aVMIn, "the note that the seed is applied", func() error {
		_, err := m.in("test -e /var/lib/imagegen/seed-applied")
		return err
	})
	cloudInitDone(t, node, m.in)
	want := m.state(t)
	if strings.TrimSpace(want.Address) != address+"/24" || want.Hostname != node || want.Facts != node ||
		!strings.HasPrefix(want.Instance, seedVMName+"-redis1-") || !strings.Contains(want.Users, "jane") {
		t.Errorf("with its seed: %+v", want)
	}
	off()

	unreadable := filepath.Join(m.dir, "unreadable")
	if err := os.WriteFile(unreadable, []byte("[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		drive []string
		says  []string
	}{
		{"no drive", nil, []string{"no seed is attached: this stays node redis1, instance "}},
		{"unreadable", []string{"-drive", "id=cd,if=none,media=cdrom,readonly=on,format=raw,file=blkdebug:" + unreadable + ":" + m.iso, "-device", "ide-cd,drive=cd"},
			[]string{"cannot use the seed on /dev/sr0: ", "this stays node redis1, instance "}},
	} {
		off := m.on(t, c.name, c.drive...)
		for _, text := range c.says {
			m.says(t, c.name, "imagegen: "+text)
		}
		testkit.Eventually(t, aVMIn, "SSH", func() error { _, err := m.in("true"); return err })
		cloudInitDone(t, node, m.in)
		if got := m.state(t); got != want {
			t.Errorf("%s: the node became\n%+v, and was\n%+v", c.name, got, want)
		}
		off()
	}
}

// newSeedVM makes the node's disk.
func newSeedVM(t *testing.T, b *bench, node string) *seedVM {
	t.Helper()
	m := &seedVM{dir: t.TempDir(), iso: filepath.Join(b.dist(), "seeds", node+".iso")}
	seed, err := cloudinit.ReadISO(m.iso)
	if err != nil {
		t.Fatal(err)
	}
	mac := regexp.MustCompile(`mac_address: "?([0-9a-f:]+)`).FindSubmatch(seed.NetworkConfig)
	if mac == nil {
		t.Fatalf("no MAC address in\n%s", seed.NetworkConfig)
	}
	m.mac = string(mac[1])
	image, err := filepath.Abs(filepath.Join(b.dist(), "images", "redis.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, filepath.Join(m.dir, "disk")).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	found, _, err := accel.Find(t.Context(), image, "raw")
	if err != nil {
		t.Fatal(err)
	}
	m.machine = append(accel.Processor(found, 1), "-m", "512")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m.port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	// A host key that differs from the first boot's is refused.
	m.ssh = []string{"-F", "none", "-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=30", "-o", "StrictHostKeyChecking=accept-new",
		"-o", "UserKnownHostsFile=" + filepath.Join(m.dir, "known_hosts"), "-p", m.port, "jane@127.0.0.1", "--"}
	return m
}

// on turns the machine on; the returned off cuts its power.
func (m *seedVM) on(t *testing.T, name string, drive ...string) (off func()) {
	t.Helper()
	args := append([]string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-rtc", "base=utc", "-device", "virtio-rng-pci",
		"-drive", "file=" + filepath.Join(m.dir, "disk") + ",format=qcow2,if=virtio",
		"-serial", "file:" + m.console(name), "-monitor", "unix:" + filepath.Join(m.dir, "monitor") + ",server=on,wait=off",
		"-netdev", "user,id=lan,restrict=on,net=192.168.56.0/24,host=192.168.56.2,hostfwd=tcp:127.0.0.1:" + m.port + "-192.168.56.49:22",
		"-device", "virtio-net-pci,netdev=lan,romfile=,mac=" + m.mac}, m.machine...)
	cmd := exec.Command(accel.QEMU, append(args, drive...)...)
	said, err := os.Create(filepath.Join(m.dir, "qemu"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd.Stderr = said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	isOff := false
	off = func() {
		if !isOff {
			isOff = true
			cmd.Process.Kill()
			<-ended
			used := cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime()
			t.Logf("%s: on for %s, %s of a processor", name, time.Since(start).Round(time.Second), used.Round(time.Second))
		}
	}
	t.Cleanup(func() {
		off()
		if t.Failed() {
			console, _ := os.ReadFile(m.console(name))
			errors, _ := os.ReadFile(said.Name())
			t.Logf("%s: %s\nthe console ends with\n%s", name, errors, console[max(0, len(console)-4000):])
		}
	})
	return off
}

func (m *seedVM) console(name string) string {
	return filepath.Join(m.dir, "console of "+name)
}

// says waits for a text on the console.
func (m *seedVM) says(t *testing.T, name, text string) {
	t.Helper()
	testkit.Eventually(t, aVMIn, "the console's "+strconv.Quote(text), func() error {
		console, err := os.ReadFile(m.console(name))
		if err == nil && !strings.Contains(string(console), text) {
			err = fmt.Errorf("not there yet")
		}
		return err
	})
}

// insert puts the seed into the empty drive of the running machine.
func (m *seedVM) insert(t *testing.T) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(m.dir, "monitor"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "change cd %s raw read-only\n", m.iso); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "the drive with the seed", func() error {
		answer := make([]byte, 1<<16)
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(c, "info block cd"); err != nil {
			return err
		}
		n, err := c.Read(answer)
		if err == nil && !strings.Contains(string(answer[:n]), m.iso) {
			err = fmt.Errorf("the monitor says %q", answer[:n])
		}
		return err
	})
}

// in runs a shell line on the node.
func (m *seedVM) in(script string) (string, error) {
	cmd := exec.Command("ssh", append(m.ssh, "sudo", "-n", "sh", "-c", "'"+strings.ReplaceAll(script, "'", `'\''`)+"'")...)
	out, err := cmd.Output()
	if failed, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("ssh: %w: %s", err, failed.Stderr)
	}
	return string(out), err
}

func (m *seedVM) state(t *testing.T) state {
	t.Helper()
	out, err := m.in(seedReport)
	if err != nil {
		t.Fatal(err)
	}
	return readState(t, []byte(out))
}

//go:build linux

// Package libvirthosts gives tests several libvirt hosts on one machine. Each host is a libvirtd in its own mount,
// network and PID namespaces; a replacement for ssh enters them. Machines are emulated, and end with the test.
package libvirthosts

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed host.sh
var hostScript string

//go:embed ssh.sh
var sshScript string

const (
	answersIn = time.Minute
	pollEvery = 100 * time.Millisecond
)

// Hosts are libvirt hosts for a test.
type Hosts struct {
	dir   string
	hosts map[string]*exec.Cmd // unshare, whose child is the host's init
}

// Start starts hosts with these names, reachable through the ssh on the test's PATH. Each has a storage pool default
// and a bridge br0, and the bridges are connected. It skips the test if this machine cannot run them.
func Start(t *testing.T, names ...string) *Hosts {
	t.Helper()
	const skipped = "machines are NOT tested with libvirt"
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: libvirtd needs root: " + skipped)
	}
	for _, p := range [][2]string{{"libvirtd", "libvirt-daemon-system"}, {"virsh", "libvirt-clients"}, {"qemu-system-x86_64", "qemu-system-x86"},
		{"qemu-img", "qemu-utils"}, {"python3", "python3"}, {"ip", "iproute2"}, {"unshare", "util-linux"}, {"nsenter", "util-linux"}} {
		if _, err := exec.LookPath(p[0]); err != nil {
			t.Skipf("SKIPPED: no %s on this machine (package %s): %s", p[0], p[1], skipped)
		}
	}
	h := &Hosts{t.TempDir(), map[string]*exec.Cmd{}}
	bin := filepath.Join(h.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(sshScript), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("IMAGEGEN_LIBVIRT_TYPE", "qemu") // an existing KVM may not work
	for _, name := range names {
		if err := h.start(t, name); err != nil {
			t.Skipf("SKIPPED: libvirtd does not start here: %s: %v", skipped, err)
		}
	}
	for _, name := range names[1:] {
		h.run(t, "nsenter", "-t", h.pid(t, names[0]), "-n", "ip", "link", "add", "to-"+name, "type", "veth", "peer", "name", "uplink", "netns", h.pid(t, name))
		h.run(t, "nsenter", "-t", h.pid(t, names[0]), "-n", "ip", "link", "set", "to-"+name, "master", "br0", "up")
		h.run(t, "nsenter", "-t", h.pid(t, name), "-n", "ip", "link", "set", "uplink", "master", "br0", "up")
	}
	return h
}

func (h *Hosts) start(t *testing.T, name string) error {
	dir := filepath.Join(h.dir, name)
	if err := os.MkdirAll(h.Storage(name), 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "libvirtd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "-c", hostScript, "host", dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.hosts[name] = cmd
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	var out []byte
	for end := time.Now().Add(answersIn); time.Now().Before(end); time.Sleep(pollEvery) {
		pid := h.child(name)
		if pid == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(h.dir, "bin", name+".pid"), []byte(pid), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err = h.Enter(name, "virsh", "--connect", "qemu:///system", "pool-list", "--all", "--name").CombinedOutput(); err == nil {
			h.Virsh(t, name, "pool-define-as", "default", "dir", "--target", h.Storage(name))
			h.Virsh(t, name, "pool-start", "default")
			return nil
		}
	}
	said, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%w: %s\n%s", err, bytes.TrimSpace(out), said[max(0, len(said)-2000):])
}

// child returns the PID of the host's init, or "" if it has not started.
func (h *Hosts) child(name string) string {
	pid := strconv.Itoa(h.hosts[name].Process.Pid)
	children, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	return strings.TrimSpace(string(children))
}

func (h *Hosts) pid(t *testing.T, name string) string {
	t.Helper()
	pid := h.child(name)
	if pid == "" {
		t.Fatalf("host %s is off", name)
	}
	return pid
}

func (h *Hosts) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Enter returns a command that runs on a host.
func (h *Hosts) Enter(host string, argv ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", h.child(host), "-m", "-n", "-p", "--"}, argv...)...)
}

// InNetwork returns a command that runs here, with a host's network: an operator's computer beside the hosts.
func (h *Hosts) InNetwork(host string, argv ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", h.child(host), "-n", "--"}, argv...)...)
}

// Virsh runs virsh on a host.
func (h *Hosts) Virsh(t *testing.T, host string, args ...string) string {
	t.Helper()
	out, err := h.Enter(host, append([]string{"virsh", "--quiet", "--connect", "qemu:///system"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: virsh %s: %v: %s", host, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Storage returns the folder of a host's storage pool.
func (h *Hosts) Storage(host string) string { return filepath.Join(h.dir, host, "images") }

// PowerOff cuts a host's power: all of its processes are killed.
func (h *Hosts) PowerOff(t *testing.T, host string) {
	t.Helper()
	cmd := h.hosts[host]
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
}

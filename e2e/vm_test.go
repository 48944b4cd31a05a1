package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// bootsInVM boots the image file of balancer1 with its seed ISO as a CD-ROM in an emulated PC, as any hypervisor
// would, and waits for the agent's own line on the serial console. keepalived and HAProxy need no peer to be ready.
func (b *bench) bootsInVM(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64 on this machine (package qemu-system-x86): the VM boot is NOT tested")
	}
	const node = "balancer1"
	dir := t.TempDir()
	disk, serial, monitor := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "serial.log"), filepath.Join(dir, "qmp")
	image, err := filepath.Abs(filepath.Join(b.dist(), "images", "balancer.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, disk).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	vm := exec.Command("qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-display", "none", "-no-reboot",
		"-drive", "file="+disk+",format=qcow2,if=ide", "-cdrom", filepath.Join(b.dist(), "seeds", node+".iso"),
		"-netdev", "user,id=n,net=192.168.10.0/24,host=192.168.10.2,restrict=on", "-device", "virtio-net-pci,netdev=n,mac="+b.mac(t, node),
		"-serial", "file:"+serial, "-qmp", "unix:"+monitor+",server=on,wait=off")
	var stderr strings.Builder
	vm.Stderr = &stderr
	start := time.Now()
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- vm.Wait() }()
	defer vm.Process.Kill()

	shown := func(pattern string) func() error {
		want := regexp.MustCompile(pattern)
		return func() error {
			select {
			case err := <-exited:
				t.Fatalf("qemu ended: %v: %s", err, stderr.String())
			default:
			}
			data, _ := os.ReadFile(serial)
			if !want.Match(data) {
				return fmt.Errorf("no %q on the serial console, which ends in\n%s", want, data[max(0, len(data)-1500):])
			}
			return nil
		}
	}
	eventually(t, 8*time.Minute, "agent in the VM", shown("imagegen: "+node+": ready"))
	t.Logf("the VM of %s was ready %s after power-on (emulated)", node, time.Since(start).Round(time.Second))
	eventually(t, 2*time.Minute, "cloud-init's end in the VM", shown(`Cloud-init v\. \S+ finished at`))

	// Switched off in an orderly way, its disk tells how cloud-init fared.
	if err := powerdown(monitor); err != nil {
		t.Fatal(err)
	}
	select {
	case <-exited:
	case <-time.After(3 * time.Minute):
		t.Fatal("the VM does not power off")
	}
	raw := filepath.Join(dir, "disk.raw")
	if out, err := exec.Command("qemu-img", "convert", "-O", "raw", disk, raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	cat := func(path string) string {
		out, err := exec.Command("debugfs", "-R", "cat "+path, raw+"?offset=1048576").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	var result struct {
		V1 struct {
			Datasource string
			Errors     []string
		}
	}
	if err := json.Unmarshal([]byte(cat("/var/lib/cloud/data/result.json")), &result); err != nil {
		t.Fatal(err)
	}
	if len(result.V1.Errors) > 0 || !strings.Contains(result.V1.Datasource, "NoCloud") {
		t.Errorf("cloud-init: %+v", result.V1)
	}
	for line := range strings.Lines(cat("/var/log/cloud-init.log")) {
		if regexp.MustCompile(`WARNING|ERROR|Traceback`).MatchString(line) {
			t.Errorf("cloud-init.log: %s", line)
		}
	}
}

// mac reads the node's MAC out of its seed, where the agent's host gets it from.
func (b *bench) mac(t *testing.T, node string) string {
	t.Helper()
	out := b.lab(t, "seed", "--print", node)
	m := regexp.MustCompile(`mac_address: "?([0-9a-f:]{17})`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no MAC in the seed of %s:\n%s", node, out)
	}
	return m[1]
}

// powerdown presses the VM's power button.
func powerdown(monitor string) error {
	conn, err := net.Dial("unix", monitor)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil { // the greeting
		return err
	}
	for _, command := range []string{"qmp_capabilities", "system_powerdown"} {
		fmt.Fprintf(conn, "{\"execute\": %q}\n", command)
		if _, err := r.ReadString('\n'); err != nil {
			return err
		}
	}
	return nil
}

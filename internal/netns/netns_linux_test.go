package netns

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestNetworkUnderOthers deletes and remakes a network after the first `ip netns add` of the machine came while it was
// there: iproute2 then mounts /run/netns on itself, and the network's name with it.
func TestNetworkUnderOthers(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root and ip: apt-get install iproute2")
	}
	for name, propagation := range map[string]uintptr{"private": syscall.MS_PRIVATE, "shared": syscall.MS_SHARED} {
		t.Run(name, func(t *testing.T) {
			const inside = "IMAGEGEN_TEST_PROPAGATION"
			if os.Getenv(inside) == "" {
				cmd := exec.Command(os.Args[0], "-test.run=^TestNetworkUnderOthers$/^"+name+"$")
				cmd.Env = append(os.Environ(), inside+"=1")
				cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
				return
			}
			// All of this process is in a mount namespace of its own, and has a /run of its own.
			for _, m := range []struct {
				from, to, kind string
				flags          uintptr
			}{
				{"none", "/", "", syscall.MS_REC | syscall.MS_PRIVATE},
				{"none", "/run", "tmpfs", 0},
				{"none", "/run", "", syscall.MS_REC | propagation},
			} {
				if err := syscall.Mount(m.from, m.to, m.kind, m.flags, ""); err != nil {
					t.Fatalf("mount %s: %v", m.to, err)
				}
			}
			n, address := Name("imagegen-labtest-netns"), netip.MustParsePrefix("192.168.10.254/24")
			if err := n.Create(address); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("ip", "netns", "add", "somebody").CombinedOutput(); err != nil {
				t.Fatalf("ip netns add: %v: %s", err, out)
			}
			if !n.Complete(address) {
				t.Error("the network is not reached any more")
			}
			if err := n.Create(address); err != nil { // deletes first
				t.Fatal(err)
			}
			if !n.Complete(address) {
				t.Error("the new network is not complete")
			}
			if err := n.Delete(); err != nil {
				t.Fatal(err)
			}
			if left, _ := filepath.Glob(dir + "/*"); len(left) != 1 {
				t.Errorf("left: %s; want somebody's alone", left)
			}
			if out, err := exec.Command("ip", "netns", "exec", "somebody", "ip", "link").CombinedOutput(); err != nil {
				t.Errorf("somebody's network is broken: %v: %s", err, out)
			}
			if err := n.Delete(); err != nil {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

// The bridge is set up last: Complete takes that for the end.
func TestBridgeSetup(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(bridgeSetup(netip.MustParsePrefix("192.168.10.254/24"))), "\n")
	if len(lines) != 4 || lines[3] != "link set br0 up" || !strings.Contains(lines[2], "192.168.10.254/24") {
		t.Errorf("%q", lines)
	}
}

package netns

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
			if !n.Complete() {
				t.Error("the network is not reached any more")
			}
			if err := n.Create(address); err != nil { // deletes first
				t.Fatal(err)
			}
			if !n.Complete() {
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

// A cluster moves to another network: the bridge has addresses in both, until no machine is left in the first.
func TestMove(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root and ip: apt-get install iproute2")
	}
	n := Name("imagegen-labtest-move")
	first, second := netip.MustParsePrefix("192.168.10.254/24"), netip.MustParsePrefix("192.168.20.254/24")
	if err := n.Create(first); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Delete() })
	addresses := func() (all []string) {
		t.Helper()
		err := n.Do(func() error {
			br, err := net.InterfaceByName(Bridge)
			if err != nil {
				return err
			}
			addrs, err := br.Addrs()
			for _, a := range addrs {
				if p := netip.MustParsePrefix(a.String()); p.Addr().Is4() {
					all = append(all, p.String())
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, c := range []struct {
		to   netip.Prefix
		keep bool
		want []netip.Prefix
	}{{first, false, []netip.Prefix{first}}, {second, true, []netip.Prefix{first, second}}, {second, true, []netip.Prefix{first, second}}, {second, false, []netip.Prefix{second}},
		{netip.MustParsePrefix("192.168.20.253/24"), false, []netip.Prefix{netip.MustParsePrefix("192.168.20.253/24")}}} {
		if err := n.Move(c.to, func(netip.Prefix) bool { return c.keep }); err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, p := range c.want {
			want = append(want, p.String())
		}
		if got := addresses(); !slices.Equal(got, want) || !n.Complete() {
			t.Errorf("to %s: %s, want %s", c.to, got, want)
		}
	}
}

// The bridge is set up last: Complete takes that for the end.
func TestBridgeSetup(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(bridgeSetup(netip.MustParsePrefix("192.168.10.254/24"))), "\n")
	if len(lines) != 4 || lines[3] != "link set br0 up" || !strings.Contains(lines[2], "192.168.10.254/24") {
		t.Errorf("%q", lines)
	}
}

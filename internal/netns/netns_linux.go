// Package netns makes network namespaces with a bridge in each, which machines are connected to.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"
)

// Name is the name of a network namespace, as `ip netns` shows it.
type Name string

// Bridge is the name of the bridge in every namespace.
const Bridge = "br0"

const dir = "/run/netns"

// Path returns the file of the namespace.
func (n Name) Path() string { return filepath.Join(dir, string(n)) }

// setnsCall is the number of setns(2), which package syscall does not have on every architecture.
var setnsCall = map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]

// Do runs fn inside the namespace: the sockets that it opens and the processes that it starts belong there. fn must do so itself,
// not in other goroutines.
func (n Name) Do(fn func() error) error {
	return onOwnThread(func() error {
		f, err := os.Open(n.Path())
		if err != nil {
			return fmt.Errorf("the cluster's network: %w", err)
		}
		defer f.Close()
		if _, _, errno := syscall.RawSyscall(setnsCall, f.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
			return fmt.Errorf("enter the cluster's network: %w", errno)
		}
		return fn()
	})
}

// onOwnThread runs fn on a thread that ends with it, so that fn may change what belongs to a thread.
func onOwnThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the runtime ends the thread
		done <- fn()
	}()
	return <-done
}

// Create makes the namespace, with a bridge that has this address. The bridge is set up last, so that [Name.Complete] can tell.
// Unlike `ip netns add`, Create leaves no mount on /run/netns itself.
func (n Name) Create(address netip.Prefix) error {
	if err := n.Delete(); err != nil { // half made
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(n.Path(), nil, 0o444); err != nil {
		return fmt.Errorf("make the cluster's network: %w", err)
	}
	return onOwnThread(func() error {
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make the cluster's network: %w", err)
		}
		if err := syscall.Mount("/proc/thread-self/ns/net", n.Path(), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("make the cluster's network: mount %s: %w", n.Path(), err)
		}
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(bridgeSetup(address))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make the cluster's network: ip: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}

// bridgeSetup is the input of `ip -batch`. Without a hardware address of its own, the bridge would take that of one of its ports,
// and change it whenever machines come and go.
func bridgeSetup(address netip.Prefix) string {
	return fmt.Sprintf(`link set lo up
link add %[1]s address 02:00:00:00:00:01 type bridge forward_delay 0 mcast_snooping 0
address add %[2]s dev %[1]s
link set %[1]s up
`, Bridge, address)
}

// Complete tells whether Create has finished.
func (n Name) Complete() bool {
	return n.Do(func() error {
		br, err := net.InterfaceByName(Bridge)
		if err == nil && br.Flags&net.FlagUp == 0 {
			err = errors.New("not complete")
		}
		return err
	}) == nil
}

// Move makes address one of the bridge's, and removes those that are not to be kept.
func (n Name) Move(address netip.Prefix, keep func(netip.Prefix) bool) error {
	return n.Do(func() error {
		br, err := net.InterfaceByName(Bridge)
		if err != nil {
			return fmt.Errorf("the cluster's network: %w", err)
		}
		addrs, err := br.Addrs()
		if err != nil {
			return fmt.Errorf("the cluster's network: %w", err)
		}
		var orders strings.Builder
		there := false
		for _, a := range addrs {
			had, err := netip.ParsePrefix(a.String())
			switch {
			case err != nil || had.Addr().IsLinkLocalUnicast():
			case had == address:
				there = true
			case !keep(had):
				fmt.Fprintf(&orders, "address del %s dev %s\n", had, Bridge)
			}
		}
		if !there {
			fmt.Fprintf(&orders, "address add %s dev %s\n", address, Bridge)
		}
		if orders.Len() == 0 {
			return nil
		}
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(orders.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("give the cluster's network the address %s: ip: %w: %s", address, err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}

// Delete removes the namespace's name; the namespace goes with its last process.
//
// The first `ip netns add` after a boot bind-mounts /run/netns on itself. Then the name may be mounted twice, and only the upper
// mount can be reached. So the mounts are removed in a mount namespace of our own, where that affects nobody, until the file is not
// a mount point there. The kernel then detaches it everywhere else when the file is removed.
func (n Name) Delete() error {
	err := onOwnThread(func() error {
		if _, err := os.Lstat(n.Path()); err != nil {
			return err
		}
		if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
			return err
		}
		if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			return err
		}
		unmountAll(n.Path())
		err := os.Remove(n.Path())
		for errors.Is(err, syscall.EBUSY) && syscall.Unmount(dir, syscall.MNT_DETACH) == nil {
			unmountAll(n.Path())
			err = os.Remove(n.Path())
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the cluster's network: %w", err)
	}
	os.Remove(dir) // unless others have one
	return nil
}

// unmountAll unmounts all that is mounted on a path, one on the other.
func unmountAll(path string) {
	for syscall.Unmount(path, syscall.MNT_DETACH) == nil {
	}
}

// TunDevice is the device that makes tap devices.
const TunDevice = "/dev/net/tun"

// From linux/if_tun.h.
const (
	tunSetIff = 0x400454ca

	tunTap, tunNoInfo, tunOffloads = 2, 0x1000, 0x4000
)

// Plug makes a port of this name (a tap device) on the bridge, and returns its cable: frames that are written to the cable come in
// at the port. The port goes with the last user of the cable.
func (n Name) Plug(port string) (cable *os.File, err error) {
	err = n.Do(func() error {
		fd, err := syscall.Open(TunDevice, syscall.O_RDWR|syscall.O_CLOEXEC, 0) // belongs to the network that it is opened in
		if err != nil {
			return fmt.Errorf("open %s: %w", TunDevice, err)
		}
		cable = os.NewFile(uintptr(fd), port)
		var request struct {
			name  [16]byte
			flags uint16
			_     [22]byte
		}
		copy(request.name[:15], port)
		request.flags = tunTap | tunNoInfo | tunOffloads
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), tunSetIff, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("make %s in the cluster's network: %w", port, errno)
		}
		if out, err := exec.Command("ip", "link", "set", port, "master", Bridge, "up").CombinedOutput(); err != nil {
			return fmt.Errorf("plug %s into the cluster's network: ip: %w: %s", port, err, strings.TrimSpace(string(out)))
		}
		return nil
	})
	if err != nil && cable != nil {
		cable.Close()
	}
	return cable, err
}

// Dial connects from inside the namespace to an IP address and port.
func (n Name) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

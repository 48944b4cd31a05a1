package lab

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

// netns is a network namespace with a name, as `ip netns` knows them.
type netns string

const (
	netnsDir = "/run/netns"
	bridge   = "br0" // in the cluster's namespace; poweron.sh plugs the nodes into it
)

func (n netns) path() string { return filepath.Join(netnsDir, string(n)) }

// setnsCall is the number of setns(2), which package syscall does not have on every architecture.
var setnsCall = map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]

// do runs fn inside the namespace: the sockets that it opens and the processes that it starts belong there. fn must
// do so itself, not in other goroutines.
func (n netns) do(fn func() error) error {
	return onOwnThread(func() error {
		f, err := os.Open(n.path())
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

// create makes the namespace with a bridge that has this machine's address. The bridge is up only when all else is
// done. Unlike `ip netns add` it leaves no mount on /run/netns itself.
func (n netns) create(address netip.Prefix) error {
	if err := n.delete(); err != nil { // half made
		return err
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(n.path(), nil, 0o444); err != nil {
		return fmt.Errorf("make the cluster's network: %w", err)
	}
	return onOwnThread(func() error {
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make the cluster's network: %w", err)
		}
		if err := syscall.Mount("/proc/thread-self/ns/net", n.path(), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("make the cluster's network: mount %s: %w", n.path(), err)
		}
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(bridgeSetup(address))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make the cluster's network: ip: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}

// bridgeSetup is the input of `ip -batch`. The bridge has a hardware address of its own, or it would take one of the
// nodes' and change it whenever nodes come and go.
func bridgeSetup(address netip.Prefix) string {
	return fmt.Sprintf(`link set lo up
link add %[1]s address 02:00:00:00:00:01 type bridge forward_delay 0 mcast_snooping 0
address add %[2]s dev %[1]s
link set %[1]s up
`, bridge, address)
}

// complete tells whether create got to its end, with this address.
func (n netns) complete(address netip.Prefix) bool {
	return n.do(func() error {
		br, err := net.InterfaceByName(bridge)
		if err != nil {
			return err
		}
		addrs, err := br.Addrs()
		if err != nil {
			return err
		}
		if br.Flags&net.FlagUp == 0 || len(addrs) == 0 || addrs[0].String() != address.String() {
			return errors.New("not complete")
		}
		return nil
	}) == nil
}

// delete removes the namespace's name; the namespace goes with it when no process is in it.
//
// The first `ip netns add` on a machine bind-mounts /run/netns on itself, so the name may be mounted twice, where only
// the upper mount can be reached. So the mounts are taken apart in a mount namespace of our own, where that harms nobody,
// until the file is no mount point there. When the kernel removes a file, it detaches what others have mounted on it.
func (n netns) delete() error {
	err := onOwnThread(func() error {
		if _, err := os.Lstat(n.path()); err != nil {
			return err
		}
		if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
			return err
		}
		if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			return err
		}
		unmountAll(n.path())
		err := os.Remove(n.path())
		for errors.Is(err, syscall.EBUSY) && syscall.Unmount(netnsDir, syscall.MNT_DETACH) == nil {
			unmountAll(n.path())
			err = os.Remove(n.path())
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the cluster's network: %w", err)
	}
	os.Remove(netnsDir) // unless others have one
	return nil
}

// unmountAll unmounts all that is mounted on a path, one on the other.
func unmountAll(path string) {
	for syscall.Unmount(path, syscall.MNT_DETACH) == nil {
	}
}

// From linux/if_tun.h.
const (
	tunDevice = "/dev/net/tun"
	tunSetIff = 0x400454ca

	tunTap, tunNoInfo, tunOffloads = 2, 0x1000, 0x4000
)

// plug makes a port of this name on the bridge and returns the cable to it: what is written there is frames that come in
// at the port. The port goes with the last user of the cable.
func (n netns) plug(port string) (cable *os.File, err error) {
	err = n.do(func() error {
		fd, err := syscall.Open(tunDevice, syscall.O_RDWR|syscall.O_CLOEXEC, 0) // belongs to the network that it is opened in
		if err != nil {
			return fmt.Errorf("open %s: %w", tunDevice, err)
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
		if out, err := exec.Command("ip", "link", "set", port, "master", bridge, "up").CombinedOutput(); err != nil {
			return fmt.Errorf("plug %s into the cluster's network: ip: %w: %s", port, err, strings.TrimSpace(string(out)))
		}
		return nil
	})
	if err != nil && cable != nil {
		cable.Close()
	}
	return cable, err
}

// dial connects from inside the namespace to an IP address and port.
func (n netns) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

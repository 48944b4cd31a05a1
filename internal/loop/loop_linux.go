// Package loop attaches files to loop devices that the kernel detaches by itself.
package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// Control is the device that loop devices are asked for.
const Control = "/dev/loop-control"

// From linux/loop.h.
const (
	loopGetFree   = 0x4C82
	loopConfigure = 0x4C0A

	loopReadOnly  = 1
	loopAutoclear = 4
)

type loopInfo struct {
	device, inode     uint64 // of the file
	rdevice           uint64
	offset, sizeLimit uint64
	number            uint32
	encryptType       uint32
	encryptKeySize    uint32
	flags             uint32
	fileName          [64]byte
	cryptName         [64]byte
	encryptKey        [32]byte
	init              [2]uint64
}

type loopConfig struct {
	fd, blockSize uint32
	info          loopInfo
	_             [8]uint64
}

// Open returns an open loop device for the part of a file that begins at offset. The kernel detaches it with its last user, so
// nobody has to clean up. An existing device is shared: its mounts then share one page cache.
func Open(path string, offset int64, readOnly bool) (*os.File, error) {
	mode, flags := os.O_RDWR, uint32(loopAutoclear)
	if readOnly {
		mode, flags = os.O_RDONLY, loopAutoclear|loopReadOnly
	}
	file, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	want := device{offset: offset, readOnly: readOnly}
	for name, l := range loopsOf(file) {
		if l != want {
			continue
		}
		dev, err := os.OpenFile("/dev/"+name, mode, 0)
		if err != nil {
			continue // gone meanwhile
		}
		if loopsOf(file)[name] == want { // and stays, since it is open
			return dev, nil
		}
		dev.Close()
	}
	control, err := os.OpenFile(Control, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := loopConfig{fd: uint32(file.Fd()), info: loopInfo{offset: uint64(offset), flags: flags}}
	copy(config.info.fileName[:63], path)
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_IOCTL, control.Fd(), loopGetFree, 0)
		if errno != 0 {
			return nil, fmt.Errorf("find a free loop device: %w", errno)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return nil, err
		}
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, dev.Fd(), loopConfigure, uintptr(unsafe.Pointer(&config)))
		if errno == 0 {
			return dev, nil
		}
		dev.Close()
		if errno != syscall.EBUSY { // somebody else was faster
			return nil, fmt.Errorf("%s as a loop device: %w", path, errno)
		}
	}
}

// device is what a loop device that clears itself shows of a file.
type device struct {
	offset   int64 // bytes
	readOnly bool
}

// loopsOf returns the loop devices of an open file that clear themselves, by name (loop0).
func loopsOf(file *os.File) map[string]device {
	loops := map[string]device{}
	want, err := file.Stat()
	if err != nil {
		return nil
	}
	dirs, _ := filepath.Glob("/sys/block/loop*/loop") // the pattern is well formed
	for _, dir := range dirs {
		// Reading sysfs, and not asking the device, leaves alone the devices of others.
		have, err := os.Stat(attribute(dir, "backing_file"))
		if err != nil || !os.SameFile(have, want) || attribute(dir, "autoclear") != "1" {
			continue
		}
		offset, err := strconv.ParseInt(attribute(dir, "offset"), 10, 64)
		if err != nil {
			continue // gone meanwhile
		}
		loops[filepath.Base(filepath.Dir(dir))] = device{offset, attribute(dir, "../ro") == "1"}
	}
	return loops
}

// attribute returns the content of a file in sysfs, "" when it is not there.
func attribute(dir, name string) string {
	data, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSuffix(string(data), "\n")
}

// Attached tells whether a file is attached to a loop device. A file that is not there is not.
func Attached(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return len(loopsOf(f)) > 0
}

package nocloud

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"imagegen/cluster/facts"
)

// Find returns the attached seeds: on CD-ROMs and other disks, and in the folder where cloud-init looks, which is how a
// container gets one.
func (d Disk) Find() []Found {
	var all []Found
	add := func(where string, s Seed, err error) {
		f := Found{Where: where, Seed: s, Err: err}
		if err == nil {
			f.ID, f.Err = s.Identity()
		}
		if f.Err == nil && s.Generation != nil {
			f.Err = d.verify(f)
		}
		all = append(all, f)
	}
	if entries, err := os.ReadDir(d.path(shownDir)); err == nil && len(entries) > 0 {
		s, err := readDir(d.path(shownDir))
		add("/"+shownDir, s, err)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		add("/"+shownDir, Seed{}, err)
	}
	devices, _ := os.ReadDir(d.path("sys/class/block")) // none without /sys
	for _, e := range devices {
		name := e.Name()
		if strings.HasPrefix(name, "ram") || strings.HasPrefix(name, "zram") || strings.HasPrefix(name, "fd") || strings.HasPrefix(name, "loop") {
			continue
		}
		s, err := readDevice(d.path(filepath.Join("dev", strings.ReplaceAll(name, "!", "/"))))
		// Disks without a seed and empty drives are ignored. An unreadable CD-ROM may be a seed.
		if err == nil || !isNothing(err) && (strings.HasPrefix(name, "sr") || strings.HasPrefix(name, "hd")) {
			add("/dev/"+name, s, err)
		} else if !isNothing(err) && errors.Is(err, errDamaged) {
			add("/dev/"+name, s, err)
		}
	}
	return all
}

// verify checks who signed the generation of a seed, once the node knows its authority: its first seed brings that.
func (d Disk) verify(f Found) error {
	data, err := os.ReadFile(d.path(facts.PKIDir + "/ca.crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("%s/ca.crt is no certificate", facts.PKIDir)
	}
	authority, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s/ca.crt: %w", facts.PKIDir, err)
	}
	_, err = facts.Verify(f.Seed.Generation, authority, f.ID.Cluster)
	return err
}

// errDamaged is returned for a damaged volume that has the label of a seed.
var errDamaged = errors.New("damaged")

func isNothing(err error) bool {
	for _, e := range []error{ErrNoSeed, fs.ErrNotExist, syscall.ENOMEDIUM, syscall.ENXIO, syscall.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// From the kernel's uapi/linux/cdrom.h.
const (
	cdromDriveStatus = 0x5326
	statusTrayOpen   = 2
)

// trayOpen reports whether path is a CD-ROM drive with an open tray. Opening the device would close the tray while
// somebody inserts a seed.
func trayOpen(path string) bool {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	const currentSlot = math.MaxInt32
	status, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), cdromDriveStatus, currentSlot)
	return errno == 0 && status == statusTrayOpen
}

func readDevice(path string) (Seed, error) {
	if trayOpen(path) {
		return Seed{}, syscall.ENOMEDIUM
	}
	f, err := os.Open(path)
	if err != nil {
		return Seed{}, err
	}
	defer f.Close()
	s, err := ReadISO(f)
	var failed *fs.PathError
	if err != nil && !errors.Is(err, ErrNoSeed) && !errors.As(err, &failed) {
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	return s, err
}

package format

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"imagegen/distro"
	"imagegen/internal/sparse"
	"imagegen/internal/uuid"
)

// Machine is the virtual machine that an OVA or a box describes. It has a BIOS; one SATA controller, called SATA, with
// the system disk on port 0, an empty CD-ROM drive on port 1 and two free ports; two network adapters (E1000), the
// first on NAT, the second on VirtualBox's internal network imagegen, which exists on every host; and a serial port.
type Machine struct {
	Name   string // also the base name of the files in an OVA, such as web
	Distro string // as in package distro
	CPUs   int
	Memory int64  // bytes, rounded up to whole MiB
	ID     string // identifies the content of the disk: its SHA-256 or the image's identity
}

//go:embed templates
var templates embed.FS

var ovfTemplate = template.Must(template.New("machine.ovf").Option("missingkey=error").Funcs(template.FuncMap{
	"xml": func(s string) (string, error) {
		var b strings.Builder
		err := xml.EscapeText(&b, []byte(s))
		return b.String(), err
	},
}).ParseFS(templates, "templates/machine.ovf"))

// ovf returns the OVF description of the machine. Its disk has diskBytes and is in the VMDK file of fileBytes.
func (m Machine) ovf(diskBytes int64, file string, fileBytes int64) ([]byte, error) {
	known := distro.Named(m.Distro)
	if known.Name == "" {
		return nil, fmt.Errorf("unknown distro %q", m.Distro)
	}
	var b bytes.Buffer
	err := ovfTemplate.Execute(&b, map[string]any{
		"Name": m.Name, "OS": known.Guest, "CPUs": m.CPUs, "MemoryMiB": (m.Memory + 1<<20 - 1) >> 20,
		"DiskFile": file, "DiskFileBytes": fileBytes, "DiskBytes": diskBytes,
		"DiskUUID": uuid.Of("disk", m.ID), "MachineUUID": uuid.Of("machine", m.Name, m.ID),
	})
	return b.Bytes(), err
}

// WriteOVA writes a raw disk as an OVA, which VirtualBox and VMware import: a tar file of NAME.ovf, NAME.mf (the
// SHA-256 of the other two) and NAME-disk1.vmdk. The new file replaces one at path only once it is complete on disk;
// after an error, path is unchanged. workers and the resulting bytes are as in WriteVMDK.
func WriteOVA(ctx context.Context, path string, disk *os.File, m Machine, workers int) error {
	return writePackage(ctx, path, disk, m, workers, m.Name, m.Name+"-disk1.vmdk", nil)
}

// entry is a small file in a package.
type entry struct {
	name string
	data []byte
}

// writePackage writes a tar file of the entries in front, NAME.ovf, NAME.mf and the disk. The digests come before the
// disk: a truncated file then lacks part of the disk. If it lacked the digests instead, it would be imported
// unverified. The VMDK is streamed into the tar file. Size and digests have a fixed length and are patched in at the
// end.
func writePackage(ctx context.Context, path string, disk *os.File, m Machine, workers int, name, diskName string, front []entry) error {
	info, err := disk.Stat()
	if err != nil {
		return err
	}
	describe := func(size int64) (entry, error) {
		ovf, err := m.ovf(info.Size(), diskName, size)
		return entry{name + ".ovf", ovf}, err
	}
	ovf, err := describe(math.MaxInt64) // the largest number of digits
	if err != nil {
		return fmt.Errorf("describe the machine %s: %w", m.Name, err)
	}
	return writeAside(ctx, path, func(f *os.File) error {
		t := &tarFile{f: f}
		digest := sha256.New() // of the VMDK
		head := func(ovf entry, size int64) error {
			mf := fmt.Sprintf("SHA256(%s)= %x\nSHA256(%s)= %x\n", ovf.name, sha256.Sum256(ovf.data), diskName, digest.Sum(nil))
			t.at = 0
			for _, e := range slices.Concat(front, []entry{ovf, {name + ".mf", []byte(mf)}}) {
				if err := t.add(e); err != nil {
					return err
				}
			}
			return t.header(diskName, size)
		}
		if err := head(ovf, 0); err != nil {
			return err
		}
		begin := t.at
		if err := WriteVMDK(ctx, io.MultiWriter(t, digest), disk, m.ID, workers); err != nil {
			return err
		}
		size := t.at - begin // a multiple of the sector size, as tar requires
		if _, err := t.Write(zeros[:2*sector]); err != nil {
			return err
		}
		final, err := describe(size)
		if err != nil {
			return err
		}
		final.data = append(final.data, bytes.Repeat([]byte("\n"), len(ovf.data)-len(final.data))...)
		return head(final, size)
	})
}

// tarFile writes a tar file at offset at. Unlike with archive/tar's writer, headers can be written again.
type tarFile struct {
	f  io.WriterAt
	at int64
}

func (t *tarFile) Write(p []byte) (int, error) {
	n, err := t.f.WriteAt(p, t.at)
	t.at += int64(n)
	return n, err
}

// header writes the header of a file, without a date and an owner.
func (t *tarFile) header(name string, size int64) error {
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR})
	if err != nil {
		return err // invalid name, or more than 8 GiB
	}
	_, err = t.Write(b.Bytes())
	return err
}

func (t *tarFile) add(e entry) error {
	if err := t.header(e.name, int64(len(e.data))); err != nil {
		return err
	}
	if _, err := t.Write(e.data); err != nil {
		return err
	}
	_, err := t.Write(zeros[:-t.at&(sector-1)])
	return err
}

// writeAside makes do write a temporary file, and renames it to path once it is complete on disk.
func writeAside(ctx context.Context, path string, do func(f *os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = do(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), sparse.Flush(ctx, f))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

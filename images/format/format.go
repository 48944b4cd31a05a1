// Package format converts a raw disk to the formats that virtualization software imports (qcow2, VMDK, OVA, Vagrant box), and unpacks
// downloaded disks. It knows disks and the machines that OVAs and boxes describe, but not how an image is made, stored or used.
package format

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"

	"imagegen/internal/program"
	"imagegen/internal/sparse"
)

// Names lists the formats. raw always exists, since the others are converted from it.
var Names = []string{"raw", "qcow2", "vmdk", "ova", "box"}

// Version must be increased when the same image is converted to different bytes.
const Version = 1

// Check checks that the programs that the formats need are installed, before minutes of baking.
func Check(formats []string) error {
	if !slices.Contains(formats, "qcow2") {
		return nil
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return errors.New("--format qcow2 needs qemu-img, which this machine lacks: apt-get install qemu-utils")
	}
	return nil
}

// Write converts the raw disk at from to path. On an error, path does not exist or is unchanged.
func Write(ctx context.Context, path, from, format string, m Machine) error {
	disk, err := os.Open(from)
	if err != nil {
		return err
	}
	defer disk.Close()
	switch format {
	case "ova":
		return WriteOVA(ctx, path, disk, m, runtime.NumCPU())
	case "box":
		return WriteBox(ctx, path, disk, m, runtime.NumCPU())
	}
	tmp := path + ".tmp"
	defer os.Remove(tmp) // where it was not renamed
	if format == "qcow2" {
		if out, err := program.Command(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", from, tmp).CombinedOutput(); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("qemu-img: %w: %s", err, out)
		}
		return os.Rename(tmp, path)
	}
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	err = WriteVMDK(ctx, f, disk, m.ID, runtime.NumCPU())
	if err == nil {
		err = sparse.Flush(ctx, f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

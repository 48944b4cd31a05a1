// Package format writes a raw disk as what programs for virtual machines import: qcow2, VMDK, OVA, Vagrant box. It knows disks and the
// machines that they are to run in; it knows nothing of how an image is made, where it is kept, or what is in it.
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

// Names lists what an image can be written as. raw is always there: the others are made of it.
var Names = []string{"raw", "qcow2", "vmdk", "ova", "box"}

// Version is raised when the same image is to be written in another way.
const Version = 1

// Check makes sure that the programs that formats need are here, before minutes of baking.
func Check(formats []string) error {
	if !slices.Contains(formats, "qcow2") {
		return nil
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return errors.New("--format qcow2 needs qemu-img, which this machine lacks: apt-get install qemu-utils")
	}
	return nil
}

// Write writes the raw disk at from as path, which is there afterwards as a whole or not at all.
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

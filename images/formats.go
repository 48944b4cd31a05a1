package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"imagegen/cluster"
	"imagegen/internal/atomicfile"
)

// Formats lists what an image can be written as. raw is always there: the others are made of it.
var Formats = []string{"raw", "qcow2", "vmdk", "ova", "box"}

// file of an image in the output folder.
func (c *Config) file(role, format string) string {
	dir := "images"
	if format == "box" {
		dir = "boxes" // where the Vagrantfile looks for them
	}
	return filepath.Join(c.OutDir, dir, role+"."+format)
}

// convert puts an image in another format into the output folder. What it writes is kept in the cache, under the hash of
// all that goes into it.
func (c *Config) convert(ctx context.Context, role string, p *plan, format string) (Output, error) {
	spec := c.Spec.Role(role)
	m := Machine{Name: role, Distro: c.Spec.Distro, CPUs: spec.CPUs, Memory: spec.Memory, ID: p.identity}
	key := []any{format, formatVersion, p.identity}
	if format == "ova" || format == "box" {
		key = append(key, m)
	}
	dir := filepath.Join(c.CacheDir, "formats", hashJSON(key)[:32])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Output{}, err
	}
	used(dir)
	made := filepath.Join(dir, "disk."+format)
	// Written last: where it is, the file is whole.
	record := filepath.Join(dir, "output.json")
	out := Output{Format: format}
	data, err := os.ReadFile(record)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &out); err != nil {
			return out, fmt.Errorf("%s: %w; remove that folder and build again", dir, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		c.UI.Step(role, "write as "+format)
		if err := writeFormat(ctx, made, filepath.Join(c.imageDir(p.identity), diskName), format, m); err != nil {
			return out, err
		}
		info, err := os.Stat(made)
		if err != nil {
			return out, err
		}
		out.Bytes = cluster.Bytes(info.Size())
		if out.SHA256, err = hashFile(ctx, made); err != nil {
			return out, err
		}
		if data, err = json.Marshal(out); err != nil {
			return out, err
		}
		if err := atomicfile.Write(record, data, 0o644); err != nil {
			return out, err
		}
		c.UI.Done(role, false)
	default:
		return out, err
	}
	path := c.file(role, format)
	if err := atomicfile.MakeDirs(filepath.Dir(path)); err != nil {
		return out, err
	}
	return out, place(ctx, made, path)
}

// formatVersion is raised when the same image is to be written in another way.
const formatVersion = 1

// checkFormats makes sure that the programs that formats need are here, before minutes of baking.
func checkFormats(formats []string) error {
	if !slices.Contains(formats, "qcow2") {
		return nil
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return errors.New("--format qcow2 needs qemu-img, which this machine lacks: apt-get install qemu-utils")
	}
	return nil
}

// writeFormat writes the raw disk at from as path, which is there afterwards as a whole or not at all.
func writeFormat(ctx context.Context, path, from, format string, m Machine) error {
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
		if out, err := command(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", from, tmp).CombinedOutput(); err != nil {
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
		err = flush(ctx, f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// dropStale removes files of a role in formats that were not asked for this time, unless they are of the same image.
func (c *Config) dropStale(role string, old, now Manifest) ([]Output, error) {
	if old.Identity == now.Identity {
		return old.Outputs, nil
	}
	for _, o := range old.Outputs {
		if err := os.Remove(c.file(role, o.Format)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return nil, nil
}

package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"imagegen/cluster"
	"imagegen/images/format"
	"imagegen/internal/atomicfile"
	"imagegen/internal/jsonhash"
	"imagegen/internal/sparse"
)

// file of an image in the output folder.
func (c *Config) file(role, kind string) string {
	dir := "images"
	if kind == "box" {
		dir = "boxes" // where the Vagrantfile looks for them
	}
	return filepath.Join(c.OutDir, dir, role+"."+kind)
}

// convert puts an image in another format into the output folder. What it writes is kept in the cache, under the hash of
// all that goes into it.
func (c *Config) convert(ctx context.Context, role string, p *plan, kind string) (Output, error) {
	spec := c.Spec.Role(role)
	m := format.Machine{Name: role, Distro: c.Spec.Distro, CPUs: spec.CPUs, Memory: int64(spec.Memory), ID: p.identity}
	key := []any{kind, format.Version, p.identity}
	if kind == "ova" || kind == "box" {
		key = append(key, m)
	}
	dir := filepath.Join(c.CacheDir, "formats", jsonhash.Of(key)[:32])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Output{}, err
	}
	used(dir)
	made := filepath.Join(dir, "disk."+kind)
	// Written last: where it is, the file is whole.
	record := filepath.Join(dir, "output.json")
	out := Output{Format: kind}
	data, err := os.ReadFile(record)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &out); err != nil {
			return out, fmt.Errorf("%s: %w; remove that folder and build again", dir, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		c.UI.Step(role, "write as "+kind)
		if err := format.Write(ctx, made, filepath.Join(c.imageDir(p.identity), diskName), kind, m); err != nil {
			return out, err
		}
		info, err := os.Stat(made)
		if err != nil {
			return out, err
		}
		out.Bytes = cluster.Bytes(info.Size())
		if out.SHA256, err = sparse.SHA256(ctx, made); err != nil {
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
	path := c.file(role, kind)
	if err := atomicfile.MakeDirs(filepath.Dir(path)); err != nil {
		return out, err
	}
	return out, place(ctx, made, path)
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

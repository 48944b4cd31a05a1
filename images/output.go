package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/cluster"
	"imagegen/images/format"
	"imagegen/internal/atomicfile"
	"imagegen/internal/jsonhash"
	"imagegen/internal/sparse"
)

// output is the folder that receives the images.
type output struct {
	dir      string
	cache    cache
	spec     *cluster.Spec
	formats  []string // in addition to raw
	underway bool     // see Config
	ui       Progress
}

func (c *Config) output() output {
	return output{c.OutDir, c.cache(), c.Spec, c.Formats, c.Underway, c.UI}
}

// export puts an image into the output folder. On the same file system, the file is a hard link to the cache's and
// therefore read-only: machines use copies of it or overlays on it.
func (o output) export(ctx context.Context, role string, p *plan) (Result, error) {
	if err := atomicfile.MakeDirs(filepath.Join(o.dir, "images")); err != nil {
		return Result{}, err
	}
	r := Result{Role: role, Identity: p.identity, Cached: p.cached, Path: o.file(role, "raw"), Manifest: o.file(role, "json")}
	data, err := os.ReadFile(filepath.Join(o.cache.imageDir(p.identity), manifestName))
	if err != nil {
		return r, err
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return r, fmt.Errorf("%s: %w; remove that folder and build again", o.cache.imageDir(p.identity), err)
	}
	m.Role = role
	old, _, err := o.present(role)
	if err != nil {
		return r, err
	}
	if old.Identity == m.Identity {
		m.Outputs = old.Outputs
	} else if err := o.retire(ctx, role, old, o.underway); err != nil {
		return r, fmt.Errorf("keep the earlier image: %w", err)
	}
	if err := place(ctx, filepath.Join(o.cache.imageDir(p.identity), diskName), r.Path); err != nil {
		return r, err
	}
	for _, kind := range o.formats {
		if kind == "raw" {
			continue
		}
		out, err := o.convert(ctx, role, p, kind)
		if err != nil {
			return r, fmt.Errorf("write as %s: %w", kind, err)
		}
		m.Outputs = slices.DeleteFunc(m.Outputs, func(o Output) bool { return o.Format == kind })
		m.Outputs = append(m.Outputs, out)
	}
	slices.SortFunc(m.Outputs, func(a, b Output) int { return strings.Compare(a.Format, b.Format) })
	if data, err = m.encode(); err != nil {
		return r, err
	}
	materials, err := m.sbom()
	if err != nil {
		return r, err
	}
	return r, errors.Join(writeChanged(o.file(role, "spdx.json"), materials), writeChanged(r.Manifest, data))
}

// writeChanged writes a file if its content differs.
func writeChanged(path string, data []byte) error {
	before, err := os.ReadFile(path)
	if err == nil && bytes.Equal(before, data) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return atomicfile.Write(path, data, 0o644)
}

// place makes path a hard link to from, or a copy if no link is possible.
func place(ctx context.Context, from, path string) error {
	src, err := os.Stat(from)
	if err != nil {
		return err
	}
	// A copy has the time stamp of the original.
	if dst, err := os.Stat(path); err == nil && (os.SameFile(src, dst) || dst.Size() == src.Size() && dst.ModTime().Equal(src.ModTime())) {
		return nil
	}
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(from, tmp); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w; is another build writing there?", err)
		}
		err = sparse.Copy(ctx, from, tmp)
		err = errors.Join(err, os.Chmod(tmp, 0o444), os.Chtimes(tmp, src.ModTime(), src.ModTime()))
		if err != nil {
			os.Remove(tmp)
			return err
		}
	}
	// A hard link shares its owner with the file in the cache, so this changes both. The output's owner is the one that
	// matters.
	if err := atomicfile.Own(tmp); err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, path)
}

// file returns the path of a role's image, or of a file beside it.
func (o output) file(role, kind string) string {
	dir := "images"
	if kind == "box" {
		dir = "boxes" // where the Vagrantfile looks for them
	}
	return filepath.Join(o.dir, dir, role+"."+kind)
}

// convert puts an image in another format into the output folder. The result is cached under the hash of its inputs.
func (o output) convert(ctx context.Context, role string, p *plan, kind string) (Output, error) {
	spec := o.spec.Role(role)
	m := format.Machine{Name: role, Distro: o.spec.Distro, CPUs: spec.CPUs, Memory: int64(spec.Memory), ID: p.identity}
	key := []any{kind, format.Version, p.identity}
	if kind == "ova" || kind == "box" {
		key = append(key, m)
	}
	dir := filepath.Join(o.cache.dir, "formats", jsonhash.Of(key)[:32])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Output{}, err
	}
	used(dir)
	made := filepath.Join(dir, "disk."+kind)
	// Written last: if it exists, the file is complete.
	record := filepath.Join(dir, "output.json")
	out := Output{Format: kind}
	data, err := os.ReadFile(record)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &out); err != nil {
			return out, fmt.Errorf("%s: %w; remove that folder and build again", dir, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		o.ui.Step(role, "write as "+kind)
		if err := format.Write(ctx, made, filepath.Join(o.cache.imageDir(p.identity), diskName), kind, m); err != nil {
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
		o.ui.Done(role, false)
	default:
		return out, err
	}
	path := o.file(role, kind)
	if err := atomicfile.MakeDirs(filepath.Dir(path)); err != nil {
		return out, err
	}
	return out, place(ctx, made, path)
}

package images

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"imagegen/internal/atomicfile"
)

// An image that build replaces is kept while a node may run it: undoing a change that came with other images takes the machines back to
// it. In DIR/images/earlier/IDENTITY are the files of a role's image under their usual names, hard links like those in DIR/images. The
// manifest is the last to come and the first to go, there and here: where it is, the rest is complete, and of the identity that it names.

func earlierDir(out string) string { return filepath.Join(out, "images", "earlier") }

// kept is the folder of an earlier image.
func (o output) kept(identity string) output {
	return output{dir: filepath.Join(earlierDir(o.dir), identity)}
}

// present returns the manifest of a role's image; ok is false if there is no image, or one that is not complete.
func (o output) present(role string) (m Manifest, ok bool, err error) {
	data, err := os.ReadFile(o.file(role, "json"))
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, err
	}
	if json.Unmarshal(data, &m) != nil || m.Identity == "" {
		return Manifest{}, false, nil // not written by imagegen
	}
	return m, true, nil
}

// move makes a role's image in from that of o as well.
func (o output) move(ctx context.Context, role string, from output, m Manifest) error {
	for _, kind := range append(m.formats(), "spdx.json", "json") {
		if err := atomicfile.MakeDirs(filepath.Dir(o.file(role, kind))); err != nil {
			return err
		}
		err := place(ctx, from.file(role, kind), o.file(role, kind))
		if err != nil && !(errors.Is(err, fs.ErrNotExist) && kind != "raw" && kind != "json") {
			return err
		}
	}
	return nil
}

// formats returns the formats of an image, raw first.
func (m Manifest) formats() []string {
	all := []string{"raw"}
	for _, o := range m.Outputs {
		if o.Format != "raw" {
			all = append(all, o.Format)
		}
	}
	return all
}

// retire keeps a role's image, if keep is set or no earlier one of the role is kept, and removes its other formats and its manifest:
// until another image is complete, the role has none.
func (o output) retire(ctx context.Context, role string, m Manifest, keep bool) error {
	earlier, err := filepath.Glob(filepath.Join(earlierDir(o.dir), "*", "images", role+".json"))
	if err != nil {
		return err
	}
	if m.Identity != "" && (keep || len(earlier) == 0) {
		if err := o.kept(m.Identity).move(ctx, role, o, m); err != nil {
			return err
		}
	}
	stale := []string{o.file(role, "json")}
	for _, out := range m.Outputs {
		stale = append(stale, o.file(role, out.Format))
	}
	for _, path := range slices.Backward(stale) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// HasEarlier tells whether an earlier image of a role is kept in an output folder.
func HasEarlier(out, role, identity string) bool {
	m, ok, err := output{dir: out}.kept(identity).present(role)
	return err == nil && ok && m.Identity == identity
}

// PutBack makes an earlier image that is kept that of a role again, and keeps the present one.
func PutBack(ctx context.Context, out, role, identity string) error {
	o := output{dir: out}
	now, _, err := o.present(role)
	if err != nil || now.Identity == identity {
		return err
	}
	m, _, err := o.kept(identity).present(role)
	if err != nil {
		return err
	}
	if err := o.retire(ctx, role, now, true); err != nil {
		return err
	}
	return o.move(ctx, role, o.kept(identity), m)
}

// EraseEarlier removes all images that are kept: no node runs them any more.
func EraseEarlier(out string) error {
	manifests, err := filepath.Glob(filepath.Join(earlierDir(out), "*", "images", "*.json"))
	if err != nil {
		return err
	}
	for _, m := range manifests {
		if err := os.Remove(m); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.RemoveAll(earlierDir(out))
}

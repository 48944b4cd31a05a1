package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/images/format"
	"imagegen/images/packages"
	"imagegen/internal/sparse"
)

// Inspect returns the manifest of an image file in the output folder, in any format, and verifies that the file matches
// it.
func Inspect(ctx context.Context, path string) (Manifest, error) {
	kind := strings.TrimPrefix(filepath.Ext(path), ".")
	if !slices.Contains(format.Names, kind) {
		return Manifest{}, fmt.Errorf("%s: an image's name ends in .%s", path, strings.Join(format.Names, ", ."))
	}
	if _, err := os.Stat(path); err != nil {
		return Manifest{}, err
	}
	dir := filepath.Dir(path)
	if kind == "box" {
		dir = filepath.Join(filepath.Dir(dir), "images")
	}
	beside := filepath.Join(dir, strings.TrimSuffix(filepath.Base(path), "."+kind)+".json")
	data, err := os.ReadFile(beside)
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, fmt.Errorf("%s: the manifest %s does not exist; imagegen build writes both", path, beside)
	}
	if err != nil {
		return Manifest{}, err
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("%s: %w", beside, err)
	}
	want, ok := m.output(kind)
	if !ok {
		return m, fmt.Errorf("%s: the manifest %s does not list it: it is from an earlier image; imagegen build --format %s writes it again", path, beside, kind)
	}
	if err := want.check(ctx, path); err != nil {
		return m, fmt.Errorf("%s: %w; it has changed since imagegen wrote it", path, err)
	}
	return m, nil
}

// check verifies that a file is the output.
func (o Output) check(ctx context.Context, path string) error {
	if o.Data == "" {
		return sparse.HasSum(ctx, path, o.SHA256)
	}
	switch got, err := sparse.Digest(ctx, path); {
	case err != nil:
		return err
	case got != o.Data:
		return fmt.Errorf("the digest of its data is %s and should be %s", got, o.Data)
	}
	return nil
}

// output returns the manifest's entry for a format.
func (m Manifest) output(kind string) (Output, bool) {
	for _, o := range append([]Output{m.Disk}, m.Outputs...) {
		if o.Format == kind {
			return o, true
		}
	}
	return Output{}, false
}

// Changes describes how the inputs and the installed packages of two images differ.
func (m Manifest) Changes(now Manifest) []string {
	changes := differences(m.Inputs, now.Inputs)
	installed := func(m Manifest) (all []string) {
		for _, p := range m.Packages {
			all = append(all, p.Name+" "+p.Version)
		}
		return all
	}
	if c := packages.ListChange(installed(m), installed(now)); c != "" {
		changes = append(changes, "installed packages: "+c)
	}
	return changes
}

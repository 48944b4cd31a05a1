package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/operate"
)

// CheckFiles makes sure that build has made what the nodes with these names are turned on with, and from this spec.
func (l *Lab) CheckFiles(names ...string) error {
	nodes, err := l.pick(names)
	if err != nil {
		return err
	}
	return l.checkFiles(nodes)
}

func (l *Lab) checkFiles(nodes []cluster.Node) error {
	var missing []string
	for _, n := range nodes {
		for _, f := range []string{l.paths.image(n.Role), l.paths.seed(n.Name)} {
			if _, err := os.Stat(f); err != nil && !slices.Contains(missing, l.show(f)) {
				missing = append(missing, l.show(f))
			}
		}
	}
	if missing != nil {
		return fmt.Errorf("not there yet: %s: imagegen build and imagegen seed make them", strings.Join(missing, ", "))
	}
	strange, err := l.strange(nodes)
	if err != nil {
		return err
	}
	switch len(strange) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%s is not of this spec: imagegen build", strange[0])
	}
	return fmt.Errorf("%s are not of this spec: imagegen build", strings.Join(strange, ", "))
}

// strange returns the images and seeds of nodes that another spec than this has given them.
func (l *Lab) strange(nodes []cluster.Node) ([]string, error) {
	var files []string
	for _, n := range nodes {
		if image := l.paths.image(n.Role); !slices.Contains(files, l.show(image)) && l.otherDistro(image) {
			files = append(files, l.show(image))
		}
	}
	for _, n := range nodes {
		want, err := l.seed(n)
		if err != nil {
			return nil, err
		}
		// One that cannot be read is not of this spec either, and made anew in the same way.
		if have, err := cloudinit.ReadISO(l.paths.seed(n.Name)); err != nil || !sameSeed(have, want) {
			files = append(files, l.show(l.paths.seed(n.Name)))
		}
	}
	return files, nil
}

// otherDistro tells whether an image's manifest says that it is of another distro than the spec's.
func (l *Lab) otherDistro(image string) bool {
	var manifest struct {
		Inputs struct {
			Base struct{ Distro string }
		}
	}
	data, err := os.ReadFile(strings.TrimSuffix(image, ".raw") + ".json")
	if err != nil || json.Unmarshal(data, &manifest) != nil {
		return false
	}
	distro := manifest.Inputs.Base.Distro
	return distro != "" && distro != l.spec.Distro
}

func sameSeed(a, b cloudinit.Seed) bool {
	return bytes.Equal(a.MetaData, b.MetaData) && bytes.Equal(a.UserData, b.UserData) && bytes.Equal(a.NetworkConfig, b.NetworkConfig)
}

// show is a path in the output folder as the user would write it.
func (l *Lab) show(path string) string {
	if in, ok := strings.CutPrefix(path, l.paths.out+"/"); ok {
		return filepath.Join(l.shown, in)
	}
	return path
}

// Current tells whether a node was made from the image and the seed that build has made last.
func (l *Lab) Current(name string) (bool, error) {
	nodes, err := l.pick([]string{name})
	if err != nil {
		return false, err
	}
	made, err := os.Stat(l.paths.in(name, imageFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, err := os.Stat(l.paths.image(nodes[0].Role))
	if err != nil {
		return false, err
	}
	seed, err := l.hasLatestSeed(name)
	return os.SameFile(made, now) && seed, err
}

// hasLatestSeed tells whether a node was last turned on with the seed that build has made last.
func (l *Lab) hasLatestSeed(name string) (bool, error) {
	had, err1 := os.Stat(l.paths.in(name, seedFile))
	now, err2 := os.Stat(l.paths.seed(name))
	if err := errors.Join(err1, err2); err != nil {
		return false, err
	}
	if os.SameFile(had, now) {
		return true, nil
	}
	a, err1 := cloudinit.ReadISO(l.paths.in(name, seedFile))
	b, err2 := cloudinit.ReadISO(l.paths.seed(name))
	return sameSeed(a, b), errors.Join(err1, err2)
}

// build is operate.Machine.Build of a node.
func (l *Lab) build(n cluster.Node) string {
	if _, ok := l.spec.Node(n.Name); !ok {
		return operate.BuildRemoved
	}
	if _, err := os.Stat(l.paths.in(n.Name, seedFile)); err != nil {
		return ""
	}
	if current, err := l.Current(n.Name); err == nil && current {
		return operate.BuildCurrent
	}
	return operate.BuildOlder // also where what build made last is gone
}

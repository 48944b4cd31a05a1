package lab

import (
	"errors"
	"io/fs"
	"os"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/machines/fleet"
	"imagegen/operate"
)

// CheckFiles makes sure that build has made what the nodes with these names are turned on with, and from this spec.
func (l *Lab) CheckFiles(names ...string) error {
	nodes, err := l.pick(names)
	if err != nil {
		return err
	}
	return l.made.Check(nodes)
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
	return fleet.SameSeed(a, b), errors.Join(err1, err2)
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

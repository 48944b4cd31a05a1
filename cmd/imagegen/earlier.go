package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"imagegen/change"
	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
	"imagegen/images"
	"imagegen/internal/atomicfile"
	"imagegen/operate"
)

// earlierDir is the folder DIR/earlier: what undoing a change takes. It holds secrets, and is there only until all nodes have changed.
//
//	generation   signed; written last
//	outage       the generation in use, signed, from when so many nodes are turned off that nobody could say
//	NODE.iso     seeds, which need not be of that generation: whoever wants one knows its digest
type earlierDir string

const (
	earlierGeneration = "generation"
	earlierOutage     = "outage"
)

func (p *project) earlier() earlierDir { return earlierDir(filepath.Join(p.out, "earlier")) }

// kept is the folder as [change.Run] uses it.
type kept struct {
	earlierDir
	agents *operate.Agents // know who may sign a generation
}

func (e kept) Generation() *facts.Generation { return e.read(earlierGeneration) }

func (e kept) Outage() *facts.Generation { return e.read(earlierOutage) }

func (e earlierDir) BeginOutage(g facts.Generation) error {
	if err := e.make(); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(string(e), earlierOutage), g.Signed, 0o600)
}

// read returns a generation that is kept; nil: there is none.
func (e kept) read(name string) *facts.Generation {
	signed, err := os.ReadFile(filepath.Join(string(e.earlierDir), name))
	if err != nil {
		return nil
	}
	g, err := e.agents.Verify(signed)
	if err != nil {
		return nil // of another cluster
	}
	return &g
}

func (e earlierDir) generationPath() string { return filepath.Join(string(e), earlierGeneration) }

func (e earlierDir) seedPath(node string) string { return filepath.Join(string(e), node+".iso") }

func (e earlierDir) Seed(node, digest string) (cloudinit.Seed, bool) {
	s, err := cloudinit.ReadISO(e.seedPath(node))
	return s, err == nil && nocloud.Digest(s.UserData, s.NetworkConfig) == digest
}

func (e earlierDir) make() error {
	if err := atomicfile.MakeDirs(filepath.Dir(string(e))); err != nil {
		return err
	}
	if err := os.Mkdir(string(e), 0o700); err == nil {
		return atomicfile.Own(string(e))
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (e earlierDir) Keep(t change.Target) error {
	if err := e.make(); err != nil {
		return err
	}
	for node, seed := range t.Seeds {
		if seed.IsAt(e.seedPath(node)) {
			continue
		}
		if err := seed.WriteISO(e.seedPath(node)); err != nil {
			return err
		}
	}
	return atomicfile.Write(e.generationPath(), t.Signed, 0o600)
}

// exists tells whether a change of the cluster is under way.
func (e earlierDir) exists() bool {
	_, err := os.Stat(string(e))
	return err == nil
}

// Image tells whether an earlier image of a role is kept.
func (e kept) Image(role, identity string) bool {
	return images.HasEarlier(filepath.Dir(string(e.earlierDir)), role, identity)
}

// Erase erases the seeds, and the images that build has kept. The folder is renamed first: of what an interruption leaves, nothing is taken
// for kept.
func (e earlierDir) Erase() error {
	if err := images.EraseEarlier(filepath.Dir(string(e))); err != nil {
		return err
	}
	aside := string(e) + ".old"
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	if err := os.Rename(string(e), aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(aside)
}

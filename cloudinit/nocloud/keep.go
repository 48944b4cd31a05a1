package nocloud

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Paths on a node.
const (
	seedsDir      = "var/lib/imagegen/seeds"                // one folder per seed: the latest and, for a moment, the next
	currentLink   = "var/lib/imagegen/seed"                 // symbolic link to the latest's folder
	appliedFile   = "var/lib/imagegen/seed-applied"         // the instance-id that cloud-init has applied completely
	cloudDir      = "var/lib/cloud"                         // cloud-init's state
	shownDir      = "var/lib/cloud/seed/nocloud"            // where cloud-init looks
	localMetaData = "run/imagegen-meta-data"                // the kept seed's, and that the data source is local
	statusFile    = "run/cloud-init/status.json"            // of this boot
	resultFile    = "run/cloud-init/result.json"            // exists once cloud-init has finished in this boot
	instanceNow   = "var/lib/cloud/data/instance-id"        // the last one applied
	networkStage  = "etc/systemd/system/cloud-init.service" // the unit's mask, if it has one
)

// Disk is a node's root disk.
type Disk struct {
	Root string // "/", except in tests
}

func (d Disk) path(name string) string { return filepath.Join(d.Root, name) }

// Kept returns the identity of the seed that the node applied last, or nil if there was none. If it returns both an
// identity and an error, the identity is still correct, and only the copy is damaged.
func (d Disk) Kept() (*Identity, error) {
	if _, err := os.Lstat(d.path(currentLink)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	s, err := readDir(d.path(currentLink))
	if err != nil {
		return nil, fmt.Errorf("the node's copy of its seed: %w", err)
	}
	id, err := s.Identity()
	if err != nil && id.Node == "" {
		return nil, fmt.Errorf("the node's copy of its seed: %w", err)
	}
	return &id, err
}

// readDir reads a seed from a folder.
func readDir(dir string) (Seed, error) {
	var s Seed
	for _, f := range s.files() {
		data, err := os.ReadFile(filepath.Join(dir, f.name))
		if f.name == GenerationFile && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Seed{}, err
		}
		*f.data = data
	}
	return s, nil
}

// Keep makes s the seed that cloud-init sees from now on. It is atomic.
func (d Disk) Keep(s Seed) error {
	id, err := s.Identity()
	if err != nil {
		return err
	}
	// Without its generation, an old seed could take the node back.
	if kept, _ := d.Kept(); kept != nil && kept.Number > 0 && id.Number == 0 {
		return fmt.Errorf("the seed belongs to no generation, and this node has one of generation %d", kept.Number)
	}
	return d.keep(s, id)
}

// keep is Keep without a check.
func (d Disk) keep(s Seed, id Identity) error {
	seeds := d.path(seedsDir)
	name := strings.TrimPrefix(id.Digest, "sha256:") + "." + strings.ReplaceAll(id.Instance, "/", "_")
	if id.Number > 0 { // the same seed in another generation is kept aside as well
		name += "." + strings.TrimPrefix(id.Generation, "sha256:")[:16]
	}
	if err := os.MkdirAll(seeds, 0o700); err != nil {
		return err
	}
	dir := filepath.Join(seeds, name)
	if err := os.RemoveAll(dir); err != nil { // from an interrupted run
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, f := range s.files() {
		if f.name == GenerationFile && len(*f.data) == 0 {
			continue
		}
		if err := writeSynced(filepath.Join(dir, f.name), *f.data); err != nil {
			return err
		}
	}
	next := d.path(currentLink) + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink("seeds/"+name, next); err != nil {
		return err
	}
	if err := errors.Join(syncDir(dir), syncDir(seeds)); err != nil {
		return err
	}
	if err := os.Rename(next, d.path(currentLink)); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(d.path(currentLink))); err != nil {
		return err
	}
	return d.removeOthers()
}

// Prepare makes cloud-init apply the kept seed completely unless it already has. cloud-init records each step before it
// takes it, and would otherwise consider a step done that a power cut interrupted.
func (d Disk) Prepare(kept Identity) error {
	applied, err := os.ReadFile(d.path(appliedFile))
	if err == nil && string(applied) == kept.Instance+"\n" {
		return nil
	}
	return d.forgetApplied()
}

// forgetApplied makes cloud-init forget what it has applied.
func (d Disk) forgetApplied() error {
	for _, name := range []string{"instance", "instances", "data", "sem"} {
		if err := os.RemoveAll(d.path(cloudDir + "/" + name)); err != nil {
			return err
		}
	}
	return nil
}

// Applied records that cloud-init has applied the kept seed, if it has. Everything that it wrote is synced to disk
// first.
func (d Disk) Applied(sync func(), hadErrors error) error {
	kept, err := d.Kept()
	if err != nil || kept == nil {
		return err
	}
	if have, err := os.ReadFile(d.path(appliedFile)); err == nil && string(have) == kept.Instance+"\n" {
		return nil
	}
	now, err := os.ReadFile(d.path(instanceNow))
	if err != nil {
		return fmt.Errorf("cloud-init has not applied the seed: %w", err)
	}
	if strings.TrimSpace(string(now)) != kept.Instance {
		return fmt.Errorf("cloud-init has applied %s instead of %s", strings.TrimSpace(string(now)), kept.Instance)
	}
	if hadErrors != nil {
		return fmt.Errorf("cloud-init had errors; the next boot applies the seed again: %w", hadErrors)
	}
	sync()
	return d.markApplied(kept.Instance)
}

// markApplied records that everything that the seed with this instance-id writes is on disk.
func (d Disk) markApplied(instance string) error {
	next := d.path(appliedFile) + ".new"
	if err := writeSynced(next, []byte(instance+"\n")); err != nil {
		return err
	}
	if err := os.Rename(next, d.path(appliedFile)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(next))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

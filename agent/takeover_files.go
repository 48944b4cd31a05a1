package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"imagegen/cluster/facts"
)

// fileState is how a file looks, except for its content.
type fileState struct {
	Mode uint32 `json:"mode"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
}

// drift lists what has changed on the node since its seed was applied. A takeover leaves such files alone, so the node would not
// be like a new one.
func (t *takeover) drift(known facts.Facts) (why []string) {
	key, err := os.ReadFile(t.path(facts.PKIDir + "/node.key"))
	if err != nil {
		return []string{fmt.Sprintf("its key cannot be read: %v", err)}
	}
	for _, f := range known.Files {
		want, err := t.wanted(f)
		if err != nil {
			return []string{err.Error()}
		}
		have, content, err := t.look(f.Path)
		switch {
		case err != nil:
			why = append(why, fmt.Sprintf("%s cannot be read: %v", f.Path, err))
		case have == nil:
			why = append(why, f.Path+" was removed on the node")
		case *have != want || facts.FileDigest(key, content, f.Secret) != f.Digest:
			why = append(why, f.Path+" was changed on the node")
		}
	}
	return why
}

// wanted is how a file of a seed must look.
func (t *takeover) wanted(f facts.File) (fileState, error) {
	mode, err := strconv.ParseUint(f.Mode, 8, 32)
	if err != nil {
		return fileState{}, err
	}
	uid, gid, err := t.owner(f.Owner)
	if err != nil {
		return fileState{}, fmt.Errorf("%s belongs to %s: %w", f.Path, f.Owner, err)
	}
	return fileState{Mode: uint32(mode), UID: uid, GID: gid}, nil
}

// look returns how a file looks, and its content; nil if nothing is there. Links are followed, as cloud-init does.
func (t *takeover) look(file string) (*fileState, []byte, error) {
	info, err := os.Stat(t.path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("it is not a file")
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, nil, errors.New("its owner is not known")
	}
	content, err := os.ReadFile(t.path(file))
	return &fileState{Mode: uint32(info.Mode().Perm()), UID: int(st.Uid), GID: int(st.Gid)}, content, err
}

// store keeps the content of a file of a seed.
func (t *takeover) store(side, file string, content []byte) error {
	t.before("stage %s", file)
	name := t.state(side, sideFiles, file)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncTree syncs a folder and all folders in it to disk.
func syncTree(root string) error {
	return filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		return syncFolder(name)
	})
}

func syncFolder(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// put makes the changed files those of a side; the facts come last.
func (t *takeover) put(ctx context.Context, side string, files map[string]*fileState) error {
	names := slices.Sorted(maps.Keys(files))
	names = append(slices.DeleteFunc(names, func(n string) bool { return n == facts.FactsPath }), facts.FactsPath)
	var there []string
	for _, name := range names {
		var err error
		if want := files[name]; want == nil {
			err = t.remove(name)
		} else {
			there = append(there, t.path(name))
			var content []byte
			if content, err = os.ReadFile(t.state(side, sideFiles, name)); err == nil {
				err = t.replace(name, content, *want)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return t.daemons.label(ctx, there)
}

// replace gives a file its content, mode and owner at once. Folders that it needs are made as cloud-init makes them.
func (t *takeover) replace(file string, content []byte, want fileState) error {
	have, is, err := t.look(file)
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(parents(file, "/")) {
		if _, err := os.Stat(t.path(dir)); !errors.Is(err, fs.ErrNotExist) {
			continue // any other error is that of the file, below
		}
		t.before("make %s", dir)
		if err := errors.Join(os.Mkdir(t.path(dir), 0o755), os.Chmod(t.path(dir), 0o755), syncFolder(filepath.Dir(t.path(dir)))); err != nil {
			return err
		}
	}
	name := t.path(file)
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	aside := asideOf(name)
	if have != nil && *have == want && bytes.Equal(is, content) {
		return removeIfThere(aside)
	}
	t.before("write %s", file)
	f, err := os.OpenFile(aside, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chown(want.UID, want.GID), f.Chmod(fs.FileMode(want.Mode)), f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(aside))
	}
	t.before("switch %s", file)
	if err := os.Rename(aside, name); err != nil {
		return errors.Join(err, os.Remove(aside))
	}
	return syncFolder(filepath.Dir(name))
}

// asideOf is the name under which a file is written before it is renamed into place. It is always the same, so that one that an
// interruption leaves is found.
func asideOf(name string) string {
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+newFileMark)
}

func removeIfThere(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove removes a file that no seed has any more, and folders of the seeds' own that are then empty.
func (t *takeover) remove(file string) error {
	t.before("remove %s", file)
	if err := errors.Join(removeIfThere(asideOf(t.path(file))), removeIfThere(t.path(file))); err != nil {
		return err
	}
	dir := path.Dir(file)
	base := ownFolder(file)
	if base == "" {
		base = dir // what else is in the image is not known
	}
	for _, above := range parents(file, base) {
		t.before("remove %s", above)
		if err := os.Remove(t.path(above)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break // it has other files
		}
		dir = path.Dir(above)
	}
	err := syncFolder(t.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

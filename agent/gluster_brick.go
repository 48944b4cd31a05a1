package agent

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imagegen/internal/atomicfile"
	"imagegen/internal/xattr"
)

// lookAtBrick completes r with what is in the brick and whether its process serves.
func (g *glusterUnit) lookAtBrick(ctx context.Context, r *glusterReport) error {
	var err error
	if r.Brick, err = brickContent(g.params.Brick); err != nil {
		return err
	}
	if r.Brick == brickNone {
		return nil
	}
	switch _, err := os.Lstat(freshMark(g.params.Brick)); {
	case err == nil:
		r.Fresh = true
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	id := make([]byte, 16)
	n, err := syscall.Getxattr(g.params.Brick, volumeIDXattr, id)
	if err != nil && !errors.Is(err, syscall.ENODATA) {
		return fmt.Errorf("brick %s: read its volume id: %w", g.params.Brick, err)
	}
	if n == len(id) {
		r.BrickID = uuidText(id)
	}
	if r.Volume == nil {
		return nil
	}
	r.Online = g.brick.online(ctx, g.node.Facts.Node.IP, g.params.Brick)
	next := r.Volume.nextID()
	for id := range next + 1 {
		if c, err := readChangelog(g.params.Brick, g.params.Volume, id); err == nil && c.data > 0 && c.entry > 0 && (id == next || slices.Contains(r.Volume.ids(), id)) {
			r.Blames = append(r.Blames, id)
		}
	}
	entries, err := os.ReadDir(indexDir(g.params.Brick))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return strings.HasPrefix(e.Name(), "xattrop-") // the file that the others are links to
	})
	r.Pending = len(entries)
	if len(entries) > maxLacks {
		r.Lacks = []int{anyBrick}
		return nil
	}
	for _, e := range entries {
		for _, id := range lacking(g.params.Brick, g.params.Volume, e.Name(), next) {
			if !slices.Contains(r.Lacks, id) && (id == anyBrick || slices.Contains(r.Volume.ids(), id)) {
				r.Lacks = append(r.Lacks, id)
			}
		}
	}
	slices.Sort(r.Lacks)
	return nil
}

// maxLacks limits the entries to heal that are looked at one by one.
const maxLacks = 1000

// lacking returns the ids, up to last, of the bricks that lack something of a file or folder. It returns anyBrick if it finds none: who
// is marked may have changed just now.
func lacking(root, volume, gfid string, last int) (ids []int) {
	path := root
	if gfid != rootGFID {
		if len(gfid) != len(rootGFID) {
			return []int{anyBrick}
		}
		path = filepath.Join(root, ".glusterfs", gfid[:2], gfid[2:4], gfid)
		switch _, err := xattr.Lget(path, "trusted.gfid", make([]byte, 16)); {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it was deleted, and its entry is still to be removed
		case errors.Is(err, syscall.ENODATA):
			path += "/." // a symbolic link to a folder
		case err != nil:
			return []int{anyBrick}
		}
	}
	for id := range last + 1 {
		c, err := readChangelog(path, volume, id)
		if err != nil {
			return []int{anyBrick}
		}
		if c != (changelog{}) {
			ids = append(ids, id)
		}
	}
	if ids == nil {
		ids = []int{anyBrick}
	}
	return ids
}

// indexDir is where a brick lists what other bricks lack.
func indexDir(brick string) string { return filepath.Join(brick, ".glusterfs/indices/xattrop") }

// brickContent looks into a brick. Creating a volume leaves an empty .glusterfs in it; its first start fills that.
func brickContent(brick string) (brickState, error) {
	entries, err := os.ReadDir(brick)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return brickNone, nil
	case err != nil:
		return "", err
	case len(entries) == 0:
		return brickBare, nil
	case len(entries) > 1 || entries[0].Name() != ".glusterfs":
		return brickData, nil
	}
	entries, err = os.ReadDir(filepath.Join(brick, ".glusterfs"))
	if err != nil {
		return "", err
	}
	if len(entries) > 0 {
		return brickData, nil
	}
	return brickEmpty, nil
}

// makeBrick makes the folder of a brick, with a mark beside it.
func makeBrick(brick string) error {
	if err := os.MkdirAll(filepath.Dir(brick), 0o755); err != nil {
		return err
	}
	if err := atomicfile.Write(freshMark(brick), nil, 0o600); err != nil {
		return err
	}
	return os.MkdirAll(brick, 0o755)
}

// freshMark is a file that says that a brick's folder was made by the agent, and that nothing in it is the only copy: the volume has not had
// the brick since, or only as one that glusterd was about to add. It is removed once the volume has the brick.
func freshMark(brick string) string {
	return filepath.Join(filepath.Dir(brick), "."+filepath.Base(brick)+".new")
}

// clearBrick clears a brick that an interrupted change has prepared for a volume. Without the mark of makeBrick it fails if there are files
// in it.
func clearBrick(brick string) error {
	if pid, _ := findBrick(brick); pid != "" {
		n, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		if err := syscall.Kill(n, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end the brick's process: %w", err)
		}
		return notYet("for the brick's process to end")
	}
	if _, err := os.Lstat(freshMark(brick)); err == nil {
		if err := os.RemoveAll(brick); err != nil {
			return err
		}
		return makeBrick(brick)
	}
	for _, path := range []string{filepath.Join(brick, ".glusterfs"), brick} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return makeBrick(brick)
}

// changelog counts what a brick knows that another brick lacks of one of its files or folders. For a folder, data
// means that all of its entries must be compared.
type changelog struct{ data, metadata, entry uint32 }

func changelogName(volume string, brick int) string {
	return fmt.Sprintf("trusted.afr.%s-client-%d", volume, brick)
}

// readChangelog returns what the root of a brick says about another brick of the volume.
func readChangelog(root, volume string, brick int) (changelog, error) {
	b := make([]byte, 12)
	n, err := xattr.Lget(root, changelogName(volume, brick), b)
	if errors.Is(err, syscall.ENODATA) {
		return changelog{}, nil
	}
	if err != nil || n != len(b) {
		return changelog{}, fmt.Errorf("%s: changelog of brick %d: %w", root, brick, err)
	}
	return changelog{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])}, nil
}

// blame notes on the root of this node's brick that another brick lacks everything, as the volume's own replication
// does when a brick is replaced: all folders that healing then makes on that brick are noted in turn.
func blame(root, volume string, brick int) error {
	c, err := readChangelog(root, volume, brick)
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(nil, max(1, c.data))
	b = binary.BigEndian.AppendUint32(b, max(1, c.metadata))
	b = binary.BigEndian.AppendUint32(b, max(1, c.entry))
	// The index entry first: without it the changelog is not acted on, and afterwards only the changelog is checked.
	if err := os.MkdirAll(indexDir(root), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(indexDir(root), rootGFID), os.O_CREATE|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := syscall.Setxattr(root, changelogName(volume, brick), b, 0); err != nil {
		return fmt.Errorf("%s: note what brick %d lacks: %w", root, brick, err)
	}
	return nil
}

// restore gives a blank brick the identity that its process requires.
func restore(brick, volumeID string) error {
	if err := os.MkdirAll(brick, 0o755); err != nil {
		return err
	}
	if err := setVolumeID(brick, volumeID); err != nil {
		return err
	}
	// Last: it is what tells the brick from a blank one.
	if err := os.Mkdir(filepath.Join(brick, ".glusterfs"), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// setVolumeID says which volume a brick belongs to.
func setVolumeID(brick, volumeID string) error {
	id, err := hex.DecodeString(strings.ReplaceAll(volumeID, "-", ""))
	if err != nil || len(id) != 16 {
		return fmt.Errorf("volume id %q is not a UUID", volumeID)
	}
	if err := syscall.Setxattr(brick, volumeIDXattr, id, 0); err != nil {
		return fmt.Errorf("brick %s: set its volume id: %w", brick, err)
	}
	return nil
}

// brickProcess finds the process that serves the brick. Asking glusterd would lock the whole pool each time.
type brickProcess struct {
	process  process
	port     string
	accepted bool
}

// online tells whether the brick's process accepts connections at ip. After the first connection, the process' existence is
// enough: each connection would add lines to its log.
func (b *brickProcess) online(ctx context.Context, ip, brick string) bool {
	if !b.process.exists() || !b.process.runs() {
		b.accepted = false
		var pid string
		pid, b.port = findBrick(brick)
		if b.process = findProcess(pid); !b.process.exists() {
			return false
		}
	}
	if !b.accepted {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(ip, b.port))
		if err != nil {
			return false
		}
		conn.Close()
		b.accepted = true
	}
	return true
}

// findBrick returns the pid of the process that serves a brick, and its port; empty when there is none.
func findBrick(brick string) (pid, port string) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return "", ""
	}
	for _, e := range entries {
		if name := e.Name(); name[0] >= '1' && name[0] <= '9' {
			line, _ := os.ReadFile("/proc/" + name + "/cmdline")
			args := strings.Split(string(line), "\x00")
			if i := slices.Index(args, "--brick-name"); i >= 0 && i+1 < len(args) && args[i+1] == brick {
				if i := slices.Index(args, "--brick-port"); i >= 0 && i+1 < len(args) {
					return name, args[i+1]
				}
			}
		}
	}
	return "", ""
}

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/xattr"
)

// A blank brick can begin as a copy of another server's. Healing asks all bricks some thirty times for each file that one lacks, and a
// copy asks none. It need not be consistent: the brick is down meanwhile, so whatever changes is noted, as with any brick that is away,
// and healed once it is up. What was noted of other bricks is not copied.

// copyState is what has become of the copy that a blank brick is to begin as.
type copyState string

const (
	copyNone   copyState = ""
	copyRuns   copyState = "runs"
	copyDone   copyState = "done"
	copyFailed copyState = "failed" // the brick begins blank
)

// copyStall is how long a peer may take to send or to take a part of a copy. Before the first part, it looks at the names of all files.
const copyStall = 5 * time.Minute

// brickCopy is a copy that is being made.
type brickCopy struct {
	stop  context.CancelFunc
	ended chan struct{} // closed at the end
	err   error         // then
}

func (c *brickCopy) state() copyState {
	if c == nil {
		return copyNone
	}
	select {
	case <-c.ended:
	default:
		return copyRuns
	}
	if c.err != nil {
		return copyFailed
	}
	return copyDone
}

// copyDir is where a copy is made, beside the brick.
func copyDir(brick string) string {
	return filepath.Join(filepath.Dir(brick), "."+filepath.Base(brick)+".copy")
}

// beginCopy begins to copy another server's brick.
func (g *glusterUnit) beginCopy(from facts.Peer) {
	ctx, stop := context.WithCancel(context.Background())
	c := &brickCopy{stop: stop, ended: make(chan struct{})}
	g.copy = c
	go func() {
		defer close(c.ended)
		if c.err = g.copyBrick(ctx, from); c.err != nil && ctx.Err() == nil {
			g.node.Log("copy the brick of %s: %v; this node's begins blank", from.Name, c.err)
			os.RemoveAll(copyDir(g.params.Brick))
		}
	}()
}

func (g *glusterUnit) close() {
	if g.copy != nil {
		g.copy.stop()
		<-g.copy.ended
	}
}

func (g *glusterUnit) copyBrick(ctx context.Context, from facts.Peer) error {
	dir := copyDir(g.params.Brick)
	if err := os.RemoveAll(dir); err != nil { // of an attempt that was interrupted
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	in, err := g.fetch(ctx, from)
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := exec.CommandContext(ctx, "tar", "--extract", "--file=-", "--directory="+dir, "--preserve-permissions", "--same-owner", "--numeric-owner",
		"--xattrs", "--xattrs-include=*", "--acls")
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, firstLine(out))
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // the archive is whole, and its sender has failed
		return err
	}
	if err := linkGFIDs(dir); err != nil {
		return err
	}
	// To the disk before it counts: what is lost with the power would be noted nowhere.
	_, err = run(ctx, nil, "sync", "-f", dir)
	return err
}

// firstLine is the first line of what a program printed: what follows is often its consequence.
func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// fetchBrick asks a peer's agent for the content of its brick, as an archive.
func fetchBrick(ctx context.Context, id identity, from facts.Peer, port int) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(from.IP, strconv.Itoa(port))+facts.BrickPath, nil)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{TLSClientConfig: id.client(from.Name), DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: pollLimit}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return stallConn{conn}, nil
	}}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("%s answered %s: %s", from.Name, resp.Status, firstLine(said))
	}
	return resp.Body, nil
}

// stallConn is a connection that fails once nothing has come for copyStall.
type stallConn struct{ net.Conn }

func (c stallConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(copyStall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// serveBrick answers with the content of the brick, as an archive of tar's, without what is noted of other bricks and without GlusterFS'
// own folder.
func (g *glusterUnit) serveBrick(w http.ResponseWriter, r *http.Request) {
	if !g.sending.TryLock() {
		http.Error(w, "the brick is being sent to another server", http.StatusTooManyRequests)
		return
	}
	defer g.sending.Unlock()
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Time{}) // the server's timeouts must not end a long response
	control.SetWriteDeadline(time.Time{})
	brick := g.params.Brick
	// tar leaves sockets out. Those that are made from now on are noted.
	out, err := run(r.Context(), nil, "find", brick, "-xdev", "-path", filepath.Join(brick, ".glusterfs"), "-prune", "-o", "-type", "s", "-print", "-quit")
	if raced(err) {
		err = nil
	}
	if err == nil && len(out) > 0 {
		err = fmt.Errorf("%s is a socket, which cannot be sent", strings.TrimSpace(string(out)))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	cmd := exec.CommandContext(r.Context(), "nice", "tar", "--create", "--file=-", "--directory="+brick, "--format=posix", "--numeric-owner", "--sparse", "--one-file-system",
		"--xattrs", "--xattrs-include=*", "--xattrs-exclude=trusted.afr.*", "--xattrs-exclude="+volumeIDXattr, "--acls", "--anchored", "--exclude=./.glusterfs", ".")
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.Stdout = stallWriter{w, control}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := cmd.Run(); err != nil && !raced(err) {
		g.node.Log("send the brick: tar: %v: %s", err, firstLine(said.Bytes()))
		panic(http.ErrAbortHandler) // or it would look whole
	}
}

// raced tells whether find or tar failed only because files have changed, or gone, while it read them: then it ends with 1. That is noted,
// and healed.
func raced(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == 1
}

// stallWriter fails once nothing has been taken for copyStall.
type stallWriter struct {
	w       io.Writer
	control *http.ResponseController
}

func (s stallWriter) Write(b []byte) (int, error) {
	s.control.SetWriteDeadline(time.Now().Add(copyStall))
	return s.w.Write(b)
}

// linkGFIDs makes GlusterFS' own names of all files and folders in a brick: .glusterfs/AB/CD/GFID, where the file's gfid begins with ABCD. It is
// a hard link to a file, and for a folder a symbolic link to its name in its parent's (xlators/storage/posix, posix-handle.c). It fails if a
// folder is there twice, because it was renamed while it was copied.
func linkGFIDs(brick string) error {
	own := filepath.Join(brick, ".glusterfs")
	gfids := map[string]string{brick: rootGFID} // of folders
	made := map[string]bool{}
	if err := os.Mkdir(own, 0o600); err != nil {
		return err
	}
	return filepath.WalkDir(brick, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == own:
			return filepath.SkipDir
		case path == brick:
			return nil
		}
		b := make([]byte, 16)
		if n, err := xattr.Lget(path, "trusted.gfid", b); err != nil {
			return fmt.Errorf("%s: read its gfid: %w", path, err)
		} else if n != len(b) {
			return fmt.Errorf("%s: its gfid has %d bytes", path, n)
		}
		gfid := uuidText(b)
		hash := filepath.Join(own, gfid[:2], gfid[2:4])
		if !made[hash] {
			if err := os.MkdirAll(hash, 0o700); err != nil {
				return err
			}
			made[hash] = true
		}
		handle := filepath.Join(hash, gfid)
		if e.IsDir() {
			parent := gfids[filepath.Dir(path)]
			gfids[path] = gfid
			return os.Symlink(filepath.Join("../..", parent[:2], parent[2:4], parent, filepath.Base(path)), handle)
		}
		err = os.Link(path, handle)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		is, err := os.Lstat(path)
		if err != nil {
			return err
		}
		was, err := os.Lstat(handle)
		if err == nil && !os.SameFile(is, was) {
			err = fmt.Errorf("%s: another file has its gfid, %s", path, gfid)
		}
		return err
	})
}

// adopt makes a copy the brick.
func adopt(brick, volumeID string) error {
	dir := copyDir(brick)
	if err := setVolumeID(dir, volumeID); err != nil {
		return err
	}
	return os.Rename(dir, brick)
}

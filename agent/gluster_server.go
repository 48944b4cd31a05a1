package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

// glusterServer is the node's glusterd and its brick. The simulator has one of its own.
type glusterServer interface {
	unitNames() []string
	// look observes and changes nothing. unit is what systemd says of glusterd: "active" or another of its words.
	look(ctx context.Context) (r glusterReport, unit string, err error)
	// do takes a step. If it is interrupted anywhere, it can be repeated.
	do(ctx context.Context, step glusterStep) error
	// close ends a copy that is being made.
	close()
}

// notYet is the error of a step that cannot be taken yet: it says what for.
type notYet string

func (e notYet) Error() string { return "waiting " + string(e) }

// glusterUnit is the server as a systemd unit runs it.
type glusterUnit struct {
	node   Node
	params *facts.GlusterParams
	seen   glusterReport

	info  [2]fileStamp // of the volume's file below WorkDir, and its folder, when it was last asked for
	asked time.Time
	brick brickProcess

	fetch   func(ctx context.Context, from facts.Peer) (io.ReadCloser, error) // a peer's brick, as serveBrick answers
	copy    *brickCopy                                                        // of another server's brick; nil: none was begun
	sending sync.Mutex                                                        // held while the brick is sent to another server
}

func (g *glusterUnit) unitNames() []string { return []string{g.params.Unit} }

func (g *glusterUnit) look(ctx context.Context) (glusterReport, string, error) {
	var r glusterReport
	if err := g.lookAtState(&r); err != nil {
		return r, "", err
	}
	u, err := unitState(ctx, g.params.Unit)
	if err != nil {
		return r, "", err
	}
	if u.Active == "failed" {
		r.Fault = cmp.Or(lastLine(ctx, g.params.Unit), u.Result)
	}
	if u.Active == "active" {
		r.Volume, r.Stored, err = g.volume(ctx)
		r.Running = err == nil
		noteAnswer(g.params.Unit, ctx.Err() == nil)
		if err != nil {
			r.Fault = err.Error()
		}
	}
	if err := g.lookAtBrick(ctx, &r); err != nil {
		return r, "", err
	}
	r.Copy = g.copy.state()
	g.seen = r
	return r, u.Active, nil
}

// lookAtState reads what glusterd has written down about itself.
func (g *glusterUnit) lookAtState(r *glusterReport) error {
	info, err := readStored(filepath.Join(g.params.WorkDir, "glusterd.info"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.UUID = info["UUID"]
	r.OpVersion, _ = strconv.Atoi(info["operating-version"])
	for _, name := range []string{"peers", "vols"} {
		entries, err := os.ReadDir(filepath.Join(g.params.WorkDir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		r.Used = r.Used || len(entries) > 0
		if name == "peers" {
			for _, e := range entries {
				peer, err := readStored(filepath.Join(g.params.WorkDir, name, e.Name()))
				if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may have gone meanwhile
					return err
				}
				switch {
				case peer["uuid"] != e.Name():
				case befriended(peer):
					r.Pool = append(r.Pool, e.Name())
				default:
					r.Rejected = append(r.Rejected, e.Name())
				}
			}
		}
	}
	return nil
}

// readStored reads a file of glusterd's: lines of NAME=VALUE.
func readStored(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			m[k] = v
		}
	}
	return m, nil
}

// befriended tells whether what glusterd has stored of a peer says that it belongs to the pool, and is neither rejected nor just being taken
// into it or removed.
func befriended(peer map[string]string) bool { return peer["state"] == "3" }

// fileStamp tells whether a file or a folder's list has changed.
type fileStamp struct {
	modified time.Time
	size     int64
}

func stampOf(path string) fileStamp {
	fi, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{fi.ModTime(), fi.Size()}
}

// volume asks glusterd for the volume, or repeats its last answer while the file that glusterd keeps about the volume
// has not changed, and glusterd answers. It returns nil when there is no volume.
func (g *glusterUnit) volume(ctx context.Context) (vol *glusterVolume, stored []string, err error) {
	// In the middle of a change, before it stores anything else, glusterd writes files for the bricks.
	dir := filepath.Join(g.params.WorkDir, "vols", g.params.Volume)
	now := [2]fileStamp{stampOf(filepath.Join(dir, "info")), stampOf(dir)}
	if g.seen.Running && now == g.info {
		age := time.Since(g.asked)
		if age < infoInterval || age < infoCalm && pingGlusterd(ctx, glusterdSocket) == nil {
			return g.seen.Volume, g.seen.Stored, nil
		}
	}
	out, err := run(ctx, nil, "gluster", "--mode=script", "--xml", "volume", "info")
	if err != nil {
		return nil, nil, fmt.Errorf("ask glusterd: %w", cliFault(out, err))
	}
	volumes, err := parseVolumes(out)
	if err != nil {
		return nil, nil, fmt.Errorf("ask glusterd: %w", err)
	}
	if vol = volumes[g.params.Volume]; vol != nil {
		if stored, err = readVolume(dir, g.params.Volume, vol); err != nil {
			return nil, nil, fmt.Errorf("read what glusterd has stored: %w", err)
		}
	}
	g.info, g.asked = now, time.Now()
	return vol, stored, nil
}

// readVolume completes a volume, as glusterd knows it, with what glusterd keeps in its folder and does not answer: its version and the ids of
// the bricks. It returns the bricks that are stored, in the order of their ids, if these are others. Those of which clients are not told
// do not count: whenever a peer connects anew, glusterd stores the volume as it is in its memory, also in the middle of a change.
func readVolume(dir, name string, vol *glusterVolume) (stored []string, err error) {
	info, err := readStored(filepath.Join(dir, "info"))
	if err != nil {
		return nil, err
	}
	if vol.Version, err = strconv.Atoi(info["version"]); err != nil || vol.Version < 0 {
		return nil, fmt.Errorf("%s: version %q", filepath.Join(dir, "info"), info["version"])
	}
	entries, err := os.ReadDir(filepath.Join(dir, "bricks"))
	if err != nil {
		return nil, err
	}
	known := map[string]int{}
	for _, e := range entries {
		b, err := readStored(filepath.Join(dir, "bricks", e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		if id, ok := strings.CutPrefix(b["brick-id"], name+"-client-"); ok {
			if n, err := strconv.Atoi(id); err == nil && n >= 0 {
				known[b["hostname"]+":"+b["path"]] = n
			}
		}
	}
	told, err := clientBricks(filepath.Join(dir, name+".tcp-fuse.vol"))
	if err != nil {
		return nil, err
	}
	next := 0
	for b, id := range known {
		next = max(next, id+1)
		if told == nil || slices.Contains(told, b) || !slices.Contains(vol.Bricks, b) {
			stored = append(stored, b)
		}
	}
	slices.SortFunc(stored, func(a, b string) int { return cmp.Compare(known[a], known[b]) })
	same := len(stored) == len(vol.Bricks)
	for _, b := range vol.Bricks {
		id, ok := known[b]
		if !ok { // in memory, glusterd has given it the next one
			same, id = false, next
			next++
		}
		vol.IDs = append(vol.IDs, id)
	}
	if same {
		return nil, nil
	}
	return stored, nil
}

// clientBricks returns the bricks in the file that glusterd keeps for clients. It is nil if there is no such file.
func clientBricks(path string) (bricks []string, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	bricks = []string{}
	host, dir := "", ""
	for line := range strings.Lines(string(data)) {
		switch f := strings.Fields(line); {
		case len(f) == 3 && f[1] == "remote-host":
			host = f[2]
		case len(f) == 3 && f[1] == "remote-subvolume":
			dir = f[2]
		case len(f) == 1 && f[0] == "end-volume":
			if host != "" && dir != "" {
				bricks = append(bricks, host+":"+dir)
			}
			host, dir = "", ""
		}
	}
	return bricks, nil
}

// glusterdSocket is where glusterd takes commands.
const glusterdSocket = "/var/run/glusterd.socket"

// pingGlusterd checks that glusterd answers, as its clients and peers do: with procedure 2 of the program GF-DUMP, over ONC RPC (RFC 5531).
// It logs nothing, and takes no lock.
func pingGlusterd(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	const (
		call, reply         = 0, 1
		rpc, program, ping  = 2, 123451501, 2
		accepted, succeeded = 0, 0
		id                  = 1
	)
	var request []byte
	for _, word := range []uint32{1<<31 | 40, id, call, rpc, program, 1, ping, 0, 0, 0, 0} { // the only fragment, of 40 bytes; no credentials
		request = binary.BigEndian.AppendUint32(request, word)
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	answer := make([]byte, 28) // up to the status; what follows is closed away
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	word := func(i int) uint32 { return binary.BigEndian.Uint32(answer[4*i:]) }
	if word(1) != id || word(2) != reply || word(3) != accepted || word(6) != succeeded { // 4 and 5: an empty verifier
		return fmt.Errorf("%s: what answers there is no glusterd", socket)
	}
	return nil
}

// cliFault is why the gluster command line failed: it writes that where it writes its results.
func cliFault(out []byte, err error) error {
	if s := strings.TrimSpace(string(out)); s != "" && !strings.HasPrefix(s, "<?xml") {
		return errors.New(s)
	}
	return err
}

// parseVolumes reads the answer to "gluster --xml volume info".
func parseVolumes(data []byte) (map[string]*glusterVolume, error) {
	var out struct {
		OpRet    int    `xml:"opRet"`
		OpErrstr string `xml:"opErrstr"`
		Volumes  []struct {
			Name   string `xml:"name"`
			ID     string `xml:"id"`
			Status int    `xml:"status"`
			Bricks []struct {
				Name string `xml:"name"`
			} `xml:"bricks>brick"`
			Options []struct {
				Name  string `xml:"name"`
				Value string `xml:"value"`
			} `xml:"options>option"`
		} `xml:"volInfo>volumes>volume"`
	}
	if err := xml.NewDecoder(bytes.NewReader(data)).Decode(&out); err != nil {
		return nil, fmt.Errorf("answer is not XML: %w", err)
	}
	if out.OpRet != 0 {
		return nil, errors.New(cmp.Or(out.OpErrstr, fmt.Sprintf("error %d", out.OpRet)))
	}
	m := map[string]*glusterVolume{}
	for _, v := range out.Volumes {
		if v.Name == "" || v.ID == "" {
			return nil, errors.New("a volume without name or id")
		}
		vol := &glusterVolume{ID: v.ID, Status: v.Status, Options: map[string]string{}}
		for _, b := range v.Bricks {
			vol.Bricks = append(vol.Bricks, b.Name)
		}
		for _, o := range v.Options {
			vol.Options[o.Name] = o.Value
		}
		m[v.Name] = vol
	}
	return m, nil
}

func (g *glusterUnit) do(ctx context.Context, step glusterStep) error {
	ctx, cancel := context.WithTimeout(ctx, cliLimit)
	defer cancel()
	vol := g.params.Volume
	switch step.do {
	case glusterIdentify:
		return g.identify(ctx, step.version, step.servers)
	case glusterStartUnit:
		return startUnit(ctx, g.params.Unit)
	case glusterMakeBrick:
		return makeBrick(g.params.Brick)
	case glusterClear:
		return clearBrick(g.params.Brick)
	case glusterKeep:
		return os.Remove(freshMark(g.params.Brick))
	case glusterCreate:
		args := []string{"create", vol}
		if len(step.servers) > 1 {
			args = append(args, "replica", strconv.Itoa(len(step.servers)))
		}
		for _, n := range step.servers {
			args = append(args, n+":"+g.params.Brick)
		}
		// Every server has just reported an empty brick on its data disk. Without force, the remains of an interrupted attempt
		// would count as a volume.
		err := g.change(ctx, step.do, append(args, "force")...)
		if err != nil && strings.Contains(err.Error(), "not connected") {
			return notYet(fmt.Sprintf("for the servers' glusterd to find each other: %v", err))
		}
		return err
	case glusterSet:
		return g.change(ctx, step.do, append([]string{"set", vol}, step.options...)...)
	case glusterStart:
		return g.change(ctx, step.do, "start", vol)
	case glusterBlame:
		return blame(g.params.Brick, vol, step.brick)
	case glusterCopy:
		g.beginCopy(step.from)
	case glusterRestore:
		if g.copy.state() != copyDone {
			return restore(g.params.Brick, g.seen.Volume.ID)
		}
		if g.copy.err = adopt(g.params.Brick, g.seen.Volume.ID); g.copy.err != nil {
			return g.copy.err
		}
		g.copy = nil
	case glusterForce:
		return g.change(ctx, step.do, "start", vol, "force")
	case glusterProbe:
		return g.gluster(ctx, step.do, "peer", "probe", step.server)
	case glusterAdd:
		// Not by force: glusterd then checks that all other bricks are up.
		return g.change(ctx, step.do, "add-brick", vol, "replica", strconv.Itoa(step.replicas), step.server+":"+g.params.Brick)
	case glusterRemove:
		return g.change(ctx, step.do, "remove-brick", vol, "replica", strconv.Itoa(step.replicas), step.server+":"+g.params.Brick, "force")
	case glusterDetach:
		peer, err := readStored(filepath.Join(g.params.WorkDir, "peers", step.server))
		if err != nil {
			return err
		}
		args := []string{"peer", "detach", peer["hostname1"]}
		if step.force {
			args = append(args, "force")
		}
		return g.gluster(ctx, step.do, args...)
	case glusterStop:
		return stopUnit(ctx, g.params.Unit)
	case glusterHeal:
		// The self-heal daemons check every ten minutes on their own; this only speeds it up.
		if err := g.change(ctx, step.do, "heal", vol); err != nil {
			g.node.Log("%v", err)
		}
	}
	return nil
}

// change makes a change to a volume.
func (g *glusterUnit) change(ctx context.Context, do glusterDo, args ...string) error {
	return g.gluster(ctx, do, append([]string{"volume"}, args...)...)
}

// gluster makes a change through gluster's command line.
func (g *glusterUnit) gluster(ctx context.Context, do glusterDo, args ...string) error {
	g.asked = time.Time{} // query again, whatever the result
	out, err := run(ctx, nil, append([]string{"gluster", "--mode=script"}, args...)...)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", do, cliFault(out, err))
	if strings.Contains(err.Error(), "Another transaction is in progress") {
		return notYet("for a change that another server makes to the volume to end")
	}
	return err
}

// identify writes glusterd's identity and its pool, before it first starts. The identity comes last: while it is
// missing, this is done again.
func (g *glusterUnit) identify(ctx context.Context, version int, pool []string) error {
	if version == 0 {
		out, err := run(ctx, nil, "glusterd", "--version")
		if err != nil {
			return err
		}
		if version, err = opVersion(string(out)); err != nil {
			return err
		}
	}
	dir := filepath.Join(g.params.WorkDir, "peers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// glusterd takes every file in there for a peer, including the temporary files of interrupted writes.
	unfinished, err := filepath.Glob(filepath.Join(dir, "*.tmp*"))
	if err != nil {
		return err
	}
	for _, path := range unfinished {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for _, n := range pool {
		uuid := glusterUUID(g.node.Facts.ClusterID, n)
		path := filepath.Join(dir, uuid)
		if peer, err := readStored(path); err == nil && befriended(peer) {
			continue // glusterd's own file may have more in it
		}
		// State 3: befriended.
		if err := atomicfile.Write(path, fmt.Appendf(nil, "uuid=%s\nstate=3\nhostname1=%s\n", uuid, n), 0o600); err != nil {
			return err
		}
	}
	own := glusterUUID(g.node.Facts.ClusterID, g.node.Facts.Node.Name)
	if g.seen.UUID == own {
		return nil
	}
	return atomicfile.Write(filepath.Join(g.params.WorkDir, "glusterd.info"), fmt.Appendf(nil, "UUID=%s\noperating-version=%d\n", own, version), 0o600)
}

// opVersion returns the highest operating version of a GlusterFS release, from what glusterd --version prints.
func opVersion(text string) (int, error) {
	fields := strings.Fields(text)
	if len(fields) >= 2 && fields[0] == "glusterfs" {
		major, _, _ := strings.Cut(fields[1], ".")
		if n, err := strconv.Atoi(major); err == nil && n >= 4 && n < 1000 {
			return n * 10000, nil
		}
	}
	return 0, fmt.Errorf("glusterd --version says %q, which is not a release that this agent knows", strings.TrimSpace(text))
}

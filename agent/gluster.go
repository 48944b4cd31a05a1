package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

const (
	cliLimit     = 60 * time.Second // one change made through the gluster command line
	infoInterval = 15 * time.Second // between two looks at an unchanged volume; each costs some 80 ms of a core
	offlineLimit = 3 * time.Second  // glusterd gets this long to start the brick by itself
	healInterval = 10 * time.Second // between two requests to heal

	volumeIDXattr = "trusted.glusterfs.volume-id"
	rootGFID      = "00000000-0000-0000-0000-000000000001"
)

// gluster runs a GlusterFS server and, together with its peers, one replicated volume.
//
// Nothing is probed. A node's UUID follows from the cluster and the node's name, so each node knows all of its peers'
// UUIDs and writes the pool down before its glusterd first starts, exactly as probing would have left it. A node that
// comes back with an empty disk is thereby in the pool again at once, and is given the volume by its peers' glusterd.
//
// Its brick is the dangerous part: a blank brick looks like a volume from which all files were removed, and clients
// that happen to read from it see none. So it stays down until its peers have noted on their own bricks that it lacks
// everything, in the way in which they note what a brick misses while it is away; then it is started, and the
// self-heal daemon fills it.
type gluster struct {
	node   Node
	params *facts.GlusterParams
	nodes  []string // the servers, in the spec's order
	seen   glusterReport
	unit   string // what systemd last said of glusterd

	info      fileStamp // of the volume's file below WorkDir when it was last asked for
	asked     time.Time
	brick     brickProcess
	offline   time.Time // since when a brick that should run does not; zero: it runs, or should not
	retry     backoff   // of starting the unit
	healAsked time.Time
	settled   bool              // see glusterView
	applied   map[string]string // options that were set: glusterd may write a value differently than it was given
}

// glusterReport is what a server tells its peers and the volume's clients.
type glusterReport struct {
	// UUID and OpVersion are from glusterd.info; empty and 0: glusterd has never run here.
	UUID      string         `json:"uuid,omitempty"`
	OpVersion int            `json:"op_version,omitempty"`
	Used      bool           `json:"used,omitempty"` // glusterd knows peers or volumes
	Pool      []string       `json:"pool,omitempty"` // UUIDs of the peers that glusterd knows
	Running   bool           `json:"running"`        // glusterd answers
	Fault     string         `json:"fault,omitempty"`
	Volume    *glusterVolume `json:"volume,omitempty"`
	Brick     brickState     `json:"brick"`
	BrickID   string         `json:"brick_id,omitempty"` // the volume that the brick says it belongs to
	Online    bool           `json:"online"`             // the brick's process accepts connections
	Pending   int            `json:"pending"`            // entries that other bricks lack, as this brick knows
	// Blames lists the bricks, by index in the volume, that this brick holds to lack everything.
	Blames []int `json:"blames,omitempty"`
}

// brickState is what is in the brick's folder.
type brickState string

const (
	brickNone  brickState = "none"  // there is no folder
	brickBare  brickState = "bare"  // the folder is empty
	brickEmpty brickState = "empty" // it is prepared for a volume, which has stored nothing in it yet
	brickData  brickState = "data"
)

// glusterVolume is a volume as glusterd knows it.
type glusterVolume struct {
	ID      string            `json:"id"`
	Status  int               `json:"status"` // 0: created, 1: started, 2: stopped
	Bricks  []string          `json:"bricks"` // HOST:PATH
	Options map[string]string `json:"options,omitempty"`
}

const (
	volumeCreated = 0
	volumeStarted = 1
)

// serves tells whether this server does its part for the volume's clients.
func (r glusterReport) serves() bool {
	return r.Running && r.Online && r.Volume != nil && r.Volume.Status == volumeStarted
}

// lost tells whether the server's brick is in the volume but blank: its disk was replaced. The volume's id alone is no
// proof of the contrary: glusterd puts it on a bare folder when a peer starts its own brick by force.
func (r glusterReport) lost() bool {
	return r.Volume != nil && r.Brick != brickData && (r.Brick != brickEmpty || r.BrickID != r.Volume.ID)
}

func newGluster(n Node, _ string, p *facts.GlusterParams) Component {
	servers := []facts.Peer{n.Facts.Node}
	for _, peer := range n.Facts.Peers {
		if peer.Role == n.Facts.Node.Role {
			servers = append(servers, peer)
		}
	}
	slices.SortFunc(servers, func(a, b facts.Peer) int { return cmp.Compare(a.Index, b.Index) })
	g := &gluster{node: n, params: p, applied: map[string]string{}}
	for _, s := range servers {
		g.nodes = append(g.nodes, s.Name)
	}
	return g
}

// glusterUUID derives a node's UUID from its cluster and name, as version 5 UUIDs are derived (RFC 4122).
func glusterUUID(clusterID, node string) string {
	space, err := hex.DecodeString(strings.ReplaceAll(clusterID, "-", ""))
	if err != nil {
		space = []byte(clusterID)
	}
	h := sha1.Sum(append(space, node...))
	h[6] = h[6]&0x0f | 0x50
	h[8] = h[8]&0x3f | 0x80
	return uuidText(h[:16])
}

func uuidText(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// glusterView is all that a decision is based on.
type glusterView struct {
	self   string
	nodes  []string          // the servers, in the spec's order, self included
	uuids  map[string]string // by node
	params *facts.GlusterParams
	own    glusterReport
	heard  map[string]glusterReport // peers that answered
	unit   string                   // what the unit is doing; "active" or systemd's word
	// What must not be repeated too soon.
	startHeld time.Duration // starting the unit, or the brick
	healHeld  time.Duration
	applied   map[string]string
	// settled: since this node's agent started, nothing was left to heal at least once. Later there may well be, for
	// a moment with each write, or while another server is away.
	settled bool
}

// glusterStep is what to do next.
type glusterStep struct {
	do      glusterDo
	version int      // for glusterIdentify: the pool's operating version; 0: the highest that glusterd knows
	brick   int      // for glusterBlame: index in the volume
	options []string // for glusterSet: alternately names and values
}

type glusterDo string

const (
	glusterNothing   glusterDo = ""
	glusterIdentify  glusterDo = "identify" // write glusterd.info and the pool
	glusterStartUnit glusterDo = "start glusterd"
	glusterMakeBrick glusterDo = "make the brick's folder"
	glusterCreate    glusterDo = "create the volume"
	glusterSet       glusterDo = "set options"
	glusterStart     glusterDo = "start the volume"
	glusterBlame     glusterDo = "note that a brick lacks everything"
	glusterRestore   glusterDo = "give the blank brick its identity"
	glusterForce     glusterDo = "start the brick"
	glusterHeal      glusterDo = "heal"
)

// decideGluster chooses the next step.
func decideGluster(v glusterView) (glusterStep, facts.Status) {
	own := v.own
	if own.UUID != v.uuids[v.self] && own.UUID != "" && own.Used {
		return glusterStep{}, stopf("glusterd's state in %s is of another server (UUID %s, this node's is %s); attach the node's own data disk", v.params.WorkDir, own.UUID, v.uuids[v.self])
	}
	if !own.Running {
		inPool := !slices.ContainsFunc(v.nodes, func(n string) bool { return n != v.self && !slices.Contains(own.Pool, v.uuids[n]) })
		switch {
		case v.unit != "inactive" && v.unit != "failed":
			return glusterStep{}, workf("%s is %s; %s", v.params.Unit, v.unit, cmp.Or(own.Fault, "it does not answer yet"))
		case own.UUID != v.uuids[v.self] || !inPool:
			return glusterStep{do: glusterIdentify, version: poolVersion(v.heard)}, workf("writing down the pool of servers")
		case v.startHeld > 0 && v.unit == "failed":
			return glusterStep{}, facts.Status{State: facts.Failed, Detail: fmt.Sprintf("%s failed: %s; next start in %d s", v.params.Unit, own.Fault, seconds(v.startHeld))}
		case v.startHeld > 0:
			return glusterStep{}, workf("starting %s", v.params.Unit)
		}
		return glusterStep{do: glusterStartUnit}, workf("starting %s", v.params.Unit)
	}
	for name, r := range v.heard {
		if r.Volume != nil && own.Volume != nil && r.Volume.ID != own.Volume.ID {
			return glusterStep{}, stopf("volume %s exists twice: %s has %s, this node has %s", v.params.Volume, name, r.Volume.ID, own.Volume.ID)
		}
	}
	if own.Volume != nil {
		return decideVolume(v)
	}
	return decideForming(v)
}

// poolVersion is the lowest operating version among the heard servers, 0 when there is none: a newer image must not
// raise it for servers that do not know it.
func poolVersion(heard map[string]glusterReport) int {
	low := 0
	for _, r := range heard {
		if r.OpVersion > 0 && (low == 0 || r.OpVersion < low) {
			low = r.OpVersion
		}
	}
	return low
}

// decideForming chooses the next step of a server that knows no volume.
func decideForming(v glusterView) (glusterStep, facts.Status) {
	own := v.own
	for _, n := range v.nodes {
		if r, ok := v.heard[n]; ok && r.Volume != nil {
			return glusterStep{}, waitf("for %s's glusterd to hand over volume %s", n, v.params.Volume)
		}
	}
	var missing, starting []string
	for _, n := range v.nodes {
		r, ok := v.heard[n]
		switch {
		case n == v.self:
			r = own
		case !ok:
			missing = append(missing, n)
			continue
		case !r.Running || r.Brick == brickNone:
			starting = append(starting, n)
			continue
		}
		if r.Brick == brickData {
			return glusterStep{}, stopf("brick %s on %s holds files (of volume %s), but no server that was heard knows a volume; restore %s on one of them", v.params.Brick, n, cmp.Or(r.BrickID, "none"), v.params.WorkDir)
		}
	}
	switch {
	case len(missing) > 0:
		// One of them may know the volume.
		return glusterStep{}, waitf("for %s (not heard) to create volume %s together", strings.Join(missing, ", "), v.params.Volume)
	case own.Brick == brickNone:
		return glusterStep{do: glusterMakeBrick}, workf("making the brick's folder")
	case len(starting) > 0:
		return glusterStep{}, waitf("for %s to start glusterd and make the brick", strings.Join(starting, ", "))
	case v.nodes[0] != v.self:
		return glusterStep{}, waitf("for %s to create volume %s", v.nodes[0], v.params.Volume)
	}
	return glusterStep{do: glusterCreate}, workf("creating volume %s", v.params.Volume)
}

// decideVolume chooses the next step of a server that knows the volume.
func decideVolume(v glusterView) (glusterStep, facts.Status) {
	own, vol := v.own, v.own.Volume
	index := slices.Index(vol.Bricks, v.self+":"+v.params.Brick)
	if index < 0 {
		return glusterStep{}, stopf("volume %s exists without this node's brick %s:%s; add it by hand", v.params.Volume, v.self, v.params.Brick)
	}
	if own.BrickID != "" && own.BrickID != vol.ID && own.Brick == brickData {
		return glusterStep{}, stopf("brick %s holds files of another volume (%s, ours is %s)", v.params.Brick, own.BrickID, vol.ID)
	}
	if own.BrickID == "" && own.Brick == brickData {
		return glusterStep{}, stopf("brick %s holds files that no volume has stored; move them away", v.params.Brick)
	}
	if own.lost() {
		return decideLost(v, index)
	}
	online, pending := 0, own.Pending
	leader, blamed := true, false
	var away []string
	for _, n := range v.nodes {
		r, heard := v.heard[n]
		if n == v.self {
			r, heard = own, true
		}
		if heard && r.Running && slices.Index(v.nodes, n) < slices.Index(v.nodes, v.self) {
			leader = false
		}
		pending = max(pending, r.Pending)
		blamed = blamed || heard && slices.Contains(r.Blames, index)
		if r.serves() {
			online++
		} else {
			away = append(away, n)
		}
		// Whoever holds data notes down what a replaced server lacks, before that server's brick may start.
		if i := slices.Index(vol.Bricks, n+":"+v.params.Brick); heard && r.lost() && own.Brick == brickData && i >= 0 && !slices.Contains(own.Blames, i) {
			return glusterStep{do: glusterBlame, brick: i}, workf("noting that %s's brick is blank", n)
		}
	}
	if leader {
		if options := optionsToSet(v); len(options) > 0 {
			return glusterStep{do: glusterSet, options: options}, workf("setting options of volume %s", v.params.Volume)
		}
	}
	switch {
	case vol.Status == volumeCreated && leader:
		return glusterStep{do: glusterStart}, workf("starting volume %s", v.params.Volume)
	case vol.Status == volumeCreated:
		return glusterStep{}, waitf("for volume %s to be started", v.params.Volume)
	case vol.Status != volumeStarted:
		return glusterStep{}, stopf("volume %s was stopped by an operator; gluster volume start %s", v.params.Volume, v.params.Volume)
	case !own.Online && v.startHeld > 0:
		return glusterStep{}, workf("the brick is starting")
	case !own.Online:
		return glusterStep{do: glusterForce}, workf("starting the brick, which glusterd did not do by itself")
	}
	detail := fmt.Sprintf("%d of %d bricks online", online, len(v.nodes))
	if len(away) > 0 {
		detail += ", without " + strings.Join(away, ", ")
	}
	if pending > 0 {
		// Roughly: each change of a status is a line on the console.
		bound := 10
		for bound <= pending {
			bound *= 10
		}
		detail += fmt.Sprintf(", under %d entries to heal", bound)
	}
	step := glusterStep{}
	if pending > 0 && leader && len(away) == 0 && v.healHeld == 0 {
		step.do = glusterHeal
	}
	switch {
	case online <= len(v.nodes)/2:
		return step, waitf("for a majority: %s", detail)
	case blamed || pending > 0 && !v.settled:
		// It serves; but as long as the copies differ, no other brick may be lost.
		return step, workf("catching up: %s", detail)
	}
	return step, ready(detail)
}

// decideLost chooses the next step of a server whose brick is blank while the volume exists.
func decideLost(v glusterView, index int) (glusterStep, facts.Status) {
	var missing, silent []string
	data := 0
	for _, n := range v.nodes {
		if n == v.self {
			continue
		}
		r, ok := v.heard[n]
		switch {
		case !ok:
			missing = append(missing, n)
		case r.Brick != brickData:
			// It has nothing that could be lost.
		default:
			data++
			if !slices.Contains(r.Blames, index) {
				silent = append(silent, n)
			}
		}
	}
	switch {
	case len(silent) > 0:
		return glusterStep{}, waitf("for %s to note that this node's brick is blank", strings.Join(silent, ", "))
	case data == 0 && len(missing) > 0:
		return glusterStep{}, waitf("for %s: no server that was heard has the volume's files", strings.Join(missing, ", "))
	}
	return glusterStep{do: glusterRestore}, workf("taking the blank brick back into volume %s", v.params.Volume)
}

// optionsToSet returns what differs from the volume's options, alternately names and values.
func optionsToSet(v glusterView) []string {
	want := maps.Clone(v.params.Options)
	if want == nil {
		want = map[string]string{}
	}
	want["storage.owner-uid"] = strconv.Itoa(v.params.UID)
	want["storage.owner-gid"] = strconv.Itoa(v.params.GID)
	// With it on, only the names that changed while a brick was away are healed; a blank brick lacks all.
	want["cluster.granular-entry-heal"] = "off"
	var set []string
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if want[k] == "" {
			continue // left to glusterd
		}
		if v.own.Volume.Options[k] != want[k] && v.applied[k] != want[k] {
			set = append(set, k, want[k])
		}
	}
	return set
}

func (g *gluster) unitNames() []string { return []string{g.params.Unit} }

func (g *gluster) Observe(ctx context.Context) (any, error) {
	var r glusterReport
	if err := g.lookAtState(&r); err != nil {
		return nil, err
	}
	u, err := unitState(ctx, g.params.Unit)
	if err != nil {
		return nil, err
	}
	g.unit = u.Active
	if u.Active == "failed" {
		r.Fault = cmp.Or(lastLine(ctx, g.params.Unit), u.Result)
	}
	if u.Active == "active" {
		r.Volume, err = g.volume(ctx)
		r.Running = err == nil
		noteAnswer(g.params.Unit, ctx.Err() == nil)
		if err != nil {
			r.Fault = err.Error()
		}
	}
	if err := g.lookAtBrick(ctx, &r); err != nil {
		return nil, err
	}
	g.seen = r
	return r, nil
}

// lookAtState reads what glusterd has written down about itself.
func (g *gluster) lookAtState(r *glusterReport) error {
	data, err := os.ReadFile(filepath.Join(g.params.WorkDir, "glusterd.info"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range strings.Lines(string(data)) {
		switch k, v, _ := strings.Cut(strings.TrimSpace(line), "="); k {
		case "UUID":
			r.UUID = v
		case "operating-version":
			r.OpVersion, _ = strconv.Atoi(v)
		}
	}
	for _, name := range []string{"peers", "vols"} {
		entries, err := os.ReadDir(filepath.Join(g.params.WorkDir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		r.Used = r.Used || len(entries) > 0
		if name == "peers" {
			for _, e := range entries {
				r.Pool = append(r.Pool, e.Name())
			}
		}
	}
	return nil
}

// fileStamp tells whether a file has changed.
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
// has not changed. It returns nil when there is no volume.
func (g *gluster) volume(ctx context.Context) (*glusterVolume, error) {
	now := stampOf(filepath.Join(g.params.WorkDir, "vols", g.params.Volume, "info"))
	if g.seen.Running && now == g.info && time.Since(g.asked) < infoInterval {
		return g.seen.Volume, nil
	}
	out, err := run(ctx, nil, "gluster", "--mode=script", "--xml", "volume", "info")
	if err != nil {
		return nil, fmt.Errorf("ask glusterd: %w", cliFault(out, err))
	}
	volumes, err := parseVolumes(out)
	if err != nil {
		return nil, fmt.Errorf("ask glusterd: %w", err)
	}
	g.info, g.asked = now, time.Now()
	return volumes[g.params.Volume], nil
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

// lookAtBrick completes r with what is in the brick and whether its process serves.
func (g *gluster) lookAtBrick(ctx context.Context, r *glusterReport) error {
	var err error
	if r.Brick, err = brickContent(g.params.Brick); err != nil {
		return err
	}
	if r.Brick == brickNone {
		return nil
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
	for i := range r.Volume.Bricks {
		if c, err := readChangelog(g.params.Brick, g.params.Volume, i); err == nil && c.data > 0 && c.entry > 0 {
			r.Blames = append(r.Blames, i)
		}
	}
	entries, err := os.ReadDir(indexDir(g.params.Brick))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "xattrop-") { // the file that the others are links to
			r.Pending++
		}
	}
	return nil
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

// changelog counts what a brick knows that another brick lacks of one of its files or folders. For a folder, data
// means that all of its entries must be compared.
type changelog struct{ data, metadata, entry uint32 }

func changelogName(volume string, brick int) string {
	return fmt.Sprintf("trusted.afr.%s-client-%d", volume, brick)
}

// readChangelog returns what the root of a brick says about another brick of the volume.
func readChangelog(root, volume string, brick int) (changelog, error) {
	b := make([]byte, 12)
	n, err := syscall.Getxattr(root, changelogName(volume, brick), b)
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
	// The index first: without it the note would not be acted on, and only the note is looked at afterwards.
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

// restore gives a blank brick the identity that its process demands before it serves.
func restore(brick, volumeID string) error {
	id, err := hex.DecodeString(strings.ReplaceAll(volumeID, "-", ""))
	if err != nil || len(id) != 16 {
		return fmt.Errorf("volume id %q is not a UUID", volumeID)
	}
	if err := os.MkdirAll(brick, 0o755); err != nil {
		return err
	}
	if err := syscall.Setxattr(brick, volumeIDXattr, id, 0); err != nil {
		return fmt.Errorf("brick %s: set its volume id: %w", brick, err)
	}
	// Last: with it, the brick is no longer a blank one.
	if err := os.Mkdir(filepath.Join(brick, ".glusterfs"), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// brickProcess finds the process that serves the brick. Asking glusterd instead would lock the whole pool each time.
type brickProcess struct {
	pid, start string
	port       string
	accepted   bool
}

// online tells whether the brick's process accepts connections at ip. Once it has, its being there is enough: each
// connection would leave lines in its log.
func (b *brickProcess) online(ctx context.Context, ip, brick string) bool {
	if b.pid == "" || processStart(b.pid) != b.start {
		b.accepted = false
		if b.pid, b.port = findBrick(brick); b.pid == "" {
			return false
		}
		b.start = processStart(b.pid)
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

// Step takes steps as long as the next one needs no news from the peers, so that a volume is formed in one go.
func (g *gluster) Step(ctx context.Context, w World) (facts.Status, error) {
	for {
		do, status, err := g.step(ctx, w)
		if err != nil || !slices.Contains([]glusterDo{glusterIdentify, glusterMakeBrick, glusterCreate, glusterSet}, do) || status.State != facts.Working {
			return status, err
		}
		if _, err := g.Observe(ctx); err != nil {
			return status, err
		}
	}
}

// step takes one step.
func (g *gluster) step(ctx context.Context, w World) (glusterDo, facts.Status, error) {
	v := glusterView{
		self: g.node.Facts.Node.Name, nodes: g.nodes, uuids: map[string]string{}, params: g.params, own: g.seen,
		heard: glusterReports(w, g.node.Facts.Node.Role), unit: g.unit, applied: g.applied,
		healHeld: max(0, healInterval-time.Since(g.healAsked)), settled: g.settled,
	}
	for _, n := range g.nodes {
		v.uuids[n] = glusterUUID(g.node.Facts.ClusterID, n)
	}
	started := g.seen.Running && g.seen.Volume != nil && g.seen.Volume.Status == volumeStarted
	switch {
	case !started || g.seen.Online:
		g.offline = time.Time{}
	case g.offline.IsZero():
		g.offline = time.Now()
	}
	if started {
		v.startHeld = max(0, offlineLimit-time.Since(g.offline))
	} else {
		v.startHeld = g.retry.left()
	}
	step, status := decideGluster(v)
	if status.State == facts.Ready {
		g.settled = true
		if time.Since(g.retry.until) > maxPause {
			g.retry.reset()
		}
	}
	if step.do == glusterNothing {
		return step.do, status, nil
	}
	if step.do != glusterHeal {
		g.node.Working(status.Detail)
	}
	status, err := g.take(ctx, step, status)
	if err != nil && strings.Contains(err.Error(), "Another transaction is in progress") {
		return step.do, waitf("for a change that another server makes to the volume to end"), nil
	}
	return step.do, status, err
}

// glusterReports returns what the servers of the volume report, whatever the component's name is there.
func glusterReports(w World, role string) map[string]glusterReport {
	m := map[string]glusterReport{}
	for _, p := range peersIn(w, role) {
		for name, c := range w.Reports[p.Name].Components {
			if c.Kind == "gluster" {
				if r, ok := reportsOf[glusterReport](w, name)[p.Name]; ok {
					m[p.Name] = r
				}
			}
		}
	}
	return m
}

func (g *gluster) take(ctx context.Context, step glusterStep, status facts.Status) (facts.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, cliLimit)
	defer cancel()
	volume := func(args ...string) error {
		g.asked = time.Time{} // whatever comes of it, look again
		out, err := run(ctx, nil, append([]string{"gluster", "--mode=script", "volume"}, args...)...)
		if err != nil {
			return fmt.Errorf("%s: %w", step.do, cliFault(out, err))
		}
		return nil
	}
	vol := g.params.Volume
	switch step.do {
	case glusterIdentify:
		return status, g.identify(ctx, step.version)
	case glusterStartUnit:
		g.retry.next()
		return status, startUnit(ctx, g.params.Unit)
	case glusterMakeBrick:
		return status, os.MkdirAll(g.params.Brick, 0o755)
	case glusterCreate:
		args := []string{"create", vol}
		if len(g.nodes) > 1 {
			args = append(args, "replica", strconv.Itoa(len(g.nodes)))
		}
		for _, n := range g.nodes {
			args = append(args, n+":"+g.params.Brick)
		}
		// Every server has just reported an empty brick, on its data disk. Without force, what an interrupted attempt
		// left on one would be taken for a volume.
		err := volume(append(args, "force")...)
		if err != nil && strings.Contains(err.Error(), "not connected") {
			return waitf("for the servers' glusterd to find each other: %v", err), nil
		}
		return status, err
	case glusterSet:
		if err := volume(append([]string{"set", vol}, step.options...)...); err != nil {
			return status, err
		}
		for i := 0; i < len(step.options); i += 2 {
			g.applied[step.options[i]] = step.options[i+1]
		}
	case glusterStart:
		return status, volume("start", vol)
	case glusterBlame:
		return status, blame(g.params.Brick, vol, step.brick)
	case glusterRestore:
		g.offline = time.Now().Add(-offlineLimit) // nobody else starts it
		return status, restore(g.params.Brick, g.seen.Volume.ID)
	case glusterForce:
		g.offline = time.Now()
		return status, volume("start", vol, "force")
	case glusterHeal:
		// The self-heal daemons look by themselves every ten minutes; this only hurries them.
		g.healAsked = time.Now()
		if err := volume("heal", vol); err != nil {
			g.node.Log("%v", err)
		}
	}
	return status, nil
}

// identify writes glusterd's identity and its pool, before it first starts. The identity comes last: while it is
// missing, this is done again.
func (g *gluster) identify(ctx context.Context, version int) error {
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
	// glusterd takes every file in there for a peer, also what writing one left behind when it was cut off.
	unfinished, err := filepath.Glob(filepath.Join(dir, "*.tmp*"))
	if err != nil {
		return err
	}
	for _, path := range unfinished {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for _, n := range g.nodes {
		uuid := glusterUUID(g.node.Facts.ClusterID, n)
		path := filepath.Join(dir, uuid)
		if _, err := os.Stat(path); n == g.node.Facts.Node.Name || err == nil {
			continue // what glusterd has written itself knows better
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

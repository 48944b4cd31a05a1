package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

// memberName is a file in the data folder that says that the data is the cluster's.
const memberName = ".imagegen-member"

const redisLimit = 2 * time.Second // one round of questions to a Redis or a Sentinel

// redis runs a Redis server.
//
// The agents decide only two things: which node is the first master, and in which role a stopped server starts. While servers
// run, only the Sentinels change roles.
//
// The first master is the lowest node, once all nodes have reported that they have no data. A stopped server starts in the role
// that the latest configuration known to a majority gives it; Sentinels number their configurations (the epoch). A node
// without data never becomes the master of nodes with data: the agent does not start it as one, and its priority keeps
// Sentinel from promoting it.
type redis struct {
	node   Node
	server redisServer
	decide func(redisView) (redisStep, string, facts.Status)
	view   redisReader
	retry  ensemble.Backoff
	seen   redisSeen
}

// redisServer is the node's Redis and its data. The simulator has one of its own.
type redisServer interface {
	unitNames() []string
	// look observes and changes nothing.
	look(ctx context.Context) (redisSeen, error)
	// allow lets Sentinel choose the running server.
	allow(ctx context.Context) error
	// mark notes that the data is the cluster's.
	mark(m member) error
	// start starts the server as a replica of a master or, without one, as a master.
	start(ctx context.Context, master string, hasData bool) error
	stop(ctx context.Context) error
}

// redisSeen is what a look at the server shows.
type redisSeen struct {
	redisReport
	unit   unit
	failed string // the last line of a server that failed
}

// redisReport is what a server tells the others.
type redisReport struct {
	Running bool `json:"running"` // it answers
	// HasData says that the node's data is the cluster's: it was the first master, or has been in sync with a master.
	HasData  bool   `json:"member"`
	Founder  bool   `json:"founder,omitempty"`  // it was the first master
	Epoch    int64  `json:"epoch,omitempty"`    // of its first configuration as such
	Role     string `json:"role,omitempty"`     // master or slave, as Redis has it
	Master   string `json:"master,omitempty"`   // address that a replica follows
	Synced   bool   `json:"synced,omitempty"`   // a replica that has all of its master's data
	Replicas int    `json:"replicas,omitempty"` // that follow a master
	Loading  bool   `json:"loading,omitempty"`  // it reads its data from the disk
	// Eligible says that Sentinel may choose the running server. One that started without the cluster's data is not,
	// until it has been in sync with a master.
	Eligible bool `json:"eligible,omitempty"`
}

// complete tells whether the node has all data, also if that is not noted yet: from when Sentinel may choose it.
func (r redisReport) complete() bool { return r.HasData || r.Eligible }

// is says what the server is among the cluster's.
func (r redisReport) is() string {
	switch {
	case !r.Running:
		return ""
	case r.Role == "slave":
		return "replica"
	}
	return r.Role
}

// member is what memberName holds.
type member struct {
	Cluster string `json:"cluster"`
	Founder bool   `json:"founder,omitempty"`
	// Epoch is the founder's first configuration epoch.
	Epoch int64 `json:"epoch,omitempty"`
}

func newRedis(n Node, _ string, p *facts.RedisParams) Component {
	server := keptServer{respServer: n.respServer(p.Port, p.TLS, p.Secret)}
	return &redis{node: n, server: &redisUnit{node: n, params: p, server: server}, decide: decideRedis}
}

func (r *redis) unitNames() []string { return r.server.unitNames() }

func (r *redis) Observe(ctx context.Context) (any, error) {
	seen, err := r.server.look(ctx)
	if err != nil {
		return nil, err
	}
	r.seen = seen
	return seen.redisReport, nil
}

// redisUnit is the server as a systemd unit runs it.
type redisUnit struct {
	node   Node
	params *facts.RedisParams
	server keptServer
	unit   unit
	failed string
}

func (r *redisUnit) unitNames() []string { return []string{r.params.Unit} }

func (r *redisUnit) look(ctx context.Context) (redisSeen, error) {
	u, err := unitState(ctx, r.params.Unit)
	if err != nil {
		return redisSeen{}, err
	}
	if u.Active == "failed" && r.unit.Active != "failed" {
		r.failed = lastLine(ctx, r.params.Unit)
	}
	r.unit = u
	m, err := r.member()
	if err != nil {
		return redisSeen{}, err
	}
	seen := redisReport{HasData: m.Cluster != "", Founder: m.Founder, Epoch: m.Epoch}
	if u.Active == "active" {
		err := r.ask(ctx, &seen)
		noteAnswer(r.params.Unit, !errors.Is(err, errSilent))
		if err != nil {
			return redisSeen{}, err
		}
	}
	return redisSeen{seen, u, r.failed}, nil
}

// member reads the mark on the data. Data of another cluster is an error: nothing is done with it.
func (r *redisUnit) member() (m member, err error) {
	path := filepath.Join(r.params.Dir, memberName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("%s: %w", path, err)
	}
	return m, ensemble.Foreign(fmt.Sprintf("the data in %s is", r.params.Dir), m.Cluster, r.node.Facts.ClusterID)
}

// ask fills in what the running server says. One that takes no connections yet is not running.
func (r *redisUnit) ask(ctx context.Context, seen *redisReport) error {
	ctx, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	answers, err := r.server.ask(ctx, []string{"INFO", "replication"}, []string{"INFO", "persistence"}, []string{"CONFIG", "GET", "replica-priority"})
	switch {
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return silentError(fmt.Sprintf("no answer from Redis within %v", redisLimit))
	case err != nil:
		var refused redisError
		if errors.As(err, &refused) || errors.Is(err, errTLS) {
			return err
		}
		return nil
	}
	info := infoFields(answers[0])
	seen.Running = true
	seen.Role = info["role"]
	seen.Loading = infoFields(answers[1])["loading"] == "1"
	priority := pairs(answers[2])["replica-priority"]
	seen.Eligible = priority != "" && priority != "0"
	if seen.Role == "slave" {
		seen.Master = info["master_host"]
		seen.Synced = info["master_link_status"] == "up" && info["master_sync_in_progress"] == "0"
	} else {
		seen.Replicas, _ = strconv.Atoi(info["connected_slaves"])
	}
	return nil
}

// redisMember is a node of the role as decisions see it.
type redisMember struct {
	ensemble.Member // heard: both of its components
	redisReport
	sentinel sentinelReport
}

// redisStep is what a server does next.
type redisStep int

const (
	redisWait    redisStep = iota
	redisFound             // note that the node is the cluster's first master; next, it leads
	redisLead              // start as the master
	redisFollow            // start as a replica
	redisAllow             // let Sentinel choose the running server
	redisStop              // stop, for good or to be started as the master
	redisBelongs           // note that the data is the cluster's
)

// redisView is all that a decision is made from.
type redisView struct {
	members []redisMember // in the spec's order, self among them
	self    int
	leaves  bool // the cluster's configuration does not name self any more, and those that it names need it no longer
	// now has the present address of the node that each known address is or was of. The members' reports are in present addresses.
	now map[string]string
}

// ensemble returns the members without their reports.
func (v redisView) ensemble() []ensemble.Member {
	members := make([]ensemble.Member, len(v.members))
	for i, m := range v.members {
		members[i] = m.Member
	}
	return members
}

func (v redisView) name(ip string) string {
	for _, m := range v.members {
		if m.IP == ip {
			return m.Name
		}
	}
	return ip
}

// decideRedis says what a server does now, as whose replica, and where things stand.
func decideRedis(v redisView) (step redisStep, master string, status facts.Status) {
	switch running := v.members[v.self].Running; {
	case v.leaves && running:
		return redisStop, "", workf("stopping: the cluster goes on without this node")
	case v.leaves:
		return redisWait, "", stopf("this node is not a member any more")
	case running:
		step, status = decideRunning(v)
		return step, "", status
	}
	me := v.members[v.self]
	if !me.Heard {
		return redisWait, "", waitf("for the Sentinel of this node")
	}
	members := v.ensemble()
	silent := ensemble.Silent(members)
	heard, formed, data := 0, false, false
	for _, m := range v.members {
		if m.Heard {
			heard++
			formed = formed || m.HasData || m.sentinel.Master != ""
		}
		data = data || m.complete()
	}
	if !formed {
		switch first := ensemble.First(members); {
		case len(silent) > 0:
			return redisWait, "", ensemble.Await(members, silent, ", who may have data")
		case first.Name != me.Name:
			return redisWait, "", waitf("for %s to become the first master", first.Name)
		}
		// One that was told to go on without this node may be about to become the first master, until it hears this node.
		for _, m := range v.members {
			if m.Heard && !m.Hears {
				return redisWait, "", waitf("for %s to hear this node", m.Name)
			}
		}
		return redisFound, "", workf("starting as the first master")
	}
	if most, _ := ensemble.Majority(members, func(i int) bool { return v.members[i].Heard }); !most && len(silent) > 0 {
		return redisWait, "", ensemble.Await(members, silent, ": with %d of %d nodes nobody knows who is the master", heard, len(v.members))
	}
	master = believedMaster(v)
	switch {
	case master == "":
		return redisWait, "", waitf("for the others to have a master")
	case master != me.IP:
		return redisFollow, master, workf("starting as a replica of %s", v.name(master))
	case !me.HasData && !data && len(silent) == 0:
		// The first master was replaced before it had a replica. All have answered, and nobody has anything.
		return redisFound, "", workf("starting as the first master again: nobody has data")
	case !me.HasData:
		return redisWait, "", waitf("for the others to choose another master: the disk of this one is empty")
	case beingReplaced(v):
		return redisWait, "", waitf("for the Sentinels, who are about to choose another master")
	}
	return redisLead, "", workf("starting as the master")
}

// decideRunning is for a server that runs, whose role the Sentinels decide.
func decideRunning(v redisView) (redisStep, facts.Status) {
	me := v.members[v.self]
	switch {
	case me.Loading:
		return redisWait, workf("reading its data from the disk")
	case me.Role == "master" && !me.HasData && me.Eligible:
		// Sentinel promoted it between the two steps that allow that and record why.
		return redisBelongs, workf("noting that the data is complete")
	case me.Role == "master" && !me.HasData:
		return redisWait, waitf("to be made a replica: it is a master without data")
	case me.Role == "master":
		return redisWait, ready(fmt.Sprintf("master with %d of %d replicas", me.Replicas, len(v.members)-1))
	case !me.Synced && isLost(v):
		return redisStop, workf("restarting as the master, which it is for Sentinel: nobody else has data")
	case !me.Synced:
		return redisWait, waitf("for the data of the master %s", v.name(me.Master))
	case !me.HasData && !me.Eligible:
		// Order matters: a crash after writing the marker but before this would leave replica-priority at 0.
		return redisAllow, workf("letting Sentinel choose this node: its data is complete")
	case !me.HasData:
		return redisBelongs, workf("noting that the data is complete")
	}
	return redisWait, ready("replica of " + v.name(me.Master))
}

// believedMaster returns the address of the master: a running one, or else the one of the latest configuration.
func believedMaster(v redisView) string {
	master, epoch := "", int64(-1)
	for i, m := range v.members {
		switch {
		case !m.Heard:
		case i != v.self && m.Running && m.Role == "master" && m.complete() && m.sentinel.follows(m.IP):
			return m.IP
		case m.sentinel.Master != "" && m.sentinel.Epoch > epoch:
			master, epoch = m.sentinel.Master, m.sentinel.Epoch
		case m.Founder && epoch < 0: // it has not set up a Sentinel yet
			master = m.IP
		}
	}
	return master
}

// beingReplaced tells whether the other nodes' Sentinels consider this node, the master, to be down and can promote another.
// Starting as the master at that moment would make two masters. Those that have another master have no vote, and the majority is one of
// all Sentinels that the candidate knows. While members are added, the candidate's quorum may be more than that.
func beingReplaced(v redisView) bool {
	down, heir, votes, needs := false, false, 0, len(v.members)
	for i, m := range v.members {
		if i == v.self || !m.Heard {
			continue
		}
		heir = heir || m.Running && m.complete() && !m.Loading
		if m.sentinel.Running && m.sentinel.Master == v.members[v.self].IP {
			if votes++; m.sentinel.Quorum == "" {
				needs = min(needs, (m.sentinel.Others+1)/2+1)
			}
			down = down || m.sentinel.Down || m.sentinel.stale // at this node's former address, nobody answers
		}
	}
	return down && heir && votes >= needs
}

// isLost tells whether all Sentinels have this node as the master, and cannot promote another, while it is a replica of one that has no
// data: it was started so before its master lost that, and nobody else knew that this had been one.
func isLost(v redisView) bool {
	me := v.members[v.self]
	lost := me.HasData && me.sentinel.Running && me.sentinel.Down
	for i, m := range v.members {
		other := i != v.self && m.Running && m.complete()
		lost = lost && (!m.Heard || m.sentinel.follows(me.IP) && !other)
	}
	most, _ := ensemble.Majority(v.ensemble(), func(i int) bool { return v.members[i].Heard && v.members[i].sentinel.Master == me.IP })
	return lost && most
}

// redisReader reads what is known of the role's nodes.
type redisReader struct {
	servers   ensemble.Reader[redisReport]
	sentinels ensemble.Reader[sentinelReport]
}

// members puts together what is known of the role's nodes. own is what this one's server is.
func (r *redisReader) members(w World, own redisReport) redisView {
	members, self := ensemble.Members(w)
	v := redisView{members: make([]redisMember, len(members)), self: self}
	for i := range members {
		m := &v.members[i]
		m.Member = members[i]
		report := w.Own
		if i != self {
			report = w.Reports[m.Name].NodeReport
		}
		var haveServer, haveSentinel bool
		m.sentinel, haveSentinel = knownOr(r.sentinels.Of(report, "sentinel"))
		if m.redisReport, haveServer = own, true; i != self {
			m.redisReport, haveServer = knownOr(r.servers.Of(report, "redis"))
		}
		m.Heard = haveServer && haveSentinel
	}
	// A Sentinel has a master's new address once the master was heard there.
	v.now = ensemble.Addresses(w, members, func(ip string) bool {
		return slices.ContainsFunc(v.members, func(m redisMember) bool { return m.sentinel.Master == ip })
	})
	for i := range v.members {
		m := &v.members[i]
		m.Master = v.present(m.Master)
		m.sentinel = v.presentReport(m.sentinel)
	}
	serve, ok := v.complete(w)
	v.leaves = ensemble.Leaves(w, 0) || ok && ensemble.Leaves(w, serve)
	return v
}

// present returns the address that the node with a former address has now.
func (v redisView) present(ip string) string { return cmp.Or(v.now[ip], ip) }

// presentReport is a Sentinel's report with the master's present address.
func (v redisView) presentReport(r sentinelReport) sentinelReport {
	if now := v.present(r.Master); now != r.Master {
		r.Master, r.stale = now, true
	}
	return r
}

// complete tells whether the members of the latest generation have the master among them, and all of its data.
func (v redisView) complete(w World) (number int, ok bool) {
	if len(w.Joint.InUse) < 2 { // as nearly always
		return 0, false
	}
	masters := 0
	number, ok = ensemble.Complete(w, v.ensemble(), func(i, _ int) bool {
		m := v.members[i]
		if m.Heard && m.Running && m.Role == "master" {
			masters++
		}
		return m.Heard && m.Running && m.HasData && !m.Loading && m.sentinel.Running && !m.sentinel.Down && (m.Role == "master" || m.Synced)
	})
	return number, ok && masters == 1
}

// settled: nobody else can be promoted once the others have stopped, or answer nobody.
func (r *redis) settled(w World) (number int, ok bool) {
	v := r.view.members(w, r.seen.redisReport)
	if number, ok = v.complete(w); !ok {
		return 0, false
	}
	for _, m := range v.members {
		if m.Answers && (!m.Heard || m.Running || m.sentinel.Running) && ensemble.Left(w, m.Name, number) {
			return 0, false
		}
	}
	return number, true
}

// knownOr takes a node that has no such component for one that has said all there is to say.
func knownOr[T any](v T, _, known bool) (T, bool) { return v, known }

func (r *redis) Step(ctx context.Context, w World) (facts.Status, error) {
	if r.seen.unit.Load == "not-found" {
		return stopf("the image has no unit %s", r.unitNames()[0]), nil
	}
	view := r.view.members(w, r.seen.redisReport)
	step, master, status := r.decide(view)
	if status.State == facts.Ready {
		r.retry.Settle(r.node.now())
	}
	switch step {
	case redisWait:
		return status, nil
	case redisAllow:
		return status, r.server.allow(ctx)
	case redisStop:
		return status, r.server.stop(ctx)
	case redisBelongs:
		return status, r.server.mark(member{Cluster: r.node.Facts.ClusterID})
	}
	if active := r.seen.unit.Active; active != "inactive" && active != "failed" {
		return workf("Redis is starting"), nil
	}
	if step == redisFound {
		return status, r.server.mark(r.founder(view))
	}
	if held := r.retry.Left(r.node.now()); held > 0 {
		if r.seen.unit.Active == "failed" {
			return ensemble.Held("Redis stopped: "+r.seen.failed, "start", held), nil
		}
		return status, nil
	}
	r.retry.Next(r.node.now())
	return status, r.server.start(ctx, master, r.seen.HasData)
}

// founder is the mark of a first master. If an operator has given nodes up, they may have data and a configuration after
// all. The epoch makes this configuration the later one, whatever failovers there were before.
func (r *redis) founder(v redisView) member {
	m := member{Cluster: r.node.Facts.ClusterID, Founder: true}
	if slices.ContainsFunc(v.members, func(m redisMember) bool { return m.GivenUp }) {
		m.Epoch = r.node.now().Unix()
	}
	return m
}

func (r *redisUnit) mark(m member) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(r.params.Dir, memberName), append(data, '\n'), 0o600)
}

func (r *redisUnit) allow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	answers, err := r.server.ask(ctx, []string{"CONFIG", "SET", "replica-priority", "100"})
	if err != nil {
		return err
	}
	if refused, ok := answers[0].(redisError); ok {
		return fmt.Errorf("let Sentinel choose this node: %w", refused)
	}
	return nil
}

func (r *redisUnit) start(ctx context.Context, master string, hasData bool) error {
	if err := r.configure(master, hasData); err != nil {
		return err
	}
	return startUnit(ctx, r.params.Unit)
}

func (r *redisUnit) stop(ctx context.Context) error { return stopUnit(ctx, r.params.Unit) }

// configure writes what the server starts with. master is empty for a master.
func (r *redisUnit) configure(master string, hasData bool) error {
	text, err := os.ReadFile(r.params.Config)
	if err != nil {
		return err
	}
	return writeOwned(r.params.RunConfig, redisConfig(text, master, r.params.Port, hasData), r.params.Owner)
}

// redisConfig adds to the rendered configuration what depends on the cluster's state.
func redisConfig(text []byte, master string, port int, hasData bool) []byte {
	b := bytes.NewBuffer(bytes.TrimRight(text, "\n"))
	b.WriteString("\n\n# Added by the agent at this start.\n")
	if master != "" {
		fmt.Fprintf(b, "replicaof %s %d\n", master, port)
		if !hasData {
			b.WriteString("# Not to be chosen as master until it has been in sync with one.\nreplica-priority 0\n")
		}
	}
	return b.Bytes()
}

// writeOwned replaces a file that a daemon owns and may rewrite.
func writeOwned(path string, data []byte, owner string) error {
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return err
	}
	return chownTo(path, owner)
}

// chownTo gives a file to "user:group".
func chownTo(path, owner string) error {
	uid, gid, err := lookupOwner(owner)
	if err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}

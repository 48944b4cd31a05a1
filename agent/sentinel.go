package agent

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

// sentinel runs a Redis Sentinel. Its configuration is written once, when the node's Redis has joined the cluster. After that
// the file is Sentinel's own: it holds the current master, the epoch, and its votes.
type sentinel struct {
	node   Node
	server sentinelServer
	decide func(sentinelReport, redisReport, redisView) (step sentinelStep, master string, status facts.Status)
	view   redisReader
	retry  ensemble.Backoff
	seen   sentinelSeen
}

// sentinelServer is the node's Sentinel. The simulator has one of its own.
type sentinelServer interface {
	unitNames() []string
	// look observes and changes nothing.
	look(ctx context.Context) (sentinelSeen, error)
	// start starts it. With a master, it first gets a configuration; otherwise, the addresses in the one that it has are corrected.
	start(ctx context.Context, master string, view redisView) error
	// failover makes it choose another master without asking other Sentinels.
	failover(ctx context.Context) error
	// outdated tells whether its configuration is not what start would make of it: it has former addresses, nodes that are no members
	// any more, or another quorum or limits.
	outdated(view redisView) (bool, error)
	stop(ctx context.Context) error
}

// sentinelSeen is what a look at the Sentinel shows.
type sentinelSeen struct {
	sentinelReport
	unit   unit
	failed string // the last line of one that failed
}

// sentinelReport is what a Sentinel knows, running or not.
type sentinelReport struct {
	Running bool   `json:"running"`          // it answers
	Master  string `json:"master,omitempty"` // address; empty: it has never been set up
	Epoch   int64  `json:"epoch,omitempty"`  // of the configuration that made that the master
	Down    bool   `json:"down,omitempty"`   // it holds the master to be down
	Others  int    `json:"others,omitempty"` // Sentinels that it knows
	// Quorum says what keeps the Sentinels from choosing a master; empty: nothing does.
	Quorum string `json:"quorum,omitempty"`
	// stale says that Master was read as the former address of a node that has another one now.
	stale bool
	// outdated says that there is no quorum, and that the other Sentinels may be at other addresses than this one knows.
	outdated bool
}

// follows tells whether the Sentinel agrees that a node is the master; one that was never set up does not object.
func (s sentinelReport) follows(ip string) bool { return s.Master == "" || s.Master == ip }

func newSentinel(n Node, _ string, p *facts.SentinelParams) Component {
	server := keptServer{respServer: n.respServer(p.Port, p.TLS, p.Secret)}
	return &sentinel{node: n, server: &sentinelUnit{node: n, params: p, server: server}, decide: decideSentinel}
}

func (s *sentinel) unitNames() []string { return s.server.unitNames() }

func (s *sentinel) Observe(ctx context.Context) (any, error) {
	seen, err := s.server.look(ctx)
	if err != nil {
		return nil, err
	}
	s.seen = seen
	return seen.sentinelReport, nil
}

// sentinelUnit is the Sentinel as a systemd unit runs it.
type sentinelUnit struct {
	node   Node
	params *facts.SentinelParams
	server keptServer
	unit   unit
	failed string
}

func (s *sentinelUnit) unitNames() []string { return []string{s.params.Unit} }

func (s *sentinelUnit) look(ctx context.Context) (sentinelSeen, error) {
	u, err := unitState(ctx, s.params.Unit)
	if err != nil {
		return sentinelSeen{}, err
	}
	if u.Active == "failed" && s.unit.Active != "failed" {
		s.failed = lastLine(ctx, s.params.Unit)
	}
	s.unit = u
	text, err := os.ReadFile(s.params.RunConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return sentinelSeen{}, err
	}
	seen := parseSentinelConfig(text, s.params.Master)
	if u.Active == "active" {
		err := s.ask(ctx, &seen)
		noteAnswer(s.params.Unit, !errors.Is(err, errSilent))
		if err != nil {
			return sentinelSeen{}, err
		}
	}
	return sentinelSeen{seen, u, s.failed}, nil
}

// parseSentinelConfig reads which master a Sentinel's configuration has, and of which epoch. Sentinel writes one
// directive a line, in lower case; it may quote values.
func parseSentinelConfig(text []byte, master string) sentinelReport {
	var r sentinelReport
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(strings.ReplaceAll(line, `"`, ""))
		if len(f) < 4 || f[0] != "sentinel" || f[2] != master {
			continue
		}
		switch f[1] {
		case "monitor":
			r.Master = f[3]
		case "config-epoch":
			r.Epoch, _ = strconv.ParseInt(f[3], 10, 64)
		}
	}
	return r
}

// ask fills in what the running Sentinel says.
func (s *sentinelUnit) ask(ctx context.Context, seen *sentinelReport) error {
	ctx, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	answers, err := s.server.ask(ctx,
		[]string{"SENTINEL", "MASTER", s.params.Master}, []string{"SENTINEL", "CKQUORUM", s.params.Master})
	switch {
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return silentError(fmt.Sprintf("no answer from Sentinel within %v", redisLimit))
	case err != nil:
		var refused redisError
		if errors.As(err, &refused) || errors.Is(err, errTLS) {
			return err
		}
		return nil
	}
	if refused, ok := answers[0].(redisError); ok {
		return fmt.Errorf("ask Sentinel for %s: %w", s.params.Master, refused)
	}
	m := pairs(answers[0])
	seen.Running = true
	seen.Master = m["ip"]
	seen.Epoch, _ = strconv.ParseInt(m["config-epoch"], 10, 64)
	seen.Others, _ = strconv.Atoi(m["num-other-sentinels"])
	for flag := range strings.SplitSeq(m["flags"], ",") {
		seen.Down = seen.Down || flag == "s_down" || flag == "o_down" || flag == "failover_in_progress"
	}
	if refused, ok := answers[1].(redisError); ok {
		seen.Quorum = strings.TrimPrefix(refused.Error(), "NOQUORUM ")
	}
	return nil
}

// sentinelStep is what a Sentinel does next.
type sentinelStep int

const (
	sentinelWait     sentinelStep = iota
	sentinelStart                 // start, with a configuration for a master if there is none yet
	sentinelFailover              // choose another master alone
	sentinelStop                  // stop, for good or to be started with present addresses
)

// decideSentinel says what a Sentinel does now, with which master, and where things stand. server is the node's own
// Redis.
func decideSentinel(seen sentinelReport, server redisReport, view redisView) (step sentinelStep, master string, status facts.Status) {
	me := view.members[view.self]
	switch {
	case view.leaves && seen.Running:
		return sentinelStop, "", workf("stopping: the cluster goes on without this node")
	case view.leaves:
		return sentinelWait, "", stopf("this node is not a member any more")
	case seen.Running && seen.stale:
		// It would take the master for dead, and promote another, for a change of addresses.
		return sentinelStop, "", workf("restarting Sentinel: the master %s has another address, %s", view.name(seen.Master), seen.Master)
	case seen.Running && seen.outdated:
		// It was started before the others were heard. It would never hear of them: they know it by a former address, too.
		return sentinelStop, "", workf("restarting Sentinel: the others have other addresses than it knows")
	case seen.Running && seen.Down:
		step, status = decideDown(seen, view)
		return step, "", status
	case seen.Running && seen.Quorum != "":
		return sentinelWait, "", waitf("for the other Sentinels: %d of %d known; %s", seen.Others, len(view.members)-1, seen.Quorum)
	case seen.Running:
		return sentinelWait, "", ready("the master is " + view.name(seen.Master))
	case !server.Running && !server.HasData && believedMaster(view) == me.IP && (seen.Master == me.IP || othersHave(view, me.IP)):
		// Redis cannot start before the Sentinels have promoted another master, and they may need this one's vote for that.
		if seen.Master != "" {
			me.IP = ""
		}
		return sentinelStart, me.IP, workf("starting Sentinel, to choose another master: the disk of this one is empty")
	case !server.Running || server.Loading:
		// Without a Redis on the nodes, Sentinels would have nothing to promote.
		return sentinelWait, "", waitf("for Redis on this node")
	case seen.Master != "":
		return sentinelStart, "", workf("starting Sentinel")
	case server.Role == "master" && server.HasData:
		return sentinelStart, me.IP, workf("setting up Sentinel with %s as the master", me.Name)
	case server.Role == "slave" && server.Synced:
		return sentinelStart, server.Master, workf("setting up Sentinel with %s as the master", view.name(server.Master))
	case server.Role == "slave" && othersHave(view, server.Master):
		// If the master dies before this replica is in sync, the Sentinels need this one's vote.
		return sentinelStart, server.Master, workf("setting up Sentinel with %s as the master, as on the others", view.name(server.Master))
	}
	return sentinelWait, "", waitf("for Redis on this node to be in sync with a master")
}

// decideDown is for a Sentinel that considers the master to be down. Sentinels usually promote another one by themselves. If
// they have no majority, only an operator can decide that the others are not coming back.
func decideDown(seen sentinelReport, view redisView) (sentinelStep, facts.Status) {
	members := view.ensemble()
	wait := waitf("for the master %s, or another", view.name(seen.Master))
	first, sentinels, answers, heir := "", 0, false, false
	for _, m := range view.members {
		answers = answers || m.IP == seen.Master && m.Answers
		if !m.Heard {
			continue
		}
		heir = heir || m.IP != seen.Master && m.Running && m.complete() && !m.Loading
		if m.sentinel.Running {
			if sentinels++; first == "" {
				first = m.Name
			}
		}
	}
	if _, can := ensemble.Majority(members, func(i int) bool { return view.members[i].Heard && view.members[i].sentinel.Running }); answers || !heir || can {
		return sentinelWait, wait
	}
	if silent := ensemble.Silent(members); len(silent) > 0 {
		return sentinelWait, ensemble.Await(members, silent, ": the master %s is down, and %d of %d Sentinels cannot choose another",
			view.name(seen.Master), sentinels, len(view.members))
	}
	if me := view.members[view.self].Name; first != me {
		return sentinelWait, waitf("for %s to choose another master than %s", first, view.name(seen.Master))
	}
	return sentinelFailover, workf("choosing another master than %s, as an operator has decided", view.name(seen.Master))
}

// othersHave tells whether the Sentinel of another node has the master.
func othersHave(view redisView, master string) bool {
	for i, m := range view.members {
		if i != view.self && m.Heard && m.sentinel.Master == master {
			return true
		}
	}
	return false
}

func (s *sentinel) Step(ctx context.Context, w World) (facts.Status, error) {
	if s.seen.unit.Load == "not-found" {
		return stopf("the image has no unit %s", s.unitNames()[0]), nil
	}
	server, _ := knownOr(s.view.servers.Of(w.Own, "redis"))
	view := s.view.members(w, server)
	seen := view.presentReport(s.seen.sentinelReport)
	if seen.Running && seen.Quorum != "" {
		var err error
		if seen.outdated, err = s.server.outdated(view); err != nil {
			return facts.Status{}, err
		}
	}
	step, master, status := s.decide(seen, server, view)
	if status.State == facts.Ready {
		s.retry.Settle(s.node.now())
	}
	if step == sentinelWait {
		return status, nil
	}
	if step == sentinelStop {
		return status, s.server.stop(ctx)
	}
	if step == sentinelFailover {
		if s.retry.Left(s.node.now()) > 0 {
			return status, nil
		}
		s.retry.Next(s.node.now())
		return status, s.server.failover(ctx)
	}
	if active := s.seen.unit.Active; active != "inactive" && active != "failed" {
		return workf("Sentinel is starting"), nil
	}
	if held := s.retry.Left(s.node.now()); held > 0 {
		if s.seen.unit.Active == "failed" {
			return ensemble.Held("Sentinel stopped: "+s.seen.failed, "start", held), nil
		}
		return status, nil
	}
	s.retry.Next(s.node.now())
	return status, s.server.start(ctx, master, view)
}

func (s *sentinelUnit) start(ctx context.Context, master string, view redisView) error {
	if master != "" {
		text, err := os.ReadFile(s.params.Config)
		if err != nil {
			return err
		}
		text = sentinelConfig(text, s.params, master, s.node.Secrets[s.params.Secret])
		text = append(text, firstEpoch(s.params, master, view)...)
		text = append(text, sentinelPeers(s.params, s.node.Facts.ClusterID, master, view)...)
		if err := atomicfile.Write(s.params.RunConfig, text, 0o600); err != nil {
			return err
		}
	} else if err := s.correct(view); err != nil {
		return err
	}
	// At every start: a crash after the write may have left a file that root owns.
	if err := chownTo(s.params.RunConfig, s.params.Owner); err != nil {
		return err
	}
	return startUnit(ctx, s.params.Unit)
}

// correct brings the configuration of a stopped Sentinel up to date with the members and their addresses.
func (s *sentinelUnit) correct(view redisView) error {
	text, corrected, err := s.corrected(view)
	if err != nil || bytes.Equal(corrected, text) {
		return err
	}
	return atomicfile.Write(s.params.RunConfig, corrected, 0o600)
}

func (s *sentinelUnit) outdated(view redisView) (bool, error) {
	text, corrected, err := s.corrected(view)
	return !bytes.Equal(corrected, text), err
}

// corrected returns the configuration as it is, and as it should be.
func (s *sentinelUnit) corrected(view redisView) (text, corrected []byte, err error) {
	if text, err = os.ReadFile(s.params.RunConfig); err != nil {
		return nil, nil, err
	}
	ids := map[string]bool{}
	for _, m := range view.members {
		ids[sentinelID(s.node.Facts.ClusterID, m.Name)] = true
	}
	return text, correctSentinelConfig(text, s.params, view.now, ids), nil
}

// correctSentinelConfig returns a configuration, as Sentinel writes it, with present addresses, quorum and limits. now has the
// present address for each known one. Servers at other addresses, and Sentinels without an ID in ids, are no members any more, and
// Sentinel would count them for ever; the master is kept in any case.
func correctSentinelConfig(text []byte, p *facts.SentinelParams, now map[string]string, ids map[string]bool) []byte {
	var b bytes.Buffer
	limits := map[string]int{"down-after-milliseconds": p.DownAfter, "failover-timeout": p.FailoverTimeout}
	listed := map[string]bool{} // servers and Sentinels; Sentinel does not start with one that is listed twice
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		bare := strings.Fields(strings.ReplaceAll(line, `"`, ""))
		change := func(i int) bool { // a word that is an address; false: it is nobody's
			present, known := now[bare[i]]
			if known && present != bare[i] {
				f[i] = strings.Replace(f[i], bare[i], present, 1)
				line = strings.Join(f, " ") + "\n"
			}
			return known
		}
		set := func(i, value int) {
			if bare[i] != strconv.Itoa(value) {
				f[i] = strconv.Itoa(value)
				line = strings.Join(f, " ") + "\n"
			}
		}
		member := true
		switch {
		case len(bare) != len(f): // a quoted value with spaces in it
		case len(bare) > 1 && bare[0] == "bind":
			for i := 1; i < len(bare); i++ {
				change(i)
			}
		case len(bare) < 3 || bare[0] != "sentinel":
		case bare[1] == "announce-ip":
			change(2)
		case len(bare) == 4 && bare[2] == p.Master && limits[bare[1]] > 0:
			set(3, limits[bare[1]])
		case len(bare) < 5 || bare[2] != p.Master:
		case bare[1] == "monitor" && len(bare) == 6:
			change(3)
			set(5, p.Quorum)
			listed[strings.Trim(f[3], `"`)+" "+bare[4]] = true
		case bare[1] == "known-replica" || bare[1] == "known-slave":
			known := change(3)
			server := strings.Trim(f[3], `"`) + " " + bare[4]
			member = known && !listed[server]
			listed[server] = true
		case bare[1] == "known-sentinel" && len(bare) == 6:
			change(3)
			member = ids[bare[5]] && !listed[bare[5]]
			listed[bare[5]] = true
		}
		if member {
			b.WriteString(line)
		}
	}
	return b.Bytes()
}

func (s *sentinelUnit) stop(ctx context.Context) error { return stopUnit(ctx, s.params.Unit) }

func (s *sentinelUnit) failover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	answers, err := s.server.respServer.ask(ctx, []string{"SENTINEL", "FAILOVER", s.params.Master})
	if err != nil {
		return err
	}
	if refused, ok := answers[0].(redisError); ok && !strings.HasPrefix(refused.Error(), "INPROG") {
		return fmt.Errorf("have Sentinel choose another master: %w", refused)
	}
	return nil
}

// sentinelConfig adds the master to the rendered configuration. From the first start on the file is Sentinel's.
func sentinelConfig(text []byte, p *facts.SentinelParams, master, password string) []byte {
	b := bytes.NewBuffer(bytes.TrimRight(text, "\n"))
	b.WriteString("\n\n")
	fmt.Fprintf(b, "sentinel monitor %s %s %d %d\n", p.Master, master, p.RedisPort, p.Quorum)
	if password != "" {
		fmt.Fprintf(b, "sentinel auth-pass %s %s\n", p.Master, password)
	}
	fmt.Fprintf(b, "sentinel down-after-milliseconds %s %d\n", p.Master, p.DownAfter)
	fmt.Fprintf(b, "sentinel failover-timeout %s %d\n", p.Master, p.FailoverTimeout)
	fmt.Fprintf(b, "sentinel parallel-syncs %s %d\n", p.Master, p.ParallelSyncs)
	return b.Bytes()
}

// firstEpoch gives a new Sentinel the epoch of the configuration that it begins with, if that is not 0.
func firstEpoch(p *facts.SentinelParams, master string, view redisView) []byte {
	epoch := view.epoch(master)
	if epoch == 0 {
		return nil
	}
	return fmt.Appendf(nil, "sentinel config-epoch %s %d\nsentinel current-epoch %d\n", p.Master, epoch, epoch)
}

// epoch returns the latest epoch that is known of configurations with a master: the founder's own, and those of the other Sentinels. A
// new one must not wait until it hears it from these. They may be lost before that, and a Sentinel that comes back with an earlier master
// would keep it if both had the same epoch.
func (v redisView) epoch(master string) (latest int64) {
	for i, m := range v.members {
		if i == v.self && m.IP == master {
			latest = max(latest, m.Epoch)
		}
		if i != v.self && m.Heard && m.sentinel.Master == master {
			latest = max(latest, m.sentinel.Epoch)
		}
	}
	return latest
}

// sentinelPeers tells a new Sentinel about the others. Otherwise it would learn about them through the master; if that died
// first, they would never find each other and never promote anyone.
func sentinelPeers(p *facts.SentinelParams, clusterID, master string, view redisView) []byte {
	b := fmt.Appendf(nil, "sentinel myid %s\n", sentinelID(clusterID, view.members[view.self].Name))
	for i, m := range view.members {
		if m.IP != master {
			b = fmt.Appendf(b, "sentinel known-replica %s %s %d\n", p.Master, m.IP, p.RedisPort)
		}
		if i != view.self {
			b = fmt.Appendf(b, "sentinel known-sentinel %s %s %d %s\n", p.Master, m.IP, p.Port, sentinelID(clusterID, m.Name))
		}
	}
	return b
}

// sentinelID is the same for a node and its replacement: Sentinels never forget one another, and count those that no longer
// exist when they need a majority.
func sentinelID(clusterID, node string) string {
	return fmt.Sprintf("%x", sha1.Sum([]byte(clusterID+" sentinel "+node)))
}

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

const (
	handoverTime = 30 * time.Second // for all that a node hands over
	// yieldTime is how long load balancers are told to prefer another member. In that time, the node is restarted.
	yieldTime = time.Minute
	// pauseTime is how long a Redis master takes no writes while another becomes the master; then it goes on by itself. It outlasts
	// the handover.
	pauseTime    = handoverTime
	catchUpTime  = 5 * time.Second // for replicas to have all writes
	handoverPoll = 200 * time.Millisecond
	// backTime is longer than it takes keepalived to take an address that nobody holds: three advertisements, and less than one more.
	backTime       = 5 * time.Second
	keepalivedUnit = "keepalived.service"
)

// leader is a component that may be the one of its role that clients are sent to.
type leader interface {
	// handOver has another node lead, and says what has moved where; empty: there is nothing to hand over. yields says that load
	// balancers must be told to use others. An error says why nobody takes over; this node then goes on.
	handOver(ctx context.Context, w World) (moved string, yields bool, err error)
}

// serveHandover has the node hand over what it leads.
func (a *Agent) serveHandover(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	errors.Join(control.SetWriteDeadline(time.Now().Add(handoverTime + 5*time.Second))) // without it, the server's own limit holds
	// What has begun goes on if nobody waits for the answer any more.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), handoverTime)
	defer cancel()
	moved, err := a.handOver(ctx)
	if err != nil {
		http.Error(w, oneLine(err.Error()), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(facts.Handover{Moved: moved})
}

// handOver hands over what this node leads. Where it leads nothing, also because it has handed that over before, it does nothing.
func (a *Agent) handOver(ctx context.Context) ([]string, error) {
	a.handing.Lock()
	defer a.handing.Unlock()
	all := []string{}
	for _, r := range a.runners {
		l, ok := r.impl.(leader)
		if !ok {
			continue
		}
		w := World{Self: a.facts.Node, Peers: a.facts.Peers, Reports: a.peers.heard(), Own: a.own(), Joint: *a.members.known()}
		moved, yields, err := l.handOver(ctx, w)
		if err != nil {
			return nil, fmt.Errorf("%s is not handed over: %w", r.Name, err)
		}
		if moved == "" {
			continue
		}
		if yields {
			a.yield(r.Name, a.clock.Now().Add(yieldTime))
		}
		a.happened(r.Name, "hands over %s", moved)
		all = append(all, moved)
	}
	return all, nil
}

// yield has the health port say, until then, that a component is not ready.
func (a *Agent) yield(component string, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.yields == nil {
		a.yields = map[string]time.Time{}
	}
	a.yields[component] = until
}

// handOver has load balancers send writes to another member. Each member that serves can take them.
func (g *galera) handOver(_ context.Context, w World) (string, bool, error) {
	var reader ensemble.Reader[galeraReport]
	own, known := knownOr(reader.Of(w.Own, "galera"))
	if !known || own.State != galeraServing {
		return "", false, nil // no load balancer uses it
	}
	v := galeraMembers(&reader, w, own)
	for i, m := range v.members {
		if i != v.self && m.Heard && m.State == galeraServing {
			return "the writes", true, nil
		}
	}
	return "", false, errors.New("no other member serves")
}

// handOver has Sentinel choose another master. Writes wait meanwhile, so that none is lost.
func (s *sentinel) handOver(ctx context.Context, w World) (string, bool, error) {
	p := s.server.(*sentinelUnit).params
	h := redisHandover{
		redis: s.node.respServer(p.RedisPort, p.TLS, p.Secret), sentinel: s.node.respServer(p.Port, p.TLS, p.Secret), master: p.Master,
	}
	var reader redisReader
	own, known := knownOr(reader.servers.Of(w.Own, "redis"))
	if !known || !own.Running || own.Role != "master" {
		return "", false, nil
	}
	view := reader.members(w, own)
	if err := canHandOver(view); err != nil {
		return "", false, err
	}
	at, err := h.run(ctx)
	if err != nil || at == "" {
		return "", false, err
	}
	return "the master to " + view.name(at), false, nil
}

// canHandOver says why no other server can become the master.
func canHandOver(v redisView) error {
	me := v.members[v.self]
	if s := me.sentinel; !s.Running || s.Down || s.Quorum != "" || s.Master != me.IP {
		return errors.New("the Sentinels do not agree that this node is the master, or are too few")
	}
	heirs := 0
	for i, m := range v.members {
		switch {
		case i == v.self || !m.Heard || !m.Running:
		case m.Role != "slave" || m.Master != me.IP || !m.Synced || m.Loading:
			return fmt.Errorf("%s is not in sync with this master, and Sentinel could choose it", m.Name)
		case m.HasData && m.Eligible && m.sentinel.Running:
			heirs++
		}
	}
	if heirs == 0 {
		return errors.New("there is no replica that could become the master")
	}
	return nil
}

// redisHandover makes another server the master in place of this one.
type redisHandover struct {
	redis, sentinel respServer // of this node
	master          string     // the name by which Sentinel knows it
}

// run returns the address of the new master; empty: this node was none. SENTINEL FAILOVER takes the master for dead: what it acknowledges
// from then on is lost. So it takes no writes from the moment at which the replicas have all of them.
func (h redisHandover) run(ctx context.Context) (address string, err error) {
	before, err := h.current(ctx)
	if err != nil {
		return "", err
	}
	if _, err := h.ask(ctx, h.redis, "CLIENT", "PAUSE", strconv.FormatInt(pauseTime.Milliseconds(), 10), "WRITE"); err != nil {
		return "", fmt.Errorf("have this master take no writes: %w", err)
	}
	resume := true
	defer func() {
		if !resume {
			return // Sentinel may still choose another, which would lack what this one acknowledged
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), redisLimit)
		defer cancel()
		_, failed := h.ask(ctx, h.redis, "CLIENT", "UNPAUSE")
		if err == nil && failed != nil {
			err = fmt.Errorf("have this server take commands again: %w", failed)
		}
	}()
	if err := h.catchUp(ctx); err != nil {
		return "", err
	}
	if _, err := h.ask(ctx, h.sentinel, "SENTINEL", "FAILOVER", h.master); err != nil && !strings.HasPrefix(err.Error(), "INPROG") {
		return "", fmt.Errorf("have Sentinel choose another master: %w", err)
	}
	resume = false
	for {
		now, err := h.current(ctx)
		switch {
		case err != nil && ctx.Err() == nil: // Sentinel may be busy
		case err == nil && now != before:
			// Sentinel would do this, some seconds later.
			host, port, _ := net.SplitHostPort(now)
			if _, err := h.ask(ctx, h.redis, "REPLICAOF", host, port); err != nil {
				return "", fmt.Errorf("make this server a replica of %s: %w", now, err)
			}
			resume = true
			return host, nil
		}
		if err := handoverPause(ctx); err != nil {
			return "", errors.New("the Sentinels have not chosen another master in time; they may still do so")
		}
	}
}

// catchUp waits until all replicas have what this master has.
func (h redisHandover) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpTime)
	defer cancel()
	wanted := int64(-1)
	for {
		info, err := h.ask(ctx, h.redis, "INFO", "replication")
		if err == nil {
			fields := infoFields(info)
			if wanted < 0 {
				wanted, err = strconv.ParseInt(fields["master_repl_offset"], 10, 64)
			}
			if err == nil && caughtUp(fields, wanted) {
				return nil
			}
		}
		if handoverPause(ctx) != nil {
			return errors.New("the replicas do not have all of this master's writes in time")
		}
	}
}

// caughtUp tells whether a master's INFO says that all replicas, at least one, have confirmed so much of what it has written.
func caughtUp(info map[string]string, wanted int64) bool {
	n := 0
	for ; info["slave"+strconv.Itoa(n)] != ""; n++ {
		fields := map[string]string{}
		for pair := range strings.SplitSeq(info["slave"+strconv.Itoa(n)], ",") {
			k, v, _ := strings.Cut(pair, "=")
			fields[k] = v
		}
		if has, err := strconv.ParseInt(fields["offset"], 10, 64); err != nil || has < wanted || fields["state"] != "online" {
			return false
		}
	}
	return n > 0
}

// current returns which master Sentinel has.
func (h redisHandover) current(ctx context.Context) (address string, err error) {
	answer, err := h.ask(ctx, h.sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", h.master)
	if err != nil {
		return "", err
	}
	pair, _ := answer.([]any)
	if len(pair) != 2 {
		return "", errors.New("no master is known to Sentinel")
	}
	return net.JoinHostPort(fmt.Sprint(pair[0]), fmt.Sprint(pair[1])), nil
}

// ask sends one command. A refusal is an error.
func (h redisHandover) ask(ctx context.Context, server respServer, command ...string) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	answers, err := server.ask(ctx, command)
	if err != nil {
		return nil, err
	}
	if refused, ok := answers[0].(redisError); ok {
		return nil, refused
	}
	return answers[0], nil
}

// handOver gives away the virtual address, if this is the service that holds it.
func (s *service) handOver(ctx context.Context, w World) (string, bool, error) {
	if s.params.Unit != keepalivedUnit {
		return "", false, nil
	}
	moved, err := giveAway(ctx, s.node.Clock, addressUnit{w.Self.IP})
	return moved, false, err
}

// addressKeeper holds virtual addresses.
type addressKeeper interface {
	holds() []string
	// stop begins to stop it: it tells the others that it gives its addresses away. start begins to start it.
	stop(ctx context.Context) error
	start(ctx context.Context) error
}

// addressUnit is keepalived on the node with an address.
type addressUnit struct{ own string }

func (u addressUnit) holds() []string                 { return virtualAddresses(u.own) }
func (u addressUnit) stop(ctx context.Context) error  { return stopUnit(ctx, keepalivedUnit) }
func (u addressUnit) start(ctx context.Context) error { return startUnit(ctx, keepalivedUnit) }

// giveAway has another node take the virtual addresses: the keeper gives them away when it stops, and takes none back from a node that
// holds them when it starts. If it does take them back, nobody else has them.
func giveAway(ctx context.Context, c clock, k addressKeeper) (moved string, err error) {
	addresses := k.holds()
	if len(addresses) == 0 {
		return "", nil
	}
	if err := k.stop(ctx); err != nil {
		return "", err
	}
	held := func(limit time.Duration, wanted bool) bool { // becomes as wanted within the limit
		for end := c.Now().Add(limit); ; {
			if (len(k.holds()) > 0) == wanted {
				return true
			}
			if ctx.Err() != nil || !c.Now().Before(end) {
				return false
			}
			c.Sleep(ctx, handoverPoll)
		}
	}
	gone := held(handoverTime/2, false)
	// In any case it must run again.
	if err := k.start(context.WithoutCancel(ctx)); err != nil {
		return "", err
	}
	what := strings.Join(addresses, " and ")
	switch {
	case !gone:
		return "", fmt.Errorf("it does not give up %s", what)
	case held(backTime, true):
		return "", fmt.Errorf("no other node takes %s", what)
	}
	return what, ctx.Err()
}

// handoverPause waits a moment; an error says that ctx has ended.
func handoverPause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(handoverPoll):
		return nil
	}
}

// yielding tells whether the health port is to say that a component is not ready. The caller holds a.mu.
func (a *Agent) yielding(component string) bool { return a.clock.Now().Before(a.yields[component]) }

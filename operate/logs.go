package operate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"imagegen/cluster/facts"
)

// since is the query for what is not older than d; 0: everything.
func since(d time.Duration) url.Values {
	q := url.Values{}
	if d > 0 {
		q.Set("since", d.String())
	}
	return q
}

// Logs writes a node's journal to w: the part that is not older than ago (0: the latest lines) and, if follow is set, new lines until ctx
// ends. If the node's agent does not answer and the provider has consoles, it calls console with the reason and writes the machine's
// console instead.
func (c *Cluster) Logs(ctx context.Context, w io.Writer, node string, ago time.Duration, follow bool, console func(why error)) error {
	machines, err := c.known(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(machines, func(m Machine) bool { return m.Node.Name == node })
	if i < 0 {
		return fmt.Errorf("cluster %s has no node %s", c.Spec.Cluster, node)
	}
	m := machines[i]
	if m.Power == PowerOff {
		err = errors.New("it is off")
	} else if err = c.Agents.journal(ctx, w, node, m.Node.IP, ago, follow); err == nil {
		return nil
	}
	var broken broken
	if c.Machines == nil || ctx.Err() != nil || errors.As(err, &broken) {
		return fmt.Errorf("logs of %s: %w", node, err)
	}
	console(err)
	return c.Machines.Console(ctx, w, node, follow)
}

// broken is an error in the middle of an answer.
type broken struct{ error }

func (b broken) Unwrap() error { return b.error }

// journal writes a node's journal to w.
func (a *Agents) journal(ctx context.Context, w io.Writer, node string, ip netip.Addr, ago time.Duration, follow bool) error {
	q := since(ago)
	if follow {
		q.Set("follow", "1")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waiting := time.AfterFunc(a.Limit, cancel)
	resp, err := a.send(ctx, node, ip, http.MethodGet, facts.LogsPath+"?"+q.Encode(), nil)
	if err != nil {
		if !waiting.Stop() {
			err = fmt.Errorf("no answer within %s", a.Limit)
		}
		return err
	}
	waiting.Stop()
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxReport))
		if resp.StatusCode == http.StatusNotFound {
			return errors.New("the node's agent is of an older image and does not show its journal")
		}
		return refusal{resp.StatusCode, string(bytes.TrimSpace(text))}
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return broken{fmt.Errorf("the connection broke: %w", err)}
	}
	return ctx.Err() // an agent may end its answer properly before it is noticed here that nobody wants it any more
}

// Event is one thing that happened on a node.
type Event struct {
	Node string `json:"node"`
	facts.Event
}

// Events collects the events of all nodes that are not older than ago (0: all), sorted by time. Times are converted to this computer's
// clock if a node's clock differs. unheard says why nodes could not be asked. It fails if none could.
func (c *Cluster) Events(ctx context.Context, ago time.Duration) (all []Event, unheard map[string]error, err error) {
	machines, err := c.known(ctx)
	if err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	unheard = map[string]error{}
	var asking sync.WaitGroup
	for _, m := range machines {
		if m.Power == PowerOff {
			unheard[m.Node.Name] = errors.New("it is off")
			continue
		}
		asking.Go(func() {
			events, err := c.Agents.events(ctx, m.Node.Name, m.Node.IP, ago)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				unheard[m.Node.Name] = err
			}
			all = append(all, events...)
		})
	}
	asking.Wait()
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	if len(unheard) == len(machines) {
		var tried []string
		for _, m := range machines {
			tried = append(tried, fmt.Sprintf("%s: %v", m.Node.Name, unheard[m.Node.Name]))
		}
		if len(tried) > 3 {
			tried = append(tried[:3:3], fmt.Sprintf("and %d more", len(tried)-3))
		}
		return nil, nil, fmt.Errorf("no node of cluster %s tells what has happened: %s", c.Spec.Cluster, strings.Join(tried, "; "))
	}
	slices.SortStableFunc(all, func(a, b Event) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Node, b.Node))
	})
	return all, unheard, nil
}

// events returns the events that a node's agent remembers.
func (a *Agents) events(ctx context.Context, node string, ip netip.Addr, ago time.Duration) ([]Event, error) {
	body, behind, err := a.request(ctx, node, ip, http.MethodGet, facts.EventsPath+"?"+since(ago).Encode(), nil)
	var refused refusal
	if errors.As(err, &refused) && refused.code == http.StatusNotFound {
		return nil, errors.New("its agent is of an older image and remembers nothing")
	}
	if err != nil {
		return nil, err
	}
	var got facts.Events
	if err := json.Unmarshal(body, &got); err != nil {
		return nil, fmt.Errorf("the answer is no list of events: %w", err)
	}
	var events []Event
	for _, v := range got.Events {
		if behind.Abs() > sameClock {
			v.Time = v.Time.Add(behind)
		}
		events = append(events, Event{node, v})
	}
	return events, nil
}

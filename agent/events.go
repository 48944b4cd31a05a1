package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/atomicfile"
)

// Limits of the event log.
const (
	eventsKept = 1000
	eventsFile = "events.json" // in the agent's state, an event a line
	// eventsSize is how large the file may become before it is cut to the latest events.
	eventsSize = 1 << 20
)

// events are the latest events of the node. They survive reboots on the root disk. Writes are not synced: only people read
// events, so losing one in a power cut is acceptable.
type events struct {
	mu   sync.Mutex
	path string // empty: in memory alone
	ring []facts.Event
	size int64
}

// openEvents reads the events in a file and skips lines that are damaged.
func openEvents(path string) *events {
	e := &events{path: path}
	data, _ := os.ReadFile(path) // a missing file has no events
	for line := range bytes.Lines(data) {
		var v facts.Event
		if json.Unmarshal(line, &v) == nil && !v.Time.IsZero() {
			e.ring = append(e.ring, v)
		}
	}
	e.cut()
	e.rewrite() // a truncated last line would corrupt the next one
	return e
}

func (e *events) cut() {
	if extra := len(e.ring) - eventsKept; extra > 0 {
		e.ring = slices.Clone(e.ring[extra:])
	}
}

// add remembers an event.
func (e *events) add(v facts.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring = append(e.ring, v)
	e.cut()
	if e.path == "" {
		return
	}
	line, _ := json.Marshal(v) // a plain struct
	line = append(line, '\n')
	if e.size+int64(len(line)) > eventsSize {
		e.rewrite()
		return
	}
	f, err := os.OpenFile(e.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		var n int
		n, err = f.Write(line)
		e.size += int64(n)
		f.Close()
	}
	if err != nil {
		log.Printf("keep events: %v", err)
	}
}

// rewrite replaces the file with the events in memory.
func (e *events) rewrite() {
	if e.path == "" {
		return
	}
	var b bytes.Buffer
	in := json.NewEncoder(&b)
	for _, v := range e.ring {
		in.Encode(v)
	}
	e.size = int64(b.Len())
	if err := atomicfile.Write(e.path, b.Bytes(), 0o600); err != nil {
		log.Printf("keep events: %v", err)
	}
}

// since returns the events after a time, the oldest first.
func (e *events) since(t time.Time) []facts.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	some := []facts.Event{}
	for _, v := range e.ring {
		if v.Time.After(t) {
			some = append(some, v)
		}
	}
	return some
}

// happened records an event of a component or, with an empty name, of the node.
func (a *Agent) happened(component, format string, args ...any) {
	a.events.add(facts.Event{Time: a.clock.Now(), Component: component, Text: oneLine(fmt.Sprintf(format, args...))})
}

// serveEvents answers with the events of the last since=DURATION, or all that are remembered.
func (a *Agent) serveEvents(w http.ResponseWriter, r *http.Request) {
	since, err := sinceParam(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var after time.Time
	if since > 0 {
		after = time.Now().Add(-since)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(facts.Events{Node: a.facts.Node.Name, Events: a.events.since(after)})
}

// watchEvery is how often the agent checks what belongs to no component.
const watchEvery = time.Second

// watch records, until ctx ends, when peers fall silent or answer again and which virtual addresses the node holds.
func (a *Agent) watch(ctx context.Context) {
	heard := map[string]bool{} // peers that have been heard, and whether they are
	for ctx.Err() == nil {
		now := a.peers.heard()
		for _, p := range a.facts.Peers {
			_, is := now[p.Name]
			was, known := heard[p.Name]
			switch {
			case known && was && !is:
				a.happened("", "%s does not answer any more", p.Name)
			case known && !was && is:
				a.happened("", "%s answers again", p.Name)
			}
			if known || is {
				heard[p.Name] = is
			}
		}
		a.hold(virtualAddresses(a.facts.Node.IP))
		a.clock.Sleep(ctx, watchEvery)
	}
}

// hold publishes which virtual addresses the node has now.
func (a *Agent) hold(addresses []string) {
	a.mu.Lock()
	before := a.holds
	a.holds = addresses
	a.mu.Unlock()
	for _, v := range addresses {
		if !slices.Contains(before, v) {
			a.happened("", "holds %s", v)
		}
	}
	for _, v := range before {
		if !slices.Contains(addresses, v) {
			a.happened("", "gave up %s", v)
		}
	}
}

// virtualAddresses returns the other addresses on the interface that has the node's own. The kernel is asked once (rtnetlink(7)); package net
// asks it for the interfaces, and then for all addresses once for each of them.
func virtualAddresses(own string) []string {
	answer, err := syscall.NetlinkRIB(syscall.RTM_GETADDR, syscall.AF_INET)
	if err != nil {
		return nil
	}
	messages, err := syscall.ParseNetlinkMessage(answer)
	if err != nil {
		return nil
	}
	byCard, card := map[uint32][]string{}, uint32(0)
	for _, m := range messages {
		if m.Header.Type != syscall.RTM_NEWADDR {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil
		}
		index := binary.NativeEndian.Uint32(m.Data[4:]) // ifa_index
		for _, attribute := range attributes {
			if attribute.Attr.Type != syscall.IFA_LOCAL {
				continue
			}
			if ip := net.IP(attribute.Value).String(); ip == own {
				card = index
			} else {
				byCard[index] = append(byCard[index], ip)
			}
		}
	}
	others := byCard[card]
	slices.Sort(others)
	return others
}

// eventsPath is where the events of an agent below root are.
func eventsPath(root string) string { return filepath.Join(root, facts.StateDir, eventsFile) }

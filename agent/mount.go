package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

const (
	answerLimit = 2 * time.Second  // a mounted volume that has not answered for longer hangs
	unusedUnit  = 30 * time.Second // between two questions about the mount's unit while there is nothing to mount
)

// glusterMount mounts the volume, with a systemd mount unit, once its servers can serve it.
type glusterMount struct {
	node   Node
	params *facts.MountParams
	retry  ensemble.Backoff
	seen   mountSeen
	asked  time.Time  // when seen.Unit was last asked for
	probed time.Time  // when the file system was last checked
	probe  chan error // a check of the file system that has not returned yet; nil: none

	reports ensemble.Reader[glusterReport]
}

// mountSeen is what a mount looks like.
type mountSeen struct {
	Mounted bool   `json:"mounted"`
	Fault   string `json:"fault,omitempty"` // why the mounted volume does not answer
	// Broken: its client process has died; it will never answer again.
	Broken bool   `json:"broken,omitempty"`
	Unit   unit   `json:"unit"` // looked at only while nothing is mounted
	Log    string `json:"log,omitempty"`
}

func newMount(n Node, _ string, p *facts.MountParams) Component {
	return &glusterMount{node: n, params: p}
}

func (m *glusterMount) unitNames() []string { return []string{m.params.Unit} }

func (m *glusterMount) Observe(ctx context.Context) (any, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	seen := mountSeen{Mounted: mountAt(mounts, m.params.Path) != nil}
	if seen.Mounted {
		// Each question goes to all servers: asked each second, they and the clients would do little else.
		if answers := m.seen.Mounted && m.seen.Fault == ""; !answers || time.Since(m.probed) >= calmCheck {
			m.probed = time.Now()
			if err := m.ask(); err != nil {
				seen.Fault = netFault(err)
				seen.Broken = errors.Is(err, syscall.ENOTCONN)
			}
		}
	} else if idle := m.seen.Unit.Active == "inactive" && m.retry.Left(m.node.now()) == 0; idle && time.Since(m.asked) < unusedUnit {
		// systemd loads an unused unit's file for each query and drops it again. While there were no servers to mount from,
		// that used most of a node's CPU time.
		seen.Unit = m.seen.Unit
	} else {
		if seen.Unit, err = unitState(ctx, m.params.Unit); err != nil {
			return nil, err
		}
		m.asked = time.Now()
		if seen.Unit.Active == "failed" {
			if seen.Log = m.seen.Log; m.seen.Unit.Active != "failed" {
				seen.Log = lastLine(ctx, m.params.Unit)
			}
		}
	}
	m.seen = seen
	return seen, nil
}

// ask checks that the file system answers. On a hung one the system call blocks for ever, so it is made in a goroutine, and no
// second one is started until it returns.
func (m *glusterMount) ask() error {
	if m.probe == nil {
		probe := make(chan error, 1)
		path := m.params.Path
		go func() {
			var st syscall.Stat_t
			var fs syscall.Statfs_t
			err := syscall.Stat(path, &st)
			if err == nil {
				err = syscall.Statfs(path, &fs)
			}
			probe <- err
		}()
		m.probe = probe
	}
	select {
	case err := <-m.probe:
		m.probe = nil
		return err
	case <-time.After(answerLimit):
		return fmt.Errorf("no answer within %v", answerLimit)
	}
}

func (m *glusterMount) Step(ctx context.Context, w World) (facts.Status, error) {
	do, status := decideMount(m.params, m.seen, m.servers(w), m.retry.Left(m.node.now()))
	if status.State == facts.Ready {
		m.retry.Settle(m.node.now())
	}
	switch do {
	case mountStart:
		m.retry.Next(m.node.now())
		m.asked = time.Time{}
		return status, startUnit(ctx, m.params.Unit)
	case mountDetach:
		if err := syscall.Unmount(m.params.Path, syscall.MNT_DETACH); err != nil {
			return status, fmt.Errorf("unmount %s: %w", m.params.Path, err)
		}
	}
	return status, nil
}

// server is what a client knows of one server of the volume.
type server struct {
	name   string
	heard  bool
	online bool // serves its part of the started volume
}

// servers returns the volume's servers as their agents report them. While the cluster changes, the seed may name more or others than
// those that have a brick.
func (m *glusterMount) servers(w World) []server {
	var all []server
	var volume *glusterVolume
	for _, p := range w.In(m.params.Role) {
		r, heard := m.reports.From(w, p.Name, "gluster")
		s := server{name: p.Name, heard: heard, online: heard && r.serves()}
		if all = append(all, s); s.online && (volume == nil || len(r.Volume.Bricks) > len(volume.Bricks)) {
			volume = r.Volume
		}
	}
	if volume == nil {
		return all
	}
	hosts := volume.hosts()
	all = slices.DeleteFunc(all, func(s server) bool { return !slices.Contains(hosts, s.name) })
	for _, host := range hosts {
		if !slices.ContainsFunc(all, func(s server) bool { return s.name == host }) {
			all = append(all, server{name: host})
		}
	}
	return all
}

type mountDo string

const (
	mountNothing mountDo = ""
	mountStart   mountDo = "start"
	mountDetach  mountDo = "detach"
)

// decideMount chooses the next step. Without a majority of servers a mounted volume takes no writes, so it is not
// mounted before. held is how long the next start must wait.
func decideMount(p *facts.MountParams, seen mountSeen, servers []server, held time.Duration) (mountDo, facts.Status) {
	online := 0
	var away []string
	for _, s := range servers {
		switch {
		case s.online:
			online++
		case s.heard:
			away = append(away, s.name+" (not serving)")
		default:
			away = append(away, s.name+" (not heard)")
		}
	}
	enough := online > len(servers)/2
	switch {
	case seen.Broken:
		return mountDetach, workf("%s has lost its client process; mounting it again", p.Path)
	case seen.Mounted && seen.Fault == "":
		return mountNothing, ready("")
	case seen.Mounted && !enough:
		return mountNothing, waitf("%s does not answer (%s); for %s", p.Path, seen.Fault, strings.Join(away, ", "))
	case seen.Mounted:
		return mountNothing, facts.Status{State: facts.Failed, Detail: p.Path + " does not answer: " + seen.Fault}
	case seen.Unit.Load == "not-found":
		return mountNothing, stopf("there is no unit %s", p.Unit)
	case !enough:
		return mountNothing, waitf("for a majority of the volume's servers; missing: %s", strings.Join(away, ", "))
	case seen.Unit.Active == "activating" || seen.Unit.Active == "deactivating":
		return mountNothing, workf("mounting %s", p.Path)
	case seen.Unit.Active == "failed" && held > 0:
		return mountNothing, ensemble.Held(failure(p.Unit, serviceSeen{Unit: seen.Unit, Log: seen.Log}), "try", held)
	case held > 0:
		return mountNothing, workf("mounting %s", p.Path)
	}
	return mountStart, workf("mounting %s", p.Path)
}

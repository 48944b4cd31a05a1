package agent

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

func TestMountDecisions(t *testing.T) {
	p := &facts.MountParams{Unit: "mnt-gluster.mount", Path: "/mnt/gluster", Role: "glusterfs"}
	servers := func(online int) []server {
		all := []server{{name: "gl1", heard: true}, {name: "gl2", heard: true}, {name: "gl3"}}
		for i := range online {
			all[i].heard, all[i].online = true, true
		}
		return all
	}
	idle := unit{Load: "loaded", Active: "inactive"}
	for name, c := range map[string]struct {
		seen   mountSeen
		online int
		held   time.Duration
		do     mountDo
		state  facts.State
		detail string
	}{
		"no server yet":          {mountSeen{Unit: idle}, 0, 0, mountNothing, facts.Waiting, "gl1 (not serving), gl2 (not serving), gl3 (not heard)"},
		"one of three":           {mountSeen{Unit: idle}, 1, 0, mountNothing, facts.Waiting, "missing: gl2"},
		"two of three":           {mountSeen{Unit: idle}, 2, 0, mountStart, facts.Working, ""},
		"asked for":              {mountSeen{Unit: idle}, 3, time.Second, mountNothing, facts.Working, "mounting"},
		"mounting":               {mountSeen{Unit: unit{Load: "loaded", Active: "activating"}}, 3, 0, mountNothing, facts.Working, ""},
		"failed":                 {mountSeen{Unit: unit{Load: "loaded", Active: "failed", Result: "exit-code"}, Log: "no route"}, 3, 2 * time.Second, mountNothing, facts.Failed, "failed (exit-code): no route; next try in 2 s"},
		"failed, its turn":       {mountSeen{Unit: unit{Load: "loaded", Active: "failed"}}, 3, 0, mountStart, facts.Working, ""},
		"not in the seed":        {mountSeen{Unit: unit{Load: "not-found"}}, 3, 0, mountNothing, facts.Stopped, "no unit"},
		"mounted":                {mountSeen{Mounted: true}, 3, 0, mountNothing, facts.Ready, ""},
		"mounted, none heard":    {mountSeen{Mounted: true}, 0, 0, mountNothing, facts.Ready, ""},
		"hung without servers":   {mountSeen{Mounted: true, Fault: "no answer within 2s"}, 1, 0, mountNothing, facts.Waiting, "for gl2"},
		"hung with all servers":  {mountSeen{Mounted: true, Fault: "no answer within 2s"}, 3, 0, mountNothing, facts.Failed, "no answer within 2s"},
		"its client has crashed": {mountSeen{Mounted: true, Fault: "x", Broken: true}, 3, 0, mountDetach, facts.Working, "mounting it again"},
	} {
		do, status := decideMount(p, c.seen, servers(c.online), c.held)
		if do != c.do || status.State != c.state || !strings.Contains(status.Detail, c.detail) {
			t.Errorf("%s: %q, %s: %s", name, do, status.State, status.Detail)
		}
	}
}

func TestServersAsTheirAgentsReportThem(t *testing.T) {
	report := func(r glusterReport) PeerReport {
		data, _ := json.Marshal(r)
		return PeerReport{NodeReport: facts.NodeReport{Components: map[string]facts.ComponentReport{"files": {Kind: "gluster", Report: data}, "disk": {Kind: "disk"}}}}
	}
	started := &glusterVolume{ID: "v", Status: volumeStarted, Bricks: []string{"gl1:/b", "gl2:/b", "gl3:/b"}}
	w := World{
		Peers: []facts.Peer{{Name: "web2", Role: "web"}, {Name: "gl1", Role: "glusterfs"}, {Name: "gl2", Role: "glusterfs"}, {Name: "gl3", Role: "glusterfs"}},
		Reports: map[string]PeerReport{
			"gl1": report(glusterReport{Running: true, Online: true, Volume: started}),
			"gl2": report(glusterReport{Running: true, Online: false, Volume: started}),
			"gl3": {NodeReport: facts.NodeReport{Components: map[string]facts.ComponentReport{"files": {Kind: "gluster"}}}}, // its disk is not ready
		},
	}
	got := (&glusterMount{params: &facts.MountParams{Role: "glusterfs"}}).servers(w)
	want := []server{{"gl1", true, true}, {"gl2", true, false}, {"gl3", false, false}}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
	// gl2 has no brick yet, gl4 still has one, and the seed does not name it.
	started.Bricks = []string{"gl1:/b", "gl3:/b", "gl4:/b"}
	w.Reports["gl1"] = report(glusterReport{Running: true, Online: true, Volume: started})
	got = (&glusterMount{params: &facts.MountParams{Role: "glusterfs"}}).servers(w)
	if want := []server{{"gl1", true, true}, {"gl3", false, false}, {"gl4", false, false}}; !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A volume whose client is stopped does not answer. The agent must detect that in time, repeatedly, without
// accumulating blocked goroutines.
func TestHungMountIsSeen(t *testing.T) {
	m := &glusterMount{params: &facts.MountParams{Path: t.TempDir()}, probe: make(chan error)}
	hung := m.probe
	for range 2 {
		began := time.Now()
		if err := m.ask(); err == nil || !strings.Contains(err.Error(), "no answer within 2s") {
			t.Errorf("%v", err)
		}
		if time.Since(began) > answerLimit+time.Minute || m.probe != hung {
			t.Errorf("after %v; another question was asked: %v", time.Since(began), m.probe != hung)
		}
	}
	go func() { hung <- nil }()
	testkit.Eventually(t, time.Minute, "the answer", m.ask)
	testkit.Eventually(t, time.Minute, "the answer to a fresh question", m.ask)
}

func TestMountFollowsItsUnit(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to mount")
	}
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: cannot mount here: %s", out)
	}
	state, asked := fakeSystemd(t)
	os.WriteFile(state, []byte("LoadState=loaded\nActiveState=inactive\n"), 0o644)
	path := filepath.Join(t.TempDir(), "volume")
	os.Mkdir(path, 0o755)
	m := newMount(Node{}, "mount", &facts.MountParams{Unit: "imagegen-test.mount", Path: path, Role: "glusterfs"}).(*glusterMount)
	data, _ := json.Marshal(glusterReport{Running: true, Online: true, Volume: &glusterVolume{ID: "v", Status: volumeStarted, Bricks: []string{"gl1:/b"}}})
	alone := World{Peers: []facts.Peer{{Name: "gl1", Role: "glusterfs"}}}
	w := World{Peers: alone.Peers, Reports: map[string]PeerReport{
		"gl1": {NodeReport: facts.NodeReport{Components: map[string]facts.ComponentReport{"gluster": {Kind: "gluster", Report: data}}}}}}
	turn := func(w World) facts.Status {
		t.Helper()
		if _, err := m.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		status, err := m.Step(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	questions := func() int {
		did, _ := os.ReadFile(asked)
		return strings.Count(string(did), "show ")
	}
	for range 5 {
		turn(alone)
	}
	if n := questions(); n != 1 {
		t.Errorf("waiting for its servers it has asked systemd %d times", n)
	}
	m.asked = time.Now().Add(-2 * unusedUnit)
	if turn(alone); questions() != 2 {
		t.Error("it never asks again")
	}
	turn(w)
	if did, _ := os.ReadFile(asked); !strings.Contains(string(did), "start --no-block imagegen-test.mount") {
		t.Fatalf("systemd was asked: %s", did)
	}
	if turn(w); questions() != 3 {
		t.Error("what became of the start is not looked at")
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(path, syscall.MNT_DETACH)
	if got := turn(w); got != ready("") {
		t.Errorf("%+v", got)
	}
	first := m.probed
	if turn(w); first.IsZero() || m.probed != first {
		t.Error("a volume that has just answered is asked again")
	}
	m.probed = first.Add(-calmCheck)
	if turn(w); time.Since(m.probed) > calmCheck {
		t.Error("it is never asked again")
	}
	m.seen.Fault = "no answer"
	if last := m.probed; turn(w) != ready("") || m.probed == last {
		t.Error("one that did not answer is not asked at the next look")
	}
}

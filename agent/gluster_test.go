package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

var glusterNodes = []string{"glusterfs1", "glusterfs2", "glusterfs3"}

const testClusterID = "7d0f3c58-3b0e-4c58-9a55-0d6d3a0f6a11"

func glusterParams() *facts.GlusterParams {
	return &facts.GlusterParams{Unit: "glusterd.service", WorkDir: "/var/lib/glusterd", Volume: "gv0", Brick: "/data/brick/gv0", UID: 2000, GID: 3000,
		Options: map[string]string{"network.ping-timeout": "5", "performance.quick-read": "on", "performance.quick-read-cache-invalidation": "on", "cluster.quorum-type": "auto", "cluster.quorum-count": "", "cluster.server-quorum-type": "server",
			"features.cache-invalidation": "on", "features.cache-invalidation-timeout": "600", "performance.cache-invalidation": "on", "performance.md-cache-timeout": "10", "cluster.shd-max-threads": "8"}}
}

func TestGlusterUUID(t *testing.T) {
	// Computed with another library: python -c 'import uuid; print(uuid.uuid5(uuid.UUID(ID), "glusterfs1"))'
	if got, want := glusterUUID(testClusterID, "glusterfs1"), "1b0d2fd6-d7e4-5b5a-ad16-c67008fb8b34"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// glusterCase returns the view of one of three servers, after change.
func glusterCase(self string, change func(all map[string]*glusterReport)) glusterView {
	v := glusterView{self: self, nodes: glusterNodes, target: glusterNodes, uuids: map[string]string{}, params: glusterParams(), heard: map[string]glusterReport{}, unit: "active", applied: map[string]string{}}
	all := map[string]*glusterReport{}
	for _, n := range glusterNodes {
		v.uuids[n] = glusterUUID(testClusterID, n)
		v.members = append(v.members, ensemble.Member{Peer: facts.Peer{Name: n}, In: 1})
	}
	for _, n := range glusterNodes {
		r := &glusterReport{UUID: v.uuids[n], OpVersion: 100000, Used: true, Running: true, Brick: brickEmpty}
		for m, u := range v.uuids {
			if m != n {
				r.Pool = append(r.Pool, u)
			}
		}
		all[n] = r
	}
	change(all)
	for n, r := range all {
		if n == self {
			if v.own = *r; !r.Running {
				v.unit = "inactive"
			}
		} else if r != nil {
			v.heard[n] = *r
		}
	}
	return v
}

// withVolume gives all servers a started volume with data.
func withVolume(all map[string]*glusterReport) {
	options := map[string]string{"storage.owner-uid": "2000", "storage.owner-gid": "3000", "cluster.granular-entry-heal": "off"}
	maps.Copy(options, glusterParams().Options)
	for _, r := range all {
		r.Volume = &glusterVolume{ID: "v1", Status: volumeStarted, Options: maps.Clone(options)}
		for _, n := range glusterNodes {
			r.Volume.Bricks = append(r.Volume.Bricks, n+":/data/brick/gv0")
		}
		r.Brick, r.BrickID, r.Online = brickData, "v1", true
	}
}

func TestGlusterDecisions(t *testing.T) {
	none := func(map[string]*glusterReport) {}
	for name, c := range map[string]struct {
		self   string
		change func(map[string]*glusterReport)
		do     glusterDo
		state  facts.State
		detail string
	}{
		"all empty: the lowest creates":     {"glusterfs1", none, glusterCreate, facts.Working, "creating volume gv0"},
		"all empty: the others wait":        {"glusterfs3", none, glusterNothing, facts.Waiting, "for glusterfs1 to create"},
		"one not heard: it may know more":   {"glusterfs1", func(a map[string]*glusterReport) { a["glusterfs2"] = nil }, glusterNothing, facts.Waiting, "glusterfs2 (not heard)"},
		"one still starting":                {"glusterfs1", func(a map[string]*glusterReport) { a["glusterfs2"].Running = false }, glusterNothing, facts.Waiting, "for glusterfs2 to start"},
		"no folder yet":                     {"glusterfs2", func(a map[string]*glusterReport) { a["glusterfs2"].Brick = brickNone }, glusterMakeBrick, facts.Working, ""},
		"files but no volume":               {"glusterfs1", func(a map[string]*glusterReport) { a["glusterfs3"].Brick, a["glusterfs3"].BrickID = brickData, "old" }, glusterNothing, facts.Stopped, "on glusterfs3 holds files (of volume old)"},
		"what an interrupted creation left": {"glusterfs1", func(a map[string]*glusterReport) { a["glusterfs3"].BrickID = "gone" }, glusterCreate, facts.Working, ""},
		"a peer has the volume, this not": {"glusterfs1", func(a map[string]*glusterReport) {
			withVolume(a)
			a["glusterfs1"].Volume, a["glusterfs1"].Brick = nil, brickNone
		}, glusterNothing, facts.Waiting, "to hand over volume"},
		"first boot":                         {"glusterfs2", func(a map[string]*glusterReport) { *a["glusterfs2"] = glusterReport{Brick: brickNone} }, glusterIdentify, facts.Working, ""},
		"killed between the pool's files":    {"glusterfs2", func(a map[string]*glusterReport) { *a["glusterfs2"] = glusterReport{Used: true, Pool: []string{"x"}} }, glusterIdentify, facts.Working, ""},
		"a server was added to the spec":     {"glusterfs2", func(a map[string]*glusterReport) { a["glusterfs2"].Running, a["glusterfs2"].Pool = false, nil }, glusterIdentify, facts.Working, ""},
		"ready to start":                     {"glusterfs2", func(a map[string]*glusterReport) { a["glusterfs2"].Running = false }, glusterStartUnit, facts.Working, ""},
		"state of another server":            {"glusterfs2", func(a map[string]*glusterReport) { a["glusterfs2"].UUID = "other" }, glusterNothing, facts.Stopped, "another server"},
		"image's own state, unused":          {"glusterfs2", func(a map[string]*glusterReport) { *a["glusterfs2"] = glusterReport{UUID: "other"} }, glusterIdentify, facts.Working, ""},
		"created, not started: lowest":       {"glusterfs1", func(a map[string]*glusterReport) { created(a, nil) }, glusterStart, facts.Working, ""},
		"created, not started: others":       {"glusterfs2", func(a map[string]*glusterReport) { created(a, nil) }, glusterNothing, facts.Waiting, "to be started"},
		"created, options half set":          {"glusterfs1", func(a map[string]*glusterReport) { created(a, []string{"storage.owner-uid"}) }, glusterSet, facts.Working, ""},
		"created, lowest away":               {"glusterfs2", func(a map[string]*glusterReport) { created(a, nil); a["glusterfs1"] = nil }, glusterStart, facts.Working, ""},
		"serving":                            {"glusterfs2", withVolume, glusterNothing, facts.Ready, "3 of 3 bricks online"},
		"serving, one away":                  {"glusterfs2", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs3"] = nil }, glusterNothing, facts.Ready, "2 of 3 bricks online, without glusterfs3"},
		"serving, alone":                     {"glusterfs2", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs3"], a["glusterfs1"] = nil, nil }, glusterNothing, facts.Waiting, "for a majority: 1 of 3"},
		"brick down":                         {"glusterfs2", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs2"].Online = false }, glusterForce, facts.Working, ""},
		"to heal: lowest":                    {"glusterfs1", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs2"].Pending = 7 }, glusterHeal, facts.Working, "catching up: 3 of 3 bricks online, under 10 entries to heal"},
		"to heal: others":                    {"glusterfs2", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs2"].Pending = 7 }, glusterNothing, facts.Working, "under 10 entries to heal"},
		"blamed by another":                  {"glusterfs2", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs1"].Blames = []int{1} }, glusterNothing, facts.Working, "catching up"},
		"another is blamed":                  {"glusterfs2", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs1"].Blames = []int{2} }, glusterNothing, facts.Ready, "3 of 3"},
		"stopped by hand":                    {"glusterfs1", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs1"].Volume.Status = 2 }, glusterNothing, facts.Stopped, "stopped by an operator"},
		"two volumes of one name":            {"glusterfs1", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs2"].Volume.ID = "v2" }, glusterNothing, facts.Stopped, "exists twice"},
		"brick of another volume":            {"glusterfs1", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs1"].BrickID = "v0" }, glusterNothing, facts.Stopped, "another volume (v0"},
		"blank brick: the others note it":    {"glusterfs1", func(a map[string]*glusterReport) { replaced(a) }, glusterBlame, facts.Working, "glusterfs3's brick is blank"},
		"noted, and not in the index":        {"glusterfs1", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs1"].Blames = []int{2} }, glusterBlame, facts.Working, ""},
		"blank brick: it waits for that":     {"glusterfs3", func(a map[string]*glusterReport) { replaced(a) }, glusterNothing, facts.Waiting, "for glusterfs1, glusterfs2 to note"},
		"blank brick: one has noted it":      {"glusterfs3", func(a map[string]*glusterReport) { replaced(a, "glusterfs1") }, glusterNothing, facts.Waiting, "for glusterfs2 to note"},
		"blank brick: all have":              {"glusterfs3", func(a map[string]*glusterReport) { replaced(a, "glusterfs1", "glusterfs2") }, glusterCopy, facts.Working, "copying"},
		"blank brick: all who are there":     {"glusterfs3", func(a map[string]*glusterReport) { replaced(a, "glusterfs1"); a["glusterfs2"] = nil }, glusterNothing, facts.Waiting, "for glusterfs2, who must note"},
		"blank brick: nobody with the files": {"glusterfs3", func(a map[string]*glusterReport) { replaced(a); a["glusterfs1"], a["glusterfs2"] = nil, nil }, glusterNothing, facts.Waiting, "for glusterfs1, glusterfs2, who must note"},
		"blank brick, a peer forced a start": {"glusterfs3", func(a map[string]*glusterReport) {
			replaced(a)
			a["glusterfs3"].Brick, a["glusterfs3"].BrickID = brickBare, "v1"
		}, glusterNothing, facts.Waiting, "to note"},
		"blank brick, restored": {"glusterfs3", func(a map[string]*glusterReport) {
			replaced(a, "glusterfs1", "glusterfs2")
			a["glusterfs3"].Brick, a["glusterfs3"].BrickID = brickEmpty, "v1"
		}, glusterForce, facts.Working, ""},
	} {
		step, status := decideGluster(glusterCase(c.self, c.change))
		if step.do != c.do || status.State != c.state || !strings.Contains(status.Detail, c.detail) {
			t.Errorf("%s: %q, %s: %s", name, step.do, status.State, status.Detail)
		}
	}
}

// A blank brick begins as a copy of one that lacks nothing, if no other lacks anything, and blank otherwise. A copy is made once.
func TestBlankBrickIsCopied(t *testing.T) {
	for name, c := range map[string]struct {
		change func(v *glusterView, all map[string]*glusterReport)
		do     glusterDo
	}{
		"they note what it lacks": {func(_ *glusterView, a map[string]*glusterReport) {
			a["glusterfs1"].Lacks, a["glusterfs2"].Lacks = []int{2}, []int{2}
		}, glusterCopy},
		"it is being copied": {func(_ *glusterView, a map[string]*glusterReport) { a["glusterfs3"].Copy = copyRuns }, glusterNothing},
		"and another one lacks something": {func(_ *glusterView, a map[string]*glusterReport) {
			a["glusterfs3"].Copy, a["glusterfs1"].Lacks = copyRuns, []int{1}
		}, glusterNothing},
		"it was copied":                {func(_ *glusterView, a map[string]*glusterReport) { a["glusterfs3"].Copy = copyDone }, glusterRestore},
		"that has failed":              {func(_ *glusterView, a map[string]*glusterReport) { a["glusterfs3"].Copy = copyFailed }, glusterRestore},
		"another one lacks something":  {func(_ *glusterView, a map[string]*glusterReport) { a["glusterfs1"].Lacks = []int{1} }, glusterRestore},
		"it is not known who lacks it": {func(_ *glusterView, a map[string]*glusterReport) { a["glusterfs2"].Lacks = []int{2, anyBrick} }, glusterRestore},
		"another one does not serve":   {func(_ *glusterView, a map[string]*glusterReport) { a["glusterfs1"].Online = false }, glusterRestore},
		"another one is blank too":     {func(_ *glusterView, a map[string]*glusterReport) { a["glusterfs1"].Brick = brickEmpty }, glusterRestore},
		"one knows an earlier state": {func(_ *glusterView, a map[string]*glusterReport) {
			for _, r := range a {
				r.Volume.Version = 2
			}
			a["glusterfs1"].Volume.Version, a["glusterfs1"].Volume.Bricks = 1, a["glusterfs1"].Volume.Bricks[:2]
		}, glusterRestore},
		"writes need no majority": {func(_ *glusterView, a map[string]*glusterReport) {
			a["glusterfs3"].Volume.Options["cluster.quorum-type"] = "fixed"
		}, glusterRestore},
		"there is a folder that may be used": {func(_ *glusterView, a map[string]*glusterReport) { a["glusterfs3"].Brick = brickBare }, glusterRestore},
		"members change":                     {func(v *glusterView, _ map[string]*glusterReport) { v.joint = true }, glusterRestore},
	} {
		var all map[string]*glusterReport
		v := glusterCase("glusterfs3", func(a map[string]*glusterReport) { replaced(a, "glusterfs1", "glusterfs2"); all = a })
		c.change(&v, all)
		for n, r := range all {
			if n != v.self {
				v.heard[n] = *r
			}
		}
		v.own = *all[v.self]
		step, status := decideGluster(v)
		if step.do != c.do || status.State != facts.Working || step.do == glusterCopy && step.from.Name != "glusterfs2" {
			t.Errorf("%s: %+v, %+v", name, step, status)
		}
	}
}

// A blank brick waits for a silent server, until an operator gives that server up.
func TestBlankBrickGoesOnWithoutAServer(t *testing.T) {
	v := glusterCase("glusterfs3", func(a map[string]*glusterReport) { replaced(a, "glusterfs1"); a["glusterfs2"] = nil })
	if step, status := decideGluster(v); step.do != glusterNothing || status.Missing != "glusterfs2" {
		t.Errorf("%+v, %+v", step, status)
	}
	v.members = []ensemble.Member{{Peer: facts.Peer{Name: "glusterfs2"}, GivenUp: true}}
	if step, status := decideGluster(v); step.do != glusterRestore {
		t.Errorf("%+v, %+v", step, status)
	}
}

// created gives all servers a volume that is not started and lacks some options.
func created(all map[string]*glusterReport, without []string) {
	withVolume(all)
	for _, r := range all {
		r.Volume.Status, r.Brick, r.Online = volumeCreated, brickEmpty, false
		for _, k := range without {
			delete(r.Volume.Options, k)
		}
	}
}

// replaced gives glusterfs3 a blank disk, which the servers in noted have marked as blank.
func replaced(all map[string]*glusterReport, noted ...string) {
	withVolume(all)
	all["glusterfs3"].Brick, all["glusterfs3"].BrickID, all["glusterfs3"].Online = brickNone, "", false
	for _, n := range noted {
		all[n].Blames = []int{2}
	}
}

// fourth returns the view of one of three servers, with glusterfs4 as another member, which has joined the pool.
func fourth(self string) glusterView {
	v := glusterCase(self, withVolume)
	v.nodes = append(slices.Clone(glusterNodes), "glusterfs4")
	v.target, v.joint, v.agreed = v.nodes, true, true
	v.uuids["glusterfs4"] = glusterUUID(testClusterID, "glusterfs4")
	v.members = append(v.members, ensemble.Member{Peer: facts.Peer{Name: "glusterfs4"}, In: 2})
	v.heard["glusterfs4"] = glusterReport{UUID: v.uuids["glusterfs4"], Running: true, Volume: v.own.Volume, Brick: brickBare, Pool: []string{v.uuids["glusterfs1"], v.uuids["glusterfs2"], v.uuids["glusterfs3"]}}
	v.alter(func(n string, r *glusterReport) {
		if n != "glusterfs4" {
			r.Pool = append(r.Pool, v.uuids["glusterfs4"])
		}
	})
	return v
}

// alter changes all reports of a view.
func (v *glusterView) alter(change func(name string, r *glusterReport)) {
	change(v.self, &v.own)
	for n, r := range v.heard {
		change(n, &r)
		v.heard[n] = r
	}
}

// reportOf returns a function that changes a server's report.
func reportOf(name string, change func(r *glusterReport)) func(v *glusterView) {
	return func(v *glusterView) {
		v.alter(func(n string, r *glusterReport) {
			if n == name {
				change(r)
			}
		})
	}
}

func TestGlusterChanges(t *testing.T) {
	noted := func(v *glusterView) { v.alter(func(_ string, r *glusterReport) { r.Blames = []int{3} }) }
	leaves := func(v *glusterView) {
		delete(v.heard, "glusterfs4")
		v.nodes, v.target = glusterNodes, []string{"glusterfs1", "glusterfs3"}
		v.alter(func(_ string, r *glusterReport) { r.Pool = r.Pool[:len(r.Pool)-1] })
	}
	gone := func(v *glusterView) {
		leaves(v)
		v.alter(func(_ string, r *glusterReport) {
			r.Volume.Bricks, r.Volume.IDs = []string{"glusterfs1:/data/brick/gv0", "glusterfs3:/data/brick/gv0"}, []int{0, 2}
		})
	}
	for name, c := range map[string]struct {
		change []func(v *glusterView)
		do     glusterDo
		detail string
	}{
		"a new server is not known": {[]func(v *glusterView){reportOf("glusterfs1", func(r *glusterReport) { r.Pool = r.Pool[:2] })}, glusterProbe, ""},
		"one that does not know this one would refuse": {[]func(v *glusterView){reportOf("glusterfs1", func(r *glusterReport) { r.Pool = r.Pool[:2] }),
			reportOf("glusterfs4", func(r *glusterReport) { r.Pool = nil })}, glusterBlame, ""},
		"its brick is noted to lack everything": {nil, glusterBlame, "glusterfs4 is to have is blank"},
		"all have noted it":                     {[]func(v *glusterView){noted}, glusterAdd, ""},
		"one has not noted it":                  {[]func(v *glusterView){noted, reportOf("glusterfs3", func(r *glusterReport) { r.Blames = nil })}, glusterNothing, "for glusterfs3 to note"},
		"something to heal":                     {[]func(v *glusterView){noted, reportOf("glusterfs3", func(r *glusterReport) { r.Lacks = []int{1} })}, glusterNothing, "for all copies to be equal (glusterfs3 has"},
		"a brick is down":                       {[]func(v *glusterView){noted, reportOf("glusterfs3", func(r *glusterReport) { r.Online = false })}, glusterNothing, "for glusterfs3 to serve"},
		"the new brick has files":               {[]func(v *glusterView){noted, reportOf("glusterfs4", func(r *glusterReport) { r.Brick = brickData })}, glusterNothing, "for glusterfs4 to have an empty brick"},
		"another is to come later": {[]func(v *glusterView){noted, func(v *glusterView) {
			v.target = append([]string{"glusterfs5"}, v.target...)
			v.members = append(v.members, ensemble.Member{Peer: facts.Peer{Name: "glusterfs5"}, In: 2})
			v.uuids["glusterfs5"] = glusterUUID(testClusterID, "glusterfs5")
		}}, glusterAdd, ""},
		"members disagree": {[]func(v *glusterView){noted, func(v *glusterView) { v.agreed = false }}, glusterNothing, "for all servers to know the same"},
		"not all conform":  {[]func(v *glusterView){noted, func(v *glusterView) { v.target = nil }}, glusterNothing, "3 of 3 bricks online"},
		"one leaves":       {[]func(v *glusterView){leaves}, glusterRemove, "removing the brick of glusterfs2"},
		"one leaves and knows of something to heal":     {[]func(v *glusterView){leaves, reportOf("glusterfs2", func(r *glusterReport) { r.Lacks = []int{2} })}, glusterNothing, "for all copies to be equal"},
		"one leaves, and only that one lacks something": {[]func(v *glusterView){leaves, reportOf("glusterfs3", func(r *glusterReport) { r.Lacks = []int{1} })}, glusterRemove, ""},
		"one leaves, out of reach":                      {[]func(v *glusterView){leaves, reportOf("glusterfs2", func(r *glusterReport) { r.Online, r.Lacks = false, []int{2} })}, glusterRemove, ""},
		"one leaves, unclear who lacks something":       {[]func(v *glusterView){leaves, reportOf("glusterfs3", func(r *glusterReport) { r.Lacks = []int{anyBrick} })}, glusterNothing, "equal"},
		"one has left, and is in the pool":              {[]func(v *glusterView){gone}, glusterDetach, "removing glusterfs2 from the pool"},
	} {
		v := fourth("glusterfs1")
		for _, change := range c.change {
			change(&v)
		}
		step, status := decideGluster(v)
		if step.do != c.do || !strings.Contains(status.Detail, c.detail) {
			t.Errorf("%s: %q, %s: %s", name, step.do, status.State, status.Detail)
		}
		if step.do == glusterBlame && step.brick != 3 || step.do == glusterAdd && (step.server != "glusterfs4" || step.replicas != 4) || step.do == glusterRemove && (step.server != "glusterfs2" || step.replicas != 2) {
			t.Errorf("%s: %+v", name, step)
		}
	}
	// A silent server that leaves is waited for until an operator gives it up.
	v := fourth("glusterfs1")
	leaves(&v)
	delete(v.heard, "glusterfs2")
	v.agreed = false
	if step, status := decideGluster(v); step.do != glusterNothing || status.State != facts.Ready || status.Missing != "glusterfs2" {
		t.Errorf("%+v, %+v", step, status)
	}
	v.members, v.agreed = []ensemble.Member{{Peer: facts.Peer{Name: "glusterfs2"}, GivenUp: true}}, true
	if step, status := decideGluster(v); step.do != glusterRemove {
		t.Errorf("%+v, %+v", step, status)
	}
	// With a fixed quorum, one that leaves may have what the others do not know of.
	v = fourth("glusterfs1")
	leaves(&v)
	v.alter(func(n string, r *glusterReport) {
		r.Volume.Options["cluster.quorum-type"] = "fixed"
		r.Online = n != "glusterfs2"
	})
	v.params.Options["cluster.quorum-type"] = "fixed"
	if step, status := decideGluster(v); step.do != glusterNothing || !strings.Contains(status.Detail, "for glusterfs2 to serve") {
		t.Errorf("%+v, %+v", step, status)
	}
	// A disk that has been part of the volume before is not taken for an empty one.
	v = fourth("glusterfs1")
	v.self, v.own = "glusterfs4", v.heard["glusterfs4"]
	v.own.Brick, v.own.BrickID = brickData, "v1"
	if step, status := decideGluster(v); step.do != glusterNothing || status.State != facts.Stopped {
		t.Errorf("%+v, %+v", step, status)
	}
}

// halfAdded returns the view of one of three servers after glusterfs4's brick was added in memory, and stored by nobody.
func halfAdded(self string) glusterView {
	v := fourth("glusterfs1")
	v.whole, v.healHeld = true, time.Second
	v.alter(func(n string, r *glusterReport) {
		vol := *r.Volume
		r.Stored = vol.Bricks
		vol.Bricks, vol.IDs, vol.Version = append(slices.Clone(vol.Bricks), "glusterfs4:/data/brick/gv0"), []int{0, 1, 2, 3}, 5
		r.Volume, r.Blames, r.Lacks, r.Pending = &vol, []int{3}, []int{3}, 1
		if n == "glusterfs4" {
			r.Brick, r.BrickID, r.Fresh, r.Lacks = brickEmpty, vol.ID, true, nil
		}
	})
	if self != v.self {
		v.heard[v.self] = v.own
		v.own = v.heard[self]
		delete(v.heard, self)
		v.self = self
	}
	return v
}

// restarted is what a server reports that has had the volume of before again.
func restarted(v *glusterView, name string) {
	v.alter(func(n string, r *glusterReport) {
		if n == name {
			vol := *r.Volume
			vol.Bricks, vol.IDs = vol.Bricks[:3], vol.IDs[:3]
			r.Volume, r.Stored, r.Lacks = &vol, nil, nil
		}
	})
}

func TestGlusterAfterAFailedChange(t *testing.T) {
	back := func(names ...string) func(v *glusterView) {
		return func(v *glusterView) {
			for _, n := range names {
				restarted(v, n)
			}
		}
	}
	later := func(r *glusterReport) { // it has stored the change
		vol := *r.Volume
		vol.Version = 6
		r.Volume, r.Stored = &vol, nil
	}
	clear := func(v *glusterView) { v.unclaimedFor = changeLimit }
	down := func(names ...string) func(v *glusterView) {
		return func(v *glusterView) {
			v.alter(func(n string, r *glusterReport) { r.Online = r.Online && !slices.Contains(names, n) })
		}
	}
	apart := func(name string, others ...string) func(v *glusterView) { // it and these have rejected each other
		return func(v *glusterView) {
			v.alter(func(n string, r *glusterReport) {
				for _, o := range others {
					other := v.uuids[o]
					if n == o {
						other = v.uuids[name]
					} else if n != name {
						continue
					}
					r.Pool = slices.DeleteFunc(slices.Clone(r.Pool), func(u string) bool { return u == other })
					r.Rejected = append(r.Rejected, other)
				}
			})
		}
	}
	rejected := func(name string) func(v *glusterView) { return apart(name, glusterNodes...) }
	for name, c := range map[string]struct {
		self   string
		change []func(v *glusterView)
		do     glusterDo
		detail string
	}{
		"the change may go on":                              {"glusterfs1", []func(v *glusterView){func(v *glusterView) { v.staleHeld = time.Second }}, glusterNothing, "under 10 entries to heal; the brick of glusterfs4 is not added everywhere"},
		"the first undoes it":                               {"glusterfs1", nil, glusterRemove, "undoing the addition of glusterfs4's brick"},
		"the others wait for it":                            {"glusterfs2", nil, glusterNothing, "waits for glusterfs1"},
		"and the new one":                                   {"glusterfs4", nil, glusterNothing, "waits for glusterfs1"},
		"the new one has restarted":                         {"glusterfs1", []func(v *glusterView){back("glusterfs4")}, glusterRemove, ""},
		"and is rejected":                                   {"glusterfs1", []func(v *glusterView){back("glusterfs4"), rejected("glusterfs4")}, glusterRemove, ""},
		"the new one is away":                               {"glusterfs1", []func(v *glusterView){func(v *glusterView) { delete(v.heard, "glusterfs4") }}, glusterRemove, ""},
		"the first has restarted":                           {"glusterfs2", []func(v *glusterView){back("glusterfs1")}, glusterRemove, ""},
		"one is silent":                                     {"glusterfs2", []func(v *glusterView){func(v *glusterView) { delete(v.heard, "glusterfs1") }}, glusterNothing, "waits for glusterfs1, who may have stored"},
		"one's glusterd is down":                            {"glusterfs2", []func(v *glusterView){reportOf("glusterfs1", func(r *glusterReport) { r.Running = false })}, glusterNothing, "waits for glusterfs1, who may have stored"},
		"one's brick is down":                               {"glusterfs1", []func(v *glusterView){down("glusterfs2"), reportOf("glusterfs3", func(r *glusterReport) { r.Lacks = []int{1, 3} })}, glusterRemove, ""},
		"too few bricks serve":                              {"glusterfs1", []func(v *glusterView){down("glusterfs2", "glusterfs3")}, glusterNothing, "for a majority of the other bricks"},
		"one that serves lacks something":                   {"glusterfs1", []func(v *glusterView){reportOf("glusterfs3", func(r *glusterReport) { r.Lacks = []int{1} })}, glusterNothing, "to be equal (glusterfs3 has"},
		"its brick does not start":                          {"glusterfs1", []func(v *glusterView){down("glusterfs1")}, glusterStop, "not stored"},
		"the others would stop theirs":                      {"glusterfs1", []func(v *glusterView){down("glusterfs1"), rejected("glusterfs4")}, glusterForce, ""},
		"nothing changes meanwhile":                         {"glusterfs1", []func(v *glusterView){back("glusterfs4", "glusterfs1"), reportOf("glusterfs1", func(r *glusterReport) { r.Volume.Options = nil })}, glusterNothing, "3 of 3"},
		"but bricks start":                                  {"glusterfs1", []func(v *glusterView){func(v *glusterView) { v.staleHeld = time.Second }, down("glusterfs1")}, glusterForce, ""},
		"only the new one has it: it restarts":              {"glusterfs4", []func(v *glusterView){back(glusterNodes...)}, glusterStop, "not stored"},
		"the others wait for that":                          {"glusterfs1", []func(v *glusterView){back(glusterNodes...)}, glusterNothing, "waits for glusterfs4 to restart"},
		"and has stored it":                                 {"glusterfs1", []func(v *glusterView){back(glusterNodes...), rejected("glusterfs4")}, glusterSet, "storing the volume once more"},
		"one of the others does that":                       {"glusterfs2", []func(v *glusterView){back(glusterNodes...), rejected("glusterfs4")}, glusterNothing, "waits for glusterfs1 to store"},
		"once they agree, it connects anew":                 {"glusterfs4", []func(v *glusterView){back("glusterfs1", "glusterfs2", "glusterfs3", "glusterfs4"), rejected("glusterfs4")}, glusterStop, "rejected each other"},
		"so who is rejected comes first":                    {"glusterfs3", []func(v *glusterView){reportOf("glusterfs1", later), reportOf("glusterfs4", later), back("glusterfs2", "glusterfs3"), apart("glusterfs3", "glusterfs1", "glusterfs4")}, glusterStop, "earlier state"},
		"and the one before waits":                          {"glusterfs2", []func(v *glusterView){reportOf("glusterfs1", later), reportOf("glusterfs4", later), back("glusterfs2", "glusterfs3"), apart("glusterfs3", "glusterfs1", "glusterfs4")}, glusterNothing, "others would lose glusterd's quorum"},
		"who is rejected by those that serve is not missed": {"glusterfs3", []func(v *glusterView){reportOf("glusterfs1", later), reportOf("glusterfs2", later), back("glusterfs3", "glusterfs4"), apart("glusterfs3", "glusterfs1", "glusterfs2"), apart("glusterfs4", "glusterfs1", "glusterfs2")}, glusterStop, "earlier state"},
		"the new one is, by that one":                       {"glusterfs4", []func(v *glusterView){reportOf("glusterfs1", later), reportOf("glusterfs2", later), back("glusterfs3", "glusterfs4"), apart("glusterfs3", "glusterfs1", "glusterfs2"), apart("glusterfs4", "glusterfs1", "glusterfs2")}, glusterNothing, "others would lose glusterd's quorum"},
		"the others would lose the quorum":                  {"glusterfs2", []func(v *glusterView){reportOf("glusterfs1", later), reportOf("glusterfs3", later), back("glusterfs2", "glusterfs4"), rejected("glusterfs4")}, glusterNothing, "others would lose glusterd's quorum"},
		"one has stored it: the others are behind":          {"glusterfs2", []func(v *glusterView){reportOf("glusterfs1", later), back("glusterfs2", "glusterfs4")}, glusterNothing, "waits for glusterfs4 to do so"},
		"and follow":                                        {"glusterfs2", []func(v *glusterView){reportOf("glusterfs1", later), reportOf("glusterfs4", later), back("glusterfs2")}, glusterStop, "earlier state"},
		"the new brick is kept for a while":                 {"glusterfs4", []func(v *glusterView){back("glusterfs1", "glusterfs2", "glusterfs3", "glusterfs4")}, glusterNothing, "to finish adding"},
		"then it is cleared":                                {"glusterfs4", []func(v *glusterView){back("glusterfs1", "glusterfs2", "glusterfs3", "glusterfs4"), clear}, glusterClear, ""},
		"also with files, since they are copies":            {"glusterfs4", []func(v *glusterView){back("glusterfs1", "glusterfs2", "glusterfs3", "glusterfs4"), reportOf("glusterfs4", func(r *glusterReport) { r.Brick = brickData }), clear}, glusterClear, ""},
		"but not if it was the volume's":                    {"glusterfs4", []func(v *glusterView){back("glusterfs1", "glusterfs2", "glusterfs3", "glusterfs4"), reportOf("glusterfs4", func(r *glusterReport) { r.Brick, r.Fresh = brickData, false }), clear}, glusterNothing, "attach an empty data disk"},
		"all have stored it":                                {"glusterfs4", []func(v *glusterView){reportOf("glusterfs1", later), reportOf("glusterfs2", later), reportOf("glusterfs3", later), reportOf("glusterfs4", later)}, glusterKeep, ""},
	} {
		v := halfAdded(c.self)
		for _, change := range c.change {
			change(&v)
		}
		step, status := decideGluster(v)
		if step.do != c.do || !strings.Contains(status.Detail, c.detail) {
			t.Errorf("%s: %q, %s: %s", name, step.do, status.State, status.Detail)
		}
		if step.do == glusterRemove && (step.server != "glusterfs4" || step.replicas != 3) {
			t.Errorf("%s: %+v", name, step)
		}
	}
}

// A new server's brick is claimed as long as one server may be adding it: also one that says nothing, since it may be busy with that.
func TestGlusterBrickIsClaimed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(v *glusterView)
		want   bool
	}{
		"nobody has it":              {func(v *glusterView) {}, true},
		"one is silent":              {func(v *glusterView) { delete(v.heard, "glusterfs1") }, false},
		"one that is given up":       {func(v *glusterView) { delete(v.heard, "glusterfs1"); v.members[0].GivenUp = true }, true},
		"one that leaves":            {func(v *glusterView) { delete(v.heard, "glusterfs1"); v.target = v.target[1:] }, true},
		"one has it":                 {func(v *glusterView) { v.heard["glusterfs2"] = halfAdded("glusterfs1").heard["glusterfs2"] }, false},
		"one's glusterd is starting": {func(v *glusterView) { v.heard["glusterfs2"] = glusterReport{} }, false},
		"it is not prepared":         {func(v *glusterView) { v.own.BrickID = "" }, false},
		"members disagree":           {func(v *glusterView) { v.agreed = false }, false},
	} {
		v := halfAdded("glusterfs4")
		for _, n := range v.nodes {
			restarted(&v, n)
		}
		c.change(&v)
		if got := v.unclaimed(); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// Only a brick with the agent's mark is cleared of files.
func TestClearBrick(t *testing.T) {
	brick := filepath.Join(t.TempDir(), "data", "gv0")
	fill := func() {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(brick, ".glusterfs", "00"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(brick, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	is := func(want brickState) {
		t.Helper()
		if got, err := brickContent(brick); got != want || err != nil {
			t.Errorf("%s, %v", got, err)
		}
	}
	if err := makeBrick(brick); err != nil {
		t.Fatal(err)
	}
	is(brickBare)
	fill()
	if err := clearBrick(brick); err != nil {
		t.Fatal(err)
	}
	is(brickBare)
	if err := os.Remove(freshMark(brick)); err != nil {
		t.Fatal(err)
	}
	fill()
	if err := clearBrick(brick); err == nil {
		t.Error("files that may be the only copy are gone")
	}
	is(brickData)
}

// What a brick lacks is noted under the brick's id, which is not its place in the volume once another brick has been removed.
func TestBricksAreKnownByTheirIDs(t *testing.T) {
	v := glusterCase("glusterfs1", func(a map[string]*glusterReport) { replaced(a) })
	v.alter(func(_ string, r *glusterReport) { r.Volume.IDs = []int{0, 4, 3} })
	if step, _ := decideGluster(v); step.do != glusterBlame || step.brick != 3 || v.own.Volume.nextID() != 5 {
		t.Errorf("%+v, next %d", step, v.own.Volume.nextID())
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bricks"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"info": "type=2\nversion=7\n", "bricks/glusterfs1:-b": "uuid=u\nhostname=glusterfs1\npath=/b\nbrick-id=gv0-client-0\n", "bricks/glusterfs3:-b": "hostname=glusterfs3\npath=/b\nbrick-id=gv0-client-12\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		bricks []string
		ids    []int
		stored []string
	}{
		{[]string{"glusterfs3:/b", "glusterfs1:/b"}, []int{12, 0}, nil},
		// After a change that failed half-way, glusterd knows others than it has stored. A new one has the next id.
		{[]string{"glusterfs1:/b", "glusterfs3:/b", "glusterfs4:/b"}, []int{0, 12, 13}, []string{"glusterfs1:/b", "glusterfs3:/b"}},
		{[]string{"glusterfs1:/b"}, []int{0}, []string{"glusterfs1:/b", "glusterfs3:/b"}},
	} {
		vol := glusterVolume{Bricks: c.bricks}
		if stored, err := readVolume(dir, "gv0", &vol); err != nil || vol.Version != 7 || !slices.Equal(vol.IDs, c.ids) || !slices.Equal(stored, c.stored) {
			t.Errorf("%v: %+v, stored %v, %v", c.bricks, vol, stored, err)
		}
	}
	// glusterd has stored the third one in the middle of a change: clients are not told.
	for name, text := range map[string]string{"bricks/glusterfs4:-b": "hostname=glusterfs4\npath=/b\nbrick-id=gv0-client-13\n",
		"gv0.tcp-fuse.vol": "volume gv0-client-0\n    type protocol/client\n    option remote-subvolume /b\n    option remote-host glusterfs1\nend-volume\n\n" +
			"volume gv0-client-12\n    option remote-host glusterfs3\n    option remote-subvolume /b\nend-volume\n\nvolume gv0-replicate-0\n    subvolumes gv0-client-0 gv0-client-12\nend-volume\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	vol := glusterVolume{Bricks: []string{"glusterfs1:/b", "glusterfs3:/b", "glusterfs4:/b"}}
	if stored, err := readVolume(dir, "gv0", &vol); err != nil || !slices.Equal(vol.IDs, []int{0, 12, 13}) || !slices.Equal(stored, vol.Bricks[:2]) {
		t.Errorf("%+v, stored %v, %v", vol, stored, err)
	}
}

// The mark for a blank brick takes effect only with its entry in the index, which is written first; later only the mark
// is checked.
func TestBlameHasItsIndexEntry(t *testing.T) {
	root := t.TempDir()
	err := blame(root, "gv0", 1)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) {
		t.Skipf("needs root, and a file system with trusted attributes: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if c, err := readChangelog(root, "gv0", 1); err != nil || c.data == 0 || c.metadata == 0 || c.entry == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := os.Stat(filepath.Join(indexDir(root), rootGFID)); err != nil {
		t.Errorf("no index entry: %v", err)
	}
	// Without an index entry there is no mark either.
	root = t.TempDir()
	if err := os.WriteFile(filepath.Join(root, ".glusterfs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := blame(root, "gv0", 1); err == nil {
		t.Error("noted without an index entry")
	}
	if c, err := readChangelog(root, "gv0", 1); err != nil || c != (changelog{}) {
		t.Errorf("noted all the same: %+v, %v", c, err)
	}
}

// A server reports those that its glusterd has rejected, too.
func TestGlusterPeers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "peers"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a": "uuid=a\nstate=3\nhostname1=glusterfs2\n", "b": "uuid=b\nstate=6\nhostname1=glusterfs3\n", "glusterfs4": "uuid=00000000-0000-0000-0000-000000000000\nstate=0\nhostname1=glusterfs4\n"} {
		if err := os.WriteFile(filepath.Join(dir, "peers", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := glusterUnit{params: &facts.GlusterParams{WorkDir: dir}}
	var r glusterReport
	if err := g.lookAtState(&r); err != nil || !slices.Equal(r.Pool, []string{"a"}) || !slices.Equal(r.Rejected, []string{"b"}) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestOpVersion(t *testing.T) {
	for text, want := range map[string]int{
		"glusterfs 10.3\nRepository revision: git": 100000, "glusterfs 9.6": 90000, "glusterfs 11.1": 110000,
		"": 0, "glusterfs": 0, "bash: glusterd: not found": 0, "glusterfs 3.12": 0,
	} {
		if got, err := opVersion(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func FuzzParseVolumes(f *testing.F) {
	f.Add([]byte(`<?xml version="1.0" encoding="UTF-8" standalone="yes"?><cliOutput><opRet>0</opRet><opErrno>0</opErrno><opErrstr/><volInfo><volumes><volume><name>gv0</name><id>3dbf3707</id><status>1</status><bricks><brick uuid="a">h:/b<name>h:/b</name></brick></bricks><options><option><name>a</name><value>b</value></option></options></volume><count>1</count></volumes></volInfo></cliOutput>`))
	f.Add([]byte(`<cliOutput><opRet>-1</opRet><opErrstr>Volume gv0 does not exist</opErrstr></cliOutput>`))
	f.Add([]byte("Connection failed. Please check if gluster daemon is operational.\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		volumes, err := parseVolumes(data)
		if err != nil && volumes != nil {
			t.Error("an answer and an error")
		}
		for name, v := range volumes {
			if name == "" || v.ID == "" {
				t.Errorf("volume %q has id %q", name, v.ID)
			}
		}
	})
}

func TestParseVolumes(t *testing.T) {
	got, err := parseVolumes([]byte(`<?xml version="1.0"?><cliOutput><opRet>0</opRet><volInfo><volumes><volume><name>gv0</name><id>i</id><status>1</status>` +
		`<bricks><brick uuid="a">h:/b<name>h:/b</name><hostUuid>a</hostUuid></brick></bricks><options><option><name>k</name><value>v</value></option></options></volume></volumes></volInfo></cliOutput>`))
	want := `{"gv0":{"id":"i","status":1,"bricks":["h:/b"],"options":{"k":"v"}}}`
	if data, _ := json.Marshal(got); err != nil || string(data) != want {
		t.Errorf("%s, %v", data, err)
	}
	if _, err := parseVolumes([]byte(`<cliOutput><opRet>-1</opRet><opErrstr>no volumes here</opErrstr></cliOutput>`)); err == nil || err.Error() != "no volumes here" {
		t.Errorf("an error of glusterd's: %v", err)
	}
}

// The rest tests three real servers, each with its own namespaces and disk.

// glusterTurn is the result of one Observe and Step of a server's component.
type glusterTurn struct {
	Report  json.RawMessage
	Status  facts.Status
	Settled int // the generation whose members work by themselves; 0: none
}

// glusterAsk asks a server for a turn.
type glusterAsk struct {
	Fresh bool // as if the agent had been killed since the last turn
	Known facts.Facts
	World World
}

// TestMain lets the test binary run itself as one server of TestGlusterForReal.
func TestMain(m *testing.M) {
	if name := os.Getenv("IMAGEGEN_TEST_GLUSTER"); name != "" {
		serveGluster()
		os.Exit(0)
	}
	debug.SetGCPercent(400) // the simulator makes much garbage and keeps little
	os.Exit(m.Run())
}

// serveGluster runs as a server. It reads peers' reports and answers with its own, until the input ends.
func serveGluster() {
	ctx := context.Background()
	var c Component
	var serving sync.Once
	in, out := json.NewDecoder(os.NewFile(3, "in")), json.NewEncoder(os.NewFile(4, "out"))
	for {
		var ask glusterAsk
		if in.Decode(&ask) != nil {
			return
		}
		if c == nil || ask.Fresh {
			if c != nil {
				c.(*gluster).close()
			}
			n := Node{Facts: ask.Known, Dir: "/run", Log: func(format string, args ...any) {
				fmt.Fprintf(os.Stderr, ask.Known.Node.Name+": "+format+"\n", args...)
			}, Working: func(string) {}}
			server := &glusterUnit{node: n, params: glusterParams(), fetch: fetchInLab}
			c = makeGluster(n, glusterParams(), server)
			serving.Do(func() { go http.ListenAndServe(fmt.Sprintf(":%d", facts.APIPort), http.HandlerFunc(server.serveBrick)) })
		}
		var turn glusterTurn
		report, err := c.Observe(ctx)
		if err == nil {
			turn.Report, _ = json.Marshal(report)
			ask.World.Self, ask.World.Peers = ask.Known.Node, ask.Known.Peers
			turn.Status, err = c.Step(ctx, ask.World)
			turn.Settled, _ = c.(settler).settled(ask.World)
		}
		if err != nil {
			turn.Status = facts.Status{State: facts.Failed, Detail: err.Error()}
		}
		out.Encode(turn)
	}
}

// fetchInLab asks for a peer's brick without TLS.
func fetchInLab(ctx context.Context, from facts.Peer) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d%s", from.IP, facts.APIPort, facts.BrickPath), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, errors.New(resp.Status)
	}
	return slowBody{resp.Body}, nil
}

// slowBody comes over a network of 1.6 MB/s, so that clients change what is being copied.
type slowBody struct{ io.ReadCloser }

func (s slowBody) Read(b []byte) (int, error) {
	time.Sleep(20 * time.Millisecond)
	return s.ReadCloser.Read(b[:min(len(b), 32<<10)])
}

// glusterLab is up to four servers on a bridge.
type glusterLab struct {
	t     *testing.T
	dir   string
	seeds map[string]facts.Membership // what each server's seed says
	joint facts.Joint                 // what all servers count; empty: each what its seed says
	up    map[string]*serverProcess
	last  map[string]glusterTurn
}

// glusterNumber is the number in a server's name.
func glusterNumber(n string) int { return int(n[len(n)-1] - '0') }

// glusterGeneration has these servers, each at the address with its number.
func glusterGeneration(number int, names ...string) facts.Membership {
	m := facts.Membership{Number: number}
	for i, n := range names {
		m.Members = append(m.Members, facts.Peer{Name: n, Role: "glusterfs", IP: fmt.Sprintf("10.99.0.%d", glusterNumber(n)), Index: i})
	}
	return m
}

// seed gives a server its part of a generation.
func (l *glusterLab) seed(n string, m facts.Membership) {
	l.seeds[n] = m
	hosts := "127.0.0.1 localhost\n"
	for _, p := range m.Members {
		hosts += p.IP + " " + p.Name + "\n"
	}
	// In place: it is mounted where the server looks.
	if err := os.WriteFile(filepath.Join(l.dir, n+".hosts"), []byte(hosts), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// change makes a generation the newest one in use, and gives it to these servers.
func (l *glusterLab) change(m facts.Membership, names ...string) {
	if len(l.joint.InUse) == 0 {
		l.joint = facts.Joint{Role: "glusterfs", InUse: []facts.Membership{l.seeds[names[0]]}}
	}
	l.joint.InUse = append(l.joint.InUse, m)
	for _, n := range names {
		l.seed(n, m)
	}
}

// known returns what a server's seed says.
func (l *glusterLab) known(n string) facts.Facts {
	known := facts.Facts{ClusterID: testClusterID}
	for _, p := range l.seeds[n].Members {
		if p.Name == n {
			known.Node = p
		} else {
			known.Peers = append(known.Peers, p)
		}
	}
	return known
}

// counts returns what a server counts; nil: what its seed says.
func (l *glusterLab) counts(n string) *facts.Joint {
	if len(l.joint.InUse) == 0 {
		return nil
	}
	j := l.joint
	j.Number = l.seeds[n].Number
	return &j
}

type serverProcess struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
	pid string // of the first process in the server's namespaces
}

func sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := exec.Command("bash", append([]string{"-euc", script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func newGlusterLab(t *testing.T) *glusterLab {
	if os.Getenv("IMAGEGEN_E2E") == "" {
		t.Skip("SKIPPED: takes a minute; make e2e runs it, with IMAGEGEN_E2E=1")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for network namespaces and mounts")
	}
	for _, tool := range []string{"glusterd", "gluster", "ip", "nsenter", "unshare", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: needs %s (apt-get install glusterfs-server iproute2 util-linux e2fsprogs)", tool)
		}
	}
	l := &glusterLab{t: t, dir: t.TempDir(), seeds: map[string]facts.Membership{}, up: map[string]*serverProcess{}, last: map[string]glusterTurn{}}
	t.Cleanup(func() {
		for n := range l.up {
			l.off(n)
		}
		for i := range 5 {
			exec.Command("ip", "netns", "del", fmt.Sprintf("igt%d-%d", os.Getpid(), i)).Run()
		}
	})
	bin := filepath.Join(l.dir, "bin")
	os.Mkdir(bin, 0o755)
	os.WriteFile(filepath.Join(bin, "systemctl"), []byte(`#!/bin/bash
p=$(cat /run/glusterd.pid 2>/dev/null); [ -n "$p" ] && kill -0 $p 2>/dev/null || p=0
case $1 in
show) [ $p = 0 ] && a=inactive || a=active; printf 'LoadState=loaded\nActiveState=%s\nSubState=x\nResult=success\nMainPID=%s\n' $a $p;;
start) exec glusterd -p /run/glusterd.pid;;
stop) [ $p = 0 ] || kill $p;;
esac
`), 0o755)
	os.WriteFile(filepath.Join(bin, "journalctl"), []byte("#!/bin/sh\n"), 0o755)
	sh(t, `ip netns add $1-0; ip -n $1-0 link add br0 type bridge; ip -n $1-0 link set br0 up
for i in 1 2 3 4; do
 ip netns add $1-$i; ip -n $1-$i link set lo up
 ip link add eth0 netns $1-$i type veth peer name v$i netns $1-0
 ip -n $1-0 link set v$i master br0 up; ip -n $1-$i link set eth0 up; ip -n $1-$i addr add 10.99.0.$i/24 dev eth0
done`, fmt.Sprintf("igt%d", os.Getpid()))
	for _, n := range glusterNodes {
		l.blank(n)
		l.seed(n, glusterGeneration(1, glusterNodes...))
	}
	return l
}

// blank replaces a server's disk.
func (l *glusterLab) blank(n string) {
	sh(l.t, `rm -f $1; truncate -s 1G $1; mkfs.ext4 -q -F -I 512 $1`, filepath.Join(l.dir, n+".disk"))
}

// on starts a server.
func (l *glusterLab) on(n string) {
	l.t.Helper()
	netns := fmt.Sprintf("/run/netns/igt%d-%d", os.Getpid(), glusterNumber(n))
	inside := `mount --make-rprivate /; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/log; mount -t tmpfs tmpfs /mnt; mkdir -p /var/log/glusterfs /mnt/data /mnt/client
mount -o loop $D/$N.disk /mnt/data; mkdir -p /mnt/data/lib /mnt/data/data /data /var/lib/glusterd
mount --bind /mnt/data/data /data; mount --bind /mnt/data/lib /var/lib/glusterd; mount --bind $D/$N.hosts /etc/hosts; hostname $N
# The image has no geo-replication; a character device 0/0 is overlayfs' mark of a removed file.
mkdir /run/removed; mknod /run/removed/gsyncd c 0 0; for f in /usr/lib/*/glusterfs/gsyncd; do mount -t overlay overlay -o "lowerdir=/run/removed:${f%/*}" "${f%/*}"; done
PATH=$D/bin:$PATH IMAGEGEN_TEST_GLUSTER=$N $BIN & wait $!`
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+netns, "unshare", "-m", "-p", "-u", "--fork", "--kill-child", "--mount-proc", "bash", "-euc", inside)
	cmd.Env = append(os.Environ(), "N="+n, "D="+l.dir, "BIN="+self)
	cmd.Stderr = os.Stderr
	r, w, _ := os.Pipe()
	r2, w2, _ := os.Pipe()
	cmd.ExtraFiles = []*os.File{r, w2}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	r.Close()
	w2.Close()
	s := &serverProcess{cmd: cmd, in: json.NewEncoder(w), out: json.NewDecoder(bufio.NewReader(r2))}
	l.up[n] = s
	l.turn(n, false) // it answers, so its namespaces are there
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	s.pid = strings.TrimSpace(string(data))
}

// off cuts a server's power.
func (l *glusterLab) off(n string) {
	s := l.up[n]
	delete(l.up, n)
	delete(l.last, n)
	exec.Command("kill", "-9", s.pid).Run()
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// inside runs a command in a server's namespaces.
func (l *glusterLab) inside(n, script string) string {
	l.t.Helper()
	return sh(l.t, `nsenter -t $1 -m -n -p -u bash -euc "$2"`, l.up[n].pid, script)
}

func (l *glusterLab) turn(n string, fresh bool) (glusterTurn, error) {
	w := World{Reports: map[string]PeerReport{}}
	for other, turn := range l.last {
		if other != n && turn.Report != nil {
			w.Reports[other] = PeerReport{NodeReport: facts.NodeReport{Node: l.known(other).Node, Joint: l.counts(other), Components: map[string]facts.ComponentReport{"gluster": {Kind: "gluster", Report: turn.Report}}}}
		}
	}
	if j := l.counts(n); j != nil {
		w.Joint = *j
	}
	s := l.up[n]
	var turn glusterTurn
	if err := s.in.Encode(glusterAsk{fresh, l.known(n), w}); err != nil {
		return turn, err
	}
	err := s.out.Decode(&turn)
	return turn, err
}

// until drives all servers until done returns true.
func (l *glusterLab) until(what string, limit time.Duration, fresh bool, done func() bool) {
	l.t.Helper()
	began := time.Now()
	said := map[string]facts.Status{}
	for !done() {
		if time.Since(began) > limit {
			l.t.Fatalf("not %s after %v: %+v", what, limit, said)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		turns := map[string]glusterTurn{}
		for n := range l.up {
			wg.Go(func() {
				turn, err := l.turn(n, fresh)
				if err != nil && err != io.EOF {
					l.t.Errorf("%s: %v", n, err)
				}
				mu.Lock()
				turns[n] = turn
				mu.Unlock()
			})
		}
		wg.Wait()
		for n, turn := range turns {
			if said[n] != turn.Status {
				l.t.Logf("%5.1fs %s: %s: %s", time.Since(began).Seconds(), n, turn.Status.State, turn.Status.Detail)
			}
			said[n] = turn.Status
			l.last[n] = turn
			l.joint = ensemble.Settle(l.joint, turn.Settled)
		}
		time.Sleep(300 * time.Millisecond)
	}
	l.t.Logf("%s after %.1f s", what, time.Since(began).Seconds())
}

// Once all copies were equal, pending heals on a busy volume do not make a server unready.
func TestGlusterOnceSettledStaysReady(t *testing.T) {
	v := glusterCase("glusterfs2", func(a map[string]*glusterReport) { withVolume(a); a["glusterfs1"].Pending = 7 })
	v.whole = true
	if _, status := decideGluster(v); status.State != facts.Ready {
		t.Errorf("%+v", status)
	}
}

// serving reports whether n servers, which are all, are ready and nothing is left to heal.
func (l *glusterLab) serving(n int) func() bool {
	want := fmt.Sprintf("%d of %[1]d bricks online", n)
	return func() bool {
		ready := 0
		for _, turn := range l.last {
			if turn.Status.State == facts.Ready && strings.HasPrefix(turn.Status.Detail, want) && !strings.Contains(turn.Status.Detail, "heal") {
				ready++
			}
		}
		return ready == n
	}
}

// content returns what is in a server's brick, in lines.
func (l *glusterLab) content(n string) []string {
	return strings.Split(l.inside(n, `cd /data/brick/gv0; find . -path ./.glusterfs -prune -o -printf '%p %y %U %G %m %n %l\n' | sort
find . -path ./.glusterfs -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
find . -path ./.glusterfs -prune -o -print0 | sort -z | xargs -0 getfattr -h -e hex -d -m '^(trusted.gfid$|user)' -- | paste -sd ' ' | sed 's/  /\n/g'
find .glusterfs/??/?? ! -type d -printf '%p %y %n %l\n' | sort`), "\n")
}

// sameContent waits until all bricks have the same files. A folder that went while a brick was away is set aside there when that is healed,
// where clients do not see it (.glusterfs-anonymous-inode). The next round of healing removes it (afr_cleanup_anon_inode_dir in
// afr-self-heald.c), and what was in it a janitor, seconds later (posix_janitor_task in posix-helpers.c). A round begins each ten minutes, or
// when asked for, and heals nothing that is not noted.
func (l *glusterLab) sameContent(when string) {
	l.t.Helper()
	names := slices.Sorted(maps.Keys(l.up))
	lacks := func(a, b []string) (lines []string) {
		in := map[string]bool{}
		for _, line := range b {
			in[line] = true
		}
		for _, line := range a {
			if !in[line] {
				lines = append(lines, line)
			}
		}
		return lines[:min(len(lines), 20)]
	}
	testkit.Eventually(l.t, time.Minute, when, func() error {
		first := l.content(names[0])
		for _, n := range names[1:] {
			is := l.content(n)
			if a, b := lacks(first, is), lacks(is, first); len(a)+len(b) > 0 {
				l.inside(names[0], `gluster --mode=script volume heal gv0 >/dev/null || true # it fails while another command runs`)
				return fmt.Errorf("only %s has\n\t%s\nand only %s\n\t%s", names[0], strings.Join(a, "\n\t"), n, strings.Join(b, "\n\t"))
			}
		}
		return nil
	})
}

const (
	clientMount = `mount -t glusterfs -o backup-volfile-servers=glusterfs1:glusterfs3 glusterfs2:/gv0 /mnt/client
`
	clientFiles = `mkdir -p /mnt/client/a/b; for i in $(seq 100); do echo $i >/mnt/client/a/b/f$i; done; find /mnt/client | wc -l`
)

// formed returns a lab with three servers, and a client on the second one.
func formed(t *testing.T) *glusterLab {
	l := newGlusterLab(t)
	for _, n := range glusterNodes {
		l.on(n)
	}
	l.until("formed", time.Minute, false, l.serving(3))
	l.inside("glusterfs2", clientMount+clientFiles)
	return l
}

// settled waits until the members of a generation work by themselves. Meanwhile, a client writes, and sees all that it has written.
func (l *glusterLab) settled(number, servers int, limit time.Duration) {
	l.t.Helper()
	written, before := 0, l.inside("glusterfs2", `find /mnt/client -type f | wc -l`)
	l.until(fmt.Sprintf("generation %d works by itself", number), limit, false, func() bool {
		written++
		want := l.inside("glusterfs2", fmt.Sprintf(`echo %d >/mnt/client/during-%d-%[1]d; echo $(( %[3]s + %[1]d ))`, written, number, strings.TrimSpace(before)))
		if got := l.inside("glusterfs2", `find /mnt/client -type f | wc -l`); got != want {
			l.t.Fatalf("the client sees %s files of %s", strings.TrimSpace(got), want)
		}
		return l.joint.Settled == number && l.serving(servers)()
	})
}

// A fourth server comes, the first leaves, and the third gets a blank disk: what it lacks is noted under the id of its brick, which is
// not its place in the volume any more.
func TestGlusterForRealMembers(t *testing.T) {
	l := formed(t)
	four := glusterGeneration(2, "glusterfs1", "glusterfs2", "glusterfs3", "glusterfs4")
	l.change(four, glusterNodes...)
	l.seed("glusterfs4", four)
	l.blank("glusterfs4")
	l.on("glusterfs4")
	l.settled(2, 4, 3*time.Minute)
	l.sameContent("a fourth server")

	three := glusterGeneration(3, "glusterfs2", "glusterfs3", "glusterfs4")
	l.change(three, "glusterfs2", "glusterfs3", "glusterfs4")
	l.settled(3, 3, 3*time.Minute)
	l.until("the server that left has stopped", time.Minute, false, func() bool {
		s := l.last["glusterfs1"].Status
		return s.State == facts.Stopped && strings.Contains(s.Detail, "not a member any more")
	})
	l.off("glusterfs1")
	l.sameContent("without the first server")

	count := l.inside("glusterfs2", `find /mnt/client | wc -l`)
	l.off("glusterfs3")
	l.blank("glusterfs3")
	l.on("glusterfs3")
	l.until("glusterfs3 replaced", 3*time.Minute, false, func() bool {
		if got := l.inside("glusterfs2", `find /mnt/client | wc -l`); got != count {
			t.Fatalf("while glusterfs3 is filled, a client sees %s entries, not %s", got, count)
		}
		return l.serving(3)()
	})
	l.sameContent("glusterfs3 replaced")
}

// The brick of a fourth server does not start when it is added. What the others have in memory then, and have not stored, is undone, and the
// brick is added again.
func TestGlusterForRealFailedAdd(t *testing.T) { failedAdd(t, func(*glusterLab) {}) }

// After that, one of the others restarts its glusterd, and is rejected: when it connects, the others store what they have in memory. Then the
// fourth server restarts.
func TestGlusterForRealRejected(t *testing.T) {
	failedAdd(t, func(l *glusterLab) {
		l.inside("glusterfs3", `kill $(cat /run/glusterd.pid)`)
		l.until("glusterd has ended", 3*time.Minute, false, func() bool { return !l.report("glusterfs3").Running })
		l.until("glusterd runs again", 3*time.Minute, false, func() bool { return l.report("glusterfs3").Running })
		l.off("glusterfs4")
		l.on("glusterfs4")
		l.until("rejected", 3*time.Minute, false, func() bool {
			return slices.ContainsFunc(glusterNodes, func(n string) bool { return len(l.report(n).Rejected) > 0 })
		})
	})
}

// failedAdd has the brick of a fourth server not start when it is added, and then something else happen.
func failedAdd(t *testing.T, then func(l *glusterLab)) {
	t.Helper()
	if os.Getenv("IMAGEGEN_E2E") != "gluster" {
		t.Skip("SKIPPED: takes a quarter of an hour; make e2e-gluster runs it, with IMAGEGEN_E2E=gluster")
	}
	l := formed(t)
	four := glusterGeneration(2, "glusterfs1", "glusterfs2", "glusterfs3", "glusterfs4")
	l.change(four, glusterNodes...)
	l.seed("glusterfs4", four)
	l.blank("glusterfs4")
	l.on("glusterfs4")
	l.until("glusterfs4 runs", 3*time.Minute, false, func() bool { return l.report("glusterfs4").Running })
	l.inside("glusterfs4", `mount --bind /bin/false $(readlink -f $(command -v glusterfsd))`)
	l.until("added in memory alone", 3*time.Minute, false, func() bool {
		r := l.report("glusterfs1")
		return r.unstored() && len(r.Stored) == 3 && r.Volume.has("glusterfs4", glusterParams().Brick)
	})
	l.inside("glusterfs4", `umount $(readlink -f $(command -v glusterfsd))`)
	then(l)
	l.settled(2, 4, 30*time.Minute)
	l.sameContent("added at the second attempt")
}

// report returns what a server has reported last.
func (l *glusterLab) report(n string) (r glusterReport) {
	l.t.Helper()
	if last := l.last[n].Report; last != nil {
		if err := json.Unmarshal(last, &r); err != nil {
			l.t.Fatal(err)
		}
	}
	return r
}

// A server gets another address. The others know that first.
func TestGlusterForRealAddress(t *testing.T) {
	l := formed(t)
	moved := glusterGeneration(2, glusterNodes...)
	moved.Members[2].IP = "10.99.0.13"
	l.change(moved, "glusterfs1", "glusterfs2")
	l.off("glusterfs3")
	l.until("serving without glusterfs3", time.Minute, false, func() bool {
		return strings.HasPrefix(l.last["glusterfs1"].Status.Detail, "2 of 3") && l.last["glusterfs1"].Status.State == facts.Ready
	})
	l.inside("glusterfs2", `echo while away >/mnt/client/away`)
	sh(t, `ip -n $1 addr flush dev eth0; ip -n $1 addr add 10.99.0.13/24 dev eth0`, fmt.Sprintf("igt%d-3", os.Getpid()))
	l.seed("glusterfs3", moved)
	l.on("glusterfs3")
	l.settled(2, 3, 3*time.Minute)
	l.sameContent("another address")

	for _, n := range glusterNodes {
		l.off(n)
	}
	for _, n := range glusterNodes {
		l.on(n)
	}
	l.until("serving after a full outage", time.Minute, false, l.serving(3))
	l.sameContent("after a full outage")
}

// All servers get addresses in another network while all are off. What their disks have is from before.
func TestGlusterForRealRenumbered(t *testing.T) {
	l := formed(t)
	l.off("glusterfs3")
	l.until("serving without glusterfs3", time.Minute, false, func() bool {
		return strings.HasPrefix(l.last["glusterfs1"].Status.Detail, "2 of 3") && l.last["glusterfs1"].Status.State == facts.Ready
	})
	count := l.inside("glusterfs2", `echo while away >/mnt/client/away; find /mnt/client | wc -l`)
	l.off("glusterfs1")
	l.off("glusterfs2")
	moved := glusterGeneration(2, glusterNodes...)
	for i := range moved.Members {
		moved.Members[i].IP = fmt.Sprintf("10.98.0.%d", i+1)
	}
	l.change(moved, glusterNodes...)
	sh(t, `for i in 1 2 3; do ip -n $1-$i addr flush dev eth0; ip -n $1-$i addr add 10.98.0.$i/24 dev eth0; done`, fmt.Sprintf("igt%d", os.Getpid()))
	for _, n := range []string{"glusterfs3", "glusterfs1", "glusterfs2"} { // the one that lacks something first
		l.on(n)
	}
	l.until("serving in another network", 2*time.Minute, false, l.serving(3))
	if got := l.inside("glusterfs2", clientMount+`find /mnt/client | wc -l`); got != count {
		t.Errorf("a client sees %s entries of %s", got, count)
	}
	l.sameContent("in another network")
}

// A blank brick begins as a copy of another one, while a client changes what is being copied.
func TestGlusterForRealCopy(t *testing.T) {
	l := formed(t)
	l.inside("glusterfs2", `cd /mnt/client; for d in $(seq 20); do mkdir -p t/d$d; for i in $(seq 50); do printf '%01000d' $i >t/d$d/f$i; done; done
mkdir -p empty 'odd
name ü' moves-a/in/side; for i in $(seq 100); do mkdir -p goes/$i/deep; echo $i >goes/$i/deep/x; done; echo x >moves-a/in/side/x; ln -s ../t/d1/f1 link; ln -s nowhere dangling; ln -s t folder; ln t/d1/f2 hard; ln t/d1/f2 t/d2/hard; mkfifo -m 640 pipe
head -c 3000000 /dev/urandom >big; truncate -s 30M sparse; echo end >>sparse; setfattr -n user.note -v yes big; chmod 4755 t/d3/f3; chown -h 7:8 dangling t/d4/f4; echo '#' >'odd
name ü/a b'`)
	l.inside("glusterfs2", `cat >/run/change <<'END'
cd /mnt/client; mkdir -p live
while [ ! -e /run/stop ]; do
 i=$((i + 1)); n=$((i % 50 + 1)); d=$((i % 20 + 1))
 rm -rf goes/$i; echo $i >live/n$n; echo more >>t/d$d/f$n; truncate -s 500 t/d$d/f$d; rm -f t/d$d/g$n; mv t/d$d/h$n t/d$d/g$n; echo $i >t/d$d/h$n; mkdir -p t/d$d/m$n/deep; echo $i >t/d$d/m$n/deep/x; rm -rf t/d$d/m$d; chmod 600 t/d$d/f$d
 [ $((i % 10)) != 0 ] || { mv moves-a moves-b && mv moves-b moves-a; }
done; touch /run/stopped
END
setsid bash /run/change >/dev/null 2>&1 &`)
	const n = "glusterfs1"
	l.off(n)
	l.blank(n)
	l.on(n)
	l.until("its brick is online", time.Minute, false, func() bool {
		if r := l.report(n); r.Copy == copyFailed {
			t.Fatal("the copy has failed")
		}
		return l.report(n).Online
	})
	l.inside("glusterfs2", `touch /run/stop; until [ -e /run/stopped ]; do sleep 0.1; done`)
	l.until("all copies equal", 3*time.Minute, false, l.serving(3))
	l.sameContent("replaced")
	if left := l.inside(n, `ls -A /data/brick`); strings.TrimSpace(left) != "gv0" {
		t.Errorf("beside the brick: %s", left)
	}
}

func TestGlusterForReal(t *testing.T) {
	l := newGlusterLab(t)
	const files = `find /mnt/client | wc -l`
	for _, n := range []string{"glusterfs3", "glusterfs1", "glusterfs2"} {
		l.on(n)
	}
	l.until("formed, the agent killed between any two steps", time.Minute, true, l.serving(3))
	l.inside("glusterfs2", `mount -t glusterfs -o backup-volfile-servers=glusterfs1:glusterfs3 glusterfs2:/gv0 /mnt/client; stat -c %u:%g /mnt/client | grep -x 2000:3000
mkdir -p /mnt/client/a/b/c; for i in $(seq 300); do echo $i >/mnt/client/a/b/f$i; done; echo deep >/mnt/client/a/b/c/x; rm /mnt/client/a/b/f7; chown 2000:3000 /mnt/client/a`)
	count := l.inside("glusterfs2", files)
	l.sameContent("new")

	// While glusterd answers pings, its command line is asked for less often.
	socket := "/proc/" + l.up["glusterfs1"].pid + "/root/run/glusterd.socket"
	testkit.Eventually(t, time.Minute, "glusterd answers a ping", func() error { return pingGlusterd(t.Context(), socket) })
	l.inside("glusterfs1", `kill -STOP $(cat /run/glusterd.pid)`)
	if err := pingGlusterd(t.Context(), socket); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a glusterd that hangs: %v", err)
	}
	l.inside("glusterfs1", `kill -CONT $(cat /run/glusterd.pid)`)
	if err := pingGlusterd(t.Context(), socket+"x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no glusterd: %v", err)
	}

	l.off("glusterfs3")
	l.until("serving without glusterfs3", time.Minute, false, func() bool {
		return strings.HasPrefix(l.last["glusterfs1"].Status.Detail, "2 of 3") && l.last["glusterfs1"].Status.State == facts.Ready
	})
	l.inside("glusterfs2", `echo while away >/mnt/client/away; rm -rf /mnt/client/a/b/c`)
	count = l.inside("glusterfs2", files)
	l.on("glusterfs3")
	l.until("healed after an outage", 2*time.Minute, false, l.serving(3))
	l.sameContent("after an outage")

	// The highest UUID and the lowest: Gluster's own full heal does nothing if the node with the highest UUID is blank.
	for _, n := range []string{"glusterfs3", "glusterfs1"} {
		l.off(n)
		l.blank(n)
		l.on(n)
		l.until(n+" replaced", 3*time.Minute, false, func() bool {
			if got := l.inside("glusterfs2", files); got != count {
				t.Fatalf("while %s is filled, a client sees %s entries, not %s", n, got, count)
			}
			return l.serving(3)()
		})
		l.sameContent(n + " replaced")
	}

	for _, n := range glusterNodes {
		l.off(n)
	}
	for _, n := range []string{"glusterfs2", "glusterfs3", "glusterfs1"} {
		l.on(n)
	}
	l.until("serving after a full outage", time.Minute, false, l.serving(3))
	l.sameContent("after a full outage")

	for _, n := range glusterNodes {
		l.off(n)
		l.blank(n)
	}
	for _, n := range glusterNodes {
		l.on(n)
	}
	l.until("formed", time.Minute, false, l.serving(3))
}

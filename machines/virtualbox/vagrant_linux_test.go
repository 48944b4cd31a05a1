package virtualbox

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/images/format"
	"imagegen/internal/testkit"
	"imagegen/internal/testspec"
	"imagegen/internal/vboxtest"
	"imagegen/machines"
	"imagegen/vagrant"
)

// Machines made by a real Vagrant are listed, started and stopped by this provider, and replaced and removed through
// Vagrant.
func TestVagrantsMachine(t *testing.T) {
	if _, err := exec.LookPath("vagrant"); err != nil {
		t.Skip("SKIPPED: no vagrant; apt-get install vagrant")
	}
	if !vboxtest.Rerun(t, vboxtest.OwnNetwork) {
		return
	}
	ctx, dir := t.Context(), t.TempDir()
	t.Setenv("VAGRANT_HOME", filepath.Join(dir, "vagrant.d"))
	dist := filepath.Join(dir, "dist")
	spec, _ := testspec.Parse(t, "cluster.yaml", `{cluster: otus, distro: debian12, network: {cidr: 192.168.56.0/24}, roles: {redis: {data: 64MiB, memory: 64MiB,
nodes: {redis1: 192.168.56.49, redis2: 192.168.56.50, redis3: 192.168.56.51}}}}`)
	// A node counts as up once its SSH server sends its greeting.
	if out, err := exec.Command("ip", "addr", "add", "192.168.56.49/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := net.Listen("tcp", "192.168.56.49:22")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "SSH-2.0-test\r\n")
			c.Close()
		}
	}()
	ids := []string{strings.Repeat("a", 32), strings.Repeat("b", 32)}
	build := func(id string) {
		t.Helper()
		text, err := vagrant.Write(spec, clusterID, map[string]string{"redis": id})
		if err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dist, "Vagrantfile"), text)
		put(t, filepath.Join(dist, "seeds", "redis1.iso"), make([]byte, 64<<10))
		f, err := os.Open(put(t, filepath.Join(dir, "disk"), testkit.Speaker(4<<20, testkit.COM1, id[:8])))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		box := put(t, filepath.Join(dist, "boxes", "redis.box"), nil)
		if err := format.WriteBox(ctx, box, f, format.Machine{Name: "redis", Distro: "debian12", CPUs: 1, Memory: 64 << 20, ID: id}, 0); err != nil {
			t.Fatal(err)
		}
	}
	build(ids[0])
	up := exec.Command("vagrant", "up", "redis1")
	up.Dir = dist
	if out, err := up.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p, err := New(Config{Spec: spec, ClusterID: clusterID, Dir: dist})
	if err != nil {
		t.Fatal(err)
	}
	check := func(want ...string) {
		t.Helper()
		list, err := p.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range list {
			got = append(got, fmt.Sprintf("%s %s %.1s", s.Node, s.Power, s.Image))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("listed %q, want %q", got, want)
		}
	}
	m := machines.Machine{Cluster: "otus", ClusterID: clusterID, Node: "redis1", Role: "redis", CPUs: 1, Memory: 64 << 20, Data: 64 << 20,
		Image: machines.File{Identity: ids[1]}}
	diskUUID := func() string {
		t.Helper()
		out, _, _ := strings.Cut(manage(t, "showmediuminfo", "disk", p.disk("redis1")), "\n")
		return out
	}
	check("redis1 on a")
	for range 2 {
		if err := p.Stop(ctx, "redis1"); err != nil {
			t.Fatal(err)
		}
		check("redis1 off a")
	}
	if err := p.Start(ctx, "redis1"); err != nil {
		t.Fatal(err)
	}
	check("redis1 on a")
	if err := p.Create(ctx, m); err != nil { // it exists
		t.Fatal(err)
	}
	check("redis1 on a")

	t.Log("replaced")
	before, machine := diskUUID(), p.vagrantID("redis1")
	if err := p.Remove(ctx, "redis1", false); err != nil {
		t.Fatal(err)
	}
	check()
	if err := p.Create(ctx, m); err == nil || !strings.Contains(err.Error(), "imagegen build --format box") {
		t.Errorf("with an old Vagrantfile: %v", err)
	}
	build(ids[1])
	for range 2 {
		if err := machines.Replace(ctx, p, m, false); err != nil {
			t.Fatal(err)
		}
		check("redis1 on b")
		if now := p.vagrantID("redis1"); now == "" || now == machine || diskUUID() != before {
			t.Errorf("machine %s, was %s; data disk %s, was %s", now, machine, diskUUID(), before)
		}
		machine = p.vagrantID("redis1")
	}
	if p.throughVagrant("redis1") {
		t.Error("the mark of a replacement is left")
	}

	t.Log("made in another folder")
	elsewhere, err := New(Config{Spec: spec, ClusterID: clusterID, Dir: filepath.Join(dir, "elsewhere")})
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Remove(ctx, "redis1", true); err == nil || !strings.Contains(err.Error(), "not in "+dir+"/elsewhere") {
		t.Errorf("removed from another folder: %v", err)
	}
	t.Log("another cluster's")
	other, err := New(Config{Spec: spec, ClusterID: strings.ReplaceAll(clusterID, "1", "9"), Dir: dist})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := other.List(ctx); err != nil || len(list) > 0 {
		t.Errorf("listed %v, %v", list, err)
	}
	check("redis1 on b")

	t.Log("removed")
	if err := machines.RemoveAll(ctx, p, nil); err != nil {
		t.Fatal(err)
	}
	check()
	for _, path := range []string{p.disk("redis1"), p.own()} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
}

package nocloud

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster/facts"
	"imagegen/internal/generationtest"
)

func makeSeed(cluster, node, content string) Seed {
	s := Seed{UserData: []byte("#cloud-config\n# " + content + "\n"), NetworkConfig: []byte("version: 1\n")}
	s.MetaData = fmt.Appendf(nil, "instance-id: c-%s-%s\nlocal-hostname: %s\nimagegen-cluster: %s\nimagegen-node: %q\nimagegen-digest: %s\n",
		node, content, node, cluster, node, Digest(s.UserData, s.NetworkConfig))
	return s
}

func found(where string, s Seed) Found {
	id, err := s.Identity()
	return Found{where, s, id, err}
}

func TestIdentity(t *testing.T) {
	good := makeSeed("c1", "web1", "a")
	id, err := good.Identity()
	if want := (Identity{Instance: "c-web1-a", Cluster: "c1", Node: "web1", Digest: Digest(good.UserData, good.NetworkConfig)}); err != nil || id != want {
		t.Errorf("%+v, %v", id, err)
	}
	for want, spoil := range map[string]func(*Seed){
		"damaged":                 func(s *Seed) { s.UserData = s.UserData[:5] },
		"damaged: user-data":      func(s *Seed) { s.NetworkConfig = nil },
		"has no instance-id":      func(s *Seed) { s.MetaData = nil },
		"has no imagegen-cluster": func(s *Seed) { s.MetaData = bytes.Replace(s.MetaData, []byte("imagegen-cluster"), []byte("x"), 1) },
		"has imagegen-node twice": func(s *Seed) { s.MetaData = append(s.MetaData, "imagegen-node: web2\n"...) },
		"has the line":            func(s *Seed) { s.MetaData = append(s.MetaData, "rubbish\n"...) },
	} {
		s := makeSeed("c1", "web1", "a")
		spoil(&s)
		if _, err := s.Identity(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestChoose(t *testing.T) {
	own, newer, newest := makeSeed("c1", "web1", "a"), makeSeed("c1", "web1", "b"), makeSeed("c1", "web1", "c")
	node, cluster := makeSeed("c1", "web2", "a"), makeSeed("c2", "web1", "a")
	kept, err := own.Identity()
	if err != nil {
		t.Fatal(err)
	}
	damaged := own
	damaged.UserData = nil
	for _, c := range []struct {
		name  string
		kept  *Identity
		found []Seed
		take  string // where
		notes []string
	}{
		{"first boot, none", nil, nil, "", nil},
		{"first boot", nil, []Seed{own}, "0", nil},
		{"first boot, damaged", nil, []Seed{damaged}, "", []string{"cannot use the seed on 0: damaged"}},
		{"first boot, damaged and good", nil, []Seed{damaged, own}, "1", []string{"cannot use the seed on 0: damaged"}},
		{"first boot, one seed twice", nil, []Seed{own, own}, "0", nil},
		{"first boot, two nodes", nil, []Seed{own, node}, "", []string{"several different seeds are attached (0 for node web1, 1 for node web2)"}},
		{"first boot, two of one node", nil, []Seed{own, newer}, "", []string{"several different seeds"}},
		{"none", &kept, nil, "", nil},
		{"the same", &kept, []Seed{own}, "", nil},
		{"damaged", &kept, []Seed{damaged}, "", []string{"cannot use"}},
		{"new", &kept, []Seed{newer}, "0", nil},
		{"new and the same", &kept, []Seed{own, newer}, "", []string{"several different seeds"}},
		{"two new", &kept, []Seed{newer, newest}, "", []string{"several different seeds"}},
		{"another node's", &kept, []Seed{node}, "", []string{"refused the seed on 0: it is for node web2 of cluster c1, but this disk belongs to node web1 of cluster c1"}},
		{"another cluster's", &kept, []Seed{cluster}, "", []string{"refused the seed on 0: it is for node web1 of cluster c2"}},
		{"another node's and new", &kept, []Seed{node, newer}, "1", []string{"refused the seed on 0"}},
	} {
		var all []Found
		for i, s := range c.found {
			f := found(fmt.Sprint(i), s)
			if f.ID.Cluster == "c2" {
				f.Err = errors.New("its generation is not signed by the authority of this cluster")
			}
			all = append(all, f)
		}
		take, notes := Choose(c.kept, all)
		where := ""
		if take != nil {
			where = take.Where
		}
		if where != c.take || !slices.EqualFunc(notes, c.notes, strings.HasPrefix) {
			t.Errorf("%s: took %q and said %q", c.name, where, notes)
		}
	}
}

// withGeneration puts a seed into a generation.
func withGeneration(t *testing.T, a *generationtest.Authority, number int, s Seed) Seed {
	t.Helper()
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	s.Generation = a.Sign(t, number, "", facts.Member{Name: id.Node, Role: "web", IP: "192.168.10.42", Seed: id.Digest, Facts: facts.Digest(nil)}).Signed
	return s
}

// TestChooseGeneration: a seed never takes a node back to an earlier generation.
func TestChooseGeneration(t *testing.T) {
	a := generationtest.New(t)
	seed := func(number int, content string) Seed {
		return withGeneration(t, a, number, makeSeed(generationtest.ClusterID, "web1", content))
	}
	own := seed(3, "c")
	kept, err := own.Identity()
	if err != nil || kept.Number != 3 {
		t.Fatalf("%+v, %v", kept, err)
	}
	before, err := makeSeed(generationtest.ClusterID, "web1", "c").Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		kept  *Identity
		found []Seed
		take  string
		notes []string
	}{
		{"the same", &kept, []Seed{own}, "", nil},
		{"older", &kept, []Seed{seed(2, "b")}, "", []string{"refused the seed on 0: it is of generation 2, and this node runs generation 3 already"}},
		{"older, the same seed", &kept, []Seed{seed(2, "c")}, "", nil},
		{"newer", &kept, []Seed{seed(4, "d")}, "0", nil},
		{"newer, the same seed", &kept, []Seed{seed(4, "c")}, "0", nil},
		{"another of the same number", &kept, []Seed{seed(3, "x")}, "", []string{"refused the seed on 0: it is of another generation 3"}},
		{"from before generations", &kept, []Seed{makeSeed(generationtest.ClusterID, "web1", "x")}, "", []string{"refused the seed on 0: it belongs to no generation"}},
		{"from before generations, the same", &kept, []Seed{makeSeed(generationtest.ClusterID, "web1", "c")}, "", nil},
		{"older and newer", &kept, []Seed{seed(2, "b"), seed(5, "e"), seed(4, "d")}, "1", []string{"refused the seed on 0"}},
		{"a node from before generations enters", &before, []Seed{seed(1, "x")}, "0", nil},
		{"and its own seed enters", &before, []Seed{seed(1, "c")}, "0", nil},
		{"first boot, several", nil, []Seed{seed(2, "b"), seed(3, "c")}, "1", nil},
		{"first boot, one without", nil, []Seed{makeSeed(generationtest.ClusterID, "web1", "a"), seed(3, "c")}, "", []string{"several different seeds"}},
	} {
		var all []Found
		for i, s := range c.found {
			all = append(all, found(fmt.Sprint(i), s))
		}
		take, notes := Choose(c.kept, all)
		where := ""
		if take != nil {
			where = take.Where
		}
		if where != c.take || !slices.EqualFunc(notes, c.notes, strings.HasPrefix) {
			t.Errorf("%s: took %q and said %q", c.name, where, notes)
		}
	}

	other := own
	other.Generation = seed(3, "x").Generation
	cut := own
	cut.Generation = own.Generation[:len(own.Generation)/2]
	for want, s := range map[string]Seed{"damaged: generation 3, which is on it, does not contain this seed": other, "damaged: not a signed generation": cut} {
		if _, err := s.Identity(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestKeepGeneration: the generation is kept with the seed, and the same seed in a later one does not make cloud-init run again.
func TestKeepGeneration(t *testing.T) {
	a := generationtest.New(t)
	d := Disk{t.TempDir()}
	var instance string
	for number := range 3 {
		s := makeSeed(generationtest.ClusterID, "web1", "a")
		if number > 0 {
			s = withGeneration(t, a, number, s)
		}
		if err := d.Keep(s); err != nil {
			t.Fatal(err)
		}
		id, err := d.Kept()
		if err != nil || id.Number != number || instance != "" && id.Instance != instance {
			t.Errorf("kept %+v, %v; want number %d", id, err, number)
		}
		instance = id.Instance
		if err := d.Keep(makeSeed(generationtest.ClusterID, "web1", "b")); number > 0 && (err == nil || !strings.Contains(err.Error(), "belongs to no generation")) {
			t.Errorf("a seed without a generation replaces one with it: %v", err)
		} else if number == 0 && err != nil {
			t.Error(err)
		}
		if number == 0 {
			continue
		}
		data, err := os.ReadFile(filepath.Join(d.path(currentLink), GenerationFile))
		if !bytes.Equal(data, s.Generation) || err != nil {
			t.Errorf("number %d: kept %q, %v", number, data, err)
		}
	}
}

func TestKeep(t *testing.T) {
	d := Disk{t.TempDir()}
	if id, err := d.Kept(); id != nil || err != nil {
		t.Fatalf("a new disk has %v, %v", id, err)
	}
	for _, content := range []string{"a", "b", "b", "a"} {
		s := makeSeed("c1", "web1", content)
		// Left by an interrupted run.
		half := filepath.Join(d.path(seedsDir), "half")
		if err := errors.Join(os.MkdirAll(half, 0o700), os.WriteFile(filepath.Join(half, "user-data"), nil, 0o600), os.Symlink("seeds/half", d.path(currentLink)+".new")); err != nil {
			t.Fatal(err)
		}
		if err := d.Keep(s); err != nil {
			t.Fatal(err)
		}
		want, _ := s.Identity()
		if id, err := d.Kept(); err != nil || *id != want {
			t.Errorf("%v, %v instead of %v", id, err, want)
		}
		if all, err := os.ReadDir(d.path(seedsDir)); err != nil || len(all) != 1 {
			t.Errorf("seeds: %v, %v", all, err)
		}
		info, err := os.Stat(d.path(currentLink) + "/user-data")
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("the copy has mode %v, %v", info.Mode(), err)
		}
	}
	// With a damaged copy, the disk's identity is still known; if that is damaged as well, nothing can be applied.
	if err := os.WriteFile(d.path(currentLink)+"/user-data", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := d.Kept(); err == nil || id == nil || id.Node != "web1" {
		t.Errorf("a damaged copy: %v, %v", id, err)
	}
	if err := os.WriteFile(d.path(currentLink)+"/meta-data", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := d.Kept(); err == nil || id != nil {
		t.Errorf("a damaged copy without an identity: %v, %v", id, err)
	}
}

// TestApplied: cloud-init's records count only once the whole seed is on the disk.
func TestApplied(t *testing.T) {
	d := Disk{t.TempDir()}
	s := makeSeed("c1", "web1", "a")
	id, _ := s.Identity()
	write := func(name, content string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(d.path(name)), 0o755), os.WriteFile(d.path(name), []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	const note = "var/lib/cloud/instances/c-web1-a/sem/config_write_files"
	noted := func() bool { _, err := os.Stat(d.path(note)); return err == nil }
	synced := 0
	apply := func(had error) error { return d.Applied(func() { synced++ }, had) }

	if err := apply(nil); err != nil {
		t.Errorf("without a seed: %v", err)
	}
	if err := d.Keep(s); err != nil {
		t.Fatal(err)
	}
	if err := apply(nil); err == nil {
		t.Error("applied before cloud-init ran")
	}
	write(instanceNow, "c-web1-old\n")
	if err := apply(nil); err == nil {
		t.Error("another seed is taken for this one")
	}
	write(instanceNow, "c-web1-a\n")
	write(note, "")
	if err := apply(errors.New("disk full")); err == nil || synced != 0 {
		t.Errorf("after errors: %v", err)
	}
	if err := d.Prepare(id); err != nil || noted() {
		t.Errorf("a seed that was applied in part is not applied again: %v", err)
	}
	write(instanceNow, "c-web1-a\n")
	write(note, "")
	if err := apply(nil); err != nil || synced != 1 {
		t.Errorf("%v, synced %d times", err, synced)
	}
	if err := d.Prepare(id); err != nil || !noted() {
		t.Errorf("a seed that was applied is applied again: %v", err)
	}
	if err := apply(errors.New("later")); err != nil || synced != 1 {
		t.Errorf("on a later boot: %v, synced %d times", err, synced)
	}
	newer := makeSeed("c1", "web1", "b")
	id, _ = newer.Identity()
	if err := errors.Join(d.Keep(newer), d.Prepare(id)); err != nil || noted() {
		t.Errorf("a new seed is not applied: %v", err)
	}
}

func FuzzReadISO(f *testing.F) {
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, rest []byte) {
		image := make([]byte, 24*sector)
		copy(image[volumeSector*sector:], "\x01CD001\x01")
		copy(image[volumeSector*sector+40:], "cidata                          ")
		copy(image[volumeSector*sector+156:], rest)
		ReadISO(bytes.NewReader(image)) // does not panic
	})
}

package bench

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"imagegen/roles"
)

// lockFile is what the other tools need of imagegen.lock: the requested packages and their versions.
type lockFile struct {
	Base  lockedSet
	Roles map[string]lockedSet
}

type lockedSet struct {
	Requested []string
	Packages  []string // each as: name version architecture sha256
}

// kiln is a cluster whose cache contains all packages and nothing else.
type kiln struct{ dir string }

// newKiln creates it in the temporary folder, which needs some GB.
func newKiln(t *testing.T) *kiln {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("baking needs root: NOT measured")
	}
	k := &kiln{t.TempDir()}
	must(t, imagegen(t, "init", "--distro", "debian12", k.dir+"/c"))
	must(t, k.imagegen(t, "fetch", "c"))
	must(t, imagegen(t, "seed", "-f", k.dir+"/c/cluster.yaml")) // issues the secrets
	return k
}

// imagegen returns a call for the spec in a folder of the kiln.
func (k *kiln) imagegen(t *testing.T, command, folder string, args ...string) *exec.Cmd {
	cmd := imagegen(t, append([]string{command, "-f", filepath.Join(k.dir, folder, "cluster.yaml")}, args...)...)
	cmd.Env = append(os.Environ(), "IMAGEGEN_CACHE="+k.dir+"/cache")
	return cmd
}

// cool removes everything that was baked, but keeps the packages.
func (k *kiln) cool() error {
	baked, err := filepath.Glob(k.dir + "/cache/*")
	if err != nil {
		return err
	}
	for _, path := range append(baked, k.dir+"/c/dist") {
		if name := filepath.Base(path); name == "packages" || name == "archive" {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

func (k *kiln) images(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(k.dir + "/cache/images/*")
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// bake measures bakes as a user of imagegen runs them.
func bake(t *testing.T, repeat int) {
	k := newKiln(t)
	// The same cluster with the package tree on its web nodes.
	must(t, in(k.dir, "cp -a c more"))
	spec, err := os.ReadFile(k.dir + "/c/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	more := strings.Replace(string(spec), "\n  web:\n", "\n  web:\n    packages: [tree]\n", 1)
	if more == string(spec) {
		t.Fatalf("no role web in\n%s", spec)
	}
	if err := os.WriteFile(k.dir+"/more/cluster.yaml", []byte(more), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, k.imagegen(t, "fetch", "more"))

	var before []string
	measure(t, repeat, []contender{
		{"seven roles, nothing baked yet", k.cool, func() *exec.Cmd { return k.imagegen(t, "build", "c") }},
		{"nothing has changed", func() error { before = k.images(t); return nil }, func() *exec.Cmd { return k.imagegen(t, "build", "c") }},
		{"one package more in one role", nil, func() *exec.Cmd { return k.imagegen(t, "build", "more") }},
	})
	// Check that the run did what the table says.
	added := slices.DeleteFunc(k.images(t), func(path string) bool {
		return slices.Contains(before, path) || filepath.Ext(path) == ".lock"
	})
	if len(added) != 1 {
		t.Errorf("one package more baked %d images, want 1", len(added))
	}
}

// builders measures other tools that make the same images. Roles with the same packages share an image in all of them.
func builders(t *testing.T, repeat int) {
	k := newKiln(t)
	lock, archive := k.archive(t)
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(lock.Roles))
	if s := os.Getenv("BENCH_ROLES"); s != "" {
		names = strings.Split(s, ",")
	}
	seen := map[string]bool{}
	var jobs []string // shell commands without the script's name
	for _, name := range names {
		set, ok := lock.Roles[name]
		if !ok {
			t.Fatalf("BENCH_ROLES=%s: there is no role %s", os.Getenv("BENCH_ROLES"), name)
		}
		packages := strings.Join(slices.Concat(lock.Base.Requested, set.Requested), ",")
		if seen[packages] {
			continue
		}
		seen[packages] = true
		jobs = append(jobs, fmt.Sprintf("TREE=$PWD/%s DISK=$PWD/%s.raw PACKAGES=%s DISABLE='%s'", name, name, packages,
			strings.Join(catalogue.Role(name).Distros["debian12"].Disable, " ")))
	}
	t.Logf("%d roles, %d images: %s", len(names), len(jobs), strings.Join(names, ", "))

	contenders := []contender{{"imagegen build", k.cool, func() *exec.Cmd { return k.imagegen(t, "build", "c", names...) }}}
	for _, peer := range []struct{ name, program, script string }{
		{"mmdebstrap and chroot by hand", "mmdebstrap", "byhand.sh"},
		{"mkosi 14", "mkosi", "mkosi.sh"},
	} {
		if _, err := exec.LookPath(peer.program); err != nil {
			t.Logf("no %s on this machine: NOT compared with it", peer.program)
			continue
		}
		dir := filepath.Join(k.dir, peer.program)
		contenders = append(contenders, contender{peer.name, func() error {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			return os.MkdirAll(dir, 0o755)
		}, func() *exec.Cmd {
			var lines strings.Builder
			for i, job := range jobs {
				fmt.Fprintf(&lines, "mkdir work%d; WORK=$PWD/work%d %s sh %s/%s\n", i, i, job, scripts, peer.script)
			}
			cmd := exec.Command("sh", "-ec", lines.String())
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "ARCHIVE="+archive, "SCRIPTS="+scripts, fmt.Sprintf("BYTES=%d", 4<<30))
			return cmd
		}})
	}
	measure(t, repeat, contenders)
}

// archive makes a Debian archive on this machine's disk from the packages in the cache, so that the other tools neither
// wait for a network nor read lists of packages that are not needed.
func (k *kiln) archive(t *testing.T) (lockFile, string) {
	t.Helper()
	var lock lockFile
	data, err := os.ReadFile(k.dir + "/c/imagegen.lock")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, &lock); err != nil {
		t.Fatal(err)
	}
	root := k.dir + "/archive"
	index := root + "/dists/bookworm/main/binary-amd64"
	for _, dir := range []string{root + "/pool", index} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(k.dir, 0o755); err != nil { // for APT's own user
		t.Fatal(err)
	}
	sets := append(slices.Collect(maps.Values(lock.Roles)), lock.Base)
	seen := map[string]bool{}
	for _, set := range sets {
		for _, line := range set.Packages {
			f := strings.Fields(line)
			if len(f) != 4 {
				t.Fatalf("imagegen.lock: %q", line)
			}
			if seen[f[3]] {
				continue
			}
			seen[f[3]] = true
			file := fmt.Sprintf("%s/pool/%s_%s_%s.deb", root, f[0], strings.ReplaceAll(f[1], ":", "%3a"), f[2])
			if err := os.Link(filepath.Join(k.dir, "cache/packages", f[3]), file); err != nil {
				t.Fatal(err)
			}
		}
	}
	// debootstrap and mkosi also install these.
	must(t, in(root+"/pool", "apt-get download -qq usr-is-merged libpam-systemd systemd-resolved"))
	must(t, in(root, `i=dists/bookworm/main/binary-amd64
apt-ftparchive packages pool >$i/Packages
xz -k $i/Packages
for f in Suite=bookworm Codename=bookworm Components=main Architectures=amd64; do o="$o -o APT::FTPArchive::Release::$f"; done
apt-ftparchive $o release dists/bookworm >Release
mv Release dists/bookworm/`))
	return lock, root
}

func in(dir, script string) *exec.Cmd {
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	return cmd
}

// Package bench compares imagegen with other tools. It runs with make bench, where the variable BENCH names the
// sections:
//
//	seeds     17 seeds, compared with cloud-localds and genisoimage making ISOs of the same files
//	vmdk      a baked disk as a streamOptimized VMDK, compared with qemu-img and a VirtualBox in a chroot
//	scale     specs of 10, 100 and 1,000 nodes
//	bake      seven roles with only packages cached, again without a change, and with one more package
//	builders  roles with only packages cached, compared with mmdebstrap by hand and mkosi
//	page      the reference cluster in the lab, from up to WordPress's front page
//	site      what visitors of it get, compared with the same site on one backend's disk, and what it costs while nobody visits
//	idle      what agents cost on nodes where nothing happens, without a lab
//
// The tools in a section take turns, BENCH_REPEAT times, and medians are compared, so that other load on the machine
// affects all of them.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/images/format"
	"imagegen/internal/atomicfile"
	"imagegen/roles"
	"imagegen/vagrant"
)

// With one of these variables, the test binary does one thing with the file in the variable and writes the result to
// its argument: in a separate process, so that its memory can be measured.
var alone = map[string]func(from, to string) error{
	"IMAGEGEN_BENCH_VMDK_OF":        writeVMDK,
	"IMAGEGEN_BENCH_VAGRANTFILE_OF": writeVagrantfile,
}

func TestMain(m *testing.M) {
	for name, do := range alone {
		if from := os.Getenv(name); from != "" {
			if err := do(from, os.Args[1]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(m.Run())
}

// inAlone returns a command that does one of these things.
func inAlone(name, from, to string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], to)
	cmd.Env = append(os.Environ(), name+"="+from)
	return cmd
}

func writeVMDK(from, to string) error {
	disk, err := os.Open(from)
	if err != nil {
		return err
	}
	defer disk.Close()
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	err = format.WriteVMDK(context.Background(), f, disk, "bench", 0)
	return errors.Join(err, f.Close())
}

// writeVagrantfile does what build --format box does once the boxes exist.
func writeVagrantfile(from, to string) error {
	catalogue, err := roles.Load("")
	if err != nil {
		return err
	}
	spec, err := cluster.Load(from, catalogue.Rules())
	if err != nil {
		return err
	}
	images := map[string]string{}
	for _, r := range spec.Roles {
		images[r.Name] = "0123456789abcdef"
	}
	text, err := vagrant.Write(spec, "11111111-2222-4333-8444-555555555555", images)
	if err != nil {
		return err
	}
	return atomicfile.Write(to, text, 0o644)
}

// contender is one tool in a section. Its prepare is not measured.
type contender struct {
	name    string
	prepare func() error
	run     func() *exec.Cmd
}

// cost is what a run took. On a busy machine, CPU time is more reliable than elapsed time.
type cost struct {
	elapsed, cpu time.Duration
	memory       int64 // bytes, of its largest process
}

func TestBench(t *testing.T) {
	names := os.Getenv("BENCH")
	if names == "" {
		t.Skip("nothing is measured without BENCH; make bench sets it")
	}
	repeat := 3
	if s := os.Getenv("BENCH_REPEAT"); s != "" {
		var err error
		if repeat, err = strconv.Atoi(s); err != nil || repeat < 1 {
			t.Fatalf("BENCH_REPEAT=%s: want a number from 1 on", s)
		}
	}
	sections := map[string]func(t *testing.T, repeat int){
		"seeds": seeds, "vmdk": vmdk, "scale": scale, "bake": bake, "builders": builders, "page": page, "site": site, "idle": idle,
	}
	for _, name := range strings.Split(names, ",") {
		section, ok := sections[name]
		if !ok {
			t.Fatalf("BENCH=%s: there are %s", name, strings.Join(slices.Sorted(maps.Keys(sections)), ", "))
		}
		t.Run(name, func(t *testing.T) { section(t, repeat) })
	}
}

// measure runs the contenders in turns and prints a table with ratios to the first of them.
func measure(t *testing.T, repeat int, contenders []contender) {
	costs := make([][]cost, len(contenders))
	for range repeat {
		for i, c := range contenders {
			if c.prepare != nil {
				if err := c.prepare(); err != nil {
					t.Fatal(err)
				}
			}
			cmd := c.run()
			start := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", c.name, err, out)
			}
			took := time.Since(start)
			usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
			costs[i] = append(costs[i], cost{took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), usage.Maxrss << 10})
		}
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "\telapsed\tratio\tCPU\tratio\tmemory")
	first := medians(costs[0])
	for i, c := range contenders {
		m := medians(costs[i])
		fmt.Fprintf(w, "%s\t%.3fs\t%.2f\t%.3fs\t%.2f\t%.0fMiB\n", c.name, m.elapsed.Seconds(), m.elapsed.Seconds()/first.elapsed.Seconds(),
			m.cpu.Seconds(), m.cpu.Seconds()/first.cpu.Seconds(), float64(m.memory)/(1<<20))
	}
	w.Flush()
	t.Logf("medians of %d:\n%s", repeat, table.String())
}

func medians(costs []cost) cost {
	return cost{
		median(costs, func(c cost) time.Duration { return c.elapsed }),
		median(costs, func(c cost) time.Duration { return c.cpu }),
		median(costs, func(c cost) int64 { return c.memory }),
	}
}

func median[T int64 | time.Duration](costs []cost, of func(cost) T) T {
	var values []T
	for _, c := range costs {
		values = append(values, of(c))
	}
	return middle(values)
}

func middle[T int64 | float64 | time.Duration](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

// imagegen returns a call of the command that make built.
func imagegen(t *testing.T, args ...string) *exec.Cmd {
	return exec.Command(built(t, "imagegen"), args...)
}

// built returns the path of a program that make built.
func built(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../bin", name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, out)
	}
}

func seeds(t *testing.T, repeat int) {
	dir := t.TempDir()
	must(t, imagegen(t, "init", "--distro", "debian12", dir+"/c"))
	spec, dist := dir+"/c/cluster.yaml", dir+"/c/dist"
	must(t, imagegen(t, "seed", "-f", spec)) // also issues the secrets
	isos, err := filepath.Glob(dist + "/seeds/*.iso")
	if err != nil || len(isos) != 17 {
		t.Fatalf("%d seeds, want 17 (%v)", len(isos), err)
	}
	// The other tools get rendered files.
	for _, iso := range isos {
		s, err := cloudinit.ReadISO(iso)
		if err != nil {
			t.Fatal(err)
		}
		node := filepath.Join(dir, "files", strings.TrimSuffix(filepath.Base(iso), ".iso"))
		if err := os.MkdirAll(node, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"user-data": s.UserData, "meta-data": s.MetaData, "network-config": s.NetworkConfig} {
			if err := os.WriteFile(filepath.Join(node, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	contenders := []contender{{
		"imagegen seed",
		func() error { return os.RemoveAll(dist) },
		func() *exec.Cmd { return imagegen(t, "seed", "-f", spec) },
	}}
	for _, line := range []string{
		"cloud-localds -N $n/network-config $n.iso $n/user-data $n/meta-data",
		"genisoimage -quiet -V cidata -J -r -o $n.iso $n/user-data $n/meta-data $n/network-config",
	} {
		program, _, _ := strings.Cut(line, " ")
		if _, err := exec.LookPath(program); err != nil {
			t.Logf("no %s on this machine: NOT compared with it", program)
			continue
		}
		contenders = append(contenders, contender{name: "17 × " + program, run: func() *exec.Cmd {
			cmd := exec.Command("sh", "-ec", "for n in */; do n=${n%/}; "+line+"; done")
			cmd.Dir = filepath.Join(dir, "files")
			return cmd
		}})
	}
	measure(t, repeat, contenders)
}

func vmdk(t *testing.T, repeat int) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("no qemu-img on this machine (package qemu-utils): VMDK is NOT measured")
	}
	dir := t.TempDir()
	disk := os.Getenv("BENCH_DISK")
	if disk == "" {
		if os.Geteuid() != 0 {
			t.Skip("BENCH_DISK names no baked disk, and baking one needs root: VMDK is NOT measured")
		}
		must(t, imagegen(t, "init", "--distro", "debian12", dir+"/c"))
		must(t, imagegen(t, "build", "-f", dir+"/c/cluster.yaml", "web"))
		disk = dir + "/c/dist/images/web.raw"
	}
	files := []string{"imagegen.vmdk", "qemu-img.vmdk"}
	contenders := []contender{
		{name: "imagegen", run: func() *exec.Cmd { return inAlone("IMAGEGEN_BENCH_VMDK_OF", disk, dir+"/imagegen.vmdk") }},
		{name: "qemu-img convert", run: func() *exec.Cmd {
			return exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, dir+"/qemu-img.vmdk")
		}},
	}
	if root := os.Getenv("IMAGEGEN_VBOX"); root == "" {
		t.Log("IMAGEGEN_VBOX names no root file system with VirtualBox: NOT compared with VBoxManage clonemedium")
	} else {
		files = append(files, "vbox.vmdk")
		contenders = append(contenders, contender{"VBoxManage clonemedium", func() error { return prepareVBox(dir, disk) }, func() *exec.Cmd {
			const enter = `touch "$2/disk.raw" && mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/tmp" && mount --bind "$2" "$1/mnt" &&
mount --bind "$3" "$1/mnt/disk.raw" && mount -o remount,bind,ro "$1/mnt/disk.raw" && cd / && exec chroot "$1" env HOME=/mnt VBOX_USER_HOME=/mnt/settings \
VBoxManage clonemedium disk /mnt/flat.vmdk /mnt/vbox.vmdk --format VMDK --variant Stream`
			return exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", enter, "sh", root, dir, disk)
		}})
	}
	measure(t, repeat, contenders)
	var first int64
	for _, name := range files {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		first = cmp.Or(first, info.Size())
		t.Logf("%s: %d bytes, ratio %.3f", name, info.Size(), float64(info.Size())/float64(first))
	}
}

// prepareVBox writes a descriptor beside disk.raw, because VirtualBox accepts no raw disk as a medium.
func prepareVBox(dir, disk string) error {
	info, err := os.Stat(disk)
	if err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(dir+"/settings"), os.RemoveAll(dir+"/vbox.vmdk")); err != nil {
		return err
	}
	return os.WriteFile(dir+"/flat.vmdk", fmt.Appendf(nil, `# Disk DescriptorFile
version=1
CID=00000001
parentCID=ffffffff
createType="monolithicFlat"
RW %d FLAT "disk.raw" 0
ddb.adapterType="ide"
ddb.geometry.cylinders="1024"
ddb.geometry.heads="16"
ddb.geometry.sectors="63"
ddb.uuid.image="00000000-0000-4000-8000-000000000001"
`, info.Size()/512), 0o600)
}

func scale(t *testing.T, repeat int) {
	var contenders []contender
	for _, n := range []int{10, 100, 1000} {
		dir := t.TempDir()
		spec := dir + "/cluster.yaml"
		if err := os.WriteFile(spec, []byte(specOf(n)), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, imagegen(t, "seed", "-f", spec)) // issues the secrets
		contenders = append(contenders,
			contender{fmt.Sprintf("%d nodes: validate", n), nil, func() *exec.Cmd { return imagegen(t, "validate", "-f", spec) }},
			contender{fmt.Sprintf("%d nodes: seed", n), func() error { return os.RemoveAll(dir + "/dist") },
				func() *exec.Cmd { return imagegen(t, "seed", "-f", spec) }},
			contender{fmt.Sprintf("%d nodes: Vagrantfile", n), nil,
				func() *exec.Cmd { return inAlone("IMAGEGEN_BENCH_VAGRANTFILE_OF", spec, dir+"/Vagrantfile") }},
		)
	}
	measure(t, repeat, contenders)
}

// page measures what the end-to-end test asserts: from the start of a baked cluster's nodes to the front page through
// the virtual address. CPU time and memory are those of the command, not of the nodes.
func page(t *testing.T, repeat int) {
	if os.Geteuid() != 0 {
		t.Skip("the lab needs root: NOT measured")
	}
	site := freeAddress(t)
	spec := baked(t)
	down := func() error {
		out, err := imagegen(t, "down", "-f", spec).CombinedOutput()
		if err != nil {
			return fmt.Errorf("down: %w: %s", err, out)
		}
		return nil
	}
	defer down()
	measure(t, repeat, []contender{{"up, to WordPress's front page", down, func() *exec.Cmd {
		up := imagegen(t, "up", "-f", spec, "--site", site)
		return exec.Command("timeout", append([]string{"600", "sh", "-ec",
			`"$@"; until curl -s -m 20 "http://$0/" | grep -q "<title>A site that stays up"; do sleep 0.1; done`, site}, up.Args...)...)
	}}})
}

// baked returns the spec of the reference cluster, whose images and seeds are there. With its own name it can run beside a demo.
func baked(t *testing.T) (spec string) {
	t.Helper()
	dir := t.TempDir()
	must(t, imagegen(t, "init", "--distro", "debian12", dir+"/c"))
	must(t, in(dir, "sed -i 's/^cluster: otus/cluster: bench/' c/cluster.yaml"))
	spec = dir + "/c/cluster.yaml"
	must(t, imagegen(t, "build", "-f", spec))
	return spec
}

// freeAddress is where a lab's site can be forwarded to beside another lab.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// specOf returns a spec of n nodes, most of them web nodes.
func specOf(n int) string {
	var s strings.Builder
	s.WriteString("cluster: big\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/16}\nroles:\n" +
		"  redis: {nodes: {r1: 10.0.255.1, r2: 10.0.255.2, r3: 10.0.255.3}}\n" +
		"  glusterfs: {nodes: {g1: 10.0.255.4, g2: 10.0.255.5, g3: 10.0.255.6}}\n  web:\n    nodes:\n")
	for i := range n - 6 {
		fmt.Fprintf(&s, "      web%d: 10.0.%d.%d\n", i+1, 1+i/250, 1+i%250)
	}
	return s.String()
}

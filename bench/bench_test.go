// Package bench measures imagegen beside the tools that a user would take instead. It runs with make bench, where the
// variable BENCH names what to measure:
//
//	seeds  17 seeds, against cloud-localds and genisoimage that make ISOs of the same files
//	vmdk   a baked disk as a streamOptimized VMDK, against qemu-img
//	scale  specs of 10, 100 and 1,000 nodes
//
// The contenders of a section take turns, BENCH_REPEAT times, and medians are compared: what else the machine does
// meets all of them alike.
package bench

import (
	"context"
	"errors"
	"fmt"
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
	"imagegen/images"
)

// vmdkOf makes this program write the disk that the variable names as a VMDK, in a process of its own, so that its
// memory is its own.
const vmdkOf = "IMAGEGEN_BENCH_VMDK_OF"

func TestMain(m *testing.M) {
	if disk := os.Getenv(vmdkOf); disk != "" {
		if err := writeVMDK(disk, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
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
	err = images.WriteVMDK(context.Background(), f, disk, "bench", 0)
	return errors.Join(err, f.Close())
}

// contender is one way to do a section's work. Its prepare is not measured.
type contender struct {
	name    string
	prepare func() error
	run     func() *exec.Cmd
}

// cost is what a run took. Its processor time, of all its processes, tells more than the clock on a busy machine.
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
	sections := map[string]func(t *testing.T, repeat int){"seeds": seeds, "vmdk": vmdk, "scale": scale}
	for _, name := range strings.Split(names, ",") {
		section, ok := sections[name]
		if !ok {
			t.Fatalf("BENCH=%s: there are seeds, vmdk, scale", name)
		}
		t.Run(name, func(t *testing.T) { section(t, repeat) })
	}
}

// measure lets the contenders take turns and prints a table with the ratio to the first of them.
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
	slices.Sort(values)
	return values[len(values)/2]
}

// imagegen returns a call of the command that make built.
func imagegen(t *testing.T, args ...string) *exec.Cmd {
	path, err := filepath.Abs("../bin/imagegen")
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, args...)
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
	must(t, imagegen(t, "seed", "-f", spec)) // and makes the secrets
	isos, err := filepath.Glob(dist + "/seeds/*.iso")
	if err != nil || len(isos) != 17 {
		t.Fatalf("%d seeds, want 17 (%v)", len(isos), err)
	}
	// The peers get the files ready rendered.
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
	disk := os.Getenv("BENCH_DISK")
	if disk == "" {
		t.Skip("BENCH_DISK names no baked disk (such as dist/images/web.raw): VMDK is NOT measured")
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("no qemu-img on this machine (package qemu-utils): VMDK is NOT measured")
	}
	dir := t.TempDir()
	ours, theirs := dir+"/ours.vmdk", dir+"/theirs.vmdk"
	measure(t, repeat, []contender{
		{name: "imagegen", run: func() *exec.Cmd {
			cmd := exec.Command(os.Args[0], ours)
			cmd.Env = append(os.Environ(), vmdkOf+"="+disk)
			return cmd
		}},
		{name: "qemu-img convert", run: func() *exec.Cmd {
			return exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, theirs)
		}},
	})
	var sizes [2]int64
	for i, path := range []string{ours, theirs} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sizes[i] = info.Size()
	}
	t.Logf("sizes: imagegen %d, qemu-img %d: ratio %.3f", sizes[0], sizes[1], float64(sizes[0])/float64(sizes[1]))
}

func scale(t *testing.T, repeat int) {
	var contenders []contender
	for _, n := range []int{10, 100, 1000} {
		dir := t.TempDir()
		spec := dir + "/cluster.yaml"
		if err := os.WriteFile(spec, []byte(specOf(n)), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, imagegen(t, "seed", "-f", spec)) // makes the secrets
		contenders = append(contenders,
			contender{fmt.Sprintf("%d nodes: validate", n), nil, func() *exec.Cmd { return imagegen(t, "validate", "-f", spec) }},
			contender{fmt.Sprintf("%d nodes: seed", n), func() error { return os.RemoveAll(dir + "/dist") },
				func() *exec.Cmd { return imagegen(t, "seed", "-f", spec) }},
		)
	}
	measure(t, repeat, contenders)
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

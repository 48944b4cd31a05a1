// Package incushosts gives tests an Incus cluster of several hosts on one machine. Each host is an Incus daemon in a root file
// system, a network namespace and a cgroup of its own. The namespaces are connected to one bridge. A host's power can be cut, and
// its network cable unplugged.
//
// The root file system is Debian 13, since Debian 12 has no Incus. It is made once with mmdebstrap, from the archive that this
// machine's APT uses, and kept in the user's cache folder.
package incushosts

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed enter.sh
var enterScript string

// packages of a host, beside those that APT needs. The tests take busybox for tiny images.
const packages = "incus,incus-client,iproute2,attr,squashfs-tools,xz-utils,busybox-static"

const (
	makeRootIn = 20 * time.Minute // from a distant archive
	answersIn  = time.Minute
	goneIn     = 30 * time.Second
	pollEvery  = 50 * time.Millisecond
	prefix     = "imagegen-incus-" // of namespaces and cgroups; owner follows
	networkOf  = "192.168.10."     // hosts' addresses are 11 and up
)

// Cluster is several hosts with Incus for a test. They are called h1, h2, … and have the addresses 192.168.10.11, 192.168.10.12, …
// on a bridge br0 each.
type Cluster struct {
	t     testing.TB
	dir   string // of this cluster; on disk
	root  string // the hosts' root file system, read-only
	name  string
	group string // cgroup
	hosts []string
}

// Start makes an Incus cluster of n hosts, and removes all of it when the test ends. Such a test is asked for explicitly, so it fails
// where the hosts cannot be made.
func Start(t testing.TB, n int) *Cluster {
	t.Helper()
	c := Boot(t, n)
	c.join()
	return c
}

// Boot makes n hosts whose Incus daemons run and have not been configured yet. See [Start].
func Boot(t testing.TB, n int) *Cluster {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("Incus hosts need root")
	}
	for _, p := range [][2]string{{"mmdebstrap", "mmdebstrap"}, {"ip", "iproute2"}, {"unshare", "util-linux"}, {"nsenter", "util-linux"}} {
		if _, err := exec.LookPath(p[0]); err != nil {
			t.Fatalf("Incus hosts need the program %s (package %s; make tools installs it)", p[0], p[1])
		}
	}
	cgroups, err := cgroupRoot()
	if err != nil {
		t.Fatalf("make Incus hosts: %v", err)
	}
	removeStale(cgroups)
	name := prefix + pidNamespace() + "-" + strconv.Itoa(os.Getpid())
	c := &Cluster{t: t, root: makeRoot(t), name: name, group: filepath.Join(cgroups, name)}
	if c.dir, err = os.MkdirTemp("", prefix); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.remove)
	c.raiseLimits()
	c.bridge(c.name+"-switch", networkOf+"254/24")
	c.program("client", "")
	for i := range n {
		c.add(i + 1)
	}
	return c
}

// Hosts returns the names of the hosts.
func (c *Cluster) Hosts() []string { return c.hosts }

// Incus returns the path of an incus program that talks to a host as its root does.
func (c *Cluster) Incus(host string) string { return filepath.Join(c.dir, host, "bin", "incus") }

// Root returns the hosts' root file system: for programs to be taken from, not to be written to.
func (c *Cluster) Root() string { return c.root }

// Pool returns where a host keeps the volumes of its storage pool.
func (c *Cluster) Pool(host string) string {
	return filepath.Join(c.dir, host, "incus", "storage-pools", "default")
}

func (c *Cluster) netns(host string) string { return c.name + "-" + host }

// On returns a command for a host: in its network, and with its incus program.
func (c *Cluster) On(host string, args ...string) *exec.Cmd {
	return c.in(host, filepath.Dir(c.Incus(host)), args)
}

// Outside returns a command for a computer that is no host, on the network of all hosts. Its incus program knows no server yet.
func (c *Cluster) Outside(args ...string) *exec.Cmd {
	return c.in("switch", filepath.Dir(c.Incus("client")), args)
}

func (c *Cluster) in(place, bin string, args []string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + filepath.Join("/run/netns", c.netns(place))}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	return cmd
}

// Run runs the incus program of a host, and fails the test with its message if it fails.
func (c *Cluster) Run(host string, args ...string) string {
	c.t.Helper()
	out, err := exec.Command(c.Incus(host), args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("incus %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Holds lists what Incus and its hosts hold, apart from what they need themselves: to compare before and after a test.
func (c *Cluster) Holds() []string {
	c.t.Helper()
	var all []string
	for _, path := range []string{"instances", "images", "storage-pools/default/volumes", "projects", "profiles", "networks"} {
		var some []string
		if err := json.Unmarshal([]byte(c.Run(c.hosts[0], "query", "/1.0/"+path+"?all-projects=true")), &some); err != nil {
			c.t.Fatal(err)
		}
		all = append(all, some...)
	}
	for _, h := range c.hosts {
		for _, pattern := range []string{"storage-pools/default/*/*", "images/*", "devices/*", "containers/*"} {
			some, _ := filepath.Glob(filepath.Join(c.dir, h, "incus", pattern))
			all = append(all, some...)
		}
	}
	slices.Sort(all)
	return all
}

// CutPower kills everything on a host at once.
func (c *Cluster) CutPower(host string) {
	c.t.Helper()
	if err := killGroup(filepath.Join(c.group, host)); err != nil {
		c.t.Fatal(err)
	}
}

// PowerOn starts a host that is off, and waits until its daemon answers.
func (c *Cluster) PowerOn(host string) {
	c.t.Helper()
	group := filepath.Join(c.group, host)
	if err := os.MkdirAll(group, 0o755); err != nil {
		c.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(c.dir, host, "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("sh", "-c", enterScript, "enter", c.root, filepath.Join(c.dir, host), c.netns(host), group, host)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go cmd.Wait() // until its power is cut
	if !poll(answersIn, func() bool { return exec.Command(c.Incus(host), "query", "/1.0").Run() == nil }) {
		said, _ := os.ReadFile(log.Name())
		c.t.Fatalf("the Incus daemon of %s does not answer:\n%s", host, said)
	}
}

// Unplug takes out a host's network cable.
func (c *Cluster) Unplug(host string) { c.ip("-n", c.netns(host), "link", "set", "up0", "down") }

// Plug puts a host's network cable back.
func (c *Cluster) Plug(host string) { c.ip("-n", c.netns(host), "link", "set", "up0", "up") }

func (c *Cluster) ip(args ...string) {
	c.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		c.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// inotifyInstances is how many inotify instances root needs on a kernel that carries all hosts: systemd takes six in each container.
const inotifyInstances = 1024

// raiseLimits does to this machine's kernel, until the test ends, what docs/incus.md says to do on hosts.
func (c *Cluster) raiseLimits() {
	c.t.Helper()
	const path = "/proc/sys/fs/inotify/max_user_instances"
	before, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(before))); err != nil || n >= inotifyInstances {
		return
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(inotifyInstances)), 0); err != nil {
		c.t.Fatalf("%s is too low for the nodes: %v", path, err)
	}
	c.t.Cleanup(func() { os.WriteFile(path, before, 0) })
}

// bridge makes a namespace with a bridge.
func (c *Cluster) bridge(ns, address string) {
	c.t.Helper()
	c.ip("netns", "add", ns)
	c.ip("-n", ns, "link", "set", "lo", "up")
	c.ip("-n", ns, "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
	c.ip("-n", ns, "address", "add", address, "dev", "br0")
	c.ip("-n", ns, "link", "set", "br0", "up")
}

// add makes a host and powers it on.
func (c *Cluster) add(n int) {
	c.t.Helper()
	host := fmt.Sprint("h", n)
	c.hosts = append(c.hosts, host)
	for _, dir := range []string{"upper", "work", "root", "incus"} {
		if err := os.MkdirAll(filepath.Join(c.dir, host, dir), 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
	c.program(host, filepath.Join(c.dir, host, "incus/unix.socket"))
	c.bridge(c.netns(host), fmt.Sprint(networkOf, 10+n, "/24"))
	c.ip("link", "add", "up0", "netns", c.netns(host), "type", "veth", "peer", "name", host, "netns", c.netns("switch"))
	c.ip("-n", c.netns(host), "link", "set", "up0", "master", "br0", "up")
	c.ip("-n", c.netns("switch"), "link", "set", host, "master", "br0", "up")
	c.PowerOn(host)
}

// program makes an incus program that talks to the server at a socket or, without one, to servers on the network.
func (c *Cluster) program(place, socket string) {
	c.t.Helper()
	loader, libraries := filepath.Join(c.root, "lib64/ld-linux-x86-64.so.2"), filepath.Join(c.root, "usr/lib/x86_64-linux-gnu")
	script := fmt.Sprintf("#!/bin/sh\nexport INCUS_CONF=%s INCUS_SOCKET=%s\nexec %s --library-path %s %s \"$@\"\n",
		filepath.Join(c.dir, place, "conf"), socket, loader, libraries, filepath.Join(c.root, "usr/bin/incus"))
	if err := errors.Join(os.MkdirAll(filepath.Dir(c.Incus(place)), 0o755), os.WriteFile(c.Incus(place), []byte(script), 0o755)); err != nil {
		c.t.Fatal(err)
	}
}

// join makes one Incus cluster of the hosts.
func (c *Cluster) join() {
	c.t.Helper()
	c.preseed(c.hosts[0], "config: {core.https_address: '"+networkOf+"11:8443'}\nstorage_pools: [{name: default, driver: dir}]\ncluster: {enabled: true, server_name: h1}\n")
	for i, h := range c.hosts[1:] {
		said := strings.Fields(c.Run(c.hosts[0], "cluster", "add", "--quiet", h))
		c.preseed(h, fmt.Sprintf("cluster: {enabled: true, server_name: %s, server_address: '%s%d:8443', cluster_token: %s, member_config: [{entity: storage-pool, name: default, key: source, value: ''}]}\n",
			h, networkOf, i+12, said[len(said)-1]))
	}
}

// preseed configures a host, from its own network: the program looks at the certificate of the cluster that the host is to join.
func (c *Cluster) preseed(host, config string) {
	c.t.Helper()
	cmd := c.On(host, "incus", "admin", "init", "--preseed")
	cmd.Stdin = strings.NewReader(config)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("incus admin init on %s: %v: %s", host, err, out)
	}
}

// remove removes all of the cluster.
func (c *Cluster) remove() {
	if c.t.Failed() {
		for _, h := range c.hosts {
			if log, err := os.ReadFile(filepath.Join(c.dir, h, "log")); err == nil {
				lines := strings.Split(string(log), "\n")
				c.t.Logf("the last of what the daemon of %s said:\n%s", h, strings.Join(lines[max(0, len(lines)-15):], "\n"))
			}
		}
	}
	if err := killGroup(c.group); err != nil {
		c.t.Error(err)
	}
	for _, ns := range append([]string{"switch"}, c.hosts...) {
		exec.Command("ip", "netns", "delete", c.netns(ns)).Run()
	}
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Error(err)
	}
}

// pidNamespace is the number of this process' PID namespace.
func pidNamespace() string {
	link, _ := os.Readlink("/proc/self/ns/pid") // pid:[4026531836]
	return strings.Trim(link, "pid:[]")
}

// removeStale removes what tests left that were killed, if their process ids are from this namespace.
func removeStale(cgroups string) {
	stale := func(name string) bool {
		rest, is := strings.CutPrefix(name, prefix+pidNamespace()+"-")
		pid, _, _ := strings.Cut(rest, "-")
		if _, err := strconv.Atoi(pid); !is || err != nil {
			return false
		}
		_, err := os.Stat("/proc/" + pid)
		return errors.Is(err, fs.ErrNotExist)
	}
	entries, _ := os.ReadDir(cgroups)
	for _, e := range entries {
		if stale(e.Name()) {
			killGroup(filepath.Join(cgroups, e.Name()))
		}
	}
	entries, _ = os.ReadDir("/run/netns")
	for _, e := range entries {
		if stale(e.Name()) {
			exec.Command("ip", "netns", "delete", e.Name()).Run()
		}
	}
}

// makeRoot returns the hosts' root file system, and makes it if needed.
func makeRoot(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "imagegen-test")
	root := filepath.Join(cache, "trixie-incus")
	made := root + ".packages" // written last
	if have, err := os.ReadFile(made); err == nil && string(have) == packages {
		return root
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(cache, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadFile(made); err == nil && string(have) == packages {
		return root
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	archive, err := archive()
	if err != nil {
		t.Fatalf("make Incus hosts: %v", err)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), makeRootIn)
	defer cancel()
	out, err := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--variant=apt", "--include="+packages, `--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"trixie", root, archive).CombinedOutput()
	if err != nil {
		t.Fatalf("make Debian 13 with Incus: mmdebstrap: %v: %s", err, out)
	}
	if err := os.WriteFile(made, []byte(packages), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("Debian 13 with Incus was made in %s", time.Since(start).Round(time.Second))
	return root
}

// archive returns the URL of the Debian archive that this machine's APT uses.
func archive() (string, error) {
	for _, update := range []bool{false, true} {
		if update { // a fresh machine has no lists
			if out, err := exec.Command("apt-get", "update", "--quiet").CombinedOutput(); err != nil {
				return "", fmt.Errorf("apt-get update: %w: %s", err, out)
			}
		}
		out, err := exec.Command("apt-get", "indextargets", "--format", "$(CREATED_BY) $(ORIGIN) $(COMPONENT) $(LABEL) $(REPO_URI)").Output()
		if err != nil {
			return "", fmt.Errorf("apt-get indextargets: %w", err)
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) == 5 && strings.Join(f[:4], " ") == "Packages Debian main Debian" {
				return f[4], nil
			}
		}
	}
	return "", errors.New("APT on this machine uses no Debian archive")
}

// cgroupRoot returns where cgroup2 is mounted.
func cgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("no cgroup2 is mounted")
}

// killGroup kills all processes in a cgroup and below, waits until they have ended, and removes the cgroup.
func killGroup(group string) error {
	if err := os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if !poll(goneIn, func() bool {
		events, err := os.ReadFile(filepath.Join(group, "cgroup.events"))
		return err != nil || bytes.Contains(events, []byte("populated 0"))
	}) {
		return fmt.Errorf("processes in %s survive being killed", group)
	}
	var all []string
	err := filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	for i := range all {
		err = errors.Join(err, os.Remove(all[len(all)-1-i]))
	}
	return err
}

func poll(limit time.Duration, done func() bool) bool {
	for start := time.Now(); !done(); time.Sleep(pollEvery) {
		if time.Since(start) > limit {
			return false
		}
	}
	return true
}

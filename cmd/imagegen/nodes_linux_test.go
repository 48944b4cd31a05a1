package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
)

// The nodes of these tests run the real agent, each in a network namespace with the node's address; a node's systemctl is a script. The
// operator is in another namespace, on another network, and reaches the nodes by their addresses alone.
//
// A machine is a folder with the node's root disk. The test program itself is the program of provider exec that makes them; tests
// of provider none do by hand what that would.

// asMachines makes the test program the provider's.
const asMachines = "IMAGEGEN_TEST_AS_MACHINES"

func init() { testPrograms[asMachines] = provideMachines }

// asTest names the test that a test program runs alone.
const asTest = "IMAGEGEN_TEST_ALONE"

// elsewhere runs a test in a process of its own, beside others, and tells whether it has done so. Tests that start nodes change the current
// folder, so they cannot share a process, and wait most of the time.
func elsewhere(t *testing.T) bool {
	t.Helper()
	if os.Getenv(asTest) == t.Name() {
		return false
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool { return strings.HasPrefix(arg, "-test.testlogfile") }) // this process's
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", append(args, "-test.run=^"+t.Name()+"$", "-test.v=true")...)
	cmd.Env = append(os.Environ(), asTest+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	runtime.LockOSThread() // Pdeathsig kills it when the thread that started it ends
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	t.Parallel() // returns after all other tests
	if err == nil {
		err = cmd.Wait()
	}
	text := out.String()
	switch {
	case err == nil && strings.Contains(text, "\n--- SKIP: "+t.Name()):
		t.Skip(text)
	case err != nil || !strings.Contains(text, "\n--- PASS: "+t.Name()):
		t.Errorf("%v\n%s", err, text)
	default:
		t.Log(text)
	}
	return true
}

// nodes is what a test has of them.
type nodes struct {
	dir      string // with cluster.yaml, and the machines in "machines"
	operator string // network namespace
	imagegen string // this program, where nobody may run it
}

// switchNS is the network namespace of the bridge that connects the nodes and the operator.
func switchNS(storage string) string { return "ig-" + filepath.Base(filepath.Dir(storage)) }

// startNodes makes the current folder that of a cluster with a spec and roles, its seeds and stand-ins for its images, and a network
// without nodes.
func startNodes(t *testing.T, spec string, roles map[string]string) *nodes {
	t.Helper()
	return startNodesWith(t, spec, roles, func() {})
}

// startNodesWith is startNodes of roles with more files, which write writes.
func startNodesWith(t *testing.T, spec string, roles map[string]string, write func()) *nodes {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	for _, p := range []string{"ip", "nsenter", "unshare", "setpriv", "tail", "go"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
	dir, err := os.MkdirTemp("", "n")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Chdir(dir)
	o := &nodes{dir: dir, operator: "ig-op-" + filepath.Base(dir), imagegen: filepath.Join(dir, "imagegen")}
	os.Chmod(dir, 0o755) // the operator is nobody

	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(o.imagegen, self, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, "program", "#!/bin/sh\n"+asMachines+"=1 exec "+o.imagegen+" \"$@\"\n")
	os.Chmod("program", 0o755)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "imagegen-node"), "imagegen/cmd/imagegen-node")
	build.Dir = filepath.Join(testDir, "..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	writeFile(t, "cluster.yaml", spec)
	for name, text := range roles {
		writeFile(t, filepath.Join("roles", name, "role.yaml"), text)
		image(t, name, "1")
	}
	write()
	done(t, "seed")
	if err := os.Mkdir("machines", 0o755); err != nil {
		t.Fatal(err)
	}
	sw := switchNS(o.storage())
	shell(t, fmt.Sprintf(`
ip netns add %[1]s
ip netns add %[2]s
ip -n %[1]s link add br0 type bridge
ip -n %[1]s link set br0 up
ip -n %[1]s link add op type veth peer name eth0 netns %[2]s
ip -n %[1]s link set op master br0 up
ip -n %[2]s address add 10.78.0.7/24 dev eth0
ip -n %[2]s link set eth0 up
ip -n %[2]s route add 10.77.0.0/24 dev eth0
`, sw, o.operator))
	t.Cleanup(func() {
		entries, _ := os.ReadDir(o.storage())
		for _, e := range entries {
			m := netMachine{filepath.Join(o.storage(), e.Name())}
			if t.Failed() {
				text, _ := os.ReadFile(m.path("console"))
				t.Logf("%s says:\n%s", e.Name(), text)
			}
			m.stop()
		}
		exec.Command("ip", "netns", "delete", o.operator).Run()
		exec.Command("ip", "netns", "delete", sw).Run()
	})
	return o
}

func (o *nodes) storage() string { return filepath.Join(o.dir, "machines") }

// image puts an image into the output folder. Services of one that is called broken fail.
func image(t *testing.T, role, identity string) {
	t.Helper()
	writeFile(t, "dist/images/"+role+".raw", identity+"\n")
	writeFile(t, "dist/images/"+role+".json", fmt.Sprintf("{\"identity\": %q}\n", identity))
}

func shell(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// command is imagegen run by the operator: root where the cluster was made, and else nobody.
func (o *nodes) command(folder string, args ...string) *exec.Cmd {
	enter := []string{"--net=/run/netns/" + o.operator, "--"}
	if folder != "." {
		enter = append(enter, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
	}
	cmd := exec.Command("nsenter", slices.Concat(enter, []string{o.imagegen}, args)...)
	cmd.Dir = filepath.Join(o.dir, folder)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", asImagegen + "=1"}
	return cmd
}

func (o *nodes) run(t *testing.T, folder string, args ...string) result {
	t.Helper()
	cmd := o.command(folder, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// until runs a command until its result is as wanted, or for some minutes: on a busy machine, an agent may not answer in time for once.
func (o *nodes) until(t *testing.T, folder string, wanted func(result) bool, args ...string) (r result) {
	t.Helper()
	for start := time.Now(); time.Since(start) < patience; {
		if r = o.run(t, folder, args...); wanted(r) {
			break
		}
		t.Logf("%q: %+v", args, r)
	}
	return r
}

// patience ends tests that would wait for ever.
const patience = 5 * time.Minute

// folder makes an operator's folder with the three files of some secrets.
func (o *nodes) folder(t *testing.T, name, secrets string) {
	t.Helper()
	shell(t, fmt.Sprintf(`cd %[1]s; mkdir -p %[2]s/secrets %[2]s/dist; cp -r cluster.yaml roles %[2]s; cp dist/expected.json %[2]s/dist
cp %[3]s/ca.crt %[3]s/operator.crt %[3]s/operator.key %[2]s/secrets; chown -R 65534:65534 %[2]s`, o.dir, name, secrets))
}

type nodeStatus struct{ Node, Host, State, Power, Is, Build, Detail, Error string }

// await asks for the nodes' status until it is as wanted: agents on a busy machine may be silent for a while.
func (o *nodes) await(t *testing.T, folder, what string, wanted func(map[string]nodeStatus) bool) map[string]nodeStatus {
	t.Helper()
	start := time.Now()
	for {
		r := o.run(t, folder, "status", "--json")
		var s struct {
			Version int
			Nodes   []nodeStatus
		}
		all := map[string]nodeStatus{}
		if r.code == exitDone {
			if err := json.Unmarshal([]byte(r.stdout), &s); err != nil || s.Version != 1 {
				t.Fatalf("status: %v: %+v", err, r)
			}
			for _, n := range s.Nodes {
				all[n.Node] = n
			}
			if wanted(all) {
				t.Logf("%s: after %s", what, time.Since(start).Round(time.Millisecond))
				return all
			}
		}
		if time.Since(start) > patience {
			t.Fatalf("not within %s: %s: %+v; %+v", patience, what, all, r)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// awaitState waits until nodes are in a state and what they wait for contains a text.
func (o *nodes) awaitState(t *testing.T, folder, state, detail string, names ...string) map[string]nodeStatus {
	t.Helper()
	return o.await(t, folder, fmt.Sprint(names, " ", state, " ", detail), func(s map[string]nodeStatus) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return s[n].State != state || !strings.Contains(s[n].Detail, detail) })
	})
}

// machine is the machine of a node.
func (o *nodes) machine(node string) netMachine { return netMachine{filepath.Join(o.storage(), node)} }

// byHand makes the machine of a node of provider none and turns it on, from files. prepare, if there is one, writes to its root disk.
func (o *nodes) byHand(t *testing.T, node, ip, image, seed string, prepare func(root string)) {
	t.Helper()
	m := o.machine(node)
	var r machineRequest
	r.Machine.Node, r.Machine.IP, r.Machine.Image.Path, r.Machine.Seed.Path = node, ip, image, seed
	err := errors.Join(m.stop(), os.RemoveAll(m.dir), m.create(r))
	if err == nil && prepare != nil {
		prepare(m.path("root"))
	}
	if err == nil {
		err = m.start()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Programs of a node that there is no system for. A unit is on once it is started; units of the image are on from the start.
const (
	nodeSystemctl = `#!/bin/sh
for unit; do :; done
state=inactive
if [ -e "$MACHINE/on.$unit" ] || [ "$unit" = image.service ]; then state=active; fi
if grep -qs broken "$MACHINE/image" /etc/imagegen/*.conf; then state=failed; fi
case "$*" in
*show*) printf 'LoadState=loaded\nActiveState=%s\nSubState=running\nResult=exit-code\nMainPID=0\n' $state ;;
*start*) touch "$MACHINE/on.$unit" ;;
*stop*) rm -f "$MACHINE/on.$unit" ;;
esac
`
	nodeJournalctl = `#!/bin/sh
case "$*" in *--follow*) exec tail -f "$MACHINE/journal";; esac
cat "$MACHINE/journal"
`
)

// netMachine is a machine in a folder.
type netMachine struct{ dir string }

func (m netMachine) path(name string) string { return filepath.Join(m.dir, name) }

// name is that of the machine's network namespace.
func (m netMachine) name() string {
	return switchNS(filepath.Dir(m.dir)) + "-" + filepath.Base(m.dir)
}

// machineRequest is what the program of a provider is told (docs/exec.md).
type machineRequest struct {
	Storage string
	Node    string
	Machine struct {
		Node, Host, IP string
		Image, Seed    struct{ Path, Identity string }
	}
}

// machineFacts is what is kept of a machine.
type machineFacts struct {
	Node  string `json:"node"`
	Host  string `json:"host"`
	Image string `json:"image"`
	Seed  string `json:"seed"`
	Power string `json:"power"`
}

// create makes a machine with a new root disk, off.
func (m netMachine) create(r machineRequest) error {
	seed, err := cloudinit.ReadISO(r.Machine.Seed.Path)
	if err != nil {
		return err
	}
	image, err := os.ReadFile(r.Machine.Image.Path)
	if err != nil {
		return err
	}
	written, err := seed.Files()
	if err != nil {
		return err
	}
	var id [16]byte
	rand.Read(id[:])
	all := map[string]string{
		"root/etc/machine-id": hex.EncodeToString(id[:]) + "\n", "root/etc/passwd": "root:x:0:0::/:/bin/sh\n", "root/etc/group": "root:x:0:\n", "root/var/lib/x": "",
		"root/usr/local/share/imagegen/image": string(image),
		"bin/systemctl":                       nodeSystemctl, "bin/journalctl": nodeJournalctl, "journal": "a line of the node's journal\n", "image": string(image), "ip": r.Machine.IP,
	}
	modes := map[string]os.FileMode{}
	for _, f := range written {
		if strings.HasPrefix(f.Path, "/etc/") {
			all["root"+f.Path], modes["root"+f.Path] = string(f.Content), os.FileMode(f.Mode)
		}
	}
	aside := netMachine{filepath.Join(filepath.Dir(m.dir), "."+filepath.Base(m.dir))}
	if err := os.RemoveAll(aside.dir); err != nil {
		return err
	}
	for name, text := range all {
		if err := os.MkdirAll(filepath.Dir(aside.path(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(aside.path(name), []byte(text), 0o755); err != nil {
			return err
		}
		if mode, ok := modes[name]; ok {
			if err := os.Chmod(aside.path(name), mode); err != nil {
				return err
			}
		}
	}
	if err := (nocloud.Disk{Root: aside.path("root")}).Keep(nocloud.Seed(seed)); err != nil {
		return err
	}
	about, err := json.Marshal(machineFacts{Node: r.Machine.Node, Host: r.Machine.Host, Image: r.Machine.Image.Identity, Seed: r.Machine.Seed.Identity})
	if err != nil {
		return err
	}
	if err := os.WriteFile(aside.path("machine.json"), about, 0o644); err != nil {
		return err
	}
	return os.Rename(aside.dir, m.dir)
}

// Commands of fcntl(2) for locks that belong to an open file, and so to all processes that inherit it.
const (
	ofdGet = 36
	ofdSet = 37
)

// isOn tells whether the node's processes, whoever started them, hold the machine's lock.
func (m netMachine) isOn() (bool, error) {
	f, err := os.OpenFile(m.path("on"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return false, err
	}
	defer f.Close()
	l := syscall.Flock_t{Type: syscall.F_WRLCK}
	err = syscall.FcntlFlock(f.Fd(), ofdGet, &l)
	return l.Type != syscall.F_UNLCK, err
}

// start turns the machine on.
func (m netMachine) start() error {
	lock, err := os.OpenFile(m.path("on"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.FcntlFlock(lock.Fd(), ofdSet, &syscall.Flock_t{Type: syscall.F_WRLCK}); err != nil {
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
			return nil // it is on
		}
		return err
	}
	ip, err := os.ReadFile(m.path("ip"))
	if err != nil {
		return err
	}
	// A node keeps its hardware address when its machine is made anew: others would look for it at the old one for half a minute.
	addr, err := netip.ParseAddr(string(ip))
	if err != nil {
		return err
	}
	b := addr.As4()
	mac := net.HardwareAddr{2, 0, b[0], b[1], b[2], b[3]}
	m.unplug() // one whose start was interrupted
	out, err := exec.Command("sh", "-ec", fmt.Sprintf(`
ip netns add %[1]s
ip -n %[1]s link set lo up
ip -n %[2]s link add %[3]s type veth peer name eth0 address %[5]s netns %[1]s
ip -n %[2]s link set %[3]s master br0 up
ip -n %[1]s address add %[4]s/24 dev eth0
ip -n %[1]s link set eth0 up
ip -n %[1]s route add 10.78.0.0/24 dev eth0`, m.name(), switchNS(filepath.Dir(m.dir)), filepath.Base(m.dir), ip, mac)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	console, err := os.OpenFile(m.path("console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	agent := filepath.Join(filepath.Dir(filepath.Dir(m.dir)), "imagegen-node")
	cmd := exec.Command("nsenter", "--net=/run/netns/"+m.name(), "--", "unshare", "--mount-proc", "--pid", "--fork", "--kill-child", "sh", "-ec",
		fmt.Sprintf("mount --bind %[1]s/etc /etc; mount --bind %[1]s/var/lib /var/lib; mount --bind %[1]s/usr/local/share /usr/local/share; mount --bind %[2]s /usr/local/sbin; exec %[3]s", m.path("root"), filepath.Dir(agent), facts.AgentPath))
	cmd.Env = []string{"PATH=" + m.path("bin") + ":/usr/sbin:/usr/bin:/sbin:/bin", "MACHINE=" + m.dir}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = console, console, []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := lock.WriteAt(fmt.Appendf(nil, "%d\n", cmd.Process.Pid), 0); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// unplug removes the machine's network, if it has one. The kernel removes a namespace's interfaces some time after the namespace, and
// their names are in use until then.
func (m netMachine) unplug() {
	exec.Command("ip", "-n", switchNS(filepath.Dir(m.dir)), "link", "delete", filepath.Base(m.dir)).Run()
	exec.Command("ip", "netns", "delete", m.name()).Run()
}

// stop cuts the machine's power.
func (m netMachine) stop() error {
	if _, err := os.Stat(m.dir); err != nil {
		return nil
	}
	for {
		on, err := m.isOn()
		if err != nil {
			return err
		}
		if !on {
			m.unplug()
			return nil
		}
		pid, err := os.ReadFile(m.path("on"))
		if err != nil {
			return err
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err == nil {
			syscall.Kill(-n, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond) // until its processes have let the lock go
	}
}

// hold stops the program at a step, where a test wants to kill it: for ever.
func hold(storage, step string) {
	want, _ := os.ReadFile(filepath.Join(storage, "..", "hold"))
	if string(want) == step {
		held := filepath.Join(storage, "..", "held")
		os.WriteFile(held+".new", fmt.Append(nil, os.Getpid()), 0o644)
		os.Rename(held+".new", held)
		select {}
	}
}

// provideMachines is the provider's program.
func provideMachines() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	go func() { <-ctx.Done(); os.Exit(1) }()
	defer stop()
	if err := machinesVerb(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func machinesVerb(verb string) error {
	var r machineRequest
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		return err
	}
	node := r.Node + r.Machine.Node
	storage, err := filepath.Abs(r.Storage)
	if err != nil {
		return err
	}
	r.Storage = storage
	m := netMachine{filepath.Join(r.Storage, node)}
	if f, err := os.OpenFile(filepath.Join(r.Storage, "..", "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
		fmt.Fprintln(f, strings.TrimSpace(verb+" "+node))
		f.Close()
	}
	_, err = os.Stat(m.dir)
	there := err == nil
	answer := map[string]any{"protocol": 1}
	err = nil
	switch verb {
	case "list":
		answer["machines"], err = listMachines(r.Storage)
	case "create":
		hold(r.Storage, "create "+node)
		if !there {
			err = m.create(r)
		}
		hold(r.Storage, "created "+node)
	case "start":
		if !there {
			return fmt.Errorf("there is no machine %s", node)
		}
		err = m.start()
	case "stop":
		err = m.stop()
	case "remove":
		if err = m.stop(); err == nil {
			hold(r.Storage, "stopped "+node)
			err = os.RemoveAll(m.dir)
		}
	case "console":
		f, err := os.Open(m.path("console"))
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		return err
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

func listMachines(storage string) ([]machineFacts, error) {
	entries, err := os.ReadDir(storage)
	if err != nil {
		return nil, err
	}
	all := []machineFacts{}
	for _, e := range entries {
		m := netMachine{filepath.Join(storage, e.Name())}
		data, err := os.ReadFile(m.path("machine.json"))
		if strings.HasPrefix(e.Name(), ".") || errors.Is(err, os.ErrNotExist) {
			continue
		}
		var f machineFacts
		if err == nil {
			err = json.Unmarshal(data, &f)
		}
		if err != nil {
			return nil, err
		}
		on, err := m.isOn()
		if err != nil {
			return nil, err
		}
		f.Power = map[bool]string{true: "on", false: "off"}[on]
		all = append(all, f)
	}
	return all, nil
}

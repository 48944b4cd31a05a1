//go:build linux

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/internal/accel"
	"imagegen/internal/testkit"
)

func TestQemuArgs(t *testing.T) {
	l := &Lab{spec: testSpec("otus"), network: "imagegen-otus", paths: paths{"/out"}}
	for i := range l.spec.Roles {
		l.spec.Roles[i].CPUs, l.spec.Roles[i].Memory = 2, 256*cluster.MiB+1
	}
	nodes := l.spec.Nodes()
	for _, c := range []struct {
		node  cluster.Node
		accel string
		want  string
	}{
		{nodes[0], "tcg", `-name imagegen-otus:balancer1 -machine pc -accel tcg,tb-size=256 -icount shift=2,sleep=on -cpu qemu64 -smp 1
-smbios type=11,value=io.systemd.credential:sysctl.extra=kernel.randomize_va_space=0
-m 257 -nodefaults -no-user-config -display none -rtc base=utc -daemonize -device virtio-rng-pci
-drive file=disk.qcow2,format=qcow2,if=virtio,discard=unmap
-drive file=seed.iso,format=raw,if=ide,media=cdrom,readonly=on
-chardev file,id=console,path=console.log,append=on -serial chardev:console
-netdev tap,id=lan,fd=3 -device virtio-net-pci,netdev=lan,romfile=,mac=02:00:5e:00:00:28`},
		{nodes[1], "kvm", `-name imagegen-otus:store1 -machine pc -accel kvm -cpu host -smp 2 -m 257
-nodefaults -no-user-config -display none -rtc base=utc -daemonize -device virtio-rng-pci
-drive file=disk.qcow2,format=qcow2,if=virtio,discard=unmap
-drive file=data.img,format=raw,if=virtio,discard=unmap
-drive file=seed.iso,format=raw,if=ide,media=cdrom,readonly=on
-chardev file,id=console,path=console.log,append=on -serial chardev:console
-netdev tap,id=lan,fd=3 -device virtio-net-pci,netdev=lan,romfile=,mac=02:00:5e:00:00:2c`},
	} {
		if got, want := strings.Join(qemu{l, c.accel}.args(c.node), " "), strings.ReplaceAll(c.want, "\n", " "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.node.Name, got, want)
		}
	}
}

func TestSSHArgs(t *testing.T) {
	l := &Lab{spec: testSpec("otus"), network: "imagegen-otus"}
	q := qemu{Lab: l}
	node := l.spec.Nodes()[1]
	l.spec.SSH.User = "admin"
	got := strings.Join(q.execArgs(node, []string{"/home/jane/.ssh/id"}, []string{"ls", "a b"}), " ")
	const want = "--net=/run/netns/imagegen-otus -- ssh -F none -T -o BatchMode=yes -o LogLevel=ERROR -o ConnectTimeout=30 " +
		"-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=known_hosts -i /home/jane/.ssh/id admin@192.168.10.44 -- sudo -n -H -- 'ls' 'a b'"
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	// What follows the address goes through a shell on the node.
	l.spec.SSH.User = "root"
	args := q.execArgs(node, nil, []string{"printf", "[%s]", "a  b", "", `it's "$HOME" \`, "*", "line\nline"})
	line := strings.Join(args[slices.Index(args, "root@192.168.10.44")+2:], " ")
	if out, err := exec.Command("sh", "-c", line).CombinedOutput(); string(out) != `[a  b][][it's "$HOME" \][*]`+"[line\nline]" || err != nil {
		t.Errorf("%s: %s, %v", line, out, err)
	}
	if _, err := q.exec(node, []string{"true"}); err == nil || !strings.Contains(err.Error(), "ssh.keys") {
		t.Errorf("exec without a key in the spec: %v", err)
	}
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{"a.pub": "ssh-ed25519 AAAA1 me", "b.pub": "ssh-rsa AAAA2", "c.pub": "", "d": "ssh-ed25519 AAAA1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := keyFiles(dir, []string{"ssh-ed25519 AAAA1 jane@desk"}); !slices.Equal(got, []string{filepath.Join(dir, "a")}) {
		t.Errorf("got %q", got)
	}
}

// smallMachine is a disk that prints a line on the serial port and halts.
func smallMachine(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath(accel.QEMU); err != nil || os.Geteuid() != 0 {
		t.Skipf("SKIPPED: needs root and %s: make checkers", accel.QEMU)
	}
	if err := (qemu{}).check(1); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	path := filepath.Join(t.TempDir(), "small.raw")
	if err := os.WriteFile(path, testkit.Speaker(1<<20, testkit.COM1, "a machine\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMachines is what a lab does with virtual machines, on the smallest there is.
func TestMachines(t *testing.T) {
	image := smallMachine(t)
	ctx := t.Context()
	b := newBench(t, "labtest4", image)
	for i := range b.spec.Roles {
		b.spec.Roles[i].Memory = 16 * cluster.MiB
	}
	b.chosen(t, Qemu)
	if err := b.Up(ctx, nil, UpOptions{Site: b.site, Provider: Nspawn}); err == nil || !strings.Contains(err.Error(), "imagegen down") {
		t.Errorf("up of virtual machines as containers: %v", err)
	}
	if err := b.Up(ctx, nil, UpOptions{Site: b.site, Provider: Qemu}); err != nil {
		t.Fatal(err)
	}
	boots := func(node string, times int) {
		t.Helper()
		eventually(t, "boot of "+node, func() error {
			var log bytes.Buffer
			if err := b.Console(ctx, &log, node, false); err != nil || strings.Count(log.String(), "a machine") != times {
				return fmt.Errorf("%v, %q", err, &log)
			}
			return nil
		})
	}
	port := func(node string) error {
		return b.network.do(func() error { _, err := net.InterfaceByName(b.port(node)); return err })
	}
	for _, n := range b.spec.Nodes() {
		boots(n.Name, 1)
		if err := port(n.Name); err != nil {
			t.Errorf("the network card of %s: %v", n.Name, err)
		}
	}
	if s := b.status(t)["store1"]; s.Power != "on" || s.State != "silent" {
		t.Errorf("a machine without an agent: %+v", s)
	}
	if _, err := b.Exec(ctx, "store1", []string{"true"}, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "SSH") {
		t.Errorf("exec without a key: %v", err)
	}
	if err := b.Cut(ctx, []string{"store1"}, nil, false); err != nil {
		t.Error(err)
	}
	for _, n := range []int{2, 3} { // at once, again and again: neither disk nor port is still in use
		if err := b.Kill(ctx, "store1"); err != nil {
			t.Fatal(err)
		}
		if s := b.status(t)["store1"]; s.Power != "off" || s.Detail != "" {
			t.Errorf("after the kill: %+v", s)
		}
		if err := port("store1"); err == nil {
			t.Error("after the kill its network card is still there")
		}
		if err := b.Start(ctx, "store1", "store2"); err != nil { // store2 is on
			t.Fatal(err)
		}
		boots("store1", n)
	}

	disk := b.paths.in("store1", changesDisk)
	old, err := os.Open(disk) // so that a new file cannot have its inode
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	before, err := old.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.paths.in("store1", dataDisk), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.newImage(t, "store")
	if current, err := b.Current("store1"); current || err != nil {
		t.Errorf("a node of an old image is current: %v, %v", current, err)
	}
	if err := b.Replace(ctx, "store1", false); err != nil {
		t.Fatal(err)
	}
	boots("store1", 4)
	if after, err := os.Stat(disk); err != nil || os.SameFile(before, after) {
		t.Errorf("the replaced node has its old disk: %v", err)
	}
	if data, err := os.ReadFile(b.paths.in("store1", dataDisk)); err != nil || !bytes.HasPrefix(data, []byte("kept")) {
		t.Errorf("the replaced node's data disk: %.10q, %v", data, err)
	}
	if current, err := b.Current("store1"); !current || err != nil {
		t.Errorf("the new node is of the latest image: %v, %v", current, err)
	}

	if err := os.WriteFile(b.paths.in("store2", changesDisk), []byte("no disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Kill(ctx, "store2"); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(ctx, "store2"); err == nil || !strings.Contains(err.Error(), "turn on store2: "+accel.QEMU) || !strings.Contains(err.Error(), changesDisk) {
		t.Errorf("start with a broken disk: %v", err)
	}
	if err := b.Down(ctx); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t)
}

// newImage puts a copy in the place of a role's image, as a new build does.
func (b *bench) newImage(t *testing.T, role string) {
	t.Helper()
	data, err := os.ReadFile(b.paths.image(role))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(b.paths.image(role)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.paths.image(role), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKilledUpOfMachines kills up in the middle, at different moments.
func TestKilledUpOfMachines(t *testing.T) {
	b := newBench(t, "labtest5", smallMachine(t))
	b.killedUp(t, Qemu, 40*time.Millisecond)
	if err := b.Down(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t)
}

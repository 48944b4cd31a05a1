package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/machines"
	"imagegen/machines/local"
)

func TestQemuArgs(t *testing.T) {
	d := &driver{c: local.Config{Network: "imagegen-otus"}}
	for _, c := range []struct {
		machine machines.Machine
		accel   string
		want    string
	}{
		{machines.Machine{Node: "balancer1", MAC: "02:00:5e:00:00:28"}, "tcg", `-name imagegen-otus:balancer1 -machine pc -accel tcg,tb-size=256 -icount shift=2,sleep=on -cpu qemu64 -smp 1
-smbios type=11,value=io.systemd.credential:sysctl.extra=kernel.randomize_va_space=0
-m 257 -nodefaults -no-user-config -display none -rtc base=utc -daemonize -device virtio-rng-pci
-drive file=disk.qcow2,format=qcow2,if=virtio,discard=unmap
-drive file=seed.iso,format=raw,if=ide,media=cdrom,readonly=on
-chardev file,id=console,path=console.log,append=on -serial chardev:console
-netdev tap,id=lan,fd=3 -device virtio-net-pci,netdev=lan,romfile=,mac=02:00:5e:00:00:28`},
		{machines.Machine{Node: "store1", MAC: "02:00:5e:00:00:2c", Data: 64 << 20}, "kvm", `-name imagegen-otus:store1 -machine pc -accel kvm -cpu host -smp 2 -m 257
-nodefaults -no-user-config -display none -rtc base=utc -daemonize -device virtio-rng-pci
-drive file=disk.qcow2,format=qcow2,if=virtio,discard=unmap
-drive file=data.img,format=raw,if=virtio,discard=unmap
-drive file=seed.iso,format=raw,if=ide,media=cdrom,readonly=on
-chardev file,id=console,path=console.log,append=on -serial chardev:console
-netdev tap,id=lan,fd=3 -device virtio-net-pci,netdev=lan,romfile=,mac=02:00:5e:00:00:2c`},
	} {
		c.machine.CPUs, c.machine.Memory = 2, 256<<20+1
		if got, want := strings.Join(d.args(c.machine, c.accel), " "), strings.ReplaceAll(c.want, "\n", " "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.machine.Node, got, want)
		}
	}
}

func TestSSHArgs(t *testing.T) {
	d := &driver{c: local.Config{Network: "imagegen-otus", SSH: cluster.SSH{User: "admin"}}}
	m := machines.Machine{Node: "store1", IP: "192.168.10.44"}
	got := strings.Join(d.execArgs(m, []string{"/home/jane/.ssh/id"}, []string{"ls", "a b"}), " ")
	const want = "--net=/run/netns/imagegen-otus -- ssh -F none -T -o BatchMode=yes -o LogLevel=ERROR -o ConnectTimeout=30 " +
		"-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=known_hosts -i /home/jane/.ssh/id admin@192.168.10.44 -- sudo -n -H -- 'ls' 'a b'"
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	// ssh passes everything after the address to a shell on the node.
	d.c.SSH.User = "root"
	args := d.execArgs(m, nil, []string{"printf", "[%s]", "a  b", "", `it's "$HOME" \`, "*", "line\nline"})
	line := strings.Join(args[slices.Index(args, "root@192.168.10.44")+2:], " ")
	if out, err := exec.Command("sh", "-c", line).CombinedOutput(); string(out) != `[a  b][][it's "$HOME" \][*]`+"[line\nline]" || err != nil {
		t.Errorf("%s: %s, %v", line, out, err)
	}
	if _, err := d.Command("", m, "", []string{"true"}); err == nil || !strings.Contains(err.Error(), "ssh.keys") {
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

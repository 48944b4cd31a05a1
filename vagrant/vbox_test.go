//go:build linux

package vagrant

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
	"imagegen/internal/vboxtest"
)

// greet acts as the nodes' SSH servers.
func greet(t *testing.T, addrs ...string) {
	for _, a := range addrs {
		if out, err := exec.Command("ip", "addr", "add", a+"/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		l, err := net.Listen("tcp", a+":22")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
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
	}
}

// enter runs a script beside the Vagrantfile, with an /etc that allows the network.
const enter = `set -e
mount -t tmpfs tmpfs /mnt
cp -a /etc /mnt/etc
mkdir -p /mnt/etc/vbox
printf '%s\n' "$NETWORKS" >/mnt/etc/vbox/networks.conf
mount --bind /mnt/etc /etc
cd "$DIR/dist"
eval "$1"
`

// Real Vagrant and VirtualBox with the Vagrantfile: nodes come up, also two in parallel, and their data disks survive
// them.
func TestVagrantUp(t *testing.T) {
	testkit.Program(t, "vagrant", "vagrant")
	if !vboxtest.Rerun(t, vboxtest.OwnNetwork) {
		return
	}
	spec := parse(t, `{cluster: otus, distro: debian12, network: {cidr: 192.168.10.0/24}, roles: {redis: {data: 64MiB,
nodes: {redis1: 192.168.10.49, redis2: 192.168.10.50, redis3: 192.168.10.51}}},
ssh: {user: jane, keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0S3FzxWr4H0OIqZ3DZ5z7fSgqBpB9GYf2dq3dmJ3cW jane@desk"]}}`)
	dir := t.TempDir()
	for _, d := range []string{"dist/boxes", "dist/seeds"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(dir, "dist/Vagrantfile"), write(t, spec), 0o644)
	for _, n := range spec.Nodes() {
		put(t, filepath.Join(dir, "dist/seeds", n.Name+".iso"), make([]byte, 64<<10), 0o600)
	}
	if err := os.Mkdir(filepath.Join(dir, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, ".ssh/a.pub"), []byte("ssh-ed25519 AAAAanother\n"), 0o644)
	put(t, filepath.Join(dir, ".ssh/b.pub"), []byte(spec.SSH.Keys[0]+"\n"), 0o644)
	put(t, filepath.Join(dir, ".ssh/b"), nil, 0o600)
	disk := filepath.Join(dir, "disk.raw")
	boot := make([]byte, 16<<20)
	copy(boot, []byte{0xfb, 0xf4, 0xeb, 0xfd}) // sti; hlt; and again
	boot[510], boot[511] = 0x55, 0xaa
	put(t, disk, boot, 0o644)
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := format.Machine{Name: "redis", Distro: "debian12", CPUs: 1, Memory: 64 << 20, ID: identities(spec)["redis"]}
	if err := format.WriteBox(t.Context(), filepath.Join(dir, "dist/boxes/redis.box"), f, m, 0); err != nil {
		t.Fatal(err)
	}
	problem := HostOnlyProblem(spec)
	line := problem[strings.Index(problem, "* "):]

	cmd := exec.Command("bash", "-c", enter, "bash", `
mark() { echo "== $*"; }
info() { VBoxManage showvminfo "otus-$1" --machinereadable; }
uuid() { VBoxManage showmediuminfo disk "$PWD/disks/$1.vdi" | sed -n 's/^UUID: *//p'; }

mark two at once
vagrant up redis1 >../redis1.log 2>&1 & one=$!
vagrant up redis2 >../redis2.log 2>&1 || { cat ../redis2.log; false; }
wait $one || { cat ../redis1.log; false; }
info redis1
VBoxManage getextradata otus-redis1 enumerate
vagrant ssh-config redis1
before=$(uuid redis1)

mark refused while snapshots hold the disk
vagrant snapshot save redis1 now
! vagrant destroy -f redis1
! vagrant destroy -f redis1
[ -e disks/redis1.vdi ]
vagrant snapshot delete redis1 now

mark replaced
vagrant destroy -f redis1
[ -e disks/redis1.vdi ]
[ "$(VBoxManage list vms | grep -c otus-)" = 1 ]
vagrant up redis1
info redis1 | grep '^"SATA-2-0"='
[ "$(uuid redis1)" = "$before" ]

mark another start, with the disks that are there
vagrant halt -f redis1
vagrant up redis1

mark with a blank disk
vagrant destroy -f redis1
rm disks/redis1.vdi
vagrant up redis1
[ "$(uuid redis1)" != "$before" ]

mark never up without a greeting
sed -i 's/boot_timeout = 600/boot_timeout = 5/' Vagrantfile
! vagrant up redis3
vagrant destroy -f
ls disks
mark end
`)
	cmd.Env = append(os.Environ(), "DIR="+dir, "HOME="+dir, "VAGRANT_HOME="+dir+"/vagrant.d", "NETWORKS="+strings.SplitN(line, "\n", 2)[0])
	greet(t, "192.168.10.49", "192.168.10.50")
	b, err := cmd.CombinedOutput()
	out := string(b)
	if err != nil || !strings.HasSuffix(out, "== end\n") {
		t.Fatalf("%v\n%s", err, out)
	}
	mac := strings.ToUpper(strings.ReplaceAll(spec.Nodes()[0].MAC, ":", ""))
	for _, want := range []string{
		`memory=256`, `cpus=2`, `nic1="nat"`, `nic2="null"`, `macaddress2="` + mac + `"`,
		`"SATA-1-0"="` + dir + `/dist/seeds/redis1.iso"`, `"SATA-2-0"="` + dir + `/dist/disks/redis1.vdi"`,
		`uartmode1="file,` + dir + `/dist/consoles/redis1.log"`, "redis1.vdi\nredis2.vdi\nredis3.vdi",
		`  HostName 192.168.10.49`, `  Port 22`, `  User jane`, `  IdentityFile ` + dir + `/.ssh/b`,
		"Key: imagegen/cluster, Value: " + clusterID, "Key: imagegen/image, Value: " + identities(spec)["redis"],
		"Timed out while waiting for the machine to boot. This means that",
	} {
		if !strings.Contains(out, "\n"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if n := strings.Count(out, "Remove them first: vagrant snapshot delete"); n != 2 {
		t.Errorf("%d of 2 times, destroy said what to do about snapshots", n)
	}
	networks := vboxtest.Networks(t)
	if n := strings.Count(networks, "Name:"); n != 1 {
		t.Errorf("%d host-only networks:\n%s", n, networks)
	}
	if t.Failed() {
		t.Log(out)
	}
}

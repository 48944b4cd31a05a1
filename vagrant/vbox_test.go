//go:build linux

package vagrant

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/images"
)

// greeter names the addresses at which the test binary stands in for nodes' SSH servers, instead of running tests.
const greeter = "IMAGEGEN_TEST_GREETER"

func TestMain(m *testing.M) {
	addrs := os.Getenv(greeter)
	if addrs == "" {
		os.Exit(m.Run())
	}
	for _, a := range strings.Fields(addrs) {
		l, err := net.Listen("tcp", a+":22")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
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
	select {}
}

// manage stands in for VBoxManage. It runs the real one in the chroot $ROOT, where there is no driver for host-only
// networks: those are noted in $DIR/networks, and adapters on them have a cable to nowhere. Vagrant 2.3 knows VirtualBox up to 7.0.
const manage = `#!/bin/bash
case "$*" in
--version) echo 7.0.0r1; exit ;;
"list hostonlyifs") cat "$DIR/networks"; exit ;;
"list bridgedifs" | "list dhcpservers") exit ;;
"hostonlyif create")
	sleep 1 # as long as it takes; who comes meanwhile sees no network
	echo "Interface 'vboxnet0' was successfully created"
	exit ;;
"hostonlyif ipconfig "*)
	printf 'Name:            %s\nIPAddress:       %s\nNetworkMask:     %s\nIPV6Address:     \nStatus:          Up\n\n' "$3" "$5" "$7" >>"$DIR/networks"
	exit ;;
esac
args=() skip=
for a; do
	case "$skip$a" in
	--hostonlyadapter2) skip=x ;;
	x*) skip= ;;
	hostonly) args+=(null) ;;
	*) args+=("$a") ;;
	esac
done
exec chroot "$ROOT" env PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$HOME" VBOX_USER_HOME="$VBOX_USER_HOME" VBoxManage "${args[@]}" 2> >(grep -v -e vboxdrv -e virtualbox-dkms -e 'headers, most' -e 'be able to start VMs' -e '^$' >&2)
`

// enter runs a script in namespaces of its own, with the folder dir at the same path in the chroot root as outside.
const enter = `set -e
mount -t proc proc /proc
mount -t proc proc "$ROOT/proc"
mount -t tmpfs tmpfs "$ROOT/mnt"
mkdir -p "$ROOT/$DIR"
mount --bind "$DIR" "$ROOT/$DIR"
mount -t tmpfs tmpfs /mnt
cp -a /etc /mnt/etc
mkdir -p /mnt/etc/vbox
printf '%s\n' "$NETWORKS" >/mnt/etc/vbox/networks.conf
mount --bind /mnt/etc /etc
ip link set lo up
for a in $GREET; do ip addr add "$a/32" dev lo; done
VBoxManage setproperty machinefolder "$DIR/machines"
VBoxManage setextradata global VBoxInternal/HM/FallbackToIEM 1
IMAGEGEN_TEST_GREETER=$GREET "$TEST" &
cd "$DIR/dist"
eval "$1"
`

// Real Vagrant and real VirtualBox make of the Vagrantfile what is meant: nodes come up, two at once if asked, and their
// data disks outlive them.
func TestVagrantUp(t *testing.T) {
	root := os.Getenv("IMAGEGEN_VBOX")
	if root == "" {
		t.Skip("SKIPPED: no real VirtualBox; set IMAGEGEN_VBOX to a folder that is a root file system with VBoxManage inside")
	}
	if _, err := exec.LookPath("vagrant"); err != nil {
		t.Skip("SKIPPED: no vagrant; apt-get install vagrant")
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: changing root to the VirtualBox in IMAGEGEN_VBOX needs root")
	}
	spec := parse(t, `{cluster: otus, distro: debian12, network: {cidr: 192.168.10.0/24}, roles: {redis: {data: 64MiB,
nodes: {redis1: 192.168.10.49, redis2: 192.168.10.50, redis3: 192.168.10.51}}},
ssh: {user: jane, keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0S3FzxWr4H0OIqZ3DZ5z7fSgqBpB9GYf2dq3dmJ3cW jane@desk"]}}`)
	// In the chroot, /tmp is VirtualBox's own: it finds its server through it.
	dir, err := os.MkdirTemp("/var/tmp", "imagegen-vagrant-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.RemoveAll(dir)
		os.Remove(filepath.Join(root, dir))
	})
	for _, d := range []string{"bin", "dist/boxes", "dist/seeds"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(dir, "bin/VBoxManage"), []byte(manage), 0o755)
	put(t, filepath.Join(dir, "networks"), nil, 0o644)
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
	m := images.Machine{Name: "redis", Distro: "debian12", CPUs: 1, Memory: 64 * cluster.MiB, ID: identities(spec)["redis"]}
	if err := images.WriteBox(t.Context(), filepath.Join(dir, "dist/boxes/redis.box"), f, m, 0); err != nil {
		t.Fatal(err)
	}
	test, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	problem := HostOnlyProblem(spec)
	line := problem[strings.Index(problem, "* "):]

	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "bash", "-c", enter, "bash", `
mark() { echo "== $*"; }
info() { VBoxManage showvminfo "otus-$1" --machinereadable; }
uuid() { VBoxManage showmediuminfo disk "$PWD/disks/$1.vdi" | sed -n 's/^UUID: *//p'; }

mark two at once
vagrant up redis1 >../redis1.log 2>&1 & one=$!
vagrant up redis2 >../redis2.log 2>&1 || { cat ../redis2.log; false; }
wait $one || { cat ../redis1.log; false; }
info redis1
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
	cmd.Env = append(os.Environ(), "ROOT="+root, "DIR="+dir, "HOME="+dir, "VBOX_USER_HOME="+dir+"/settings", "VAGRANT_HOME="+dir+"/vagrant.d",
		"PATH="+dir+"/bin:"+os.Getenv("PATH"), "NETWORKS="+strings.SplitN(line, "\n", 2)[0], "GREET=192.168.10.49 192.168.10.50", "TEST="+test)
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
		"Timed out while waiting for the machine to boot. This means that",
	} {
		if !strings.Contains(out, "\n"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if n := strings.Count(out, "Remove them first: vagrant snapshot delete"); n != 2 {
		t.Errorf("%d of 2 times, destroy said what to do about snapshots", n)
	}
	networks, err := os.ReadFile(filepath.Join(dir, "networks"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(networks), "Name:"); n != 1 {
		t.Errorf("%d host-only networks:\n%s", n, networks)
	}
	if t.Failed() {
		t.Log(out)
	}
}

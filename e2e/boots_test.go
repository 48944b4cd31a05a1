package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/internal/vboxtest"
)

const bootsName = "e2e-boots"

// bootIn is the limit until a machine has its address: emulated, with little CPU time.
const bootIn = 30 * time.Minute

// bootInVirtualBox is the limit until the kernel's first messages in a VirtualBox that interprets every instruction.
const bootInVirtualBox = 45 * time.Minute

// QEMU's devices for what the lab and an OVF call a controller or a network card. A controller has the system disk, the
// seed's CD-ROM drive and the data disk.
var (
	controllers = map[string]struct {
		args []string
		disk string // the system disk's name in the kernel
	}{
		"virtio, CD-ROM on IDE": {[]string{"-device", "virtio-blk-pci,drive=root", "-device", "ide-cd,drive=seed", "-device", "virtio-blk-pci,drive=data"}, "vda"},
		"AHCI": {[]string{"-device", "ich9-ahci,id=sata", "-device", "ide-hd,drive=root,bus=sata.0", "-device", "ide-cd,drive=seed,bus=sata.1",
			"-device", "ide-hd,drive=data,bus=sata.2"}, "sda"},
	}
	adapters = map[string]string{"virtio-net-pci": "virtio-net-pci", "82540EM": "e1000"}
)

// TestBootMatrix boots an image from each controller and with each network card that a node can get, from the lab or
// from the OVF and the Vagrantfile. Emulated, each takes a minute of CPU time, so it runs only with IMAGEGEN_E2E=vm
// (make e2e-vm).
func TestBootMatrix(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("the boot matrix runs with IMAGEGEN_E2E=vm, as root: make e2e-vm")
	}
	b := newBenchOf(t, bootsName)
	b.lab(t, "build")
	b.lab(t, "build", "--format", "box", "redis")

	t.Run("all images have the same kernel", b.sameKernel)
	machine, mac, offered := b.labMachine(t, "redis1")
	offered.and(b.boxMachine(t, "redis"))
	t.Logf("offered: %+v", offered)
	for _, c := range slices.Sorted(maps.Keys(offered.controllers)) {
		for _, a := range slices.Sorted(maps.Keys(offered.adapters)) {
			t.Run(c+", "+a, func(t *testing.T) {
				devices, ok := controllers[c]
				card, known := adapters[a]
				if !ok || !known {
					t.Fatalf("this test does not know %s, %s: nobody has seen an image boot from it", c, a)
				}
				args := slices.Concat(machine, devices.args,
					// As in VirtualBox, the cluster's network card is the second, and only the seed says which it is.
					[]string{"-device", card + ",netdev=nat,romfile=,mac=52:54:00:00:00:01", "-device", card + ",netdev=lan,romfile=,mac=" + mac})
				b.boots(t, "redis1", args, devices.disk, mac)
			})
		}
	}
}

// hardware is what a node can get.
type hardware struct{ controllers, adapters map[string]bool }

func (h hardware) and(o hardware) {
	maps.Copy(h.controllers, o.controllers)
	maps.Copy(h.adapters, o.adapters)
}

// labMachine returns the arguments of the lab's own QEMU for a node, without disks, network and console, the node's MAC
// address, and the hardware that the lab offers.
func (b *bench) labMachine(t *testing.T, node string) (kept []string, mac string, offers hardware) {
	t.Helper()
	b.lab(t, "up", "--site", b.site, "--provider", "qemu", node)
	var args []string
	for _, cmdline := range processes() {
		if f := strings.Fields(cmdline); len(f) > 0 && filepath.Base(f[0]) == "qemu-system-x86_64" && slices.Contains(f, "imagegen-"+bootsName+":"+node) {
			args = f[1:]
		}
	}
	b.lab(t, "down")
	kept, mac, offers, err := offeredBy(args)
	if err != nil {
		t.Fatal(err)
	}
	return kept, mac, offers
}

// offeredBy splits the arguments of the lab's QEMU.
func offeredBy(args []string) (kept []string, mac string, offers hardware, err error) {
	offers = hardware{map[string]bool{}, map[string]bool{}}
	drives := map[string]bool{}
	for i := 0; i < len(args); i++ {
		switch a := args[i]; a {
		case "-daemonize":
		case "-drive":
			i++
			drives[regexp.MustCompile(`if=\w+(,media=\w+)?`).FindString(args[i])] = true
		case "-chardev", "-serial", "-netdev", "-name":
			i++
		case "-device":
			i++
			if !strings.Contains(args[i], ",netdev=lan,") {
				kept = append(kept, a, args[i])
				continue
			}
			card, _, _ := strings.Cut(args[i], ",")
			_, mac, _ = strings.Cut(args[i], ",mac=")
			offers.adapters[card] = true
		default:
			kept = append(kept, a)
		}
	}
	if got := slices.Sorted(maps.Keys(drives)); !slices.Equal(got, []string{"if=ide,media=cdrom", "if=virtio"}) {
		return nil, "", offers, fmt.Errorf("the lab's drives are %q: %q", got, args)
	}
	offers.controllers["virtio, CD-ROM on IDE"] = true
	return kept, mac, offers, nil
}

// boxMachine returns the hardware that VirtualBox offers: what the box's OVF has and the Vagrantfile does not change.
func (b *bench) boxMachine(t *testing.T, role string) hardware {
	t.Helper()
	f, err := os.Open(filepath.Join(b.dist(), "boxes", role+".box"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var ovf []byte
	for r := tar.NewReader(f); ovf == nil; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("no box.ovf: %v", err)
		}
		if h.Name == "box.ovf" {
			if ovf, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	var envelope struct {
		Items []struct {
			ResourceType    int
			ResourceSubType string
		} `xml:"VirtualSystem>VirtualHardwareSection>Item"`
		Adapters []struct {
			Type string `xml:"type,attr"`
		} `xml:"VirtualSystem>Machine>Hardware>Network>Adapter"`
		Controllers []struct {
			Name string `xml:"name,attr"`
			Type string `xml:"type,attr"`
		} `xml:"VirtualSystem>Machine>StorageControllers>StorageController"`
	}
	if err := xml.Unmarshal(ovf, &envelope); err != nil {
		t.Fatal(err)
	}
	offers := hardware{map[string]bool{}, map[string]bool{}}
	names := map[string]bool{}
	for _, c := range envelope.Controllers {
		offers.controllers[c.Type], names[c.Name] = true, true
	}
	for _, a := range envelope.Adapters {
		offers.adapters[a.Type] = true
	}
	for _, i := range envelope.Items { // the machine for hypervisors other than VirtualBox
		switch {
		case i.ResourceType == 10 && i.ResourceSubType == "E1000": // VirtualBox and VMware use an 82540EM or similar for it
			offers.adapters["82540EM"] = true
		case i.ResourceType == 10:
			offers.adapters[i.ResourceSubType] = true
		case i.ResourceType == 5 || i.ResourceType == 6 || i.ResourceType == 20:
			offers.controllers[i.ResourceSubType] = true
		}
	}
	vagrantfile, err := os.ReadFile(filepath.Join(b.dist(), "Vagrantfile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`"--storagectl", "(\w+)"`).FindAllSubmatch(vagrantfile, -1) {
		if !names[string(m[1])] {
			t.Errorf("the Vagrantfile attaches to %s, which the box does not have", m[1])
		}
	}
	if m := regexp.MustCompile(`--nictype\d|nic_type|"storagectl"`).Find(vagrantfile); m != nil {
		t.Errorf("the Vagrantfile has %s: other hardware than the box's", m)
	}
	return offers
}

// boots boots a node's machine and checks on its console that all hardware was found: the root on the system disk, the
// data disk, and the network card, with the address that is only in the seed.
func (b *bench) boots(t *testing.T, node string, machine []string, disk, mac string) {
	t.Helper()
	role, address := "", ""
	for _, n := range b.built(t) {
		if n.Node == node {
			role, address = n.Role, n.Address
		}
	}
	data := filepath.Join(b.dir, "data.img")
	if err := errors.Join(os.WriteFile(data, nil, 0o600), os.Truncate(data, 1<<30)); err != nil {
		t.Fatal(err)
	}
	args := slices.Concat(machine, []string{"-serial", "stdio", "-no-reboot",
		"-drive", "id=root,if=none,format=raw,snapshot=on,file=" + filepath.Join(b.dist(), "images", role+".raw"),
		"-drive", "id=seed,if=none,format=raw,readonly=on,media=cdrom,file=" + filepath.Join(b.dist(), "seeds", node+".iso"),
		"-drive", "id=data,if=none,format=raw,file=" + data,
		"-netdev", "user,id=nat,restrict=on", "-netdev", "user,id=lan,restrict=on"})
	wants := map[string]*regexp.Regexp{
		"the root on " + disk + "1":  regexp.MustCompile(`EXT4-fs \(` + disk + `1\): mounted filesystem`),
		"the data disk":              regexp.MustCompile(`\[` + disk[:2] + `b\] 2097152 512-byte logical blocks`),
		"the address, from the seed": regexp.MustCompile(`ci-info: \| +eth\d+ +\| +True +\| +` + regexp.QuoteMeta(address) + ` .*\| ` + mac + ` \|`),
	}
	ctx, done := context.WithTimeout(t.Context(), bootIn)
	defer done()
	console := &watched{wants: wants, all: done}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout = console
	var said bytes.Buffer
	cmd.Stderr = &said
	start := time.Now()
	err := cmd.Run()
	if len(console.wants) == 0 {
		used := cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime()
		t.Logf("booted in %s, %s of a processor", time.Since(start).Round(time.Second), used.Round(time.Second))
		return
	}
	if err != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("QEMU: %v: %s", err, &said)
	}
	text := console.text.String()
	t.Errorf("not seen within %s: %q; the console ends with\n%s", time.Since(start).Round(time.Second),
		slices.Sorted(maps.Keys(console.wants)), text[max(0, len(text)-3000):])
}

// inVirtualBox creates a node's machine from its box and the Vagrantfile, and boots it. In the chroot, the folder of
// the cluster is /mnt. Host-only networks need VirtualBox's kernel driver, so the second network card is not connected.
const inVirtualBox = `set -e
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/tmp"
mount --bind "$2" "$1/mnt"
exec chroot "$1" env HOME=/mnt/vbox VBOX_USER_HOME=/mnt/vbox/settings sh -ec '
	cd /mnt/vbox
	VBoxManage -q setproperty machinefolder /mnt/vbox/machines
	VBoxManage -q setextradata global VBoxInternal/HM/FallbackToIEM 1
	tar -xf /mnt/dist/boxes/redis.box
	VBoxManage -q import box.ovf --vsys 0 --vmname redis1
	VBoxManage -q modifyvm redis1 --uart1 0x3F8 4 --uartmode1 file /mnt/vbox/console --nic2 null
	VBoxManage -q createmedium disk --filename /mnt/vbox/redis1.vdi --size 1024
	VBoxManage -q storageattach redis1 --storagectl SATA --port 1 --device 0 --type dvddrive --medium /mnt/dist/seeds/redis1.iso
	VBoxManage -q storageattach redis1 --storagectl SATA --port 2 --device 0 --type hdd --mtype writethrough --medium /mnt/vbox/redis1.vdi
	VBoxManage -q list hdds
	VBoxManage -q list dvds
	exec /usr/lib/virtualbox/VBoxHeadless --startvm redis1 --vrde off'`

// TestBootInVirtualBox boots a box with its seed and its data disk in a real VirtualBox, until the kernel's first
// messages on the serial port. It does not wait for more: if VirtualBox interprets every instruction, the kernel needs
// a quarter of an hour to unpack itself.
func TestBootInVirtualBox(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") != "vm" {
		t.Skip("boots in VirtualBox run with IMAGEGEN_E2E=vm, as root: make e2e-vm")
	}
	root := vboxtest.Root(t)
	b := newBenchOf(t, bootsName)
	b.lab(t, "build", "--format", "box", "redis")
	b.lab(t, "seed")
	folder := filepath.Join(b.dir, "vbox")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithTimeout(t.Context(), bootInVirtualBox)
	defer end()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inVirtualBox, "sh", root, b.dir)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	console := func() string {
		text, _ := os.ReadFile(filepath.Join(folder, "console")) // exists once the machine is on
		return string(text)
	}
	wants := regexp.MustCompile(`(?s)\] Linux version .*\] Command line: BOOT_IMAGE=/boot/vmlinuz-.* root=UUID=`)
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for !wants.MatchString(console()) {
		select {
		case err := <-ended:
			t.Fatalf("VirtualBox ended after %s: %v\n%s\nthe console says\n%s", time.Since(start).Round(time.Second), err, &said, console())
		case <-look.C:
		}
	}
	t.Logf("the kernel spoke after %s", time.Since(start).Round(time.Second))
	end()
	<-ended
	for _, medium := range []string{"/mnt/vbox/machines/redis1/box-disk001.vmdk", "/mnt/vbox/redis1.vdi", "/mnt/dist/seeds/redis1.iso"} {
		if !regexp.MustCompile(`(?m)^Location: +` + regexp.QuoteMeta(medium) + `$`).Match(said.Bytes()) {
			t.Errorf("not in the lists of media: %s\n%s", medium, &said)
		}
	}
}

// watched collects a console's text and calls all when everything wanted has appeared.
type watched struct {
	wants map[string]*regexp.Regexp // not yet seen
	all   func()
	text  bytes.Buffer
	line  bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.text.Write(p)
	for _, c := range p {
		if c != '\n' {
			w.line.WriteByte(c)
			continue
		}
		maps.DeleteFunc(w.wants, func(_ string, want *regexp.Regexp) bool { return want.Match(w.line.Bytes()) })
		w.line.Reset()
	}
	if len(w.wants) == 0 {
		w.all()
	}
	return len(p), nil
}

// sameKernel checks that one image's boot stands for all: kernel, initramfs and boot loader's configuration are
// bit-identical.
func (b *bench) sameKernel(t *testing.T) {
	images, err := filepath.Glob(filepath.Join(b.dist(), "images", "*.raw"))
	if err != nil || len(images) != 7 {
		t.Fatalf("images: %q, %v", images, err)
	}
	var first map[string]string
	for _, image := range images {
		// Images have one partition, at 1 MiB.
		debugfs := func(request string) []byte {
			out, err := exec.Command("debugfs", "-R", request, image+"?offset=1048576").Output()
			if err != nil {
				t.Fatalf("debugfs %s: %v", image, err)
			}
			return out
		}
		files := map[string]string{}
		for _, name := range append(regexp.MustCompile(`(vmlinuz|initrd\.img)-[^/]+`).FindAllString(string(debugfs("ls -p /boot")), -1), "extlinux/extlinux.conf") {
			data := debugfs("cat /boot/" + name)
			if len(data) == 0 {
				t.Fatalf("%s has no /boot/%s", image, name)
			}
			files[name] = fmt.Sprintf("%x", sha256.Sum256(data))
		}
		if len(files) != 3 {
			t.Fatalf("%s: one kernel, one initramfs and one configuration are not in %q", image, slices.Sorted(maps.Keys(files)))
		}
		if first == nil {
			first = files
		}
		if !maps.Equal(files, first) {
			t.Errorf("%s: %v; the first image has %v", image, files, first)
		}
	}
}

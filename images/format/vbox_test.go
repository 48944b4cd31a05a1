//go:build linux

package format

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/internal/vboxtest"
)

// VirtualBox converts every kind of VMDK back to the original disk.
func TestVBoxVMDK(t *testing.T) {
	for _, tt := range vmdkDisks {
		if tt.size > 1<<40 {
			continue // VirtualBox would write that many zeros
		}
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			disk := testDisk(t, tt.size, tt.parts...)
			f, err := os.Create(filepath.Join(dir, "disk.vmdk"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := WriteVMDK(t.Context(), f, disk, "id", 0); err != nil {
				t.Fatal(err)
			}
			if out, err := vboxtest.Script(t, dir, `VBoxManage clonemedium disk /mnt/disk.vmdk /mnt/back.raw --format RAW`); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			sameDisk(t, filepath.Join(dir, "back.raw"), disk)
		})
	}
}

// VirtualBox imports an OVA, and a box twice, as the machine and disk that were exported.
func TestVBoxImport(t *testing.T) {
	disk := testDisk(t, 40<<20, part{0, 5 << 20}, part{39 << 20, 1 << 20})
	for _, tt := range []struct{ name, bring string }{
		{"web.ova", `VBoxManage import /mnt/web.ova`},
		{"web.box", `# as Vagrant 2.3 does it
mkdir /mnt/box
tar -C /mnt/box -xf /mnt/web.box
unit=$(VBoxManage import --dry-run /mnt/box/box.ovf | sed -n 's/^ *\([0-9]*\): Hard disk image: source image=.*/\1/p')
for vm in other web; do
	VBoxManage import /mnt/box/box.ovf --vsys 0 --vmname $vm --vsys 0 --unit $unit --disk /mnt/machines/$vm/box-disk001.vmdk
done`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, p := range packages {
				if p.name == tt.name {
					if err := p.write(t.Context(), filepath.Join(dir, p.name), disk, web, 0); err != nil {
						t.Fatal(err)
					}
				}
			}
			out, err := vboxtest.Script(t, dir, tt.bring+`
VBoxManage showvminfo web --machinereadable
disk=$(VBoxManage showvminfo web --machinereadable | sed -n 's/^"SATA-ImageUUID-0-0"="\(.*\)"$/\1/p')
VBoxManage clonemedium disk "$disk" /mnt/back.raw --format RAW`)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, line := range []string{
				`ostype="Debian (64-bit)"`, `firmware="BIOS"`, `cpus=2`, `memory=768`, `boot1="disk"`, `ioapic="on"`, `rtcuseutc="on"`,
				`paravirtprovider="default"`, `vrde="off"`, `audio="none"`, `usb="off"`,
				`storagecontrollertype0="IntelAhci"`, `"SATA-1-0"="emptydrive"`, `"SATA-2-0"="none"`,
				`nic1="nat"`, `nictype1="82540EM"`, `cableconnected1="on"`,
				`nic2="intnet"`, `intnet2="imagegen"`, `nictype2="82540EM"`, `cableconnected2="on"`, `nic3="none"`,
				`uart1="0x03f8,4"`, `uartmode1="disconnected"`,
			} {
				if !strings.Contains(out, "\n"+line+"\n") {
					t.Errorf("the machine has no %s:\n%s", line, out)
				}
			}
			sameDisk(t, filepath.Join(dir, "back.raw"), disk)
		})
	}
}

// VirtualBox does not import a damaged file.
func TestVBoxRefuses(t *testing.T) {
	disk := testDisk(t, 40<<20, part{0, 5 << 20})
	whole := filepath.Join(t.TempDir(), "web.ova")
	if err := WriteOVA(t.Context(), whole, disk, web, 0); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	memory := bytes.Index(data, []byte(`<Memory RAMSize="768"/>`)) + len(`<Memory RAMSize="`)
	vmdk := bytes.Index(data, []byte("KDMV"))
	digest := bytes.Index(data, []byte("SHA256(web-disk1.vmdk)= ")) + len("SHA256(web-disk1.vmdk)= ")
	for _, tt := range []struct {
		name, why string
		damaged   []byte
	}{
		{"truncated", "VERR_EOF", data[:len(data)*3/4]},
		{"without its last sectors", "VERR_EOF", data[:len(data)-4*sector]},
		{"memory in the OVF", "Digest mismatch", change(data, memory)},
		{"compressed data", "Compressed image is corrupted", change(data, vmdk+metaSectors*sector+100)},
		{"what no one decompresses", "Digest mismatch", change(data, vmdk+metaSectors*sector-100)},
		{"a digest", "Digest mismatch", change(data, digest)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "web.ova"), tt.damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := vboxtest.Script(t, dir, `VBoxManage import /mnt/web.ova`)
			if err == nil || !strings.Contains(out, tt.why) {
				t.Errorf("VirtualBox does not refuse it for %q (%v):\n%s", tt.why, err, out)
			}
		})
	}
}

// change returns data with one byte changed to a digit.
func change(data []byte, at int) []byte {
	data = bytes.Clone(data)
	if data[at] == '1' {
		data[at] = '2'
	} else {
		data[at] = '1'
	}
	return data
}

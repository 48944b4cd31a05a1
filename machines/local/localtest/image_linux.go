package localtest

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

// Image is a raw disk on the file system of the test's temporary folder.
type Image struct {
	Path string
	Says string // the word that a machine with this image prints on its console when it has booted
}

// VM returns the image of the smallest virtual machine: its boot sector prints a word and halts. Package accel is told that
// machines are emulated: it cannot find out with an image that has no system.
func VM(t *testing.T, says string) Image {
	t.Helper()
	testkit.NoKVM(t)
	path := filepath.Join(t.TempDir(), "image")
	testkit.Write(t, path, string(testkit.Speaker(1<<20, testkit.COM1, says+"\r\n")))
	return Image{path, says}
}

const initPath = "/sbin/init"

// Init must be called first in TestMain by test programs that use Container: they are the init of their containers.
func Init() {
	if os.Args[0] != initPath {
		return
	}
	text, err := os.ReadFile("/etc/says")
	if err != nil {
		text = []byte(err.Error())
	}
	os.Stdout.Write(text)
	for {
		time.Sleep(time.Hour)
	}
}

// Container returns the image of the smallest container, in the layout of imagegen's images: this test program is its init, which
// prints a word and waits.
func Container(t *testing.T, says string) Image {
	t.Helper()
	for _, program := range []string{"mkfs.ext4", "systemd-nspawn"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: needs %s: make tools", program)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if f, err := elf.Open(self); err != nil || slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Skip("SKIPPED: the container's only program is this test, which needs libraries: build it with CGO_ENABLED=0, as make test does")
	}
	const script = `
	mkdir -p root/etc root/usr root/sbin root/dev root/proc root/sys root/run root/tmp root/var
	echo ID=small >root/etc/os-release
	echo "$2" >root/etc/says
	cp "$1" root` + initPath + `
	truncate -s 64M image
	mkfs.ext4 -q -O ^has_journal -d root -E offset=1048576 image 60M
	rm -r root`
	dir := t.TempDir()
	cmd := exec.Command("sh", "-euc", script, "make", self, says)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make the test's image: %v\n%s", err, out)
	}
	return Image{filepath.Join(dir, "image"), says}
}

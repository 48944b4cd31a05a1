package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"imagegen/internal/testkit"
)

// TestLoader runs extlinux on two file systems with ldlinux.sys in different places: putLoader must turn the result on
// one into the result on the other.
func TestLoader(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: the boot loader is NOT tested")
	}
	testkit.Program(t, "extlinux", "extlinux")
	install := func(filler int) (boot, sys []byte, sectors []uint64) {
		dir := t.TempDir()
		disk, root := filepath.Join(dir, "disk"), filepath.Join(dir, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(disk, make([]byte, 32<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^64bit,^metadata_csum", disk)
		testkit.Run(t, "mount", "-o", "loop", disk, root)
		testkit.Write(t, filepath.Join(root, "filler"), strings.Repeat("x", filler))
		if err := os.MkdirAll(filepath.Join(root, loaderDir), 0o755); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "sync", "-f", root)
		testkit.Run(t, "extlinux", "--install", filepath.Join(root, loaderDir))
		sys, err := os.ReadFile(filepath.Join(root, loaderFile))
		testkit.Run(t, "umount", root)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		out := testkit.Run(t, "debugfs", "-R", "blocks /"+loaderFile, disk)
		_, out, _ = strings.Cut(out, "\n") // the first line is the program's name and version
		for _, word := range strings.Fields(out) {
			block, err := strconv.ParseUint(word, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint64(8) {
				sectors = append(sectors, 8*block+i)
			}
		}
		return whole[:sectorSize], sys, sectors
	}
	boot, sys, sectors := install(0)
	wantBoot, wantSys, other := install(300 << 10)
	if sectors[0] == other[0] {
		t.Fatalf("both are at %d", sectors[0])
	}
	if err := putLoader(boot, sys, other); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sys, wantSys) {
		t.Error("another ldlinux.sys")
	}
	if !bytes.Equal(boot, wantBoot) {
		t.Error("a different boot sector")
	}
	if err := putLoader(boot, make([]byte, 70000), other); err == nil {
		t.Error("zeros were accepted as an ldlinux.sys")
	}
	if err := putLoader(boot, sys, other[:10]); err == nil {
		t.Error("an ldlinux.sys that is too short was accepted")
	}
}

package cloudinit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"imagegen/cloudinit/nocloud"
	"imagegen/internal/testkit"
)

// writeEnv makes the test binary write web1's seed to the path in this variable, and exit.
const writeEnv = "IMAGEGEN_TEST_WRITE_SEED"

func TestMain(m *testing.M) {
	if path := os.Getenv(writeEnv); path != "" {
		spec := example()
		s, err := New(spec, clusterID, spec.Nodes()[0], awkward())
		if err == nil {
			err = s.WriteISO(path)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web1.iso")
	s := newSeed(t, "web1")
	if s.IsAt(path) {
		t.Error("a seed that is not there is there")
	}
	if err := s.WriteISO(path); err != nil {
		t.Fatal(err)
	}
	got, err := ReadISO(path)
	if err != nil {
		t.Fatal(err)
	}
	if !got.equal(s) {
		t.Errorf("read %v", got)
	}
	if !s.IsAt(path) {
		t.Error("the seed that was written is not there")
	}
	other := newSeed(t, "web2")
	if other.IsAt(path) {
		t.Error("web2's seed is taken for web1's")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if s.IsAt(path) {
		t.Error("a seed that everybody can read is good enough")
	}
	if err := s.WriteISO(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestGenerationOnISO: the generation is a file of its own, which a seed need not have, and a node reads it.
func TestGenerationOnISO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web1.iso")
	without := newSeed(t, "web1")
	if err := without.WriteISO(path); err != nil {
		t.Fatal(err)
	}
	s := without
	s.Generation = []byte("signed\n")
	if s.IsAt(path) {
		t.Error("a seed without a generation is taken for one with it")
	}
	if err := s.WriteISO(path); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadISO(path); err != nil || !got.equal(s) {
		t.Errorf("read %v, %v", got, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := nocloud.ReadISO(f); err != nil || string(got.Generation) != "signed\n" {
		t.Errorf("a node reads %v, %v", got, err)
	}
	if len(s.FilesOnISO()) != 4 || len(without.FilesOnISO()) != 3 {
		t.Errorf("files: %v", s.FilesOnISO())
	}
}

// Sizes around a sector boundary, where padding goes wrong.
func TestSizes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.iso")
	for _, n := range []int{0, 1, sector - 1, sector, sector + 1, 3 * sector} {
		s := Seed{
			UserData:      bytes.Repeat([]byte("u"), n),
			MetaData:      bytes.Repeat([]byte("m"), n),
			NetworkConfig: bytes.Repeat([]byte("n"), n),
		}
		if err := s.WriteISO(path); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if got, err := ReadISO(path); err != nil || !got.equal(s) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// The hash in testdata was recorded at another time, and the seeds are made in unusual environments: only the input may
// matter.
func TestSameBytesEverywhere(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sum := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Appendf(nil, "%x\n", sha256.Sum256(data))
	}
	for i, env := range []string{
		"LC_ALL=C TZ=UTC",
		"TMPDIR=/nonexistent LC_ALL=tr_TR.UTF-8 LANG=ru_RU.UTF-8 TZ=Pacific/Kiritimati SOURCE_DATE_EPOCH=1 HOSTNAME=other",
	} {
		for _, umask := range []string{"000", "027", "777"} {
			path := filepath.Join(dir, fmt.Sprintf("%d-%s.iso", i, umask))
			cmd := exec.Command("sh", "-c", `umask $0 && exec "$1"`, umask, self)
			cmd.Env = append(strings.Fields(env), writeEnv+"="+path)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s, umask %s: %v: %s", env, umask, err, out)
			}
			testkit.Golden(t, "testdata/"+"web1/iso.sha256", sum(path))
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("umask %s: mode %v, %v", umask, info.Mode(), err)
			}
		}
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := newSeed(t, "web1")

	missing := filepath.Join(dir, "missing", "web1.iso")
	if err := s.WriteISO(missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("a folder that is not there: %v", err)
	}
	huge := s
	huge.UserData = make([]byte, maxISO/2+1)
	if err := huge.WriteISO(filepath.Join(dir, "huge.iso")); err == nil {
		t.Error("a seed of many megabytes was written")
	}
	taken := filepath.Join(dir, "taken.iso")
	if err := os.Mkdir(taken, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteISO(taken); err == nil {
		t.Error("a folder was replaced")
	}

	// A file size limit acts like a full disk.
	old := filepath.Join(dir, "old.iso")
	if err := newSeed(t, "web2").WriteISO(old); err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	small := limit
	small.Cur = 20 * sector
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Fatal(err)
	}
	err := s.WriteISO(old)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		t.Error("a full disk went unnoticed")
	}
	if !newSeed(t, "web2").IsAt(old) {
		t.Error("the old seed is gone")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestOtherReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web1.iso")
	s := newSeed(t, "web1")
	if err := s.WriteISO(path); err != nil {
		t.Fatal(err)
	}
	t.Run("blkid", func(t *testing.T) {
		testkit.Program(t, "blkid", "util-linux")
		out, err := exec.Command("blkid", "-p", "-o", "export", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"LABEL=cidata\n", "TYPE=iso9660\n", "UUID=2020-01-01-00-00-00-00\n"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("blkid does not say %q:\n%s", want, out)
			}
		}
	})
	t.Run("isoinfo", func(t *testing.T) {
		testkit.Program(t, "isoinfo", "genisoimage")
		for _, c := range s.contents() {
			out, err := exec.Command("isoinfo", "-i", path, "-x", "/"+c.name+";1").Output()
			if err != nil || !bytes.Equal(out, *c.data) {
				t.Errorf("isoinfo reads %d bytes of %s, want %d (%v)", len(out), c.name, len(*c.data), err)
			}
		}
		out, err := exec.Command("isoinfo", "-i", path, "-p").Output() // the path table
		if err != nil || !strings.Contains(string(out), "   1:    1 14 ") {
			t.Errorf("isoinfo's path table: %v\n%s", err, out)
		}
	})
}

func TestReadRejects(t *testing.T) {
	s := newSeed(t, "web1")
	image, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	dir := rootSector * sector
	first := dir + 2*34 // the entry of meta-data, after those of the folder itself
	for want, spoil := range map[string]func(b []byte) []byte{
		"no ISO 9660 image":             func(b []byte) []byte { return b[:volumeSector*sector+7] },
		`the label is "config-2"`:       func(b []byte) []byte { copy(b[volumeSector*sector+40:], "config-2"); return b },
		"may be truncated":              func(b []byte) []byte { return b[:len(b)-sector] },
		`"meta-date;1" does not belong`: func(b []byte) []byte { copy(b[first+33:], "meta-date"); return b },
		"an entry leaves its sector": func(b []byte) []byte {
			self := bytes.Clone(b[dir:][:34])
			for at := 0; at+255 < sector; at += 255 {
				copy(b[dir+at:], self)
				b[dir+at] = 255
			}
			b[dir+8*255] = 34
			return b
		},
		"a name's length is wrong":       func(b []byte) []byte { b[first+32] = 250; return b },
		"an entry's length is wrong":     func(b []byte) []byte { b[first] = 5; return b },
		"no meta-data":                   func(b []byte) []byte { b[first] = 0; return b },
		"little-endian and big-endian":   func(b []byte) []byte { b[first+10]++; return b },
		"want a directory of one sector": func(b []byte) []byte { b[volumeSector*sector+156+25] = 0; return b },
		`"meta-data;1": is outside the image`: func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[first+10:], 0xffffffff)
			binary.BigEndian.PutUint32(b[first+14:], 0xffffffff)
			return b
		},
	} {
		if _, err := decode(spoil(bytes.Clone(image))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}

	big := filepath.Join(t.TempDir(), "big.iso")
	if err := os.WriteFile(big, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadISO(big); err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("a terabyte: %v", err)
	}
}

// FuzzReadISO: any image gives a seed or an error, and a seed that was read can be written again. The parsed structures
// are fuzzed separately, because inputs of several KiB would slow the fuzzer down.
func FuzzReadISO(f *testing.F) {
	small := Seed{UserData: []byte("#cloud-config\n"), MetaData: []byte("instance-id: x\n")}
	image, err := small.encode()
	if err != nil {
		f.Fatal(err)
	}
	volume, dir := volumeSector*sector, rootSector*sector
	f.Add(image[volume:][:72], image[volume+156:][:34], image[dir:][:200], image[dir+sector:][:16])
	f.Add([]byte("\x01CD001"), []byte{}, []byte{34}, []byte{})
	f.Fuzz(func(t *testing.T, label, root, entries, files []byte) {
		spoilt := bytes.Clone(image[:dir+sector])
		copy(spoilt[volume:][:72], label)
		copy(spoilt[volume+156:][:34], root)
		copy(spoilt[dir:][:sector], entries)
		s, err := decode(append(spoilt, files...))
		if err != nil {
			return
		}
		again, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decode(again); err != nil || !back.equal(s) {
			t.Errorf("not the same after writing and reading again: %v", err)
		}
	})
}

func BenchmarkWriteISO(b *testing.B) {
	path := filepath.Join(b.TempDir(), "web1.iso")
	s := newSeed(b, "web1")
	for b.Loop() {
		if err := s.WriteISO(path); err != nil {
			b.Fatal(err)
		}
	}
}

// TestNodeReadsISO: the node's own reader can read what is written here.
func TestNodeReadsISO(t *testing.T) {
	s := newSeed(t, "web2")
	image, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	device := append(bytes.Clone(image), make([]byte, 3*sector)...) // a disk may be larger
	back, err := nocloud.ReadISO(bytes.NewReader(device))
	if err != nil || !s.equal(Seed(back)) {
		t.Errorf("%v", err)
	}
	if id, err := back.Identity(); err != nil || id.Node != "web2" || id.Cluster != clusterID {
		t.Errorf("%+v, %v", id, err)
	}
	for n := 0; n < len(image); n += sector {
		if _, err := nocloud.ReadISO(bytes.NewReader(image[:n])); err == nil {
			t.Fatalf("cut after %d bytes, it is read", n)
		}
	}
}

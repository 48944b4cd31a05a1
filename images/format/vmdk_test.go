package format

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"imagegen/internal/sparse"
	"imagegen/internal/testkit"
)

// part is a range with data on a test's disk; the rest is holes.
type part struct{ start, size int64 }

// testDisk makes a raw disk. Its parts contain noise, text and zeros, so that there are grains of every kind.
func testDisk(t testing.TB, size int64, parts ...part) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(uint64(size), uint64(len(parts))))
	for _, p := range parts {
		data := make([]byte, p.size)
		for i := 0; i < len(data); {
			run := data[i:min(len(data), i+1+rnd.IntN(100_000))]
			switch rnd.IntN(4) {
			case 0:
				for j := range run {
					run[j] = byte(rnd.Uint32())
				}
			case 1, 2:
				for j := range run {
					run[j] = "the quick brown fox "[rnd.IntN(20)]
				}
			}
			i += len(run)
		}
		if _, err := f.WriteAt(data, p.start); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// sameDisk compares two raw disks, without reading where both have holes.
func sameDisk(t testing.TB, got string, want *os.File) {
	t.Helper()
	f, err := os.Open(got)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	wi, err := want.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if gi.Size() != wi.Size() {
		t.Fatalf("the disk has %d bytes, want %d", gi.Size(), wi.Size())
	}
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	compare := func(start, end int64) error {
		for pos := start; pos < end; pos += int64(len(a)) {
			n := min(int64(len(a)), end-pos)
			if _, err := f.ReadAt(a[:n], pos); err != nil {
				return err
			}
			if _, err := want.ReadAt(b[:n], pos); err != nil {
				return err
			}
			if !bytes.Equal(a[:n], b[:n]) {
				t.Fatalf("the disks differ between %d and %d", pos, pos+n)
			}
		}
		return nil
	}
	if err := errors.Join(sparse.Each(want, compare), sparse.Each(f, compare)); err != nil {
		t.Fatal(err)
	}
}

// vmdkDisks are disks with different layouts.
var vmdkDisks = []struct {
	name  string
	size  int64
	parts []part
}{
	{"one sector", 512, []part{{0, 512}}},
	{"one sector of zeros", 512, nil},
	{"empty", 64 << 20, nil},
	{"all data", 48 << 20, []part{{0, 48 << 20}}},
	{"odd size", 5<<20 + 3*512, []part{{0, 5<<20 + 3*512}}},
	{"odd size, hole at the end", 5<<20 + 512, []part{{70_000, 10}}},
	{"a byte at the end", 33<<20 + 1024, []part{{33<<20 + 1023, 1}}},
	{"many holes", 300 << 20, scattered(300<<20, 200)},
	{"data at the end of 5 GiB", 5<<30 + 512, []part{{0, 1 << 20}, {5<<30 - 300_000, 300_512}}},
	{"data behind 2 TiB", 3 << 40, []part{{3<<40 - 1<<20, 1 << 20}}},
}

func scattered(size int64, n int) (parts []part) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range n {
		p := part{rnd.Int64N(size), 1 + rnd.Int64N(400_000)}
		p.size = min(p.size, size-p.start)
		parts = append(parts, p)
	}
	return parts
}

func TestVMDK(t *testing.T) {
	qemu := testkit.Program(t, "qemu-img", "qemu-utils")
	for _, tt := range vmdkDisks {
		t.Run(tt.name, func(t *testing.T) {
			disk := testDisk(t, tt.size, tt.parts...)
			var one, four bytes.Buffer
			if err := WriteVMDK(t.Context(), &one, disk, "id", 1); err != nil {
				t.Fatal(err)
			}
			if err := WriteVMDK(t.Context(), &four, disk, "id", 4); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(one.Bytes(), four.Bytes()) {
				t.Error("the output of four workers differs from that of one")
			}
			dir := t.TempDir()
			path, back := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "back.raw")
			if err := os.WriteFile(path, one.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			testkit.Run(t, qemu, "check", "-f", "vmdk", path)
			info := testkit.Run(t, qemu, "info", "-f", "vmdk", path)
			if !strings.Contains(info, "create type: streamOptimized") || !strings.Contains(info, "("+strconv.FormatInt(tt.size, 10)+" bytes)") {
				t.Errorf("qemu-img info shows a different disk:\n%s", info)
			}
			if tt.size > 1<<40 { // qemu-img would read the zeros for minutes: compare only the last MiB
				from, tail := tt.size-1<<20, testDisk(t, 1<<20)
				if _, err := io.Copy(tail, io.NewSectionReader(disk, from, 1<<20)); err != nil {
					t.Fatal(err)
				}
				testkit.Run(t, qemu, "convert", "-O", "raw", fmt.Sprintf(`json:{"driver": "raw", "offset": %d,
					"file": {"driver": "vmdk", "file": {"driver": "file", "filename": %q}}}`, from, path), back)
				sameDisk(t, back, tail)
				return
			}
			testkit.Run(t, qemu, "convert", "-f", "vmdk", "-O", "raw", path, back)
			sameDisk(t, back, disk)
		})
	}
}

// Blocks of zeros in a disk's file take no space either.
func TestVMDKWithoutZeros(t *testing.T) {
	disk := testDisk(t, 64<<20)
	var holes, written bytes.Buffer
	if err := WriteVMDK(t.Context(), &holes, disk, "id", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.WriteAt(make([]byte, 64<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := WriteVMDK(t.Context(), &written, disk, "id", 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(holes.Bytes(), written.Bytes()) {
		t.Errorf("zeros take %d bytes, holes %d", written.Len(), holes.Len())
	}
}

// A disk that grows while it is read is written with its original size.
func TestVMDKOfGrowingDisk(t *testing.T) {
	disk := testDisk(t, 8<<20, part{0, 1 << 20})
	var before, during bytes.Buffer
	if err := WriteVMDK(t.Context(), &before, disk, "id", 2); err != nil {
		t.Fatal(err)
	}
	grow := writerFunc(func(p []byte) (int, error) {
		if _, err := disk.WriteAt([]byte("data"), 100<<20); err != nil {
			return 0, err
		}
		return during.Write(p)
	})
	if err := WriteVMDK(t.Context(), grow, disk, "id", 2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before.Bytes(), during.Bytes()) {
		t.Error("the VMDK differs")
	}
}

func TestVMDKErrors(t *testing.T) {
	for _, size := range []int64{0, 511, 1<<20 + 1} {
		err := WriteVMDK(t.Context(), io.Discard, testDisk(t, size), "id", 0)
		if err == nil || !strings.Contains(err.Error(), "disk.raw as VMDK: its size") {
			t.Errorf("a disk of %d bytes: %v", size, err)
		}
	}

	disk := testDisk(t, 64<<20, part{0, 64 << 20})
	full := errors.New("no space left")
	for _, room := range []int{0, 1, 20} {
		if err := WriteVMDK(t.Context(), &failing{room, full}, disk, "id", 3); !errors.Is(err, full) {
			t.Errorf("no room after %d writes: %v", room, err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	stop := writerFunc(func(p []byte) (int, error) {
		cancel()
		return len(p), nil
	})
	if err := WriteVMDK(ctx, stop, disk, "id", 3); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}

	unreadable, err := os.OpenFile(disk.Name(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unreadable.Close()
	if err := WriteVMDK(t.Context(), io.Discard, unreadable, "id", 3); err == nil || !strings.Contains(err.Error(), "read at 0") {
		t.Errorf("a disk that cannot be read: %v", err)
	}
}

type failing struct {
	writes int
	err    error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.writes--; f.writes < 0 {
		return 0, f.err
	}
	return len(p), nil
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// BenchmarkVMDK writes the disk in IMAGEGEN_DISK, or a generated one, and compares qemu-img. Bytes count data, not the
// size of the disk.
func BenchmarkVMDK(b *testing.B) {
	disk := testDisk(b, 1<<30, part{0, 64 << 20}, part{1 << 29, 64 << 20})
	if path := os.Getenv("IMAGEGEN_DISK"); path != "" {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		disk = f
	}
	var data int64
	if err := sparse.Each(disk, func(start, end int64) error { data += end - start; return nil }); err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "disk.vmdk")
	bench := func(name string, write func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(data)
			b.ReportAllocs()
			for b.Loop() {
				write(b)
			}
			info, err := os.Stat(path)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(info.Size())/float64(data), "written/data")
		})
	}
	bench("imagegen", func(b *testing.B) {
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(WriteVMDK(b.Context(), f, disk, "id", 0), f.Close()); err != nil {
			b.Fatal(err)
		}
	})
	bench("qemu-img", func(b *testing.B) {
		testkit.Run(b, testkit.Program(b, "qemu-img", "qemu-utils"), "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk.Name(), path)
	})
}

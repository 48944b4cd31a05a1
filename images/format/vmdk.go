package format

import (
	"bytes"
	"cmp"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"sync"

	"imagegen/internal/sparse"
	"imagegen/internal/uuid"
)

// A streamOptimized VMDK, as in VMware's "Virtual Disk Format 5.0" (2011), is the only disk format that VirtualBox,
// VMware and QEMU all import, and the one used in OVAs and Vagrant boxes. Numbers are little-endian; offsets and sizes
// are in sectors of 512 bytes:
//
//	header           a sector
//	descriptor       text
//	per grain table: the grains with data, each a marker {sector on the disk, size} and a zlib stream, padded to
//	                 a sector; then a marker sector and the table: the offset of each of its 512 grains, 0 for zeros
//	grain directory  a marker sector and the offset of each grain table, 0 for zeros
//	footer           a marker sector and the header again, with the offset of the directory
//	end of stream    a sector of zeros
const (
	sector        = 512
	grainBytes    = 64 << 10
	grainSectors  = grainBytes / sector
	tableGrains   = 512
	chunkGrains   = 4 // per unit of a worker's work
	chunkBytes    = chunkGrains * grainBytes
	metaSectors   = grainSectors // header, descriptor and padding before the first grain
	descriptorLen = 20           // sectors

	// maxVMDK is the maximum size of a file in sectors: offsets have 32 bits.
	maxVMDK = math.MaxUint32
)

// vmdkLevel is zlib's level. Measured on Debian images, it is 2.3 times as fast as the usual 6; the file is 2% larger.
const vmdkLevel = 4

// Kinds of marker sectors.
const (
	markerEnd = iota
	markerTable
	markerDirectory
	markerFooter
)

// vmdkHeader is the content of the first sector and of the footer.
type vmdkHeader struct {
	Magic            [4]byte
	Version          uint32
	Flags            uint32
	Capacity         uint64 // of the disk, in sectors
	GrainSize        uint64
	DescriptorOffset uint64
	DescriptorSize   uint64
	TableEntries     uint32
	RedundantOffset  uint64
	DirectoryOffset  uint64
	Overhead         uint64
	Unclean          uint8
	LineEnds         [4]byte // detect a transfer in text mode
	Compression      uint16
	_                [433]byte
}

// WriteVMDK writes the content of a raw disk as a streamOptimized VMDK. The disk's size must be a multiple of 512
// bytes. Holes in its file are not read, and zeros are not written.
//
// id identifies the content of the disk: its SHA-256 or the image's identity. The VMDK's content ID is derived from it.
// The output depends on the disk, id and the version of Go, but not on the number of workers, which compress in
// parallel and use about 2 MiB each. 0 workers: one per core.
func WriteVMDK(ctx context.Context, w io.Writer, disk *os.File, id string, workers int) error {
	if err := writeVMDK(ctx, w, disk, id, workers); err != nil {
		return fmt.Errorf("write %s as VMDK: %w", disk.Name(), err)
	}
	return nil
}

func writeVMDK(ctx context.Context, w io.Writer, disk *os.File, id string, workers int) error {
	info, err := disk.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if size == 0 || size%sector != 0 {
		return fmt.Errorf("its size of %d bytes is not a multiple of %d: it is incomplete, or not a raw disk", size, sector)
	}
	v := &vmdkWriter{w: w, capacity: size / sector, table: -1}
	v.directory = make([]uint32, (size+tableGrains*grainBytes-1)/(tableGrains*grainBytes))
	if err := v.begin(id); err != nil {
		return err
	}
	if err := v.grains(ctx, disk, workers); err != nil {
		return err
	}
	return v.end()
}

// vmdkWriter writes the results of the workers in the order of the disk.
type vmdkWriter struct {
	w         io.Writer
	capacity  int64 // sectors
	at        int64 // sectors written
	directory []uint32
	table     int64               // index of the current table; -1: none
	entries   [tableGrains]uint32 // of the current table
}

func (v *vmdkWriter) write(p []byte) error {
	if v.at += int64(len(p) / sector); v.at > maxVMDK {
		return errors.New("it contains more data than the format's limit of 2 TiB")
	}
	_, err := v.w.Write(p)
	return err
}

// begin writes everything before the first grain.
func (v *vmdkWriter) begin(id string) error {
	p := make([]byte, metaSectors*sector)
	// No offset of the directory: readers then look for a footer. The directory comes after the grains.
	copy(p, v.header(math.MaxUint64))
	copy(p[sector:(1+descriptorLen)*sector], v.descriptor(id))
	return v.write(p)
}

func (v *vmdkWriter) header(directory uint64) []byte {
	h := vmdkHeader{
		Magic: [4]byte{'K', 'D', 'M', 'V'}, Version: 3,
		Flags:    1 | 1<<16 | 1<<17, // line ends are valid; grains are compressed; there are markers
		Capacity: uint64(v.capacity), GrainSize: grainSectors,
		DescriptorOffset: 1, DescriptorSize: descriptorLen,
		TableEntries: tableGrains, DirectoryOffset: directory, Overhead: metaSectors,
		LineEnds: [4]byte{'\n', ' ', '\r', '\n'}, Compression: 1,
	}
	p, err := binary.Append(nil, binary.LittleEndian, h)
	if err != nil {
		panic(err) // cannot fail: all sizes are fixed
	}
	return p
}

// descriptor returns the text that describes the disk. The geometry is an IDE disk's, whose cylinders end at 16383;
// modern systems ignore it. The UUID is needed: VirtualBox would otherwise have to add one to the file, and rejects the
// VMDK.
func (v *vmdkWriter) descriptor(id string) string {
	const heads, sectors = 16, 63
	sum := sha256.Sum256([]byte(id))
	cid := binary.BigEndian.Uint32(sum[:]) &^ (1 << 31) // all ones mean "no parent"
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.uuid.image = "%s"
`, cid, v.capacity, min(v.capacity/(heads*sectors), 16383), heads, sectors, uuid.Of("disk", id))
}

// grains writes the grains with data and their tables.
func (v *vmdkWriter) grains(ctx context.Context, disk *os.File, workers int) error {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	workers = min(workers, 64)
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	// A chunk goes from free to work and, at the same time, to ready, which keeps the order. The writer takes chunks
	// from ready, waits until a worker is done with each, writes it, and returns it to free. There are twice as many
	// chunks as workers, so that no worker waits for the writer.
	free, ready := make(chan *chunk, 2*workers), make(chan *chunk, 2*workers)
	work := make(chan *chunk, 2*workers)
	for range cap(free) {
		free <- &chunk{done: make(chan struct{}, 1)}
	}
	for range workers {
		running.Go(func() {
			p := newPacker(disk, v.capacity*sector)
			for c := range work {
				c.err = p.pack(c)
				c.done <- struct{}{}
			}
		})
	}
	var planErr error // valid once ready is closed
	running.Go(func() {
		defer close(work)
		defer close(ready)
		planErr = eachChunk(disk, v.capacity*sector, func(first int64, n int) error {
			select {
			case c := <-free:
				c.first, c.n = first, n
				ready <- c
				work <- c
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for c := range ready {
		<-c.done
		if err := cmp.Or(c.err, ctx.Err()); err != nil {
			return err
		}
		if err := v.put(c); err != nil {
			return err
		}
		free <- c
	}
	if planErr != nil {
		return planErr
	}
	return v.endTable()
}

// eachChunk calls do for the grains that may contain data, in order: n of them from first on, at most chunkGrains. It
// ignores data beyond size, in case the file has grown.
func eachChunk(disk *os.File, size int64, do func(first int64, n int) error) error {
	next := int64(0) // an extent may begin in the grain in which the last one ended
	return sparse.Each(disk, func(start, end int64) error {
		last := (min(end, size) + grainBytes - 1) / grainBytes
		for next = max(next, start/grainBytes); next < last; {
			n := min(chunkGrains, last-next)
			if err := do(next, int(n)); err != nil {
				return err
			}
			next += n
		}
		return nil
	})
}

// chunk is a few consecutive grains on their way from the disk to the VMDK.
type chunk struct {
	first int64 // grain
	n     int
	out   bytes.Buffer
	ends  [chunkGrains]int // end of each grain in out; grains of zeros have no bytes there
	err   error
	done  chan struct{}
}

// packer holds a worker's buffers.
type packer struct {
	disk io.ReaderAt
	size int64
	in   []byte
	z    *zlib.Writer
}

func newPacker(disk io.ReaderAt, size int64) *packer {
	z, err := zlib.NewWriterLevel(nil, vmdkLevel)
	if err != nil {
		panic(err) // cannot fail: the level is valid
	}
	return &packer{disk, size, make([]byte, chunkBytes), z}
}

var zeros [grainBytes]byte

// pack compresses the chunk's grains. The last grain of the disk is padded with zeros.
func (p *packer) pack(c *chunk) error {
	pos := c.first * grainBytes
	in := p.in[:c.n*grainBytes]
	got := min(int64(len(in)), p.size-pos)
	if n, err := p.disk.ReadAt(in[:got], pos); int64(n) < got {
		return fmt.Errorf("read at %d: %w", pos, err)
	}
	clear(in[got:])

	c.out.Reset()
	for i := range c.n {
		if grain := in[i*grainBytes : (i+1)*grainBytes]; !bytes.Equal(grain, zeros[:]) {
			p.packGrain(&c.out, c.first+int64(i), grain)
		}
		c.ends[i] = c.out.Len()
	}
	return nil
}

func (p *packer) packGrain(out *bytes.Buffer, index int64, grain []byte) {
	const marker = 12
	start := out.Len()
	out.Write(zeros[:marker])
	p.z.Reset(out)
	p.z.Write(grain) // cannot fail: out is in memory
	p.z.Close()
	size := out.Len() - start - marker
	if rest := out.Len() % sector; rest > 0 {
		out.Write(zeros[rest:sector])
	}
	head := out.Bytes()[start:]
	binary.LittleEndian.PutUint64(head, uint64(index)*grainSectors)
	binary.LittleEndian.PutUint32(head[8:], uint32(size))
}

// put writes a chunk's grains. When a grain belongs to another table, it first writes the current one.
func (v *vmdkWriter) put(c *chunk) error {
	start := 0
	for i, end := range c.ends[:c.n] {
		if end == start {
			continue
		}
		grain := c.first + int64(i)
		if t := grain / tableGrains; t != v.table {
			if err := v.endTable(); err != nil {
				return err
			}
			v.table = t
		}
		v.entries[grain%tableGrains] = uint32(v.at)
		if err := v.write(c.out.Bytes()[start:end]); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// endTable writes the current table.
func (v *vmdkWriter) endTable() error {
	if v.table < 0 {
		return nil
	}
	place, err := v.meta(markerTable, v.entries[:])
	v.directory[v.table] = uint32(place)
	clear(v.entries[:])
	return err
}

// meta writes a marker sector and numbers, and returns the offset of the numbers.
func (v *vmdkWriter) meta(kind uint32, numbers any) (int64, error) {
	p, err := binary.Append(make([]byte, sector), binary.LittleEndian, numbers)
	if err != nil {
		return 0, err
	}
	if rest := len(p) % sector; rest > 0 {
		p = append(p, zeros[rest:sector]...)
	}
	binary.LittleEndian.PutUint64(p, uint64(len(p)/sector-1))
	binary.LittleEndian.PutUint32(p[12:], kind)
	place := v.at + 1
	return place, v.write(p)
}

// end writes everything after the last table.
func (v *vmdkWriter) end() error {
	place, err := v.meta(markerDirectory, v.directory)
	if err != nil {
		return err
	}
	if _, err := v.meta(markerFooter, v.header(uint64(place))); err != nil {
		return err
	}
	_, err = v.meta(markerEnd, []byte{})
	return err
}

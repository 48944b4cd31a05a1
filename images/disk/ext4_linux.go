package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"syscall"
)

// A file system written by the kernel is never the same twice: timestamps, journal and block allocation differ. So the
// disk is written from the finished tree in one pass, without mounting: mkfs.ext4 makes an empty file system, and type
// ext4 adds the tree in the order of names, from the first free inode and block on. All timestamps of an inode are its
// modification time, capped at newest.

// ext4 is an empty file system, made by mkfs.ext4, that is being filled.
type ext4 struct {
	disk   *os.File
	start  int64 // of the file system in the disk
	newest int64 // in seconds; later timestamps are capped at it

	super     []byte
	groups    []byte // descriptors
	seed      uint32 // of checksums
	perGroup  uint32 // blocks
	inodesPer uint32
	blocks    []byte // bitmap of all groups; 1: taken
	inodes    []byte
	nextBlock uint32 // all blocks before it are taken
	nextInode uint32
	tables    map[uint32][]byte // inode tables of the groups in use
	ctx       context.Context
	links     map[fileID]uint32   // inodes of files with several hard links
	placed    map[string][]extent // blocks of the boot loader's files, by path
}

type fileID struct{ device, inode uint64 }

// extent is a run of consecutive blocks.
type extent struct{ first, count uint32 }

const (
	ext4Block     = 4096
	ext4InodeSize = 256
	ext4DescSize  = 32
	ext4RootInode = 2

	ext4InodeUninit = 1 // flags of a group
	ext4BlockUninit = 2
)

var le = binary.LittleEndian

// openExt4 reads an empty file system.
func openExt4(ctx context.Context, disk *os.File, start, newest int64) (*ext4, error) {
	e := &ext4{ctx: ctx, disk: disk, start: start, newest: newest, super: make([]byte, 1024),
		tables: map[uint32][]byte{}, links: map[fileID]uint32{}, placed: map[string][]extent{}}
	if _, err := disk.ReadAt(e.super, start+1024); err != nil {
		return nil, err
	}
	const incompat = 0x2 | 0x40 | 0x200 // filetype, extents, flex_bg
	if le.Uint16(e.super[0x38:]) != 0xef53 || le.Uint32(e.super[0x18:]) != 2 || le.Uint16(e.super[0x58:]) != ext4InodeSize ||
		le.Uint32(e.super[0x60:]) != incompat || le.Uint32(e.super[0x64:])&0x400 == 0 {
		return nil, errors.New("mkfs.ext4 made a file system with unexpected features")
	}
	total := le.Uint32(e.super[4:])
	e.perGroup, e.inodesPer = le.Uint32(e.super[0x20:]), le.Uint32(e.super[0x28:])
	if e.perGroup != 8*ext4Block || e.inodesPer%8 != 0 {
		return nil, errors.New("mkfs.ext4 made groups of an unexpected size")
	}
	e.seed = crc32c(^uint32(0), e.super[0x68:0x78])
	n := (total + e.perGroup - 1) / e.perGroup
	e.groups = make([]byte, n*ext4DescSize)
	if err := e.read(e.groups, 1); err != nil {
		return nil, err
	}
	e.blocks, e.inodes = make([]byte, n*ext4Block), make([]byte, n*e.inodesPer/8)
	for g := range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d := e.group(g)
		bitmap := e.blocks[g*ext4Block:][:ext4Block]
		if le.Uint16(d[0x12:])&ext4BlockUninit != 0 {
			e.unwritten(g, bitmap)
		} else if err := e.read(bitmap, le.Uint32(d)); err != nil {
			return nil, err
		}
		free := 0
		for _, b := range bitmap {
			free += 8 - bits.OnesCount8(b)
		}
		if free != int(le.Uint16(d[0xc:])) {
			return nil, fmt.Errorf("group %d of the empty file system has %d free blocks; its descriptor says %d", g, free, le.Uint16(d[0xc:]))
		}
		if le.Uint16(d[0x12:])&ext4InodeUninit == 0 {
			if err := e.read(e.inodes[g*e.inodesPer/8:][:e.inodesPer/8], le.Uint32(d[4:])); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

// unwritten computes the bitmap of a group whose bitmap mkfs.ext4 has not written: only metadata is allocated in it.
func (e *ext4) unwritten(g uint32, bitmap []byte) {
	first, n := g*e.perGroup, uint32(len(e.groups))/ext4DescSize
	take := func(block, count uint32) {
		for b := max(block, first); b < min(block+count, first+e.perGroup); b++ {
			bitmap[(b-first)/8] |= 1 << ((b - first) % 8)
		}
	}
	if power := func(base uint32) bool {
		p := base
		for p < g {
			p *= base
		}
		return p == g
	}; g <= 1 || power(3) || power(5) || power(7) {
		take(first, 1+(n*ext4DescSize+ext4Block-1)/ext4Block+uint32(le.Uint16(e.super[0xce:]))) // copies of the superblock and the descriptors
	}
	for other := range n {
		d := e.group(other)
		take(le.Uint32(d), 1)
		take(le.Uint32(d[4:]), 1)
		take(le.Uint32(d[8:]), e.inodesPer*ext4InodeSize/ext4Block)
	}
	total := le.Uint32(e.super[4:])
	if first+e.perGroup > total {
		take(total, first+e.perGroup-total)
	}
}

func (e *ext4) group(g uint32) []byte { return e.groups[g*ext4DescSize:][:ext4DescSize] }

func (e *ext4) read(p []byte, block uint32) error {
	_, err := e.disk.ReadAt(p, e.start+int64(block)*ext4Block)
	return err
}

func (e *ext4) write(p []byte, block uint32) error {
	_, err := e.disk.WriteAt(p, e.start+int64(block)*ext4Block)
	return err
}

// crc32c is the checksum in ext4's variant, without Go's inversions.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// alloc allocates the first count free blocks.
func (e *ext4) alloc(count uint32) ([]extent, error) {
	var runs []extent
	total := le.Uint32(e.super[4:])
	for ; count > 0; e.nextBlock++ {
		b := e.nextBlock
		if b >= total {
			return nil, syscall.ENOSPC
		}
		if e.blocks[b/8]&(1<<(b%8)) != 0 {
			continue
		}
		e.blocks[b/8] |= 1 << (b % 8)
		d := e.group(b / e.perGroup)
		le.PutUint16(d[0xc:], le.Uint16(d[0xc:])-1)
		le.PutUint16(d[0x12:], le.Uint16(d[0x12:])&^ext4BlockUninit)
		count--
		if n := len(runs); n > 0 && runs[n-1].first+runs[n-1].count == b && runs[n-1].count < 32768 {
			runs[n-1].count++
		} else {
			runs = append(runs, extent{b, 1})
		}
	}
	return runs, nil
}

// finish writes the metadata that is kept in memory, with checksums.
func (e *ext4) finish() error {
	var freeBlocks, freeInodes uint32
	for g := range uint32(len(e.groups) / ext4DescSize) {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		d := e.group(g)
		freeBlocks += uint32(le.Uint16(d[0xc:]))
		freeInodes += uint32(le.Uint16(d[0xe:]))
		if table, ok := e.tables[g]; ok {
			for i := uint32(0); i < e.inodesPer; i++ {
				in, ino := table[i*ext4InodeSize:][:ext4InodeSize], g*e.inodesPer+i+1
				if le.Uint16(in[0x1a:]) == 0 {
					continue // free
				}
				le.PutUint16(in[0x7c:], 0)
				le.PutUint16(in[0x82:], 0)
				sum := crc32c(crc32c(e.seed, le.AppendUint32(le.AppendUint32(nil, ino), le.Uint32(in[0x64:]))), in)
				le.PutUint16(in[0x7c:], uint16(sum))
				le.PutUint16(in[0x82:], uint16(sum>>16))
			}
			if err := e.writeData(table, le.Uint32(d[8:])); err != nil {
				return err
			}
		}
		if le.Uint16(d[0x12:])&ext4BlockUninit == 0 {
			bitmap := e.blocks[g*ext4Block:][:ext4Block]
			le.PutUint16(d[0x18:], uint16(crc32c(e.seed, bitmap)))
			if err := e.write(bitmap, le.Uint32(d)); err != nil {
				return err
			}
		}
		if le.Uint16(d[0x12:])&ext4InodeUninit == 0 {
			bitmap := e.inodes[g*e.inodesPer/8:][:e.inodesPer/8]
			le.PutUint16(d[0x1a:], uint16(crc32c(e.seed, bitmap)))
			block := bytes.Repeat([]byte{0xff}, ext4Block)
			copy(block, bitmap)
			if err := e.write(block, le.Uint32(d[4:])); err != nil {
				return err
			}
		}
		le.PutUint16(d[0x1e:], 0)
		le.PutUint16(d[0x1e:], uint16(crc32c(crc32c(e.seed, le.AppendUint32(nil, g)), d)))
	}
	le.PutUint32(e.super[0xc:], freeBlocks)
	le.PutUint32(e.super[0x10:], freeInodes)
	le.PutUint32(e.super[0x3fc:], crc32c(^uint32(0), e.super[:0x3fc]))
	_, err := e.disk.WriteAt(e.super, e.start+1024)
	return errors.Join(err, e.write(e.groups, 1))
}

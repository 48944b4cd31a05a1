package images

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A file system that the kernel has written to is never the same twice: it has times of its own, a journal that was
// used, and blocks where there was room at that moment. So the disk is made from the finished tree in one pass, without
// mounting anything: mkfs.ext4 makes an empty file system, and ext4 puts the tree into it, in the order of names, from the
// first free inode and block on. Inodes get one time, that of last modification, and no later one than the tree's own.

// ext4 is an empty file system, as mkfs.ext4 has made it, that is being filled.
type ext4 struct {
	disk   *os.File
	start  int64 // of the file system in the disk
	newest int64 // seconds; no file is younger

	super     []byte
	groups    []byte // descriptors
	seed      uint32 // of checksums
	perGroup  uint32 // blocks
	inodesPer uint32
	blocks    []byte // bitmap of all groups; 1: taken
	inodes    []byte
	nextBlock uint32 // all before it are taken
	nextInode uint32
	tables    map[uint32][]byte // inode tables of the groups that are in use
	ctx       context.Context
	links     map[fileID]uint32   // inodes of files with several names
	placed    map[string][]extent // where the content of some files is, by path
}

type fileID struct{ device, inode uint64 }

// extent is a piece of a file: blocks that follow each other.
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
		return nil, errors.New("mkfs.ext4 has made a file system with other features than it was told")
	}
	total := le.Uint32(e.super[4:])
	e.perGroup, e.inodesPer = le.Uint32(e.super[0x20:]), le.Uint32(e.super[0x28:])
	if e.perGroup != 8*ext4Block || e.inodesPer%8 != 0 {
		return nil, errors.New("mkfs.ext4 has made groups of another size than it was told")
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
			return nil, fmt.Errorf("group %d of the empty file system has %d free blocks, and says %d", g, free, le.Uint16(d[0xc:]))
		}
		if le.Uint16(d[0x12:])&ext4InodeUninit == 0 {
			if err := e.read(e.inodes[g*e.inodesPer/8:][:e.inodesPer/8], le.Uint32(d[4:])); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

// unwritten makes the bitmap of a group that has none on the disk yet: what is taken there is metadata.
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

// crc32c is the checksum as the file system has it, without the inversions of Go's.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// inodeSeed is what checksums begin with of what belongs to an inode. Its generation is 0.
func (e *ext4) inodeSeed(ino uint32) uint32 {
	return crc32c(e.seed, le.AppendUint32(le.AppendUint32(nil, ino), 0))
}

// alloc takes count blocks, the first that are free.
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

// newInode takes the first free inode.
func (e *ext4) newInode(dir bool) (uint32, error) {
	for i := e.nextInode; i < uint32(len(e.inodes))*8; i++ {
		if e.inodes[i/8]&(1<<(i%8)) != 0 {
			continue
		}
		e.inodes[i/8] |= 1 << (i % 8)
		e.nextInode = i + 1
		d := e.group(i / e.inodesPer)
		le.PutUint16(d[0xe:], le.Uint16(d[0xe:])-1)
		if dir {
			le.PutUint16(d[0x10:], le.Uint16(d[0x10:])+1)
		}
		le.PutUint16(d[0x12:], le.Uint16(d[0x12:])&^ext4InodeUninit)
		if rest := uint16(e.inodesPer - i%e.inodesPer - 1); rest < le.Uint16(d[0x1c:]) {
			le.PutUint16(d[0x1c:], rest) // inodes at the end that were never used
		}
		return i + 1, nil
	}
	return 0, syscall.ENOSPC
}

// inode returns the place of an inode in its table.
func (e *ext4) inode(ino uint32) ([]byte, error) {
	g := (ino - 1) / e.inodesPer
	table, ok := e.tables[g]
	if !ok {
		table = make([]byte, e.inodesPer*ext4InodeSize)
		if err := e.read(table, le.Uint32(e.group(g)[8:])); err != nil {
			return nil, err
		}
		e.tables[g] = table
	}
	return table[(ino-1)%e.inodesPer*ext4InodeSize:][:ext4InodeSize], nil
}

// fill puts the tree into the file system.
func (e *ext4) fill(t layers) error {
	// The root directory is written anew, so its only block is free.
	root, err := e.inode(ext4RootInode)
	if err != nil {
		return err
	}
	if le.Uint16(root[0x28+2:]) != 1 || le.Uint16(root[0x28+12+4:]) != 1 {
		return errors.New("mkfs.ext4 has made another root directory than an empty one")
	}
	old := le.Uint32(root[0x28+12+8:])
	e.blocks[old/8] &^= 1 << (old % 8)
	d := e.group(old / e.perGroup)
	le.PutUint16(d[0xc:], le.Uint16(d[0xc:])+1)
	if _, err := e.dir(t, ".", ext4RootInode, ext4RootInode); err != nil {
		return err
	}
	return e.finish()
}

// entry is one name in a directory.
type dirEntry struct {
	name string
	ino  uint32
	kind byte
}

// dir writes a directory and all below it into an inode.
func (e *ext4) dir(t layers, path string, ino, parent uint32) (fs.FileInfo, error) {
	if e.ctx.Err() != nil {
		return nil, e.ctx.Err()
	}
	info, children, err := t.list(path)
	if err != nil {
		return nil, err
	}
	links := uint16(2)
	all := []dirEntry{{".", ino, 2}, {"..", parent, 2}}
	if ino == ext4RootInode {
		all = append(all, dirEntry{"lost+found", 11, 2}) // as mkfs.ext4 has made it
		links++
	}
	for _, c := range children {
		if ino == ext4RootInode && c.Name() == "lost+found" {
			continue
		}
		child, kind, err := e.add(t, filepath.Join(path, c.Name()), c, ino)
		if err != nil {
			return nil, err
		}
		if kind == 2 {
			links++
		}
		all = append(all, dirEntry{c.Name(), child, kind})
	}
	data := e.dirBlocks(ino, all)
	runs, err := e.alloc(uint32(len(data) / ext4Block))
	if err != nil {
		return nil, err
	}
	for _, r := range runs {
		if err := e.write(data[:r.count*ext4Block], r.first); err != nil {
			return nil, err
		}
		data = data[r.count*ext4Block:]
	}
	return info, e.put(ino, t, path, info, links, int64(len(e.dirBlocks(ino, all))), runs, nil)
}

// dirBlocks returns the content of a directory.
func (e *ext4) dirBlocks(ino uint32, all []dirEntry) []byte {
	const room = ext4Block - 12 // the checksum is at the end
	var data, block []byte
	last := 0 // where the block's last entry begins
	end := func() {
		le.PutUint16(block[last+4:], uint16(room-last))
		block = append(block, make([]byte, room-len(block))...)
		sum := crc32c(e.inodeSeed(ino), block)
		block = le.AppendUint32(append(block, 0, 0, 0, 0, 12, 0, 0, 0xde), sum)
		data = append(data, block...)
		block, last = nil, 0
	}
	for _, d := range all {
		size := (8 + len(d.name) + 3) &^ 3
		if len(block)+size > room {
			end()
		}
		last = len(block)
		block = le.AppendUint32(block, d.ino)
		block = le.AppendUint16(block, uint16(size))
		block = append(block, byte(len(d.name)), d.kind)
		block = append(block, d.name...)
		block = append(block, make([]byte, last+size-len(block))...)
	}
	end()
	return data
}

// add puts what is at path, and all below it, into an inode of its own, and returns that with its kind.
func (e *ext4) add(t layers, path string, info fs.FileInfo, parent uint32) (ino uint32, kind byte, err error) {
	st := info.Sys().(*syscall.Stat_t)
	kinds := map[uint32]byte{syscall.S_IFREG: 1, syscall.S_IFDIR: 2, syscall.S_IFCHR: 3, syscall.S_IFBLK: 4, syscall.S_IFIFO: 5, syscall.S_IFSOCK: 6, syscall.S_IFLNK: 7}
	kind = kinds[st.Mode&syscall.S_IFMT]
	id := fileID{st.Dev, st.Ino}
	if first, ok := e.links[id]; ok && kind != 2 {
		in, err := e.inode(first)
		if err == nil {
			le.PutUint16(in[0x1a:], le.Uint16(in[0x1a:])+1)
		}
		return first, kind, err
	}
	if ino, err = e.newInode(kind == 2); err != nil {
		return 0, 0, err
	}
	if kind == 2 {
		_, err := e.dir(t, path, ino, parent)
		return ino, kind, err
	}
	if st.Nlink > 1 {
		e.links[id] = ino
	}
	var inline []byte // instead of blocks
	var runs []extent
	size := int64(0)
	switch kind {
	case 1:
		if runs, size, err = e.content(t.real(path)); err != nil {
			return 0, 0, err
		}
		if strings.HasPrefix(path, loaderDir) {
			e.placed[path] = runs
		}
	case 3, 4:
		major, minor := uint32(st.Rdev>>8&0xfff|st.Rdev>>32&^0xfff), uint32(st.Rdev&0xff|st.Rdev>>12&^0xff)
		if major < 256 && minor < 256 {
			inline = le.AppendUint32(nil, major<<8|minor)
		} else {
			inline = le.AppendUint32(make([]byte, 4), minor&0xff|major<<8|minor&^0xff<<12)
		}
	case 7:
		target, err := os.Readlink(t.real(path))
		if err != nil {
			return 0, 0, err
		}
		if size = int64(len(target)); size < 60 {
			inline = []byte(target)
			break
		}
		if runs, err = e.alloc(1); err != nil {
			return 0, 0, err
		}
		if err := e.write([]byte(target), runs[0].first); err != nil {
			return 0, 0, err
		}
	}
	return ino, kind, e.put(ino, t, path, info, 1, size, runs, inline)
}

// content copies a file's content. Blocks of zeros stay holes of the disk.
func (e *ext4) content(path string) (runs []extent, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	size = info.Size()
	if runs, err = e.alloc(uint32((size + ext4Block - 1) / ext4Block)); err != nil {
		return nil, 0, err
	}
	buf := make([]byte, min(size, 1<<20))
	left := size
	for _, r := range runs {
		for block, end := r.first, r.first+r.count; block < end; {
			if err := e.ctx.Err(); err != nil {
				return nil, 0, err
			}
			p := buf[:min(left, int64(end-block)*ext4Block, int64(len(buf)))]
			if _, err := io.ReadFull(f, p); err != nil {
				return nil, 0, fmt.Errorf("read %s: %w", path, err)
			}
			left -= int64(len(p))
			if err := e.writeData(p, block); err != nil {
				return nil, 0, err
			}
			block += uint32((len(p) + ext4Block - 1) / ext4Block)
		}
	}
	return runs, size, nil
}

var zeroBlock = make([]byte, ext4Block)

// writeData writes blocks but for those of zeros.
func (e *ext4) writeData(p []byte, block uint32) error {
	zero := func(i int) bool { q := p[i:min(i+ext4Block, len(p))]; return bytes.Equal(q, zeroBlock[:len(q)]) }
	for i := 0; i < len(p); {
		j := i
		for j < len(p) && !zero(j) {
			j += ext4Block
		}
		if j > i {
			if err := e.write(p[i:min(j, len(p))], block+uint32(i/ext4Block)); err != nil {
				return err
			}
		}
		for i = j; i < len(p) && zero(i); i += ext4Block {
		}
	}
	return nil
}

// put writes an inode.
func (e *ext4) put(ino uint32, t layers, path string, info fs.FileInfo, links uint16, size int64, runs []extent, inline []byte) error {
	in, err := e.inode(ino)
	if err != nil {
		return err
	}
	clear(in)
	st := info.Sys().(*syscall.Stat_t)
	mtime := uint32(min(st.Mtim.Sec, e.newest))
	le.PutUint16(in, uint16(st.Mode))
	le.PutUint16(in[0x2:], uint16(st.Uid))
	le.PutUint32(in[0x4:], uint32(size))
	for _, at := range []int{0x8, 0xc, 0x10, 0x90} { // access, change, modification, creation
		le.PutUint32(in[at:], mtime)
	}
	le.PutUint16(in[0x18:], uint16(st.Gid))
	le.PutUint16(in[0x1a:], links)
	le.PutUint32(in[0x6c:], uint32(size>>32))
	le.PutUint16(in[0x78:], uint16(st.Uid>>16))
	le.PutUint16(in[0x7a:], uint16(st.Gid>>16))
	le.PutUint16(in[0x80:], 32) // bytes of the fields after these 128
	if inline != nil {
		copy(in[0x28:], inline)
	} else if kind := st.Mode & syscall.S_IFMT; kind == syscall.S_IFREG || kind == syscall.S_IFDIR || kind == syscall.S_IFLNK {
		le.PutUint32(in[0x20:], 0x80000) // has extents
		used := uint32(0)
		for _, r := range runs {
			used += r.count
		}
		index, err := e.extents(ino, in[0x28:0x64], runs)
		if err != nil {
			return err
		}
		le.PutUint32(in[0x1c:], (used+index)*(ext4Block/512))
	}
	attributes, err := attributes(t.real(path))
	if err != nil {
		return err
	}
	return putAttributes(in[0xa0:], attributes)
}

// extents writes where a file's content is, and returns how many blocks that took besides those in the inode.
func (e *ext4) extents(ino uint32, root []byte, runs []extent) (uint32, error) {
	header := func(p []byte, n, capacity, depth int) {
		le.PutUint16(p, 0xf30a)
		le.PutUint16(p[2:], uint16(n))
		le.PutUint16(p[4:], uint16(capacity))
		le.PutUint16(p[6:], uint16(depth))
	}
	leaf := func(p []byte, capacity int, runs []extent) {
		header(p, len(runs), capacity, 0)
		logical := uint32(0)
		for i, r := range runs {
			x := p[12*(i+1):]
			le.PutUint32(x, logical)
			le.PutUint16(x[4:], uint16(r.count))
			le.PutUint32(x[8:], r.first)
			logical += r.count
		}
	}
	if len(runs) <= 4 {
		leaf(root, 4, runs)
		return 0, nil
	}
	const capacity = (ext4Block - 12) / 12
	if len(runs) > capacity {
		return 0, fmt.Errorf("a file in %d pieces is more than imagegen writes", len(runs))
	}
	block := make([]byte, ext4Block)
	leaf(block, capacity, runs)
	const tail = 12 * (capacity + 1)
	le.PutUint32(block[tail:], crc32c(e.inodeSeed(ino), block[:tail]))
	at, err := e.alloc(1)
	if err != nil {
		return 0, err
	}
	header(root, 1, 4, 1)
	le.PutUint32(root[12+4:], at[0].first)
	return 1, e.write(block, at[0].first)
}

// finish writes what was kept in memory, with its checksums.
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

// attribute is an extended attribute as the file system keeps it.
type attribute struct {
	index byte // stands for what its name begins with
	name  string
	value []byte
}

// attributes reads a file's extended attributes: those of users, capabilities, and access lists. Others are what the
// build host has put there for itself.
func attributes(path string) ([]attribute, error) {
	buf := make([]byte, 4096)
	n, err := llistxattr(path, buf)
	if errors.Is(err, syscall.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attributes of %s: %w", path, err)
	}
	var all []attribute
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		a := attribute{}
		switch rest, user := strings.CutPrefix(name, "user."); {
		case user && !strings.HasPrefix(name, "user.overlay."):
			a.index, a.name = 1, rest
		case name == "system.posix_acl_access":
			a.index = 2
		case name == "system.posix_acl_default":
			a.index = 3
		case name == "security.capability":
			a.index, a.name = 6, "capability"
		default:
			continue
		}
		value := make([]byte, 4096)
		n, err := lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		if a.value = value[:n]; a.index == 2 || a.index == 3 {
			a.value = accessList(a.value)
		}
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b attribute) int {
		if a.index != b.index {
			return int(a.index) - int(b.index)
		}
		if len(a.name) != len(b.name) {
			return len(a.name) - len(b.name)
		}
		return strings.Compare(a.name, b.name)
	})
	return all, nil
}

// accessList turns an access list as programs see it into one as ext4 keeps it, which names ids only of named users
// and groups.
func accessList(v []byte) []byte {
	out := le.AppendUint32(nil, 1)
	for i := 4; i+8 <= len(v); i += 8 {
		out = append(out, v[i:i+4]...)
		if tag := le.Uint16(v[i:]); tag == 0x02 || tag == 0x08 {
			out = append(out, v[i+4:i+8]...)
		}
	}
	return out
}

// putAttributes writes attributes into what an inode has room for after its fields.
func putAttributes(room []byte, all []attribute) error {
	if len(all) == 0 {
		return nil
	}
	le.PutUint32(room, 0xea020000)
	room = room[4:]
	at, end := 0, len(room)
	for _, a := range all {
		size := (16 + len(a.name) + 3) &^ 3
		end -= (len(a.value) + 3) &^ 3
		if at+size+4 > end {
			return errors.New("its extended attributes are longer than imagegen writes")
		}
		x := room[at:]
		x[0], x[1] = byte(len(a.name)), a.index
		le.PutUint16(x[2:], uint16(end))
		le.PutUint32(x[8:], uint32(len(a.value)))
		copy(x[16:], a.name)
		copy(room[end:], a.value)
		at += size
	}
	return nil
}

// Package ext4 reads the ext4 file system of a disk without mounting it: no root, no loop device, no Linux.
//
// It supports what package images and current versions of mkfs.ext4 write. A file system with unknown features is an
// error.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// FS is an open file system.
type FS struct {
	r         io.ReaderAt
	start     int64 // offset of the file system in the disk
	blockSize int64
	inodeSize int64
	perGroup  uint32 // inodes per group
	inodes    uint32
	tables    []int64 // first block of each group's inode table
}

// Node is a file, directory or other object with an inode.
type Node struct {
	Inode      uint32
	Mode       uint16 // as in stat(2)
	UID, GID   uint32
	Size       int64
	Links      uint16
	Modified   time.Time
	Target     string // of a symbolic link
	Major      uint32 // of a device
	Minor      uint32
	Attributes map[string]string // extended attributes, without POSIX ACLs

	fs    *FS
	block [60]byte
	flags uint32
}

// File types in [Node.Mode].
const (
	TypeMask  = 0o170000
	Socket    = 0o140000
	Symlink   = 0o120000
	Regular   = 0o100000
	BlockDev  = 0o060000
	Directory = 0o040000
	CharDev   = 0o020000
	FIFO      = 0o010000
)

const (
	sector   = 512
	rootNode = 2
	maxDepth = 5 // of an extent tree

	magic       = 0xEF53
	extentMagic = 0xF30A
	attrMagic   = 0xEA020000

	// The incompatible features that we support.
	fileTypes, needsRecovery, extents, bits64, flexGroups, checksumSeed, largeDir = 0x2, 0x4, 0x40, 0x80, 0x200, 0x2000, 0x4000

	usesExtents = 0x80000 // flag of an inode
)

var le = binary.LittleEndian

// ErrNone says that a disk has no ext4 file system.
var ErrNone = errors.New("no ext4 file system")

// Open opens the first ext4 file system on a partitioned disk (MBR), or the one that fills the disk.
func Open(disk io.ReaderAt) (*FS, error) {
	var mbr [sector]byte
	if _, err := disk.ReadAt(mbr[:], 0); err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	starts := []int64{0}
	if mbr[510] == 0x55 && mbr[511] == 0xAA {
		for at := 446; at < 510; at += 16 {
			if first := le.Uint32(mbr[at+8:]); first > 0 {
				starts = append(starts, int64(first)*sector)
			}
		}
	}
	for _, start := range starts {
		fs, err := open(disk, start)
		if errors.Is(err, ErrNone) {
			continue
		}
		return fs, err
	}
	return nil, ErrNone
}

func open(disk io.ReaderAt, start int64) (*FS, error) {
	super := make([]byte, 1024)
	if _, err := disk.ReadAt(super, start+1024); err != nil {
		if err == io.EOF {
			return nil, ErrNone
		}
		return nil, fmt.Errorf("read the superblock: %w", err)
	}
	if le.Uint16(super[0x38:]) != magic {
		return nil, ErrNone
	}
	incompatible := le.Uint32(super[0x60:])
	if incompatible&needsRecovery != 0 {
		return nil, errors.New("the ext4 file system was not unmounted: its journal must be replayed first (e2fsck)")
	}
	const known = fileTypes | extents | bits64 | flexGroups | checksumSeed | largeDir
	if unknown := incompatible &^ known; unknown != 0 {
		return nil, fmt.Errorf("the ext4 file system has features that are not supported here: %#x", unknown)
	}
	f := &FS{r: disk, start: start, blockSize: 1024 << le.Uint32(super[0x18:]), inodeSize: int64(le.Uint16(super[0x58:])),
		perGroup: le.Uint32(super[0x28:]), inodes: le.Uint32(super)}
	descSize := int64(32)
	if incompatible&bits64 != 0 {
		descSize = int64(le.Uint16(super[0xFE:]))
	}
	if f.blockSize < 1024 || f.blockSize > 64<<10 || f.inodeSize < 128 || f.inodeSize > f.blockSize || f.perGroup == 0 || f.inodes == 0 || descSize < 32 || descSize > 1024 {
		return nil, errors.New("the ext4 superblock is damaged")
	}
	groups := (int64(f.inodes) + int64(f.perGroup) - 1) / int64(f.perGroup)
	if groups > 1<<20 {
		return nil, errors.New("the ext4 superblock is damaged: too many groups")
	}
	table := make([]byte, groups*descSize)
	if err := f.readAt(table, (int64(le.Uint32(super[0x14:]))+1)*f.blockSize); err != nil {
		return nil, fmt.Errorf("read the group descriptors: %w", err)
	}
	for g := range groups {
		d := table[g*descSize:]
		at := int64(le.Uint32(d[8:]))
		if descSize >= 64 {
			at |= int64(le.Uint32(d[0x28:])) << 32
		}
		f.tables = append(f.tables, at)
	}
	return f, nil
}

// readAt reads at an offset in the file system.
func (f *FS) readAt(b []byte, at int64) error {
	n, err := f.r.ReadAt(b, f.start+at)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Walk calls fn for everything in the file system, directories before their contents, sorted by name. Paths are
// relative; the root directory's is ".".
func (f *FS) Walk(fn func(path string, n *Node) error) error {
	root, err := f.node(rootNode)
	if err != nil {
		return err
	}
	return f.walk(".", root, map[uint32]bool{}, fn)
}

func (f *FS) walk(at string, n *Node, seen map[uint32]bool, fn func(string, *Node) error) error {
	if err := fn(at, n); err != nil {
		return err
	}
	if n.Mode&TypeMask != Directory {
		return nil
	}
	if seen[n.Inode] {
		return fmt.Errorf("%s: the directory is there twice: the file system is damaged", at)
	}
	seen[n.Inode] = true
	entries, err := n.list()
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	for _, e := range entries {
		child := path.Join(at, e.name)
		n, err := f.node(e.inode)
		if err != nil {
			return fmt.Errorf("%s: %w", child, err)
		}
		if err := f.walk(child, n, seen, fn); err != nil {
			return err
		}
	}
	return nil
}

type entry struct {
	name  string
	inode uint32
}

// list returns a directory's entries. Index blocks of large directories look like blocks of deleted entries.
func (n *Node) list() ([]entry, error) {
	const maxDir = 64 << 20
	if n.Size > maxDir {
		return nil, errors.New("the directory is too large")
	}
	data, err := io.ReadAll(n.Open())
	if err != nil {
		return nil, err
	}
	var all []entry
	for len(data) >= 8 {
		inode, length, name := le.Uint32(data), int(le.Uint16(data[4:])), int(data[6])
		if length < 8 || length > len(data) || 8+name > length {
			return nil, errors.New("the directory is damaged")
		}
		if text := string(data[8 : 8+name]); inode != 0 && text != "." && text != ".." {
			if !fs.ValidPath(text) || strings.Contains(text, "/") {
				return nil, fmt.Errorf("the directory is damaged: it has an entry %q", text)
			}
			all = append(all, entry{text, inode})
		}
		data = data[length:]
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

func (f *FS) node(inode uint32) (*Node, error) {
	if inode == 0 || inode > f.inodes {
		return nil, fmt.Errorf("there is no inode %d: the file system is damaged", inode)
	}
	group, index := (inode-1)/f.perGroup, (inode-1)%f.perGroup
	b := make([]byte, f.inodeSize)
	if err := f.readAt(b, f.tables[group]*f.blockSize+int64(index)*f.inodeSize); err != nil {
		return nil, fmt.Errorf("read inode %d: %w", inode, err)
	}
	n := &Node{
		Inode: inode, Mode: le.Uint16(b), Links: le.Uint16(b[0x1A:]), flags: le.Uint32(b[0x20:]), fs: f,
		UID:      uint32(le.Uint16(b[2:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:      uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7A:]))<<16,
		Size:     int64(le.Uint32(b[4:])) | int64(le.Uint32(b[0x6C:]))<<32,
		Modified: time.Unix(int64(int32(le.Uint32(b[0x10:]))), 0).UTC(),
	}
	copy(n.block[:], b[0x28:0x64])
	switch n.Mode & TypeMask {
	case Symlink:
		if n.Size < int64(len(n.block)) && n.flags&usesExtents == 0 {
			n.Target = string(n.block[:n.Size])
			break
		}
		if n.Size > 4096 {
			return nil, fmt.Errorf("inode %d: the symbolic link is too long", inode)
		}
		target, err := io.ReadAll(n.Open())
		if err != nil {
			return nil, err
		}
		n.Target = string(target)
	case CharDev, BlockDev:
		if old := le.Uint32(n.block[:]); old != 0 {
			n.Major, n.Minor = old>>8&0xFF, old&0xFF
		} else {
			dev := le.Uint32(n.block[4:])
			n.Major, n.Minor = dev>>8&0xFFF, dev&0xFF|dev>>12&0xFFF00
		}
	}
	if err := n.readAttributes(b); err != nil {
		return nil, fmt.Errorf("inode %d: extended attributes: %w", inode, err)
	}
	return n, nil
}

// prefixes of the names of extended attributes, by their number on disk.
var prefixes = map[byte]string{1: "user.", 4: "trusted.", 6: "security.", 7: "system."}

// readAttributes reads the attributes in the inode and in the separate block.
func (n *Node) readAttributes(inode []byte) error {
	n.Attributes = map[string]string{}
	if len(inode) > 128+4 {
		if at := 128 + int(le.Uint16(inode[128:])); at+4 < len(inode) && le.Uint32(inode[at:]) == attrMagic {
			if err := n.parseAttributes(inode[at+4:], inode[at+4:]); err != nil {
				return err
			}
		}
	}
	block := int64(le.Uint32(inode[0x68:])) | int64(le.Uint16(inode[0x76:]))<<32
	if block == 0 {
		return nil
	}
	b := make([]byte, n.fs.blockSize)
	if err := n.fs.readAt(b, block*n.fs.blockSize); err != nil {
		return err
	}
	if le.Uint32(b) != attrMagic {
		return errors.New("their block is damaged")
	}
	return n.parseAttributes(b[32:], b)
}

// parseAttributes parses entries, whose values are at offsets in values.
func (n *Node) parseAttributes(entries, values []byte) error {
	for len(entries) >= 16 && le.Uint32(entries) != 0 {
		nameLen, index := int(entries[0]), entries[1]
		offset, elsewhere, size := int(le.Uint16(entries[2:])), le.Uint32(entries[4:]), int(le.Uint32(entries[8:]))
		if 16+nameLen > len(entries) || elsewhere != 0 || size > len(values) || offset+size > len(values) {
			return errors.New("damaged")
		}
		if prefix, known := prefixes[index]; known {
			n.Attributes[prefix+string(entries[16:16+nameLen])] = string(values[offset : offset+size])
		}
		entries = entries[min(len(entries), (16+nameLen+3)&^3):]
	}
	return nil
}

// Open returns a reader of a file's content.
func (n *Node) Open() io.Reader {
	return &reader{n: n}
}

// reader reads a file's content; holes are zeros.
type reader struct {
	n      *Node
	at     int64
	pieces []piece // sorted; nil: not read yet
	read   bool
}

// piece is a contiguous part of a file.
type piece struct {
	from, to int64 // bytes of the file
	disk     int64 // offset in the file system; -1: zeros, not written yet
}

func (r *reader) Read(b []byte) (int, error) {
	if r.at >= r.n.Size {
		return 0, io.EOF
	}
	if !r.read {
		if r.n.flags&usesExtents == 0 {
			return 0, fmt.Errorf("inode %d has no extents: only ext4 is supported, not ext2 or ext3", r.n.Inode)
		}
		if err := r.extents(r.n.block[:], maxDepth); err != nil {
			return 0, fmt.Errorf("inode %d: %w", r.n.Inode, err)
		}
		r.read = true
	}
	b = b[:min(int64(len(b)), r.n.Size-r.at)]
	for len(r.pieces) > 0 && r.pieces[0].to <= r.at {
		r.pieces = r.pieces[1:]
	}
	hole := r.n.Size
	if len(r.pieces) > 0 {
		p := r.pieces[0]
		if p.from <= r.at && p.disk >= 0 {
			b = b[:min(int64(len(b)), p.to-r.at)]
			if err := r.n.fs.readAt(b, p.disk+r.at-p.from); err != nil {
				return 0, fmt.Errorf("inode %d: %w", r.n.Inode, err)
			}
			r.at += int64(len(b))
			return len(b), nil
		}
		if hole = p.from; p.from <= r.at {
			hole = p.to
		}
	}
	b = b[:min(int64(len(b)), hole-r.at)]
	clear(b)
	r.at += int64(len(b))
	return len(b), nil
}

// extents adds the pieces of a node in the extent tree.
func (r *reader) extents(b []byte, depth int) error {
	if le.Uint16(b) != extentMagic || depth == 0 {
		return errors.New("its extents are damaged")
	}
	entries, below := int(le.Uint16(b[2:])), le.Uint16(b[6:])
	if 12+entries*12 > len(b) {
		return errors.New("its extents are damaged")
	}
	for i := range entries {
		e := b[12+i*12:]
		if below > 0 {
			child := make([]byte, r.n.fs.blockSize)
			if err := r.n.fs.readAt(child, (int64(le.Uint32(e[4:]))|int64(le.Uint16(e[8:]))<<32)*r.n.fs.blockSize); err != nil {
				return err
			}
			if err := r.extents(child, depth-1); err != nil {
				return err
			}
			continue
		}
		const initialized = 32768 // longer extents are uninitialised, with this added to their length; they read as zeros
		first, count := int64(le.Uint32(e)), int64(le.Uint16(e[4:]))
		p := piece{disk: (int64(le.Uint16(e[6:]))<<32 | int64(le.Uint32(e[8:]))) * r.n.fs.blockSize}
		if count > initialized {
			count, p.disk = count-initialized, -1
		}
		p.from, p.to = first*r.n.fs.blockSize, (first+count)*r.n.fs.blockSize
		if k := len(r.pieces); k > 0 && r.pieces[k-1].to > p.from {
			return errors.New("its extents are damaged")
		}
		r.pieces = append(r.pieces, p)
	}
	return nil
}

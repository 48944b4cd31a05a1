package disk

import (
	"fmt"
	"io/fs"
	"syscall"
)

// inodeSeed returns the seed of the checksums of an inode and its blocks. The inode's generation is 0.
func (e *ext4) inodeSeed(ino uint32) uint32 {
	return crc32c(e.seed, le.AppendUint32(le.AppendUint32(nil, ino), 0))
}

// newInode allocates the first free inode.
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
			le.PutUint16(d[0x1c:], rest) // never used inodes at the end of the table
		}
		return i + 1, nil
	}
	return 0, syscall.ENOSPC
}

// inode returns an inode's bytes in the table.
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

// put writes an inode.
func (e *ext4) put(ino uint32, t Tree, path string, info fs.FileInfo, links uint16, size int64, runs []extent, inline []byte) error {
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
	le.PutUint16(in[0x80:], 32) // size of the fields after the first 128 bytes
	if inline != nil {
		copy(in[0x28:], inline)
	} else if kind := st.Mode & syscall.S_IFMT; kind == syscall.S_IFREG || kind == syscall.S_IFDIR || kind == syscall.S_IFLNK {
		le.PutUint32(in[0x20:], 0x80000) // EXT4_EXTENTS_FL
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

// extents writes the extents of a file, and returns the number of extra blocks that this took.
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
		return 0, fmt.Errorf("a file has %d extents, more than imagegen can write", len(runs))
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

package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// fill adds the tree to the file system.
func (e *ext4) fill(t Tree) error {
	// Free the root directory's only block: the directory is written again.
	root, err := e.inode(ext4RootInode)
	if err != nil {
		return err
	}
	if le.Uint16(root[0x28+2:]) != 1 || le.Uint16(root[0x28+12+4:]) != 1 {
		return errors.New("mkfs.ext4 made a root directory that is not empty")
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

// dirEntry is one name in a directory.
type dirEntry struct {
	name string
	ino  uint32
	kind byte
}

// dir writes a directory, with everything below it, to an inode.
func (e *ext4) dir(t Tree, path string, ino, parent uint32) (fs.FileInfo, error) {
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
		all = append(all, dirEntry{"lost+found", 11, 2}) // made by mkfs.ext4
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
	const room = ext4Block - 12 // the checksum is at the end of the block
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

// add writes the file at path, or the directory with everything below it, to a new inode. It returns the inode's number
// and kind.
func (e *ext4) add(t Tree, path string, info fs.FileInfo, parent uint32) (ino uint32, kind byte, err error) {
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
	var inline []byte // content stored in the inode, without blocks
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

// content copies a file's content. Blocks of zeros become holes.
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

// writeData writes blocks, except blocks of zeros.
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

package disk

import (
	"bytes"
	"errors"
	"slices"
)

// The boot loader is extlinux. The partition's boot sector contains the number of the first sector of ldlinux.sys, and
// ldlinux.sys a list of its own sectors. extlinux --install writes both on a mounted file system. Disks are never
// mounted here, so it runs once, when the base is made, and putLoader updates the numbers for each disk.

const (
	loaderDir  = "boot/extlinux/"
	loaderFile = loaderDir + "ldlinux.sys"
	sectorSize = 512
)

// putLoader changes the partition's boot sector and ldlinux.sys, both as installed by extlinux elsewhere, for a disk on
// which ldlinux.sys is in the given sectors, relative to the partition. The offsets are from extlinux's syslxint.h.
func putLoader(boot, sys []byte, sectors []uint64) error {
	magic := bytes.Index(sys, []byte{0xfe, 0x02, 0xb2, 0x3e})
	if magic < 0 || magic%4 != 0 || magic+24 > len(sys) || len(boot) != sectorSize {
		return errors.New("ldlinux.sys is of an unknown version")
	}
	area := sys[magic:]
	data, adv, dwords := int(le.Uint16(area[8:])), int(le.Uint16(area[10:])), int(le.Uint32(area[12:]))
	at := int(le.Uint16(area[22:]))
	if adv != 2 || len(sectors) < data+adv || dwords*4 > len(sys) || at+20 > len(sys) {
		return errors.New("ldlinux.sys is of an unknown version")
	}
	field := func(i int) int { return int(le.Uint16(sys[at+2*i:])) }
	advAt, listAt, listLen := field(0), field(5), field(6)
	low, high := field(7), field(8)
	if advAt+16 > len(sys) || listAt+10*listLen > len(sys) || low+4 > sectorSize || high+4 > sectorSize {
		return errors.New("ldlinux.sys is of an unknown version")
	}
	le.PutUint32(boot[low:], uint32(sectors[0]))
	le.PutUint32(boot[high:], uint32(sectors[0]>>32))

	list := sys[listAt : listAt+10*listLen]
	clear(list)
	for rest := sectors[1:data]; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n] == rest[0]+uint64(n) && (n+1)*sectorSize < 1<<16 {
			n++
		}
		if len(list) == 0 {
			return errors.New("ldlinux.sys is too fragmented")
		}
		le.PutUint64(list, rest[0])
		le.PutUint16(list[8:], uint16(n))
		list, rest = list[10:], rest[n:]
	}
	le.PutUint64(sys[advAt:], sectors[data])
	le.PutUint64(sys[advAt+8:], sectors[data+1])

	le.PutUint32(area[16:], 0)
	sum := uint32(0x3eb202fe)
	for i := range dwords {
		sum -= le.Uint32(sys[4*i:])
	}
	le.PutUint32(area[16:], sum)
	return nil
}

// install installs the boot loader. boot is the boot sector that extlinux wrote together with the tree's ldlinux.sys.
func (e *ext4) install(boot []byte) error {
	runs := e.placed[loaderFile]
	if len(runs) == 0 {
		return errors.New("the tree has no " + loaderFile)
	}
	var sys []byte
	var sectors []uint64
	for _, r := range runs {
		piece := make([]byte, int(r.count)*ext4Block)
		if err := e.read(piece, r.first); err != nil {
			return err
		}
		sys = append(sys, piece...)
		for i := range uint64(r.count) * (ext4Block / sectorSize) {
			sectors = append(sectors, uint64(r.first)*(ext4Block/sectorSize)+i)
		}
	}
	boot = slices.Clone(boot)
	if err := putLoader(boot, sys, sectors); err != nil {
		return err
	}
	for _, r := range runs {
		n := int(r.count) * ext4Block
		if err := e.write(sys[:n], r.first); err != nil {
			return err
		}
		sys = sys[n:]
	}
	_, err := e.disk.WriteAt(boot, e.start)
	return err
}

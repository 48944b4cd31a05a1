// Package disk makes a disk of a tree of files: the partition, the file system (ext4) and the boot loader (extlinux), without mounting
// anything and the same to the bit for the same tree. It does not know where the tree comes from, nor what becomes of the disk. It
// works on Linux only.
package disk

// BootSector is the boot loader's first part; Debian has it in syslinux-common.
const BootSector = "/usr/lib/syslinux/mbr/mbr.bin"

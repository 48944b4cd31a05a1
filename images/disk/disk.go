// Package disk writes a bootable disk from a file tree: the partition, the file system (ext4) and the boot loader (extlinux). It mounts
// nothing, and the same tree produces the same bytes. It does not know where the tree comes from or how the disk is used. It works on
// Linux only.
package disk

// BootSector is the boot loader's first part; Debian has it in syslinux-common.
const BootSector = "/usr/lib/syslinux/mbr/mbr.bin"

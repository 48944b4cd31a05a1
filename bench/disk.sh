# Makes a bootable raw disk from a tree with a Debian, in the format of imagegen's images: MBR, ext4, extlinux.
#   TREE  the tree    DISK  the file to make    BYTES  its size    WORK  empty folder
set -eu
uuid=$(cat /proc/sys/kernel/random/uuid)
kernel=$(basename "$TREE"/boot/vmlinuz-*)
initrd=initrd.img-${kernel#vmlinuz-}
[ -s "$TREE/boot/$initrd" ] # otherwise the disk would not boot
mkdir -p "$TREE/boot/extlinux" "$WORK/disk"
cat >"$TREE/boot/extlinux/extlinux.conf" <<CONF
SERIAL 0 115200
DEFAULT linux
LABEL linux
    LINUX /boot/$kernel
    INITRD /boot/$initrd
    APPEND root=UUID=$uuid ro net.ifnames=0 console=tty0 console=ttyS0,115200
CONF
echo "UUID=$uuid / ext4 errors=remount-ro 0 1" >"$TREE/etc/fstab"

truncate -s "$BYTES" "$DISK"
echo '2048,,83,*' | sfdisk -q "$DISK"
loop=$(losetup -f --show -o 1048576 "$DISK")
trap 'umount -q "$WORK/disk" || true; losetup -d "$loop"' EXIT
mkfs.ext4 -q -U "$uuid" -O ^64bit,^metadata_csum "$loop"
mount "$loop" "$WORK/disk"
cp -a "$TREE/." "$WORK/disk/"
extlinux --install "$WORK/disk/boot/extlinux" 2>/dev/null
umount "$WORK/disk"
dd if=/usr/lib/EXTLINUX/mbr.bin of="$DISK" bs=440 count=1 conv=notrunc status=none
sync "$DISK"

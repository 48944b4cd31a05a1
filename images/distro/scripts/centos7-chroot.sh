# Runs the script for an image of centos7 in the root of a copy of the base. Runs as root in mount and process namespaces
# of its own. The disk has one partition (MBR), or the root in the last of several, with XFS or ext4.
#   DISK      copy of the base                   BAKE      folder that the script reads, and writes its list of packages to
#   BYTES     size that the disk is to have                the script is there, too
#   WORK      empty folder to work in
set -eu
step() { echo "step: $*" >&3; }

step 'grow the disk'
part=$(sfdisk --json "$DISK" 2>/dev/null | grep -c '"node"' || true)
[ "$part" -gt 0 ] || { echo 'the base has no partition table'; exit 1; }
if [ "$BYTES" -gt "$(stat -c %s "$DISK")" ]; then
    truncate -s "$BYTES" "$DISK"
    echo ',+' | sfdisk -q --no-reread --no-tell-kernel -N "$part" "$DISK"
fi
start=$(sfdisk --json "$DISK" | sed -n 's/.*"start": *\([0-9]*\).*/\1/p' | tail -n 1)
length=$(sfdisk --json "$DISK" | sed -n 's/.*"size": *\([0-9]*\).*/\1/p' | tail -n 1)
root=$WORK/root
mkdir "$root"
loop=$(losetup --find --show --offset $((start * 512)) --sizelimit $((length * 512)) "$DISK")
kind=$(blkid -p -s TYPE -o value "$loop")
case $kind in
ext4) resize2fs -f "$loop" >/dev/null 2>&1 || { echo "resize2fs $loop failed"; exit 1; } ;;
xfs) ;;
*)
    losetup --detach "$loop"
    echo "the last partition of the base holds ${kind:-nothing known} instead of an XFS or ext4 file system"
    exit 1
    ;;
esac
# nouuid: copies of one base may be mounted at once.
mount -t "$kind" -o "noatime$([ "$kind" = ext4 ] || echo ,nouuid)" "$loop" "$root"
losetup --detach "$loop" # once it is no longer mounted
[ "$kind" = ext4 ] || xfs_growfs "$root" >/dev/null
[ -x "$root/usr/bin/yum" ] || { echo 'the last partition of the base is not the root of CentOS: it has no yum'; exit 1; }

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount --bind /dev "$root/dev"
mkdir "$root/run/bake"
mount --bind "$BAKE" "$root/run/bake"
cp /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true

proxies=$(env | grep -i '^[a-z]*_proxy=' || true)
# shellcheck disable=SC2086 # words
chroot "$root" env -i $proxies PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C BAKE=/run/bake sh /run/bake/script

umount "$root/run/bake" "$root/dev" "$root/sys" "$root/proc" "$root/tmp" "$root/run"
fstrim "$root" || true # as in install.sh
sync -f "$root"
umount "$root"

step 'check'
loop=$(losetup --find --show --offset $((start * 512)) --sizelimit $((length * 512)) "$DISK")
status=0
if [ "$kind" = xfs ]; then
    xfs_repair -n "$loop" >"$WORK/fsck" 2>&1 || status=$?
else
    e2fsck -f -n "$loop" >"$WORK/fsck" 2>&1 || status=$?
fi
losetup --detach "$loop"
[ $status = 0 ] || { tail -n 5 "$WORK/fsck" >&2; exit 1; }

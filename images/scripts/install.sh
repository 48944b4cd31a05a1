# Runs the script for an image of debian12 in the root of a copy of the base. Runs as root in mount, process and network
# namespaces of its own.
#   DISK      copy of the base                   BAKE      folder that the script reads, and writes its list of packages to;
#   BYTES     size that the disk is to have                the script is there, too
#   WORK      empty folder to work in
set -eu
step() { echo "step: $*" >&3; }

step 'grow the disk'
if [ "$BYTES" -gt "$(stat -c %s "$DISK")" ]; then
    truncate -s "$BYTES" "$DISK"
    echo ',+' | sfdisk -q --no-reread --no-tell-kernel -N 1 "$DISK"
fi
root=$WORK/root
mkdir "$root"
loop=$(losetup --find --show --offset 1048576 "$DISK")
resize2fs -f "$loop" >/dev/null 2>&1 || { echo "resize2fs $loop failed"; exit 1; }
mount -o noatime,barrier=0 "$loop" "$root"
losetup --detach "$loop" # once it is no longer mounted
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount --bind /dev "$root/dev"
mkdir "$root/run/bake"
mount --bind "$BAKE" "$root/run/bake"

chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 BAKE=/run/bake sh /run/bake/script

umount "$root/run/bake" "$root/dev" "$root/sys" "$root/proc" "$root/tmp" "$root/run"
fstrim "$root" || true # gives deleted blocks back to the file, where the host can
sync -f "$root"        # a write that failed, for want of space outside, is an error here and nowhere else
umount "$root"

step 'check'
e2fsck -f -n "$DISK?offset=1048576" >"$WORK/fsck" 2>&1 || { tail -n 5 "$WORK/fsck" >&2; exit 1; }

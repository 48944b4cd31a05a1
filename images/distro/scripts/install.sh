# Runs the script for an image of debian12 in a tree on top of the base's. Runs as root in namespaces of its own for mounts,
# processes and the network.
#   BASE      the base's tree, which is not written to
#   UPPER     empty folder for what differs from it; with all of the tree, and the file WORK/whole, where it cannot be kept apart
#   BAKE      folder that the script reads, and writes its list of packages to; the script is there, too
#   WORK      empty folder to work in
set -eu
umask 022
step() { echo "step: $*" >&3; }

root=$WORK/root
mkdir "$root" "$WORK/overlay"
chmod 755 "$UPPER" # is the root folder
if ! mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$UPPER,workdir=$WORK/overlay,index=off,metacopy=off,redirect_dir=off" "$root"; then
    # The cache is on a file system that cannot be an upper layer, such as another overlay.
    step 'copy the base'
    cp -a --reflink=auto "$BASE/." "$UPPER/"
    mount --bind "$UPPER" "$root"
    : >"$WORK/whole"
fi
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount --bind /dev "$root/dev"
mkdir "$root/run/bake"
mount --bind "$BAKE" "$root/run/bake"

chroot "$root" env -i SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 BAKE=/run/bake sh /run/bake/script

umount "$root/run/bake" "$root/dev" "$root/sys" "$root/proc" "$root/tmp" "$root/run"
umount "$root"

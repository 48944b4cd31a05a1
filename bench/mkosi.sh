# Makes a role's image of Debian 12 with mkosi 14, as Debian 12 packages it. Its own disks need a kernel that shows a disk's
# partitions, EFI, and dracut; so that it makes the same as the others, it makes the tree and disk.sh the disk.
#   ARCHIVE   a local archive of the packages    PACKAGES  comma-separated    DISABLE  units
#   SCRIPTS   this folder                        TREE, DISK, BYTES, WORK: see disk.sh
set -eu
cd "$WORK"
# shellcheck disable=SC2046 # a list of words
mkosi --distribution=debian --release=bookworm --format=directory --with-docs=no --repository-key-check=no --nspawn-keep-unit=yes \
    --local-mirror="file:$ARCHIVE" --mirror=http://deb.debian.org/debian --workspace-dir="$WORK" --output="$TREE" \
    $(echo "$PACKAGES" | sed 's/\(^\|,\)/ --package=/g') build
chroot "$TREE" update-initramfs -c -k all # which mkosi 14 leaves out, as it would have dracut do it
for u in $DISABLE; do chroot "$TREE" systemctl -q disable "$u"; done
sh "$SCRIPTS/disk.sh"
rm -rf "$TREE"

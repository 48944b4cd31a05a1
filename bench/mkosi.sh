# Makes a role's image of Debian 12 with mkosi 14, Debian 12's version. Its own disks need a kernel with partition
# scanning, EFI, and dracut, so mkosi makes only the tree, and disk.sh the disk.
#   ARCHIVE   a local archive of the packages    PACKAGES  comma-separated    DISABLE  units
#   SCRIPTS   this folder                        TREE, DISK, BYTES, WORK: see disk.sh
set -eu
cd "$WORK"
# shellcheck disable=SC2046 # a list of words
mkosi --distribution=debian --release=bookworm --format=directory --with-docs=no --repository-key-check=no --nspawn-keep-unit=yes \
    --local-mirror="file:$ARCHIVE" --mirror=http://deb.debian.org/debian --workspace-dir="$WORK" --output="$TREE" \
    $(echo "$PACKAGES" | sed 's/\(^\|,\)/ --package=/g') build
chroot "$TREE" update-initramfs -c -k all # mkosi 14 skips it, because it relies on dracut
for u in $DISABLE; do chroot "$TREE" systemctl -q disable "$u"; done
sh "$SCRIPTS/disk.sh"
rm -rf "$TREE"

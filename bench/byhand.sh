# Makes a role's image of Debian 12 by hand: mmdebstrap with all of the packages at once, the rest in a chroot,
# and a disk. It uses the known optimisations: dpkg without fsync, no documentation, and no drivers that
# a virtual machine does not need.
#   ARCHIVE   a local archive of the packages    PACKAGES  comma-separated    DISABLE  units
#   SCRIPTS   this folder                        TREE, DISK, BYTES, WORK: see disk.sh
set -eu
mmdebstrap --quiet --variant=minbase --include="$PACKAGES" --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='force-unsafe-io' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/lib/modules/*/kernel/sound/*' --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/media/*' \
    --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/net/wireless/*' --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/bluetooth/*' \
    --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/infiniband/*' --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/gpu/drm/*/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    bookworm "$TREE" "deb [trusted=yes] copy:$ARCHIVE bookworm main"
for u in $DISABLE; do chroot "$TREE" systemctl -q disable "$u"; done
chroot "$TREE" systemctl -q enable systemd-networkd.service ssh.service
chroot "$TREE" passwd -q -l root
rm -rf "$TREE"/etc/ssh/ssh_host_* "$TREE"/var/lib/mysql/* "$TREE"/var/lib/glusterd/* "$TREE"/var/lib/apt/lists/* "$TREE"/etc/hostname
: >"$TREE/etc/machine-id"
find "$TREE/var/log" -type f -delete
sh "$SCRIPTS/disk.sh"
rm -rf "$TREE"

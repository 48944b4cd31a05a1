# Makes a role's image of a copy of the base. Runs as root in mount and process namespaces of its own.
#   DISK      copy of the base                   PACKAGES  to install, space-separated
#   BYTES     size that the disk is to have      LOCAL     folder of package files to install as well
#   WORK      empty folder to work in            USERS     name:uid:group:gid …
#   ARCHIVE   folder with the packages, and      DISABLE   units to disable
#             APT's lists of them                REMOVE    paths to remove, globs, below /
#   AGENT     the agent's binary                 FILES     folder with files to put in, as they are to lie below /
#   UNIT      file with the agent's unit         APT_CONF  file of APT settings for the bake
#   SOURCES   file of APT sources to leave       KEYS      keyrings that the sources name
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
mkdir "$root/tmp/archive" "$root/tmp/local"
mount --bind "$ARCHIVE" "$root/tmp/archive"
in_root() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }

step 'make users'
for u in $USERS; do
    name=${u%%:*} rest=${u#*:}
    uid=${rest%%:*} rest=${rest#*:}
    group=${rest%%:*} gid=${rest#*:}
    in_root getent group "$group" >/dev/null || in_root groupadd -g "$gid" "$group"
    in_root useradd -u "$uid" -g "$gid" -M -d /nonexistent -s /usr/sbin/nologin "$name"
done

# Nothing that a package brings may start here, nor at boot before the agent says so.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

# Some packages bring hooks for the initramfs, none of which this disk's root needs: making it anew takes as long as all else.
initramfs=$root/etc/initramfs-tools/update-initramfs.conf
sed -i 's/^update_initramfs=yes/update_initramfs=no/' "$initramfs"

step 'read the package lists'
echo 'deb [trusted=yes] file:/tmp/archive ./' >"$root/etc/apt/sources.list"
cp "$APT_CONF" "$root/etc/apt/apt.conf.d/90bake"
in_root apt-get -qq update

step 'install packages'
cp -r "$LOCAL/." "$root/tmp/local/"
files=$(cd "$root" && find tmp/local -name '*.deb' | sort | sed 's,^,/,')
# shellcheck disable=SC2086 # lists of words
in_root apt-get -qq -y install $PACKAGES $files
cp -r "$FILES/." "$root/"

step 'install the agent'
install -D -m 0755 "$AGENT" "$root/usr/local/sbin/imagegen-node"
install -D -m 0644 "$UNIT" "$root/etc/systemd/system/imagegen-node.service"
in_root systemctl -q enable imagegen-node.service
for u in $DISABLE; do in_root systemctl -q disable "$u"; done

step 'seal'
sed -i 's/^update_initramfs=no/update_initramfs=yes/' "$initramfs"
in_root dpkg-query -W -f '${Package}\t${Version}\t${Architecture}\n' >"$WORK/packages"
cp "$SOURCES" "$root/etc/apt/sources.list"
for k in $KEYS; do [ -e "$root$k" ] || install -D -m 0644 "$k" "$root$k"; done
umount "$root/tmp/archive" "$root/dev" "$root/sys" "$root/proc" "$root/tmp" "$root/run"
cd "$root"
rm -f usr/sbin/policy-rc.d etc/apt/apt.conf.d/90bake etc/ssh/ssh_host_* var/lib/systemd/random-seed etc/hostname
rm -f etc/udev/rules.d/70-persistent-net.rules var/lib/dbus/machine-id
: >etc/machine-id
: >etc/resolv.conf
rm -rf var/lib/cloud var/lib/mysql/* var/lib/glusterd/* var/lib/redis/* var/lib/apt/lists/* var/cache/apt/*.bin var/cache/debconf/*-old
rm -rf tmp/* var/tmp/* root/.bash_history root/.cache var/backups/*
find var/log -type f -delete
for p in $REMOVE; do rm -rf ".$p"; done # globs are wanted
in_root passwd -q -l root
cd /
fstrim "$root" || true # gives deleted blocks back to the file, where the host can
sync -f "$root"        # a write that failed, for want of space outside, is an error here and nowhere else
umount "$root"

step 'check'
e2fsck -f -n "$DISK?offset=1048576" >"$WORK/fsck" 2>&1 || { tail -n 5 "$WORK/fsck" >&2; exit 1; }

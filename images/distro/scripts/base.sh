# Makes the base of debian12: a tree with Debian and cloud-init, and a boot loader (extlinux) to go with it.
# Runs as root in namespaces of its own for mounts, processes and the network, so nothing of it outlives it.
#   RESULT    folder for the results             ARCHIVE   folder with the packages, and APT's lists of them
#   FS_UUID   that disks' file systems will have PACKAGES  to install, comma-separated
#   APT_CONF  file of APT settings               WORK      empty folder to work in
set -eu
umask 022
step() { echo "step: $*" >&3; }
root=$RESULT/root

# The initramfs has what finds the disk with the root file system, on hypervisors and on servers, and a keyboard. The default adds network cards
# and what only boards have, and starts a dozen programs for each module. INITRD=No: it is made once, at the end, not while the kernel is installed and once more after that.
mkdir "$WORK/initramfs"
echo 'MODULES=list' >"$WORK/initramfs/90-imagegen"
cat >"$WORK/initramfs/imagegen" <<'HOOK'
#!/bin/sh
# See initramfs-tools(7).
[ "$1" != prereqs ] || exit 0
set -e
files=$(cd "/lib/modules/$version/kernel/drivers" && find ata block message/fusion nvme/host pci/controller scsi usb/host usb/storage -name '*.ko*' -printf '%f\n')
{
    echo "$files" | sed 's/\.ko.*//'
    echo ext4 isofs virtio_pci virtio_mmio atkbd i8042 hid-generic usbhid hyperv-keyboard
} | xargs modprobe --all --set-version="$version" --quiet --show-depends | awk '$1 == "insmod" {print $2}' | sort -u | xargs cp -p --parents -t "$DESTDIR"
HOOK
chmod 755 "$WORK/initramfs/imagegen"

# A virtual machine has no sound, radio or graphics card: two thirds of the kernel's modules stay out.
step 'install Debian'
INITRD=No mmdebstrap --variant=minbase --include="$PACKAGES" --aptopt="$APT_CONF" \
    --dpkgopt='force-unsafe-io' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/lib/modules/*/kernel/sound/*' --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/media/*' \
    --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/net/wireless/*' --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/bluetooth/*' \
    --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/infiniband/*' --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/gpu/drm/*/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='copy-in "'"$WORK"'/initramfs/90-imagegen" /etc/initramfs-tools/conf.d' \
    --customize-hook='copy-in "'"$WORK"'/initramfs/imagegen" /etc/initramfs-tools/hooks' \
    --customize-hook='chroot "$1" update-initramfs -c -k all' \
    bookworm "$root" "deb [trusted=yes] copy:$ARCHIVE ./"

step 'configure the base'
cd "$root"
rm etc/apt/apt.conf.d/99mmdebstrap # APT_CONF: the bake's matter
: >etc/apt/sources.list

kernel=$(basename boot/vmlinuz-*)
version=${kernel#vmlinuz-}
mkdir -p boot/extlinux
cat >boot/extlinux/extlinux.conf <<CONF
SERIAL 0 115200
DEFAULT linux
PROMPT 0
TIMEOUT 1
LABEL linux
    LINUX /boot/vmlinuz-$version
    INITRD /boot/initrd.img-$version
    APPEND root=UUID=$FS_UUID ro net.ifnames=0 console=tty0 console=ttyS0,115200
CONF
echo "UUID=$FS_UUID / ext4 errors=remount-ro 0 1" >etc/fstab

cat >etc/cloud/cloud.cfg.d/90-imagegen.cfg <<'CONF'
# Only the seed counts, and only what it can ask for is run: each module costs time at every boot.
# There is no source None: without a seed it would be a new instance with new users and host keys. And a node is what the
# last seed made it until imagegen-seed has cloud-init forget that: without a seed there would be DHCP.
datasource_list: [NoCloud]
manual_cache_clean: true
system_info:
  network:
    renderers: [networkd]
cloud_init_modules: [bootcmd, write-files, growpart, resizefs, set_hostname, users-groups, ssh]
cloud_config_modules: [set-passwords, timezone, runcmd]
cloud_final_modules: [scripts-user, final-message]
CONF

# Otherwise ds-identify adds the source None at each boot.
echo 'policy: enabled' >etc/cloud/ds-identify.cfg

# sshd wants the host keys that cloud-init makes.
mkdir -p etc/systemd/system/ssh.service.d
printf '[Unit]\nAfter=cloud-init.service\n' >etc/systemd/system/ssh.service.d/90-imagegen.conf

# Addresses and routers are in the seed. While systemd-networkd asks for others, the boot waits, for 13 seconds.
mkdir -p etc/systemd/network/10-cloud-init-eth0.network.d
printf '[Network]\nIPv6AcceptRA=no\n' >etc/systemd/network/10-cloud-init-eth0.network.d/90-imagegen.conf

# The journal takes no more, however large the disk. Other logs are bounded by the agent.
mkdir -p etc/systemd/journald.conf.d
printf '[Journal]\nSystemMaxUse=64M\nRuntimeMaxUse=16M\n' >etc/systemd/journald.conf.d/90-imagegen.conf

chroot . systemctl -q enable systemd-networkd.service ssh.service
# An image does not change, so what tends a changing machine has nothing to do here.
chroot . systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
chroot . systemctl -q disable nftables.service 2>/dev/null || true # the agent loads the rules of the node
ln -sf /usr/share/zoneinfo/UTC etc/localtime

# extlinux installs itself on file systems that are mounted. Disks are not, so it is taken from one that is.
step 'take the boot loader'
cd /
truncate -s 16M "$WORK/loader"
mkfs.ext4 -q -F -O ^64bit,^metadata_csum "$WORK/loader"
mkdir "$WORK/mounted"
mount -o loop "$WORK/loader" "$WORK/mounted" # the loop device frees itself with the mount
mkdir -p "$WORK/mounted/boot/extlinux"
extlinux --install "$WORK/mounted/boot/extlinux"
cp "$WORK/mounted/boot/extlinux/ldlinux.sys" "$WORK/mounted/boot/extlinux/ldlinux.c32" "$root/boot/extlinux/"
umount "$WORK/mounted"
dd if="$WORK/loader" of="$RESULT/boot" bs=512 count=1 status=none
sync -f "$RESULT" # a write that failed is an error here at the latest

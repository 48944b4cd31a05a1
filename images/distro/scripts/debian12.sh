# Makes a role's image of Debian 12, from within: as root in a root file system that is to become one, chrooted or booted.
#   BAKE      folder with: archive/, the packages, and APT's lists of them; local/, package files; files/, to put in as
#             they are to lie below /; agent, the agent's binary; units/, its units; apt.conf, settings for the bake; sources,
#             to leave as sources.list; keys/, keyrings below their paths. The list of packages is left there as packages
#   PACKAGES  to install                          DISABLE     units to disable
#   USERS     name:uid:group:gid …                REMOVE      paths to remove, globs
#   KEYS      paths of the keyrings
set -eu
umask 022
export DEBIAN_FRONTEND=noninteractive
step() { echo "step: $*" >&3; }

step 'make users'
for u in $USERS; do
    name=${u%%:*} rest=${u#*:}
    uid=${rest%%:*} rest=${rest#*:}
    group=${rest%%:*} gid=${rest#*:}
    getent group "$group" >/dev/null || groupadd -g "$gid" "$group"
    useradd -u "$uid" -g "$gid" -M -d /nonexistent -s /usr/sbin/nologin "$name"
done

# Nothing that a package brings may start here, nor at boot before the agent says so.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d

# Some packages bring hooks for the initramfs, none of which this disk's root needs. Making it anew would take some seconds of each image.
initramfs=/etc/initramfs-tools/update-initramfs.conf
sed -i 's/^update_initramfs=yes/update_initramfs=no/' $initramfs

step 'read the package lists'
echo "deb [trusted=yes] file:$BAKE/archive ./" >/etc/apt/sources.list
cp "$BAKE/apt.conf" /etc/apt/apt.conf.d/90bake
apt-get -qq update

step 'install packages'
# shellcheck disable=SC2046,SC2086 # lists of words
apt-get -qq -y install $PACKAGES $(find "$BAKE/local" -name '*.deb' | sort)
cp -r "$BAKE/files/." /

step 'install the agent'
install -D -m 0755 "$BAKE/agent" /usr/local/sbin/imagegen-node
install -D -m 0644 "$BAKE/identity" /usr/local/share/imagegen/image # which the agent reports
for u in "$BAKE"/units/*; do
    install -D -m 0644 "$u" "/etc/systemd/system/${u##*/}"
    systemctl -q enable "${u##*/}"
done
cat >/etc/cloud/cloud.cfg.d/91-imagegen-seed.cfg <<'CONF'
# imagegen-seed looks for the seed, and shows it to cloud-init where it looks anyway.
datasource: {NoCloud: {fs_label: null}}
# Each stage of cloud-init is a program, which takes most of its time to start: the first does everything, before the network is up.
cloud_init_modules: [bootcmd, write-files, growpart, resizefs, set_hostname, users-groups, ssh, set-passwords, timezone, final-message]
cloud_config_modules: []
cloud_final_modules: []
CONF
systemctl -q mask cloud-init.service cloud-config.service cloud-final.service
for u in $DISABLE; do systemctl -q disable "$u"; done

step 'seal'
sed -i 's/^update_initramfs=no/update_initramfs=yes/' $initramfs
dpkg-query -W -f '${Package}\t${Version}\t${Architecture}\t${source:Package}@${source:Version}\t${Maintainer}\n' >"$BAKE/packages"
cp "$BAKE/sources" /etc/apt/sources.list
for k in $KEYS; do [ -e "$k" ] || install -D -m 0644 "$BAKE/keys$k" "$k"; done
rm -f /usr/sbin/policy-rc.d /etc/apt/apt.conf.d/90bake /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /etc/hostname
rm -f /etc/udev/rules.d/70-persistent-net.rules /var/lib/dbus/machine-id
: >/etc/machine-id
: >/etc/resolv.conf
rm -rf /var/lib/cloud /var/lib/mysql/* /var/lib/glusterd/* /var/lib/redis/* /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old
rm -rf /tmp/* /var/tmp/* /root/.bash_history /root/.cache /var/backups/*
find /var/log -type f -delete
# Globs are wanted. What a link leads to is left alone when it is on one of the mounts, such as the build host's /dev.
for p in $REMOVE; do
    [ "$(stat -L -c %d "${p%/*}/" 2>/dev/null)" != "$(stat -c %d /)" ] || rm -rf --one-file-system "$p"
done
passwd -q -l root

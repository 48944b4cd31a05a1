#!/bin/sh
# Turns one machine on: systemd-nspawn on the image, with the machine's own changes laid over it.
#
# It runs as root in the machine's folder and cgroup, and in new mount and network namespaces. Everything that it sets up is
# inside these, so the kernel removes it with the machine's last process, however that ends.
#
# Messages go to standard error, which the caller reads to its end. A last line "not on" means failure; without it, messages are
# warnings. Standard output is the machine's console.
set -eu

node=$1
mac=$2
lab=$3    # network namespace of the cluster
port=$4   # name of the machine's port on the bridge there
bridge=$5 # name of the bridge
image=$6  # loop device with the root file system of the image
data=$7   # loop device with the data disk; empty: none

trap 'echo "not on" >&2' EXIT

# The network card and its cable. The kernel may not have removed the previous one yet.
ip -n "$lab" link delete "$port" 2>/dev/null || true
ip link add eth0 address "$mac" type veth peer name "$port" netns "$lab"
ip -n "$lab" link set "$port" master "$bridge" up

# Mounts that others have made (the disk of a bake, another lab) would stay busy as long as the machine runs.
mounts=$(cat /proc/self/mounts)
while read -r device point type _; do
	case $type:$device in overlay:* | *:/dev/loop*) ;; *) continue ;; esac
	point=$(printf %b "$point")
	case $PWD/ in "${point%/}"/*) continue ;; esac
	case $point in /usr | /usr/* | /etc | /dev | /dev/*) continue ;; esac
	umount -l "$point" 2>/dev/null || true # with its parent, perhaps
done <<EOF
$mounts
EOF

# The machine has Debian's default layout of cgroups, also on hosts with the hybrid one.
if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then
	umount -l /sys/fs/cgroup
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi

mount -t ext4 -o ro "$image" image
mount -t overlay -o lowerdir=image,upperdir=upper,workdir=work overlay root
mount -t tmpfs tmpfs /run # nspawn leaves files there when it is killed
mkdir /run/seed
mount --bind seed /run/seed

trap - EXIT
# This network namespace is the machine's: nspawn shares it, and lets the machine set its kernel parameters.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
# Nobody can log in on the console. The masked units would use four of the host's inotify instances for every machine; there are
# 128 by default.
exec systemd-nspawn --quiet --boot --directory=root --machine="$node" --settings=no --register=no --keep-unit \
	--console=read-only --link-journal=no --resolv-conf=off --timezone=off \
	--capability=CAP_NET_ADMIN --drop-capability=CAP_MKNOD --bind=/dev/fuse \
	--bind-ro=/run/seed:/var/lib/cloud/seed/nocloud ${data:+--bind="$data":/dev/imagegen-data} \
	-- systemd.mask=console-getty.service systemd.mask=systemd-logind.service \
	systemd.mask=systemd-ask-password-console.path systemd.mask=systemd-ask-password-wall.path \
	2>&1

#!/bin/sh
# Turns one node of the lab on: systemd-nspawn on the image, with the node's own changes laid over it.
#
# It runs as root in the node's folder, in the node's cgroup and in fresh mount and network namespaces. All that it
# sets up is inside these, so the kernel takes it away with the node's last process, however that ends.
#
# Messages go to standard error, which whoever turns the node on reads to its end. A last line "not on" tells failure
# from a mere warning. Standard output is the node's console.
set -eu

node=$1
mac=$2
lab=$3   # network namespace of the cluster
port=$4  # name of the node's port on the bridge there
image=$5 # loop device with the root file system of the image
data=$6  # loop device with the data disk; empty: none

trap 'echo "not on" >&2' EXIT

# The network card and its cable. The kernel may not have got round to taking the last one away.
ip -n "$lab" link delete "$port" 2>/dev/null || true
ip link add eth0 address "$mac" type veth peer name "$port" netns "$lab"
ip -n "$lab" link set "$port" master br0 up

# Mounts that others have made just now (the disk of a bake, another lab) would stay busy as long as the node runs.
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

# The node has Debian's own layout of cgroups, also where the host mixes it with the old one.
if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then
	umount -l /sys/fs/cgroup
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi

mount -t ext4 -o ro "$image" image
mount -t overlay -o lowerdir=image,upperdir=upper,workdir=work overlay root
mount -t tmpfs tmpfs /run # whatever nspawn leaves there when it is killed
mkdir /run/seed
mount --bind seed /run/seed

trap - EXIT
# The network is the node's own already: nspawn is told to share it, and to let the node set its kernel parameters.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
# Nobody can log in on the console. What waits there all the same would take four of the machine's inotify instances in
# every node, of which there are 128 by default.
exec systemd-nspawn --quiet --boot --directory=root --machine="$node" --settings=no --register=no --keep-unit \
	--console=read-only --link-journal=no --resolv-conf=off --timezone=off \
	--capability=CAP_NET_ADMIN --drop-capability=CAP_MKNOD --bind=/dev/fuse \
	--bind-ro=/run/seed:/var/lib/cloud/seed/nocloud ${data:+--bind="$data":/dev/imagegen-data} \
	-- systemd.mask=console-getty.service systemd.mask=systemd-logind.service \
	systemd.mask=systemd-ask-password-console.path systemd.mask=systemd-ask-password-wall.path \
	2>&1

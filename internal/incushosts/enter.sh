# Runs an Incus daemon as if on a machine of its own: with a root file system, a network namespace and a cgroup. It uses pivot_root,
# because lxcfs and Incus resolve paths through a plain chroot.
# usage: enter.sh ROOT FOLDER NETNS CGROUP NAME        ROOT is not changed; FOLDER holds what the host writes
root=$1 dir=$2 netns=$3 cgroup=$4 name=$5
echo $$ >"$cgroup/cgroup.procs" || exit 1
exec ip netns exec "$netns" unshare --mount --pid --fork --cgroup --uts --kill-child --propagation private sh -ec '
root=$1 dir=$2 name=$3
hostname "$name"
mount -t overlay -o "lowerdir=$root,upperdir=$dir/upper,workdir=$dir/work" overlay "$dir/root"
mount --bind "$dir/incus" "$dir/root/var/lib/incus"
cd "$dir/root"
mount -t proc proc proc
mount -t sysfs sys sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir -p run/lock run/incus var/lib/lxcfs var/log/incus oldroot
pivot_root . oldroot
umount -l /oldroot
cd /
export PATH=/usr/libexec/incus:/usr/sbin:/usr/bin:/sbin:/bin
lxcfs /var/lib/lxcfs >/var/log/lxcfs.log 2>&1 &
exec incusd --logfile /var/log/incus/incus.log
' enter "$root" "$dir" "$name"

# Boots a container: IMAGE DIR [SEED]. DIR/upper keeps the node's changes. At the end of its boot the node writes the output of
# the script REPORT to upper/report. With ALONE only cloud-init runs.
# Needs its own mount, network and PID namespaces.
set -eu
image=$1 dir=$2 seed=${3-}
cd "$dir"
mkdir -p image upper work root
chmod 755 upper
ip link set lo up
ip link add eth0 address "$(sed -n 's/.*mac_address: "\{0,1\}\([0-9a-f:]*\).*/\1/p' "${seed:-.}/network-config" upper/var/lib/imagegen/seed/network-config 2>/dev/null |
    grep . | tail -n 1 | grep . || echo 52:54:00:00:00:01)" type veth peer name peer0
ip link set peer0 up
if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then
    umount -l /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount -o ro,loop,offset=1048576 "$image" image
mount -t overlay -o lowerdir=image,upperdir=upper,workdir=work overlay root

mkdir -p root/etc/systemd/system/multi-user.target.wants
cat >root/etc/systemd/system/report.service <<'UNIT'
[Unit]
After=imagegen-seed-applied.service cloud-config.service network-online.target ssh.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sh /etc/report.sh >/report.new 2>&1; mv /report.new /report'
UNIT
ln -sf ../report.service root/etc/systemd/system/multi-user.target.wants/report.service
printf '%s' "$REPORT" >root/etc/report.sh
if [ -n "${ALONE-}" ]; then
    mount -t proc proc root/proc
    mount -t sysfs sysfs root/sys
    for dir in run dev; do mount -t tmpfs tmpfs root/$dir; done
    for node in null:3 random:8 urandom:9; do mknod -m 666 "root/dev/${node%:*}" c 1 "${node#*:}"; done
    chroot root sh -c 'cloud-init init --local; cloud-init init; sh /etc/report.sh >/report.new 2>&1; mv /report.new /report'
    exec sleep infinity
fi
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec systemd-nspawn --quiet --boot --directory=root --machine=seedtest --settings=no --register=no --keep-unit \
    --console=read-only --link-journal=no --resolv-conf=off --timezone=off --capability=CAP_NET_ADMIN --drop-capability=CAP_MKNOD \
    ${seed:+--bind-ro="$seed":/var/lib/cloud/seed/nocloud} \
    -- systemd.mask=console-getty.service systemd.mask=systemd-logind.service

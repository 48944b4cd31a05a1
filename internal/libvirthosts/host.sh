# A host: sh -c SCRIPT host FOLDER. Its libvirtd has folders of its own in the places of the machine's.
set -e
cd "$1"
mkdir -p run lib cache log etc /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt
mount --bind run /run/libvirt
mount --bind lib /var/lib/libvirt
mount --bind cache /var/cache/libvirt
mount --bind log /var/log/libvirt
cat >etc/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
stdio_handler = "file"
END
mount --bind etc /etc/libvirt
ip link set lo up
ip link add br0 type bridge
ip link set br0 up
# Not exec: the first process of a process namespace must wait for orphans, which sh does.
libvirtd -p /run/libvirt/libvirtd.pid

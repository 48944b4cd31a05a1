# A host: sh -c SCRIPT host FOLDER. Its libvirtd has its own folders mounted over the machine's.
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
# Not exec: the init of a PID namespace must reap orphans, which sh does.
libvirtd -p /run/libvirt/libvirtd.pid

# Runs the script for an image in a VM that was booted for it. From cloud-init, as root.
#   What it reads is a tar archive on a disk of its own, whose first member is called imagegen-bake. What it has made goes as a
#   tar archive to the disk that begins with imagegen-made. What it does, and what the programs print, goes to the second serial
#   port: the first is the console's. Lines that begin with "imagegen-bake: " are for imagegen.
#   In the archive is the folder for the script, and in it:
#   env       variables: LOWER, if the image is a tree on top of a base, is the UUID of the file system that has the base;
#             proxies
#   layer     with LOWER: the script that makes the tree and runs the folder's script in it
set -eu
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C HOME=/root
stty -F /dev/ttyS1 115200 raw -echo
exec >/dev/ttyS1 2>&1 </dev/null
say() { printf '\nimagegen-bake: %s\n' "$*"; }

# Nothing is written any more, and no service gets to leave anything behind. Then the machine goes off, which takes a moment.
end() {
    trap - EXIT
    sync
    say "$@"
    echo u >/proc/sysrq-trigger
    until grep -q '^[^ ]* / [^ ]* ro[, ]' /proc/mounts; do sleep 0.1; done
    sync # waits for those who are at it
    echo o >/proc/sysrq-trigger
    while :; do sleep 60; done
}
trap 'end failed $?' EXIT

# The disk that begins with a word.
find_disk() {
    for disk in /dev/vd? /dev/sd? /dev/hd?; do
        [ "$(dd if="$disk" bs=13 count=1 2>/dev/null | tr -d '\0')" = "$1" ] || continue
        echo "$disk"
        return
    done
    echo "no disk begins with $1" >&2
    return 1
}

say 'step copy what is to go in'
BAKE=/run/imagegen-bake
mkdir $BAKE
mount -t tmpfs -o size=90%,mode=755 tmpfs $BAKE
disk=$(find_disk imagegen-bake)
tar -x -f "$disk" -C $BAKE
made=$(find_disk imagegen-made)
LOWER=
set -a
# shellcheck disable=SC1091 # it was in the archive
. $BAKE/env
set +a

# The script's steps come through a pipe; its end is what counts, and not that of the pipe's other side.
mkfifo /run/imagegen-steps
while read -r line; do say "${line%%: *} ${line#*: }"; done </run/imagegen-steps &
status=0
what="-C $BAKE packages"
if [ -n "$LOWER" ]; then
    # The base once more, as it was before this VM booted from it.
    WORK=/var/tmp/imagegen-bake
    mkdir $WORK $WORK/base $WORK/upper
    mount -o ro "UUID=$LOWER" $WORK/base
    env BASE=$WORK/base UPPER=$WORK/upper BAKE=$BAKE WORK=$WORK \
        unshare --mount --propagation private --pid --fork --kill-child --mount-proc --net sh $BAKE/layer 3>/run/imagegen-steps || status=$?
    [ ! -e $WORK/whole ] || what="-C $WORK whole $what"
    what="-C $WORK upper $what"
else
    env BAKE=$BAKE sh $BAKE/script 3>/run/imagegen-steps || status=$?
    # What this boot has left that one without a node in it would not have.
    rm -f /etc/systemd/network/10-cloud-init-*.network /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init
    rm -f /etc/sudoers.d/90-cloud-init-users /etc/ssh/sshd_config.d/50-cloud-init.conf /etc/.updated /var/.updated
    rm -f /etc/sysconfig/network-scripts/ifcfg-eth0
    find /tmp -xdev -mindepth 1 -delete
    rm -rf /var/lib/systemd/timers /var/lib/systemd/timesync /var/lib/systemd/linger /var/lib/private /root/.ssh
fi
wait $!
[ $status = 0 ] || end failed $status

# The list of packages is last: an archive that has it is whole.
say 'step bring out what was made'
# shellcheck disable=SC2086 # words
tar --xattrs --xattrs-include='*' --numeric-owner -cf "$made" $what
if [ -z "$LOWER" ] && command -v fstrim >/dev/null; then fstrim / || true; fi # gives deleted blocks back to the file, where the hypervisor can
end "done"

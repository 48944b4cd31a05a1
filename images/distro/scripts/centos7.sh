# Makes a role's image of CentOS 7, from within: as root in a root file system that is to become one, chrooted or booted.
# For sh, which is bash 4.2 there.
#   BAKE      folder with: base/, package files that every image gets, and role/, those that this one gets then; local/, package
#             files of the spec; files/, to put in as they are to lie below /; agent, the agent's binary; units/, its units.
#             The list of packages is left there as packages
#   DISABLE   units to disable                    REMOVE      paths to remove, globs
#   USERS     name:uid:group:gid …                SELINUX     enforcing or permissive
#   BOOLEANS  of SELinux, to switch on            PORTS       for SELinux, type:protocol:port …
#   DOMAINS   of SELinux, never held back
set -eu
step() { echo "step: $*" >&3; }

# All that is pinned is here, and no repository is asked. Those that the disk has, and that packages bring, are dead anyway.
install_files() {
    [ $# -gt 0 ] || return 0
    yum -y -q --disablerepo='*' install "$@"
    for p in $(rpm -qp --nosignature --queryformat '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH} ' "$@"); do
        rpm -q --quiet "$p" || { echo "yum has not installed $p"; exit 1; }
    done
}

step 'make users'
for u in $USERS; do
    name=${u%%:*} rest=${u#*:}
    uid=${rest%%:*} rest=${rest#*:}
    group=${rest%%:*} gid=${rest#*:}
    getent group "$group" >/dev/null || groupadd -g "$gid" "$group"
    useradd -u "$uid" -g "$gid" -M -d /nonexistent -s /sbin/nologin "$name"
done

step 'install packages'
# shellcheck disable=SC2046 # lists of words
install_files $(find "$BAKE/base" -name '*.rpm' | LC_ALL=C sort)
# shellcheck disable=SC2046
install_files $(find "$BAKE/role" "$BAKE/local" -name '*.rpm' | LC_ALL=C sort)
cp -r "$BAKE/files/." /

step 'configure'
cat >/etc/cloud/cloud.cfg.d/90-imagegen.cfg <<'CONF'
# Only the seed counts, and only what it can ask for is run: each module costs time at every boot.
# There is no source None: without a seed it would be a new instance with new users and host keys. And a node is what the
# last seed made it until imagegen-seed has cloud-init forget that: without a seed there would be DHCP. NoCloud itself
# looks at no device: imagegen-seed does.
datasource_list: [NoCloud]
manual_cache_clean: true
datasource: {NoCloud: {fs_label: null}}
cloud_init_modules: [bootcmd, write-files, growpart, resizefs, set_hostname, users-groups, ssh]
cloud_config_modules: [set-passwords, timezone, runcmd]
cloud_final_modules: [scripts-user, final-message]
CONF
# The journal takes no more, however large the disk. Other logs are bounded by the agent.
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nSystemMaxUse=64M\nRuntimeMaxUse=16M\n' >/etc/systemd/journald.conf.d/90-imagegen.conf
# Otherwise ds-identify adds the source None at each boot.
echo 'policy: enabled' >/etc/cloud/ds-identify.cfg
systemctl -q enable chronyd.service sshd.service
systemctl -q disable iptables.service ip6tables.service # the agent loads the rules of the node
for u in $DISABLE; do systemctl -q disable "$u"; done

step 'install the agent'
mkdir -p /usr/local/sbin /usr/local/share/imagegen
cp "$BAKE/agent" /usr/local/sbin/imagegen-node
chmod 755 /usr/local/sbin/imagegen-node
cp "$BAKE/identity" /usr/local/share/imagegen/image # which the agent reports
chmod 644 /usr/local/share/imagegen/image
for u in "$BAKE"/units/*; do
    cp "$u" /etc/systemd/system/
    chmod 644 "/etc/systemd/system/${u##*/}"
    systemctl -q enable "${u##*/}"
done

step 'set SELinux'
sed -i "s/^SELINUX=.*/SELINUX=$SELINUX/" /etc/selinux/config
grep -qx "SELINUX=$SELINUX" /etc/selinux/config || { echo 'there is no SELINUX= in /etc/selinux/config'; exit 1; }
for b in $BOOLEANS; do semanage boolean -m --on "$b"; done
for p in $PORTS; do
    type=${p%%:*} rest=${p#*:}
    # One that the policy has given to others already is taken from them.
    semanage port -a -t "$type" -p "${rest%%:*}" "${rest#*:}" 2>/dev/null || semanage port -m -t "$type" -p "${rest%%:*}" "${rest#*:}"
done
for d in $DOMAINS; do semanage permissive -a "$d"; done
# Cloud-init (cloud_init_t) reads imagegen-seed's copy of the seed. What is made in these folders gets their label.
semanage fcontext -a -e /var/lib/cloud /var/lib/imagegen/seeds

step 'seal'
rpm -qa --queryformat '%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%{ARCH}\t%{SOURCERPM}\t%{VENDOR}\n' | grep -v '^gpg-pubkey' | LC_ALL=C sort >"$BAKE/packages"
rm -rf /var/cache/yum/* /etc/yum.repos.d/*.repo
rm -f /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /etc/hostname /etc/udev/rules.d/70-persistent-*.rules /var/lib/dbus/machine-id
for f in /etc/sysconfig/network-scripts/ifcfg-*; do [ ! -e "$f" ] || sed -i '/^HWADDR=/d; /^UUID=/d' "$f"; done
: >/etc/machine-id
: >/etc/resolv.conf
rm -rf /var/lib/cloud /var/lib/mysql/* /var/lib/glusterd/* /var/lib/redis/* /var/lib/proxysql/* /var/lib/dhclient/* /var/tmp/*
mkdir -p /var/lib/cloud /var/lib/imagegen/seeds
chmod 700 /var/lib/imagegen/seeds
rm -rf /root/.bash_history /root/.ssh /root/anaconda-ks.cfg /root/original-ks.cfg
# Emptied rather than removed: mysqld may write to its log, and not make it.
find /var/log -type f -exec truncate -s 0 {} +
# Globs are wanted. What a link leads to is left alone when it is on one of the mounts, such as the build host's /dev.
for p in $REMOVE; do
    [ "$(stat -L -c %d "${p%/*}/" 2>/dev/null)" != "$(stat -c %d /)" ] || rm -rf --one-file-system "$p"
done
passwd -l root >/dev/null

# What was written without SELinux has no label, and an enforced policy lets nobody read it. Last, therefore.
step 'label files'
setfiles -F -e /proc -e /sys -e /dev -e /run -e /tmp -e "$BAKE" /etc/selinux/targeted/contexts/files/file_contexts /

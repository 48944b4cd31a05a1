# Prints what must not change with a node's seed, one item per line.
ip -4 -o address show dev eth0 | awk '{print $4}' | tr '\n' ' '; echo
grep -hE '^(Address|DHCP)=' /etc/systemd/network/10-cloud-init-*.network | tr '\n' ' '; echo
cat /var/lib/cloud/data/instance-id
sha256sum </etc/ssh/ssh_host_ed25519_key
cut -d: -f1 /etc/passwd | tr '\n' ' '; echo
hostname
readlink /etc/localtime
grep -o '"name": *"[^"]*"' /etc/imagegen/node.json | head -n 1 | cut -d '"' -f 4

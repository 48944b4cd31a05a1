package roles

import (
	"strings"
	"testing"

	"imagegen/cluster"
)

// together is what several nodes get, on one machine; the first one's file wins where two have the same.
func together(t *testing.T, c *Catalogue, s *cluster.Spec, nodes ...string) []RenderedFile {
	t.Helper()
	var files []RenderedFile
	seen := map[string]bool{}
	for _, n := range nodes {
		r, err := c.Render(s, testSecrets(c, s), n)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range r.Files {
			if !seen[f.Path] {
				files = append(files, f)
			}
			seen[f.Path] = true
		}
	}
	return files
}

// TestPagesAreServed asks HAProxy for pages that nginx and PHP-FPM make, all with the rendered configurations.
func TestPagesAreServed(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "nginx", "php-fpm8.2", "curl"} {
		needProgram(t, p)
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("web1")
	out, err := inSandbox(t, n, together(t, c, s, "web1", "backend1", "balancer1"), `
# balancer1's, backend1's and the virtual address; backend2 and web2 are down
for a in 39 40 47; do ip addr add 192.168.10.$a/32 dev eth0; done
site=/mnt/gluster/wordpress
mkdir -p /var/log /var/lib/nginx /var/lib/haproxy/dev /run/php
sed -i "s/listen 80 /listen $IP:80 /" /etc/nginx/nginx.conf # elsewhere, HAProxy has a machine of its own
# and nginx's packets come from its own address
ip route replace local 192.168.10.47 dev eth0 src $IP table local
nginx 2>nginx.log # there is no journal here
haproxy -D -f /etc/haproxy/haproxy.cfg
php-fpm8.2 --daemonize --fpm-config /etc/php/8.2/fpm/php-fpm.conf
ask() { curl -s -o body -w '%{http_code}' --compressed "$@"; }
is() { want=$1; shift; got=$(ask "$@") || true; [ "$got" = "$want" ] || { echo "$* answers $got, want $want"; cat body; exit 1; }; }
until_is() { for i in $(seq 100); do [ "$(ask "$2")" = "$1" ] && return; sleep 0.1; done; echo "$2 never answers $1"; exit 1; }
vip=http://192.168.10.39

is 503 http://192.168.10.42/nginx-health
until_is 503 $vip/
mkdir -p $site/wp-content/uploads
echo '<?php echo "page of ", $_SERVER["REMOTE_ADDR"], " ", $_SERVER["REQUEST_URI"], " ", ini_get("session.save_handler"), " ", ini_get("session.save_path");' >$site/index.php
echo '<?php echo "password";' | tee $site/wp-config.php >$site/wp-content/uploads/x.php
echo password >$site/.htpasswd
seq 1000 >$site/a.css
is 200 http://192.168.10.42/nginx-health
until_is 200 $vip/
is 200 $vip/some/post/?p=1
grep -F '/some/post/?p=1 redis tcp://192.168.10.53:6379?auth=' body
is 200 --interface 192.168.10.40 -H 'X-Forwarded-For: 6.6.6.6, 1.2.3.4' http://192.168.10.42/; grep 'page of 1.2.3.4 ' body
is 200 --interface 192.168.10.47 -H 'X-Forwarded-For: 1.2.3.4' http://192.168.10.42/; grep 'page of 192.168.10.47 ' body
for path in /wp-config.php /.htpasswd /wp-content/uploads/x.php; do is 403 $vip$path; not grep -q password body; done
is 200 $vip/.well-known/x
is 404 $vip/nothing.php
curl -s -H 'Accept-Encoding: gzip' $vip/a.css | gzip -t
is 401 "$vip/haproxy?stats"
pw=$(sed -n 's/ *stats auth admin://p' /etc/haproxy/haproxy.cfg)
is 200 -u "admin:$pw" "$vip/haproxy?stats"
ip addr add 10.1.1.1/32 dev eth0 # from outside
is 200 --interface 10.1.1.1 $vip/
is 403 --interface 10.1.1.1 -u "admin:$pw" "$vip/haproxy?stats"
is 200 http://127.0.0.1:8404/alive
not ask http://192.168.10.40/
for i in $(seq 20); do is 200 $vip/; done # half of them meet the dead backend first
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestRedisMasterIsFound asks the data balancer for Redis while the first server is a replica and the second one the
// master, then after they have changed places.
func TestRedisMasterIsFound(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "redis-server"} {
		needProgram(t, p)
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("redis1")
	files := together(t, c, s, "redis1", "balancer3")
	r2, err := c.Render(s, testSecrets(c, s), "redis2")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r2.Files {
		if strings.HasSuffix(f.Path, "redis.conf") {
			f.Path = "/etc/redis/second.conf"
			f.Content = []byte(strings.NewReplacer("127.0.0.1", "", "/var/lib/redis", "/tmp/second").Replace(string(f.Content)))
			files = append(files, f)
		}
	}
	out, err := inSandbox(t, n, files, `
for a in 50 53; do ip addr add 192.168.10.$a/32 dev eth0; done
mkdir -p /var/lib/haproxy second
pw=$(sed -n 's/^requirepass //p' /etc/redis/second.conf)
{ cat /etc/redis/imagegen-redis.conf; echo replicaof 192.168.10.50 6379; } >one.conf
redis-server one.conf >one.log 2>&1 & redis-server /etc/redis/second.conf >two.log 2>&1 &
haproxy -D -f /etc/haproxy/haproxy.cfg
export REDISCLI_AUTH=$pw
served_by() { for i in $(seq 150); do redis-cli -h 192.168.10.53 set k v 2>/dev/null | grep -q OK && [ "$(redis-cli -h $1 role | head -n 1)" = master ] && return; sleep 0.1; done; cat one.log two.log; exit 1; }
served_by 192.168.10.50
# A client that is connected when its server stops being the master is cut off, not left with a replica.
(echo 'client setname old'; sleep 20) | redis-cli -h 192.168.10.53 >/dev/null 2>&1 &
for i in $(seq 100); do redis-cli -h 192.168.10.50 client list | grep -q name=old && break; sleep 0.1; done
redis-cli -h 192.168.10.49 replicaof no one
redis-cli -h 192.168.10.50 replicaof 192.168.10.49 6379
served_by 192.168.10.49
for i in $(seq 50); do redis-cli -h 192.168.10.50 client list | grep -q name=old || exit 0; sleep 0.1; done
echo 'the old client is still there'; exit 1
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestVIPMoves runs both balancers, each in a network namespace of its own on one bridge, and takes HAProxy and then
// a whole node away from under the virtual address.
func TestVIPMoves(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "keepalived", "nft", "curl"} {
		needProgram(t, p)
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("balancer1")
	files := together(t, c, s, "balancer1")
	second, err := c.Render(s, testSecrets(c, s), "balancer2")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range second.Files {
		if strings.HasSuffix(f.Path, ".conf") && f.Check == "keepalived" || f.Check == "haproxy" {
			f.Path = "/etc/second/" + f.Check
			files = append(files, f)
		}
	}
	out, err := inSandbox(t, n, files, `
printf '#!/bin/sh\nexec curl -fs -o /dev/null -m 1 "$2"\n' >/usr/local/sbin/imagegen-node
mkdir -p /var/lib/haproxy
echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind
unshare --net sleep 600 & b=$!
for i in $(seq 100); do [ "$(readlink /proc/$b/ns/net)" != "$(readlink /proc/self/ns/net)" ] && break; sleep 0.02; done
second() { nsenter --net=/proc/$b/ns/net "$@"; }
ip link add port type veth peer name eth0 netns $b
ip link set port master eth0 up
second sh -euc 'ip link set lo up; ip link set eth0 up; ip addr add 192.168.10.41/24 dev eth0; echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind'
haproxy -D -p a.pid -f /etc/haproxy/haproxy.cfg
second haproxy -D -p b.pid -f /etc/second/haproxy
keepalived -n -l -D -p ka -r kav -f /etc/keepalived/keepalived.conf >a.log 2>&1 &
touch b.log
has() { case $1 in a) ip -o addr show eth0;; b) second ip -o addr show eth0;; esac | grep -q 192.168.10.39/; }
now() { date +%s%N; }
# holder X: X alone gets the address, in at most 6 s (busy machines); prints how long it took.
holder() { start=$(now); other=a; [ $1 = a ] && other=b
  while ! has $1 || has $other; do [ $(( ($(now) - start) / 1000000000 )) -lt 12 ] || { echo "$1 does not get the address: $2"; cat a.log b.log; exit 1; }; sleep 0.05; done
  echo "MOVED $2: $(( ($(now) - start) / 1000000 )) ms"; }
holder a 'at the start'
second keepalived -n -l -D -p kb -r kbv -f /etc/second/keepalived >b.log 2>&1 &
for i in $(seq 100); do grep -q 'Entering BACKUP STATE' b.log && break; sleep 0.05; done
kill -9 $(cat a.pid)
holder b 'HAProxy killed'
haproxy -D -p a.pid -f /etc/haproxy/haproxy.cfg
for i in $(seq 80); do has b || { echo 'it went back'; exit 1; }; sleep 0.05; done
# the network falls in two, the address on the other side
nft 'add table ip cut; add chain ip cut in { type filter hook input priority 0; }; add rule ip cut in ip saddr 192.168.10.41 drop'
nft 'add chain ip cut out { type filter hook output priority 0; }; add rule ip cut out ip daddr 192.168.10.41 drop'
holder_alone() { start=$(now); while ! has a; do [ $(( ($(now) - start) / 1000000000 )) -lt 12 ] || { cat a.log; exit 1; }; sleep 0.05; done; echo "MOVED peer not heard: $(( ($(now) - start) / 1000000 )) ms"; }
holder_alone
nft delete table ip cut # and is one again, with one holder
for i in $(seq 200); do if has a && has b; then sleep 0.05; else break; fi; done
if has a && has b; then echo 'two holders'; exit 1; fi
has a || has b
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "MOVED") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

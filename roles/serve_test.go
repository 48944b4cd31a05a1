package roles

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/internal/testkit"
)

// together returns the files of several nodes for one sandbox; if two nodes have the same file, the first node's wins.
func together(t *testing.T, c *Catalogue, s *cluster.Spec, sec *secrets.Secrets, nodes ...string) []RenderedFile {
	t.Helper()
	var files []RenderedFile
	seen := map[string]bool{}
	for _, n := range nodes {
		r, err := c.Render(s, sec, n)
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

// TestPagesAreServed requests pages through HAProxy from nginx and PHP-FPM, all with the rendered configuration.
func TestPagesAreServed(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "nginx", "php-fpm8.2", "curl"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("web1")
	out, err := inSandbox(t, n, together(t, c, s, testSecrets(c, s), "web1", "backend1", "balancer1"), `
# balancer1's, backend1's and the virtual address; backend2 and web2 are down
for a in 39 40 47; do ip addr add 192.168.10.$a/32 dev eth0; done
core=/usr/share/wordpress
volume=/mnt/gluster/wordpress
mount -t tmpfs core $core # instead of this machine's
mkdir -p /var/log /var/lib/nginx /var/lib/haproxy/dev /run/php
sed -i "s/listen 80 /listen $IP:80 /" /etc/nginx/nginx.conf # elsewhere, HAProxy has a machine of its own
sed -i 's/timeout check 1s/timeout check 1m/' /etc/haproxy/haproxy.cfg # this one may be too busy to answer checks in a second
# and nginx's packets come from its own address
ip route replace local 192.168.10.47 dev eth0 src $IP table local
# What an update may do to the package's files.
echo 'fastcgi_param HTTP_HOST $host; fastcgi_param SCRIPT_NAME updated;' | tee /etc/nginx/fastcgi_params >/etc/nginx/fastcgi.conf
echo 'types { text/updated css js; }' >/etc/nginx/mime.types
ini=/etc/php/8.2/fpm/conf.d/90-imagegen.ini
sed -n 's/^\([a-z_.]*\) *=.*/\1 = 7/p' $ini >>/etc/php/8.2/fpm/php.ini
# A busy machine takes its time, and each worker has a memory of its own.
sed -i 's/open_file_cache_valid 30s/open_file_cache_valid 1h/; s/^worker_processes auto/worker_processes 1/' /etc/nginx/nginx.conf
nginx 2>nginx.log # there is no journal here
haproxy -D -f /etc/haproxy/haproxy.cfg
php-fpm8.2 --daemonize --fpm-config /etc/php/8.2/fpm/php-fpm.conf
ask() { curl -s -o body -w '%{http_code}' --compressed "$@"; }
is() { want=$1; shift; got=$(ask "$@") || true; [ "$got" = "$want" ] || { echo "$* answers $got, want $want"; cat body; exit 1; }; }
until_is() { for i in $(seq 600); do [ "$(ask "$2")" = "$1" ] && return; sleep 0.1; done; echo "$2 never answers $1"; exit 1; }
vip=http://192.168.10.39

is 503 http://192.168.10.42/nginx-health
until_is 503 $vip/
mkdir -p $volume
is 503 http://192.168.10.42/nginx-health
mkdir -p $volume/wp-content/uploads $volume/wp-content/plugins/p $volume/.well-known $core/wp-admin $core/wp-includes
echo '<?php echo "page of ", $_SERVER["REMOTE_ADDR"], " ", $_SERVER["REQUEST_URI"], " ", ini_get("session.save_handler"), " ", ini_get("session.save_path");' >$core/index.php
echo '<?php echo "password";' | tee $core/wp-config.php $core/wp-admin/install.php $core/readme.html $volume/wp-config.php >$volume/wp-content/uploads/x.php
echo password >$core/.htpasswd
seq 1000 | tee $core/wp-includes/a.css >$volume/wp-content/b.css
is 200 http://192.168.10.42/nginx-health
mv $volume away; is 200 http://192.168.10.42/nginx-health; mv away $volume # the volume is not asked each time
until_is 200 $vip/
is 200 $vip/some/post/?p=1
grep -F '/some/post/?p=1 redis tls://192.168.10.53:6379?auth=' body
is 200 --interface 192.168.10.40 -H 'X-Forwarded-For: 6.6.6.6, 1.2.3.4' http://192.168.10.42/; grep 'page of 1.2.3.4 ' body
is 200 --interface 192.168.10.47 -H 'X-Forwarded-For: 1.2.3.4' http://192.168.10.42/; grep 'page of 192.168.10.47 ' body
# The page hears of the host and port in the visitor's address bar, and of no host that the request is not for.
echo '<?php echo "host ", $_SERVER["HTTP_HOST"], " ", $_SERVER["SERVER_NAME"], " proxy [", $_SERVER["HTTP_PROXY"], "]";' >$core/host.php
hears() { is 200 -H "Host: $1" -H 'Proxy: 6.6.6.6' $vip/host.php; grep -xF "host $2 proxy []" body || { cat body; exit 1; }; }
hears 127.0.0.1:8080 '127.0.0.1:8080 127.0.0.1'
hears www.example.com 'www.example.com www.example.com'
hears WWW.example.com:81 'www.example.com:81 www.example.com'
hears '[::1]:8080' '[::1]:8080 [::1]'
hears www.example.com:http 'www.example.com www.example.com'
is 200 --request-target http://good.example/host.php -H 'Host: bad.example:8080' http://192.168.10.42/; grep -F 'host good.example good' body
# So are PHP's settings, all of them.
cp $ini /tmp/ours.ini
cat >$core/ini.php <<'END'
<?php
$ours = parse_ini_file('/tmp/ours.ini');
foreach ($ours as $name => $value) {
	$is = ini_get($name);
	if (is_bool($is) || ($is !== $value && ini_parse_quantity((string) $is) !== ini_parse_quantity((string) $value))) {
		echo "$name is ", var_export($is, true), ", not ", var_export($value, true), "\n";
	}
}
echo count($ours), " settings\n";
END
is 200 $vip/ini.php; [ "$(sed 's/^[0-9]* settings//' body)" = "" ] && grep -E '^[1-9][0-9] settings' body || { cat body; exit 1; }
# Types are ours, and what they say is squeezed.
echo 1 | tee $core/a.js $core/a.woff2 $volume/wp-content/a.webp >$volume/wp-content/a.bin
type_of() { is 200 $1; curl -sI $1 | tr -d '\r' | grep -xi "content-type: $2" || { curl -sI $1; exit 1; }; }
type_of $vip/wp-includes/a.css text/css; type_of $vip/wp-content/b.css text/css
type_of $vip/a.js application/javascript; type_of $vip/a.woff2 font/woff2; type_of $vip/wp-content/a.webp image/webp
type_of $vip/wp-content/a.bin application/octet-stream
for path in /wp-config.php /.htpasswd /wp-content/uploads/x.php /wp-admin/install.php /readme.html; do is 403 $vip$path; not grep -q password body; done
is 404 $vip/nothing.php
curl -s -H 'Accept-Encoding: gzip' $vip/wp-includes/a.css | gzip -t
# A plug-in's PHP knows itself where it is on the volume. Its WordPress is the image's.
echo '<?php echo "plug-in ", __FILE__, " ", realpath($_SERVER["DOCUMENT_ROOT"]), " ", $_SERVER["SCRIPT_NAME"];' >$volume/wp-content/plugins/p/x.php
is 200 $vip/wp-content/plugins/p/x.php
grep -xF "plug-in $volume/wp-content/plugins/p/x.php $volume /wp-content/plugins/p/x.php" body
is 200 $vip/wp-content/nothing; grep 'page of ' body
is 200 $vip/wp-content/nothing.css; grep 'page of ' body
# The site's own files beside WordPress are served, and an older WordPress beside wp-content is not.
mkdir -p $volume/wp-includes $volume/wp-admin
echo own | tee $volume/robots.txt >$volume/.well-known/x
echo stale | tee $volume/license.txt $volume/wp-includes/old.js >$volume/wp-includes/a.css
echo '<?php echo "stale";' | tee $volume/index.php $volume/wp-login.php $volume/wp-admin/old.php >$volume/.well-known/x.php
for path in /robots.txt /.well-known/x; do is 200 $vip$path; grep -x own body; done
for path in /license.txt /wp-includes/old.js /wp-includes/a.css /wp-login.php /wp-admin/old.php /.well-known/x.php /ads.txt / //index.php /wp-content/../wp-login.php; do
	ask --path-as-is $vip$path >/dev/null; not grep stale body
done
is 200 $vip/ads.txt; grep 'page of ' body
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

// TestPagesAreCached: nginx keeps pages for visitors whom the site does not know, for two seconds at most, and shows them for
// longer only while no backend or no database answers. Nobody gets what was made for somebody else.
func TestPagesAreCached(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"nginx", "php-fpm8.2", "php8.2", "curl"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("web1")
	files := together(t, c, s, testSecrets(c, s), "web1", "backend1")
	off := parse(t, c, strings.Replace(string(cluster.Reference("debian12")), "  web:\n", "  web:\n    options: {page_cache: off}\n", 1))
	without := content(t, c, off, "web1", "/etc/nginx/nginx.conf")
	if strings.Contains(without, "fastcgi_cache") || strings.Contains(without, "HTTP_COOKIE") {
		t.Errorf("page_cache: off leaves\n%s", without)
	}
	files = append(files, RenderedFile{Path: "/etc/nginx/off.conf", Mode: 0o644, Owner: "root:root", Content: []byte(without)})
	out, err := inSandbox(t, n, files, `
for a in 47 53; do ip addr add 192.168.10.$a/32 dev eth0; done
ip route replace local 192.168.10.47 dev eth0 src $IP table local # PHP-FPM is asked by nginx's address
core=/usr/share/wordpress
cp -p $core/wp-config.php .
mount -t tmpfs core $core # instead of this machine's
mkdir -p /var/log /var/lib/nginx /run/php /mnt/gluster/wordpress/wp-content
cp -p wp-config.php $core
echo '<?php require __DIR__ . "/wp-config.php";' >$core/index.php
cp $core/index.php $core/wp-login.php
# Every page says which rendering it is, what PHP was asked, and, after the headers are gone, when that was.
cat >$core/wp-settings.php <<'END'
<?php
file_put_contents('/tmp/renderings', '.', FILE_APPEND);
$path = strtok($_SERVER['REQUEST_URI'], '?');
switch ($path) {
	case '/cookie': setcookie('visitor', 'secret'); break;
	case '/private': header('Cache-Control: private, max-age=600'); break;
	case '/long': header('Cache-Control: max-age=600, stale-while-revalidate=600'); break;
	case '/expires': header('Expires: Thu, 31 Dec 2099 00:00:00 GMT'); break;
	case '/never': define('DONOTCACHEPAGE', true); break;
	case '/missing': http_response_code(404); break;
	case '/moved': header('Location: /'); break;
}
if (file_exists('/tmp/down')) {
	http_response_code(500);
}
while (ob_get_level()) {
	ob_end_flush();
}
flush();
printf("rendering %d of %s with %s for [%s] at %.6f\n", filesize('/tmp/renderings'), $_SERVER['HTTP_HOST'] . $_SERVER['REQUEST_URI'],
	$_SERVER['REQUEST_METHOD'], $_SERVER['HTTP_COOKIE'] ?? '', microtime(true));
END
nginx -t -q -c /etc/nginx/off.conf
nginx 2>nginx.log # there is no journal here
php-fpm8.2 --daemonize --fpm-config /etc/php/8.2/fpm/php-fpm.conf
site=http://$IP
# One process a request: there are many.
get() { : >body; curl -s -D headers -o body -w '%{http_code} %header{x-page-cache}\n' "$@" >result || true; read -r code state <result; read -r page <body || true; }
failed() { echo "$*"; cat result headers body; grep -v alert nginx.log | tail; exit 1; }
for i in $(seq 600); do get $site/; [ "$code" = 200 ] && break; sleep 0.1; done
[ "$code" = 200 ] || failed 'no page'

# kept URL...: it comes from the cache, if it is asked for often enough in a short time.
kept() { for i in $(seq 200); do get "$@"; [ "$state" = HIT ] && return; done; failed "$*: never kept"; }
# fresh URL...: every answer is a new rendering.
fresh() { before=; for i in 1 2; do get "$@"; case $state in ''|MISS|EXPIRED);; *) failed "$*: from the cache";; esac
  case $page in "$before") failed "$*: the same rendering";; rendering*) before=$page;; *) failed "$*: no page";; esac; done; }
kept $site/; grep -F "of $IP/ with GET for []" body || failed 'another page'
not grep -i '^cache-control' headers
kept $site/some/post/?p=1; grep -F '/some/post/?p=1 with' body || failed 'another page'
kept -H 'Host: www.example.com' $site/; grep -F 'of www.example.com/ ' body || failed 'another host'
kept -H 'Host: www.example.com:8080' $site/; grep -F 'of www.example.com:8080/ ' body || failed 'another port'
kept -H 'X-Forwarded-Proto: https' $site/secure; cp body https
get $site/secure; not cmp -s body https
# Without its body, what is kept for HEAD is what GET gets.
kept --head $site/head; kept $site/head; grep -F '/head with GET' body || failed 'no body'
kept -b '_ga=GA1.2.3; _pk_id.1.2=x; wordpress_test_cookie=WP+Cookie+check' $site/; grep -F 'for []' body || failed 'PHP sees cookies'

for cookie in wordpress_logged_in_1=jane 'wp-postpass_1=x' comment_author_1=jane woocommerce_cart_hash=1 PHPSESSID=1 unknown=1 '_ga=1; unknown=1' 'x_ga=1'; do
  fresh -b "$cookie" $site/; grep -F "for [$cookie]" body || failed "PHP does not see $cookie"
done
fresh -H 'Cookie: _ga=1' -H 'Cookie: unknown=1' $site/
for header in 'Authorization: Basic amFuZTpw' 'X-WP-Nonce: 1' 'X-Forwarded-Host: evil.example' 'X-HTTP-Method-Override: DELETE'; do fresh -H "$header" $site/; done
fresh -X GET -d body=1 $site/
fresh -d post=1 $site/
for path in /cookie /private /long /expires /never /missing /moved /wp-login.php /wp-json/wp/v2/users /index.php/wp-json/x '/?rest_route=/x' '/?p=1&preview=true' '/?p=1&_wpnonce=1' '/?%70review=true' '/?x[%70]=1' '/?customize_changeset_uuid=1'; do
  fresh -g "$site$path"
done
get $site/private; grep -i '^cache-control: private, max-age=600' headers || failed 'the header is lost'
get $site/cookie; grep -i '^set-cookie: visitor=secret' headers || failed 'the cookie is lost'
get --head -b unknown=1 $site/; [ "$code $state" = '200 ' ] || failed 'no HEAD'

# Whoever asks, the page is at most two seconds old then: often, and after pauses.
for pause in 0.2 0.6 1 1.4 1.8 2.2; do
  asked=$(date +%s.%N); get $site/age; made=${page##* at }
  awk "BEGIN { exit !($asked - $made > 2) }" && failed "asked at $asked, made at $made"
  sleep $pause
done

# Without a database, and without any PHP, there is the last page. Other pages fail as before.
last() { for i in $(seq 600); do get $site/; [ "$state" = STALE ] && break; sleep 0.1; done; }
get $site/; touch down
last; [ "$code $state" = '200 STALE' ] && grep '^rendering' body || failed 'no page without a database'
get $site/unheard-of; [ "$code" = 500 ] || failed 'a page from nowhere'
get -b wordpress_logged_in_1=jane $site/; [ "$code" = 500 ] || failed 'a page for somebody else'
rm down
fresh -b unknown=1 $site/
kill $(cat /run/php/php8.2-fpm.pid)
# no_page: backend1 refuses connections, and backend2's address answers nothing. Which of the two nginx asked last decides.
no_page() { [ "$code" = 502 ] || [ "$code" = 504 ]; }
for i in $(seq 600); do get $site/unheard-of; no_page && break; sleep 0.1; done
last; [ "$code $state" = '200 STALE' ] && grep -F "of $IP/ with" body || failed 'no page without PHP'
get --head $site/; [ "$code" = 200 ] || failed 'no HEAD without PHP'
get -b wordpress_logged_in_1=jane $site/; no_page || failed 'a page for somebody else'
not grep -rq secret /var/lib/nginx/pages
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestQueueIsShort: when PHP is busy, visitors get a 503 soon, and not after everybody before them; files are served meanwhile,
// and whoever sends a body slowly keeps nobody from a page.
func TestQueueIsShort(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "nginx", "php-fpm8.2", "curl", "socat"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("web1")
	out, err := inSandbox(t, n, together(t, c, s, testSecrets(c, s), "web1", "backend1", "balancer1"), `
for a in 39 40 47; do ip addr add 192.168.10.$a/32 dev eth0; done
ip route replace local 192.168.10.47 dev eth0 src $IP table local # PHP-FPM is asked by nginx's address
core=/usr/share/wordpress
mount -t tmpfs core $core # instead of this machine's
mkdir -p $core/wp-includes /var/log /var/lib/nginx /var/lib/haproxy/dev /run/php /mnt/gluster/wordpress/wp-content
sed -i "s/listen 80 /listen $IP:80 /" /etc/nginx/nginx.conf # elsewhere, HAProxy has a machine of its own
echo '<?php file_put_contents("/tmp/begun", ".", FILE_APPEND); while (isset($_GET["slow"]) && !file_exists("/tmp/go")) { usleep(50000); clearstatcache(); } echo "page";' >$core/index.php
echo style >$core/wp-includes/a.css
nginx 2>nginx.log
haproxy -D -f /etc/haproxy/haproxy.cfg
php-fpm8.2 --daemonize --fpm-config /etc/php/8.2/fpm/php-fpm.conf
vip=http://192.168.10.39
ask() { curl -s -o body -w '%{http_code}' "$@" || true; }
for i in $(seq 600); do [ "$(ask $vip/)" = 200 ] && break; sleep 0.1; done
slots=$(sed -n 's/.*server web1 .* check .* maxconn //p' /etc/haproxy/haproxy.cfg)
children=$(sed -n '/^.www.$/,$s/^pm.max_children = //p' /etc/php/8.2/fpm/pool.d/www.conf)
[ "$slots" -ge 2 ] && [ "$slots" -le "$children" ] || { echo "$slots slots for $children processes"; exit 1; }
# More bodies that never end than there are slots.
for i in $(seq $((slots + 2))); do { printf 'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nx'; sleep 100; } | socat -t 100 - TCP:192.168.10.39:80 >/dev/null 2>&1 & done
[ "$(ask $vip/)" = 200 ] || { echo 'bodies keep pages waiting'; exit 1; }
: >begun; chmod 666 begun
for i in $(seq $slots); do curl -s -o slow$i -w '%{http_code}' "$vip/?slow=$i" >code$i & eval "p$i=$!"; done
for i in $(seq 600); do [ "$(wc -c <begun)" = $slots ] && break; sleep 0.1; done
[ "$(wc -c <begun)" = $slots ] || { echo 'not all of the slots are used'; exit 1; }
got=$(ask $vip/)
[ "$got" = 503 ] || { echo "$got instead of a 503"; exit 1; }
[ "$(ask $vip/wp-includes/a.css)" = 200 ] || { echo 'files wait'; exit 1; }
touch go
for i in $(seq $slots); do eval "wait \$p$i"; [ "$(cat code$i) $(cat slow$i)" = '200 page' ] || { echo "page $i: $(cat code$i)"; exit 1; }; done
[ "$(ask $vip/)" = 200 ]
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestWebServerHangs: visitors whose requests a web server has accepted and does not answer get their pages from the other one, and
// nothing is posted twice.
func TestWebServerHangs(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "curl", "socat", "ss", "iptables"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("balancer1")
	out, err := inSandbox(t, n, together(t, c, s, testSecrets(c, s), "balancer1"), `
mkdir -p /var/lib/haproxy/dev
for a in 39 42 43; do ip addr add 192.168.10.$a/32 dev eth0; done
echo 'read -r method rest; echo $method >>asked$1; sed -n "/^.$/q"; printf "HTTP/1.0 200 OK\r\n\r\nnode $1"' >answer
serve() { socat TCP-LISTEN:80,bind=192.168.10.$1,fork,reuseaddr "EXEC:sh /tmp/answer $1" 2>log$1 & eval "pid$1=$!"; }
serve 42; serve 43
vip=http://192.168.10.39
ask() { curl -s -m 300 "$@" || true; }
both() { for i in $(seq 100); do rm -f got; ask $vip/ >>got; ask $vip/ >>got; grep -q 42 got && grep -q 43 got && return; sleep 0.2; done; cat got log*; exit 1; }
sed -i 's/timeout check 1s/timeout check 3s/' /etc/haproxy/haproxy.cfg # a busy machine answers checks late
haproxy -D -f /etc/haproxy/haproxy.cfg
both
kill -STOP $pid42
for i in 1 2 3 4; do
	ask $vip/ >page$i & eval "p$i=$!"
	ask $vip/wp-content/a.css >file$i & eval "f$i=$!"
	ask -o post$i -w '%{http_code}' -d x $vip/ >code$i & eval "c$i=$!"
done
waiting() { ss -Htn state established "( sport = :80 and src 192.168.10.42 )" | wc -l; }
for i in $(seq 600); do [ "$(waiting)" -ge 4 ] && break; sleep 0.1; done
kill -KILL $pid42 # as its agent does
for i in 1 2 3 4; do
	eval "wait \$p$i \$f$i \$c$i"
	[ "$(cat page$i) $(cat file$i)" = 'node 43 node 43' ] || { echo "request $i: $(cat page$i) $(cat file$i)"; exit 1; }
	cat code$i >>codes; echo >>codes
done
# A post has its answer or an error; those that the hung one got are not sent again.
[ "$(grep -cx 200 codes)" = "$(grep -c POST asked43)" ] || { cat codes asked43; exit 1; }
[ "$(grep -Ec '^(200|502|503|504)$' codes)" = 4 ]
serve 42
both
# One that vanishes, which new connections have to find; nobody loses a page for that, also when it is taken out of use.
iptables -I OUTPUT -d 192.168.10.42 -p tcp --dport 80 -j DROP
for i in $(seq 40); do ask $vip/ >gone$i & eval "g$i=$!"; sleep 0.1; done
for i in $(seq 40); do eval "wait \$g$i"; [ "$(cat gone$i)" = 'node 43' ] || { echo "request $i of a node that is gone: $(cat gone$i)"; exit 1; }; done
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestThemeIsReadFromACopy: WordPress' own functions find the files of a block theme in a local copy, and never see anything but what
// the theme has: a change is seen at once, whatever has changed. Everybody else has the theme's own paths.
func TestThemeIsReadFromACopy(t *testing.T) {
	t.Parallel()
	testkit.Program(t, "php8.2", "")
	const core = "/usr/share/wordpress"
	if _, err := os.Stat(core + "/wp-includes/block-patterns.php"); err != nil {
		t.Skip("SKIPPED: needs WordPress: apt-get install wordpress")
	}
	c := mustLoad(t, "")
	dir := t.TempDir()
	theme := filepath.Join(dir, "themes", "parent")
	put := func(path, what string) { t.Helper(); testkit.Write(t, filepath.Join(dir, "themes", path), what) }
	testkit.Write(t, filepath.Join(dir, "theme.php"), content(t, c, reference(t, c, "debian12"), "backend1", "/etc/imagegen/theme.php"))
	testkit.Write(t, filepath.Join(dir, "page.php"), themePage)
	put("parent/style.css", "/*\nTheme Name: Parent\n*/")
	put("child/style.css", "/*\nTheme Name: Child\nTemplate: parent\n*/")
	put("parent/index.php", "")
	put("parent/theme.json", `{"version": 2, "title": "one"}`)
	put("parent/templates/index.html", "index 1")
	put("parent/templates/deep/er.html", "deeper 1")
	put("child/templates/index.html", "child's index 1")
	put("parent/parts/header.html", "header 1")
	put("parent/patterns/a.php", "<?php\n/**\n * Title: A\n * Slug: parent/a\n * Viewport Width: 5\n */\necho 'a 1 of ', $_SERVER['VISITOR'];")
	put("parent/patterns/nothing.php", "<?php\n/**\n * Title: Nothing\n */")
	page := func(how string) (copied bool, got string) {
		t.Helper()
		cmd := exec.Command("php8.2", "-d", "display_errors=stderr", filepath.Join(dir, "page.php"), core, filepath.Join(dir, "theme.php"), filepath.Join(dir, "themes"), "child")
		cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOW="+how, "VISITOR=jane")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil || stderr.Len() > 0 {
			t.Fatalf("%s: %v: %s%s", how, err, out, stderr.String())
		}
		return strings.HasPrefix(string(out), "copied\n"), strings.TrimPrefix(string(out), "copied\n")
	}
	settles := func() {
		t.Helper()
		testkit.Eventually(t, time.Minute, "a copy", func() error {
			if copied, _ := page("copy"); !copied {
				return errors.New("the theme's own files are read")
			}
			return nil
		})
	}
	_, want := page("volume")
	for _, w := range []string{"child's index 1", "deeper 1", "header 1", `"one"`, "a 1 of jane", "viewportWidth"} {
		if !strings.Contains(want, w) {
			t.Errorf("no %q in\n%s", w, want)
		}
	}
	if copied, _ := page("copy"); copied {
		t.Error("a copy of a theme that has just appeared")
	}
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"nothing", func() {}},
		{"a template is written in place, and is as long as before", func() { put("parent/templates/deep/er.html", "deeper 2") }},
		{"a part is replaced by another file", func() {
			put("parent/parts/new", "header 2")
			if err := os.Rename(theme+"/parts/new", theme+"/parts/header.html"); err != nil {
				t.Fatal(err)
			}
		}},
		{"a template is added", func() { put("child/templates/single.html", "single") }},
		{"a template is removed", func() {
			if err := os.Remove(theme + "/templates/deep/er.html"); err != nil {
				t.Fatal(err)
			}
		}},
		{"another folder", func() { put("child/parts/footer.html", "footer") }},
		{"theme.json", func() { put("child/theme.json", `{"version": 2, "title": "two"}`) }},
		{"a pattern", func() {
			put("parent/patterns/a.php", "<?php\n/**\n * Title: Other\n * Slug: parent/a\n */\necho 'a 2';")
		}},
		{"a pattern that is added by a child theme", func() { put("child/patterns/a.php", "<?php\n/**\n * Title: Own\n * Slug: parent/a\n */\necho 'own';") }},
	} {
		c.change()
		_, want := page("volume")
		if _, got := page("copy"); got != want {
			t.Errorf("%s: the next page has\n%s, not\n%s", c.name, got, want)
		}
		settles()
		for range 2 { // the first writes down the patterns
			if _, got := page("copy"); got != want {
				t.Errorf("%s: a copy has\n%s, not\n%s", c.name, got, want)
			}
		}
	}
	// Systems remove old files from /tmp, perhaps some of a copy: none is used for longer than a day.
	lists, _ := filepath.Glob(filepath.Join(dir, "imagegen-theme-"+strings.Repeat("?", 32)))
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		since := regexp.MustCompile(`"since";i:[0-9]+;`)
		testkit.Write(t, list, since.ReplaceAllString(string(data), fmt.Sprintf(`"since";i:%d;`, time.Now().Add(-25*time.Hour).Unix())))
	}
	if copied, _ := page("copy"); copied || len(lists) != 2 {
		t.Errorf("of %d copies, one is used that is a day old: %t", len(lists), copied)
	}
	settles()
	if copies, _ := filepath.Glob(filepath.Join(dir, "imagegen-theme-*.*")); len(copies) > 0 {
		t.Errorf("left behind: %s", copies)
	}
}

//go:embed testdata/theme-page.php
var themePage string

// TestPHPReloads: a reload of PHP-FPM takes over a changed file, and no visitor notices: not one whose page takes longer, and not
// one who comes meanwhile.
func TestPHPReloads(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"nginx", "php-fpm8.2", "curl"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("web1")
	out, err := inSandbox(t, n, together(t, c, s, testSecrets(c, s), "web1", "backend1"), `
ip addr add 192.168.10.47/32 dev eth0
ip route replace local 192.168.10.47 dev eth0 src $IP table local # PHP-FPM is asked by nginx's address
core=/usr/share/wordpress
mount -t tmpfs core $core # instead of this machine's
mkdir -p $core /var/log /var/lib/nginx /run/php /mnt/gluster/wordpress/wp-content
echo '<?php if (isset($_GET["slow"])) { touch("/tmp/begun"); while (!file_exists("/tmp/go")) { usleep(50000); clearstatcache(); } } echo ini_get("error_prepend_string"), "page";' >$core/index.php
chmod 1777 /tmp
nginx 2>nginx.log
sed -i 's/^process_control_timeout = .*/process_control_timeout = 1m/' /etc/php/8.2/fpm/pool.d/www.conf # a busy machine is slow to see the end
php-fpm8.2 --nodaemonize --fpm-config /etc/php/8.2/fpm/php-fpm.conf & pid=$! # as systemd runs it
ask() { curl -s -H 'Cookie: wordpress_logged_in_x=1' "http://$IP/${1:-}" || true; }
for i in $(seq 600); do [ "$(ask)" = page ] && break; sleep 0.1; done
ask '?slow' >slow & slow=$!
for i in $(seq 600); do [ -e begun ] && break; sleep 0.1; done
[ -e begun ]
echo 'php_value[error_prepend_string] = new' >>/etc/php/8.2/fpm/pool.d/www.conf
kill -USR2 $pid
for i in 1 2 3 4; do ask >during$i & eval "p$i=$!"; done
touch go
wait $slow
[ "$(cat slow)" = page ] || { echo "the slow page: $(cat slow)"; exit 1; }
for i in 1 2 3 4; do eval "wait \$p$i"; case $(cat during$i) in page|newpage) ;; *) echo "during the reload: $(cat during$i)"; exit 1;; esac; done
for i in $(seq 600); do [ "$(ask)" = newpage ] && break; sleep 0.1; done
[ "$(ask)" = newpage ] || { echo "after the reload: $(ask)"; cat /var/log/php8.2-fpm.log; exit 1; }
kill -0 $pid
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// redisOf returns the Redis of each node with its certificate, its files in /etc/NODE and its data in /tmp/NODE, so
// that several fit into one sandbox.
func redisOf(t *testing.T, c *Catalogue, s *cluster.Spec, sec *secrets.Secrets, nodes ...string) []RenderedFile {
	t.Helper()
	var files []RenderedFile
	for _, node := range nodes {
		r, err := c.Render(s, sec, node)
		if err != nil {
			t.Fatal(err)
		}
		move := strings.NewReplacer("/etc/imagegen/", "/etc/"+node+"/", "/etc/redis/imagegen-", "/etc/"+node+"/",
			"/var/lib/redis", "/tmp/"+node, " 127.0.0.1\n", "\n")
		for _, f := range r.Files {
			if strings.HasPrefix(f.Path, "/etc/imagegen/") || strings.HasPrefix(f.Path, "/etc/redis/") {
				f.Path, f.Content = move.Replace(f.Path), []byte(move.Replace(string(f.Content)))
				files = append(files, f)
			}
		}
	}
	return files
}

// redisShell starts the Redis of a node (serve NODE DIRECTIVES) and connects with the certificate of a node (as NODE
// ARGUMENTS).
const redisShell = `
export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis1/redis.conf)
serve() { node=$1; shift; mkdir -p /tmp/$node; { cat /etc/$node/redis.conf; printf '%s\n' "$@"; } >/tmp/$node.conf; redis-server /tmp/$node.conf >/tmp/$node.log 2>&1 & }
as() { node=$1; shift; redis-cli --tls --cacert /etc/$node/pki/ca.crt --cert /etc/$node/pki/node.crt --key /etc/$node/pki/node.key "$@"; }
program() { redis-cli --tls --cacert /etc/imagegen/pki/ca.crt -h 192.168.10.53 "$@"; } # it has a password, and no certificate
`

// redisBehindBalancer returns redis1, and the files of Redis nodes and of a data balancer.
func redisBehindBalancer(t *testing.T, nodes ...string) (cluster.Node, []RenderedFile) {
	t.Helper()
	needSandbox(t)
	for _, p := range []string{"haproxy", "redis-server"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	sec := realSecrets(t, c, s)
	n, _ := s.Node("redis1")
	return n, append(together(t, c, s, sec, "balancer3"), redisOf(t, c, s, sec, nodes...)...)
}

// TestRedisMasterIsFound connects to Redis through the data balancer while the first server is a replica and the second
// the master, and again after they have swapped roles.
func TestRedisMasterIsFound(t *testing.T) {
	t.Parallel()
	n, files := redisBehindBalancer(t, "redis1", "redis2")
	out, err := inSandbox(t, n, files, redisShell+`
for a in 50 53; do ip addr add 192.168.10.$a/32 dev eth0; done
mkdir -p /var/lib/haproxy
serve redis1 'replicaof 192.168.10.50 6379'; serve redis2
haproxy -D -f /etc/haproxy/haproxy.cfg
served_by() { for i in $(seq 600); do program set k v 2>/dev/null | grep -q OK && [ "$(as redis1 -h $1 role | head -n 1)" = master ] && return; sleep 0.1; done; cat redis1.log redis2.log; exit 1; }
served_by 192.168.10.50
# A client that is connected when its server stops being the master is cut off, not left with a replica.
(echo 'client setname old'; sleep 1000) | program >/dev/null 2>&1 &
for i in $(seq 600); do as redis1 -h 192.168.10.50 client list | grep -q name=old && break; sleep 0.1; done
as redis1 -h 192.168.10.50 client list | grep name=old
as redis1 -h 192.168.10.49 replicaof no one
as redis1 -h 192.168.10.50 replicaof 192.168.10.49 6379
served_by 192.168.10.49
for i in $(seq 600); do as redis1 -h 192.168.10.50 client list | grep -q name=old || exit 0; sleep 0.1; done
echo 'the old client is still there'; exit 1
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestRedisThatLoadsIsNotUsed: a master that still loads its data says that it is the master, and gets no clients before it answers them.
func TestRedisThatLoadsIsNotUsed(t *testing.T) {
	t.Parallel()
	testkit.Program(t, "curl", "")
	n, files := redisBehindBalancer(t, "redis1")
	out, err := inSandbox(t, n, files, redisShell+`
ip addr add 192.168.10.53/32 dev eth0
mkdir -p /var/lib/haproxy
until_says() { want=$1; shift; for i in $(seq 600); do "$@" 2>/dev/null | grep -q "$want" && return; sleep 0.05; done; cat redis1.log; exit 1; }
serve redis1
until_says PONG as redis1 -h $IP ping
as redis1 -h $IP eval 'for i = 1, 4000 do redis.call("set", "k" .. i, string.rep("x", 100)) end' 0
as redis1 -h $IP bgrewriteaof
until_says aof_rewrite_in_progress:0 as redis1 -h $IP info persistence
as redis1 -h $IP shutdown
wait
serve redis1 'key-load-delay 2000' 'loading-process-events-interval-bytes 1024' # for eight seconds
until_says loading:1 as redis1 -h $IP info persistence
haproxy -D -f /etc/haproxy/haproxy.cfg
pw=$(sed -n 's/ *stats auth admin://p' /etc/haproxy/haproxy.cfg)
row() { curl -sf -u "admin:$pw" 'http://192.168.10.49/haproxy?stats;csv' | grep '^redis,redis1,'; }
until_says ',DOWN,' row
as redis1 -h $IP info persistence | grep loading:1
as redis1 -h $IP info replication | grep role:master
until_says PONG program ping
as redis1 -h $IP info persistence | grep loading:0
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestRedisIsEncrypted: Redis and Sentinel, including replicas, accept no plain text and no client without a
// certificate of the cluster, and the data balancer connects to no server whose certificate has another name.
func TestRedisIsEncrypted(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "redis-server", "curl"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	sec := realSecrets(t, c, s)
	n, _ := s.Node("redis1")
	files := append(together(t, c, s, sec, "balancer3"), redisOf(t, c, s, sec, "redis1", "redis2")...)
	stranger := realSecrets(t, c, s) // of another cluster with the same names and, in the worst case, the same passwords
	stranger.Passwords = sec.Passwords
	files = append(files, redisOf(t, c, s, stranger, "redis3")...)
	out, err := inSandbox(t, n, files, redisShell+`
for a in 50 51 53; do ip addr add 192.168.10.$a/32 dev eth0; done
mkdir -p /var/lib/haproxy
serve redis1
cp /etc/redis1/sentinel.conf sentinel.conf
redis-server sentinel.conf --sentinel >sentinel.log 2>&1 &
for port in 6379 26379; do
  for i in $(seq 600); do as redis1 -h $IP -p $port ping 2>/dev/null | grep -q PONG && break; sleep 0.05; done
  as redis2 -h $IP -p $port ping | grep PONG
  refused() { if timeout 10 "$@" -h $IP -p $port ping >out 2>&1; then echo "$port: $*: not refused"; cat out; exit 1; fi; not grep PONG out; }
  refused redis-cli
  refused redis-cli --tls --cacert /etc/redis1/pki/ca.crt
  refused redis-cli --tls --cacert /etc/redis1/pki/ca.crt --cert /etc/redis3/pki/node.crt --key /etc/redis3/pki/node.key
  refused redis-cli --tls --cacert /etc/redis3/pki/ca.crt --cert /etc/redis1/pki/node.crt --key /etc/redis1/pki/node.key
done
# Nor does the stranger get the data as a replica, while the peer does.
as redis1 -h $IP set k v
serve redis3 "replicaof $IP 6379"
serve redis2 "replicaof $IP 6379"
for i in $(seq 600); do as redis2 -h 192.168.10.50 get k 2>/dev/null | grep -qx v && break; sleep 0.05; done
as redis2 -h 192.168.10.50 get k | grep -x v
for i in $(seq 600); do grep -q 'certificate verify failed' redis3.log && break; sleep 0.05; done
grep -q 'certificate verify failed' redis3.log
as redis3 -h 192.168.10.51 info replication | grep master_link_status:down
# The data balancer finds redis2 in redis1's place, then redis1.
as redis1 -h $IP config set tls-cert-file /etc/redis2/pki/node.crt tls-key-file /etc/redis2/redis.key
haproxy -D -f /etc/haproxy/haproxy.cfg
pw=$(sed -n 's/ *stats auth admin://p' /etc/haproxy/haproxy.cfg)
rows() { curl -sf -u "admin:$pw" 'http://192.168.10.49/haproxy?stats;csv' | grep '^redis,redis[123],'; }
row() { rows | grep '^redis,redis1,'; }
for i in $(seq 600); do row >seen || true; grep -q ',DOWN,.*L6RSP' seen && break; sleep 0.1; done
grep ',DOWN,.*L6RSP' seen || { cat seen; exit 1; }
# A server counts as up until two of its checks have failed, replicas too.
for i in $(seq 600); do [ "$(rows | grep -c ',DOWN,')" = 3 ] && break; sleep 0.1; done
not program ping
as redis2 -h $IP config set tls-cert-file /etc/redis1/pki/node.crt tls-key-file /etc/redis1/redis.key
for i in $(seq 600); do program ping 2>/dev/null | grep -q PONG && exit; sleep 0.1; done
row; cat redis1.log; exit 1
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSessionsAreEncrypted: nginx and PHP-FPM keep a session in Redis behind the data balancer, but not behind one
// without a certificate for the address.
func TestSessionsAreEncrypted(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "redis-server", "nginx", "php-fpm8.2", "curl"} {
		testkit.Program(t, p, "")
	}
	if out, err := exec.Command("php8.2", "--ri", "redis").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: no php8.2-redis on this machine (make checkers installs it): %s", out)
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	sec := realSecrets(t, c, s)
	n, _ := s.Node("web1")
	files := append(together(t, c, s, sec, "balancer3", "backend1", "web1"), redisOf(t, c, s, sec, "redis1")...)
	out, err := inSandbox(t, n, files, redisShell+`
for a in 47 48 49 53; do ip addr add 192.168.10.$a/32 dev eth0; done
site=/usr/share/wordpress
mount -t tmpfs site $site # instead of this machine's
mkdir -p /var/log /var/lib/nginx /var/lib/haproxy /run/php
sed -i "s/listen 80 /listen $IP:8080 /" /etc/nginx/nginx.conf # elsewhere, HAProxy has a machine of its own
for a in 47 48; do ip route replace local 192.168.10.$a dev eth0 src $IP table local; done # and PHP-FPM is asked by nginx's address
echo '<?php session_start(); $_SESSION["n"] = ($_SESSION["n"] ?? 0) + 1; echo "visit ", $_SESSION["n"];' >$site/index.php
serve redis1
haproxy -D -p pid -f /etc/haproxy/haproxy.cfg
nginx 2>nginx.log
php-fpm8.2 --daemonize --fpm-config /etc/php/8.2/fpm/php-fpm.conf
visit() { curl -s -b jar -c jar http://$IP:8080/ 2>&1 || true; }
visits() { for i in $(seq 600); do rm -f jar; visit | grep -q '^visit 1$' && visit | grep -q '^visit 2$' && return; sleep 0.1; done; cat redis1.log; visit; exit 1; }
visits
as redis1 -h 192.168.10.49 --scan | grep PHPREDIS_SESSION
as redis1 -h 192.168.10.49 flushall
kill $(cat pid)
while kill -0 $(cat pid) 2>/dev/null; do sleep 0.05; done
sed 's|:6379 ssl crt /etc/imagegen/pki/node.crt|:6379 ssl crt /etc/redis1/pki/node.crt|' /etc/haproxy/haproxy.cfg >impostor.cfg
haproxy -D -f impostor.cfg
for i in $(seq 600); do program ping >answer 2>&1 || true; grep -q PONG answer && break; sleep 0.1; done
grep PONG answer || { cat answer; exit 1; }
visit
[ -z "$(as redis1 -h 192.168.10.49 --scan)" ]
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestObjectCache runs WordPress' object cache in Redis behind the data balancer. Each run of PHP is a page, and WordPress' own
// code loads the cache.
func TestObjectCache(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "redis-server", "php8.2"} {
		testkit.Program(t, p, "")
	}
	if out, err := exec.Command("php8.2", "--ri", "redis").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: no php8.2-redis on this machine (make checkers installs it): %s", out)
	}
	if _, err := os.Stat("/usr/share/wordpress/wp-includes/class-wp-object-cache.php"); err != nil {
		t.Skip("NOT TESTED: no WordPress on this machine (make checkers installs it)")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	sec := realSecrets(t, c, s)
	n, _ := s.Node("backend1")
	files := append(together(t, c, s, sec, "backend1"), redisOf(t, c, s, sec, "redis1")...)
	balancer, err := c.Render(s, sec, "balancer3")
	if err != nil {
		t.Fatal(err)
	}
	move := strings.NewReplacer("/etc/imagegen/", "/etc/balancer3/", "bind *:80", "bind 127.0.0.1:80")
	for _, f := range balancer.Files {
		if strings.HasPrefix(f.Path, "/etc/imagegen/pki/") || f.Check == "haproxy" {
			f.Path, f.Content = move.Replace(f.Path), []byte(move.Replace(string(f.Content)))
			files = append(files, f)
		}
	}
	out, err := inSandbox(t, n, files, redisShell+`
for a in 49 53; do ip addr add 192.168.10.$a/32 dev eth0; done
mkdir -p /var/lib/haproxy
{ echo '<?php'; sed -n '/^define($/,/^);$/p' /usr/share/wordpress/wp-config.php; } >real.php
grep -q "'patience' => 0.05" real.php
sed "s/'patience' => .*/'patience' => 60,/; s/'limit' .*/'limit' => 100000,/" real.php >config.php
mkdir content
ln -s /etc/imagegen/object-cache.php content/
cat >page.php <<'END'
<?php
define('ABSPATH', '/usr/share/wordpress/');
define('WPINC', 'wp-includes');
define('WP_CONTENT_DIR', '/tmp/content');
require getenv('CONFIG') ?: '/tmp/config.php';
require ABSPATH . WPINC . '/load.php';
require ABSPATH . WPINC . '/plugin.php';
function wp_suspend_cache_addition() { return false; }
$_SERVER['REQUEST_METHOD'] = getenv('METHOD') ?: 'GET';
$start = microtime(true);
wp_start_object_cache();
if (!wp_using_ext_object_cache()) {
	printf("without %.4f\n", microtime(true) - $start);
	exit;
}
function seen($key, $group) { $v = wp_cache_get($key, $group, false, $found); echo $found ? json_encode($v) : 'nothing', ' '; }
eval($argv[1]);
END
page() { php8.2 page.php "$1"; }
shows() { got=$(page "$1"); [ "$got" = "$2" ] || { echo "$1: $got, want $2"; cat redis1.log; exit 1; }; }
direct() { as redis1 -h 192.168.10.49 "$@"; }
serve redis1
sed -i 's/timeout check .*/timeout check 1m/' /etc/haproxy/haproxy.cfg # Redis will be slow
haproxy -D -p pid -f /etc/haproxy/haproxy.cfg
with() { for i in $(seq 600); do rm -f imagegen-object-cache; [ "$(page 'echo "with";')" = with ] && return; sleep 0.1; done; page 'echo "with";'; cat redis1.log; exit 1; }
with

# What one page keeps another one gets, of its kind; options and users are read from the database.
direct set session kept
page 'wp_cache_set("a", ["x" => 1.5], "posts"); wp_cache_add("b", "text", "mine"); wp_cache_set("n", 7, "mine"); wp_cache_set("none", false, "mine"); wp_cache_set("alloptions", 1, "options"); wp_cache_set(1, 1, "users"); wp_cache_set(1, 1, "counts");'
shows 'seen("a", "posts"); seen("b", "mine"); seen("n", "mine"); seen("none", "mine"); seen("b", "other"); seen("alloptions", "options"); seen(1, "users"); seen(1, "counts");' \
  '{"x":1.5} "text" 7 false nothing nothing nothing nothing '
shows 'echo json_encode(wp_cache_get_multiple(["b", "n", "z"], "mine"));' '{"b":"text","n":7,"z":false}'
shows 'echo json_encode([wp_cache_add("b", "other", "mine"), wp_cache_replace("z", 1, "mine"), wp_cache_incr("n", 3, "mine"), wp_cache_decr("n", 99, "mine"), wp_cache_incr("z", 1, "mine")]); seen("b", "mine");' '[false,false,10,0,false]"text" '
shows 'seen("n", "mine"); wp_cache_delete("b", "mine"); seen("b", "mine");' '0 nothing '
shows 'seen("b", "mine"); wp_cache_add("b", 2, "mine"); seen("b", "mine");' 'nothing 2 '
# Nothing is there for ever, and sessions have their own database.
[ "$(direct --scan | tr '\n' ' ')" = 'session ' ]
direct -n 1 --scan | grep ':' >keys
while read -r key; do [ "$(direct -n 1 ttl "$key")" -gt 0 ] && [ "$(direct -n 1 ttl "$key")" -le 600 ] || { echo "$key stays"; exit 1; }; done <keys
# A page that has read a post before it was changed does not bring it back.
page 'wp_cache_set(1, "old", "posts"); wp_cache_delete(1, "posts");'
if [ "$(direct -n 1 strlen "$(direct -n 1 --scan --pattern '*:posts:1')")" = 0 ] && direct -n 1 --scan | grep -q ':posts:1$'; then
  page 'wp_cache_add(1, "old", "posts"); seen(1, "posts");' | grep -x '"old" '
  [ -z "$(direct -n 1 get "$(direct -n 1 --scan --pattern '*:posts:1')")" ]
fi
# However much is written, a limit is kept, and sessions stay.
page 'for ($i = 0; $i < 200; $i++) { wp_cache_set("big$i", str_repeat("x", 5000), "mine"); } wp_cache_set("huge", str_repeat("x", 300000), "mine");'
[ "$(direct -n 1 dbsize)" -le 20 ] && [ "$(direct -n 1 dbsize)" -ge 2 ]
shows 'seen("huge", "mine");' 'nothing '
[ "$(direct get session)" = kept ]
page 'wp_cache_set("c", 1, "mine"); wp_cache_flush();'
shows 'seen("c", "mine");' 'nothing '
[ "$(direct get session)" = kept ]

# A new master may have lost changes: what was there counts no more.
page 'wp_cache_set("c", 1, "mine");'
shows 'seen("c", "mine");' '1 '
direct replicaof 192.168.10.49 1; direct replicaof no one
with
shows 'seen("c", "mine");' 'nothing '
# Nor does what a page may have changed while it had no Redis.
page 'wp_cache_set("c", 1, "mine");'
kill -STOP $(cat pid)
rm -f imagegen-object-cache
CONFIG=/tmp/real.php METHOD=POST page 'echo "with";' | grep without
[ -e imagegen-object-cache ]
CONFIG=/tmp/real.php page 'echo "with";' | grep without || [ $(($(date +%s) - $(stat -c %Y imagegen-object-cache))) -ge 2 ] # nobody else tries for a moment
# It has not cost more than its patience, on a machine that is not busy for one of these.
for i in $(seq 30); do rm -f imagegen-object-cache; CONFIG=/tmp/real.php page 'echo "with";'; done | sort -k 2 >tries
head -n 1 tries
awk 'NR == 1 { exit !($1 == "without" && $2 <= 0.055) }' tries || { cat tries; exit 1; }
kill -CONT $(cat pid)
for i in $(seq 600); do got=$(page 'seen("c", "mine");'); case $got in without*) sleep 0.1;; *) break;; esac; done # it comes back by itself
[ "$got" = 'nothing ' ] || { echo "after an outage: $got"; exit 1; }
[ ! -e imagegen-object-cache ]
# A Redis that stops in the middle of a page costs no more, and what it has missed is not believed afterwards.
page 'wp_cache_set("c", 1, "mine");'
redis=$(pgrep -x redis-server)
export redis
page 'posix_kill((int) getenv("redis"), 9); wp_cache_set("c", 2, "mine"); seen("c", "mine"); wp_cache_set("c", 3, "mine"); seen("c", "mine");' >middle
grep -x '2 3 ' middle || { cat middle; exit 1; }
[ -e imagegen-object-cache ]
serve redis1
for i in $(seq 600); do got=$(page 'seen("c", "mine");'); case $got in without*) sleep 0.1;; *) break;; esac; done
[ "$got" = 'nothing ' ] || { echo "after a death: $got"; exit 1; }
# A page for which Redis is slow asks it nothing more, and its changes are made at its end. Nothing else is lost.
sed "s/'patience' => .*/'patience' => 20,/" real.php >slow.php
page 'wp_cache_set("c", 4, "mine"); wp_cache_set("d", 4, "mine"); wp_cache_set("e", 4, "mine");'
echo 'exec redis-cli -h 192.168.10.49 --tls --cacert /etc/redis1/pki/ca.crt --cert /etc/redis1/pki/node.crt --key /etc/redis1/pki/node.key client pause 4200 all' >pause.sh
CONFIG=/tmp/slow.php page '
	for ($i = 0; $i < 3; $i++) { shell_exec("sh pause.sh"); wp_cache_get("none$i", "mine"); }
	seen("c", "mine"); wp_cache_set("c", 5, "mine"); wp_cache_delete("d", "mine"); seen("c", "mine"); seen("d", "mine");' >slow
grep -x 'nothing 5 nothing ' slow || { cat slow; exit 1; }
[ ! -e imagegen-object-cache ]
shows 'seen("c", "mine"); seen("d", "mine"); seen("e", "mine");' '5 nothing 4 '
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDatabaseConnectionMoves: a node that refuses connections, or has vanished, fails only connections that are being
// established, and the programs' next attempt reaches the next node.
func TestDatabaseConnectionMoves(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "socat", "iptables", "timeout", "curl"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("balancer3")
	out, err := inSandbox(t, n, together(t, c, s, realSecrets(t, c, s), "balancer3"), `
# The three database nodes: each says its name to who connects, and that it is healthy.
serve() { exec socat TCP-LISTEN:$2,bind=192.168.10.$1,fork,reuseaddr "SYSTEM:$3"; }
for a in 55 56 57; do
	ip addr add 192.168.10.$a/32 dev lo
	serve $a 3306 "echo node $a; sleep 1000" & eval "pid$a=$!"
	# It reads the request whole first: socat gives up what it cannot pass on, and the answer with it.
	serve $a `+strconv.Itoa(facts.HealthPort)+` 'sed -n /^.$/q; echo HTTP/1.0 200 OK; echo' & eval "health$a=$!"
done
ip addr add 192.168.10.53/32 dev eth0
sed -i 's/timeout check .*/timeout check 1m/' /etc/haproxy/haproxy.cfg # a busy machine answers checks late
haproxy -D -f /etc/haproxy/haproxy.cfg
connect() { timeout 100 socat -u TCP:192.168.10.53:3306 - </dev/null >$1 2>&1 & }
first() { : >$1; connect $1; while [ ! -s $1 ] && kill -0 $! 2>/dev/null; do sleep 0.05; done; kill $! 2>/dev/null || true; head -n 1 $1; }
# How often HAProxy has taken a node out of use.
downs() { curl -sf 'http://127.0.0.1:8404/stats;csv' | awk -F, '$1 == "mysql" && $2 ~ /^percona/ { n += $23 } END { print n + 0 }'; }
# moves_to NODE BEFORE WHY: a program, which connects again when its connection ends, reaches the node. A connection may be lost because it
# finds that a node is gone, which is then out of use, or because such a node, whose health answers, comes back into use. A slow machine
# takes so long to connect again that this happens more than once.
moves_to() {
	for lost in $(seq 0 50); do got=$(first try); case $got in node*) break;; esac; sleep 0.1; done
	taken=$(($(downs) - $2))
	[ "$got" = "node $1" ] && [ $taken -gt 0 ] && [ $lost -le $((2 * taken)) ] || { echo "$3: '$got' after $lost lost connections, which took nodes out of use $taken times"; exit 1; }
}
for i in $(seq 600); do [ "$(first up)" = 'node 55' ] && break; sleep 0.1; done
[ "$(first up)" = 'node 55' ] || { echo 'the first node does not serve'; cat up; exit 1; }
connect session; old=$!
while [ ! -s session ] && kill -0 $old 2>/dev/null; do sleep 0.05; done
[ "$(cat session)" = 'node 55' ] || { echo 'no session on the first node'; cat session; exit 1; }

before=$(downs)
kill -9 $pid55 # its machine refuses connections; its health has yet to be asked
moves_to 56 $before refused
for i in $(seq 600); do kill -0 $old 2>/dev/null || break; sleep 0.1; done
not kill -0 $old # the session on the dead node, which nothing else ends so soon
kill -9 $health55

before=$(downs)
iptables -I OUTPUT -d 192.168.10.56 -p tcp --dport 3306 -j DROP # gone without a word, which a connection has to find: its health answers
moves_to 57 $before silent
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// anotherNetwork has functions of the shell: network NAME makes a network namespace with a cable to this one, whose end here is NAME and
// there eth0; inside NAME COMMAND… runs a command in it.
const anotherNetwork = `
network() {
  unshare --net sleep 600 & eval "network_$1=$!"
  for i in $(seq 600); do [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ] && break; sleep 0.02; done
  ip link add $1 type veth peer name eth0 netns $!
  ip link set $1 up
  inside $1 sh -euc 'ip link set lo up; ip link set eth0 up'
}
inside() { eval "pid=\$network_$1"; shift; nsenter --net=/proc/$pid/ns/net "$@"; }
`

// TestVIPMoves runs both balancers, each in its own network namespace, connected by a bridge, and takes HAProxy and
// then a whole node away from the virtual address.
func TestVIPMoves(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "keepalived", "nft"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("balancer1")
	files := together(t, c, s, testSecrets(c, s), "balancer1")
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
	out, err := inSandbox(t, n, files, anotherNetwork+`
mkdir -p /var/lib/haproxy
# A busy machine does not send an advert each 0.2 s; TestAddressMovesInTime is about the settings.
sed -i 's/advert_int 0.2/advert_int 2/' /etc/keepalived/keepalived.conf /etc/second/keepalived
echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind
network second
second() { inside second "$@"; }
ip link set second master eth0
second sh -euc 'ip addr add 192.168.10.41/24 dev eth0; echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind'
haproxy -D -p a.pid -f /etc/haproxy/haproxy.cfg
second haproxy -D -p b.pid -f /etc/second/haproxy
# As its unit does.
sed -n 's/^ExecStart=//p' /etc/systemd/system/keepalived.service.d/90-imagegen.conf | sed 's/\$\$/$/g' >start
DAEMON_ARGS='-l -D -p ka -r kav' sh -eu start >a.log 2>&1 &
touch b.log
has() { case $1 in a) ip -o addr show eth0;; b) second ip -o addr show eth0;; esac | grep -q 192.168.10.39/; }
now() { date +%s%N; }
# holder X: waits until only X has the address (a minute, for busy machines); prints how long it took.
holder() { start=$(now); other=a; [ $1 = a ] && other=b
  while ! has $1 || has $other; do [ $(( ($(now) - start) / 1000000000 )) -lt 60 ] || { echo "$1 does not get the address: $2"; cat a.log b.log; exit 1; }; sleep 0.05; done
  echo "MOVED $2: $(( ($(now) - start) / 1000000 )) ms"; }
holder a 'at the start'
second keepalived -n -l -D -p kb -r kbv -f /etc/second/keepalived >b.log 2>&1 &
for i in $(seq 600); do grep -q 'Entering BACKUP STATE' b.log && break; sleep 0.05; done
# The holder gets to know another balancer: it keeps the address, and still runs after three seconds.
sed -i 's/^ *192.168.10.41$/&\n192.168.10.49/' /etc/keepalived/keepalived.conf
states() { cat a.log b.log | grep -c 'Entering'; }
before=$(states)
kill -HUP $(cat ka)
for i in $(seq 600); do grep -q 'Reload complete' a.log && break; sleep 0.05; done
for i in $(seq 60); do has a && ! has b && kill -0 $(cat kav) && [ $(states) = $before ] || { echo 'a reload moves the address'; cat a.log b.log; exit 1; }; sleep 0.05; done
grep -q 'Reload complete' a.log
kill -9 $(cat a.pid)
holder b 'HAProxy killed'
haproxy -D -p a.pid -f /etc/haproxy/haproxy.cfg
for i in $(seq 80); do has b || { echo 'it went back'; exit 1; }; sleep 0.05; done
for x in b a; do # one that takes connections and does not answer is no better
  y=$([ $x = a ] && echo b || echo a)
  kill -STOP $(cat $x.pid)
  holder $y 'HAProxy hangs'
  kill -CONT $(cat $x.pid)
done
# the network falls in two, the address on the other side
nft 'add table ip cut; add chain ip cut in { type filter hook input priority 0; }; add rule ip cut in ip saddr 192.168.10.41 drop'
nft 'add chain ip cut out { type filter hook output priority 0; }; add rule ip cut out ip daddr 192.168.10.41 drop'
holder_alone() { start=$(now); while ! has a; do [ $(( ($(now) - start) / 1000000000 )) -lt 60 ] || { cat a.log; exit 1; }; sleep 0.05; done; echo "MOVED peer not heard: $(( ($(now) - start) / 1000000 )) ms"; }
holder_alone
nft delete table ip cut # and is one again, with one holder
for i in $(seq 1200); do if has a && has b; then sleep 0.05; else break; fi; done
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

// Who still uses a connection that is gone, because an address has moved to a node that does not have its port open, learns it at once;
// nothing tells of such a port to who only tries to connect.
func TestConnectionsThatAreGone(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"nft", "iptables-restore", "php8.2"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	for d, load := range map[string]string{"debian12": "nft -f /etc/nftables.conf", "centos7": "iptables-restore </etc/sysconfig/iptables"} {
		s := reference(t, c, d)
		n, _ := s.Node("balancer1")
		out, err := inSandbox(t, n, together(t, c, s, testSecrets(c, s), "balancer1"), anotherNetwork+`
ip addr add 10.9.9.50/32 dev lo
for holder in former current; do
  network $holder
  inside $holder sh -euc 'ip addr add 10.9.9.39/32 dev eth0; ip route add 10.9.9.50 dev eth0'
done
ip route add 10.9.9.39 dev former
inside former php8.2 -r '$s = stream_socket_server("tcp://0.0.0.0:8443"); touch("listens"); while (true) $c[] = stream_socket_accept($s, -1);' &
for i in $(seq 600); do [ -e listens ] && break; sleep 0.05; done
cat >moves <<'end'
nsenter --net=/proc/$network_current/ns/net sh -euc '`+load+`'
ip route replace 10.9.9.39 dev current
end
export network_current
cat >visitor.php <<'end'
<?php
$c = stream_socket_client('tcp://10.9.9.39:8443');
fwrite($c, 'a request');
system('sh -eu moves', $failed);
fwrite($c, 'another request');
stream_set_timeout($c, 20);
fread($c, 1);
if ($failed || stream_get_meta_data($c)['timed_out'] || !feof($c)) exit("it waits for an answer\n");
$began = microtime(true);
if (@stream_socket_client('tcp://10.9.9.39:8443', $code, $message, 1) || microtime(true) - $began < 0.9) exit("an attempt to connect gets an answer: $message\n");
echo "learned\n";
end
php8.2 visitor.php | tee said
grep -q learned said
`)
		if err != nil {
			t.Errorf("%s: %v\n%s", d, err, out)
		}
	}
}

// When an address leaves its node as planned, who waits for an answer from it learns that at once, and new connections still work until it
// has gone.
func TestWhoWaitsLearnsThatTheAddressGoes(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"ss", "php8.2"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("balancer1")
	out, err := inSandbox(t, n, together(t, c, s, testSecrets(c, s), "balancer1"), anotherNetwork+`
network visitor
ip addr add 192.168.10.39/32 dev visitor
ip route add 10.9.9.50 dev visitor
inside visitor sh -euc 'ip addr add 10.9.9.50/32 dev eth0; ip route add 192.168.10.39 dev eth0'
php8.2 -r '$s = stream_socket_server("tcp://0.0.0.0:80"); touch("listens"); while (true) $c[] = stream_socket_accept($s, -1);' &
for i in $(seq 600); do [ -e listens ] && break; sleep 0.05; done
unit=/etc/systemd/system/keepalived.service.d/90-imagegen.conf
sed -n 's/^ExecStop=-//p' $unit >stop
sed -n 's/^ExecStopPost=-//p' $unit >stopped
grep -q . stop
cat >visitor.php <<'end'
<?php
$c = stream_socket_client('tcp://192.168.10.39:80');
fwrite($c, 'a request');
touch('waits');
stream_set_timeout($c, 20);
fread($c, 1);
if (stream_get_meta_data($c)['timed_out'] || !feof($c)) exit("it waits for an answer\n");
# Whom it asks at once is the node that is about to lose the address.
if (@stream_socket_client('tcp://192.168.10.39:80', $code, $message, 0.3)) exit("the next request would wait, too\n");
touch('learned');
for ($i = 0; $i < 600 && !file_exists('moved'); $i++) usleep(50000);
if (!stream_socket_client('tcp://192.168.10.39:80', $code, $message, 3)) exit("no connection any more: $message\n");
echo "connected\n";
end
inside visitor php8.2 visitor.php >said & v=$!
for i in $(seq 600); do [ -e waits ] && break; sleep 0.05; done
sh -eu stop
for i in $(seq 600); do [ -e learned ] || ! kill -0 $v && break; sleep 0.05; done
sh -eu stopped
touch moved
wait $v
grep -q connected said || { cat said; exit 1; }
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

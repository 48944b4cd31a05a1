package roles

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/secrets"
	"imagegen/distro"
	"imagegen/internal/testkit"
)

// httpsSpec is the reference cluster with site.tls, and with site.url if there is one.
func httpsSpec(t testing.TB, c *Catalogue, distro, url, tls string) *cluster.Spec {
	t.Helper()
	site := "  tls: " + tls + "\n"
	if url != "" {
		site += "  url: " + url + "\n"
	}
	return parse(t, c, strings.Replace(string(cluster.Reference(distro)), "\nsite:\n", "\nsite:\n"+site, 1))
}

// httpsFiles are the files that site.tls changes, by node.
var httpsFiles = map[string][]string{
	"balancer1": {"/etc/haproxy/haproxy.cfg", "/etc/imagegen/site.pem"},
	"web1":      {"/etc/nginx/nginx.conf"},
	"backend1":  {"/usr/share/wordpress/wp-config.php"},
}

// TestHTTPSGolden compares what site.tls changes.
func TestHTTPSGolden(t *testing.T) {
	c := mustLoad(t, "")
	for _, distro := range distro.Names() {
		for name, s := range map[string]*cluster.Spec{
			"tls":         httpsSpec(t, c, distro, "https://www.example.com", "{certificate: a.pem, key: b.pem, hsts: 31536000}"),
			"tls-no-name": httpsSpec(t, c, distro, "", "self-signed"),
		} {
			sec := testSecrets(c, s)
			sec.Site = secrets.KeyPair{Cert: []byte("certificate of the site\n"), Key: []byte("key of the site\n")}
			var b strings.Builder
			for _, node := range []string{"balancer1", "web1", "backend1"} {
				r, err := c.Render(s, sec, node)
				if err != nil {
					t.Fatal(err)
				}
				for _, path := range httpsFiles[node] {
					for _, f := range r.Files {
						if f.Path == path {
							b.WriteString(show(f))
						}
					}
				}
			}
			testkit.Golden(t, filepath.Join("testdata", "golden", distro, name+".txt"), []byte(b.String()))
		}
	}
}

// TestHTTPSOnlyIfWanted: site.tls changes the files of the tiers in front of the database, and none without it has a file or a setting
// for it. Only balancers get the key, and only root can read it there.
func TestHTTPSOnlyIfWanted(t *testing.T) {
	c := mustLoad(t, "")
	for _, distro := range distro.Names() {
		plain, tls := reference(t, c, distro), httpsSpec(t, c, distro, "", "self-signed")
		site := secrets.KeyPair{Cert: []byte("certificate of the site\n"), Key: []byte("key of the site\n")}
		for _, n := range tls.Nodes() {
			sec := testSecrets(c, tls)
			before, err := c.Render(plain, sec, n.Name)
			if err != nil {
				t.Fatal(err)
			}
			sec.Site = site
			after, err := c.Render(tls, sec, n.Name)
			if err != nil {
				t.Fatal(err)
			}
			content := map[string]string{}
			for _, f := range before.Files {
				content[f.Path] = string(f.Content)
				for _, word := range []string{":443", "ssl crt", "Proto", "visited_https", "site.pem"} {
					if n.Role != "databalancer" && f.Path != "/etc/imagegen/node.json" && strings.Contains(string(f.Content), word) {
						t.Errorf("%s %s: %s has %s without site.tls", distro, n.Name, f.Path, word)
					}
				}
			}
			for _, f := range after.Files {
				known := append(httpsFiles[n.Role+"1"], "/etc/imagegen/node.json")
				if content[f.Path] != string(f.Content) && !strings.Contains(strings.Join(known, " ")+" ", f.Path+" ") {
					t.Errorf("%s %s: site.tls changes %s", distro, n.Name, f.Path)
				}
				if holds := bytes.Contains(f.Content, site.Key); holds != (n.Role == "balancer" && f.Path == "/etc/imagegen/site.pem") || holds && (f.Mode != 0o600 || f.Owner != "root:root" || !f.Secret) {
					t.Errorf("%s %s: %s %04o %s holds the key: %t", distro, n.Name, f.Path, f.Mode, f.Owner, holds)
				}
			}
		}
	}
}

// The site's certificate is only for roles that say that they serve HTTPS, and only if there is one.
func TestCertificateIsForBalancers(t *testing.T) {
	const role = "description: a tool\ntls: true\ndistros: {debian12: {packages: [tree]}}\nfiles: [{path: /etc/tool, template: tool, mode: '0600'}]\n"
	const spec = "cluster: c\ndistro: debian12\nnetwork: {cidr: 10.1.0.0/16}\nroles:\n  tool: {nodes: {tool1: 10.1.0.1}}\n"
	for _, test := range []struct{ role, spec, want string }{
		{role, spec, "the spec has no site.tls; leave the file out then, with when"},
		{strings.Replace(role, "tls: true\n", "", 1), spec, "the role does not serve HTTPS; if it does, add tls: true to role.yaml"},
		{strings.Replace(role, ", mode: '0600'", "", 1), spec + "site: {tls: self-signed}\n", "/etc/tool contains a secret and must not be world-readable"},
		{strings.Replace(role, "template: tool", "template: tool, when: '{{siteCertificate}}'", 1), spec + "site: {tls: self-signed}\n", "facts hold no secrets"},
	} {
		c := mustLoad(t, folder(t, map[string]string{"tool/role.yaml": test.role, "tool/tool": "{{siteCertificate}}"}))
		s := parse(t, c, test.spec)
		if _, err := c.Render(s, testSecrets(c, s), "tool1"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}

// TestHTTPSPrograms: the programs that read the files that site.tls changes find no fault with them.
func TestHTTPSPrograms(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	c := mustLoad(t, "")
	for _, distro := range distro.Names() {
		for name, s := range map[string]*cluster.Spec{
			"files":       httpsFromFiles(t, c, distro),
			"self-signed": httpsSpec(t, c, distro, "", "self-signed"),
		} {
			sec := realSecrets(t, c, s)
			for node, paths := range httpsFiles {
				n, _ := s.Node(node)
				r, err := c.Render(s, sec, node)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range r.Files {
					ck, ok := checkers[f.Check]
					if !ok || !strings.Contains(strings.Join(paths, " ")+" ", f.Path+" ") {
						continue
					}
					testkit.Program(t, ck.program, "")
					if out, err := inSandbox(t, n, r.Files, "F="+f.Path+"\n"+ck.script); err != nil {
						t.Errorf("%s, %s: %v\n%s\n%s", distro, name, err, out, f.Content)
					}
				}
			}
		}
	}
}

// httpsFromFiles is a cluster whose certificate comes from files, as most do.
func httpsFromFiles(t *testing.T, c *Catalogue, distro string) *cluster.Spec {
	t.Helper()
	dir := t.TempDir()
	_, chain, key := testkit.Certificate(t, "www.example.com", time.Now().AddDate(0, 2, 0))
	for name, data := range map[string][]byte{"fullchain.pem": chain, "privkey.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return httpsSpec(t, c, distro, "https://www.example.com", "{certificate: "+dir+"/fullchain.pem, key: "+dir+"/privkey.pem, hsts: 31536000}")
}

// TestHTTPS requests pages over HTTPS from outside, through HAProxy, nginx and PHP-FPM, and renews the certificate.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"haproxy", "nginx", "php-fpm8.2", "curl", "openssl"} {
		testkit.Program(t, p, "")
	}
	c := mustLoad(t, "")
	s := httpsSpec(t, c, "debian12", "https://www.example.com", "{certificate: a.pem, key: b.pem, hsts: 31536000}")
	sec := testSecrets(c, s)
	end := time.Now().AddDate(0, 2, 0)
	ca, chain, key := testkit.Certificate(t, "www.example.com", end)
	sec.Site = secrets.KeyPair{Cert: chain, Key: key}
	n, _ := s.Node("web1")
	files := together(t, c, s, sec, "web1", "backend1", "balancer1")
	renewedCA, chain, key := testkit.Certificate(t, "www.example.com", end)
	for name, data := range map[string][]byte{"ca.crt": ca, "renewed-ca.crt": renewedCA, "renewed.pem": append(chain, key...)} {
		files = append(files, RenderedFile{Path: "/etc/test/" + name, Mode: 0o600, Owner: "root:root", Content: data})
	}
	out, err := inSandbox(t, n, files, `
for a in 39 40 47; do ip addr add 192.168.10.$a/32 dev eth0; done
ip addr add 10.1.1.1/32 dev eth0 # a visitor's
core=/usr/share/wordpress
mount -t tmpfs core $core # instead of this machine's
mkdir -p /var/log /var/lib/nginx /var/lib/haproxy/dev /run/php /mnt/gluster/wordpress/wp-content
sed -i "s/listen 80 /listen $IP:80 /; s|access_log syslog.* combined|access_log /tmp/access.log combined|" /etc/nginx/nginx.conf
# HAProxy's packets come from the balancer, and nginx' from the web node.
ip route replace local $IP dev eth0 src 192.168.10.40 table local
ip route replace local 192.168.10.47 dev eth0 src $IP table local
cat >$core/index.php <<'END'
<?php
foreach (['REMOTE_ADDR', 'HTTPS', 'REQUEST_SCHEME', 'SERVER_PORT', 'HTTP_HOST', 'HTTP_X_FORWARDED_FOR'] as $name) {
	echo $name, '=', $_SERVER[$name] ?? '', "\n";
}
END
# Answers when the file go is there.
cat >$core/slow.php <<'END'
<?php
touch('/tmp/asked-' . $_GET['n']);
while (!file_exists('/tmp/go')) { usleep(20000); clearstatcache(); }
echo 'answered ', $_GET['n'], "\n";
END
nginx 2>nginx.log
haproxy -W -D -p haproxy.pid -f /etc/haproxy/haproxy.cfg
php-fpm8.2 --daemonize --fpm-config /etc/php/8.2/fpm/php-fpm.conf
ca=/etc/test/ca.crt
visit() { curl -s --interface 10.1.1.1 --cacert $ca --resolve www.example.com:443:192.168.10.39 --resolve www.example.com:80:192.168.10.39 --resolve other.example.com:80:192.168.10.39 "$@"; }
site=https://www.example.com
connect() { openssl s_client -connect 192.168.10.39:443 -servername www.example.com -CAfile $ca -verify_hostname www.example.com -verify_return_error "$@" </dev/null 2>&1 || true; }
has() { connect $1 >out; shift; grep -e "$*" out || { cat out; exit 1; }; }
want() { [ "$1" = "$2" ] || { echo "got $1, want $2"; cat nginx.log; exit 1; }; }
for i in $(seq 600); do [ "$(visit -o body -w '%{http_code}' $site/)" = 200 ] && break; sleep 0.1; done
want "$(visit -o body -w '%{http_version} %{http_code}' $site/)" '2 200'
want "$(visit --http1.1 -o body -w '%{http_version} %{http_code}' $site/)" '1.1 200'

# Protocols and ciphers. The client would take older ones.
has '-alpn h2,http/1.1' 'ALPN protocol: h2'
has '-tls1_3' 'Verify return code: 0'
has '-tls1_2' 'Cipher is ECDHE-ECDSA-'
has '-tls1_1 -cipher ALL:@SECLEVEL=0' 'alert protocol version'
has '-tls1 -cipher ALL:@SECLEVEL=0' 'alert protocol version'
has '-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0' 'alert handshake failure'

# Plain HTTP leads to HTTPS, at the name that the certificate is for.
want "$(visit -o body -w '%{http_code} %{redirect_url}' 'http://www.example.com/a/?b=c')" '301 https://www.example.com/a/?b=c'
want "$(visit -o body -w '%{http_code} %{redirect_url}' -X POST -d x http://other.example.com/wp-login.php)" '301 https://www.example.com/wp-login.php'
visit -D head -o body $site/; grep -i '^strict-transport-security: max-age=31536000' head
visit -D head -o body http://www.example.com/; not grep -i '^strict-transport-security' head

# The page and the log have the visitor's address, and the page knows that it is encrypted, whatever the visitor says.
hears() { for line in "$@"; do grep -xF "$line" body || { cat body; exit 1; }; done; }
for version in --http2 --http1.1; do
	: >access.log
	visit $version -o body -H 'X-Forwarded-For: 6.6.6.6, 7.7.7.7' -H 'X-Forwarded-Proto: http' $site/
	hears REMOTE_ADDR=10.1.1.1 HTTPS=on REQUEST_SCHEME=https SERVER_PORT=443 HTTP_HOST=www.example.com HTTP_X_FORWARDED_FOR=10.1.1.1
	for i in $(seq 600); do [ -s access.log ] && break; sleep 0.1; done
	grep '^10\.1\.1\.1 - - ' access.log; not grep -e '6\.6\.6\.6' -e '7\.7\.7\.7' access.log
done
# Nobody but a balancer is believed.
curl -s -o body --interface 192.168.10.47 -H 'X-Forwarded-For: 1.2.3.4' -H 'X-Forwarded-Proto: https' http://$IP/
hears REMOTE_ADDR=192.168.10.47 HTTPS= REQUEST_SCHEME=http SERVER_PORT=80
curl -s -o body --interface 192.168.10.40 -H 'X-Forwarded-For: 1.2.3.4' -H 'X-Forwarded-Proto: https' http://$IP/
hears REMOTE_ADDR=1.2.3.4 HTTPS=on

# A renewed certificate, taken over as the agent does, while requests are being answered.
for n in 1 2; do
	version=--http2; [ $n = 1 ] || version=--http1.1
	visit $version -o slow$n -w '%{http_code}\n' "$site/slow.php?n=$n" >code$n & eval "slow$n=$!"
	for i in $(seq 600); do [ -e asked-$n ] && break; sleep 0.1; done
	[ -e asked-$n ]
done
cp /etc/test/renewed.pem /etc/imagegen/site.pem
haproxy -c -q -f /etc/haproxy/haproxy.cfg
kill -USR2 $(cat haproxy.pid)
ca=/etc/test/renewed-ca.crt
for i in $(seq 600); do [ "$(visit -o body -w '%{http_code}' $site/)" = 200 ] && break; sleep 0.1; done
want "$(visit -o body -w '%{http_code}' $site/)" 200
not visit --cacert /etc/test/ca.crt $site/ # the old one is gone
touch go
wait $slow1; wait $slow2
for n in 1 2; do want "$(cat code$n)" 200; want "$(cat slow$n)" "answered $n"; done
`)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

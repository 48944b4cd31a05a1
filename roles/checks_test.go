package roles

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/distro"
	"imagegen/internal/testkit"
)

// redisClient is a client with (ask) and without (cli) the password of the Redis or Sentinel whose file is $F.
const redisClient = `
pw=$(sed -n 's/^requirepass //p' $F); tls=
if grep -q '^tls-port ' $F; then tls="--tls --cacert /etc/imagegen/pki/ca.crt --cert /etc/imagegen/pki/node.crt --key /etc/imagegen/pki/node.key"; fi
cli() { redis-cli $tls "$@"; }
ask() { REDISCLI_AUTH=$pw redis-cli $tls "$@"; }
`

// checker runs a real program on a rendered file, at its own path, in a sandbox that looks like the node.
type checker struct {
	program string
	script  string // $F is the file, $IP the node's address
}

var checkers = map[string]checker{
	"haproxy":    {"haproxy", `haproxy -c -f $F >out 2>&1 || { cat out; exit 1; }; not grep -E 'WARNING|ALERT' out`},
	"keepalived": {"keepalived", `keepalived -t -f $F >out 2>&1 || { cat out; exit 1; }; not grep . out`},
	"nginx":      {"nginx", `nginx -t -q -c $F`},
	"nft":        {"nft", `nft -c -f $F; nft -f $F; nft list ruleset | grep -q 'policy drop'`},
	"iptables":   {"iptables-restore", `iptables-restore <$F; iptables -S INPUT | grep -x -e '-P INPUT DROP'; [ $(iptables -S INPUT | wc -l) = $(grep -c -e '^-A' -e '^:INPUT' $F) ]`},
	"ip6tables":  {"ip6tables-restore", `ip6tables-restore <$F; ip6tables -S INPUT | grep -x -e '-P INPUT DROP'; [ $(ip6tables -S INPUT | wc -l) = $(grep -c -e '^-A' -e '^:INPUT' $F) ]`},
	"php":        {"php8.2", `php8.2 -l $F`},
	"php-fpm":    {"php-fpm8.2", `printf '[global]\nerror_log = /dev/stderr\ninclude = %s\n' $F >fpm.conf; php-fpm8.2 -t -y fpm.conf`},
	"php-ini":    {"php8.2", `php8.2 -c $F -r 'exit(ini_get("upload_max_filesize") == "64M" && ini_get("opcache.revalidate_freq") == "1" ? 0 : 1);' 2>&1`},
	"redis": {"redis-server", redisClient + `
cp $F /var/lib/redis/redis.conf; chown redis /var/lib/redis/redis.conf
setpriv --reuid redis --regid redis --clear-groups redis-server /var/lib/redis/redis.conf >log 2>&1 &
for i in $(seq 600); do ask -h $IP ping 2>/dev/null | grep -q PONG && break; sleep 0.05; done
cli -h $IP ping | grep NOAUTH || { cat log; exit 1; }
[ "$(ask config get appendfsync | tail -n 1)" = everysec ]
[ "$(ask config get maxmemory | tail -n 1)" = 134217700 ]
ask set k v | grep OK
ask config rewrite | grep OK`},
	"sentinel": {"redis-server", redisClient + `
f=/var/lib/redis/sentinel.conf
{ cat $F; echo "sentinel monitor mymaster $IP 6379 2"; echo "sentinel auth-pass mymaster $pw"; } >$f; chown redis $f
setpriv --reuid redis --regid redis --clear-groups redis-server $f --sentinel >log 2>&1 &
for i in $(seq 600); do ask -p 26379 ping 2>/dev/null | grep -q PONG && break; sleep 0.05; done
cli -h $IP -p 26379 ping | grep NOAUTH || { cat log; exit 1; }
ask -p 26379 sentinel get-master-addr-by-name mymaster | grep -x "$IP"
grep -q 'sentinel myid' $f # it can rewrite its file`},
	"mariadb": {"mariadbd", `
mariadbd --user=mysql --verbose --help >out 2>err || { cat err; exit 1; }
not grep -Ei 'unknown|error|ambiguous|deprecat' err
grep -E '^wsrep-cluster-name +pxc-cluster$' out; grep -E '^wsrep-slave-threads +8$' out; grep -E '^wsrep-cluster-address +gcomm://' out; grep -E '^wsrep-sst-donor +percona[0-9],percona[0-9],$' out`},
	"systemd": {"systemd-analyze", `
case $F in *.d/*.conf) unit=$(basename $(dirname $F) .d);; *) unit=$F;; esac
[ -e /usr/sbin/mount.glusterfs ] || touch /usr/sbin/mount.glusterfs
systemd-analyze verify --man=no $unit >out 2>&1 || { cat out; exit 1; }; not grep . out`},
}

// untested are checks without a program here; their files are only compared with golden files. TestGaleraLife runs sql.
var untested = map[string]bool{"glusterd": true, "proxysql": true, "sql": true, "": true}

// TestRealPrograms: the program that will read it checks every file of every node.
func TestRealPrograms(t *testing.T) {
	needSandbox(t)
	c := mustLoad(t, "")
	for _, distro := range distro.Names() {
		s := reference(t, c, distro)
		sec := realSecrets(t, c, s)
		for _, n := range s.Nodes() {
			r, err := c.Render(s, sec, n.Name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Files {
				if untested[f.Check] {
					continue
				}
				// Only newer versions of centos7's programs are available here, and none of its units. el7_test.go
				// compares the files with what the old versions support.
				if distro == "centos7" && (n.Index > 0 || f.Check == "systemd") {
					continue
				}
				t.Run(path.Join(distro, n.Name, path.Base(f.Path)), func(t *testing.T) {
					ck, ok := checkers[f.Check]
					if !ok {
						t.Fatalf("no checker for %q", f.Check)
					}
					testkit.Program(t, ck.program, "")
					out, err := inSandbox(t, n, r.Files, "F="+f.Path+"\n"+ck.script)
					if err != nil {
						t.Errorf("%v\n%s\n%s", err, out, f.Content)
					}
				})
			}
		}
	}
}

// realSecrets returns secrets with real certificates and keys.
func realSecrets(t *testing.T, c *Catalogue, s *cluster.Spec) *secrets.Secrets {
	t.Helper()
	sec, err := secrets.Load(filepath.Join(t.TempDir(), "secrets"), s, c.SecretNames(s))
	if err != nil {
		t.Fatal(err)
	}
	return sec
}

func needSandbox(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: running the real programs needs root, for namespaces")
	}
	for _, p := range []string{"unshare", "ip", "setpriv"} {
		testkit.Program(t, p, "")
	}
}

// prologue sets up a sandbox: an overlay over this machine's root, a network with only the node's own address, and the
// users and files of the node's image.
const prologue = `
set -eu
mount -t tmpfs tmpfs "$DIR"
mkdir "$DIR/up" "$DIR/work" "$DIR/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$DIR/up,workdir=$DIR/work" "$DIR/root"
cd "$DIR/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p run/mysqld run/php usr/local/sbin var/lib/redis
ip link set lo up
ip link add eth0 type bridge
ip link set eth0 up
ip addr add "$IP/24" dev eth0
echo 'nginx:x:2000:3000::/nonexistent:/usr/sbin/nologin' >>etc/passwd
echo 'nginx:x:3000:' >>etc/group
grep -q ^proxysql: etc/group || echo 'proxysql:x:3999:' >>etc/group
for u in redis mysql haproxy; do grep -q "^$u:" etc/passwd || { echo "$u:x:3998:3998::/:/bin/false" >>etc/passwd; echo "$u:x:3998:" >>etc/group; }; done
chroot . chown redis /var/lib/redis; chroot . chown mysql /run/mysqld
rm -rf var/lib/mysql; mkdir -m 750 var/lib/mysql; chroot . chown mysql /var/lib/mysql
chroot . tar -xpf - -C / --same-owner
exec chroot . sh -euc 'cd /tmp; not() { if "$@"; then exit 1; fi; }; eval "$SCRIPT"'
`

// inSandbox runs a shell script in such a sandbox.
func inSandbox(t *testing.T, n cluster.Node, files []RenderedFile, script string) (string, error) {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range files {
		user, group, _ := strings.Cut(f.Owner, ":")
		h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: int64(f.Mode), Size: int64(len(f.Content)), Uname: user, Gname: group, Uid: 65534, Gid: 65534}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // scripts that wait have limits of their own
	defer cancel()
	// The PID namespace ends with its first process.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "sh", "-c", prologue)
	cmd.Env = append(os.Environ(), "DIR="+t.TempDir(), "IP="+n.IP.String(), "SCRIPT="+script, "LC_ALL=C")
	cmd.Stdin = &archive
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestGaleraLife creates a member with the commands that the agent gets, starts it as a new cluster, runs the rendered
// SQL twice, kills it, and asks for its position.
func TestGaleraLife(t *testing.T) {
	t.Parallel()
	needSandbox(t)
	for _, p := range []string{"mariadbd", "mariadb-install-db", "socat"} {
		testkit.Program(t, p, "")
	}
	if _, err := os.Stat("/usr/lib/galera/libgalera_smm.so"); err != nil {
		t.Skip("NOT TESTED: no Galera on this machine (make checkers installs it)")
	}
	c := mustLoad(t, "")
	s := reference(t, c, "debian12")
	n, _ := s.Node("percona1")
	r, err := c.Render(s, realSecrets(t, c, s), n.Name)
	if err != nil {
		t.Fatal(err)
	}
	p := params[facts.GaleraParams](t, r, "galera")
	script := quoted(p.InstallDB) + ` >install.log 2>&1 || { cat install.log; exit 1; }
start() { mariadbd --user=mysql --wsrep-new-cluster >log 2>&1 & pid=$!
  for i in $(seq 900); do echo 'show status like "wsrep_ready"' | sql 2>/dev/null | grep -q ON && return; sleep 0.1; done; cat log; exit 1; }
sql() { ` + quoted(p.Client) + `; }
start
sql <` + p.InitSQL + `
sql <` + p.InitSQL + `
echo 'select user, host from mysql.global_priv order by 1, 2' | sql
app=$(sed -n "s/^ALTER USER 'wordpress'.* IDENTIFIED BY '\(.*\)';/\1/p" ` + p.InitSQL + `)
mariadb -N -h $IP -u wordpress -p$app wordpress <<-END
	create table t (id int primary key auto_increment, v text);
	insert into t (v) values ('x');
END
not mariadb -h $IP -u wordpress -p$app -e 'select 1 from mysql.global_priv' 2>&1
not mariadb -h $IP -u root -e 'select 1' 2>&1
echo 'select concat("state ", variable_value) from information_schema.global_status where variable_name = "wsrep_local_state_comment"' | sql
kill -9 $pid; wait $pid || true
` + quoted(p.Recover) + ` | grep 'Recovered position'
`
	out, err := inSandbox(t, n, r.Files, script)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"state Synced", "wordpress\t%", "sst\tlocalhost", "root\tlocalhost"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for line := range strings.Lines(out) {
		if user, host, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok && (user == "" || user == "root" && host != "localhost") {
			t.Errorf("there is a user %q at %q", user, host)
		}
	}
}

func quoted(argv []string) string {
	q := make([]string, len(argv))
	for i, a := range argv {
		q[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(q, " ")
}

// params returns the parameters of a component of a node.
func params[P any](t *testing.T, r Rendered, name string) *P {
	t.Helper()
	for _, c := range r.Facts.Components {
		if c.Name == name {
			p, err := facts.DecodeParams(c.Kind, c.Params)
			if err != nil {
				t.Fatal(err)
			}
			typed, ok := p.(*P)
			if !ok {
				t.Fatalf("%s is a %T", name, p)
			}
			return typed
		}
	}
	t.Fatalf("%s has no component %s", r.Facts.Node.Name, name)
	return nil
}

// TestPackagesResolve asks APT for the packages of images, starting from nothing: the backend's, and all packages at
// once.
func TestPackagesResolve(t *testing.T) {
	t.Parallel()
	testkit.Program(t, "apt-get", "")
	if out, err := exec.Command("apt-cache", "policy", "haproxy").Output(); err != nil || !strings.Contains(string(out), "Candidate: 2.6") {
		t.Skip("NOT TESTED: APT on this machine does not know the packages of Debian 12 (apt-get update)")
	}
	install := func(packages []string) string {
		argv := []string{"-s", "-o", "Dir::State::status=/dev/null", "install", "--no-install-recommends", "systemd-sysv"}
		out, err := exec.Command("apt-get", append(argv, packages...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v\n%s", packages, err, out)
		}
		return string(out)
	}
	c := mustLoad(t, "")
	var all []string
	for _, name := range c.Names() {
		all = append(all, c.Role(name).Distros["debian12"].Packages...)
	}
	install(all)
	out := install(c.Role("backend").Distros["debian12"].Packages)
	if !strings.Contains(out, "\nInst wordpress ") {
		t.Errorf("no wordpress in\n%s", out)
	}
	for _, unwanted := range []string{"apache2", "apache2-bin", "php8.2-cgi"} {
		if strings.Contains(out, "\nInst "+unwanted+" ") {
			t.Errorf("the backend's image would hold %s", unwanted)
		}
	}
}

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// packageFile is a file of a package in the images of debian12 that our configuration relies on. An update may change
// it, so the test checks it on nodes whose images are baked from the current archive.
type packageFile struct {
	node, path, pkg string
	relies          string // regular expressions that must match, one per line
}

var packageFiles = []packageFile{
	// Every node.
	{"web1", "/etc/cloud/cloud.cfg", "cloud-init", `
^ - (bootcmd|write-files|write_files)$
^ - (set-hostname|set_hostname)$
^ - (users-groups|users_groups)$
^ - timezone$
^ - ssh$`},
	{"web1", "/lib/systemd/system/nftables.service", "nftables", `
^ExecStart=/usr/sbin/nft -f /etc/nftables.conf$
^ExecReload=/usr/sbin/nft -f /etc/nftables.conf$`},
	{"web1", "/lib/systemd/system/ssh.service", "openssh-server", `^ExecStart=/usr/sbin/sshd -D \$SSHD_OPTS$`},

	{"web1", "/lib/systemd/system/nginx.service", "nginx-common", `
^Type=forking$
^PIDFile=/run/nginx\.pid$
^ExecStart=/usr/sbin/nginx -g 'daemon on; master_process on;'$
^ExecReload=/usr/sbin/nginx -g 'daemon on; master_process on;' -s reload$`},
	{"web1", "/sbin/mount.glusterfs", "glusterfs-client", `"backup-volfile-servers"\)
"log-level"\)`},
	{"backend1", "/sbin/mount.glusterfs", "glusterfs-client", `"backup-volfile-servers"\)
"log-level"\)`},

	{"backend1", "/lib/systemd/system/php8.2-fpm.service", "php8.2-fpm", `
^Type=notify$
^ExecStart=/usr/sbin/php-fpm8\.2 --nodaemonize --fpm-config /etc/php/8\.2/fpm/php-fpm\.conf$`},
	{"backend1", "/etc/php/8.2/fpm/php-fpm.conf", "php8.2-fpm", `^include=/etc/php/8\.2/fpm/pool\.d/\*\.conf$`},
	{"backend1", "/usr/share/wordpress/wp-load.php", "wordpress", `wp-config\.php`},
	{"backend1", "/usr/share/wordpress/wp-includes/version.php", "wordpress", `
^\$wp_version = '[0-9.]+';$
^\$wp_db_version = [0-9]+;$`},
	{"backend1", "/usr/share/wordpress/wp-includes/default-constants.php", "wordpress", `define\( 'WP_DEFAULT_THEME', '[a-z]+' \);`},

	{"balancer1", "/lib/systemd/system/haproxy.service", "haproxy", `
^Type=notify$
^Environment="CONFIG=/etc/haproxy/haproxy\.cfg" 
^ExecStart=/usr/sbin/haproxy -Ws -f \$CONFIG -p \$PIDFILE \$EXTRAOPTS$
^ExecReload=/usr/sbin/haproxy -Ws -f \$CONFIG -c -q \$EXTRAOPTS\nExecReload=/bin/kill -USR2 \$MAINPID$
^BindReadOnlyPaths=/dev/log:/var/lib/haproxy/dev/log$
^KillMode=mixed$`},
	{"balancer1", "/lib/systemd/system/keepalived.service", "keepalived", `
^ConditionFileNotEmpty=/etc/keepalived/keepalived\.conf$
^ExecStart=/usr/sbin/keepalived --dont-fork \$DAEMON_ARGS$`},

	{"glusterfs1", "/lib/systemd/system/glusterd.service", "glusterfs-server", `
^Type=forking$
^PIDFile=/run/glusterd\.pid$
^ExecStart=/usr/sbin/glusterd -p /var/run/glusterd\.pid +--log-level \$LOG_LEVEL \$GLUSTERD_OPTIONS$`},

	{"percona1", "/lib/systemd/system/mariadb.service", "mariadb-server", `
^Type=notify$
^User=mysql$
^EnvironmentFile=-/run/mariadb-wsrep-new-cluster$
exec /usr/sbin/mariadbd \$MYSQLD_OPTS \$_WSREP_NEW_CLUSTER \$VAR"$`},
	{"percona1", "/usr/bin/galera_new_cluster", "mariadb-server", `
^new_cluster=/run/mariadb-wsrep-new-cluster$
^echo _WSREP_NEW_CLUSTER='--wsrep-new-cluster' > "\$new_cluster"
systemctl restart "\$\{1:-mariadb\.service\}"$`},
	{"percona1", "/etc/mysql/mariadb.cnf", "mariadb-common", `(?s)^!includedir /etc/mysql/mariadb\.conf\.d/\s*\z`},
}

// asked is a question to a program on a node: its effective configuration, after all files of ours and of packages have
// been read, or the contents of a folder in which every file counts.
type asked struct {
	node, what, script, want string
}

var effective = []asked{
	{"web1", "files that nginx reads", `nginx -T 2>/dev/null | sed -n 's/^# configuration file \(.*\):$/\1/p'`,
		"/etc/nginx/nginx.conf /etc/nginx/imagegen-mime.types"},
	{"web1", "who may log in over SSH", `mkdir -p /run/sshd; sshd -T 2>/dev/null | grep -E '^(passwordauthentication|kbdinteractiveauthentication|pubkeyauthentication|permitemptypasswords) '`,
		"pubkeyauthentication yes passwordauthentication no kbdinteractiveauthentication no permitemptypasswords no"},
	{"web1", "what is not ours in /etc/cloud/cloud.cfg.d", `ls /etc/cloud/cloud.cfg.d | grep -v imagegen`, "05_logging.cfg README"},
	// It also logs all settings, including the password in session.save_path; the log is on a temporary tmpfs.
	{"backend1", "pools of PHP-FPM", `unshare -m sh -c 'mount -t tmpfs logs /var/log && exec php-fpm8.2 -tt' 2>&1 | sed -n 's/.*NOTICE: \(\[.*\]\)$/\1/p'`, "[global] [alive] [www]"},
	{"backend1", "/etc/php/8.2/fpm/pool.d", `ls /etc/php/8.2/fpm/pool.d`, "www.conf"},
	{"backend1", "the last of PHP's settings", `ls /etc/php/8.2/fpm/conf.d | tail -n 1`, "90-imagegen.ini"},
	{"backend1", "PHP's modules that WordPress uses", `php8.2 -m | grep -xE 'curl|dom|exif|fileinfo|gd|igbinary|intl|json|mbstring|mysqli|openssl|redis|xml|zip|Zend OPcache' | sort -u`,
		"Zend OPcache curl dom exif fileinfo gd igbinary json mbstring mysqli openssl redis xml zip"},
	{"backend1", "links of WordPress to files that are not there", `find -L /usr/share/wordpress -xdev -type l`, ""},
	{"balancer1", "/etc/default/haproxy", `grep -vE '^(#|$)' /etc/default/haproxy`, ""},
	{"balancer1", "/etc/default/keepalived", `grep -vE '^(#|$)' /etc/default/keepalived`, `DAEMON_ARGS=""`},
	// A limit of none, which keepalived sets when it is reloaded and has set its priority itself, would soon kill it.
	{"balancer1", "for how long keepalived may use a processor after a reload", `systemctl reload keepalived.service
for i in $(seq 100); do journalctl -q -b -u keepalived.service | grep -q 'Reload complete' && break; sleep 0.1; done
sed -n 's/^Max realtime timeout *//p' /proc/$(pgrep -P $(systemctl show -p MainPID --value keepalived.service))/limits`, "1000000 1000000 us"},
	{"glusterfs1", "/etc/default/glusterd", `grep -vE '^(#|$)' /etc/default/glusterd`, ""},
	{"redis1", "Redis' own configuration, which nothing reads", `systemctl is-active redis-server.service; systemctl show -p ExecStart --value imagegen-redis.service | grep -o '/etc/redis/[^ ;]*'`, "inactive"},
	// What the package's files set, before ours, of which the first names the members.
	{"percona1", "MariaDB's settings that are not ours", `my_print_defaults --mysqld | sed '/^--wsrep[-_]cluster[-_]address=/,$d'`,
		"--socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/mysqld.pid --basedir=/usr --bind-address=127.0.0.1 --expire_logs_days=10 --character-set-server=utf8mb4 --collation-server=utf8mb4_general_ci"},
	{"percona1", "the last of MariaDB's settings", `LC_ALL=C ls /etc/mysql/mariadb.conf.d | tail -n 2`, "90-imagegen-members.cnf 90-imagegen.cnf"},
}

// onEveryRole is asked on one node of each role. Drop-ins of any origin change units that the agent starts, and other
// files' kernel settings may be applied after ours.
var onEveryRole = []asked{
	{"", "drop-ins of units that the agent starts", `grep -oE '"unit": *"[^"]*"' /etc/imagegen/node.json | cut -d '"' -f 4 | sort -u | while read -r u; do systemctl show -p DropInPaths --value "$u"; done | tr ' ' '\n' | grep -v /90-imagegen.conf$ | grep .`, ""},
	// A container cannot set all of them, but the order of the files is the same everywhere.
	{"", "kernel settings that another file changes after ours", `[ ! -e /etc/sysctl.d/90-imagegen.conf ] || grep -E '^[a-z]' /etc/sysctl.d/90-imagegen.conf | while IFS=' =' read -r k v; do
	last=$(systemd-analyze cat-config sysctl.d | sed -n "s/^-\?$k *= *//p" | tail -n 1)
	[ "$last" = "$v" ] || echo "$k: $last, not $v"
done`, ""},
}

// packagesAreAsReliedOn checks these lists on the running nodes.
func (b *bench) packagesAreAsReliedOn(t *testing.T) {
	for _, f := range packageFiles {
		text, err := b.in(f.node, fmt.Sprintf("cat %s && dpkg -S %[1]s", f.path))
		owner := ""
		if text == "" {
			t.Errorf("%s: %s: %v", f.node, f.path, err)
			continue
		}
		if i := strings.LastIndex(strings.TrimSuffix(text, "\n"), "\n"); i >= 0 {
			owner, text = strings.TrimSpace(text[i+1:]), text[:i+1]
		}
		if name, _, _ := strings.Cut(owner, ": "); name != f.pkg {
			t.Errorf("%s: %s belongs to %q, not to package %s", f.node, f.path, owner, f.pkg)
		}
		for _, r := range strings.Split(strings.TrimSpace(f.relies), "\n") {
			if !regexp.MustCompile("(?m)" + r).MatchString(text) {
				t.Errorf("%s: %s of package %s has nothing that is %s any more:\n%s", f.node, f.path, f.pkg, r, text)
			}
		}
	}
	ask := func(a asked) {
		out, _ := b.in(a.node, a.script) // grep fails if it finds nothing
		if got := strings.Join(strings.Fields(out), " "); got != a.want {
			t.Errorf("%s: %s: %q, want %q", a.node, a.what, got, a.want)
		}
	}
	for _, a := range effective {
		ask(a)
	}
	var roles []string
	for _, n := range b.nodes(t) {
		if !slices.Contains(roles, n.Role) {
			roles = append(roles, n.Role)
			for _, a := range onEveryRole {
				a.node = n.Node
				ask(a)
			}
		}
	}
	if len(roles) != 7 {
		t.Errorf("asked roles %q", roles)
	}
}

// TestPackageFilesAreDocumented: the list in the docs has every file in this list.
func TestPackageFilesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/roles.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(page), "## Files of packages")
	if !found {
		t.Fatal("docs/roles.md has no list of files of packages")
	}
	list, _, _ = strings.Cut(list, "\n## ")
	for _, f := range packageFiles {
		if !strings.Contains(list, "`"+f.path+"`") || !strings.Contains(list, f.pkg) {
			t.Errorf("docs/roles.md does not list %s of package %s", f.path, f.pkg)
		}
	}
}

package agent

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
)

// PHP on a busy machine takes its time, the one of WebAssembly most of all.
func init() { lookLimit = 2 * time.Minute }

func TestSiteIsInstalledByOne(t *testing.T) {
	for name, c := range map[string]struct {
		self string
		seen siteSeen
		held time.Duration
		do   siteDo
		want facts.Status
	}{
		"nothing there":           {"backend1", siteSeen{}, 0, siteCopy, workf("copying the site")},
		"nothing there, second":   {"backend2", siteSeen{}, 0, siteNothing, waitf("for backend1 to copy the site")},
		"died while copying":      {"backend1", siteSeen{Staging: true}, 0, siteClear, workf("removing an unfinished copy")},
		"the other was faster":    {"backend2", siteSeen{Files: true, Config: true, Staging: true, Database: dbEmpty}, 0, siteClear, workf("removing an unfinished copy")},
		"other seed":              {"backend1", siteSeen{Files: true}, 0, siteConfig, workf("renewing the configuration")},
		"other seed, second":      {"backend2", siteSeen{Files: true}, 0, siteNothing, waitf("for backend1 to renew the configuration")},
		"database not asked":      {"backend1", siteSeen{Files: true, Config: true}, 0, siteNothing, workf("asking the database at db:3306")},
		"database down":           {"backend1", siteSeen{Files: true, Config: true, Database: dbSilent, Detail: "connection refused"}, 0, siteNothing, waitf("for the database at db:3306: connection refused")},
		"database empty":          {"backend1", siteSeen{Files: true, Config: true, Database: dbEmpty}, 0, siteInstall, workf("installing the site")},
		"database empty, again":   {"backend1", siteSeen{Files: true, Config: true, Database: dbEmpty}, 1500 * time.Millisecond, siteNothing, workf("installing the site again in 2 s")},
		"database empty, second":  {"backend2", siteSeen{Files: true, Config: true, Database: dbEmpty}, 0, siteNothing, waitf("for backend1 to install the site")},
		"another cluster's site":  {"backend1", siteSeen{Files: true, Config: true, Database: dbForeign, Detail: "x"}, 0, siteNothing, stopf("the database holds the site of another cluster (id x)")},
		"installed":               {"backend2", siteSeen{Files: true, Config: true, Database: dbInstalled}, 0, siteNothing, ready("")},
		"password refused, shown": {"backend1", siteSeen{Files: true, Config: true, Database: dbError, Detail: "Access denied"}, 0, siteNothing, facts.Status{State: facts.Failed, Detail: "database db:3306: Access denied"}},
	} {
		do, got := decideSite(c.self, "backend1", "db:3306", c.seen, c.held)
		if do != c.do || got != c.want {
			t.Errorf("%s: %q, %+v", name, do, got)
		}
	}
}

// testSite makes a site component whose volume is a folder.
func testSite(t *testing.T, node, source, volume, database string) *site {
	t.Helper()
	config := filepath.Join(t.TempDir(), "wp-config.php")
	host, port, _ := net.SplitHostPort(database)
	text := fmt.Sprintf(`<?php
define('DB_NAME', 'wordpress'); define('DB_USER', 'wordpress'); define('DB_PASSWORD', 'pw'); define('DB_HOST', '%s:%s');
$table_prefix = 'wp_';
if (!defined('ABSPATH')) define('ABSPATH', __DIR__ . '/');
require_once ABSPATH . 'wp-settings.php';
`, host, port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n := Node{
		Facts:   facts.Facts{ClusterID: "11111111-2222-4333-8444-555555555555", Node: facts.Peer{Name: node, Role: "backend"}},
		Secrets: map[string]string{"wordpress_admin": "s3cretpassword"},
		Dir:     t.TempDir(), Log: t.Logf, Working: func(string) {},
	}
	return newSite(n, "site", &facts.SiteParams{
		Source: source, Target: filepath.Join(volume, "wordpress"), Config: config, Owner: "www-data:www-data", PHP: []string{"php"},
		Database: database, Title: "It's <our> site", URL: "http://192.168.10.39:8080", Timezone: "Asia/Kolkata", AdminUser: "admin", AdminEmail: "admin@example.org", AdminSecret: "wordpress_admin",
	}).(*site)
}

// driveLimit ends a test that hangs: installing the site takes minutes where all else comes first.
const driveLimit = 10 * time.Minute

// drive lets c take steps until its status is one that it stays in; fails when it takes longer than limit.
func drive(t *testing.T, c Component, w World, limit time.Duration) facts.Status {
	t.Helper()
	var last facts.Status
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := c.Observe(t.Context()); err != nil {
			last = facts.Status{State: facts.Failed, Detail: err.Error()}
			continue
		}
		status, err := c.Step(t.Context(), w)
		if err != nil {
			status = facts.Status{State: facts.Failed, Detail: err.Error()}
		}
		if last = status; status.State != facts.Working {
			return status
		}
	}
	t.Fatalf("still %s after %v: %s", last.State, limit, last.Detail)
	return last
}

func sharedVolume(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to write files as another user")
	}
	dir, err := os.MkdirTemp("", "imagegen-volume")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	return dir
}

func writeTree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSiteFilesAreCopiedWhole(t *testing.T) {
	volume := sharedVolume(t)
	source, elsewhere := t.TempDir(), t.TempDir()
	writeTree(t, source, map[string]string{"wp-load.php": "load", "wp-config.php": "the package's own", "a/b/c.php": "c", "wp-content/db.php": "the package's own"})
	writeTree(t, elsewhere, map[string]string{"lib/x.js": "x"})
	os.Symlink(filepath.Join(elsewhere, "lib"), filepath.Join(source, "a/lib"))
	os.Symlink("/nowhere/htaccess", filepath.Join(source, ".htaccess"))
	s := testSite(t, "backend1", source, volume, "127.0.0.1:1")
	s.params.DropIn = filepath.Join(t.TempDir(), "db.php")
	os.WriteFile(s.params.DropIn, []byte("<?php // ours"), 0o644)

	// A copy that was interrupted.
	writeTree(t, s.staging(), map[string]string{"old/left.php": "half"})
	w := World{Self: s.node.Facts.Node}
	if got := drive(t, s, w, driveLimit); got.State != facts.Waiting || !strings.Contains(got.Detail, "connection refused") {
		t.Errorf("files in place, no database: %+v", got)
	}
	have := map[string]string{}
	filepath.WalkDir(volume, func(path string, e fs.DirEntry, err error) error {
		fi, _ := e.Info()
		rel, _ := filepath.Rel(volume, path)
		if rel == "." {
			return nil
		}
		if owner := fi.Sys().(*syscall.Stat_t).Uid; owner != 33 {
			t.Errorf("%s belongs to %d", rel, owner)
		}
		if !e.IsDir() {
			data, _ := os.ReadFile(path)
			have[rel] = fi.Mode().String() + " " + string(data)
		}
		return nil
	})
	config, _ := os.ReadFile(s.params.Config)
	want := map[string]string{
		"wordpress/wp-load.php":       "-rw-r--r-- load",
		"wordpress/wp-config.php":     "-rw-r----- " + string(config),
		"wordpress/wp-content/db.php": "-rw-r----- <?php // ours",
		"wordpress/a/b/c.php":         "-rw-r--r-- c",
		"wordpress/a/lib/x.js":        "-rw-r--r-- x",
	}
	if fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("have %v\nwant %v", have, want)
	}

	// A new seed brings another configuration.
	for name, path := range map[string]string{"wp-config.php": s.params.Config, "wp-content/db.php": s.params.DropIn} {
		os.WriteFile(path, []byte("<?php // new"), 0o600)
		again := newSite(s.node, "site", s.params)
		drive(t, again, w, driveLimit)
		if data, _ := os.ReadFile(filepath.Join(s.params.Target, name)); string(data) != "<?php // new" {
			t.Errorf("%s: %q", name, data)
		}
	}
}

// A copy that cannot take its place because somebody else's did is no fault. One that cannot for another reason is, whatever
// is there: here the place is a link to a folder, which no folder can be renamed to.
func TestSiteCopyFailsWhenItCannotBeRenamed(t *testing.T) {
	volume := sharedVolume(t)
	source, other := t.TempDir(), t.TempDir()
	writeTree(t, source, map[string]string{"wp-load.php": "load"})
	writeTree(t, other, map[string]string{"wp-load.php": "load", "wp-config.php": "another"})
	s := testSite(t, "backend1", source, volume, "127.0.0.1:1")
	if err := os.Symlink(other, s.params.Target); err != nil {
		t.Fatal(err)
	}
	if err := s.copy(t.Context()); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a copy that cannot be renamed: %v", err)
	}
	if err := s.clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.params.Target); err != nil {
		t.Fatal(err)
	}
	writeTree(t, s.params.Target, map[string]string{"wp-config.php": "another"})
	if err := s.copy(t.Context()); err != nil {
		t.Errorf("another node was faster: %v", err)
	}
}

func TestSiteFromAnArchive(t *testing.T) {
	volume := sharedVolume(t)
	path := filepath.Join(t.TempDir(), "wordpress.tar.gz")
	write := func(files ...string) {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		z := gzip.NewWriter(f)
		a := tar.NewWriter(z)
		for _, name := range files {
			a.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 1, Typeflag: tar.TypeReg})
			a.Write([]byte("x"))
		}
		a.Close()
		z.Close()
		f.Close()
	}
	s := testSite(t, "backend1", path, volume, "127.0.0.1:1")
	w := World{Self: s.node.Facts.Node}
	write("wordpress/wp-load.php", "wordpress/../../escape.php")
	if got := drive(t, s, w, driveLimit); got.State != facts.Failed || !strings.Contains(got.Detail, "archive") && !strings.Contains(got.Detail, "no WordPress") {
		t.Errorf("hostile archive: %+v", got)
	}
	if _, err := os.Stat(s.params.Target); err == nil {
		t.Error("a broken copy took the site's place")
	}
	write("wordpress/wp-load.php", "wordpress/deep/er/x.php")
	s.retry.Reset()
	drive(t, s, w, driveLimit)
	if data, _ := os.ReadFile(filepath.Join(s.params.Target, "deep/er/x.php")); string(data) != "x" {
		t.Errorf("deep/er/x.php: %q", data)
	}
}

func TestTwoCopiesOneSite(t *testing.T) {
	volume := sharedVolume(t)
	source := t.TempDir()
	writeTree(t, source, map[string]string{"wp-load.php": "load", "wp-includes/x.php": "x"})
	var wg sync.WaitGroup
	var sites []*site
	for _, node := range []string{"backend1", "backend2"} { // neither hears the other, so both think that they are the lowest
		s := testSite(t, node, source, volume, "127.0.0.1:1")
		sites = append(sites, s)
		wg.Go(func() { drive(t, s, World{Self: s.node.Facts.Node}, driveLimit) })
	}
	wg.Wait()
	entries, _ := os.ReadDir(volume)
	if len(entries) != 1 || entries[0].Name() != "wordpress" {
		t.Errorf("on the volume: %v", entries)
	}
	if _, err := os.Stat(filepath.Join(sites[0].params.Target, "wp-includes/x.php")); err != nil {
		t.Error(err)
	}
}

// mariadb starts a server of its own on a loopback port and returns its address and a function that runs SQL as root.
func mariadb(t *testing.T) (addr string, sql func(string) string) {
	t.Helper()
	for _, tool := range []string{"mariadbd", "mariadb-install-db", "mariadb", "php"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: needs %s (apt-get install mariadb-server php-cli php-mysql)", tool)
		}
	}
	if out, err := exec.Command("php", "-r", "exit(extension_loaded('mysqli') ? 0 : 1);").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: needs PHP's mysqli (apt-get install php-mysql): %s", out)
	}
	if _, err := os.Stat("/usr/share/wordpress/wp-load.php"); err != nil {
		t.Skip("SKIPPED: needs WordPress (apt-get install --no-install-recommends wordpress)")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+dir, "--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	addr = testkit.FreeAddress(t)
	_, port, _ := net.SplitHostPort(addr)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("mariadbd", "--no-defaults", "--user=root", "--datadir="+dir, "--socket="+socket, "--bind-address=127.0.0.1", "--port="+port,
		"--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	sql = func(q string) string {
		out, err := exec.Command("mariadb", "--no-defaults", "-uroot", "-S", socket, "-N", "-B", "-e", q).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", q, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	testkit.Eventually(t, 2*time.Minute, "mariadbd answers", func() error { return greet(t.Context(), addr) })
	return addr, sql
}

func TestSiteIsInstalledForReal(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: starts a MariaDB; run it without -short")
	}
	addr, sql := mariadb(t)
	volume := sharedVolume(t)
	s := testSite(t, "backend1", "/usr/share/wordpress", volume, addr)
	s.params.DropIn = "../roles/backend/db.php"
	w := World{Self: s.node.Facts.Node}

	// Before the database has its user, the reason is shown.
	if got := drive(t, s, w, driveLimit); got.State != facts.Failed || !strings.Contains(got.Detail, "Access denied for user 'wordpress'") {
		t.Fatalf("no user: %+v", got)
	}
	sql("CREATE DATABASE wordpress; CREATE USER wordpress@'127.0.0.1' IDENTIFIED BY 'pw'; CREATE USER wordpress@localhost IDENTIFIED BY 'pw'; GRANT ALL ON wordpress.* TO wordpress@'127.0.0.1'; GRANT ALL ON wordpress.* TO wordpress@localhost")

	// Killed in the middle: nothing of it may be taken for an installed site.
	testkit.Eventually(t, 2*time.Minute, "the new database is empty", func() error {
		s.Observe(t.Context())
		if s.seen.Database != dbEmpty {
			return fmt.Errorf("%q %s", s.seen.Database, s.seen.Detail)
		}
		return nil
	})
	killed := *s
	wrapper := filepath.Join(t.TempDir(), "php")
	os.Chmod(filepath.Dir(wrapper), 0o755)
	os.WriteFile(wrapper, []byte("#!/bin/sh\nsed 's/wp_install(/posix_kill(getmypid(), 9); wp_install(/; s/^\\$found = /$wpdb->insert($wpdb->options, [\"option_name\" => \"siteurl\", \"option_value\" => \"half\"]); &/' | php\n"), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(wrapper)), 0o755)
	params := *s.params
	params.PHP = []string{wrapper}
	killed.params = &params
	if err := killed.take(t.Context(), siteInstall); err == nil {
		t.Fatal("a killed installation was taken for a success")
	}
	if got := sql("SELECT COUNT(*) FROM wordpress.wp_options WHERE option_name = 'imagegen_site'"); got != "0" {
		t.Fatalf("a killed installation left its marker")
	}

	// A fault is told, whatever the database has said before, but not with what the failing call was given.
	os.WriteFile(wrapper, []byte("#!/bin/sh\nsed 's/wp_install(/(function ($password) { global $wpdb; $wpdb->query(\"nonsense\"); throw new Exception(\"a fault\"); })($params[\"admin_password\"]); wp_install(/' | php -d zend.exception_ignore_args=0\n"), 0o755)
	if err := killed.take(t.Context(), siteInstall); err == nil || !strings.Contains(err.Error(), "Uncaught Exception: a fault in ") || strings.Contains(err.Error(), "s3cret") {
		t.Fatalf("a fault in the middle: %v", err)
	}

	// Two at once, neither knowing of the other.
	other := testSite(t, "backend2", "/usr/share/wordpress", volume, addr)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, c := range []*site{s, other} {
		wg.Go(func() { errs[i] = c.take(t.Context(), siteInstall) })
	}
	wg.Wait()
	if errs[0] != nil && errs[1] != nil {
		t.Fatalf("neither installed: %v; %v", errs[0], errs[1])
	}
	for _, c := range []*site{s, other} {
		c.retry.Reset()
		if got := drive(t, c, w, driveLimit); got.State != facts.Ready {
			t.Errorf("%s: %+v", c.node.Facts.Node.Name, got)
		}
	}
	for q, want := range map[string]string{
		"SELECT GROUP_CONCAT(user_login) FROM wordpress.wp_users":                                                        "admin",
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='siteurl'":                                      "http://192.168.10.39:8080",
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='blogname'":                                     "It&#039;s &lt;our&gt; site",
		"SELECT COUNT(*) FROM wordpress.wp_posts WHERE post_title='Hello world!'":                                        "1",
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='timezone_string'":                              "Asia/Kolkata",
		"SELECT TIMESTAMPDIFF(MINUTE, post_date_gmt, post_date) FROM wordpress.wp_posts WHERE post_title='Hello world!'": "330",
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='permalink_structure'":                          "/%year%/%monthnum%/%day%/%postname%/",
		"SELECT COUNT(*) FROM wordpress.wp_usermeta WHERE meta_key='wp_capabilities' AND meta_value LIKE '%admini%'":     "1",
	} {
		if got := sql(q); got != want {
			t.Errorf("%s: %q, want %q", q, got, want)
		}
	}
	out, err := exec.Command("php", "-r", "define('WP_USE_THEMES', false); $_SERVER['HTTP_HOST']='192.168.10.39:8080'; require '"+s.params.Target+"/wp-load.php'; echo is_wp_error(wp_authenticate('admin', 's3cretpassword')) ? 'refused' : 'welcome';").CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "welcome") {
		t.Errorf("log in: %v: %s", err, out)
	}

	// Again is nothing; another cluster's database is refused.
	if err := s.take(t.Context(), siteInstall); err != nil {
		t.Errorf("again: %v", err)
	}
	foreign := testSite(t, "backend1", "/usr/share/wordpress", volume, addr)
	foreign.node.Facts.ClusterID = "99999999-2222-4333-8444-555555555555"
	if got := drive(t, foreign, w, driveLimit); got.State != facts.Stopped {
		t.Errorf("another cluster's database: %+v", got)
	}
	if err := foreign.take(t.Context(), siteInstall); err != nil || foreign.seen.Database != dbForeign {
		t.Errorf("installing over another cluster's site: %v, %q", err, foreign.seen.Database)
	}
}

// TestDatabaseNodeDies cuts WordPress's connections as a balancer does when the server behind it is gone.
func TestDatabaseNodeDies(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: starts a MariaDB; run it without -short")
	}
	server, sql := mariadb(t)
	sql("CREATE DATABASE wordpress; CREATE TABLE wordpress.t (n INT); CREATE USER wordpress@localhost IDENTIFIED BY 'pw'; CREATE USER wordpress@'127.0.0.1' IDENTIFIED BY 'pw'; GRANT ALL ON wordpress.* TO wordpress@localhost; GRANT ALL ON wordpress.* TO wordpress@'127.0.0.1'")
	dropIn, err := os.ReadFile("../roles/backend/db.php")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		greetings int    // connections that end before the server's greeting
		cut       string // the first packet that holds this is passed on, and its connection ends without the answer
		php       string
		want      string
	}{
		"connecting":     {greetings: 3, php: `echo $wpdb->get_var('SELECT 42');`, want: "42"},
		"read":           {cut: "SELECT 42", php: `echo $wpdb->get_var('SELECT 42');`, want: "42"},
		"nobody answers": {greetings: 1000, php: `echo 'not reached';`, want: "Error establishing a database connection"},
	} {
		t.Run(name, func(t *testing.T) {
			sql("TRUNCATE wordpress.t")
			proxy := cuttingProxy(t, server, c.greetings, c.cut)
			host, port, _ := net.SplitHostPort(proxy)
			dir := t.TempDir()
			writeTree(t, dir, map[string]string{"db.php": string(dropIn), "ask.php": fmt.Sprintf(`<?php
define('DB_NAME', 'wordpress'); define('DB_USER', 'wordpress'); define('DB_PASSWORD', 'pw'); define('DB_HOST', '%s:%s');
define('WP_DEBUG', false); define('WP_CONTENT_DIR', __DIR__); define('ABSPATH', '/usr/share/wordpress/'); define('SHORTINIT', true);
$table_prefix = 'wp_';
require ABSPATH . 'wp-settings.php';
%s`, host, port, c.php)})
			start := time.Now()
			out, err := exec.Command("php", "-d", "error_log="+filepath.Join(dir, "log"), filepath.Join(dir, "ask.php")).Output()
			if !strings.Contains(string(out), c.want) {
				t.Errorf("%v: %s\nwant %s", err, out, c.want)
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("after %v", took)
			}
		})
	}
}

// cuttingProxy stands in front of a server: see TestDatabaseNodeDies.
func cuttingProxy(t *testing.T, server string, greetings int, cut string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var once sync.Once
	serve := func(client net.Conn) {
		defer client.Close()
		upstream, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		defer upstream.Close()
		var mute atomic.Bool
		go func() {
			defer client.Close()
			for buf := make([]byte, 64<<10); ; {
				n, err := upstream.Read(buf)
				if err != nil || mute.Load() {
					return
				}
				client.Write(buf[:n])
			}
		}()
		for buf := make([]byte, 64<<10); ; {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			if cut != "" && bytes.Contains(buf[:n], []byte(cut)) {
				once.Do(func() { mute.Store(true) })
			}
			upstream.Write(buf[:n])
		}
	}
	go func() {
		for i := 0; ; i++ {
			client, err := l.Accept()
			if err != nil {
				return
			}
			if i < greetings {
				client.Close()
				continue
			}
			go serve(client)
		}
	}()
	return l.Addr().String()
}

func TestGreet(t *testing.T) {
	serve := func(reply string, linger bool) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Write([]byte(reply))
				if !linger {
					c.Close()
				}
			}
		}()
		return l.Addr().String()
	}
	for name, c := range map[string]struct {
		reply  string
		linger bool
		want   string
	}{
		"server":         {"\x4a\x00\x00\x00\x0a5.5.5-10.11\x00", true, ""},
		"balancer alone": {"", false, "no server behind the balancer"},
		"hung":           {"", true, "says nothing"},
		"too many":       {"\x17\x00\x00\x00\xff\x10\x04Too many connections", true, "Too many connections"},
		"web server":     {"HTTP/1.1 400 Bad Request", true, "no MySQL server"},
		"short error":    {"\x00\x00\x00\x00\xff", false, "refuses"},
	} {
		addr := serve(c.reply, c.linger)
		testkit.Eventually(t, time.Minute, name, func() error { // greet gives a busy machine two seconds
			err := greet(t.Context(), addr)
			switch {
			case c.want == "":
				return err
			case err == nil || !strings.Contains(err.Error(), c.want):
				return fmt.Errorf("%v, want %q", err, c.want)
			}
			return nil
		})
	}
}

func TestSecretsStayOffTheCommandLine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to run a program as another user")
	}
	dir, err := os.MkdirTemp("", "imagegen-php")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	php := filepath.Join(dir, "php")
	os.WriteFile(php, []byte("#!/bin/sh\ncat >/dev/null\ntr '\\0' ' ' </proc/self/environ; tr '\\0' ' ' </proc/$$/cmdline; id -u\necho '{\"state\":\"error\",\"detail\":\"as '$(id -u)'\"}'\n"), 0o755)
	s := testSite(t, "backend1", "", t.TempDir(), "127.0.0.1:1")
	s.params.PHP = []string{php}
	a, err := s.php(t.Context(), "look")
	if err != nil || a.Detail != "as 33" {
		t.Errorf("%+v, %v", a, err)
	}
	os.WriteFile(php, []byte("#!/bin/sh\ncat >/dev/null; echo broken; tr '\\0' ' ' </proc/$$/environ; tr '\\0' ' ' </proc/$$/cmdline\n"), 0o755)
	if _, err = s.php(t.Context(), "look"); err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "broken") {
		t.Errorf("%v", err)
	}
	if data, _ := json.Marshal(s.seen); strings.Contains(string(data), "s3cret") {
		t.Error("the report holds the password")
	}
}

// A look at the database that takes too long is said to.
func TestSlowLookIsTold(t *testing.T) {
	volume := sharedVolume(t)
	php := filepath.Join(volume, "php")
	if err := os.WriteFile(php, []byte("#!/bin/sh\ncat >/dev/null\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	old := lookLimit
	lookLimit = 200 * time.Millisecond
	t.Cleanup(func() { lookLimit = old })
	s := testSite(t, "backend1", "", volume, "127.0.0.1:1")
	s.params.PHP, s.greeted = []string{php}, true
	if state, detail := s.askDatabase(t.Context()); state != dbError || detail != "PHP, which asks it, has not ended within 200ms" {
		t.Errorf("%s: %s", state, detail)
	}
}

// Backends that boot together agree on one to copy the site, and a lower one that never gets there holds nobody up.
func TestSiteIsCopiedByOne(t *testing.T) {
	self := facts.Peer{Name: "backend2", Role: "backend", Index: 1}
	lower := facts.Peer{Name: "backend1", Role: "backend", Index: 0}
	looked := facts.ComponentReport{Kind: "site", Report: json.RawMessage(`{"files":false,"config":false,"staging":false,"database":""}`)}
	for name, c := range map[string]struct {
		components map[string]facts.ComponentReport // of backend1; nil: not heard
		able       time.Duration
		want       string
	}{
		"alone":                     {nil, 0, "backend2"},
		"the lower takes part":      {map[string]facts.ComponentReport{"site": looked}, time.Hour, "backend1"},
		"the lower is busy copying": {map[string]facts.ComponentReport{"site": {Kind: "site", Status: workf("copying the site")}}, time.Hour, "backend1"},
		"the lower is booting":      {map[string]facts.ComponentReport{"site": {Kind: "site"}}, time.Second, "backend1"},
		"the lower is stuck there":  {map[string]facts.ComponentReport{"site": {Kind: "site"}}, siteHeadStart, "backend2"},
	} {
		w := World{Self: self, Peers: []facts.Peer{lower}, Reports: map[string]PeerReport{}}
		if c.components != nil {
			w.Reports["backend1"] = PeerReport{NodeReport: facts.NodeReport{Node: lower, Components: c.components}}
		}
		if got := new(site).first(w, c.able).Name; got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

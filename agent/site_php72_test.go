package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"imagegen/cluster/facts"
	"imagegen/internal/php72"
)

// TestSiteOnPHP72 installs the site in a MariaDB with the PHP that centos7 has, through the drop-in. Without a database it
// says so; of a database with another cluster's site, and of one with its own, too.
func TestSiteOnPHP72(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: starts a MariaDB; run it without -short")
	}
	t.Parallel()
	addr, sql := mariadb(t)
	volume := sharedVolume(t)
	s := testSite(t, "backend1", realCore(t), volume, addr)
	s.params.DropIn, s.params.ObjectCache = "../roles/backend/db.php", "../roles/backend/object-cache.php"
	s.params.PHP = []string{php72.Program(t)}
	w := World{Self: s.node.Facts.Node}

	if got := drive(t, s, w, driveLimit); got.State != facts.Failed || !strings.Contains(got.Detail, "Access denied for user 'wordpress'") {
		t.Fatalf("no user: %+v", got)
	}
	sql("CREATE DATABASE wordpress; CREATE USER wordpress@'127.0.0.1' IDENTIFIED BY 'pw'; CREATE USER wordpress@localhost IDENTIFIED BY 'pw'; GRANT ALL ON wordpress.* TO wordpress@'127.0.0.1'; GRANT ALL ON wordpress.* TO wordpress@localhost")
	if got := drive(t, s, w, driveLimit); got.State != facts.Ready {
		t.Fatalf("installing: %+v", got)
	}
	for q, want := range map[string]string{
		"SELECT GROUP_CONCAT(user_login) FROM wordpress.wp_users":                               "admin",
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='siteurl'":             "http://192.168.10.39:8080",
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='imagegen_site'":       s.node.Facts.ClusterID,
		"SELECT COUNT(*) FROM wordpress.wp_posts WHERE post_title='Hello world!'":               "1",
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='blogname'":            "It&#039;s &lt;our&gt; site",
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='permalink_structure'": "/%year%/%monthnum%/%day%/%postname%/",
	} {
		if got := sql(q); got != want {
			t.Errorf("%s: %q, want %q", q, got, want)
		}
	}
	if err := s.take(t.Context(), siteInstall); err != nil {
		t.Errorf("again: %v", err)
	}
	s.node.Facts.ClusterID = "99999999-2222-4333-8444-555555555555"
	if err := s.take(t.Context(), siteInstall); err != nil || s.seen.Database != dbForeign {
		t.Errorf("installing over another cluster's site: %v, %q", err, s.seen.Database)
	}
	s.node.Facts.ClusterID = "11111111-2222-4333-8444-555555555555"
	version := s.params.Core + "/wp-includes/version.php"
	os.WriteFile(version, []byte(strings.Replace(readFile(t, version), fmt.Sprint("$wp_db_version = ", s.core.Database), "$wp_db_version = 99999", 1)), 0o644)
	if err := s.take(t.Context(), siteUpgrade); err != nil || s.seen.Database != dbInstalled || s.seen.DBVersion != 99999 || s.seen.Release != s.core.Release {
		t.Errorf("upgrading: %v, %+v", err, s.seen)
	}
	// A database that goes away while PHP asks it.
	config := s.params.Core + "/wp-config.php"
	os.WriteFile(config, []byte(strings.Replace(readFile(t, config), addr, "127.0.0.1:1", 1)), 0o644)
	if a, err := s.php(t.Context(), "look"); err != nil || a.State != "error" || a.Detail == "" {
		t.Errorf("no database: %+v, %v", a, err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

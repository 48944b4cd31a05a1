package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	image := core{Release: "6.8", Database: 60}
	seen := func(change func(*siteSeen)) siteSeen {
		s := siteSeen{Core: 60, Linked: true, Files: true, Config: true, Database: dbInstalled, DBVersion: 60}
		change(&s)
		return s
	}
	in := func(state, detail string) siteSeen {
		return seen(func(s *siteSeen) { s.Database, s.Detail, s.DBVersion = state, detail, 0 })
	}
	older := seen(func(s *siteSeen) { s.DBVersion, s.Release = 50, "6.1" })
	open := facts.Status{}
	for name, c := range map[string]struct {
		self string
		seen siteSeen
		hold facts.Status
		held time.Duration
		do   siteDo
		want facts.Status
	}{
		"fresh root disk":         {"backend2", seen(func(s *siteSeen) { s.Linked = false }), open, 0, siteLink, workf("linking wp-content to the volume")},
		"nothing there":           {"backend1", siteSeen{Linked: true}, open, 0, siteCopy, workf("copying wp-content")},
		"nothing there, second":   {"backend2", siteSeen{Linked: true}, open, 0, siteNothing, waitf("for backend1 to copy wp-content")},
		"died while copying":      {"backend1", siteSeen{Linked: true, Staging: true}, open, 0, siteClear, workf("removing an unfinished copy")},
		"the other was faster":    {"backend2", seen(func(s *siteSeen) { s.Staging = true }), open, 0, siteClear, workf("removing an unfinished copy")},
		"other seed":              {"backend1", seen(func(s *siteSeen) { s.Config = false }), open, 0, siteConfig, workf("renewing the seed's files on the volume")},
		"other seed, second":      {"backend2", seen(func(s *siteSeen) { s.Config = false }), open, 0, siteNothing, waitf("for backend1 to renew the seed's files on the volume")},
		"no default theme":        {"backend1", seen(func(s *siteSeen) { s.Theme = "tt" }), open, 0, siteTheme, workf("adding the theme tt")},
		"no default theme, again": {"backend1", seen(func(s *siteSeen) { s.Theme = "tt" }), open, time.Second, siteNothing, ready("")},
		"no theme, second":        {"backend2", seen(func(s *siteSeen) { s.Theme = "tt" }), open, 0, siteNothing, ready("")},
		"database not asked":      {"backend1", in(dbUnknown, ""), open, 0, siteNothing, workf("asking the database at db:3306")},
		"database down":           {"backend1", in(dbSilent, "connection refused"), open, 0, siteNothing, waitf("for the database at db:3306: connection refused")},
		"database empty":          {"backend1", in(dbEmpty, ""), open, 0, siteInstall, workf("installing the site")},
		"database empty, again":   {"backend1", in(dbEmpty, ""), open, 1500 * time.Millisecond, siteNothing, workf("installing the site again in 2 s")},
		"database empty, second":  {"backend2", in(dbEmpty, ""), open, 0, siteNothing, waitf("for backend1 to install the site")},
		"another cluster's site":  {"backend1", in(dbForeign, "x"), open, 0, siteNothing, stopf("the database holds the site of another cluster (id x)")},
		"installed":               {"backend2", seen(func(*siteSeen) {}), open, 0, siteNothing, ready("")},
		"password refused, shown": {"backend1", in(dbError, "Access denied"), open, 0, siteNothing, facts.Status{State: facts.Failed, Detail: "database db:3306: Access denied"}},
		"older database":          {"backend1", older, open, 0, siteUpgrade, workf("upgrading the database to WordPress 6.8")},
		"older database, again":   {"backend1", older, open, 1500 * time.Millisecond, siteNothing, facts.Status{State: facts.Failed, Detail: "upgrading the database to WordPress 6.8 again in 2 s"}},
		"older database, second":  {"backend2", older, open, 0, siteNothing, ready("backend1 upgrades the database to WordPress 6.8")},
		"older database, held":    {"backend1", older, facts.Status{State: facts.Waiting, Detail: "backend2", Missing: "backend2"}, 0, siteNothing, facts.Status{State: facts.Ready, Detail: "the database's upgrade to WordPress 6.8 waits for backend2", Missing: "backend2"}},
		"newer database":          {"backend1", seen(func(s *siteSeen) { s.DBVersion, s.Release = 70, "6.9" }), open, 0, siteNothing, stopf("the database is that of WordPress 6.9 (its version is 70) and this image has WordPress 6.8 (60): replace this node with an image that has WordPress 6.9, or restore the database from before its upgrade")},
		"newer, other seed":       {"backend1", seen(func(s *siteSeen) { s.DBVersion, s.Config = 70, false }), open, 0, siteNothing, stopf("the database is that of a newer WordPress (its version is 70) and this image has WordPress 6.8 (60): replace this node with an image that has a newer WordPress, or restore the database from before its upgrade")},
	} {
		do, got := decideSite(c.self, "backend1", "db:3306", image, c.seen, c.hold, c.held)
		if do != c.do || got != c.want {
			t.Errorf("%s: %q, %+v", name, do, got)
		}
	}
}

// The database is upgraded only when no backend can serve with an older WordPress, and by one of those with the newest.
func TestUpgradeWaitsForOlderBackends(t *testing.T) {
	report := func(seen string, state facts.State) PeerReport {
		c := facts.ComponentReport{Kind: "site", Status: facts.Status{State: state}}
		if seen != "" {
			c.Report = json.RawMessage(seen)
		}
		return PeerReport{NodeReport: facts.NodeReport{Node: facts.Peer{Name: "backend1"}, Components: map[string]facts.ComponentReport{"site": c}}}
	}
	for name, c := range map[string]struct {
		peer    *PeerReport // backend1's; nil: silent
		without []string
		old     bool
		want    string
		missing string
		first   string
	}{
		"same":                    {peer: ptr(report(`{"core":60}`, facts.Ready)), first: "backend1"},
		"newer":                   {peer: ptr(report(`{"core":70}`, facts.Ready)), first: "backend1"},
		"older":                   {peer: ptr(report(`{"core":50}`, facts.Ready)), want: "backend1, with an older WordPress", first: "backend2"},
		"older, stopped":          {peer: ptr(report(`{"core":50}`, facts.Stopped)), want: "backend1, with an older WordPress", first: "backend2"},
		"same, stopped":           {peer: ptr(report(`{"core":60}`, facts.Stopped)), first: "backend2"},
		"agent from before":       {peer: ptr(report(`{"files":true,"database":"installed"}`, facts.Ready)), want: "backend1, with an older WordPress", first: "backend2"},
		"silent":                  {want: "backend1, silent and perhaps with an older WordPress", missing: "backend1", first: "backend2"},
		"silent, given up":        {without: []string{"backend1"}, first: "backend2"},
		"answers, site unknown":   {peer: ptr(report("", facts.Waiting)), want: "backend1, silent and perhaps with an older WordPress", first: "backend2"},
		"busy":                    {peer: ptr(report("", facts.Working)), want: "backend1, silent and perhaps with an older WordPress", first: "backend1"},
		"WordPress on the volume": {peer: ptr(report(`{"core":60}`, facts.Ready)), old: true, want: "the WordPress on the volume to be moved away, which older web nodes use: see Changing a cluster", first: "backend1"},
	} {
		s := &site{core: core{Release: "6.8", Database: 60}, seen: siteSeen{Old: c.old}}
		w := World{Self: facts.Peer{Name: "backend2", Role: "backend", Index: 1}, Peers: []facts.Peer{{Name: "web1", Role: "web"}, {Name: "backend1", Role: "backend"}}, Reports: map[string]PeerReport{}, Without: c.without}
		if c.peer != nil {
			w.Reports["backend1"] = *c.peer
		}
		if got := s.hold(w); got.Detail != c.want || got.Missing != c.missing {
			t.Errorf("%s: %+v, want %q (%q)", name, got, c.want, c.missing)
		}
		if got := s.first(w, time.Hour).Name; got != c.first {
			t.Errorf("%s: %s works, want %s", name, got, c.first)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestReadCore(t *testing.T) {
	version := "<?php\n/** @global string $wp_version */\n$wp_version = '6.9.1-RC2';\n$wp_db_version = 60717;\n$tinymce_version = '49110-20250317';\n"
	constants := "<?php\n\tif ( ! defined( 'WP_DEFAULT_THEME' ) ) {\n\t\tdefine( 'WP_DEFAULT_THEME', 'twentytwentyfive' );\n\t}\n"
	dir := t.TempDir()
	if _, err := readCore(dir); err == nil || !strings.Contains(err.Error(), "the image has no WordPress") {
		t.Errorf("empty: %v", err)
	}
	writeTree(t, dir, map[string]string{"wp-includes/version.php": version, "wp-includes/default-constants.php": constants})
	if got, err := readCore(dir); err != nil || got != (core{"6.9.1-RC2", 60717, "twentytwentyfive"}) {
		t.Errorf("%+v, %v", got, err)
	}
	writeTree(t, dir, map[string]string{"wp-includes/version.php": strings.Replace(version, "60717", "'none'", 1)})
	if _, err := readCore(dir); err == nil {
		t.Error("no version of the tables was taken for one")
	}
	if _, err := os.Stat("/usr/share/wordpress"); err != nil {
		t.Skip("SKIPPED: needs WordPress (apt-get install --no-install-recommends wordpress)")
	}
	if got, err := readCore("/usr/share/wordpress"); err != nil || !strings.HasPrefix(got.Release, "6.") || got.Database < 50000 || !strings.HasPrefix(got.Theme, "twentytwenty") {
		t.Errorf("this machine's: %+v, %v", got, err)
	}
}

// testCore makes a folder that looks like the image's WordPress.
func testCore(t *testing.T, more map[string]string) string {
	t.Helper()
	dir := filepath.Join(sharedVolume(t), "core")
	writeTree(t, dir, map[string]string{
		"wp-includes/version.php":           "<?php\n$wp_version = '6.8';\n$wp_db_version = 60;\n",
		"wp-includes/default-constants.php": "<?php define( 'WP_DEFAULT_THEME', 'tt' );",
		"wp-load.php":                       "load",
	})
	writeTree(t, dir, more)
	return dir
}

// realCore copies this machine's WordPress.
func realCore(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(sharedVolume(t), "core")
	if out, err := exec.Command("cp", "-a", "/usr/share/wordpress", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// testSite makes a site component whose volume is a folder.
func testSite(t *testing.T, node, core, volume, database string) *site {
	t.Helper()
	host, port, _ := net.SplitHostPort(database)
	seed := readFile(t, "../roles/backend/wp-config.php")
	_, filter, _ := strings.Cut(seed, "$GLOBALS['wp_filter']")
	filter, _, ok := strings.Cut(filter, "\n);\n")
	if !ok {
		t.Fatal("the seed's wp-config.php has no filter")
	}
	text := fmt.Sprintf(`<?php
define('DB_NAME', 'wordpress'); define('DB_USER', 'wordpress'); define('DB_PASSWORD', 'pw'); define('DB_HOST', '%s:%s');
define('WP_CONTENT_DIR', '%s/wordpress/wp-content');
$table_prefix = 'wp_';
$GLOBALS['wp_filter']%s
);
if (!defined('ABSPATH')) define('ABSPATH', __DIR__ . '/');
require_once ABSPATH . 'wp-settings.php';
`, host, port, volume, filter)
	writeTree(t, core, map[string]string{"wp-config.php": text})
	n := Node{
		Facts:   facts.Facts{ClusterID: "11111111-2222-4333-8444-555555555555", Node: facts.Peer{Name: node, Role: "backend"}},
		Secrets: map[string]string{"wordpress_admin": "s3cretpassword"},
		Dir:     t.TempDir(), Log: t.Logf, Working: func(string) {},
	}
	return newSite(n, "site", &facts.SiteParams{
		Core: core, Target: filepath.Join(volume, "wordpress"), Owner: "www-data:www-data", PHP: []string{"php"},
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

// onVolume returns what is on the volume, and fails if anything belongs to another user than the site's.
func onVolume(t *testing.T, volume string) map[string]string {
	t.Helper()
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
	return have
}

func TestSiteFilesAreCopiedWhole(t *testing.T) {
	volume := sharedVolume(t)
	elsewhere := t.TempDir()
	image := testCore(t, map[string]string{"a/b.php": "b", "wp-content/a/b/c.php": "c", "wp-content/db.php": "the package's own", "wp-content/themes/tt/style.css": "tt"})
	writeTree(t, elsewhere, map[string]string{"lib/x.js": "x"})
	os.Symlink(filepath.Join(elsewhere, "lib"), filepath.Join(image, "wp-content/a/lib"))
	os.Symlink("/nowhere/htaccess", filepath.Join(image, "wp-content/.htaccess"))
	s := testSite(t, "backend1", image, volume, "127.0.0.1:1")
	s.params.DropIn = filepath.Join(t.TempDir(), "db.php")
	os.WriteFile(s.params.DropIn, []byte("<?php // ours"), 0o644)
	s.params.ObjectCache = filepath.Join(t.TempDir(), "cache.php")
	os.WriteFile(s.params.ObjectCache, []byte("<?php // cache"), 0o644)

	// A copy that was interrupted.
	writeTree(t, s.staging(), map[string]string{"old/left.php": "half"})
	w := World{Self: s.node.Facts.Node}
	if got := drive(t, s, w, driveLimit); got.State != facts.Waiting || !strings.Contains(got.Detail, "connection refused") {
		t.Errorf("files in place, no database: %+v", got)
	}
	want := map[string]string{
		"wordpress/wp-load.php":                    "-rw-r----- <?php require '" + image + "/wp-load.php';\n",
		"wordpress/wp-content/db.php":              "-rw-r----- <?php // ours",
		"wordpress/wp-content/object-cache.php":    "-rw-r----- <?php // cache",
		"wordpress/wp-content/a/b/c.php":           "-rw-r--r-- c",
		"wordpress/wp-content/a/lib/x.js":          "-rw-r--r-- x",
		"wordpress/wp-content/themes/tt/style.css": "-rw-r--r-- tt",
	}
	if have := onVolume(t, volume); fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("have %v\nwant %v", have, want)
	}
	// What looks for wp-content beside WordPress finds the volume's.
	if got := readFile(t, filepath.Join(image, "wp-content/db.php")); got != "<?php // ours" {
		t.Errorf("WordPress' own wp-content has %q", got)
	}

	// A new seed brings another drop-in; another backend's fresh root disk changes nothing but itself.
	os.WriteFile(s.params.DropIn, []byte("<?php // new"), 0o600)
	os.WriteFile(s.content("a/b/c.php"), []byte("the user's"), 0o644)
	again := testSite(t, "backend1", testCore(t, map[string]string{"wp-content/a/b/c.php": "newer", "wp-content/new.php": "new"}), volume, "127.0.0.1:1")
	again.params.DropIn = s.params.DropIn
	drive(t, again, w, driveLimit)
	want["wordpress/wp-content/db.php"] = "-rw-r----- <?php // new"
	want["wordpress/wp-content/a/b/c.php"] = "-rw-r--r-- the user's"
	want["wordpress/wp-load.php"] = "-rw-r----- <?php require '" + again.params.Core + "/wp-load.php';\n"
	if have := onVolume(t, volume); fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("have %v\nwant %v", have, want)
	}

	// A newer WordPress brings its default theme; other themes that are missing were perhaps removed.
	newer := testSite(t, "backend1", testCore(t, map[string]string{"wp-includes/default-constants.php": "define( 'WP_DEFAULT_THEME', 'next' );",
		"wp-content/themes/next/style.css": "next", "wp-content/themes/tt/style.css": "newer", "wp-content/themes/other/style.css": "other"}), volume, "127.0.0.1:1")
	newer.params.DropIn = s.params.DropIn
	drive(t, newer, w, driveLimit)
	want["wordpress/wp-content/themes/next/style.css"] = "-rw-r--r-- next"
	want["wordpress/wp-load.php"] = "-rw-r----- <?php require '" + newer.params.Core + "/wp-load.php';\n"
	if have := onVolume(t, volume); fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("have %v\nwant %v", have, want)
	}
}

// Linking wp-content can be cut off after each of its steps, and is done again for another place.
func TestLinkIsMadeFromAnyState(t *testing.T) {
	for name, c := range map[string]struct {
		change func(core string)
		kept   string // what the image's wp-content is then
	}{
		"new":            {func(string) {}, "image"},
		"folder removed": {func(core string) { os.Rename(core+"/wp-content", core+"/wp-content.image") }, "image"},
		"link made": {func(core string) {
			os.Rename(core+"/wp-content", core+"/wp-content.image")
			os.Symlink("x", core+"/.imagegen-wp-content")
		}, "image"},
		"to another place": {func(core string) {
			os.Rename(core+"/wp-content", core+"/wp-content.image")
			os.Symlink("/x", core+"/wp-content")
		}, "image"},
		"copying": {func(core string) {
			writeTree(t, core, map[string]string{".imagegen-wp-content.image/index.php": "half"})
		}, "image"},
		"copied": {func(core string) { writeTree(t, core, map[string]string{"wp-content.image/index.php": "image"}) }, "image"},
		"partly removed": {func(core string) {
			os.Rename(core+"/wp-content", core+"/wp-content.image")
			os.Mkdir(core+"/wp-content", 0o755)
		}, "image"},
		"no folder at all": {func(core string) { os.RemoveAll(core + "/wp-content") }, ""},
	} {
		image := testCore(t, map[string]string{"wp-content/index.php": "image"})
		volume := sharedVolume(t)
		writeTree(t, volume, map[string]string{"wordpress/wp-content/index.php": "volume"})
		c.change(image)
		s := testSite(t, "backend1", image, volume, "127.0.0.1:1")
		drive(t, s, World{Self: s.node.Facts.Node}, driveLimit)
		if got, _ := os.ReadFile(image + "/wp-content/index.php"); string(got) != "volume" {
			t.Errorf("%s: wp-content has %q", name, got)
		}
		if got, _ := os.ReadFile(image + "/wp-content.image/index.php"); string(got) != c.kept {
			t.Errorf("%s: the image's wp-content has %q", name, got)
		}
	}
}

// A cluster whose WordPress is on the volume moves over without a change of what is there: older nodes serve it.
func TestWordPressOnTheVolumeIsLeftAlone(t *testing.T) {
	volume := sharedVolume(t)
	writeTree(t, volume, map[string]string{"wordpress/wp-config.php": "edited", "wordpress/wp-load.php": "old", "wordpress/wp-includes/version.php": "old", "wordpress/wp-content/themes/tt/style.css": "old"})
	if err := exec.Command("chown", "-R", "www-data:www-data", volume).Run(); err != nil {
		t.Fatal(err)
	}
	s := testSite(t, "backend1", testCore(t, map[string]string{"wp-content/themes/tt/style.css": "new", "wp-content/x.php": "new"}), volume, "127.0.0.1:1")
	w := World{Self: s.node.Facts.Node}
	before := onVolume(t, volume)
	drive(t, s, w, driveLimit)
	if after := onVolume(t, volume); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("have %v\nwant %v", after, before)
	}
	if !s.seen.Old {
		t.Error("the WordPress on the volume is not seen")
	}
	// Once it has been moved away, plug-ins find the image's.
	for _, name := range []string{"wp-includes", "wp-load.php", "wp-config.php"} {
		os.RemoveAll(filepath.Join(s.params.Target, name))
	}
	s.looked = time.Time{}
	drive(t, s, w, driveLimit)
	if got := readFile(t, filepath.Join(s.params.Target, "wp-load.php")); !strings.Contains(got, s.params.Core) || s.seen.Old {
		t.Errorf("wp-load.php: %q", got)
	}
}

// A copy that cannot take its place because somebody else's did is no fault. One that cannot for another reason is, whatever
// is there: here the place is a link to a folder, which no folder can be renamed to.
func TestSiteCopyFailsWhenItCannotBeRenamed(t *testing.T) {
	volume := sharedVolume(t)
	other := t.TempDir()
	writeTree(t, other, map[string]string{"wp-content/index.php": "another"})
	s := testSite(t, "backend1", testCore(t, map[string]string{"wp-content.image/index.php": "x"}), volume, "127.0.0.1:1")
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
	writeTree(t, s.params.Target, map[string]string{"notes.txt": "the user's"})
	if err := s.copy(t.Context()); err == nil || !strings.Contains(err.Error(), "move away what is in it") {
		t.Errorf("something else is there: %v", err)
	}
	if err := s.clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	writeTree(t, s.params.Target, map[string]string{"wp-content/index.php": "another"})
	if err := s.copy(t.Context()); err != nil {
		t.Errorf("another node was faster: %v", err)
	}
	if got := readFile(t, s.content("index.php")); got != "another" {
		t.Errorf("the site was replaced: %q", got)
	}
}

func TestTwoCopiesOneSite(t *testing.T) {
	volume := sharedVolume(t)
	var wg sync.WaitGroup
	var sites []*site
	for _, node := range []string{"backend1", "backend2"} { // neither hears the other, so both think that they are the lowest
		s := testSite(t, node, testCore(t, map[string]string{"wp-content/x/x.php": "x"}), volume, "127.0.0.1:1")
		sites = append(sites, s)
		wg.Go(func() { drive(t, s, World{Self: s.node.Facts.Node}, driveLimit) })
	}
	wg.Wait()
	entries, _ := os.ReadDir(volume)
	if len(entries) != 1 || entries[0].Name() != "wordpress" {
		t.Errorf("on the volume: %v", entries)
	}
	if _, err := os.Stat(sites[0].content("x/x.php")); err != nil {
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
	image := realCore(t)
	s := testSite(t, "backend1", image, volume, addr)
	s.params.DropIn, s.params.ObjectCache = "../roles/backend/db.php", "../roles/backend/object-cache.php"
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
	other := testSite(t, "backend2", image, volume, addr)
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
		"SELECT option_value FROM wordpress.wp_options WHERE option_name='imagegen_release'":                             s.core.Release,
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

	// A plug-in of one file is itself to WordPress, however it was found; and finds WordPress beside wp-content.
	writeTree(t, s.params.Target, map[string]string{"wp-content/plugins/one.php": "<?php require_once dirname(__DIR__, 2) . '/wp-load.php'; echo ' ', plugin_basename(__FILE__), ' ', plugins_url('', __FILE__), ' ', ABSPATH, \"\\n\";"})
	for _, path := range []string{s.content("plugins/one.php"), filepath.Join(image, "wp-content/plugins/one.php")} {
		out, err := exec.Command("php", "-r", "$_SERVER['HTTP_HOST']='192.168.10.39:8080'; require '"+path+"';").CombinedOutput()
		if want := " one.php http://192.168.10.39:8080/wp-content/plugins " + image + "/\n"; err != nil || !strings.HasSuffix(string(out), want) {
			t.Errorf("%s: %v: %s\nwant%s", path, err, out, want)
		}
	}

	// Again is nothing; another cluster's database is refused.
	if err := s.take(t.Context(), siteInstall); err != nil {
		t.Errorf("again: %v", err)
	}
	foreign := testSite(t, "backend1", image, volume, addr)
	foreign.node.Facts.ClusterID = "99999999-2222-4333-8444-555555555555"
	if got := drive(t, foreign, w, driveLimit); got.State != facts.Stopped {
		t.Errorf("another cluster's database: %+v", got)
	}
	if err := foreign.take(t.Context(), siteInstall); err != nil || foreign.seen.Database != dbForeign {
		t.Errorf("installing over another cluster's site: %v, %q", err, foreign.seen.Database)
	}
}

// The settings are changed by one, once all have the same seed.
func TestSettingsWaitForOtherSeeds(t *testing.T) {
	open := facts.Status{}
	for name, c := range map[string]struct {
		mine bool
		hold facts.Status
		held time.Duration
		do   siteDo
		want facts.Status
	}{
		"first":        {true, open, 0, siteChange, workf("changing the site's settings to those of the spec")},
		"second":       {false, open, 0, siteNothing, ready("backend1 changes the site's settings to those of the spec")},
		"first, again": {true, open, 1500 * time.Millisecond, siteNothing, facts.Status{State: facts.Failed, Detail: "changing the site's settings to those of the spec again in 2 s"}},
		"held": {true, facts.Status{State: facts.Waiting, Detail: "backend2", Missing: "backend2"}, 0, siteNothing,
			facts.Status{State: facts.Ready, Detail: "changing the site's settings to those of the spec waits for backend2", Missing: "backend2"}},
	} {
		if do, got := decideSettings(c.mine, "backend1", c.hold, c.held); do != c.do || got != c.want {
			t.Errorf("%s: %q, %+v", name, do, got)
		}
	}
	for report, want := range map[string]string{
		`{"core":60,"settings":"same"}`:  "",
		`{"core":60,"settings":"other"}`: "backend1, with another seed",
		`{"core":60}`:                    "backend1, with another seed", // an earlier agent
		"":                               "backend1, silent and perhaps with another seed",
	} {
		s := &site{seen: siteSeen{Settings: "same"}}
		w := World{Self: facts.Peer{Name: "backend2", Role: "backend", Index: 1}, Peers: []facts.Peer{{Name: "backend1", Role: "backend"}}, Reports: map[string]PeerReport{}}
		if report != "" {
			w.Reports["backend1"] = PeerReport{NodeReport: facts.NodeReport{Components: map[string]facts.ComponentReport{"site": {Kind: "site", Report: json.RawMessage(report)}}}}
		}
		if got := s.holdChange(w); got.Detail != want {
			t.Errorf("%s: %q, want %q", report, got.Detail, want)
		}
	}
}

// TestSettingsFollowTheSpec: a setting that changes in the spec changes in WordPress, once and whole; what was changed in WordPress stays.
func TestSettingsFollowTheSpec(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: starts a MariaDB; run it without -short")
	}
	addr, sql := mariadb(t)
	sql("CREATE DATABASE wordpress; CREATE USER wordpress@'127.0.0.1' IDENTIFIED BY 'pw'; CREATE USER wordpress@localhost IDENTIFIED BY 'pw'; GRANT ALL ON wordpress.* TO wordpress@'127.0.0.1'; GRANT ALL ON wordpress.* TO wordpress@localhost")
	volume, image := sharedVolume(t), realCore(t)
	one, two := testSite(t, "backend1", image, volume, addr), testSite(t, "backend2", image, volume, addr)
	w := World{Self: one.node.Facts.Node}
	if got := drive(t, one, w, driveLimit); got != ready("") {
		t.Fatalf("installing: %+v", got)
	}
	option := func(name string) string {
		return sql("SELECT option_value FROM wordpress.wp_options WHERE option_name = '" + name + "'")
	}
	want := map[string]string{"blogname": "Mine", "siteurl": "http://192.168.10.39:8080", "home": "http://192.168.10.39:8080", "timezone_string": "Asia/Kolkata", "admin_email": "admin@example.org"}
	check := func(when string) {
		t.Helper()
		for name, value := range want {
			if got := option(name); got != value {
				t.Errorf("%s: %s is %q, want %q", when, name, got, value)
			}
		}
	}
	sql("UPDATE wordpress.wp_options SET option_value = 'Mine' WHERE option_name = 'blogname'")

	// The constants of wp-config.php do not keep the database from following.
	config := filepath.Join(image, "wp-config.php")
	text := readFile(t, config)
	writeTree(t, image, map[string]string{"wp-config.php": strings.Replace(text, "<?php", "<?php define('WP_HOME', 'https://www.example.org'); define('WP_SITEURL', WP_HOME);", 1)})
	one.params.URL, one.params.AdminEmail, one.params.Timezone = "https://www.example.org", "new@example.org", "Europe/Berlin"
	if got := drive(t, one, w, driveLimit); got != ready("") {
		t.Fatalf("another address: %+v", got)
	}
	want["siteurl"], want["home"], want["admin_email"], want["timezone_string"] = "https://www.example.org", "https://www.example.org", "new@example.org", "Europe/Berlin"
	check("another address")
	if got := sql("SELECT user_email FROM wordpress.wp_users"); got != "new@example.org" {
		t.Errorf("the first user's address is %s", got)
	}

	// Killed in the middle, and then two at once.
	*two.params = *one.params
	one.params.Title, two.params.Title = `A "100%" \ <new> title`, `A "100%" \ <new> title`
	wrapper := filepath.Join(t.TempDir(), "php")
	os.Chmod(filepath.Dir(wrapper), 0o755)
	os.WriteFile(wrapper, []byte("#!/bin/sh\nsed \"s/^ *update_option('blogname'.*/& posix_kill(getmypid(), 9);/\" | php\n"), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(wrapper)), 0o755)
	one.params.PHP = []string{wrapper}
	if err := one.take(t.Context(), siteChange); err == nil {
		t.Fatal("a change that was killed was taken for a success")
	}
	check("killed")
	one.params.PHP = two.params.PHP
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, c := range []*site{one, two} {
		wg.Go(func() { errs[i] = c.take(t.Context(), siteChange) })
	}
	wg.Wait()
	if errs[0] != nil && errs[1] != nil {
		t.Fatalf("neither has changed it: %v; %v", errs[0], errs[1])
	}
	if got := option("blogname"); !strings.Contains(got, "100%") || !strings.Contains(got, "&lt;new&gt;") {
		t.Errorf("the title is %q", got)
	}

	// Again is nothing, whatever the title is by now.
	want["blogname"] = "Mine again"
	sql("UPDATE wordpress.wp_options SET option_value = 'Mine again' WHERE option_name = 'blogname'")
	for _, c := range []*site{one, two} {
		if err := c.take(t.Context(), siteChange); err != nil {
			t.Errorf("again: %v", err)
		}
	}
	check("again")

	// A site of an earlier imagegen: what it was installed with is not known.
	sql("DELETE FROM wordpress.wp_options WHERE option_name = 'imagegen_settings'")
	one.params.Title, one.asked = "Not known", time.Time{}
	if got := drive(t, one, w, driveLimit); got != ready("") || option("imagegen_settings") == "" {
		t.Errorf("a site of an earlier imagegen: %+v", got)
	}
	check("a site of an earlier imagegen")
}

// TestDatabaseIsUpgradedOnce rolls out a newer WordPress: whatever happens to those who upgrade, it is done once.
func TestDatabaseIsUpgradedOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: starts a MariaDB; run it without -short")
	}
	addr, sql := mariadb(t)
	sql("CREATE DATABASE wordpress; CREATE USER wordpress@'127.0.0.1' IDENTIFIED BY 'pw'; CREATE USER wordpress@localhost IDENTIFIED BY 'pw'; GRANT ALL ON wordpress.* TO wordpress@'127.0.0.1'; GRANT ALL ON wordpress.* TO wordpress@localhost; CREATE TABLE wordpress.ran (n INT AUTO_INCREMENT PRIMARY KEY)")
	volume := sharedVolume(t)
	older := testSite(t, "backend1", realCore(t), volume, addr)
	older.params.DropIn = "../roles/backend/db.php"
	w := World{Self: older.node.Facts.Node}
	if got := drive(t, older, w, driveLimit); got != ready("") {
		t.Fatalf("installing: %+v", got)
	}
	newest := realCore(t)
	version := fmt.Sprint(older.core.Database + 5)
	edit := func(file, from, to string) {
		t.Helper()
		text := readFile(t, filepath.Join(newest, file))
		if !strings.Contains(text, from) {
			t.Fatalf("%s has no %s", file, from)
		}
		writeTree(t, newest, map[string]string{file: strings.Replace(text, from, to, 1)})
	}
	edit("wp-includes/version.php", fmt.Sprint("$wp_db_version = ", older.core.Database), "$wp_db_version = "+version)
	edit("wp-includes/version.php", "$wp_version = '"+older.core.Release+"'", "$wp_version = '77.7'")
	const upgrade = "wp-admin/includes/upgrade.php"
	begin := "{" // of the function that upgrades
	within := func(code string) {
		t.Helper()
		edit(upgrade, "function upgrade_all() "+begin, "function upgrade_all() { global $wpdb, $wp_db_version; "+code)
		begin = "{ global $wpdb, $wp_db_version; " + code
	}
	now := func() string {
		return sql("SELECT option_value FROM wordpress.wp_options WHERE option_name = 'db_version'")
	}
	lock := func() string {
		return sql("SELECT COUNT(*) FROM wordpress.wp_options WHERE option_name = 'imagegen_upgrade'")
	}
	one, two := testSite(t, "backend1", newest, volume, addr), testSite(t, "backend2", newest, volume, addr)
	for _, s := range []*site{one, two} {
		s.params.DropIn = older.params.DropIn
		if _, err := s.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	// While the upgrade waits, WordPress does not ask for it.
	out, err := exec.Command("php", "-r", "define('WP_USE_THEMES', false); $_SERVER['HTTP_HOST']='192.168.10.39:8080'; require '"+newest+"/wp-load.php'; echo get_option('db_version');").CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), version) {
		t.Errorf("the version that WordPress sees: %v: %s", err, out)
	}

	for name, code := range map[string]string{
		"it ended early":          "exit(0);",
		"the connection was lost": "$wpdb->query('KILL CONNECTION_ID()');",
		"it came back by itself":  "$wpdb->close(); $wpdb->db_connect();",
	} {
		within(code)
		if err := one.take(t.Context(), siteUpgrade); err == nil || now() == version || lock() != "0" {
			t.Errorf("%s: %v, version %s, locks %s", name, err, now(), lock())
		}
	}
	within("posix_kill(getmypid(), 9);")
	if err := one.take(t.Context(), siteUpgrade); err == nil || now() == version || lock() != "1" {
		t.Errorf("killed: %v, version %s, locks %s", err, now(), lock())
	}
	within("if (get_option('db_version') < $wp_db_version) $wpdb->query('INSERT INTO ran VALUES ()'); sleep(1);")
	if err := two.take(t.Context(), siteUpgrade); err == nil || !strings.Contains(err.Error(), "held by backend1 for ") {
		t.Errorf("while another has the lock: %v", err)
	}
	sql("UPDATE wordpress.wp_options SET option_value = 'backend1 token 1700000000' WHERE option_name = 'imagegen_upgrade'")
	if got := sql("SELECT COUNT(*) FROM wordpress.ran"); got != "0" {
		t.Fatalf("upgraded %s times before", got)
	}

	// Both at once, neither knowing of the other.
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i, s := range []*site{one, two} {
		wg.Go(func() { errs[i] = s.take(t.Context(), siteUpgrade) })
	}
	wg.Wait()
	if errs[0] != nil && errs[1] != nil {
		t.Fatalf("neither upgraded: %v; %v", errs[0], errs[1])
	}
	for _, s := range []*site{one, two} {
		s.retry.Reset()
		s.asked = time.Time{}
		if got := drive(t, s, w, driveLimit); got != ready("") {
			t.Errorf("%s: %+v", s.node.Facts.Node.Name, got)
		}
		if err := s.take(t.Context(), siteUpgrade); err != nil {
			t.Errorf("again: %v", err)
		}
	}
	if got := sql("SELECT COUNT(*) FROM wordpress.ran"); got != "1" || now() != version || lock() != "0" {
		t.Errorf("upgraded %s times to %s, locks %s", got, now(), lock())
	}

	// Another node is done between this one's look and its lock.
	sql("UPDATE wordpress.wp_options SET option_value = option_value - 1 WHERE option_name = 'db_version'")
	wrapper := filepath.Join(sharedVolume(t), "php")
	writeTree(t, filepath.Dir(wrapper), map[string]string{"php": "#!/bin/sh\nsed 's/^    $now = (int)/$wpdb->query(\"UPDATE wp_options SET option_value = " + version + " WHERE option_name = \\x27db_version\\x27\"); &/' | php\n"})
	os.Chmod(wrapper, 0o755)
	two.params.PHP = []string{wrapper}
	if err := two.take(t.Context(), siteUpgrade); err != nil || now() != version || lock() != "0" {
		t.Errorf("another was faster: %v, version %s, locks %s", err, now(), lock())
	}
	if got := sql("SELECT COUNT(*) FROM wordpress.ran"); got != "1" {
		t.Errorf("upgraded %s times", got)
	}

	// The older image is refused, and says which one is needed.
	older.asked = time.Time{}
	if got := drive(t, older, w, driveLimit); got.State != facts.Stopped || !strings.Contains(got.Detail, "replace this node with an image that has WordPress 77.7") {
		t.Errorf("an older image: %+v", got)
	}
	if err := older.take(t.Context(), siteUpgrade); err != nil || now() != version {
		t.Errorf("the older image has changed the version: %v, %s", err, now())
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
	s := testSite(t, "backend1", t.TempDir(), t.TempDir(), "127.0.0.1:1")
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
	s := testSite(t, "backend1", t.TempDir(), volume, "127.0.0.1:1")
	s.params.PHP, s.greeted = []string{php}, true
	if a := s.askDatabase(t.Context()); a.State != dbError || a.Detail != "PHP, which asks it, has not ended within 200ms" {
		t.Errorf("%+v", a)
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

// setClock is a clock that a test sets.
type setClock struct {
	systemClock
	now time.Time
}

func (c *setClock) Now() time.Time { return c.now }

// backends is a membership of the role with a node for each name, at addresses of its own.
func backends(number int, names ...string) facts.Membership {
	m := facts.Membership{Number: number}
	for i, name := range names {
		m.Members = append(m.Members, facts.Peer{Name: name, Role: "backend", Index: i, IP: fmt.Sprintf("10.0.%d.%d", number, i+1)})
	}
	return m
}

// The backends of a cluster that changes again and again ask only each other, at their present addresses, and a backend that was
// removed does not hold up the database's upgrade.
func TestBackendsForgetWhoLeft(t *testing.T) {
	clock := &setClock{now: time.Unix(1e9, 0)}
	s := &site{node: Node{Clock: clock}, core: core{Release: "6.8", Database: 60}}
	r := &runner{Component: facts.Component{Name: "site", Kind: "site"}, impl: s, decision: new(decided)}
	a := testAgent(func(string) {}, r)
	a.launch = func(func(context.Context)) {}
	number := 0
	a.members.number = func() int { return number }
	a.members.own = func() facts.Membership {
		names := []string{"backend1", "backend2", "backend3"}
		if number > 1 {
			names = names[:2]
		}
		return backends(number, names...)
	}
	reports := func(present bool) map[string]PeerReport {
		other := a.members.own().Members[1]
		all := map[string]PeerReport{"backend2": {NodeReport: facts.NodeReport{Node: other, Joint: &facts.Joint{Role: "backend", Number: number},
			Components: map[string]facts.ComponentReport{"site": {Kind: "site", Report: json.RawMessage(`{"core":60}`)}}}}}
		if present {
			gone := backends(1, "backend1", "backend2", "backend3")
			all["backend3"] = PeerReport{NodeReport: facts.NodeReport{Node: gone.Members[2], Joint: &facts.Joint{Role: "backend", Number: 1, InUse: []facts.Membership{gone}}}}
		}
		return all
	}
	turns := func(present bool, n int) (w World) {
		for range n {
			w = World{Self: a.members.own().Members[0], Reports: reports(present)}
			a.facts.Node = w.Self
			var err error
			if w.Joint, err = a.joint(r, w.Reports); err == nil {
				err = a.settle(r, w)
			}
			if err != nil {
				t.Fatal(err)
			}
			clock.now = clock.now.Add(time.Second)
		}
		return w
	}
	number = 1
	turns(true, 60)
	number = 2
	if w := turns(true, 60); !slices.Equal(numbers(w.Joint), []int{1, 2}) || s.hold(w).Detail == "" {
		t.Errorf("a backend that left and still runs does not count: %+v, %+v", w.Joint, s.hold(w))
	}
	for number < 10 {
		number++
		turns(false, 60)
	}
	w := turns(false, 1)
	if held := s.hold(w); held.Detail != "" {
		t.Errorf("the upgrade waits for %s", held.Detail)
	}
	if got := a.asked(); len(got) != 1 || got[0].IP != "10.0.10.2" {
		t.Errorf("it asks %v", got)
	}
	if got := a.members.known(); !slices.Equal(numbers(*got), []int{10}) || got.Settled != 10 {
		t.Errorf("it counts %+v", got)
	}
}

// Earlier backends count as long as they may still serve.
func TestEarlierBackendsCountWhile(t *testing.T) {
	conforms := func(name string, number int) PeerReport {
		return PeerReport{NodeReport: facts.NodeReport{Node: facts.Peer{Name: name, Role: "backend"}, Joint: &facts.Joint{Number: number}}}
	}
	now, before, unknown := conforms("backend2", 2), conforms("backend2", 1), PeerReport{NodeReport: facts.NodeReport{Node: facts.Peer{Name: "backend2", Role: "backend"}}}
	left := conforms("backend3", 1)
	for name, c := range map[string]struct {
		self       string
		two, three *PeerReport // of backend2 and backend3; nil: silent
		more       facts.Component
		want       bool
	}{
		"all conform, and who left is off":           {self: "backend1", two: &now, want: true},
		"one has not got the generation":             {self: "backend1", two: &before},
		"one is silent":                              {self: "backend1"},
		"one has the agent of an earlier imagegen":   {self: "backend1", two: &unknown},
		"who left answers":                           {self: "backend1", two: &now, three: &left},
		"who left is this one":                       {self: "backend3", two: &now},
		"a component with a quorum has not said so":  {self: "backend1", two: &now, more: facts.Component{Name: "redis", Kind: "redis"}},
		"a component without one has nothing to say": {self: "backend1", two: &now, more: facts.Component{Name: "php", Kind: "service"}, want: true},
	} {
		clock := &setClock{now: time.Unix(1e9, 0)}
		s := &site{node: Node{Clock: clock, Facts: facts.Facts{Components: []facts.Component{{Name: "site", Kind: "site"}, c.more}}}}
		w := World{Self: facts.Peer{Name: c.self, Role: "backend"}, Reports: map[string]PeerReport{"backend1": conforms("backend1", 2)}}
		w.Joint = facts.Joint{Role: "backend", Number: 2, InUse: []facts.Membership{backends(1, "backend1", "backend2", "backend3"), backends(2, "backend1", "backend2")}}
		for peer, r := range map[string]*PeerReport{"backend2": c.two, "backend3": c.three} {
			if r != nil {
				w.Reports[peer] = *r
			}
		}
		if _, ok := s.settled(w); ok {
			t.Errorf("%s: at once", name)
		}
		clock.now = clock.now.Add(siteLeft / 2)
		if _, ok := s.settled(w); ok {
			t.Errorf("%s: too early", name)
		}
		clock.now = clock.now.Add(siteLeft)
		if number, ok := s.settled(w); ok != c.want || ok && number != 2 {
			t.Errorf("%s: %d, %v", name, number, ok)
		}
	}
}

// A backend that left and is heard again counts until it has been silent as long again.
func TestBackendThatLeftComesBack(t *testing.T) {
	clock := &setClock{now: time.Unix(1e9, 0)}
	s := &site{node: Node{Clock: clock}}
	w := World{Self: facts.Peer{Name: "backend1", Role: "backend"}, Reports: map[string]PeerReport{}}
	w.Joint = facts.Joint{Role: "backend", Number: 2, InUse: []facts.Membership{backends(1, "backend1", "backend2"), backends(2, "backend1")}}
	for i, c := range []struct {
		answers, want bool
	}{{}, {answers: true}, {}, {want: true}} {
		if delete(w.Reports, "backend2"); c.answers {
			w.Reports["backend2"] = PeerReport{NodeReport: facts.NodeReport{Node: facts.Peer{Name: "backend2", Role: "backend"}}}
		}
		if _, ok := s.settled(w); ok != c.want {
			t.Errorf("turn %d: %v", i, ok)
		}
		clock.now = clock.now.Add(siteLeft + time.Second)
	}
}

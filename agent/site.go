package agent

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

const (
	// Each operation on a replicated volume takes milliseconds: copying many small files needs concurrency.
	copyWorkers  = 24
	contentName  = "wp-content"
	imageContent = "wp-content.image"            // the image's wp-content in WordPress' folder, once wp-content leads to the volume
	dropInName   = "wp-content/db.php"           // WordPress' name for a database connection that is not its own
	cacheName    = "wp-content/object-cache.php" // and for a cache that outlives a request
	loaderName   = "wp-load.php"

	installLimit  = 3 * time.Minute
	upgradeLimit  = 10 * time.Minute // shorter than the lease in site.php
	siteHeadStart = 10 * time.Second // for a lower node that is not able to copy yet
	siteCalm      = 30 * time.Second // between two looks at an installed site's files
	databaseCalm  = 5 * time.Minute  // between two looks at its marker in the database
	upgradeCalm   = 10 * time.Second // the same, while the database is not as image and seed say
	siteLeft      = 30 * time.Second // who left counts until it has been silent for so long
)

// lookLimit limits one look at the database.
var lookLimit = 8 * time.Second

//go:embed site.php
var sitePHP []byte

// site installs a WordPress site once for all backends, and upgrades its database.
//
// WordPress itself is in the image. On the volume are its wp-content, which the first backend fills from the image, and a
// few files that the seed determines. Files are copied into a folder of the node's own, which is then renamed into place: the
// first node wins, and wp-content is never incomplete. The tables are filled in one transaction that includes the marker,
// see site.php.
type site struct {
	node    Node
	params  *facts.SiteParams
	core    core
	seen    siteSeen
	looked  time.Time        // at the files
	asked   time.Time        // the database
	retry   ensemble.Backoff // of what failed
	able    time.Time        // since when this node could work on the site
	greeted bool             // the database has answered; it counts each greeting without a login as an attack
	taken   string           // the settings that the site has from the spec, as the database knows
	alone   time.Time        // since when only the members of a newer generation answer; zero: others do, or one of them does not
	reports ensemble.Reader[siteSeen]
}

// core is the WordPress in the image.
type core struct {
	Release  string // such as 6.1.9
	Database int    // version of the tables: $wp_db_version
	Theme    string // WordPress falls back to it
}

var (
	coreRelease  = regexp.MustCompile(`(?m)^\$wp_version\s*=\s*'([0-9A-Za-z.-]+)'`)
	coreDatabase = regexp.MustCompile(`(?m)^\$wp_db_version\s*=\s*([0-9]{1,9})\s*;`)
	coreTheme    = regexp.MustCompile(`define\(\s*'WP_DEFAULT_THEME',\s*'([0-9a-z_-]+)'`)
)

// readCore reads what a WordPress says about itself.
func readCore(dir string) (core, error) {
	version, err := os.ReadFile(filepath.Join(dir, "wp-includes/version.php"))
	if err != nil {
		return core{}, fmt.Errorf("the image has no WordPress: %w", err)
	}
	constants, err := os.ReadFile(filepath.Join(dir, "wp-includes/default-constants.php"))
	if err != nil {
		return core{}, fmt.Errorf("the image's WordPress is incomplete: %w", err)
	}
	release, database, theme := coreRelease.FindSubmatch(version), coreDatabase.FindSubmatch(version), coreTheme.FindSubmatch(constants)
	if release == nil || database == nil || theme == nil {
		return core{}, fmt.Errorf("%s: wp-includes does not say which WordPress it is", dir)
	}
	n, err := strconv.Atoi(string(database[1]))
	return core{Release: string(release[1]), Database: n, Theme: string(theme[1])}, err
}

// siteSeen is what a backend tells the others. Agents that copied all of WordPress to the volume report no Core.
type siteSeen struct {
	Core      int    `json:"core"`            // version of the tables that the image's WordPress needs
	Settings  string `json:"settings"`        // digest of what the seed says of the site's settings
	Linked    bool   `json:"linked"`          // wp-content of the image's WordPress leads to the volume
	Files     bool   `json:"files"`           // wp-content is on the volume
	Config    bool   `json:"config"`          // and the seed's files on the volume are what they should be
	Old       bool   `json:"old,omitempty"`   // a WordPress is on the volume, as earlier versions of imagegen put it there
	Theme     string `json:"theme,omitempty"` // WordPress' default theme, if it is missing on the volume
	Staging   bool   `json:"staging"`         // an unfinished copy of this node's is there
	Database  string `json:"database"`
	Detail    string `json:"detail,omitempty"`     // of Database
	DBVersion int    `json:"db_version,omitempty"` // of the tables
	Release   string `json:"release,omitempty"`    // the WordPress that last installed or upgraded the database
}

// The values of siteSeen.Database.
const (
	dbUnknown   = ""          // not looked at yet
	dbSilent    = "silent"    // it does not answer
	dbError     = "error"     // it answers with an error
	dbEmpty     = "empty"     // the site is not installed in it
	dbInstalled = "installed" // it is
	dbForeign   = "foreign"   // another cluster's site is
	dbBusy      = "busy"      // another node upgrades it; only an answer to the attempt
)

func newSite(n Node, _ string, p *facts.SiteParams) Component {
	return &site{node: n, params: p}
}

func (s *site) staging() string {
	return filepath.Join(filepath.Dir(s.params.Target), ".imagegen-site."+s.node.Facts.Node.Name)
}

// content is a path below wp-content on the volume.
func (s *site) content(path string) string { return filepath.Join(s.params.Target, contentName, path) }

func (s *site) Observe(ctx context.Context) (any, error) {
	if s.core.Database == 0 { // an image does not change
		c, err := readCore(s.params.Core)
		if err != nil {
			return nil, err
		}
		s.core = c
	}
	if done := s.seen.Linked && s.seen.Files && s.seen.Config && s.seen.Theme == "" && !s.seen.Staging; !done || time.Since(s.looked) > siteCalm {
		seen, err := s.look()
		if err != nil {
			return nil, err
		}
		seen.Database, seen.Detail, seen.DBVersion, seen.Release = s.seen.Database, s.seen.Detail, s.seen.DBVersion, s.seen.Release
		s.seen, s.looked = seen, time.Now()
	}
	calm := databaseCalm
	if s.seen.DBVersion != s.core.Database || s.taken != s.settings() {
		calm = upgradeCalm
	}
	if s.seen.Files && (s.seen.Database != dbInstalled || time.Since(s.asked) > calm) && s.retry.Left(s.node.now()) == 0 {
		s.note(s.askDatabase(ctx))
	}
	return s.seen, nil
}

// look looks at the files.
func (s *site) look() (siteSeen, error) {
	seen := siteSeen{Core: s.core.Database, Settings: facts.Digest([]byte(s.settings()))}
	if to, err := os.Readlink(filepath.Join(s.params.Core, contentName)); err == nil {
		seen.Linked = to == s.content("")
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EINVAL) {
		return seen, err
	}
	// Of files that are not there nothing else is known.
	exists := func(path string) (bool, error) {
		_, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return false, nil
		}
		return err == nil, err
	}
	var err error
	if seen.Files, err = exists(s.content("")); err != nil {
		return seen, err
	}
	if seen.Staging, err = exists(s.staging()); err != nil {
		return seen, err
	}
	if seen.Old, err = exists(filepath.Join(s.params.Target, "wp-includes")); err != nil {
		return seen, err
	}
	if seen.Linked && seen.Files {
		there, err := exists(s.content("themes/" + s.core.Theme))
		if err != nil {
			return seen, err
		}
		has, err := exists(filepath.Join(s.params.Core, imageContent, "themes", s.core.Theme))
		if err != nil {
			return seen, err
		}
		if has && !there {
			seen.Theme = s.core.Theme
		}
	}
	want, err := s.seedFiles(seen.Old)
	if err != nil {
		return seen, err
	}
	seen.Config = true
	for name, data := range want {
		have, err := os.ReadFile(filepath.Join(s.params.Target, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return seen, err
		}
		seen.Config = seen.Config && err == nil && bytes.Equal(data, have)
	}
	return seen, nil
}

// seedFiles returns the files on the volume that the seed determines, by their names in the site. old: an older WordPress is
// there, whose files are left alone.
func (s *site) seedFiles(old bool) (map[string][]byte, error) {
	files := map[string][]byte{}
	if !old {
		// Plug-ins that PHP starts by themselves look for this file beside the wp-content that they are in.
		files[loaderName] = fmt.Appendf(nil, "<?php require '%s/%s';\n", s.params.Core, loaderName)
	}
	for name, path := range map[string]string{dropInName: s.params.DropIn, cacheName: s.params.ObjectCache} {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return files, nil
}

// note keeps what the database has answered.
func (s *site) note(a phpAnswer) {
	s.seen.Database, s.seen.Detail, s.asked = a.State, a.Detail, time.Now()
	if a.State == dbInstalled {
		s.seen.DBVersion, s.seen.Release, s.taken = a.DBVersion, a.Release, a.Settings
	}
}

// settings are what the spec says of the site itself. They can also be changed in WordPress, so what counts is a change of the spec: the
// database knows what the site has taken from it last.
func (s *site) settings() string {
	all := map[string]string{"title": s.params.Title, "url": s.params.URL, "admin_email": s.params.AdminEmail, "timezone": s.params.Timezone}
	text, _ := json.Marshal(all) // sorted, and strings can be marshalled
	return string(text)
}

// askDatabase looks whether the site is installed, and for which WordPress.
func (s *site) askDatabase(ctx context.Context) phpAnswer {
	if !s.greeted {
		if err := greet(ctx, s.params.Database); err != nil {
			return phpAnswer{State: dbSilent, Detail: err.Error()}
		}
		s.greeted = true
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	a, err := s.php(ctx, "look")
	switch {
	case err != nil && ctx.Err() == context.DeadlineExceeded:
		return phpAnswer{State: dbError, Detail: fmt.Sprintf("PHP, which asks it, has not ended within %v", lookLimit)}
	case err != nil:
		return phpAnswer{State: dbError, Detail: err.Error()}
	}
	s.greeted = a.State != dbError
	return a
}

// greet waits for the greeting of a MySQL server. A balancer accepts connections even if there is no server behind it.
func greet(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return errors.New(netFault(err))
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	head := make([]byte, 5) // length (3), number (1), protocol version or 0xff
	switch _, err := io.ReadFull(conn, head); {
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return errors.New("it closes the connection (no server behind the balancer is ready)")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it takes the connection, but says nothing for %v", checkLimit)
	case err != nil:
		return errors.New(netFault(err))
	case head[4] == 10:
		return nil
	case head[4] != 0xff:
		return errors.New("what answers there is no MySQL server")
	}
	size := int(head[0]) | int(head[1])<<8
	text := make([]byte, max(0, min(size-1, 512)))
	n, _ := io.ReadFull(conn, text) // as much as there is
	return fmt.Errorf("it refuses: %s", bytes.TrimSpace(text[min(2, n):n]))
}

// phpAnswer is what site.php prints.
type phpAnswer struct {
	State     string `json:"state"`
	Detail    string `json:"detail"`
	DBVersion int    `json:"db_version"`
	Release   string `json:"release"`
	Settings  string `json:"settings"`
}

// php runs site.php as the owner of the site's files: plug-ins and the drop-in that it loads from the volume are that user's.
// Script and parameters are passed on standard input, since other users can read command lines.
func (s *site) php(ctx context.Context, do string) (phpAnswer, error) {
	var a phpAnswer
	uid, gid, err := lookupOwner(s.params.Owner)
	if err != nil {
		return a, err
	}
	password := s.node.Secrets[s.params.AdminSecret]
	if password == "" {
		return a, fmt.Errorf("the seed has no secret %q", s.params.AdminSecret)
	}
	params, err := json.Marshal(map[string]string{
		"do": do, "core": s.params.Core, "node": s.node.Facts.Node.Name, "cluster_id": s.node.Facts.ClusterID, "title": s.params.Title, "url": s.params.URL, "timezone": s.params.Timezone, "settings": s.settings(),
		"admin_user": s.params.AdminUser, "admin_email": s.params.AdminEmail, "admin_password": password,
	})
	if err != nil {
		return a, err
	}
	script := fmt.Appendf(nil, "<?php $params = json_decode(base64_decode('%s'), true); ?>", base64.StdEncoding.EncodeToString(params))
	cmd := exec.CommandContext(ctx, s.params.PHP[0], s.params.PHP[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	cmd.Stdin = bytes.NewReader(append(script, sitePHP...))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return readAnswer(out, errs.Bytes(), err)
}

// readAnswer finds the answer in what PHP printed.
func readAnswer(out, errs []byte, err error) (phpAnswer, error) {
	var a phpAnswer
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if json.Unmarshal(lines[len(lines)-1], &a) == nil && a.State != "" {
		return a, nil
	}
	said := bytes.TrimSpace(errs)
	if len(said) == 0 {
		said = bytes.TrimSpace(out)
	}
	if err == nil {
		err = errors.New("no answer")
	}
	return a, fmt.Errorf("php: %w: %s", err, said)
}

type siteDo string

const (
	siteNothing siteDo = ""
	siteLink    siteDo = "link"      // wp-content of this node's WordPress to the volume
	siteClear   siteDo = "clear"     // remove this node's unfinished copy
	siteCopy    siteDo = "copy"      // wp-content into the volume
	siteConfig  siteDo = "configure" // replace the seed's files on the volume
	siteTheme   siteDo = "theme"     // add WordPress' default theme
	siteInstall siteDo = "install"   // the tables
	siteUpgrade siteDo = "upgrade"   // the tables
	siteChange  siteDo = "change"    // the site's settings
)

// decideSite chooses the next step. first is the lowest node that takes part; it alone works. hold says what an upgrade of the
// database waits for, and held how long the next attempt must wait after one that failed.
func decideSite(self, first, database string, c core, seen siteSeen, hold facts.Status, held time.Duration) (siteDo, facts.Status) {
	mine := self == first
	switch {
	case !seen.Linked:
		return siteLink, workf("linking wp-content to the volume")
	case seen.Files && seen.Staging:
		return siteClear, workf("removing an unfinished copy")
	case !seen.Files && !mine:
		return siteNothing, waitf("for %s to copy wp-content", first)
	case !seen.Files && seen.Staging:
		return siteClear, workf("removing an unfinished copy")
	case !seen.Files:
		return siteCopy, workf("copying wp-content")
	case seen.Database == dbInstalled && seen.DBVersion > c.Database:
		needed := "a newer WordPress"
		if seen.Release != "" {
			needed = "WordPress " + seen.Release
		}
		return siteNothing, stopf("the database is that of %s (its version is %d) and this image has WordPress %s (%d): replace this node with an image that has %[1]s, or restore the database from before its upgrade",
			needed, seen.DBVersion, c.Release, c.Database)
	case !seen.Config && !mine:
		return siteNothing, waitf("for %s to renew the seed's files on the volume", first)
	case !seen.Config:
		return siteConfig, workf("renewing the seed's files on the volume")
	case seen.Theme != "" && mine && held == 0:
		return siteTheme, workf("adding the theme %s", seen.Theme)
	}
	switch seen.Database {
	case dbInstalled:
		return decideUpgrade(mine, first, c, seen, hold, held)
	case dbForeign:
		return siteNothing, stopf("the database holds the site of another cluster (id %s)", seen.Detail)
	case dbSilent:
		return siteNothing, waitf("for the database at %s: %s", database, seen.Detail)
	case dbError:
		return siteNothing, facts.Status{State: facts.Failed, Detail: fmt.Sprintf("database %s: %s", database, seen.Detail)}
	case dbEmpty:
		if !mine {
			return siteNothing, waitf("for %s to install the site", first)
		}
		if held > 0 {
			return siteNothing, workf("installing the site again in %d s", ensemble.Seconds(held))
		}
		return siteInstall, workf("installing the site")
	}
	return siteNothing, workf("asking the database at %s", database)
}

// decideUpgrade is decideSite for a site that is installed, and whose database is not newer than the image's WordPress. A site
// whose database is older works, so it is ready.
func decideUpgrade(mine bool, first string, c core, seen siteSeen, hold facts.Status, held time.Duration) (siteDo, facts.Status) {
	switch {
	case seen.DBVersion == c.Database:
		return siteNothing, ready("")
	case hold.Detail != "":
		hold.State, hold.Detail = facts.Ready, fmt.Sprintf("the database's upgrade to WordPress %s waits for %s", c.Release, hold.Detail)
		return siteNothing, hold
	case !mine:
		return siteNothing, ready(fmt.Sprintf("%s upgrades the database to WordPress %s", first, c.Release))
	case held > 0:
		return siteNothing, facts.Status{State: facts.Failed, Detail: fmt.Sprintf("upgrading the database to WordPress %s again in %d s", c.Release, ensemble.Seconds(held))}
	}
	return siteUpgrade, workf("upgrading the database to WordPress %s", c.Release)
}

// decideSettings is decideSite for a site that is ready, but whose settings are not those of this node's seed.
func decideSettings(mine bool, first string, hold facts.Status, held time.Duration) (siteDo, facts.Status) {
	const what = "the site's settings to those of the spec"
	switch {
	case hold.Detail != "":
		hold.State, hold.Detail = facts.Ready, "changing "+what+" waits for "+hold.Detail
		return siteNothing, hold
	case !mine:
		return siteNothing, ready(first + " changes " + what)
	case held > 0:
		return siteNothing, facts.Status{State: facts.Failed, Detail: fmt.Sprintf("changing %s again in %d s", what, ensemble.Seconds(held))}
	}
	return siteChange, workf("changing %s", what)
}

// await says which other backends a change of the database waits for; no detail: for none. fits tells whether one's report allows the
// change, and unfit is what it has if not. A silent one may have that as well.
func (s *site) await(w World, fits func(siteSeen) bool, unfit string) facts.Status {
	members, self := ensemble.Members(w)
	var not, silent []string
	for i := range members {
		m := &members[i]
		if i == self || m.GivenUp {
			continue
		}
		switch seen, heard := s.reports.From(w, m.Name, "site"); {
		case !heard:
			silent = append(silent, m.Name)
		case !fits(seen):
			not = append(not, m.Name)
		}
	}
	switch {
	case len(not) > 0:
		return ready(strings.Join(not, ", ") + ", with " + unfit)
	case len(silent) > 0:
		held := ensemble.Await(members, silent, "")
		held.Detail = strings.Join(silent, ", ") + ", silent and perhaps with " + unfit
		return held
	}
	return facts.Status{}
}

// hold says what an upgrade of the database waits for; no detail: for nothing. An old WordPress must not write to upgraded
// tables, so every other backend must have said that its own is not older. One that is silent may serve.
func (s *site) hold(w World) facts.Status {
	held := s.await(w, func(o siteSeen) bool { return o.Core >= s.core.Database }, "an older WordPress")
	if held.Detail == "" && s.seen.Old {
		return ready("the WordPress on the volume to be moved away, which older web nodes use: see Changing a cluster")
	}
	return held
}

// holdChange is hold for a change of the settings. Backends with two seeds would undo each other's.
func (s *site) holdChange(w World) facts.Status {
	return s.await(w, func(o siteSeen) bool { return o.Settings == s.seen.Settings }, "another seed")
}

// settled: backends decide nothing by majority, and have no data of their own. Who left and still answers may serve with an older
// WordPress, or another seed. Where the role has other components that decide together, these know better.
func (s *site) settled(w World) (number int, ok bool) {
	if slices.ContainsFunc(s.node.Facts.Components, func(c facts.Component) bool { return c.Kind != "site" && decidesTogether(c.Kind) }) {
		return 0, false
	}
	members, _ := ensemble.Members(w)
	number, ok = ensemble.Complete(w, members, func(i, _ int) bool { return members[i].Answers })
	switch now := s.node.now(); {
	case !ok || slices.ContainsFunc(members, func(m ensemble.Member) bool { return m.Answers && ensemble.Left(w, m.Name, number) }):
		s.alone = time.Time{}
	case s.alone.IsZero():
		s.alone = now
	case now.Sub(s.alone) > siteLeft: // by then, who has become known last has been asked, too
		s.alone = time.Time{}
		return number, true
	}
	return 0, false
}

func (s *site) Step(ctx context.Context, w World) (facts.Status, error) {
	if s.able.IsZero() {
		s.able = time.Now()
	}
	first := s.first(w, time.Since(s.able))
	do, status := decideSite(w.Self.Name, first.Name, s.params.Database, s.core, s.seen, s.hold(w), s.retry.Left(s.node.now()))
	if do == siteNothing && status.State == facts.Ready && s.seen.DBVersion == s.core.Database && s.taken != s.settings() {
		do, status = decideSettings(w.Self.Name == first.Name, first.Name, s.holdChange(w), s.retry.Left(s.node.now()))
	}
	if do == siteNothing {
		return status, nil
	}
	s.node.Working(status.Detail)
	s.looked = time.Time{}
	err := s.take(ctx, do)
	if err != nil {
		s.retry.Next(s.node.now())
	} else {
		s.retry.Reset()
	}
	return status, err
}

// first returns the lowest node that takes part, of those with the newest WordPress. A node whose site component has not
// observed yet is probably still booting; it gets some time, since two copies take twice as long as one.
func (s *site) first(w World, able time.Duration) facts.Peer {
	members, self := ensemble.Members(w)
	newest := s.core.Database
	cores := make([]int, len(members)) // 0: not known
	cores[self] = newest
	for i := range members {
		if m := &members[i]; i != self {
			r := w.Reports[m.Name].NodeReport
			seen, takesPart := s.reports.From(w, m.Name, "site")
			m.Heard = (takesPart || siteIs(r, facts.Working) || m.Answers && able < siteHeadStart) && !siteIs(r, facts.Stopped)
			if takesPart && m.Heard {
				cores[i], newest = seen.Core, max(newest, seen.Core)
			}
		}
	}
	for i := range members {
		_, takesPart := s.reports.From(w, members[i].Name, "site")
		if (i == self || takesPart) && cores[i] < newest {
			members[i].Heard = false
		}
	}
	return ensemble.First(members).Peer
}

// siteIs tells whether the state of a node's site is this one. A node that works on the site does not observe during a long
// step, so its report is too old to count.
func siteIs(r facts.NodeReport, state facts.State) bool {
	for _, c := range r.Components {
		if c.Kind == "site" && c.Status.State == state {
			return true
		}
	}
	return false
}

func (s *site) take(ctx context.Context, do siteDo) error {
	switch do {
	case siteLink:
		return s.link(ctx)
	case siteClear:
		return s.clear(ctx)
	case siteCopy:
		return s.copy(ctx)
	case siteTheme:
		return s.addTheme(ctx)
	case siteConfig:
		return s.configure()
	case siteUpgrade:
		return s.tables(ctx, do, upgradeLimit)
	case siteChange:
		return s.tables(ctx, do, installLimit)
	}
	return s.tables(ctx, siteInstall, installLimit)
}

// tables installs or upgrades the database, or changes the site's settings in it.
func (s *site) tables(ctx context.Context, do siteDo, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := s.php(ctx, string(do))
	if err != nil {
		return fmt.Errorf("%s the site: %w", do, err)
	}
	if a.State != dbInstalled && a.State != dbForeign {
		return fmt.Errorf("%s the site: %s", do, a.Detail)
	}
	s.note(a)
	return nil
}

// link makes wp-content of the image's WordPress lead to the volume, for plug-ins that look for it there. WordPress itself
// knows wp-content by its place on the volume, as PHP does: a plug-in's __FILE__ is never behind a link.
func (s *site) link(ctx context.Context) error {
	path := filepath.Join(s.params.Core, contentName)
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		if err := s.keepContent(ctx, path); err != nil {
			return fmt.Errorf("keep the image's wp-content: %w", err)
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := filepath.Join(s.params.Core, ".imagegen-"+contentName)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(s.content(""), tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// keepContent keeps the image's wp-content beside the link that is to be in its place. It is copied: a container's root may be
// an overlay, in which the image's folders cannot be renamed.
func (s *site) keepContent(ctx context.Context, path string) error {
	kept := filepath.Join(s.params.Core, imageContent)
	if _, err := os.Lstat(kept); !errors.Is(err, fs.ErrNotExist) {
		return err // complete: it was renamed
	}
	tmp := filepath.Join(s.params.Core, ".imagegen-"+imageContent)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	pool := newWorkers(ctx, 1, 0, 0)
	if err := errors.Join(siteWriter{root: tmp, pool: pool}.folder(path, "."), pool.wait()); err != nil {
		return err
	}
	// The original is removed next, so the copy must be on the disk.
	err := filepath.WalkDir(tmp, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err != nil {
		return err
	}
	return os.Rename(tmp, kept)
}

// configure replaces the seed's files on the volume.
func (s *site) configure() error {
	uid, gid, err := lookupOwner(s.params.Owner)
	if err != nil {
		return err
	}
	files, err := s.seedFiles(s.seen.Old)
	if err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(s.params.Target, name)
		tmp := filepath.Join(filepath.Dir(path), ".imagegen-"+filepath.Base(name)+"."+s.node.Facts.Node.Name)
		if err := os.WriteFile(tmp, data, 0o640); err != nil {
			return err
		}
		if err := os.Chown(tmp, uid, gid); err != nil {
			return err
		}
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
	}
	return nil
}

// clear removes this node's unfinished copy. A folder's files are removed at once, not one after the other.
func (s *site) clear(ctx context.Context) error {
	var dirs []string
	pool := newWorkers(ctx, copyWorkers, 0, 0)
	err := filepath.WalkDir(s.staging(), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, path)
			return nil
		}
		return pool.do(func() error { return os.Remove(path) })
	})
	if err := errors.Join(err, pool.wait()); err != nil {
		return fmt.Errorf("remove the unfinished copy: %w", err)
	}
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil {
			return fmt.Errorf("remove the unfinished copy: %w", err)
		}
	}
	return nil
}

// stage fills this node's folder on the volume.
func (s *site) stage(ctx context.Context, without map[string][]byte, fill func(siteWriter) error) error {
	uid, gid, err := lookupOwner(s.params.Owner)
	if err != nil {
		return err
	}
	staging := s.staging()
	if err := os.Mkdir(staging, 0o755); err != nil {
		return err
	}
	if err := os.Chown(staging, uid, gid); err != nil {
		return err
	}
	pool := newWorkers(ctx, copyWorkers, uid, gid)
	stop := s.progress(&pool.done)
	defer stop()
	return errors.Join(fill(siteWriter{root: staging, pool: pool, without: without}), pool.wait())
}

// copy puts the image's wp-content and the seed's files into this node's folder, and the folder in its place.
func (s *site) copy(ctx context.Context) error {
	seed, err := s.seedFiles(false)
	if err != nil {
		return err
	}
	err = s.stage(ctx, seed, func(out siteWriter) error {
		if err := out.folder(filepath.Join(s.params.Core, imageContent), contentName); err != nil {
			return err
		}
		for name, data := range seed {
			if err := out.file(name, 0o640, io.NopCloser(bytes.NewReader(data))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("copy wp-content: %w", err)
	}
	err = os.Rename(s.staging(), s.params.Target)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		if _, err := os.Stat(s.content("")); err != nil {
			return fmt.Errorf("%s is not empty, but holds no wp-content; move away what is in it: %w", s.params.Target, err)
		}
		return nil // another node was faster; this copy is removed next
	}
	return err
}

// addTheme adds the default theme of a newer WordPress. Nothing that is there is replaced.
func (s *site) addTheme(ctx context.Context) error {
	err := s.stage(ctx, nil, func(out siteWriter) error {
		return out.folder(filepath.Join(s.params.Core, imageContent, "themes", s.core.Theme), ".")
	})
	if err == nil {
		err = os.Rename(s.staging(), s.content("themes/"+s.core.Theme))
		if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
			return nil // another node was faster; this copy is removed next
		}
	}
	if err != nil {
		return fmt.Errorf("add the theme %s: %w", s.core.Theme, err)
	}
	return nil
}

// progress shows how many files have been copied, until the returned function is called.
func (s *site) progress(done *atomic.Int64) (stop func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				s.node.Working(fmt.Sprintf("copying wp-content: %d files", done.Load()))
			}
		}
	}()
	return func() { close(quit); <-gone }
}

package agent

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
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

// phpAnswer is what site.php prints.
type phpAnswer struct {
	State     string `json:"state"`
	Detail    string `json:"detail"`
	DBVersion int    `json:"db_version"`
	Release   string `json:"release"`
	Settings  string `json:"settings"`
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

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
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

const (
	// Each operation on a replicated volume takes milliseconds: copying thousands of small files needs concurrency.
	copyWorkers = 24
	configName  = "wp-config.php"
	dropInName  = "wp-content/db.php" // WordPress's name for a database connection that is not its own

	installLimit  = 3 * time.Minute
	siteHeadStart = 10 * time.Second // for a lower node that is not able to copy yet
	siteCalm      = 30 * time.Second // between two looks at an installed site's files
	databaseCalm  = 5 * time.Minute  // between two looks at its marker in the database
)

// lookLimit limits one look at the database.
var lookLimit = 8 * time.Second

//go:embed site.php
var sitePHP []byte

// site installs a WordPress site once for all backends: its files in the volume, its tables in the database.
//
// Files are copied into a folder of the node's own, which is then renamed into place: the first node wins, and the site is
// never incomplete. The tables are filled in one transaction that includes the marker, see site.php.
type site struct {
	node    Node
	params  *facts.SiteParams
	seen    siteSeen
	looked  time.Time        // at the files
	asked   time.Time        // the database
	retry   ensemble.Backoff // of what failed
	able    time.Time        // since when this node could work on the site
	greeted bool             // the database has answered; it counts each greeting without a login as an attack
	reports ensemble.Reader[siteSeen]
}

// siteSeen is what a backend tells the others.
type siteSeen struct {
	Files    bool   `json:"files"`   // the site's files are in place
	Config   bool   `json:"config"`  // and their configuration is what the seed says
	Staging  bool   `json:"staging"` // an unfinished copy of this node's is there
	Database string `json:"database"`
	Detail   string `json:"detail,omitempty"` // of Database
}

// The values of siteSeen.Database.
const (
	dbUnknown   = ""          // not looked at yet: there are no files to look with
	dbSilent    = "silent"    // it does not answer
	dbError     = "error"     // it answers with an error
	dbEmpty     = "empty"     // the site is not installed in it
	dbInstalled = "installed" // it is
	dbForeign   = "foreign"   // another cluster's site is
)

func newSite(n Node, _ string, p *facts.SiteParams) Component {
	return &site{node: n, params: p}
}

func (s *site) staging() string {
	return filepath.Join(filepath.Dir(s.params.Target), ".imagegen-site."+s.node.Facts.Node.Name)
}

func (s *site) Observe(ctx context.Context) (any, error) {
	if done := s.seen.Files && s.seen.Config && !s.seen.Staging; !done || time.Since(s.looked) > siteCalm {
		seen := siteSeen{Database: s.seen.Database, Detail: s.seen.Detail}
		want, err := s.seedFiles()
		if err != nil {
			return nil, err
		}
		seen.Config = true
		for name, data := range want {
			have, err := os.ReadFile(filepath.Join(s.params.Target, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			seen.Files = seen.Files || name == configName && err == nil
			seen.Config = seen.Config && err == nil && bytes.Equal(data, have)
		}
		if _, err := os.Lstat(s.staging()); err == nil {
			seen.Staging = true
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		s.seen, s.looked = seen, time.Now()
	}
	if s.seen.Files && s.seen.Config && (s.seen.Database != dbInstalled || time.Since(s.asked) > databaseCalm) && s.retry.Left(s.node.now()) == 0 {
		s.seen.Database, s.seen.Detail = s.askDatabase(ctx)
		s.asked = time.Now()
	}
	return s.seen, nil
}

// seedFiles returns the site's files that come from the seed, by their names in the site.
func (s *site) seedFiles() (map[string][]byte, error) {
	files := map[string][]byte{}
	for name, path := range map[string]string{configName: s.params.Config, dropInName: s.params.DropIn} {
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

// askDatabase looks whether the site is installed.
func (s *site) askDatabase(ctx context.Context) (state, detail string) {
	if !s.greeted {
		if err := greet(ctx, s.params.Database); err != nil {
			return dbSilent, err.Error()
		}
		s.greeted = true
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	a, err := s.php(ctx, "look")
	switch {
	case err != nil && ctx.Err() == context.DeadlineExceeded:
		return dbError, fmt.Sprintf("PHP, which asks it, has not ended within %v", lookLimit)
	case err != nil:
		return dbError, err.Error()
	}
	s.greeted = a.State != dbError
	return a.State, a.Detail
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
	State  string `json:"state"`
	Detail string `json:"detail"`
}

// php runs site.php as the owner of the site's files, since the code that it loads from the volume is that user's.
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
		"do": do, "target": s.params.Target, "cluster_id": s.node.Facts.ClusterID, "title": s.params.Title, "url": s.params.URL, "timezone": s.params.Timezone,
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
	siteClear   siteDo = "clear"     // remove this node's unfinished copy
	siteCopy    siteDo = "copy"      // the files into the volume
	siteConfig  siteDo = "configure" // replace the configuration
	siteInstall siteDo = "install"   // the tables
)

// decideSite chooses the next step. first is the lowest node that takes part; it alone works. held is how long the next
// attempt must wait after one that failed.
func decideSite(self, first, database string, seen siteSeen, held time.Duration) (siteDo, facts.Status) {
	mine := self == first
	switch {
	case seen.Files && seen.Staging:
		return siteClear, workf("removing an unfinished copy")
	case !seen.Files && !mine:
		return siteNothing, waitf("for %s to copy the site", first)
	case !seen.Files && seen.Staging:
		return siteClear, workf("removing an unfinished copy")
	case !seen.Files:
		return siteCopy, workf("copying the site")
	case !seen.Config && !mine:
		return siteNothing, waitf("for %s to renew the configuration", first)
	case !seen.Config:
		return siteConfig, workf("renewing the configuration")
	}
	switch seen.Database {
	case dbInstalled:
		return siteNothing, ready("")
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

func (s *site) Step(ctx context.Context, w World) (facts.Status, error) {
	if s.able.IsZero() {
		s.able = time.Now()
	}
	first := s.first(w, time.Since(s.able))
	do, status := decideSite(w.Self.Name, first.Name, s.params.Database, s.seen, s.retry.Left(s.node.now()))
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

// first returns the lowest node that takes part. A node whose site component has not observed yet is probably still booting;
// it gets some time, since two copies take twice as long as one.
func (s *site) first(w World, able time.Duration) facts.Peer {
	members, self := ensemble.Members(w)
	for i := range members {
		if m := &members[i]; i != self {
			_, takesPart := s.reports.From(w, m.Name, "site")
			m.Heard = takesPart || siteWorks(w.Reports[m.Name].NodeReport) || m.Answers && able < siteHeadStart
		}
	}
	return ensemble.First(members).Peer
}

// siteWorks tells whether a node works on the site. During a long step it does not observe, so its report is too old to count.
func siteWorks(r facts.NodeReport) bool {
	for _, c := range r.Components {
		if c.Kind == "site" && c.Status.State == facts.Working {
			return true
		}
	}
	return false
}

func (s *site) take(ctx context.Context, do siteDo) error {
	switch do {
	case siteClear:
		return s.clear(ctx)
	case siteCopy:
		return s.copy(ctx)
	case siteConfig:
		return s.configure()
	}
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	a, err := s.php(ctx, "install")
	if err != nil {
		return fmt.Errorf("install the site: %w", err)
	}
	if a.State != dbInstalled && a.State != dbForeign {
		return fmt.Errorf("install the site: %s", a.Detail)
	}
	s.seen.Database, s.seen.Detail, s.asked = a.State, a.Detail, time.Now()
	return nil
}

// configure replaces what a new seed has changed.
func (s *site) configure() error {
	uid, gid, err := lookupOwner(s.params.Owner)
	if err != nil {
		return err
	}
	files, err := s.seedFiles()
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

// copy puts the site's files and its configuration into this node's folder, and the folder in its place.
func (s *site) copy(ctx context.Context) error {
	uid, gid, err := lookupOwner(s.params.Owner)
	if err != nil {
		return err
	}
	seed, err := s.seedFiles()
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
	out := siteWriter{root: staging, pool: pool, without: seed}
	if strings.HasSuffix(s.params.Source, ".tar.gz") {
		err = out.unpack(s.params.Source)
	} else {
		err = out.folder(s.params.Source)
	}
	for name, data := range seed {
		if err == nil {
			err = out.file(name, 0o640, io.NopCloser(bytes.NewReader(data)))
		}
	}
	err = errors.Join(err, pool.wait())
	stop()
	if err != nil {
		return fmt.Errorf("copy the site: %w", err)
	}
	if _, err := os.Stat(filepath.Join(staging, "wp-load.php")); err != nil {
		return fmt.Errorf("copy the site: %s holds no WordPress: %w", s.params.Source, err)
	}
	err = os.Rename(staging, s.params.Target)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		if _, err := os.Stat(filepath.Join(s.params.Target, configName)); err != nil {
			return fmt.Errorf("%s is not empty, but holds no site; move away what is in it: %w", s.params.Target, err)
		}
		return nil // another node was faster; this copy is removed next
	}
	return err
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
				s.node.Working(fmt.Sprintf("copying the site: %d files", done.Load()))
			}
		}
	}()
	return func() { close(quit); <-gone }
}

package cluster

import (
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"imagegen/distro"
	"imagegen/internal/words"
)

// BaseRepos are the repositories of CentOS 7 itself, used for every image.
var BaseRepos = []string{"base", "updates", "extras"}

// Base is the disk that images are made from, instead of the distro's own.
type Base struct {
	URL    string // empty: File is set
	File   string // on the build host; relative to the spec's folder
	SHA256 string // of the file as it is, possibly compressed
}

// Repo is a package repository. If a role has a repository of this name, the fields that are set override the role's.
type Repo struct {
	Name     string
	URLs     []string // tried in order; may contain $basearch and $releasever
	Keys     []string
	Exclude  []string
	Priority int
}

// Download overrides the address of one of the roles' downloads.
type Download struct {
	Name   string
	URL    string
	SHA256 string // empty: unchanged
}

const (
	baseExample = "{url: https://mirror.example.com/CentOS-7.qcow2, sha256: …}"
	repoExample = "{urls: [https://mirror.example.com/epel/7/$basearch/]}"
	fileExample = "{url: https://mirror.example.com/wordpress.tar.gz}"
)

var sum256 = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (p *parser) base(v value) {
	if v.node == nil {
		return
	}
	if p.known().Packages == distro.Deb {
		p.faultf(v, "a base of %s is not downloaded, but made from its archive; remove it, or write mirror", p.spec.Distro)
		return
	}
	get, ok := p.object(v, baseExample, "url", "file", "sha256")
	if !ok {
		return
	}
	var b Base
	at, file := get("url"), get("file")
	switch {
	case at.given() && file.given():
		p.faultf(file, "the base is either downloaded or a file; remove url or file")
	case at.missing && file.missing:
		p.faultf(v, "has no location; write url: and an address, or file: and a path")
	}
	if s, ok := p.text(at, "an address such as https://mirror.example.com/CentOS-7.qcow2"); ok && p.archiveURL(at, s, "http", "https") {
		b.URL = s
	}
	if s, ok := p.text(file, "the path of a disk's file"); ok {
		p.fileThere(file, s, "a disk")
		b.File = s
	}
	b.SHA256 = p.sum(p.required(get("sha256"), "its SHA-256, as sha256sum prints it"))
	p.spec.Base = &b
}

// sum returns the SHA-256 at v, if there is one.
func (p *parser) sum(v value) string {
	s, ok := p.text(v, "a SHA-256, 64 hexadecimal digits")
	if ok && !sum256.MatchString(s) {
		p.faultf(v, "%s is not a SHA-256: 64 hexadecimal digits in lower-case letters, as sha256sum prints them", words.Quote(s))
	}
	return s
}

func (p *parser) downloads(v value) {
	if v.node == nil {
		return
	}
	known := p.ofRoles(nil, func(r Rules) []string { return r.Downloads[p.spec.Distro] })
	entries, _ := p.mapping(v, "wordpress: "+fileExample)
	for _, e := range entries {
		if !slices.Contains(known, e.key) {
			if p.spec.Distro != "" {
				lead := ", nor any other; remove it"
				if len(known) > 0 {
					lead = words.Hint(e.key, "it may be", known)
				}
				p.faultf(e.at, "no role downloads such a file on %s%s", p.spec.Distro, lead)
			}
			continue
		}
		get, ok := p.object(e.value, fileExample, "url", "sha256")
		if !ok {
			continue
		}
		d := Download{Name: e.key, SHA256: p.sum(get("sha256"))}
		at := p.required(get("url"), "https://mirror.example.com/wordpress.tar.gz")
		if s, ok := p.text(at, "an address such as https://mirror.example.com/wordpress.tar.gz"); ok && p.archiveURL(at, s, "http", "https") {
			d.URL = s
		}
		p.spec.Downloads = append(p.spec.Downloads, d)
	}
}

// ofRoles returns known plus the names that the roles bring, without duplicates.
func (p *parser) ofRoles(known []string, names func(Rules) []string) []string {
	known = slices.Clone(known)
	for _, role := range slices.Sorted(maps.Keys(p.rules)) {
		for _, name := range names(p.rules[role]) {
			if !slices.Contains(known, name) {
				known = append(known, name)
			}
		}
	}
	return known
}

var repoName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

func (p *parser) repos(v value) {
	if v.node == nil {
		return
	}
	if p.known().Packages == distro.Deb {
		p.faultf(v, "%s takes its packages from one archive; write it as mirror, and remove repos", p.spec.Distro)
		return
	}
	known := p.ofRoles(BaseRepos, func(r Rules) []string { return r.Repos[p.spec.Distro] })
	entries, _ := p.mapping(v, "epel: "+repoExample)
	for _, e := range entries {
		p.repo(e, known)
	}
}

func (p *parser) repo(e entry, known []string) {
	isKnown := slices.Contains(known, e.key)
	if !repoName.MatchString(e.key) {
		p.faultf(e.at, "%s cannot be a repository's name: up to 31 lower-case letters, digits and hyphens, a letter first", words.Quote(e.key))
	}
	get, ok := p.object(e.value, repoExample, "urls", "keys", "exclude", "priority")
	if !ok {
		return
	}
	r := Repo{Name: e.key}
	for _, f := range []struct {
		list    *[]string
		key     string
		example string
	}{
		{&r.URLs, "urls", "[https://mirror.example.com/epel/7/$basearch/]"},
		{&r.Keys, "keys", "[https://mirror.example.com/RPM-GPG-KEY]"},
	} {
		at := get(f.key)
		if at.missing && !isKnown {
			p.faultf(e.at, "no role has such a repository, and a new one needs %s: %s%s", f.key, f.example, words.Hint(e.key, "there are", known))
			return
		}
		for _, u := range p.list(at, f.example) {
			if s, ok := p.text(u, "an address"); ok && p.archiveURL(u, s, "http", "https", "ftp", "file") {
				*f.list = append(*f.list, s)
			}
		}
		if at.given() && at.node.Kind == yaml.SequenceNode && len(at.node.Content) == 0 {
			p.faultf(at, "is empty; write %s, or remove it", f.example)
		}
	}
	for _, x := range p.list(get("exclude"), "[kernel*]") {
		if s, ok := p.text(x, "a package's name, with * for any letters"); ok {
			if strings.ContainsAny(s, " ,") {
				p.faultf(x, "%s: write one name per entry", words.Quote(s))
			}
			r.Exclude = append(r.Exclude, s)
		}
	}
	if at := get("priority"); at.given() {
		r.Priority, _ = p.number(at, 1, 99)
	}
	if isKnown && !slices.ContainsFunc([]string{"urls", "keys", "exclude", "priority"}, func(k string) bool { return !get(k).missing }) {
		p.faultf(e.value, "changes nothing; write such as %s, or remove it", repoExample)
	}
	p.spec.Repos = append(p.spec.Repos, r)
}

// archiveURL reports whether s is a valid address of packages or disks without credentials.
func (p *parser) archiveURL(v value, s string, schemes ...string) bool {
	u, err := url.Parse(s)
	switch {
	case err != nil || !slices.Contains(schemes, u.Scheme) || u.Host == "" && u.Scheme != "file" || strings.ContainsAny(s, " \"'"):
		if err == nil && u.User == nil { // an unparsable address may contain a password
			p.faultf(v, "%s is not an address; write one such as https://mirror.example.com/archive/", words.Quote(s))
			return false
		}
		p.faultf(v, "this is not an address; write one such as https://mirror.example.com/archive/")
	case u.User != nil:
		p.faultf(v, "the address of %s contains a password, which every image's manifest would show; write an address without one", words.Quote(u.Host))
	default:
		return true
	}
	return false
}

func (p *parser) selinux(v value) {
	modes := []string{"permissive", "enforcing"}
	if p.known().SELinux {
		p.spec.SELinux = modes[0]
	}
	s, ok := p.text(v, words.List(modes, "or"))
	switch {
	case !ok:
	case p.known().Name != "" && !p.known().SELinux:
		p.faultf(v, "%s has no SELinux; remove it", p.spec.Distro)
	case s == "disabled" || s == "off":
		p.faultf(v, "SELinux cannot be disabled; permissive, the default, permits everything and logs what the policy forbids")
	case !slices.Contains(modes, s):
		p.faultf(v, "there is no mode %s%s", words.Quote(s), words.Hint(s, "it may be", modes))
	default:
		p.spec.SELinux = s
	}
}

// mirror reads an archive's address or, for a distro with deb packages, one or several lines in the format of
// sources.list.
func (p *parser) mirror(v value) {
	if v.node != nil && v.node.Kind == yaml.SequenceNode && p.known().Packages != distro.RPM {
		var lines []string
		suites := p.suites()
		release := false
		before := len(p.problems)
		for _, e := range p.list(v, "[deb https://archive.example.com/debian bookworm main]") {
			s, ok := p.text(e, "a line as in sources.list")
			if !ok {
				continue
			}
			suite, ok := p.debLine(e, s)
			release = release || suite == suites[0]
			if ok {
				lines = append(lines, strings.Join(strings.Fields(s), " "))
			}
		}
		if len(p.problems) == before && !release {
			p.faultf(v, "no line has suite %s; add one such as deb https://archive.example.com/debian %[1]s main", suites[0])
		}
		p.spec.Mirror = strings.Join(lines, "\n")
		return
	}
	s, ok := p.text(v, "the archive's address, such as https://archive.example.com/debian")
	switch {
	case !ok:
		return
	case p.known().Packages != distro.RPM && strings.HasPrefix(s, "deb "):
		suite, ok := p.debLine(v, s)
		if first := p.suites()[0]; ok && suite != first {
			p.faultf(v, "%s alone is not a complete %s; write a list that also has a line of suite %s", words.Quote(suite), p.release().Title, first)
		}
	default:
		p.archiveURL(v, s, "http", "https", "ftp", "file")
	}
	p.spec.Mirror = s
}

// known returns the spec's distro, or the zero value if the spec names none that exists.
func (p *parser) known() distro.Distro { return distro.Named(p.spec.Distro) }

// release returns the distro whose suites a line of sources.list may name: the spec's, or the default if the spec names
// none that exists.
func (p *parser) release() distro.Distro {
	if d := p.known(); d.Suites != nil {
		return d
	}
	return distro.Named(distro.Default)
}

// suites are the release's suites that images can be made from.
func (p *parser) suites() []string { return p.release().Suites }

// debLine checks a line of sources.list, deb [options] ADDRESS suite components, and returns the suite.
func (p *parser) debLine(v value, s string) (suite string, ok bool) {
	rest, isDeb := strings.CutPrefix(strings.Join(strings.Fields(s), " "), "deb ")
	if strings.HasPrefix(rest, "[") {
		_, rest, _ = strings.Cut(rest, "]")
	}
	f := strings.Fields(rest)
	switch {
	case !isDeb || len(f) < 3:
		// The line is not shown because it may contain a password.
		p.faultf(v, "this is not a line of sources.list; write such as deb https://archive.example.com/debian bookworm main")
	case !p.archiveURL(v, f[0], "http", "https", "ftp", "file", "copy"):
	case !slices.Contains(p.suites(), f[1]):
		p.faultf(v, "suite %s is not of %s; it may be %s", words.Quote(f[1]), p.release().Title, words.List(p.suites(), "or"))
	case !slices.Contains(f[2:], "main"):
		p.faultf(v, "the line lacks the component main, which has all packages of the roles; write it after %s", f[1])
	default:
		return f[1], true
	}
	return "", false
}

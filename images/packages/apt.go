package packages

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/distro"
)

// MirrorSources returns the sources for a spec's mirror, an address or lines of sources.list, as lines of sources.list.
func MirrorSources(mirror string, d distro.Distro) ([]string, error) {
	if !strings.HasPrefix(mirror, "deb ") {
		// OpenArchive drops the latter two, with a warning, if the archive lacks them.
		address := strings.TrimSuffix(mirror, "/")
		mirror = "deb " + address + " " + d.Suites[0] + " main\n" +
			"deb " + address + " " + d.Suites[1] + " main\n" +
			"deb " + address + "-security " + d.Suites[2] + " main"
	}
	for _, s := range parseList(mirror) {
		if _, err := reachable("/", s.uri); err != nil {
			return nil, err
		}
	}
	return strings.Split(mirror, "\n"), nil
}

// HostSources returns the sources of a release that are configured on the machine with the file system root: the
// release, its updates and its security updates, sorted. Other archives are ignored: they must not get into an image.
// The files are parsed here because apt-get takes longer than the rest of a build that has nothing to do.
func HostSources(root string, d distro.Distro) ([]string, error) {
	var lines []string
	var main bool
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		files, err := filepath.Glob(filepath.Join(root, "etc/apt", pattern))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			parse := parseList
			if strings.HasSuffix(file, ".sources") {
				parse = parseDeb822
			}
			for _, s := range parse(string(data)) {
				if !s.wanted(d.Suites) {
					continue
				}
				if s.uri, err = reachable(root, s.uri); err != nil {
					return nil, fmt.Errorf("%s: %w", file, err)
				}
				is, err := s.isDebian(root)
				if err != nil {
					return nil, err
				}
				if is {
					lines = append(lines, s.line())
					main = main || s.suite == d.Suites[0]
				}
			}
		}
	}
	if !main {
		return nil, fmt.Errorf("APT on this machine has no archive of %s (%s); set one in the spec: mirror: URL", d.Title, d.Suites[0])
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

// source is one suite of an archive.
type source struct {
	uri, suite string
	components []string
	archs      []string // empty: all
	options    []string // name=value; only sourceOptions and signed-by
	key        string   // path of the keyring that must have signed it; empty: any that APT knows
}

// sourceOptions are the options that a bake keeps: those that decide whether an archive is trusted.
var sourceOptions = []string{"allow-insecure", "allow-weak", "check-date", "check-valid-until", "trusted"}

// option sets an option if a bake needs it. Keys that are embedded in the sources or named by fingerprint are ignored;
// APT's default keyrings apply.
func (s *source) option(name, value string) {
	switch name = strings.ToLower(name); {
	case name != "architectures" && strings.ContainsAny(value, "#[] \t\r\n"): // not a single word
	case name == "arch" || name == "architectures":
		s.archs = strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) })
	case name == "signed-by" && strings.HasPrefix(value, "/"):
		s.key, _, _ = strings.Cut(value, ",")
		s.key = filepath.Clean(s.key)
		s.options = append(s.options, name+"="+value)
	case slices.Contains(sourceOptions, name) && value != "":
		s.options = append(s.options, name+"="+value)
	}
}

func (s source) wanted(suites []string) bool {
	return slices.Contains(suites, s.suite) &&
		slices.Contains(s.components, "main") && (len(s.archs) == 0 || slices.Contains(s.archs, "amd64")) &&
		!strings.HasPrefix(s.uri, "cdrom:")
}

func (s source) line() string {
	options := ""
	if len(s.options) > 0 {
		slices.Sort(s.options)
		options = "[" + strings.Join(s.options, " ") + "] "
	}
	return "deb " + options + s.uri + " " + s.suite + " main"
}

// isDebian distinguishes Debian's own archive from others with the same suite names: by the Origin in its release file
// or, if APT has not fetched that yet, by its key.
func (s source) isDebian(root string) (bool, error) {
	_, address, _ := strings.Cut(s.uri, ":")
	name := strings.Trim(address, "/") + "/dists/" + s.suite
	if strings.HasPrefix(s.uri, "file:") || strings.HasPrefix(s.uri, "copy:") {
		name = "/" + name
	}
	name = strings.NewReplacer("_", "%5f", "~", "%7e", "/", "_").Replace(name) // APT's file name
	for _, file := range []string{"_InRelease", "_Release"} {
		data, err := os.ReadFile(filepath.Join(root, "var/lib/apt/lists", name+file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return strings.Contains("\n"+string(data), "\nOrigin: Debian\n"), err
	}
	return s.key == "" || strings.HasPrefix(filepath.Base(s.key), "debian-archive-"), nil
}

// reachable returns an address that works in an image. For a list of mirrors in a file of this machine, as in Debian's
// cloud images, it returns the first mirror.
func reachable(root, uri string) (string, error) {
	if file, ok := strings.CutPrefix(uri, "mirror+file:"); ok {
		data, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			return "", err
		}
		uri = ""
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
				uri = f[0]
				break
			}
		}
		if uri == "" {
			return "", fmt.Errorf("%s contains no mirror", file)
		}
	}
	u, err := url.Parse(uri)
	if err != nil {
		return "", errors.New("the address of a source is invalid") // without the cause, which may contain a password
	}
	if u.User != nil {
		return "", fmt.Errorf("the address of the archive at %s contains a password, which would get into every image; set one without a password in the spec: mirror: URL", u.Host)
	}
	return uri, nil
}

// parseList parses a file like sources.list: deb [options] URI suite component….
func parseList(text string) []source {
	var all []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.Join(strings.Fields(line), " "), "deb ")
		if !ok {
			continue
		}
		var s source
		if strings.HasPrefix(rest, "[") {
			var options string
			options, rest, _ = strings.Cut(rest[1:], "]")
			for _, o := range strings.Fields(options) {
				name, value, _ := strings.Cut(o, "=")
				s.option(name, value)
			}
		}
		f := strings.Fields(rest)
		if len(f) < 3 {
			continue
		}
		s.uri, s.suite, s.components = f[0], f[1], f[2:]
		all = append(all, s)
	}
	return all
}

// parseDeb822 parses a file of stanzas: Types, URIs, Suites, Components, ….
func parseDeb822(text string) []source {
	var all []source
	stanza := map[string]string{}
	end := func() {
		off := slices.Contains([]string{"no", "false", "without", "off", "disable", "0"}, strings.TrimSpace(stanza["enabled"]))
		if slices.Contains(strings.Fields(stanza["types"]), "deb") && !off {
			for _, uri := range strings.Fields(stanza["uris"]) {
				for _, suite := range strings.Fields(stanza["suites"]) {
					s := source{uri: uri, suite: suite, components: strings.Fields(stanza["components"])}
					for name, value := range stanza {
						s.option(name, strings.TrimSpace(value))
					}
					all = append(all, s)
				}
			}
		}
		stanza = map[string]string{}
	}
	key := ""
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			end()
		case line[0] == ' ' || line[0] == '\t':
			stanza[key] += line
		default:
			name, value, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(name))
			stanza[key] = value
		}
	}
	end()
	return all
}

// Address returns the address of a suite in lines of sources.list, or "".
func Address(sources []string, suite string) string {
	for _, s := range parseList(strings.Join(sources, "\n")) {
		if s.suite == suite {
			return s.uri
		}
	}
	return ""
}

// Keyrings returns the keyring files in Signed-By options of sources.
func Keyrings(sources []string) (keys []string) {
	for _, s := range parseList(strings.Join(sources, "\n")) {
		if s.key != "" {
			keys = append(keys, s.key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// APTDefaults is the configuration of APT in a bake.
const APTDefaults = `APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dpkg::Use-Pty "false";
`

// aptSettings selects settings from the output of apt-config dump: how this machine reaches archives (mostly proxies),
// and how strict it is about their age. It returns them in the syntax of apt.conf.
func aptSettings(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, prefix := range []string{
			"Acquire::http", "Acquire::https", "Acquire::ftp", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6",
			"Acquire::Check-Valid-Until", "Acquire::Check-Date",
		} {
			// Files named in settings do not exist in the image.
			if (name == prefix || strings.HasPrefix(name, prefix+"::")) && !strings.HasPrefix(value, `"/`) && value != `"";` {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// file returns APT's file name for a package.
func (p Pin) file() string {
	return p.Name + "_" + strings.ReplaceAll(p.Version, ":", "%3a") + "_" + p.Architecture + ".deb"
}

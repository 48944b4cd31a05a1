package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// sources returns the APT sources to bake from, as lines of sources.list: the spec's mirror, or what this machine
// itself uses for bookworm. It reads APT's files, since asking apt-get takes longer than all else of a build that has
// nothing to do.
func (c *Config) sources() ([]string, error) {
	if m := c.Spec.Mirror; strings.HasPrefix(m, "deb ") {
		return []string{m}, nil
	} else if m != "" {
		return []string{"deb " + strings.TrimSuffix(m, "/") + " bookworm main"}, nil
	}
	return hostSources("/")
}

// hostSources returns the sources of Debian's bookworm among those of the machine whose file system is at root, sorted.
func hostSources(root string) ([]string, error) {
	var all []source
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		files, err := filepath.Glob(filepath.Join(root, "etc/apt", pattern))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("read this machine's APT sources: %w", err)
			}
			if strings.HasSuffix(file, ".sources") {
				all = append(all, parseDeb822(string(data))...)
			} else {
				all = append(all, parseList(string(data))...)
			}
		}
	}
	var lines []string
	var main bool
	for _, s := range all {
		if !strings.HasPrefix(s.suite+"-", "bookworm-") || !slices.Contains(s.components, "main") || strings.HasPrefix(s.uri, "cdrom:") {
			continue
		}
		if is, err := s.isDebian(root); err != nil || !is {
			if err != nil {
				return nil, fmt.Errorf("read this machine's APT lists: %w", err)
			}
			continue
		}
		switch s.suite {
		case "bookworm":
			main = true
		case "bookworm-updates", "bookworm-security":
		default:
			continue // backports, proposed updates
		}
		lines = append(lines, s.line())
	}
	if !main {
		return nil, errors.New("APT on this machine has no archive of Debian 12 (bookworm) to bake from; name one with `mirror: URL` in the spec")
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

// source is one archive, suite by suite.
type source struct {
	uri, suite string
	components []string
	signedBy   string // path of a keyring, or empty
	trusted    bool   // unsigned is good enough
}

func (s source) line() string {
	var options []string
	if s.signedBy != "" {
		options = append(options, "signed-by="+s.signedBy)
	}
	if s.trusted {
		options = append(options, "trusted=yes")
	}
	line := "deb "
	if len(options) > 0 {
		line += "[" + strings.Join(options, " ") + "] "
	}
	return line + s.uri + " " + s.suite + " main"
}

// isDebian tells Debian's own archive from others that use its suites' names: by what the archive says of itself, or by
// its key, as long as APT has not fetched its lists.
func (s source) isDebian(root string) (bool, error) {
	_, address, _ := strings.Cut(s.uri, "://")
	name := strings.ReplaceAll(strings.Trim(address, "/"), "_", "%5f") + "/dists/" + s.suite
	name = strings.ReplaceAll(name, "/", "_")
	for _, file := range []string{"_InRelease", "_Release"} {
		data, err := os.ReadFile(filepath.Join(root, "var/lib/apt/lists", name+file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return strings.Contains(string(data), "\nOrigin: Debian\n") || strings.HasPrefix(string(data), "Origin: Debian\n"), err
	}
	return s.signedBy == "" || strings.HasPrefix(filepath.Base(s.signedBy), "debian-archive-"), nil
}

// parseList reads a file like sources.list: deb [options] URI suite component….
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

// parseDeb822 reads a file of stanzas: Types, URIs, Suites, Components, ….
func parseDeb822(text string) []source {
	var all []source
	stanza := map[string]string{}
	end := func() {
		if slices.Contains(strings.Fields(stanza["types"]), "deb") && strings.TrimSpace(stanza["enabled"]) != "no" {
			for _, uri := range strings.Fields(stanza["uris"]) {
				for _, suite := range strings.Fields(stanza["suites"]) {
					s := source{uri: uri, suite: suite, components: strings.Fields(stanza["components"])}
					s.option("signed-by", strings.TrimSpace(stanza["signed-by"]))
					s.option("trusted", strings.TrimSpace(stanza["trusted"]))
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
			key = strings.ToLower(name)
			stanza[key] = value
		}
	}
	end()
	return all
}

// option takes those options of a source that matter to whether it is believed. Keys that are written into the file
// itself, or named by their fingerprint, are left to the keyrings that APT always has.
func (s *source) option(name, value string) {
	switch {
	case name == "signed-by" && strings.HasPrefix(value, "/"):
		s.signedBy = value
	case name == "trusted":
		s.trusted = value == "yes"
	}
}

// aptSettings picks from what apt-config dump prints the settings that say how this machine reaches its archives and
// how strict it is about their age, in the syntax of apt.conf.
func aptSettings(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		name, _, _ := strings.Cut(line, " ")
		for _, prefix := range []string{"Acquire::http", "Acquire::https", "Acquire::ftp", "Acquire::Retries", "Acquire::Check-Valid-Until", "Acquire::Check-Date"} {
			// Files that are named here are not in the image.
			if (name == prefix || strings.HasPrefix(name, prefix+"::")) && !strings.Contains(line, `"/`) && !strings.HasSuffix(strings.TrimSpace(line), `"";`) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

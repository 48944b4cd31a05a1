package facts

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"imagegen/internal/words"
)

// File is a file of the seed other than the facts themselves: how it must look on the node, and what a node that runs must
// do when a newer seed has another one.
type File struct {
	Path   string `json:"path"`
	Mode   string `json:"mode"`  // octal, four digits
	Owner  string `json:"owner"` // user:group
	Digest string `json:"digest"`
	// Secret: the digest is keyed (see FileDigest).
	Secret bool   `json:"secret,omitempty"`
	Change Change `json:"change,omitempty"`
	Unit   string `json:"unit,omitempty"` // with Reload and Restart
	// Fixed is text that must be the same in the old and the new seed, or else the node is replaced whatever Change says.
	Fixed string `json:"fixed,omitempty"`
}

// Change is what a running node does about a file that has changed.
type Change string

const (
	Replace Change = ""        // nothing: a node with the new file replaces it
	Nothing Change = "none"    // the file is read whenever it is needed
	Reload  Change = "reload"  // systemctl reload
	Restart Change = "restart" // the unit stops, and its component starts it again once the new files are there
)

// ParseChange reads what role.yaml says: nothing, none, reload UNIT or restart UNIT.
func ParseChange(text string) (Change, string, error) {
	switch f := strings.Fields(text); {
	case len(f) == 0:
		return Replace, "", nil
	case len(f) == 1 && Change(f[0]) == Nothing:
		return Nothing, "", nil
	case len(f) == 2 && (Change(f[0]) == Reload || Change(f[0]) == Restart):
		return Change(f[0]), f[1], nil
	}
	return Replace, "", fmt.Errorf("%s is not one of none, reload UNIT, restart UNIT", words.Quote(text))
}

// FileDigest identifies the content of a file. Facts are not secret, and a short password could be found from a plain digest
// of the file that contains it, so digests of secret files are keyed with the node's private key.
func FileDigest(nodeKey, content []byte, secret bool) string {
	h := sha256.New()
	if secret {
		h = hmac.New(sha256.New, nodeKey)
	}
	h.Write(content)
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

var (
	sumForm   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	ownerForm = regexp.MustCompile(`^[a-z_][a-z0-9_-]*:[a-z_][a-z0-9_-]*$`)
)

// checkFiles returns an error for files that an agent could not take over.
func (f Facts) checkFiles() error {
	units := map[string]bool{}
	for _, c := range f.Components {
		names, err := c.Units()
		if err != nil {
			return fmt.Errorf("component %s: %w", c.Name, err)
		}
		for _, u := range names {
			units[u] = true
		}
	}
	last := ""
	for _, file := range f.Files {
		fault := func(format string, args ...any) error {
			return fmt.Errorf("file %s: %s", words.Quote(file.Path), fmt.Sprintf(format, args...))
		}
		if !path.IsAbs(file.Path) || path.Clean(file.Path) != file.Path || file.Path == "/" || file.Path == FactsPath {
			return fault("must be a clean absolute path, and not that of the facts")
		}
		if file.Path <= last {
			return fault("files must be sorted by path, each listed once")
		}
		last = file.Path
		if mode, err := strconv.ParseUint(file.Mode, 8, 32); err != nil || mode > 0o777 || len(file.Mode) != 4 {
			return fault("mode: %s is not an octal mode of four digits", words.Quote(file.Mode))
		}
		if !ownerForm.MatchString(file.Owner) {
			return fault("owner: %s is not user:group", words.Quote(file.Owner))
		}
		if !sumForm.MatchString(file.Digest) {
			return fault("digest: %s is not sha256: and 64 hexadecimal digits", words.Quote(file.Digest))
		}
		switch file.Change {
		case Replace, Nothing:
			if file.Unit != "" {
				return fault("unit: is only for files that need a reload or a restart")
			}
		case Reload, Restart:
			if !units[file.Unit] {
				return fault("%s %s: no component of this node runs that unit", file.Change, words.Quote(file.Unit))
			}
		default:
			return fault("change: there is no %s", words.Quote(string(file.Change)))
		}
	}
	return nil
}

// File returns the named file of the seed.
func (f Facts) File(path string) (File, bool) {
	i, ok := slices.BinarySearchFunc(f.Files, path, func(file File, path string) int { return strings.Compare(file.Path, path) })
	if !ok {
		return File{}, false
	}
	return f.Files[i], true
}

// Units returns the systemd units that the component starts.
func (c Component) Units() ([]string, error) {
	params, err := DecodeParams(c.Kind, c.Params)
	if err != nil {
		return nil, err
	}
	switch p := params.(type) {
	case *ServiceParams:
		return []string{p.Unit}, nil
	case *GlusterParams:
		return []string{p.Unit}, nil
	case *MountParams:
		return []string{p.Unit}, nil
	case *RedisParams:
		return []string{p.Unit}, nil
	case *SentinelParams:
		return []string{p.Unit}, nil
	case *GaleraParams:
		return slices.Compact([]string{p.Unit, p.BootUnit}), nil
	}
	return nil, nil
}

package roles

import (
	"path"
	"strconv"
	"strings"
)

// checkParams checks the values of a component's parameters that are not templates; rendered values are checked when a
// node is rendered. Keys and types have already been checked.
func (s *source) checkParams(at string, c Component) {
	switch c.Kind {
	case "service":
		if unit, ok := plain(c.Params["unit"]); ok && !unitName.MatchString(unit) {
			s.fault(at+".unit", "%q is not a unit such as nginx.service", unit)
		}
		for _, kind := range []string{"check", "alive"} {
			check, ok := c.Params[kind].(map[string]any)
			if !ok {
				continue
			}
			set := 0
			for _, key := range []string{"tcp", "http", "fastcgi", "exec"} {
				if v, given := check[key]; given && v != "" {
					set++
				}
			}
			if set != 1 {
				s.fault(at+"."+kind, "give exactly one of tcp, http, fastcgi and exec")
			}
		}
		if c.Params["alive"] != nil && c.Params["check"] == nil {
			s.fault(at+".alive", "is only for a unit with check")
		}
	case "disk":
		s.checkDisk(at, c.Params)
	}
}

// plain returns a parameter if it is text without a template.
func plain(v any) (string, bool) {
	s, ok := v.(string)
	return s, ok && !strings.Contains(s, "{{")
}

func (s *source) checkDisk(at string, params map[string]any) {
	mount, mountKnown := plain(params["mount"])
	if mountKnown && (!path.IsAbs(mount) || path.Clean(mount) != mount || mount == "/") {
		s.fault(at+".mount", "%q is not a clean absolute path", mount)
		mountKnown = false
	}
	if fs, ok := plain(params["filesystem"]); ok && fs != "ext4" && fs != "xfs" {
		s.fault(at+".filesystem", "%q is not one of ext4, xfs", fs)
	}
	dirs, _ := params["dirs"].([]any)
	if len(dirs) == 0 {
		s.fault(at+".dirs", "missing; name the folders on the disk, each with path, owner and mode: without one, nothing is kept there")
	}
	for i, d := range dirs {
		at := index(at+".dirs", i)
		dir, _ := d.(map[string]any)
		if p, ok := plain(dir["path"]); ok && mountKnown && (path.Clean(p) != p || !strings.HasPrefix(p, mount+"/")) {
			s.fault(at+".path", "%q is not a clean path below the mount point, %s", p, mount)
		}
		if bind, ok := plain(dir["bind"]); ok && (!path.IsAbs(bind) || path.Clean(bind) != bind) {
			s.fault(at+".bind", "%q is not a clean absolute path", bind)
		}
		if owner, ok := plain(dir["owner"]); ok && !ownerForm.MatchString(owner) {
			s.fault(at+".owner", "%q is not user:group", owner)
		}
		if mode, ok := plain(dir["mode"]); ok {
			if bits, err := strconv.ParseUint(mode, 8, 32); err != nil || bits > 0o7777 || len(mode) < 3 {
				s.fault(at+".mode", "%q is not an octal mode such as 0750", mode)
			}
		}
	}
}

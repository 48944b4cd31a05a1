package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"imagegen/cluster/facts"
)

// planTakeover says what a node with the old facts must do to run with the new ones, or every reason why it must be replaced.
// Afterwards the node must be like a new one with the new seed.
func planTakeover(old, new facts.Facts) facts.Plan {
	p := facts.Plan{Files: []facts.FileChange{}}
	replace := func(format string, args ...any) { p.Replace = append(p.Replace, fmt.Sprintf(format, args...)) }
	if old.Version != facts.FactsVersion || new.Version != facts.FactsVersion {
		replace("its seed is of an earlier imagegen, and does not list its files")
		return p
	}
	p.Files = append(p.Files, changedFiles(old, new)...)
	for _, c := range p.Files {
		was, _ := old.File(c.Path)
		is, _ := new.File(c.Path)
		switch {
		case c.Change == facts.Replace:
			replace("%s %s", c.Path, describeFileChange(c.What))
		case c.What == fileRemoved && !removable(c.Path):
			replace("%s is gone, and the image may have a file of its own there", c.Path)
		case c.What == fileChanged && was.Fixed != is.Fixed:
			replace("%s: %q became %q", c.Path, was.Fixed, is.Fixed)
			p.Fixed = append(p.Fixed, p.Replace[len(p.Replace)-1])
		}
	}
	for _, key := range old.Sysctl {
		if !slices.Contains(new.Sysctl, key) {
			replace("the kernel parameter %s is no longer set, and the node does not know its default", key)
		}
	}
	for _, why := range changedComponents(old, new) {
		replace("%s", why)
	}
	p.Stop, p.Reload = touchedUnits(old, new, p.Files)
	p.Refuse = ineffective(old, new)
	return p
}

// ineffective says which changes would have no effect, whatever the node does.
func ineffective(old, new facts.Facts) (why []string) {
	user := map[string]string{} // by component
	for _, c := range old.Components {
		if params, err := facts.DecodeParams(c.Kind, c.Params); err == nil {
			if p, ok := params.(*facts.SiteParams); ok {
				user[c.Name] = p.AdminUser
			}
		}
	}
	for _, c := range new.Components {
		if params, err := facts.DecodeParams(c.Kind, c.Params); err == nil {
			if p, ok := params.(*facts.SiteParams); ok && user[c.Name] != "" && user[c.Name] != p.AdminUser {
				why = append(why, fmt.Sprintf("site.admin_user cannot become %s: WordPress does not rename accounts; make that account in WordPress, and leave %s in the spec", p.AdminUser, user[c.Name]))
			}
		}
	}
	return why
}

// The values of facts.FileChange.What.
const (
	fileAdded   = "added"
	fileRemoved = "removed"
	fileChanged = "changed"
)

func describeFileChange(what string) string {
	switch what {
	case fileAdded:
		return "is new"
	case fileRemoved:
		return "is gone"
	}
	return "changed"
}

// changedFiles lists the files that differ, sorted by path. The new seed says what a change needs, or the old one of a file that
// is gone.
func changedFiles(old, new facts.Facts) []facts.FileChange {
	all := map[string]facts.FileChange{}
	for _, f := range old.Files {
		all[f.Path] = facts.FileChange{Path: f.Path, What: fileRemoved, Change: f.Change, Unit: f.Unit}
	}
	for _, f := range new.Files {
		c := facts.FileChange{Path: f.Path, What: fileChanged, Change: f.Change, Unit: f.Unit}
		was, had := old.File(f.Path)
		switch {
		case !had:
			c.What = fileAdded
		case was.Digest == f.Digest && was.Mode == f.Mode && was.Owner == f.Owner:
			delete(all, f.Path)
			continue
		}
		all[f.Path] = c
	}
	return slices.SortedFunc(maps.Values(all), func(a, b facts.FileChange) int { return strings.Compare(a.Path, b.Path) })
}

const unitFolder = "/etc/systemd/system" // of units and drop-ins from seeds

// ownFolders are folders in which everything is from seeds, except what images have there and no role's file replaces: packages
// have their files elsewhere. Elsewhere a file of the seed may have replaced a package's, which a new node would have.
var ownFolders = []string{"/etc/imagegen", unitFolder, "/usr/local/bin", "/usr/local/sbin"}

// removable tells whether a new node whose seed lacks this file has none there.
func removable(file string) bool { return ownFolder(file) != "" }

// ownFolder returns the one of ownFolders that a file is in.
func ownFolder(file string) string {
	for _, dir := range ownFolders {
		if strings.HasPrefix(file, dir+"/") {
			return dir
		}
	}
	return ""
}

// changedComponents says which changes of components a running node cannot follow. For the others it is enough that the agent
// starts anew.
func changedComponents(old, new facts.Facts) (why []string) {
	is := map[string]facts.Component{}
	for _, c := range new.Components {
		is[c.Name] = c
	}
	was := map[string]bool{}
	for _, c := range old.Components {
		was[c.Name] = true
		n, kept := is[c.Name]
		switch {
		case !kept && !followable(c):
			why = append(why, fmt.Sprintf("component %s is gone", c.Name))
		case kept && c.Kind != n.Kind:
			why = append(why, fmt.Sprintf("component %s is a %s instead of a %s", c.Name, n.Kind, c.Kind))
		case kept && !followable(c) && !sameParams(c, n):
			why = append(why, fmt.Sprintf("component %s has other parameters", c.Name))
		}
	}
	for _, c := range new.Components {
		if !was[c.Name] && !followable(c) {
			why = append(why, fmt.Sprintf("component %s is new", c.Name))
		}
	}
	return why
}

// followable tells whether a component may come, go, and have other parameters while the node runs. The packet filter must
// never be stopped, and the others leave something on the node that depends on their parameters: mounts, files, what a daemon was
// started with.
func followable(c facts.Component) bool {
	switch c.Kind {
	case "service":
		return c.Name != facts.Firewall && c.Name != facts.Firewall6
	case "site":
		return true
	}
	return false
}

// sameParams compares what two components of one kind leave on the node. Sentinel's numbers are only used to set it up; after that
// the file on the data disk counts, on a new node as well. A volume's options belong to the volume, and the agent sets them while it runs.
func sameParams(a, b facts.Component) bool {
	plain := func(c facts.Component) []byte {
		if params, err := facts.DecodeParams(c.Kind, c.Params); err == nil {
			switch p := params.(type) {
			case *facts.SentinelParams:
				p.Quorum, p.DownAfter, p.FailoverTimeout, p.ParallelSyncs = 0, 0, 0, 0
			case *facts.GlusterParams:
				p.Options = nil
			}
			c.Params, _ = json.Marshal(params) // plain structs
		}
		return c.Params
	}
	return bytes.Equal(plain(a), plain(b))
}

// touchedUnits returns the units that a node with the facts from stops before, and reloads after, the files have become those of
// the facts to, each in order.
func touchedUnits(from, to facts.Facts, files []facts.FileChange) (stop, reload []string) {
	stopped, reloaded := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		switch f.Change {
		case facts.Restart:
			stopped[f.Unit] = true
		case facts.Reload:
			reloaded[f.Unit] = true
		}
	}
	remain := map[string]bool{}
	for _, c := range to.Components {
		for _, u := range unitsOf(c) {
			remain[u] = true
		}
	}
	for _, c := range from.Components {
		for _, u := range unitsOf(c) {
			if !remain[u] {
				stopped[u] = true
			}
		}
	}
	stop = stopOrder(from, stopped)
	for _, c := range to.Components {
		for _, u := range unitsOf(c) {
			if reloaded[u] && !slices.Contains(stop, u) && !slices.Contains(reload, u) {
				reload = append(reload, u)
			}
		}
	}
	return stop, reload
}

// stopOrder returns these units, the other units of their components, and those of all components that need them, in the order in
// which they must stop: who needs another one first. So keepalived gives its address away before HAProxy stops, and a volume
// is no longer in use when it is unmounted.
func stopOrder(f facts.Facts, units map[string]bool) (order []string) {
	stops := map[string]bool{} // components
	for _, c := range f.Components {
		stops[c.Name] = slices.ContainsFunc(unitsOf(c), func(u string) bool { return units[u] }) ||
			slices.ContainsFunc(c.After, func(name string) bool { return stops[name] })
	}
	for _, c := range slices.Backward(f.Components) {
		if !stops[c.Name] {
			continue
		}
		for _, u := range unitsOf(c) {
			if !slices.Contains(order, u) {
				order = append(order, u)
			}
		}
	}
	return order
}

// unitsOf returns the units of a component whose parameters have been checked.
func unitsOf(c facts.Component) []string {
	units, _ := c.Units()
	return units
}

// parents returns the folders above a file, the innermost first, up to and without base.
func parents(file, base string) (dirs []string) {
	for dir := path.Dir(file); dir != base && strings.HasPrefix(dir, base); dir = path.Dir(dir) {
		dirs = append(dirs, dir)
	}
	return dirs
}

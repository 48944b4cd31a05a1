package packages

import (
	_ "embed"
	"fmt"
	"strings"
)

// Repo is a repository of RPM packages.
type Repo struct {
	Name     string
	URLs     []string // tried in order; $basearch and $releasever as yum has them
	Keys     []string // URLs or file: paths in the image
	Exclude  []string
	Priority int // as yum-plugin-priorities has it: lower wins; 0: the default
}

// RepoFile writes repositories as yum reads them. Of several addresses the first that answers is used, and packages are
// taken only when they are signed with one of the keys.
func RepoFile(repos []Repo) string {
	var b strings.Builder
	b.WriteString("# Made by imagegen, for the time of the bake.\n")
	for _, r := range repos {
		fmt.Fprintf(&b, "\n[%s]\nname=%s\nbaseurl=%s\nfailovermethod=priority\nenabled=1\ngpgcheck=1\ngpgkey=%s\nskip_if_unavailable=0\ntimeout=30\n",
			r.Name, r.Name, strings.Join(r.URLs, "\n    "), strings.Join(r.Keys, "\n    "))
		if r.Priority != 0 {
			fmt.Fprintf(&b, "priority=%d\n", r.Priority)
		}
		if len(r.Exclude) > 0 {
			fmt.Fprintf(&b, "exclude=%s\n", strings.Join(r.Exclude, " "))
		}
	}
	return b.String()
}

package packages

import (
	_ "embed"
	"fmt"
	"strings"
)

// Repo is a repository of RPM packages.
type Repo struct {
	Name     string
	URLs     []string // tried in order; may contain yum's $basearch and $releasever
	Keys     []string // URLs or file: paths in the image
	Exclude  []string
	Priority int // of yum-plugin-priorities: lower wins; 0: the default
}

// RepoFile returns repositories as a .repo file. yum uses the first URL that answers, and accepts only packages signed
// with one of the keys.
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

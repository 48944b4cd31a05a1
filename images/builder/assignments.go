package builder

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Assignments writes variables as a shell reads them.
func Assignments(vars map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		fmt.Fprintf(&b, "%s='%s'\n", name, strings.ReplaceAll(vars[name], "'", `'\''`))
	}
	return b.String()
}

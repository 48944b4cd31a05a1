package builder

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Assignments formats variables as shell assignments.
func Assignments(vars map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		fmt.Fprintf(&b, "%s='%s'\n", name, strings.ReplaceAll(vars[name], "'", `'\''`))
	}
	return b.String()
}

package testkit

import (
	"os"
	"regexp"
	"testing"
)

// Walkthrough returns the role that docs/roles.md adds, file by file, and its lines of the spec.
func Walkthrough(t testing.TB) (files map[string]string, specLines string) {
	t.Helper()
	page, err := os.ReadFile("../docs/roles.md")
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for _, m := range regexp.MustCompile("(?s)`roles/([^`]+)`:\n\n```[a-z]*\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		files[m[1]] = m[2]
	}
	spec := regexp.MustCompile("(?s)at the end of `cluster.yaml`:\n\n```yaml\n(.*?)```").FindStringSubmatch(string(page))
	if spec == nil || len(files) != 2 {
		t.Fatalf("docs/roles.md has lost its walk-through: found %d files", len(files))
	}
	return files, spec[1]
}

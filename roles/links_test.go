package roles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRolesFolderIsNotLeft: links in a checkout do not bring files of the user who builds, who may be root, into seeds.
func TestRolesFolderIsNotLeft(t *testing.T) {
	const role = "description: a tool\ndistros: {debian12: {packages: [tree]}}\nfiles: [{path: /etc/x, template: x}]\n"
	outside := folder(t, map[string]string{"secret": "root's", "role/role.yaml": role, "role/x": "x"})
	link := func(dir, to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	dir := folder(t, map[string]string{"tool/role.yaml": role})
	link(dir, filepath.Join(outside, "secret"), "tool/x")
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "tool/role.yaml:3:") || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("a template outside: %v", err)
	}
	dir = folder(t, map[string]string{"tool/x": "x"})
	link(dir, filepath.Join(outside, "role/role.yaml"), "tool/role.yaml")
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("a role.yaml outside: %v", err)
	}
	dir = folder(t, nil)
	link(dir, filepath.Join(outside, "role"), "tool")
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "tool:1:1: ") || !strings.Contains(err.Error(), "copy the role here") {
		t.Errorf("a role outside: %v", err)
	}
	// Links within the folder are followed.
	dir = folder(t, map[string]string{"tool/role.yaml": role, "shared": "x"})
	link(dir, "../shared", "tool/x")
	link(dir, "tool", "other")
	if c, err := Load(dir); err != nil || c.Role("tool") == nil || c.Role("other") == nil {
		t.Errorf("links within: %v", err)
	}
}

// TestRemoveStaysOffMounts: during a bake, some of the image's folders are the build host's.
func TestRemoveStaysOffMounts(t *testing.T) {
	for path, ok := range map[string]bool{"/dev/*": false, "/proc/x": false, "/sys": false, "/run/bake/*": false, "/*": false, "/d?v/null": false, "/usr/share/doc/*": true, "/srv": true} {
		_, err := Load(folder(t, map[string]string{"tool/role.yaml": "description: a tool\ndistros: {debian12: {packages: [tree], remove: [\"" + path + "\"]}}\n"}))
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
	}
}

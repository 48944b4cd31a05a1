package roles

import (
	"strings"
	"testing"
)

// TestForeignFolders: folders of other programs below roles/ are ignored; a role without role.yaml is still an error.
func TestForeignFolders(t *testing.T) {
	dir := folder(t, map[string]string{"__MACOSX/x": "", "node_modules/y/z": "", ".git/config": ""})
	if _, err := Load(dir); err != nil {
		t.Error(err)
	}
	if _, err := Load(folder(t, map[string]string{"tool/readme": ""})); err == nil || !strings.Contains(err.Error(), "role.yaml") {
		t.Errorf("a role without role.yaml: %v", err)
	}
}

// TestWindowsCheckout: CRLF line ends do not get into a node's files.
func TestWindowsCheckout(t *testing.T) {
	dir := folder(t, map[string]string{
		"tool/role.yaml": "description: a tool\r\ndistros: {debian12: {packages: [tree]}}\r\nfiles: [{path: /usr/local/bin/hello, template: hello, mode: \"0755\"}]\r\n",
		"tool/hello":     "#!/bin/sh\r\necho hello\r\n",
	})
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := c.Role("tool")
	var out strings.Builder
	if err := r.templates.ExecuteTemplate(&out, r.templateName("hello"), nil); err != nil {
		t.Fatal(err)
	}
	if out.String() != "#!/bin/sh\necho hello\n" {
		t.Errorf("%q", out.String())
	}
}

// TestPathsStayInside: no path in a role leads out of an image.
func TestPathsStayInside(t *testing.T) {
	for _, path := range []string{"/../../etc/x", "/opt/../etc/x", "/opt/", "/", "opt/x", "/opt/a\\tb"} {
		role := "description: a tool\ndistros: {debian12: {packages: [tree], downloads: [{url: \"https://a.example.com/x\", sha256: " +
			strings.Repeat("0", 64) + ", path: \"" + path + "\"}], remove: [\"" + path + "\"]}}\n"
		_, err := Load(folder(t, map[string]string{"tool/role.yaml": role}))
		if err == nil || !strings.Contains(err.Error(), "downloads[0].path") || !strings.Contains(err.Error(), "remove[0]") {
			t.Errorf("%q: %v", path, err)
		}
	}
}

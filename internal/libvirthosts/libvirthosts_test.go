//go:build linux

package libvirthosts

import (
	"os/exec"
	"testing"
)

func TestScripts(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("needs shellcheck (package shellcheck)")
	}
	if out, err := exec.Command("shellcheck", "-s", "sh", "host.sh", "ssh.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

//go:build linux

package libvirthosts

import (
	"os/exec"
	"testing"

	"imagegen/internal/testkit"
)

func TestScripts(t *testing.T) {
	testkit.Program(t, "shellcheck", "shellcheck")
	if out, err := exec.Command("shellcheck", "-s", "sh", "host.sh", "ssh.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

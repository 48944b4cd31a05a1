package builder

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"imagegen/internal/program"
)

// CheckTools checks that images can be baked here with the programs in path. The error lists everything that is missing.
func CheckTools(path string, tools []program.Tool) error {
	if os.Geteuid() != 0 {
		return errors.New("baking mounts disks and uses chroot, which needs root: run it with sudo")
	}
	if names, packages := program.Missing(path, tools); len(names) > 0 {
		return fmt.Errorf("baking needs %s: apt-get install %s", strings.Join(names, ", "), strings.Join(packages, " "))
	}
	return nil
}

// checkMounting checks that this process may mount, which root in a container may not, by doing what a bake does first.
func checkMounting() error {
	if out, err := exec.Command("unshare", "--mount", "--propagation", "private", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("no right to mount (CAP_SYS_ADMIN): run the container with --privileged (%s)", strings.TrimSpace(string(out)))
	}
	return nil
}

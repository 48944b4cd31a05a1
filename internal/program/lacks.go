package program

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Lacks fails when this computer lacks programs or devices. Each is followed by what brings it: a Debian package, a kernel module.
func Lacks(programs, devices [][2]string) error {
	var names, packages []string
	for _, p := range programs {
		if _, err := exec.LookPath(p[0]); err != nil {
			names, packages = append(names, p[0]), append(packages, p[1])
		}
	}
	var errs []error
	if names != nil {
		slices.Sort(packages)
		errs = append(errs, fmt.Errorf("this machine lacks %s: apt-get install %s", strings.Join(names, ", "), strings.Join(slices.Compact(packages), " ")))
	}
	for _, d := range devices {
		if _, err := os.Stat(d[0]); err != nil {
			errs = append(errs, fmt.Errorf("this machine lacks %s: modprobe %s", d[0], d[1]))
		}
	}
	return errors.Join(errs...)
}

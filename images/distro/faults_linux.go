package distro

import (
	"fmt"
	"regexp"

	"imagegen/cluster"
	"imagegen/images/packages"
)

// packageFaults returns a fault for each package that the archive does not have, at the place where the role or the spec names it. It
// returns none if err is about something else.
func (o Options) packageFaults(role string, err error) cluster.Problems {
	var faults cluster.Problems
	for _, name := range packages.NotFound(err) {
		faults = append(faults, o.packageFault(role, name, fmt.Sprintf("the archive has no package %s for %s", name, o.Spec.Distro))...)
	}
	return faults
}

// absent matches the script's message that no repository has a package for a role.
var absent = regexp.MustCompile(`(?m)^no repository has (\S+) for (\S+)\r?$`)

// absentFaults is packageFaults for that script's output.
func (o Options) absentFaults(log string) cluster.Problems {
	var faults cluster.Problems
	for _, m := range absent.FindAllStringSubmatch(log, -1) {
		if o.Spec.Role(m[2]) != nil {
			faults = append(faults, o.packageFault(m[2], m[1], fmt.Sprintf("no repository has a package %s for %s", m[1], o.Spec.Distro))...)
		}
	}
	return faults
}

// packageFault returns a fault at the place where the spec or the role names a package, or none if neither does.
func (o Options) packageFault(role, name, msg string) cluster.Problems {
	if p, ok := o.Spec.Role(role).PackageFault(name, msg); ok {
		return cluster.Problems{p}
	}
	if p, ok := o.Catalogue.Role(role).PackageFault(o.Spec.Distro, name, msg); ok {
		return cluster.Problems{p}
	}
	return nil
}

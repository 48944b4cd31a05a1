package distro

import (
	"fmt"
	"regexp"

	"imagegen/cluster"
	"imagegen/images/packages"
)

// packageFaults finds where the packages are named that an archive has not got, in the role or in the spec; none: err is
// about something else.
func (o Options) packageFaults(role string, err error) cluster.Problems {
	var faults cluster.Problems
	for _, name := range packages.NotFound(err) {
		faults = append(faults, o.packageFault(role, name, fmt.Sprintf("the archive has no package %s for %s", name, o.Spec.Distro))...)
	}
	return faults
}

// absent is how the script that asks yum says that no repository has a package for a role.
var absent = regexp.MustCompile(`(?m)^no repository has (\S+) for (\S+)\r?$`)

// absentFaults is packageFaults for what that script has printed.
func (o Options) absentFaults(log string) cluster.Problems {
	var faults cluster.Problems
	for _, m := range absent.FindAllStringSubmatch(log, -1) {
		if o.Spec.Role(m[2]) != nil {
			faults = append(faults, o.packageFault(m[2], m[1], fmt.Sprintf("no repository has a package %s for %s", m[1], o.Spec.Distro))...)
		}
	}
	return faults
}

// packageFault is a fault at the place where a role's package is named, in the spec or in the role; none: it is in neither.
func (o Options) packageFault(role, name, msg string) cluster.Problems {
	if p, ok := o.Spec.Role(role).PackageFault(name, msg); ok {
		return cluster.Problems{p}
	}
	if p, ok := o.Catalogue.Role(role).PackageFault(o.Spec.Distro, name, msg); ok {
		return cluster.Problems{p}
	}
	return nil
}

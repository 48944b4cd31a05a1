package images

import (
	"cmp"
	_ "embed"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/cluster"
	"imagegen/images/packages"
	"imagegen/roles"
)

//go:embed scripts/centos7.sh
var centosScript string

//go:embed scripts/centos7-chroot.sh
var centosChrootScript string

//go:embed scripts/centos7-resolve.sh
var centosResolveScript string

// centosBase is the last disk that CentOS 7 was published as, and its sum from the sha256sum.txt beside it. It holds
// 8 GiB, which an image cannot be smaller than.
var centosBase = cluster.Base{
	URL:    "https://cloud.centos.org/centos/7/images/CentOS-7-x86_64-GenericCloud-2211.qcow2",
	SHA256: "284aab2b23d91318f169ff464bce4d53404a15a0618ceb34562838c59af4adea",
}

// centosPackages is what every centos7 image holds, most of which is on that disk already.
var centosPackages = []string{
	"ca-certificates", "yum-plugin-priorities", // which yum needs to find the others
	"cloud-init", "cloud-utils-growpart", "chrony", "iptables-services", "openssh-server", "sudo", "xfsprogs", "e2fsprogs", "util-linux",
	"policycoreutils", "policycoreutils-python", "selinux-policy-targeted",
}

// centosMirrors keep the packages of CentOS 7, now that its own mirrors have dropped them. vault.centos.org has days on
// which it refuses everybody.
var centosMirrors = []string{"https://vault.centos.org", "https://archive.kernel.org/centos-vault", "https://linuxsoft.cern.ch/centos-vault"}

const centosKey = "file:///etc/pki/rpm-gpg/RPM-GPG-KEY-CentOS-7" // is on the disk

// centosRepos returns the repositories that a role's image of centos7 is made from: the distro's, the role's, and the
// spec's own, as the spec has changed them.
func centosRepos(spec *cluster.Spec, d roles.Distro) []packages.Repo {
	mirrors := centosMirrors
	if spec.Mirror != "" {
		mirrors = []string{strings.TrimSuffix(spec.Mirror, "/")}
	}
	var all []packages.Repo
	for _, name := range cluster.BaseRepos {
		r := packages.Repo{Name: name, Keys: []string{centosKey}}
		path := name
		if name == "base" {
			path = "os"
		}
		for _, m := range mirrors {
			r.URLs = append(r.URLs, m+"/7.9.2009/"+path+"/$basearch/")
		}
		all = append(all, r)
	}
	for _, r := range d.Repos {
		r.Exclude = slices.Concat(r.Exclude, d.Exclude)
		all = append(all, packages.Repo(r))
	}
	for _, s := range spec.Repos {
		i := slices.IndexFunc(all, func(r packages.Repo) bool { return r.Name == s.Name })
		switch {
		case i >= 0:
		case len(s.URLs) == 0 || len(s.Keys) == 0:
			continue // changes a repository of another role
		default:
			i, all = len(all), append(all, packages.Repo{Name: s.Name})
		}
		r := &all[i]
		if len(s.URLs) > 0 {
			r.URLs = s.URLs
		}
		if len(s.Keys) > 0 {
			r.Keys = s.Keys
		}
		if len(s.Exclude) > 0 {
			r.Exclude = s.Exclude
		}
		if s.Priority != 0 {
			r.Priority = s.Priority
		}
	}
	return all
}

// downloads returns a role's downloads, from where the spec says they are.
func downloads(spec *cluster.Spec, d roles.Distro) []roles.Download {
	all := slices.Clone(d.Downloads)
	for i, dl := range all {
		for _, s := range spec.Downloads {
			if s.Name == dl.Name {
				all[i].URL, all[i].SHA256 = s.URL, cmp.Or(s.SHA256, dl.SHA256)
			}
		}
	}
	return all
}

// selinux is what an image of centos7 is told about SELinux.
type selinux struct {
	Mode string `json:"mode"`
	roles.SELinux
}

// centosVars are the script's variables.
func centosVars(in inputs) map[string]string {
	var ports []string
	for _, p := range in.SELinux.Ports {
		ports = append(ports, p.Type+":"+p.Proto+":"+p.Port)
	}
	return map[string]string{
		"USERS":   userList(in.Users),
		"DISABLE": strings.Join(in.Disable, " "), "REMOVE": strings.Join(in.Remove, " "), "SELINUX": in.SELinux.Mode,
		"BOOLEANS": strings.Join(in.SELinux.Booleans, " "), "PORTS": strings.Join(ports, " "), "DOMAINS": strings.Join(in.SELinux.Permissive, " "),
	}
}

// userList writes users as the scripts read them.
func userList(users []roles.User) string {
	var list []string
	for _, u := range users {
		group := u.Group
		if group == "" {
			group = u.Name
		}
		list = append(list, fmt.Sprintf("%s:%d:%s:%d", u.Name, u.UID, group, u.GID))
	}
	return strings.Join(list, " ")
}

// centosInputs is what the base of centos7 depends on: the disk, whoever keeps it.
func (c *Config) centosInputs() baseInputs {
	b := centosBase
	if c.Spec.Base != nil {
		b = *c.Spec.Base
	}
	file := b.File
	if file != "" && !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(c.Spec.File), file)
	}
	return baseInputs{Distro: c.Spec.Distro, Packages: centosPackages, SHA256: b.SHA256, url: b.URL, file: file}
}

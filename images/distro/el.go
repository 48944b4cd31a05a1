package distro

import (
	_ "embed"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/cluster"
	"imagegen/images/builder"
	"imagegen/images/packages"
	"imagegen/internal/jsonhash"
	"imagegen/internal/program"
	"imagegen/roles"
)

//go:embed scripts/centos7.sh
var elScript string

//go:embed scripts/centos7-chroot.sh
var elChrootScript string

//go:embed scripts/centos7-resolve.sh
var elResolveScript string

// el makes images of Enterprise Linux 7. The base is a downloaded disk. An image is a copy of it with packages installed.
type el struct{ Options }

func newEL(o Options) Distro { return el{o} }

// elBase is the last published disk of CentOS 7, with its hash from the sha256sum.txt beside it. Its size is 8 GiB, the minimum for
// images.
var elBase = cluster.Base{
	URL:    "https://cloud.centos.org/centos/7/images/CentOS-7-x86_64-GenericCloud-2211.qcow2",
	SHA256: "284aab2b23d91318f169ff464bce4d53404a15a0618ceb34562838c59af4adea",
}

// elPackages lists the packages of every image. Most are already on the disk.
var elPackages = []string{
	"ca-certificates", "yum-plugin-priorities", // which yum needs to find the others
	"cloud-init", "cloud-utils-growpart", "chrony", "iptables-services", "openssh-server", "sudo", "xfsprogs", "e2fsprogs", "util-linux",
	"policycoreutils", "policycoreutils-python", "selinux-policy-targeted",
}

// elMirrors still have the packages of CentOS 7, which its regular mirrors dropped. There are several because vault.centos.org
// refuses all requests on some days.
var elMirrors = []string{"https://vault.centos.org", "https://archive.kernel.org/centos-vault", "https://linuxsoft.cern.ch/centos-vault"}

const elKey = "file:///etc/pki/rpm-gpg/RPM-GPG-KEY-CentOS-7" // is on the disk

// elRepos returns the repositories for a role's image: those of the distro, of the role and of the spec, with the spec's changes.
func elRepos(spec *cluster.Spec, d roles.Distro) []packages.Repo {
	mirrors := elMirrors
	if spec.Mirror != "" {
		mirrors = []string{strings.TrimSuffix(spec.Mirror, "/")}
	}
	var all []packages.Repo
	for _, name := range cluster.BaseRepos {
		r := packages.Repo{Name: name, Keys: []string{elKey}}
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

func (el) Tools() []program.Tool {
	return append([]program.Tool{
		{Name: "sfdisk", Package: "fdisk"}, {Name: "resize2fs", Package: "e2fsprogs"}, {Name: "blkid", Package: "util-linux"},
		{Name: "xfs_growfs", Package: "xfsprogs"}, {Name: "xfs_repair", Package: "xfsprogs"}, {Name: "qemu-img", Package: "qemu-utils"},
	}, everyTool...)
}

func (el) IsDisk() bool { return true }

// Base returns the disk's inputs.
func (e el) Base() (Base, error) { return e.base(), nil }

func (e el) base() Base {
	b := elBase
	if e.Spec.Base != nil {
		b = *e.Spec.Base
	}
	file := b.File
	if file != "" && !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(e.Spec.File), file)
	}
	return Base{Distro: e.Spec.Distro, Packages: elPackages, SHA256: b.SHA256, URL: b.URL, File: file}
}

func (e el) Complete(in *Inputs, role roles.Distro) {
	in.Install = jsonhash.Of(elChrootScript + builder.VMScript + elScript)
	in.Repos = elRepos(e.Spec, role)
	in.SELinux = &SELinux{Mode: e.Spec.SELinux, SELinux: role.SELinux}
}

func (el) Enter() string { return elChrootScript }

func (el) Script(in Inputs) string {
	var ports []string
	for _, p := range in.SELinux.Ports {
		ports = append(ports, p.Type+":"+p.Proto+":"+p.Port)
	}
	return builder.Assignments(map[string]string{
		"USERS":   userList(in.Users),
		"DISABLE": strings.Join(in.Disable, " "), "REMOVE": strings.Join(in.Remove, " "), "SELINUX": in.SELinux.Mode,
		"BOOLEANS": strings.Join(in.SELinux.Booleans, " "), "PORTS": strings.Join(ports, " "), "DOMAINS": strings.Join(in.SELinux.Permissive, " "),
	}) + elScript
}

package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	known "imagegen/distro"
	"imagegen/images/builder"
	"imagegen/images/distro"
	"imagegen/images/packages"
	"imagegen/internal/program"
	"imagegen/internal/sparse"
	"imagegen/internal/testkit"
	"imagegen/internal/testspec"
)

// The packages of CentOS are not available here. The tests' packages have the same names, and the files that the script
// uses; repositories, signatures, dependencies and the tools that read them are real.

// rpmFixture is a package built for a test.
type rpmFixture struct {
	name, version string
	requires      string
	files         map[string]string // path: content
}

func unitFile(name string) (string, string) {
	return "/usr/lib/systemd/system/" + name, "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
}

// takesNote is a program that records its arguments.
func takesNote(name string) string {
	return fmt.Sprintf("#!/bin/sh\necho %s \"$@\" >>/noted\n", name)
}

func fixtures() map[string][]rpmFixture {
	with := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	unit := func(names ...string) map[string]string {
		m := map[string]string{}
		for _, n := range names {
			path, text := unitFile(n)
			m[path] = text
		}
		return m
	}
	// Packages bring repositories that no longer exist, but are enabled.
	dead := "[dead]\nname=dead\nbaseurl=http://127.0.0.1:1/\nenabled=1\ngpgcheck=0\nskip_if_unavailable=0\n"
	base := []rpmFixture{
		{"ca-certificates", "2023", "", with("/etc/yum.repos.d/CentOS-Base.repo", dead)},
		{"yum-plugin-priorities", "1.1", "", with("/etc/yum/pluginconf.d/priorities.conf", "[main]\nenabled=1\n")},
		{"cloud-init", "19.4", "", with("/etc/cloud/cloud.cfg.d/05_logging.cfg", "")},
		{"chrony", "3.4", "", unit("chronyd.service")},
		{"openssh-server", "7.4", "", unit("sshd.service")},
		{"iptables-services", "1.4.21", "", unit("iptables.service", "ip6tables.service")},
		{"selinux-dependency", "1", "", nil},
		{"policycoreutils", "2.5", "selinux-dependency", with("/usr/sbin/setfiles", takesNote("setfiles"))},
		{"policycoreutils-python", "2.5", "", with("/usr/sbin/semanage", "#!/bin/sh\necho semanage \"$@\" >>/noted\ncase \"$*\" in 'port -a '*4567*) exit 1;; esac\n")},
		{"selinux-policy-targeted", "3.13.1", "", with("/etc/selinux/config", "# modes\nSELINUX=enforcing\nSELINUXTYPE=targeted\n")},
		{"Percona-XtraDB-Cluster-57", "5.7.44", "socat", unit("mysql.service", "mysql@.service")},
		{"percona-xtrabackup-24", "2.4.29", "", nil},
		{"socat", "1.7.3.2", "", nil},
	}
	for _, p := range basePackages("centos7") {
		if !slices.ContainsFunc(base, func(f rpmFixture) bool { return f.name == p }) {
			base = append(base, rpmFixture{name: p, version: "1"})
		}
	}
	return map[string][]rpmFixture{
		"base": base,
		"epel": {
			{"nginx", "1.20.1", "", unit("nginx.service")},
			{"userspace-rcu", "0.99", "", nil}, // newer, so only the exclusion prevents its installation
		},
		"gluster": {
			{"userspace-rcu", "0.10.0", "", nil},
			{"glusterfs-fuse", "9.6", "userspace-rcu >= 0.10", nil},
		},
	}
}

// buildRPMs builds packages with rpmbuild, and signs them with the named key in home unless key is empty.
func buildRPMs(t *testing.T, dir, home, key string, all []rpmFixture) {
	t.Helper()
	var head, install, files strings.Builder
	head.WriteString("Name: fixtures\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\nAutoReqProv: no\n%global __os_install_post %{nil}\n%global debug_package %{nil}\n%description\nx\n")
	for i, p := range all {
		fmt.Fprintf(&head, "%%package -n %s\nVersion: %s\nRelease: 1.el7\nSummary: x\nAutoReqProv: no\n", p.name, p.version)
		if p.requires != "" {
			fmt.Fprintf(&head, "Requires: %s\n", p.requires)
		}
		fmt.Fprintf(&head, "%%description -n %s\nx\n", p.name)
		fmt.Fprintf(&files, "%%files -n %s\n", p.name)
		n := 0
		for path, content := range p.files {
			source := filepath.Join(dir, fmt.Sprintf("source-%d-%d", i, n))
			n++
			testkit.Write(t, source, content)
			mode := "0644"
			if strings.HasPrefix(content, "#!") {
				mode = "0755"
			}
			fmt.Fprintf(&install, "install -D -m %s %s %%{buildroot}%s\n", mode, source, path)
			fmt.Fprintf(&files, "%s\n", path)
		}
	}
	spec := filepath.Join(dir, "fixtures.spec")
	testkit.Write(t, spec, head.String()+"%install\n"+install.String()+files.String())
	testkit.Must(t, exec.Command("rpmbuild", "-bb", "--quiet", "--target", "x86_64", "--define", "_topdir "+dir, "--define", "_rpmdir "+dir, "--define", "_build_id_links none", spec))
	if key != "" {
		gpg, err := exec.LookPath("gpg")
		if err != nil {
			t.Fatal(err)
		}
		rpms, _ := filepath.Glob(filepath.Join(dir, "x86_64", "*.rpm"))
		cmd := exec.Command("rpmsign", append([]string{"--addsign", "--define", "_gpg_name " + key, "--define", "__gpg " + gpg}, rpms...)...)
		cmd.Env = append(os.Environ(), "GNUPGHOME="+home)
		testkit.Must(t, cmd)
	}
	testkit.Must(t, exec.Command("createrepo_c", "-q", filepath.Join(dir, "x86_64")))
}

// TestCentOSBaseFails: errors when the base cannot be downloaded or unpacked. Nothing of it is kept.
func TestCentOSBaseFails(t *testing.T) {
	if err := builder.CheckTools(program.Path, toolsOf("centos7")); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	data := testkit.Disk()
	server := testkit.NewFileServer(t, data)
	server.Handle = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/disk" {
			http.NotFound(w, r)
		}
		return r.URL.Path != "/disk"
	}
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, "disk"), string(data))
	testkit.Write(t, filepath.Join(dir, "page"), "<html>")
	other := testkit.SHA256([]byte("<html>"))
	for base, want := range map[string][]string{
		"{url: " + server.URL + "/gone, sha256: " + other + "}": {
			"download the base of centos7: " + server.URL + "/gone: the server answered 404 Not Found\n", "base: {url: …, sha256: …}", "base: {file: …, sha256: …}"},
		"{url: " + server.URL + "/disk, sha256: " + other + "}": {server.URL + "/disk: its SHA-256 is " + testkit.SHA256(data) + " and should be " + other},
		"{file: disk, sha256: " + other + "}":                   {"check the disk: " + dir + "/disk: its SHA-256 is " + testkit.SHA256(data), "correct base.sha256"},
		"{file: page, sha256: " + other + "}":                   {"unpack the disk: it is neither a qcow2 nor a raw disk"},
		"{file: disk, sha256: " + testkit.SHA256(data) + "}":    {"packages of centos7: grow the disk", "no partition table"},
	} {
		spec := strings.Replace(tinySpec, "debian12", "centos7", 1) + "base: " + base + "\n"
		testkit.Write(t, filepath.Join(dir, "cluster.yaml"), spec)
		testkit.Write(t, filepath.Join(dir, "roles/tiny/role.yaml"), "description: x\ndistros: {centos7: {packages: [less]}}\n")
		testkit.Write(t, filepath.Join(dir, "agent"), "agent")
		c := mustConfig(t, dir, filepath.Join(t.TempDir(), "cache"))
		_, err := Build(t.Context(), c)
		wantError(t, err, want...)
		for _, kind := range []string{"images", "work"} {
			left, _ := filepath.Glob(filepath.Join(c.CacheDir, kind, "*"))
			for _, path := range left {
				if !strings.HasSuffix(path, "lock") {
					t.Errorf("%s: %s is left", base, path)
				}
			}
		}
	}
}

// centosBakeRoot runs a script in a temporary root file system: an overlay on this machine's.
const centosBakeRoot = `
set -eu
mount -t tmpfs tmpfs "$DIR"
mkdir "$DIR/up" "$DIR/work" "$DIR/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$DIR/up,workdir=$DIR/work" "$DIR/root"
cd "$DIR/root"
mkdir bake
mount --bind "$BAKE" bake
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs run
# Of this machine's own nothing that the script or the packages are to make.
rm -rf root/.rpmdb var/lib/rpm var/lib/dnf var/cache/dnf etc/yum.repos.d etc/yum etc/selinux etc/cloud etc/systemd/system noted
sed -i '/^nginx:/d' etc/passwd etc/group etc/shadow
mkdir -p etc/systemd/system etc/yum.repos.d etc/yum/pluginconf.d etc/sysconfig/network-scripts var/lib/redis var/cache/yum root/.ssh
printf '[main]\nenabled=1\n' >etc/yum/pluginconf.d/fastestmirror.conf
printf '[old]\nname=old\nbaseurl=http://127.0.0.1:1/\nenabled=1\n' >etc/yum.repos.d/old.repo
printf 'DEVICE=eth0\nHWADDR=00:11:22:33:44:55\nBOOTPROTO=dhcp\n' >etc/sysconfig/network-scripts/ifcfg-eth0
echo old >var/log/mysqld.log
echo 0123456789abcdef0123456789abcdef >etc/machine-id
echo key >etc/ssh/ssh_host_rsa_key
# dnf is what yum has become, and reads the same files.
printf '#!/bin/sh\nexec /usr/bin/dnf "$@"\n' >usr/local/bin/yum
chmod 755 usr/local/bin/yum
exec chroot . /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 BAKE=/bake \
    bash --posix -c "$(cat bake/script) $CHECK" 3>&1
`

// overlayBuilder runs the script in such a root, and after it a script that inspects the result.
type overlayBuilder struct {
	dir   string // empty
	check string
	out   *string // output of both scripts
}

func (overlayBuilder) VM() bool { return false }

func (o overlayBuilder) Install(ctx context.Context, b *builder.Job) error {
	args := []string{"--mount", "--pid", "--fork", "--kill-child"}
	if !b.Network {
		args = append(args, "--net")
	}
	cmd := exec.CommandContext(ctx, "unshare", append(args, "sh", "-c", centosBakeRoot)...)
	cmd.Env = append(os.Environ(), "DIR="+o.dir, "BAKE="+b.Input(""), "CHECK="+o.check)
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	*o.out = string(out)
	return err
}

func needCentOSTools(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: it needs root, for namespaces")
	}
	for name, pkg := range map[string]string{"dnf": "dnf", "rpmbuild": "rpm", "createrepo_c": "createrepo-c", "gpg": "gnupg", "unshare": "util-linux"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("NOT TESTED: no %s on this machine (package %s; make checkers installs it)", name, pkg)
		}
	}
}

// wantPins compares the names of pinned packages.
func wantPins(t *testing.T, got []packages.Pin, want ...string) {
	t.Helper()
	slices.Sort(want)
	if all := packages.Names(got); !slices.Equal(all, want) {
		t.Errorf("%q are pinned, want %q", all, want)
	}
}

// TestCentOSScript runs the scripts for CentOS 7 images with real rpm and dnf: they resolve packages with a network,
// and install them without one.
func TestCentOSScript(t *testing.T) {
	needCentOSTools(t)
	dir := t.TempDir()
	home := testkit.NewKeys(t, dir)
	for name, all := range fixtures() {
		buildRPMs(t, filepath.Join(dir, name), home, "right", all)
	}
	testkit.Write(t, filepath.Join(dir, "empty", "x86_64", "README"), "")
	testkit.Must(t, exec.Command("createrepo_c", "-q", filepath.Join(dir, "empty", "x86_64")))
	buildRPMs(t, filepath.Join(dir, "unsigned"), home, "", []rpmFixture{{"extra", "1", "", nil}})
	buildRPMs(t, filepath.Join(dir, "foreign"), home, "wrong", []rpmFixture{{"extra", "1", "", nil}})
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)

	at := func(repo string) string {
		return "urls: [" + server.URL + "/" + repo + "/$basearch/], keys: [" + server.URL + "/keys/right]"
	}
	repos := "  base: {" + at("base") + "}\n  epel: {" + at("epel") + "}\n  gluster: {" + at("gluster") + "}\n"
	for _, name := range []string{"updates", "extras", "pxc-57", "pxb-24"} {
		repos += "  " + name + ": {" + at("empty") + "}\n"
	}
	// request returns what yum is asked for a role. Packages may be added.
	request := func(t *testing.T, role, repos, more string) (*Config, distro.Inputs) {
		t.Helper()
		spec, catalogue := testspec.Reference(t, filepath.Join(dir, "cluster.yaml"), "centos7", "selinux: enforcing\nrepos:\n"+repos)
		c := &Config{Spec: spec, Catalogue: catalogue, CacheDir: t.TempDir(), Agent: filepath.Join(dir, "agent"), UI: silent{}}
		in, err := c.inputs(t.Context(), role, baseOf(t, c), testkit.SHA256([]byte("#!/bin/sh\n")), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range in.Repos {
			for _, u := range r.URLs {
				if !strings.HasPrefix(u, server.URL) && !strings.HasPrefix(u, "http://127.0.0.1:1/") {
					t.Fatalf("%s is at %s, which is not the test's server", r.Name, u)
				}
			}
		}
		in.Packages = append(in.Packages, strings.Fields(more)...)
		return c, in
	}
	// ask resolves packages with yum.
	ask := func(t *testing.T, c *Config, requests map[string]distro.Inputs) (*bake, *packages.Lock, string, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
		t.Cleanup(cancel)
		if err := os.MkdirAll(string(c.cache().store()), 0o755); err != nil {
			t.Fatal(err)
		}
		var out string
		b := &bake{config: c, plan: &plan{}, base: baseOf(t, c)}
		l := &packages.Lock{Roles: map[string]*packages.Pins{}}
		err := c.maker().Resolve(ctx, l, requests, func(ctx context.Context, _ distro.Base, _ int64, do func(context.Context, *builder.Job, func(context.Context) error) error) (string, error) {
			j := &builder.Job{Work: filepath.Join(c.CacheDir, "ask"), Network: true}
			return "", do(ctx, j, func(ctx context.Context) error { return overlayBuilder{t.TempDir(), "", &out}.Install(ctx, j) })
		})
		return b, l, out, err
	}
	resolve := func(t *testing.T, role, repos, more string, local ...distro.LocalPackage) (*bake, *packages.Lock, string, error) {
		t.Helper()
		c, in := request(t, role, repos, more)
		in.Local = local
		b, l, out, err := ask(t, c, map[string]distro.Inputs{role: in})
		b.plan = &plan{inputs: in}
		return b, l, out, err
	}
	// bake makes an image from the resolved packages. check inspects it.
	bake := func(t *testing.T, b *bake, l *packages.Lock, role, check string) string {
		t.Helper()
		var out string
		b.Work = filepath.Join(b.config.CacheDir, "bake")
		b.Network, b.builder = false, overlayBuilder{t.TempDir(), check, &out}
		b.base.Pinned, b.plan.inputs.Pinned = l.Base.Packages, l.Roles[role].Packages
		b.plan.inputs.Base = b.base
		testkit.Write(t, filepath.Join(b.Work, "files/usr/share/wordpress.tar.gz"), "x")
		if err := b.install(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		packages, err := os.ReadFile(filepath.Join(b.Work, "packages"))
		if err != nil {
			t.Fatal(err)
		}
		return out + string(packages)
	}
	testkit.Write(t, filepath.Join(dir, "agent"), "#!/bin/sh\n")

	t.Run("good", func(t *testing.T) {
		t.Parallel()
		b, l, out, err := resolve(t, "web", strings.Replace(repos, "[", "[http://127.0.0.1:1/dead/, ", 1), "")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, step := range []string{"read the package lists", "find out what every image needs", "find out what web needs"} {
			if !strings.Contains(out, "step: "+step+"\n") {
				t.Errorf("no step %q in\n%s", step, out)
			}
		}
		wantPins(t, l.Base.Packages, append(slices.Clone(basePackages("centos7")), "selinux-dependency")...)
		wantPins(t, l.Roles["web"].Packages, "glusterfs-fuse", "nginx", "userspace-rcu")
		for _, p := range slices.Concat(l.Base.Packages, l.Roles["web"].Packages) {
			if err := sparse.HasSum(t.Context(), b.config.cache().store().Path(p.SHA256), p.SHA256); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		}
		out = bake(t, b, l, "web", `
echo '# state'
cat /noted
for p in /etc/yum.repos.d/*.repo /etc/ssh/ssh_host_* /root/.ssh; do [ ! -e "$p" ] || echo "left: $p"; done
[ ! -s /etc/machine-id ] || echo left: machine-id
[ ! -s /var/log/mysqld.log ] && [ -e /var/log/mysqld.log ] || echo left: log
grep -H HWADDR /etc/sysconfig/network-scripts/* || true
grep ^SELINUX= /etc/selinux/config
cat /etc/systemd/journald.conf.d/90-imagegen.conf
getent passwd nginx
stat -c '%a %n' /usr/local/sbin/imagegen-node /usr/share/wordpress.tar.gz /var/lib/cloud /var/lib/imagegen/seeds
for u in chronyd sshd imagegen-node nginx iptables ip6tables; do echo "$u $(systemctl is-enabled $u.service)"; done
`)
		steps, state, _ := strings.Cut(out, "# state\n")
		for _, step := range []string{"make users", "install packages", "configure", "install the agent", "set SELinux", "seal", "label files"} {
			if !strings.Contains(steps, "step: "+step+"\n") {
				t.Errorf("no step %q in\n%s", step, steps)
			}
		}
		for _, want := range []string{
			"glusterfs-fuse\t9.6-1.el7\tx86_64\tfixtures-1-1.src.rpm\t(none)\n", "nginx\t1.20.1-1.el7\tx86_64\tfixtures-1-1.src.rpm\t(none)\n", "userspace-rcu\t0.10.0-1.el7\tx86_64\tfixtures-1-1.src.rpm\t(none)\n", "chrony\t3.4-1.el7\tx86_64\tfixtures-1-1.src.rpm\t(none)\n",
			"semanage boolean -m --on httpd_can_network_connect\n", "semanage boolean -m --on httpd_use_fusefs\n",
			"setfiles -F -e /proc -e /sys -e /dev -e /run -e /tmp -e /bake /etc/selinux/targeted/contexts/files/file_contexts /\n",
			"SELINUX=enforcing\n", "[Journal]\nSystemMaxUse=64M\n", "nginx:x:2000:3000::/nonexistent:/sbin/nologin\n", "755 /usr/local/sbin/imagegen-node\n",
			"semanage fcontext -a -e /var/lib/cloud /var/lib/imagegen/seeds\n", "755 /var/lib/cloud\n", "700 /var/lib/imagegen/seeds\n",
			"chronyd enabled\n", "sshd enabled\n", "imagegen-node enabled\n", "nginx disabled\n", "iptables disabled\n", "ip6tables disabled\n",
		} {
			if !strings.Contains(state, want) {
				t.Errorf("no %q in\n%s", want, state)
			}
		}
		for _, bad := range []string{"left: ", "HWADDR", "0.99", "gpg-pubkey"} {
			if strings.Contains(state, bad) {
				t.Errorf("%q in\n%s", bad, state)
			}
		}
	})
	t.Run("database", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(dir, "unsigned", "x86_64", "extra-1-1.el7.x86_64.rpm")
		sum, err := sparse.SHA256(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		b, l, out, err := resolve(t, "percona", repos, "", distro.LocalPackage{Path: file, Name: filepath.Base(file), SHA256: sum})
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		wantPins(t, l.Roles["percona"].Packages, "Percona-XtraDB-Cluster-57", "percona-xtrabackup-24", "socat")
		out = bake(t, b, l, "percona", "\necho '# state'; cat /noted; systemctl is-enabled mysql.service || true\n")
		_, state, _ := strings.Cut(out, "# state\n")
		for _, want := range []string{
			"semanage boolean -m --on mysql_connect_any\n", "semanage port -a -t mysqld_port_t -p tcp 4444\nsemanage port -a -t mysqld_port_t -p tcp 4567\n",
			// ports that the policy assigns to another type
			"semanage port -a -t mysqld_port_t -p tcp 4567\nsemanage port -m -t mysqld_port_t -p tcp 4567\n",
			"semanage port -m -t mysqld_port_t -p udp 4567\n", "semanage permissive -a mysqld_t\n",
			"Percona-XtraDB-Cluster-57\t5.7.44-1.el7\tx86_64\tfixtures-1-1.src.rpm\t(none)\n", "extra\t1-1.el7\tx86_64\tfixtures-1-1.src.rpm\t(none)\n", "\ndisabled\n",
		} {
			if !strings.Contains(state, want) {
				t.Errorf("no %q in\n%s", want, state)
			}
		}
	})
	t.Run("key of another role", func(t *testing.T) {
		t.Parallel()
		foreign := "  foreign: {" + at("foreign") + "}\n"
		c, first := request(t, "web", repos+strings.Replace(foreign, "/keys/right", "/keys/wrong", 1), "extra")
		_, second := request(t, "web", repos+foreign, "extra")
		_, l, out, err := ask(t, c, map[string]distro.Inputs{"first": first, "second": second})
		if err == nil || !strings.Contains(out, "step: find out what second needs") || !strings.Contains(out, "extra") || len(l.Roles) > 0 {
			t.Errorf("%v in\n%s", err, out)
		}
	})
	for name, c := range map[string]struct{ repos, packages, want string }{
		"every mirror dead":          {strings.Replace(repos, at("base"), "urls: [http://127.0.0.1:1/a/, http://127.0.0.1:1/b/], keys: ["+server.URL+"/keys/right]", 1), "", "repo 'base'"},
		"one repository dead":        {strings.Replace(repos, at("epel"), "urls: [http://127.0.0.1:1/epel/]", 1), "", "repo 'epel'"},
		"key that is not theirs":     {strings.Replace(repos, server.URL+"/keys/right", server.URL+"/keys/wrong", 1), "", "GPG"},
		"key that cannot be had":     {strings.Replace(repos, server.URL+"/keys/right", server.URL+"/keys/none", 1), "", "/keys/none"},
		"package signed by another":  {repos + "  foreign: {" + at("foreign") + "}\n", "extra", "extra"},
		"package signed by nobody":   {repos + "  unsigned: {" + at("unsigned") + "}\n", "extra", "not signed"},
		"package that nobody has":    {repos, "no-such-package nor-this", "\nno repository has nor-this for web\n"},
		"package that all exclude":   {strings.Replace(repos, at("epel"), at("epel")+", exclude: [nginx]", 1), "", "nginx"},
		"needed package is excluded": {strings.Replace(repos, at("gluster"), at("gluster")+", exclude: [userspace-rcu]", 1), "", "userspace-rcu"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, l, out, err := resolve(t, "web", c.repos, c.packages)
			if err == nil || !strings.Contains(out, c.want) || l.Base != nil || len(l.Roles) > 0 {
				t.Errorf("%v; want %q in\n%s", err, c.want, out)
			}
			if left := files(t, string(b.config.cache().store())); len(left) > 0 {
				t.Errorf("the store has %q", left)
			}
		})
	}
}

// TestCentOSBake bakes a centos7 image from end to end: the base is downloaded over a connection that breaks, and
// unpacked; the disk grows; packages come from local repositories. The base is an XFS disk like CentOS's, with Debian's
// programs under the names that the script calls.
func TestCentOSBake(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") == "" {
		t.Skip("NOT TESTED: a whole bake for centos7 takes minutes (make e2e does it)")
	}
	needCentOSTools(t)
	for _, name := range []string{"debian12", "centos7"} {
		if err := builder.CheckTools(program.Path, toolsOf(name)); err != nil {
			t.Skipf("NOT TESTED: %v", err)
		}
	}
	t.Parallel()
	dir := t.TempDir()
	key := testkit.NewKeys(t, dir)
	for name, all := range fixtures() {
		buildRPMs(t, filepath.Join(dir, "www", name), key, "right", all)
	}
	testkit.Must(t, exec.Command("cp", "-r", filepath.Join(dir, "keys"), filepath.Join(dir, "www")))
	standIn(t, dir, filepath.Join(dir, "base.qcow2"))
	base, err := os.ReadFile(filepath.Join(dir, "base.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	packages := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(dir, "www"))))
	t.Cleanup(packages.Close)
	disks := testkit.NewFileServer(t, base)
	disks.Handle = func(n int, w http.ResponseWriter, _ *http.Request) bool { return n == 1 && disks.Cut(w, len(base)/2) }

	at := func(repo string) string {
		return "{urls: ['http://127.0.0.1:1/', " + packages.URL + "/" + repo + "/$basearch/], keys: [" + packages.URL + "/keys/right]}"
	}
	spec := strings.NewReplacer("debian12", "centos7", "4GiB", "5GiB").Replace(tinySpec) +
		"base: {url: '" + disks.URL + "/base.qcow2', sha256: " + testkit.SHA256(base) + "}\nrepos:\n"
	for name, at := range map[string]string{"base": at("base"), "updates": at("gluster"), "extras": at("gluster"), "epel": at("epel")} {
		spec += "  " + name + ": " + at + "\n"
	}
	project := testDir(t, spec, map[string]string{"tiny": "description: x\ndistros: {centos7: {packages: [nginx], disable: [nginx.service], users: [{name: nginx, uid: 2000, gid: 3000}]}}\n"})
	c := mustConfig(t, project, filepath.Join(dir, "cache"))
	c.UI = told(func(image, what string) { t.Logf("%s: %s", image, what) })
	results, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if len(disks.Asked) != 2 || disks.Asked[1] != fmt.Sprintf("bytes=%d-", len(base)/2) {
		t.Errorf("the base was requested as %q", disks.Asked)
	}
	manifest, err := os.ReadFile(results[0].Manifest)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"name": "nginx",` + "\n" + `      "version": "1.20.1-1.el7"`, `"mode": "permissive"`, testkit.SHA256(base)} {
		if !strings.Contains(string(manifest), want) {
			t.Errorf("the manifest does not have %s", want)
		}
	}
	root := filepath.Join(dir, "mnt")
	out := testkit.Must(t, exec.Command("unshare", "--mount", "sh", "-euc", `
mkdir "$2"; mount -o loop,ro,offset=1048576,norecovery "$1" "$2"; cd "$2"
echo "size $(df -BM --output=size . | tail -n 1)"
stat -c '%s %n' etc/machine-id etc/resolv.conf
ls etc/yum.repos.d tmp etc/cloud/cloud.cfg.d
grep ^SELINUX= etc/selinux/config
stat -c '%a %n' usr/local/sbin/imagegen-node
readlink etc/systemd/system/multi-user.target.wants/*
`, "sh", results[0].Path, root))
	for _, want := range []string{"0 etc/machine-id\n", "0 etc/resolv.conf\n", "90-imagegen.cfg\n", "SELINUX=permissive\n", "755 usr/local/sbin/imagegen-node\n", "imagegen-node.service\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, bad := range []string{".repo\n", "nginx.service", "bake"} {
		if strings.Contains(out, bad) {
			t.Errorf("%q in\n%s", bad, out)
		}
	}
	var size int
	if _, after, _ := strings.Cut(out, "size "); true {
		fmt.Sscanf(after, "%d", &size)
	}
	if size < 4900 || size > 5120 {
		t.Errorf("the file system has %d MiB, of a disk of 5120\n%s", size, out)
	}
	if again, err := Build(t.Context(), c); err != nil || !again[0].Cached {
		t.Errorf("the second build changed something: %v", err)
	}
	centosLocked(t, c, project, func(all []rpmFixture) {
		www := filepath.Join(dir, "www/epel")
		if err := os.RemoveAll(www); err != nil {
			t.Fatal(err)
		}
		buildRPMs(t, www, key, "right", all)
	})
}

// centosLocked continues with the lock written by a bake: without a network, with a damaged package, and with
// repositories whose packages have changed. epel builds one of them again.
func centosLocked(t *testing.T, c Config, project string, epel func([]rpmFixture)) {
	t.Helper()
	lock := func() (string, *packages.Lock) {
		data, err := os.ReadFile(c.LockPath())
		if err != nil {
			t.Fatal(err)
		}
		l, err := packages.ReadLock(c.LockPath(), c.Spec.Distro)
		if err != nil {
			t.Fatal(err)
		}
		return string(data), l
	}
	first, l := lock()
	wantPins(t, l.Base.Packages, append(slices.Clone(basePackages("centos7")), "selinux-dependency")...)
	wantPins(t, l.Roles["tiny"].Packages, "nginx")
	for _, line := range []string{"\ndistro: centos7\n", " - nginx 1.20.1-1.el7 x86_64 ", " - disk " + c.Spec.Base.SHA256 + "\n"} {
		if !strings.Contains(first, line) {
			t.Errorf("%q is not in the lock:\n%s", line, first)
		}
	}
	// change bakes another image of the role.
	change := func(remove string) {
		t.Helper()
		role := filepath.Join(project, "roles/tiny/role.yaml")
		testkit.Write(t, role, "description: x\ndistros: {centos7: {packages: [nginx], disable: [nginx.service], users: [{name: nginx, uid: 2000, gid: 3000}], remove: ["+remove+"]}}\n")
		changed := mustConfig(t, project, c.CacheDir)
		changed.UI = c.UI
		c = changed
	}
	nginx := l.Roles["tiny"].Packages[0]
	in := func(p packages.Pin) string { return c.cache().store().Path(p.SHA256) }
	replace := func(p packages.Pin, data []byte) {
		t.Helper()
		if err := errors.Join(os.Remove(in(p)), os.WriteFile(in(p), data, 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(in(nginx))
	if err != nil {
		t.Fatal(err)
	}

	change("/opt/one")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	offline := func() (string, error) {
		cmd := exec.Command("unshare", "--net", self)
		cmd.Env = append(os.Environ(), "IMAGES_TEST_BUILD="+project, "IMAGES_TEST_CACHE="+c.CacheDir, "IMAGES_TEST_OFFLINE=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	damaged := bytes.Clone(whole)
	damaged[len(damaged)/2] ^= 1
	replace(nginx, damaged)
	if out, err := offline(); err == nil || !strings.Contains(out, "package nginx 1.20.1-1.el7 is damaged in the cache") {
		t.Errorf("a damaged package: %v\n%s", err, out)
	}
	replace(nginx, whole)
	if out, err := offline(); err != nil || !strings.Contains(out, "tiny: keep\n") {
		t.Errorf("offline: %v\n%s", err, out)
	}
	if now, _ := lock(); now != first {
		t.Errorf("the lock has changed by itself:\n%s", now)
	}

	// The repository changes: packages in the cache are not requested again, and those that it dropped are reported as
	// gone.
	epel([]rpmFixture{{"nginx", "1.20.2", "nginx-core", map[string]string{"/usr/lib/systemd/system/nginx.service": "[Install]\nWantedBy=multi-user.target\n"}}, {"nginx-core", "1.20.2", "", nil}})
	change("/opt/two")
	c.Locked = true
	if err := Fetch(t.Context(), c); err != nil {
		t.Errorf("although the pinned packages are in the cache: %v", err)
	}
	if err := os.Remove(in(nginx)); err != nil {
		t.Fatal(err)
	}
	_, err = Build(t.Context(), c)
	wantError(t, err, "package nginx 1.20.1-1.el7 is pinned in "+c.LockPath()+", but neither in the cache nor in the archive, which has:\n"+
		"  tiny: nginx 1.20.1-1.el7 → 1.20.2-1.el7, + nginx-core 1.20.2-1.el7\n", "imagegen lock")
	if now, _ := lock(); now != first {
		t.Errorf("--locked has changed the lock:\n%s", now)
	}
	c.Locked = false
	var said []string
	c.UI = noted{&said}
	if changed, err := Renew(t.Context(), c); err != nil || !changed || !slices.Equal(said, []string{"tiny: nginx 1.20.1-1.el7 → 1.20.2-1.el7, + nginx-core 1.20.2-1.el7"}) {
		t.Errorf("renewed: %v, %v, %q", changed, err, said)
	}
	plans, err := Plan(t.Context(), c)
	want := []string{"pinned packages: nginx 1.20.1-1.el7 → 1.20.2-1.el7, + nginx-core 1.20.2-1.el7", "removed paths: + /opt/two, - /opt/one"}
	if err != nil || len(plans) != 1 || !slices.Equal(plans[0].Because, want) {
		t.Errorf("the plan is %+v, %v", plans, err)
	}

	// Packages that are in the lock, but not in the cache, are downloaded without yum or the disk.
	_, l = lock()
	for _, p := range []packages.Pin{l.Base.Packages[0], l.Roles["tiny"].Packages[0]} {
		if err := os.Remove(in(p)); err != nil {
			t.Fatal(err)
		}
	}
	c.Locked = true
	if err := Fetch(t.Context(), c); err != nil {
		t.Error(err)
	}
	for _, p := range slices.Concat(l.Base.Packages, l.Roles["tiny"].Packages) {
		if err := sparse.HasSum(t.Context(), in(p), p.SHA256); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	c.Offline = true
	if err := Fetch(t.Context(), c); err != nil {
		t.Errorf("a complete file was fetched again: %v", err)
	}
	// A changed package list cannot be resolved without repositories.
	testkit.Write(t, filepath.Join(project, "roles/tiny/role.yaml"), "description: x\ndistros: {centos7: {packages: [nginx, socat]}}\n")
	c = mustConfig(t, project, c.CacheDir)
	c.Locked = true
	wantError(t, Fetch(t.Context(), c), "does not match", "  tiny: package list: + socat\n", "without --locked")
	c.Locked, c.Offline = false, true
	wantError(t, Fetch(t.Context(), c), c.LockPath()+" does not pin all packages that", "run imagegen fetch")
	// A missing package is reported at the place where it is named.
	testkit.Write(t, filepath.Join(project, "roles/tiny/role.yaml"), "description: x\ndistros: {centos7: {packages: [nginx, nosuchpkg]}}\n")
	c = mustConfig(t, project, c.CacheDir)
	wantError(t, Fetch(t.Context(), c), "roles/tiny/role.yaml:2:39: distros.centos7.packages[1]: no repository has a package nosuchpkg for centos7")
}

// TestFetchRPMs: pinned packages are found in package lists of every compression and checksum.
func TestFetchRPMs(t *testing.T) {
	for name, pkg := range map[string]string{"rpmbuild": "rpm", "createrepo_c": "createrepo-c", "xz": "xz-utils"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("NOT TESTED: no %s on this machine (package %s; make checkers installs it)", name, pkg)
		}
	}
	t.Parallel()
	dir := t.TempDir()
	buildRPMs(t, dir, "", "", []rpmFixture{{"one", "1~rc1", "", nil}, {"two", "2^git", "", nil}, {"three", "3", "", nil}})
	var pinned []packages.Pin
	for _, name := range []string{"one 1~rc1-1.el7", "two 2^git-1.el7", "three 3-1.el7"} {
		name, version, _ := strings.Cut(name, " ")
		sum, err := sparse.SHA256(t.Context(), filepath.Join(dir, "x86_64", name+"-"+version+".x86_64.rpm"))
		if err != nil {
			t.Fatal(err)
		}
		p := packages.Pin{Name: name, Version: version, Architecture: "x86_64", SHA256: sum}
		text, err := p.MarshalText()
		if again := (packages.Pin{}); err != nil || again.UnmarshalText(text) != nil || again != p {
			t.Errorf("%q is read as %v", text, again)
		}
		pinned = append(pinned, p)
	}
	served := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(served.Close)
	at := func(paths ...string) (r packages.Repo) {
		r.Name = "repo"
		for _, p := range paths {
			r.URLs = append(r.URLs, served.URL+p)
		}
		return r
	}
	whole, cut := filepath.Join(dir, "x86_64"), filepath.Join(dir, "cut/x86_64")
	testkit.Must(t, exec.Command("cp", "-r", whole, filepath.Join(dir, "x")))
	testkit.Must(t, exec.Command("mkdir", "-p", cut))
	testkit.Must(t, exec.Command("cp", "-r", filepath.Join(whole, "repodata"), cut)) // lists packages that it does not have
	for packed, args := range map[string][]string{"gz": nil, "bz2": {"--general-compress-type=bz2"}, "xz": {"--general-compress-type=xz"}, "sha1": {"--checksum=sha1"}} {
		testkit.Must(t, exec.Command("createrepo_c", append(append([]string{"-q"}, args...), whole)...))
		for _, mirrors := range [][]string{{"/$basearch/"}, {"/gone/", "/x86_64"}, {"/cut/$basearch", "/$basearch"}} {
			c := Config{CacheDir: t.TempDir(), UI: silent{}}
			if err := os.MkdirAll(string(c.cache().store()), 0o755); err != nil {
				t.Fatal(err)
			}
			gone, err := c.cache().store().FetchRPMs(t.Context(), []packages.Repo{at(mirrors...)}, pinned, func(string) {})
			if err != nil || gone != nil || len(c.cache().store().Lacking(pinned)) > 0 {
				t.Errorf("%s, %q: %v, %v, lacking %v", packed, mirrors, gone, err, c.cache().store().Lacking(pinned))
			}
			if left := files(t, string(c.cache().store())); len(left) != len(pinned) {
				t.Errorf("%s, %q: the store has %q", packed, mirrors, left)
			}
		}
	}

	c := Config{CacheDir: t.TempDir(), UI: silent{}}
	if err := os.MkdirAll(string(c.cache().store()), 0o755); err != nil {
		t.Fatal(err)
	}
	other := packages.Pin{Name: "three", Version: "3-1.el7", Architecture: "x86_64", SHA256: strings.Repeat("0", 64)}
	want := append(slices.Clone(pinned), other)
	testkit.Must(t, exec.Command("createrepo_c", "-q", "--checksum=sha1", whole)) // without SHA-256, so that packages are found by name and version
	if gone, err := c.cache().store().FetchRPMs(t.Context(), []packages.Repo{at("/x86_64/")}, want, func(string) {}); err == nil {
		t.Errorf("%v", gone)
	} else {
		wantError(t, err, "fetch package three 3-1.el7: ", "its SHA-256 is "+pinned[2].SHA256+" and should be "+other.SHA256, "imagegen lock")
	}
	testkit.Must(t, exec.Command("createrepo_c", "-q", whole))
	if gone, err := c.cache().store().FetchRPMs(t.Context(), []packages.Repo{at("/x86_64/")}, want, func(string) {}); err != nil || !slices.Equal(gone, []packages.Pin{other}) {
		t.Errorf("%v, %v", gone, err)
	}
	_, err := c.cache().store().FetchRPMs(t.Context(), []packages.Repo{at("/x86_64/"), at("/gone/")}, want, func(string) {})
	wantError(t, err, "package three 3-1.el7 is not in the cache, and not in the repositories that could be read:\nrepository repo: "+served.URL+"/gone/repodata/repomd.xml: the server answered 404 Not Found")
	testkit.Write(t, filepath.Join(dir, "page/repodata/repomd.xml"), "<html>")
	_, err = c.cache().store().FetchRPMs(t.Context(), []packages.Repo{at("/page/")}, want, func(string) {})
	wantError(t, err, "/page/repodata/repomd.xml: XML syntax error")
	testkit.Write(t, filepath.Join(dir, "page/repodata/repomd.xml"), "<repomd/>")
	_, err = c.cache().store().FetchRPMs(t.Context(), []packages.Repo{at("/page/")}, want, func(string) {})
	wantError(t, err, "/page/repodata/repomd.xml names no package list")
}

// standIn makes a disk like CentOS's.
func standIn(t *testing.T, dir, path string) {
	t.Helper()
	sources, err := packages.HostSources("/", known.Named("debian12"))
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	testkit.Must(t, exec.Command("mmdebstrap", append([]string{
		"--variant=minbase", "--include=dnf,rpm,systemd-sysv,passwd", "--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*", "bookworm", filepath.Join(dir, "root"),
	}, sources...)...))
	testkit.Must(t, exec.Command("unshare", "--mount", "sh", "-euc", `
root=$1/root disk=$1/disk
printf '#!/bin/sh\nexec /usr/bin/dnf "$@"\n' >"$root/usr/bin/yum"
chmod 755 "$root/usr/bin/yum"
mkdir -p "$root/etc/yum.repos.d" "$root/etc/sysconfig/network-scripts"
printf '[old]\nname=old\nbaseurl=http://127.0.0.1:1/\nenabled=1\n' >"$root/etc/yum.repos.d/CentOS-Base.repo"
truncate -s 3G "$disk"
echo '2048,,L,*' | sfdisk -q --label dos "$disk"
loop=$(losetup --find --show --offset 1048576 "$disk")
mkfs.xfs -q -m reflink=0,bigtime=0,inobtcount=0,rmapbt=0 -i sparse=0,nrext64=0 "$loop" # what a kernel 3.10 can read
mkdir "$1/base"
mount "$loop" "$1/base"
losetup --detach "$loop"
cp -a "$root/." "$1/base/"
umount "$1/base"
qemu-img convert -f raw -O qcow2 -c "$disk" "$2"
rm -rf "$root" "$disk"
`, "sh", dir, path))
}

package packages

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"imagegen/distro"
	"imagegen/internal/testkit"
)

const debianKey = "/usr/share/keyrings/debian-archive-keyring.gpg"

// TestHostSources uses contents of etc/apt on real machines.
func TestHostSources(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string // relative to /
		want  []string          // or "error" and parts of the error
	}{
		{"the installer's sources.list", map[string]string{"etc/apt/sources.list": `#deb cdrom:[Debian GNU/Linux 12.0.0 _Bookworm_ - Official amd64 NETINST with firmware 20230610-10:21]/ bookworm main non-free-firmware

deb http://debian.example.org/debian/ bookworm main non-free-firmware
deb-src http://debian.example.org/debian/ bookworm main non-free-firmware

deb http://security.example.org/debian-security bookworm-security main non-free-firmware
deb-src http://security.example.org/debian-security bookworm-security main non-free-firmware

# bookworm-updates, to get updates before a point release is made;
deb http://debian.example.org/debian/ bookworm-updates main non-free-firmware
`}, []string{
			"deb http://debian.example.org/debian/ bookworm main",
			"deb http://debian.example.org/debian/ bookworm-updates main",
			"deb http://security.example.org/debian-security bookworm-security main",
		}},
		{"the container image's debian.sources", map[string]string{"etc/apt/sources.list.d/debian.sources": `Types: deb
# http://snapshot.debian.org/archive/debian/20250520T000000Z
URIs: http://debian.example.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
# http://snapshot.debian.org/archive/debian-security/20250520T000000Z
URIs: http://debian.example.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`}, []string{
			"deb [signed-by=" + debianKey + "] http://debian.example.org/debian bookworm main",
			"deb [signed-by=" + debianKey + "] http://debian.example.org/debian bookworm-updates main",
			"deb [signed-by=" + debianKey + "] http://debian.example.org/debian-security bookworm-security main",
		}},
		{"the cloud image's lists of mirrors", map[string]string{
			"etc/apt/sources.list": "# See /etc/apt/sources.list.d/debian.sources\n",
			"etc/apt/sources.list.d/debian.sources": `Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main

Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian-security.list
Suites: bookworm-security
Components: main
`,
			"etc/apt/mirrors/debian.list":          "# nearest first\nhttps://debian.example.org/debian\tpriority:1\nhttps://other.example.com/debian\n",
			"etc/apt/mirrors/debian-security.list": "https://debian.example.org/debian-security\n",
		}, []string{
			"deb https://debian.example.org/debian bookworm main",
			"deb https://debian.example.org/debian bookworm-updates main",
			"deb https://debian.example.org/debian-security bookworm-security main",
		}},
		{"options", map[string]string{"etc/apt/sources.list": `
deb	[arch=amd64,arm64 trusted=yes lang=en]   http://a.example.com/debian	bookworm	contrib main # here
deb [ arch=arm64 ] http://b.example.com/debian bookworm main
deb [signed-by=/etc/apt/keyrings/debian-archive-x.gpg check-valid-until=no] http://c.example.com/debian bookworm main
deb [signed-by=A1BD8E9D78F7FE5C3E65D8AF8B48AD6246925553] http://d.example.com/debian bookworm main
`}, []string{
			"deb [check-valid-until=no signed-by=/etc/apt/keyrings/debian-archive-x.gpg] http://c.example.com/debian bookworm main",
			"deb [trusted=yes] http://a.example.com/debian bookworm main",
			"deb http://d.example.com/debian bookworm main",
		}},
		{"stanzas with all that may be in them", map[string]string{"etc/apt/sources.list.d/x.sources": strings.ReplaceAll(`# the archive
X-Name: ours
types: deb
URIs: http://a.example.com/debian
  http://b.example.com/debian
Suites:
 bookworm
# not yet:
# bookworm-proposed-updates
Components: main contrib
Architectures: amd64 i386
Trusted: yes
Check-Valid-Until: no
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEYC
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://c.example.com/debian
Suites: bookworm
Components: main
`, "\n", "\r\n")}, []string{
			"deb [check-valid-until=no trusted=yes] http://a.example.com/debian bookworm main",
			"deb [check-valid-until=no trusted=yes] http://b.example.com/debian bookworm main",
		}},
		{"others that call their suites so", map[string]string{
			"etc/apt/sources.list":                      "deb http://debian.example.org/debian bookworm main\ndeb http://debian.example.org/debian bookworm main contrib\n",
			"etc/apt/sources.list.d/docker.list":        "deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/debian bookworm stable\n",
			"etc/apt/sources.list.d/hashicorp.list":     "deb [signed-by=/usr/share/keyrings/hashicorp-archive-keyring.gpg] https://apt.releases.hashicorp.com bookworm main\n",
			"etc/apt/sources.list.d/pgdg.list":          "deb http://apt.postgresql.org/pub/repos/apt bookworm-pgdg main\n",
			"etc/apt/sources.list.d/nodesource.sources": "Types: deb\nURIs: https://deb.nodesource.com/node_20.x\nSuites: nodistro\nComponents: main\n",
			// An entry without a key: the archive's release file decides.
			"etc/apt/sources.list.d/sury.list":                                     "deb https://packages.sury.org/php_x/ bookworm main\n",
			"var/lib/apt/lists/packages.sury.org_php%5fx_dists_bookworm_InRelease": "Hash: SHA256\n\nOrigin: deb.sury.org\nLabel: php\n",
			"var/lib/apt/lists/debian.example.org_debian_dists_bookworm_InRelease": "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nSuite: oldstable\n",
			"etc/apt/sources.list.d/backup.list.save":                              "deb http://old.example.com/debian bookworm main\n",
			"etc/apt/sources.list.d/trixie.list":                                   "deb http://debian.example.org/debian trixie main\n",
			"etc/apt/sources.list.d/company.list":                                  "deb [signed-by=/etc/apt/keyrings/company.gpg] http://apt.example.com:8080/debian/ bookworm main\n",
			"var/lib/apt/lists/apt.example.com:8080_debian_dists_bookworm_Release": "Origin: Debian\nLabel: Debian\n",
			"etc/apt/sources.list.d/local.list":                                    "deb file:/srv/x bookworm main\n",
			"var/lib/apt/lists/_srv_x_dists_bookworm_Release":                      "Origin: ours\n",
		}, []string{
			"deb [signed-by=/etc/apt/keyrings/company.gpg] http://apt.example.com:8080/debian/ bookworm main",
			"deb http://debian.example.org/debian bookworm main",
		}},
		{"another release", map[string]string{"etc/apt/sources.list": "deb http://debian.example.org/debian trixie main\ndeb http://debian.example.org/debian bookworm-updates main\n"},
			[]string{"error", "no archive of Debian 12 (bookworm)", "mirror: URL"}},
		{"nothing", nil, []string{"error", "no archive of Debian 12"}},
		{"a password", map[string]string{"etc/apt/sources.list": "deb http://me:secret@apt.example.com/debian bookworm main\n"},
			[]string{"error", "etc/apt/sources.list", "apt.example.com contains a password"}},
		{"an empty list of mirrors", map[string]string{"etc/apt/sources.list": "deb mirror+file:/m bookworm main\n", "m": "# none\n"},
			[]string{"error", "/m contains no mirror"}},
		{"no list of mirrors", map[string]string{"etc/apt/sources.list": "deb mirror+file:/m bookworm main\n"},
			[]string{"error", "/m: no such file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range c.files {
				testkit.Write(t, filepath.Join(root, name), text)
			}
			got, err := HostSources(root, distro.Named("debian12"))
			if len(c.want) > 0 && c.want[0] == "error" {
				if err == nil {
					t.Fatalf("no error, but %q", got)
				}
				for _, w := range c.want[1:] {
					if !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "secret") {
						t.Errorf("%q should say %q", err, w)
					}
				}
				return
			}
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v\n got %s\nwant %s", err, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
			}
		})
	}
}

// FuzzSources: the output for any files is lines that are parsed to the same sources.
func FuzzSources(f *testing.F) {
	f.Add("deb [arch=amd64 signed-by=/a,/b] http://debian.example.org/debian bookworm main contrib # x\n")
	f.Add("Types: deb\nURIs: http://a b\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k\nTrusted: yes\n\n")
	f.Add("deb cdrom:[Debian 12]/ bookworm main\ndeb [")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range append(parseList(text), parseDeb822(text)...) {
			if !s.wanted(distro.Named("debian12").Suites) || strings.Contains(s.uri, "#") {
				continue
			}
			again := parseList(s.line())
			if len(again) != 1 {
				t.Fatalf("%q reads as %d sources", s.line(), len(again))
			}
			if r := again[0]; r.uri != s.uri || r.suite != s.suite || r.key != s.key || !reflect.DeepEqual(r.options, s.options) {
				t.Errorf("%q reads as %+v, was %+v", s.line(), r, s)
			}
		}
	})
}

func TestMirror(t *testing.T) {
	for _, c := range []struct{ mirror, want string }{
		{"https://archive.example.com/debian/", "deb https://archive.example.com/debian bookworm main\ndeb https://archive.example.com/debian bookworm-updates main\n" +
			"deb https://archive.example.com/debian-security bookworm-security main"},
		{"deb [trusted=yes] http://archive.example.com/x bookworm main contrib", "deb [trusted=yes] http://archive.example.com/x bookworm main contrib"},
	} {
		t.Run("", func(t *testing.T) {
			got, err := MirrorSources(c.mirror, distro.Named("debian12"))
			if err != nil {
				got = []string{err.Error()}
			}
			if strings.Join(got, "\n") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestKeyrings(t *testing.T) {
	keys := Keyrings([]string{
		"deb [signed-by=/k/a.gpg] http://a.example.com/debian bookworm main",
		"deb [signed-by=/k/a.gpg trusted=yes] file:///srv/debian/ bookworm main",
		"deb copy:/srv/more bookworm main",
	})
	if !slices.Equal(keys, []string{"/k/a.gpg"}) {
		t.Errorf("%q", keys)
	}
}

func TestAPTSettings(t *testing.T) {
	got := aptSettings(`APT "";
APT::Architecture "amd64";
Acquire "";
Acquire::Check-Valid-Until "false";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example.com:3128/";
Acquire::http::Proxy::debian.example.org "DIRECT";
Acquire::http::Proxy-Auto-Detect "/usr/bin/auto-apt-proxy";
Acquire::https::CaInfo "/etc/ssl/ours.pem";
Acquire::httpx::Proxy "none";
Acquire::Languages "none";
Acquire::Retries "7";
DPkg::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb || true";
`)
	want := `Acquire::Check-Valid-Until "false";
Acquire::http::Proxy "http://proxy.example.com:3128/";
Acquire::http::Proxy::debian.example.org "DIRECT";
Acquire::Retries "7";
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

package cloudinit

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"imagegen/cloudinit/nocloud"
	"imagegen/cluster"
	"imagegen/cluster/secrets"
	"imagegen/internal/testkit"
	"imagegen/roles"
)

// The keys that CentOS 7's cloud-init, 19.4, supports and we could use, from the examples and module pages of its
// documentation. A key that is in no list is an error, and so is a value that it would misinterpret.
var (
	userDataKeys = []string{"hostname", "fqdn", "preserve_hostname", "manage_etc_hosts", "timezone", "package_update", "package_upgrade",
		"users", "disable_root", "ssh_pwauth", "ssh_deletekeys", "ssh_genkeytypes", "write_files", "bootcmd", "runcmd", "growpart", "resize_rootfs"}
	userKeys = []string{"name", "gecos", "groups", "homedir", "lock_passwd", "no_create_home", "no_user_group", "passwd", "primary_group",
		"shell", "ssh_authorized_keys", "sudo", "system", "uid"}
	fileKeys   = []string{"path", "owner", "permissions", "encoding", "content", "append"} // no defer, no source
	encodings  = []string{"b64", "gz+b64"}
	nicKeys    = []string{"type", "name", "mac_address", "mtu", "subnets"}
	subnetKeys = []string{"type", "address", "netmask", "gateway", "dns_nameservers", "dns_search"}
)

// faults194 lists what cloud-init 19.4 would not support in a seed.
func faults194(s Seed) []string {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	keys := func(where string, m map[string]any, known []string) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !slices.Contains(known, k) {
				fault("%s: %s is not in the table", where, k)
			}
		}
	}
	read := func(name string, data []byte) map[string]any {
		var m map[string]any
		if err := yaml.Unmarshal(data, &m); err != nil {
			fault("%s: %v", name, err)
		}
		// It runs on Python 2.7, whose default encoding is ASCII.
		if i := bytes.IndexFunc(data, func(r rune) bool { return r > '~' }); i >= 0 {
			fault("%s: has more than ASCII", name)
		}
		return m
	}
	list := func(v any) (all []map[string]any) {
		for _, e := range v.([]any) {
			all = append(all, e.(map[string]any))
		}
		return all
	}
	if !bytes.HasPrefix(s.UserData, []byte("#cloud-config\n")) {
		fault("user-data: does not begin with #cloud-config")
	}
	ud := read("user-data", s.UserData)
	keys("user-data", ud, userDataKeys)
	for _, u := range list(ud["users"]) {
		keys("users", u, userKeys)
	}
	for _, f := range list(ud["write_files"]) {
		keys("write_files", f, fileKeys)
		if e, ok := f["encoding"]; ok && !slices.Contains(encodings, e.(string)) {
			fault("write_files: encoding %v", e)
		}
		if p, ok := f["permissions"].(string); !ok || len(p) != 4 || p[0] != '0' {
			fault("write_files: permissions %v are not an octal text", f["permissions"])
		}
	}
	md := read("meta-data", s.MetaData)
	keys("meta-data", md, []string{"instance-id", "local-hostname", nocloud.ClusterKey, nocloud.NodeKey, nocloud.DigestKey})
	if md["instance-id"] == nil {
		fault("meta-data: no instance-id")
	}
	nc := read("network-config", s.NetworkConfig)
	keys("network-config", nc, []string{"version", "config"})
	if nc["version"] != 1 {
		fault("network-config: version %v, which loses NICs", nc["version"])
		return faults
	}
	for _, n := range list(nc["config"]) {
		keys("network-config", n, nicKeys)
		if mac, _ := n["mac_address"].(string); n["type"] != "physical" || mac == "" || mac != strings.ToLower(mac) {
			fault("network-config: %v with address %v", n["type"], n["mac_address"])
		}
		for _, sub := range list(n["subnets"]) {
			keys("network-config", sub, subnetKeys)
			if sub["type"] != "static" && sub["type"] != "dhcp" {
				fault("network-config: subnet of type %v", sub["type"])
			}
		}
	}
	return faults
}

var digests = regexp.MustCompile(`(?m)^(instance-id: |imagegen-digest: ).*$`)

// TestCentOSSeeds checks the seeds of all nodes of the reference cluster on CentOS 7. Their files are in the golden
// files of package roles.
func TestCentOSSeeds(t *testing.T) {
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Parse("cluster.yaml", cluster.Reference("centos7"), catalogue.Rules())
	if err != nil {
		t.Fatal(err)
	}
	spec.Site.Title = "Сайт" // not ASCII
	spec.SSH.Keys = example().SSH.Keys
	pair := secrets.KeyPair{Cert: []byte("certificate\n"), Key: []byte("key\n")}
	keys := &secrets.Secrets{ClusterID: "7f1b9a5e-0c56-4c7e-8a52-3f6d3c1c8e11", Passwords: map[string]string{}, Nodes: map[string]secrets.KeyPair{}, CA: pair}
	for _, name := range catalogue.SecretNames(spec) {
		keys.Passwords[name] = "password"
	}
	var all strings.Builder
	for _, n := range spec.Nodes() {
		keys.Nodes[n.Name] = pair
		r, err := catalogue.Render(spec, keys, n.Name)
		if err != nil {
			t.Fatal(err)
		}
		var files []File
		for _, f := range r.Files {
			files = append(files, File{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Content: f.Content, Secret: f.Secret})
		}
		s, err := New(spec, clusterID, n, files)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range faults194(s) {
			t.Errorf("%s: %s", n.Name, f)
		}
		for i := range files {
			files[i].Content = []byte("(in the golden files of package roles)")
		}
		shown, err := New(spec, clusterID, n, files)
		if err != nil {
			t.Fatal(err)
		}
		host := digests.ReplaceAllString(string(s.MetaData), "$1(changes with every word of every file)")
		fmt.Fprintf(&all, "==> %s: meta-data\n%s==> network-config\n%s==> user-data\n%s\n", n.Name, host, shown.NetworkConfig, shown.UserData)
	}
	testkit.Golden(t, "testdata/"+"centos7.txt", []byte(all.String()))
}

func TestFaults194(t *testing.T) {
	spec := example()
	good, err := New(spec, clusterID, spec.Nodes()[0], awkward())
	if err != nil {
		t.Fatal(err)
	}
	if faults := faults194(good); len(faults) > 0 {
		t.Errorf("a good seed has the faults %q", faults)
	}
	change := func(data []byte, old, new string) []byte {
		changed := bytes.Replace(data, []byte(old), []byte(new), 1)
		if bytes.Equal(changed, data) {
			t.Fatalf("%q is not in the seed", old)
		}
		return changed
	}
	for want, s := range map[string]Seed{
		"user-data: ntp is not in the table":                                 {good.MetaData, good.NetworkConfig, change(good.UserData, "timezone:", "ntp:"), nil},
		"write_files: defer is not in the table":                             {good.MetaData, good.NetworkConfig, change(good.UserData, "    owner: root:root\n", "    owner: root:root\n    defer: true\n"), nil},
		"write_files: permissions 420 are not an octal text":                 {good.MetaData, good.NetworkConfig, change(good.UserData, `"0644"`, "0644"), nil},
		"user-data: has more than ASCII":                                     {good.MetaData, good.NetworkConfig, change(good.UserData, "me@desk", "ich@büro"), nil},
		"user-data: does not begin with #cloud-config":                       {good.MetaData, good.NetworkConfig, change(good.UserData, "#cloud-config", "# cloud-config"), nil},
		"network-config: version 2, which loses NICs":                        {good.MetaData, change(good.NetworkConfig, "version: 1", "version: 2"), good.UserData, nil},
		"network-config: physical with address 52:54:00:9E:0A:01":            {good.MetaData, change(good.NetworkConfig, "52:54:00:9e:0a:01", "52:54:00:9E:0A:01"), good.UserData, nil},
		"network-config: subnet of type static6":                             {good.MetaData, change(good.NetworkConfig, "type: static", "type: static6"), good.UserData, nil},
		"meta-data: hostname is not in the table\nmeta-data: no instance-id": {change(good.MetaData, "instance-id", "hostname"), good.NetworkConfig, good.UserData, nil},
	} {
		if got := strings.Join(faults194(s), "\n"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Package vagrant writes the Vagrantfile that boots a cluster's nodes in VirtualBox. The Vagrantfile uses these files
// beside it:
//
//	boxes/ROLE.box      the role's image (package images)
//	seeds/NODE.iso      the node's seed (package cloudinit)
//	disks/NODE.vdi      the node's data disk, created by the first vagrant up and kept by vagrant destroy
//	consoles/NODE.log   the node's serial port
package vagrant

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"strings"
	"text/template"

	"imagegen/cluster"
)

//go:embed Vagrantfile.tmpl
var templateText string

var vagrantfile = template.Must(template.New("Vagrantfile").Option("missingkey=error").Funcs(template.FuncMap{
	"ruby": quote,
	"mac":  func(mac string) string { return strings.ToUpper(strings.ReplaceAll(mac, ":", "")) },
	"mib":  func(b cluster.Bytes) int64 { return int64((b + cluster.MiB - 1) / cluster.MiB) },
}).Parse(templateText))

// Write returns the Vagrantfile of all nodes of the spec. identities has the identity of each role's image
// (images.Result.Identity). It is part of the box's name, because Vagrant keeps a copy of every box by name and would
// otherwise go on using an old one. clusterID marks the machines. The same input gives the same bytes.
func Write(spec *cluster.Spec, clusterID string, identities map[string]string) ([]byte, error) {
	boxes := map[string]string{}
	for _, r := range spec.Roles {
		id, ok := identities[r.Name]
		if !ok {
			return nil, fmt.Errorf("write the Vagrantfile: role %s: there is no image", r.Name)
		}
		boxes[r.Name] = fmt.Sprintf("%s/%s-%.12s", spec.Cluster, r.Name, id)
	}
	host, err := spec.HostAddr()
	if err != nil {
		return nil, fmt.Errorf("write the Vagrantfile: %w", err)
	}
	var b bytes.Buffer
	err = vagrantfile.Execute(&b, map[string]any{
		"Spec": spec, "ClusterID": clusterID, "Identities": identities, "Boxes": boxes, "Host": host, "Netmask": netmask(spec.Network.CIDR), "NATNet": natNet(spec), "Keys": keys(spec),
	})
	if err != nil {
		return nil, fmt.Errorf("write the Vagrantfile: %w", err)
	}
	return b.Bytes(), nil
}

// hostOnlyDefault is the range in which VirtualBox 6.1.28 and later allow host-only networks by default (User Manual,
// 6.7 "Host-Only Networking").
var hostOnlyDefault = netip.MustParsePrefix("192.168.56.0/21")

// HostOnlyProblem says what to do before VirtualBox allows a host-only network with the spec's addresses: the file and
// its line, and the alternative. It returns "" if nothing is needed. Windows, and macOS with VirtualBox 7, have no such
// restriction, but it is not known on which host the Vagrantfile will be used.
func HostOnlyProblem(spec *cluster.Spec) string {
	cidr := spec.Network.CIDR.Masked()
	if hostOnlyDefault.Contains(cidr.Addr()) && cidr.Bits() >= hostOnlyDefault.Bits() {
		return ""
	}
	// A networks.conf replaces the default range, so it must contain that as well.
	return fmt.Sprintf(`network.cidr: VirtualBox on Linux allows host-only networks in %[1]s alone, and %[2]s is outside;
put this line into /etc/vbox/networks.conf on the machine that runs VirtualBox (make the file if it is not there):

    * %[2]s %[1]s

or take a network in %[1]s, such as 192.168.56.0/24, and addresses in it. Windows, and macOS with VirtualBox 7, need neither.`,
		hostOnlyDefault, cidr)
}

// netmask formats a prefix length as a netmask, which Vagrant needs.
func netmask(p netip.Prefix) string {
	m := ^uint32(0) << (32 - p.Bits())
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}).String()
}

// natNet returns a network for adapter 1 if VirtualBox's default for it overlaps the cluster's network; otherwise "".
func natNet(spec *cluster.Spec) string {
	if spec.Network.CIDR.Overlaps(netip.MustParsePrefix("10.0.2.0/24")) {
		return "172.31.254.0/24"
	}
	return ""
}

// keys returns the spec's public keys without type and comment, for comparison.
func keys(spec *cluster.Spec) []string {
	var all []string
	for _, k := range spec.SSH.Keys {
		if f := strings.Fields(k); len(f) > 1 {
			all = append(all, f[1])
		}
	}
	return all
}

// quote formats s as a Ruby string.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `#`, `\#`, "\n", `\n`).Replace(s) + `"`
}

// Package vagrant makes the Vagrantfile that boots a cluster's nodes in VirtualBox. Around the Vagrantfile lie
//
//	boxes/ROLE.box      the role's image (package images)
//	seeds/NODE.iso      the node's seed (package cloudinit)
//	disks/NODE.vdi      the node's data disk, which the first vagrant up makes and vagrant destroy keeps
//	consoles/NODE.log   what the node prints on its serial port
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

// Write makes the Vagrantfile of all nodes of the spec. Identities holds each role's image's identity
// (images.Result.Identity). It is part of the box's name: Vagrant keeps a copy of every box that it has seen, by name, and
// would go on using the old one when boxes/ROLE.box has become another image. ClusterID marks the machines. The same input gives
// the same bytes.
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

// hostOnlyDefault is where VirtualBox 6.1.28 and later allow host-only networks without being told of others
// (User Manual, 6.7 "Host-Only Networking").
var hostOnlyDefault = netip.MustParsePrefix("192.168.56.0/21")

// HostOnlyProblem says what is to be done before VirtualBox allows a host-only network with the spec's addresses: the
// file and its line, and the alternative. It is empty when nothing is. On Windows, and on macOS from VirtualBox 7 on, there
// is no such limit; which host the Vagrantfile will be used on is not known here.
func HostOnlyProblem(spec *cluster.Spec) string {
	cidr := spec.Network.CIDR.Masked()
	if hostOnlyDefault.Contains(cidr.Addr()) && cidr.Bits() >= hostOnlyDefault.Bits() {
		return ""
	}
	// Once there is a networks.conf, what it does not name is forbidden, the default range too.
	return fmt.Sprintf(`network.cidr: VirtualBox on Linux allows host-only networks in %[1]s alone, and %[2]s is outside;
put this line into /etc/vbox/networks.conf on the machine that runs VirtualBox (make the file if it is not there):

    * %[2]s %[1]s

or take a network in %[1]s, such as 192.168.56.0/24, and addresses in it. Windows, and macOS with VirtualBox 7, need neither.`,
		hostOnlyDefault, cidr)
}

// netmask writes a prefix length as Vagrant wants it.
func netmask(p netip.Prefix) string {
	m := ^uint32(0) << (32 - p.Bits())
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}).String()
}

// natNet is another network for adapter 1 when VirtualBox's own choice for it is part of the cluster's network; else empty.
func natNet(spec *cluster.Spec) string {
	if spec.Network.CIDR.Overlaps(netip.MustParsePrefix("10.0.2.0/24")) {
		return "172.31.254.0/24"
	}
	return ""
}

// keys lists the spec's public keys without type and comment, as they are compared.
func keys(spec *cluster.Spec) []string {
	var all []string
	for _, k := range spec.SSH.Keys {
		if f := strings.Fields(k); len(f) > 1 {
			all = append(all, f[1])
		}
	}
	return all
}

// quote writes s as a Ruby string.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `#`, `\#`, "\n", `\n`).Replace(s) + `"`
}

package virtualbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"imagegen/internal/vbox"
)

// networkKind is VBoxManage's word for a kind of host-only networks: interfaces of the host or, on macOS from VirtualBox 7 on,
// networks of its own.
type networkKind string

const (
	interfaceKind networkKind = "hostonlyif"
	networkOfOwn  networkKind = "hostonlynet"
)

func (p *Provider) networkKind(ctx context.Context) (networkKind, error) {
	v, err := p.version(ctx)
	if p.os == "darwin" && !v.less(7, 0) {
		return networkOfOwn, err
	}
	return interfaceKind, err
}

// adapter returns the arguments that put adapter 2 on a network.
func (k networkKind) adapter(name string) []string {
	if k == networkOfOwn {
		return []string{"--nic2", "hostonlynet", "--host-only-net2", name}
	}
	return []string{"--nic2", "hostonly", "--hostonlyadapter2", name}
}

// network returns the arguments that put adapter 2 on the host-only network with the cluster's addresses, which may be somebody
// else's. If there is none, it is made.
func (p *Provider) network(ctx context.Context) ([]string, error) {
	p.shared.Lock()
	defer p.shared.Unlock()
	kind, err := p.networkKind(ctx)
	if err != nil {
		return nil, err
	}
	all, err := p.networks(ctx, kind)
	if err != nil {
		return nil, err
	}
	cidr := p.spec.Network.CIDR.Masked()
	for _, n := range all {
		if n.prefix == cidr {
			return kind.adapter(n.name), nil
		}
	}
	add := p.addInterface
	if kind == networkOfOwn {
		add = p.addNetwork
	}
	name, err := add(ctx, all)
	if err != nil {
		hint := ""
		if vbox.IsCode(err, "E_ACCESSDENIED") {
			hint = fmt.Sprintf("; put the line `* %s 192.168.56.0/21` into /etc/vbox/networks.conf", cidr)
		}
		return nil, fmt.Errorf("make the host-only network %s: %w%s", cidr, err, hint)
	}
	return kind.adapter(name), nil
}

func (p *Provider) netmask() string {
	return net.IP(net.CIDRMask(p.spec.Network.CIDR.Bits(), 32)).String()
}

// addNetwork makes a network whose name says whose it is. The host takes the first address.
func (p *Provider) addNetwork(ctx context.Context, _ []hostOnly) (string, error) {
	base := p.spec.Network.CIDR.Masked().Addr().String()
	name := p.ownNetwork()
	return name, p.change(ctx, "hostonlynet", "add", "--name", name, "--netmask", p.netmask(), "--lower-ip", base, "--upper-ip", base, "--enable")
}

func (p *Provider) ownNetwork() string { return "imagegen-" + p.clusterID }

// networkKey is VirtualBox's extra data that names the interface that this cluster has made. VirtualBox chooses the name. Until it is
// known, the value is after and the names of those that were there before.
func (p *Provider) networkKey() string { return "imagegen/" + p.clusterID + "/network" }

const after = "after:"

var interfaceMade = regexp.MustCompile(`Interface '(.+)' was successfully created`)

// addInterface makes an interface, or goes on with one that it has made.
func (p *Provider) addInterface(ctx context.Context, all []hostOnly) (string, error) {
	name, err := p.ownInterface(ctx, all)
	if err != nil {
		return "", err
	}
	if name == "" {
		if err := p.change(ctx, "setextradata", "global", p.networkKey(), after+strings.Join(names(all), ",")); err != nil {
			return "", err
		}
		if err := p.step(); err != nil {
			return "", err
		}
		out, err := vbox.Manage(ctx, "hostonlyif", "create")
		if err != nil {
			if ctx.Err() == nil {
				err = errors.Join(err, p.change(ctx, "setextradata", "global", p.networkKey()))
			}
			return "", err
		}
		m := interfaceMade.FindStringSubmatch(out)
		if m == nil {
			return "", fmt.Errorf("VBoxManage hostonlyif create has not said what it has made: %s", out)
		}
		name = m[1]
	}
	if err := p.change(ctx, "setextradata", "global", p.networkKey(), name); err != nil {
		return "", err
	}
	return name, p.change(ctx, "hostonlyif", "ipconfig", name, "--ip", p.host.String(), "--netmask", p.netmask())
}

// ownInterface returns which of the interfaces this cluster has made; empty: none.
func (p *Provider) ownInterface(ctx context.Context, all []hostOnly) (string, error) {
	out, err := vbox.Manage(ctx, "getextradata", "global", p.networkKey())
	if err != nil {
		return "", err
	}
	_, value, _ := strings.Cut(strings.TrimSpace(out), "Value: ")
	before, unknown := strings.CutPrefix(value, after)
	for _, name := range names(all) {
		if unknown && !slices.Contains(strings.Split(before, ","), name) || name == value {
			return name, nil
		}
	}
	return "", nil
}

// removeNetwork removes the network that this cluster has made, unless a machine is still on it.
func (p *Provider) removeNetwork(ctx context.Context) error {
	kind, err := p.networkKind(ctx)
	if err != nil {
		return err
	}
	all, err := p.networks(ctx, kind)
	if err != nil {
		return err
	}
	if kind == networkOfOwn {
		name := p.ownNetwork()
		if used, err := p.onNetwork(ctx, name); err != nil || used || !slices.Contains(names(all), name) {
			return err
		}
		return p.change(ctx, "hostonlynet", "remove", "--name", name)
	}
	name, err := p.ownInterface(ctx, all)
	if err != nil {
		return err
	}
	if name != "" {
		if used, err := p.onNetwork(ctx, name); err != nil || used {
			return err
		}
		if err := p.change(ctx, "hostonlyif", "remove", name); err != nil {
			return err
		}
	}
	return p.change(ctx, "setextradata", "global", p.networkKey())
}

// onNetwork tells whether a machine, of whoever, has an adapter on a host-only network.
func (p *Provider) onNetwork(ctx context.Context, name string) (bool, error) {
	all, err := p.registered(ctx)
	if err != nil {
		return false, err
	}
	for _, r := range all {
		out, err := vbox.Manage(ctx, "showvminfo", r.id, "--machinereadable")
		if ctx.Err() != nil {
			return false, err
		}
		for key, value := range parseInfo(out) { // empty for a machine that cannot be read
			if (strings.HasPrefix(key, "hostonlyadapter") || strings.HasPrefix(key, "hostonly-network")) && value == name {
				return true, nil
			}
		}
	}
	return false, nil
}

// hostOnly is a host-only network. Without addresses, prefix is zero.
type hostOnly struct {
	name   string
	prefix netip.Prefix
}

func names(all []hostOnly) []string {
	var list []string
	for _, n := range all {
		list = append(list, n.name)
	}
	return list
}

func (p *Provider) networks(ctx context.Context, kind networkKind) ([]hostOnly, error) {
	out, err := vbox.Manage(ctx, "list", string(kind)+"s")
	return parseNetworks(out), err
}

// parseNetworks reads the lists of both kinds: a paragraph a network, of lines such as `IPAddress:  192.168.56.1`.
func parseNetworks(out string) []hostOnly {
	var all []hostOnly
	var address netip.Addr
	var bits int
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); key {
		case "Name":
			all = append(all, hostOnly{name: value})
			address, bits = netip.Addr{}, 0
		case "IPAddress", "LowerIP":
			address, _ = netip.ParseAddr(value)
		case "NetworkMask":
			bits, _ = net.IPMask(net.ParseIP(value).To4()).Size()
		}
		if n := len(all) - 1; n >= 0 && address.IsValid() && bits > 0 {
			all[n].prefix = netip.PrefixFrom(address, bits).Masked()
		}
	}
	return all
}

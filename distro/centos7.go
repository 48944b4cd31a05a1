package distro

var centos7 = &Distro{
	Name:     "centos7",
	Title:    "CentOS 7",
	Packages: RPM,
	SELinux:  true,
	ProxySQL: true,
	// CentOS 7 has no service for nftables. Its iptables has separate files and units for IPv4 and IPv6.
	Firewall: []Ruleset{
		{IPTables, "iptables.service", "/etc/sysconfig/iptables", 0o600},
		{IP6Tables, "ip6tables.service", "/etc/sysconfig/ip6tables", 0o600},
	},
	Guest: Guest{80, "RedHat_64"},
	PURL:  PURL{"rpm/centos", "centos-7"},
	Space: Space{Base: 4 << 30, Image: 3 << 30},
}

package distro

var debian12 = &Distro{
	Name:     "debian12",
	Title:    "Debian 12",
	Packages: Deb,
	Suites:   []string{"bookworm", "bookworm-updates", "bookworm-security"},
	Firewall: []Ruleset{{NFTables, "nftables.service", "/etc/nftables.conf", 0o644}},
	Guest:    Guest{96, "Debian_64"},
	PURL:     PURL{"deb/debian", "debian-12"},
	Space:    Space{Base: 2 << 30, Image: 1600 << 20, VM: 2 << 30},
}

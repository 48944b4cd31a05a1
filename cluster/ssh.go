package cluster

import (
	"encoding/base64"
	"slices"
	"strings"

	"imagegen/internal/words"
)

func (p *parser) ssh(v value) {
	p.spec.SSH.User = defaultUser
	if v.node == nil {
		return
	}
	get, ok := p.object(v, "{keys: [ssh-ed25519 AAAA… me@desk]}", "user", "keys")
	if !ok {
		return
	}
	if s, ok := p.text(get("user"), "a user's name"); ok {
		switch {
		case s == "root":
			p.faultf(get("user"), "root cannot log in; write another name, such as %s, who may use sudo", defaultUser)
		case p.systemAccount(s):
			p.faultf(get("user"), "%s is an account of the system or of a package in the images; write another name, such as %s", words.Quote(s), defaultUser)
		case !loginName.MatchString(s):
			p.faultf(get("user"), "%s is not a user's name: up to 32 lower-case letters, digits, - and _", words.Quote(s))
		}
		p.spec.SSH.User = s
	}
	p.required(get("keys"), "[ssh-ed25519 AAAA… me@desk]; without a key nobody can log in")
	seen := map[string]bool{}
	for _, k := range p.list(get("keys"), "[ssh-ed25519 AAAA… me@desk]") {
		s, ok := p.text(k, "a public key, as in ~/.ssh/id_ed25519.pub")
		if !ok || !p.publicKey(k, s) {
			continue
		}
		if seen[s] {
			p.faultf(k, "is in the list twice; remove one")
		}
		seen[s] = true
		p.spec.SSH.Keys = append(p.spec.SSH.Keys, s)
	}
}

// systemAccounts are users and groups of the images' packages, in addition to those in role.yaml. Groups matter because
// cloud-init creates a group with the user's name.
var systemAccounts = strings.Fields(`
	_apt _chrony _rpc _ssh adm audio avahi backup bin cdrom cgred chrony crontab daemon dbus dialout dip disk fax floppy ftp games gluster
	gnats haproxy halt input irc keepalived_script kmem kvm libstoragemgmt list lp mail man messagebus mysql news nginx nobody nogroup
	nscd ntp operator plugdev polkitd postfix proxy proxysql redis render rpc rpcuser sasl sgx shadow shutdown src sshd ssh_keys
	staff statd sudo sync sys systemd-bus-proxy systemd-coredump systemd-journal systemd-network systemd-resolve systemd-timesync tape
	tcpdump tss tty unbound users utempter utmp uucp video voice wheel www-data apache php-fpm uuidd`)

// systemAccount reports whether an image already has a user or group of this name.
func (p *parser) systemAccount(name string) bool {
	if slices.Contains(systemAccounts, name) {
		return true
	}
	for _, r := range p.rules {
		for _, users := range r.Users {
			if slices.Contains(users, name) {
				return true
			}
		}
	}
	return false
}

var keyTypes = []string{"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
	"sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"}

// publicKey checks a line of authorized_keys: type, key in base64, optional comment.
func (p *parser) publicKey(v value, s string) bool {
	fields := strings.Fields(s)
	switch {
	case strings.Contains(s, "PRIVATE KEY"):
		// The message must not show the key.
		p.faultf(v, "this is a private key; write the public one, from the file that ends in .pub")
		return false
	case !slices.Contains(keyTypes, fields[0]) && (strings.HasSuffix(s, ".pub") || strings.ContainsAny(s[:1], "/~.")):
		p.faultf(v, "%s is a path; write the content of that file", words.Quote(s))
		return false
	case !slices.Contains(keyTypes, fields[0]) || len(fields) < 2:
		p.faultf(v, "%s is not a public key; write a line such as ssh-ed25519 AAAA… me@desk, without options before it", words.Quote(s))
		return false
	}
	// The key begins with the name of its type: its length in four bytes, then the text.
	raw, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil || len(raw) < 4+len(fields[0])+32 || string(raw[4:4+len(fields[0])]) != fields[0] {
		p.faultf(v, "the key after %s is damaged; copy the whole line again", fields[0])
		return false
	}
	return true
}

package cluster

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"imagegen/internal/words"
)

// Machines says what the nodes run on.
type Machines struct {
	Provider string   // one of Providers; empty: the spec does not say
	Hosts    []string // computers that carry machines; empty: the provider has only one
	Network  string   // the network on the hosts that machines are connected to
	Storage  string   // where disks are stored on the hosts
	Program  string   // of provider exec: a path relative to the spec's folder, or a name without a slash, looked up in PATH
}

// NoMachines is the provider of clusters whose machines imagegen does not create.
const NoMachines = "none"

// providerKeys lists the keys of each provider in addition to provider; those marked with ! are required.
var providerKeys = map[string][]string{
	"nspawn":     nil,
	"qemu":       nil,
	"virtualbox": nil,
	"incus":      {"hosts", "network", "storage"},
	"exec":       {"program!", "hosts", "network", "storage"},
	NoMachines:   nil,
}

// Providers are the values of machines.provider.
var Providers = slices.Sorted(maps.Keys(providerKeys))

// hostName matches a name, an address or USER@NAME. Programs get it as an argument, so it must not look like a flag.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,252}$`)

func (p *parser) machines(v value) {
	if v.node == nil {
		return
	}
	get, ok := p.object(v, "{provider: incus, hosts: [h1, h2, h3]}", "provider", "hosts", "network", "storage", "program")
	if !ok {
		return
	}
	m := &p.spec.Machines
	if s, ok := p.text(p.required(get("provider"), words.List(Providers, "or")), words.List(Providers, "or")); ok {
		if _, known := providerKeys[s]; !known {
			p.faultf(get("provider"), "there is no provider %s%s", words.Quote(s), words.Hint(s, "it may be", Providers))
		} else {
			m.Provider = s
			p.providerKeys(get, s)
		}
	}
	seen := map[string]bool{}
	hosts := p.list(get("hosts"), "[h1, h2, h3]")
	if h := get("hosts"); h.given() && len(hosts) == 0 && len(h.node.Content) == 0 {
		p.faultf(h, "has no hosts; write at least one, such as [h1, h2, h3], or remove hosts")
	}
	for _, h := range hosts {
		s, ok := p.text(h, "a host's name")
		switch {
		case !ok:
		case !hostName.MatchString(s):
			p.faultf(h, "%s is not a host's name or address; write one such as h1, 192.0.2.1 or user@h1.example.com", words.Quote(s))
		case seen[s]:
			p.faultf(h, "%s is in the list twice; remove one", s)
		default:
			seen[s] = true
			m.Hosts = append(m.Hosts, s)
		}
	}
	for _, t := range []struct {
		key, what string
		into      *string
	}{{"network", "the name of a network on the hosts, such as br0", &m.Network}, {"storage", "the name of a storage on the hosts, such as default", &m.Storage},
		{"program", "the path of a program, such as ./machines.sh", &m.Program}} {
		s, ok := p.text(get(t.key), t.what)
		switch {
		case !ok:
		case strings.HasPrefix(s, "-"):
			p.faultf(get(t.key), "%s begins with a dash, as a flag does; must be %s", words.Quote(s), t.what)
		default:
			*t.into = s
		}
	}
}

// providerKeys reports missing and superfluous keys of the provider.
func (p *parser) providerKeys(get func(string) value, provider string) {
	examples := map[string]string{"hosts": "[h1, h2, h3]", "program": "./machines.sh"}
	for _, key := range []string{"hosts", "network", "storage", "program"} {
		v := get(key)
		switch keys := providerKeys[provider]; {
		case slices.Contains(keys, key+"!"):
			p.required(v, examples[key])
		case !v.missing && !slices.Contains(keys, key):
			p.faultf(v, "provider %s has no %s; remove it", provider, key)
		}
	}
}

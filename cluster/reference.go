package cluster

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"strings"
	"text/template"

	"imagegen/distro"
)

//go:embed reference.yaml
var referenceText string

var referenceTemplate = template.Must(template.New("reference.yaml").Option("missingkey=error").Parse(referenceText))

// Reference returns the commented spec of the reference cluster for a distro: seventeen nodes that serve WordPress. It
// panics if the distro is unknown.
func Reference(name string) []byte {
	if distro.Named(name).Name == "" {
		panic("no reference cluster for distro " + name)
	}
	in := map[string]string{"Distro": name, "SQL": defaultSQL(name)}
	for _, d := range distro.Names() {
		if d != name {
			in["Other"] = d
		}
	}
	var b bytes.Buffer
	if err := referenceTemplate.Execute(&b, in); err != nil {
		panic(fmt.Sprintf("reference.yaml: %v", err))
	}
	return b.Bytes()
}

// Renumber moves the reference cluster's nodes to another IPv4 network with a 24-bit prefix, keeping the last byte of
// each address.
func Renumber(reference []byte, network netip.Prefix) []byte {
	prefix := func(a netip.Addr) []byte { s := a.String(); return []byte(s[:strings.LastIndexByte(s, '.')+1]) }
	return bytes.ReplaceAll(reference, prefix(referenceNetwork), prefix(network.Addr()))
}

var referenceNetwork = netip.MustParseAddr("192.168.10.0")

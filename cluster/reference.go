package cluster

import (
	"bytes"
	_ "embed"
	"fmt"
	"slices"
	"text/template"
)

//go:embed reference.yaml
var referenceText string

var referenceTemplate = template.Must(template.New("reference.yaml").Option("missingkey=error").Parse(referenceText))

// Reference returns the commented spec of the reference cluster for a distro: seventeen nodes that serve WordPress. An
// unknown distro is a mistake in the program.
func Reference(distro string) []byte {
	if !slices.Contains(Distros, distro) {
		panic("no reference cluster for distro " + distro)
	}
	in := map[string]string{"Distro": distro, "SQL": defaultSQL(distro)}
	for _, d := range Distros {
		if d != distro {
			in["Other"] = d
		}
	}
	var b bytes.Buffer
	if err := referenceTemplate.Execute(&b, in); err != nil {
		panic(fmt.Sprintf("reference.yaml: %v", err))
	}
	return b.Bytes()
}

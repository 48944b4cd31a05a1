package images

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// The parts of an SPDX 2.3 document (ISO/IEC 5962) that say which packages an image holds.
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		DataLicense   string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
		Comment  string   `json:"comment"`
	}
	spdxPackage struct {
		Name          string         `json:"name"`
		ID            string         `json:"SPDXID"`
		Version       string         `json:"versionInfo"`
		Location      string         `json:"downloadLocation"`
		FilesAnalyzed bool           `json:"filesAnalyzed"`
		Purpose       string         `json:"primaryPackagePurpose,omitempty"`
		Checksums     []spdxChecksum `json:"checksums,omitempty"`
		References    []spdxRef      `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

const (
	spdxDocumentID = "SPDXRef-DOCUMENT"
	spdxImageID    = "SPDXRef-Image"
)

// sbom returns the bill of materials of the image that the manifest is of, as SPDX 2.3 in JSON. It is a function of the
// manifest alone.
func (m Manifest) sbom() ([]byte, error) {
	image := spdxPackage{
		Name: m.Role, ID: spdxImageID, Version: m.Identity, Location: "NOASSERTION", Purpose: "OPERATING-SYSTEM",
		Checksums: []spdxChecksum{{"SHA256", m.Disk.SHA256}},
	}
	d := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: spdxDocumentID, Name: m.Role,
		Namespace: "urn:uuid:" + uuid("sbom", m.Role+"\x00"+m.Identity+"\x00"+m.Disk.SHA256),
		Creation: spdxCreation{"1970-01-01T00:00:00Z", []string{"Tool: imagegen"},
			"The time is fixed, so that the same image has the same document."},
		Packages:      []spdxPackage{image},
		Relationships: []spdxRelationship{{spdxDocumentID, "DESCRIBES", spdxImageID}},
	}
	files := map[Package]string{}
	for _, p := range slices.Concat(m.Inputs.Base.Pinned, m.Inputs.Pinned) {
		files[Package{p.Name, p.Version, p.Architecture}] = p.SHA256
	}
	for i, p := range m.Packages {
		var sums []spdxChecksum
		if sum, ok := files[p]; ok { // not of what came with the base, where that is a disk
			sums = []spdxChecksum{{"SHA256", sum}}
		}
		// A name may be there twice (kernels, architectures) and hold what an ID may not: a number cannot clash.
		id := fmt.Sprintf("SPDXRef-Package-%d", i+1)
		d.Packages = append(d.Packages, spdxPackage{
			Name: p.Name, ID: id, Version: p.Version, Location: "NOASSERTION", Checksums: sums,
			References: []spdxRef{{"PACKAGE-MANAGER", "purl", p.purl(m.Inputs.Base.Distro)}},
		})
		d.Relationships = append(d.Relationships, spdxRelationship{spdxImageID, "CONTAINS", id})
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(d)
	return b.Bytes(), err
}

// purl names the package to programs that look for known weaknesses: https://github.com/package-url/purl-spec.
func (p Package) purl(distro string) string {
	kind, release, version := "deb/debian", "debian-12", p.Version
	query := url.Values{"arch": {p.Architecture}}
	if distro == "centos7" {
		kind, release = "rpm/centos", "centos-7"
		if epoch, rest, ok := strings.Cut(version, ":"); ok {
			version = rest
			query.Set("epoch", epoch)
		}
	}
	query.Set("distro", release)
	return fmt.Sprintf("pkg:%s/%s@%s?%s", kind, url.QueryEscape(p.Name), url.QueryEscape(version), query.Encode())
}

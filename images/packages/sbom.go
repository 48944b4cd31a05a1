package packages

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"imagegen/distro"
	"imagegen/internal/uuid"
)

// The parts of an SPDX 2.3 document (ISO/IEC 5962) that describe an image's packages.
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
		Supplier      string         `json:"supplier"`
		Location      string         `json:"downloadLocation"`
		FilesAnalyzed bool           `json:"filesAnalyzed"`
		Purpose       string         `json:"primaryPackagePurpose,omitempty"`
		Checksums     []spdxChecksum `json:"checksums,omitempty"`
		Comment       string         `json:"comment,omitempty"`
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
	noAssertion    = "NOASSERTION"
)

// Image is what an SBOM describes.
type Image struct {
	Name     string
	Identity string
	Distro   string
	// Digest is the raw disk's sparse_sha256 from the manifest. Manifests of older versions have its SHA-256 instead.
	Digest, SHA256 string
	Pinned         []Pin // the package files that were installed
	Packages       []Package
}

// SBOM returns the SBOM of an image, as SPDX 2.3 in JSON. The same input has the same SBOM.
func SBOM(m Image) ([]byte, error) {
	image := spdxPackage{
		Name: m.Name, ID: spdxImageID, Version: m.Identity, Supplier: noAssertion, Location: noAssertion, Purpose: "OPERATING-SYSTEM",
	}
	if m.Digest != "" {
		image.Comment = "sparse_sha256 of the raw disk: " + m.Digest
	} else { // baked by an older version
		image.Checksums = []spdxChecksum{{"SHA256", m.SHA256}}
	}
	d := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: spdxDocumentID, Name: m.Name,
		Namespace: "urn:uuid:" + uuid.Of("sbom", m.Name, m.Identity, m.SHA256+m.Digest),
		Creation: spdxCreation{"1970-01-01T00:00:00Z", []string{"Tool: imagegen"},
			"The time is fixed, so that the same image has the same document."},
		Packages:      []spdxPackage{image},
		Relationships: []spdxRelationship{{spdxDocumentID, "DESCRIBES", spdxImageID}},
	}
	files := map[Pin]string{} // the key has no hash
	for _, p := range m.Pinned {
		files[Pin{Name: p.Name, Version: p.Version, Architecture: p.Architecture}] = p.SHA256
	}
	for i, p := range m.Packages {
		var sums []spdxChecksum
		if sum, ok := files[Pin{Name: p.Name, Version: p.Version, Architecture: p.Architecture}]; ok { // packages of a base that is a disk have none
			sums = []spdxChecksum{{"SHA256", sum}}
		}
		// Names may occur twice (kernels, architectures) and contain characters that IDs must not: use a number.
		id := fmt.Sprintf("SPDXRef-Package-%d", i+1)
		d.Packages = append(d.Packages, spdxPackage{
			Name: p.Name, ID: id, Version: p.Version, Supplier: p.supplier(), Location: noAssertion, Checksums: sums,
			References: []spdxRef{{"PACKAGE-MANAGER", "purl", p.purl(distro.Named(m.Distro))}},
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

// supplier returns the supplier in SPDX's syntax. Persons and teams cannot be distinguished.
func (p Package) supplier() string {
	name, rest, _ := strings.Cut(p.Supplier, "<")
	address, _, _ := strings.Cut(rest, ">")
	switch name = strings.TrimSpace(name); {
	case name == "":
		return noAssertion
	case address != "":
		return "Organization: " + name + " (" + address + ")"
	}
	return "Organization: " + name
}

// upstream returns the source package, which advisories refer to, in the form that Syft introduced and scanners read:
// NAME, NAME@VERSION if the version differs, or the name of a source RPM. It returns "" if name and version are the
// package's own, and for manifests of older versions.
func (p Package) upstream() string {
	name, version, _ := strings.Cut(p.Source, "@")
	switch {
	case version != p.Version:
		return p.Source
	case name != p.Name:
		return name
	}
	return ""
}

// purl returns the package URL, by which scanners find known vulnerabilities: https://github.com/package-url/purl-spec.
func (p Package) purl(d distro.Distro) string {
	version := p.Version
	query := url.Values{"arch": {p.Architecture}, "distro": {d.PURL.Distro}}
	if epoch, rest, ok := strings.Cut(version, ":"); ok && d.Packages == distro.RPM {
		version = rest
		query.Set("epoch", epoch)
	}
	if u := p.upstream(); u != "" {
		query.Set("upstream", u)
	}
	return fmt.Sprintf("pkg:%s/%s@%s?%s", d.PURL.Type, url.QueryEscape(p.Name), url.QueryEscape(version), query.Encode())
}

// Package cloudinit makes a node's seed: the three files that cloud-init's NoCloud data source reads, and the ISO image
// that contains them and the manifest of their generation. It must work with cloud-init 19.4 and current versions, so it uses only what both support:
// network-config version 1, and write_files without defer and source.
//
// A seed depends only on its inputs: the same spec, secrets and files give the same bytes on any host, at any time.
// Package roles renders the files.
package cloudinit

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"gopkg.in/yaml.v3"

	"imagegen/cloudinit/nocloud"
	"imagegen/cluster"
)

// Interface is the name of a node's NIC on the cluster's network. cloud-init finds the NIC by its MAC address and
// renames it if necessary. Files that name an interface (keepalived's) use it.
const Interface = "eth0"

// File is a file that cloud-init writes on the node's first boot.
type File struct {
	Path    string // absolute
	Mode    uint32 // permission bits
	Owner   string // user:group; both must be in the image. Empty: root:root
	Content []byte
	Secret  bool // must not be world-readable
}

// Seed is the content of a seed ISO, each file as cloud-init reads it.
type Seed struct {
	MetaData      []byte // YAML
	NetworkConfig []byte // YAML, version 1
	UserData      []byte // YAML after a first line "#cloud-config"
	// Generation is the signed manifest that the seed belongs to (facts.Envelope), and no part of what the node is; nil: none. The
	// same seed may be in several generations.
	Generation []byte
}

// userData is the part of cloud-config that we use, with the fields in a readable order.
type userData struct {
	Hostname         string `yaml:"hostname"`
	FQDN             string `yaml:"fqdn"`
	PreserveHostname bool   `yaml:"preserve_hostname"`
	ManageEtcHosts   bool   `yaml:"manage_etc_hosts"` // false: /etc/hosts is one of the files
	Timezone         string `yaml:"timezone"`
	PackageUpdate    bool   `yaml:"package_update"`
	PackageUpgrade   bool   `yaml:"package_upgrade"`
	Users            []user `yaml:"users"`
	DisableRoot      bool   `yaml:"disable_root"`
	SSHPwauth        bool   `yaml:"ssh_pwauth"`
	// Images have no host keys; a node keeps its own when it gets another seed. One type is enough, and an RSA key
	// would cost seconds at every first boot.
	SSHDeletekeys  bool     `yaml:"ssh_deletekeys"`
	SSHGenkeytypes []string `yaml:"ssh_genkeytypes"`
	writeFiles     `yaml:",inline"`
}

// writeFiles is the rest of cloud-config.
type writeFiles struct {
	WriteFiles []writeFile `yaml:"write_files,omitempty"`
}

type user struct {
	Name              string   `yaml:"name"`
	Shell             string   `yaml:"shell,omitempty"`
	NoUserGroup       bool     `yaml:"no_user_group,omitempty"`
	LockPasswd        bool     `yaml:"lock_passwd"`
	Sudo              string   `yaml:"sudo,omitempty"`
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys,omitempty"`
}

type writeFile struct {
	Path        string `yaml:"path"`
	Owner       string `yaml:"owner"`
	Permissions string `yaml:"permissions"`
	Encoding    string `yaml:"encoding,omitempty"`
	Content     string `yaml:"content"`
}

type metaData struct {
	InstanceID    string `yaml:"instance-id"`
	LocalHostname string `yaml:"local-hostname"`
	// The node checks these before cloud-init sees the seed (package nocloud, which also has the keys' names).
	Cluster string `yaml:"imagegen-cluster"`
	Node    string `yaml:"imagegen-node"`
	Digest  string `yaml:"imagegen-digest"`
}

type networkConfig struct {
	Version int        `yaml:"version"`
	Config  []physical `yaml:"config"`
}

type physical struct {
	Type       string   `yaml:"type"`
	Name       string   `yaml:"name"`
	MACAddress string   `yaml:"mac_address"`
	Subnets    []subnet `yaml:"subnets"`
}

type subnet struct {
	Type           string   `yaml:"type"`
	Address        string   `yaml:"address"` // with prefix length
	Gateway        string   `yaml:"gateway,omitempty"`
	DNSNameservers []string `yaml:"dns_nameservers,omitempty"`
}

// New makes the seed of a node of the cluster with this ID. Files are written in the given order.
func New(spec *cluster.Spec, clusterID string, node cluster.Node, files []File) (Seed, error) {
	var s Seed
	err := s.make(spec, clusterID, node, files)
	if err != nil {
		return Seed{}, fmt.Errorf("seed of %s: %w", node.Name, err)
	}
	return s, nil
}

func (s *Seed) make(spec *cluster.Spec, clusterID string, node cluster.Node, files []File) error {
	ud := userData{
		Hostname: node.Name,
		// Without a domain, like the entries of /etc/hosts, so that hostname -f agrees.
		FQDN:           node.Name,
		Timezone:       spec.Timezone,
		DisableRoot:    true,
		SSHGenkeytypes: []string{"ed25519"},
		// The list must not be empty, and without the list cloud-init creates the distro's default user. Root exists
		// anyway; this only locks its password again.
		Users: []user{{Name: "root", LockPasswd: true}},
	}
	if len(spec.SSH.Keys) > 0 {
		u := user{Name: spec.SSH.User, LockPasswd: true, SSHAuthorizedKeys: spec.SSH.Keys}
		if u.Name == "root" {
			ud.DisableRoot = false
		} else {
			u.Shell, u.Sudo = "/bin/bash", "ALL=(ALL) NOPASSWD:ALL"
			// Otherwise useradd refuses a user with the name of an existing group, such as Debian's operator or staff.
			u.NoUserGroup = true
		}
		ud.Users = []user{u}
	}
	var err error
	if s.UserData, err = marshal("#cloud-config\n", ud); err != nil {
		return err
	}
	if back, err := unmarshal(s.UserData); err != nil || !reflect.DeepEqual(back, ud) {
		return fmt.Errorf("user-data does not decode to what was encoded (%v)", err)
	}
	seen := map[string]bool{}
	parts := [][]byte{s.UserData}
	for _, f := range files {
		item, err := newItem(f)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if seen[f.Path] {
			return fmt.Errorf("%s is there twice", f.Path)
		}
		seen[f.Path] = true
		if len(parts) == 1 {
			parts = append(parts, []byte(listHead))
		}
		parts = append(parts, item)
	}
	s.UserData = slices.Concat(parts...)

	sub := subnet{Type: "static", Address: fmt.Sprintf("%s/%d", node.IP, spec.Network.CIDR.Bits())}
	if spec.Network.Gateway.IsValid() {
		sub.Gateway = spec.Network.Gateway.String()
	}
	for _, d := range spec.Network.DNS {
		sub.DNSNameservers = append(sub.DNSNameservers, d.String())
	}
	nc := networkConfig{Version: 1, Config: []physical{{
		Type: "physical", Name: Interface, MACAddress: strings.ToLower(node.MAC), Subnets: []subnet{sub},
	}}}

	if s.NetworkConfig, err = marshal("", nc); err != nil {
		return err
	}
	want := nocloud.Identity{Cluster: clusterID, Node: node.Name, Digest: nocloud.Digest(s.UserData, s.NetworkConfig)}
	want.Instance = nocloud.InstanceID(spec.Cluster, want)
	s.MetaData, err = marshal("", metaData{
		InstanceID: want.Instance, LocalHostname: node.Name, Cluster: want.Cluster, Node: want.Node, Digest: want.Digest,
	})
	if err != nil {
		return err
	}
	if have, err := (nocloud.Seed)(*s).Identity(); err != nil || have != want {
		return fmt.Errorf("meta-data does not decode to what was encoded (%v)", err)
	}
	return nil
}

// listHead starts the list of files in user-data.
const listHead = "write_files:\n"

// items caches the last encoded file for each path: most files, and all large ones, are the same on all nodes of a
// role, and encoding YAML is most of the work for a seed.
var items sync.Map // path to *item

// item is a file and its encoded list entry.
type item struct {
	file File
	yaml []byte
}

func newItem(f File) ([]byte, error) {
	if v, ok := items.Load(f.Path); ok {
		last := v.(*item)
		if f.Mode == last.file.Mode && f.Owner == last.file.Owner && f.Secret == last.file.Secret && bytes.Equal(f.Content, last.file.Content) {
			return last.yaml, nil
		}
	}
	w, err := newWriteFile(f)
	if err != nil {
		return nil, err
	}
	list := writeFiles{[]writeFile{w}}
	text, err := marshal("", list)
	if err != nil {
		return nil, err
	}
	back, err := unmarshal(text)
	entry, ok := bytes.CutPrefix(text, []byte(listHead))
	if err != nil || !ok || !reflect.DeepEqual(back.writeFiles, list) {
		return nil, fmt.Errorf("does not decode to what was encoded (%v)", err)
	}
	f.Content = bytes.Clone(f.Content) // the caller may change its slice
	items.Store(f.Path, &item{f, entry})
	return entry, nil
}

func newWriteFile(f File) (writeFile, error) {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path {
		return writeFile{}, fmt.Errorf("not a clean absolute path")
	}
	if f.Mode&^0o777 != 0 {
		// cloud-init changes the owner last, which clears setuid bits.
		return writeFile{}, fmt.Errorf("mode %#o: cloud-init can set permissions up to 0777 only", f.Mode)
	}
	if f.Secret && f.Mode&worldReadable != 0 {
		return writeFile{}, fmt.Errorf("mode %#o makes a file with a secret world-readable: want 0600 or 0640", f.Mode)
	}
	w := writeFile{Path: f.Path, Owner: f.Owner, Permissions: fmt.Sprintf("%04o", f.Mode), Content: string(f.Content)}
	if w.Owner == "" {
		w.Owner = "root:root"
	}
	switch {
	case len(f.Content) > maxReadable:
		packed, err := pack(f.Content)
		if err != nil {
			return writeFile{}, err
		}
		w.Encoding, w.Content = "gz+b64", base64.StdEncoding.EncodeToString(packed)
	case !plain(f.Content):
		w.Encoding, w.Content = "b64", base64.StdEncoding.EncodeToString(f.Content)
	}
	return w, nil
}

// Files returns the files that cloud-init writes from the seed.
func (s Seed) Files() ([]File, error) {
	ud, err := unmarshal(s.UserData)
	if err != nil {
		return nil, fmt.Errorf("user-data: %w", err)
	}
	var files []File
	for _, w := range ud.WriteFiles {
		mode, err := strconv.ParseUint(w.Permissions, 8, 32)
		if err != nil {
			return nil, fmt.Errorf("user-data: %s: %w", w.Path, err)
		}
		content := []byte(w.Content)
		if w.Encoding != "" {
			if content, err = base64.StdEncoding.DecodeString(w.Content); err != nil {
				return nil, fmt.Errorf("user-data: %s: %w", w.Path, err)
			}
		}
		if w.Encoding == "gz+b64" {
			z, err := gzip.NewReader(bytes.NewReader(content))
			if err == nil {
				content, err = io.ReadAll(z)
			}
			if err != nil {
				return nil, fmt.Errorf("user-data: %s: %w", w.Path, err)
			}
		}
		files = append(files, File{Path: w.Path, Mode: uint32(mode), Owner: w.Owner, Content: content})
	}
	return files, nil
}

// maxReadable is the size in bytes above which a file is compressed. Only clusters with hundreds of nodes have such
// files (every seed lists all nodes).
const maxReadable = 16 << 10

func pack(content []byte) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(content); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

const worldReadable = 0o004

// plain reports whether content can be a YAML block: ASCII text (cloud-init 19.4 on Python 2 may mishandle anything
// else) that does not begin with white space (libraries disagree about the block's indentation then).
func plain(content []byte) bool {
	for _, c := range content {
		if c != '\n' && c != '\t' && (c < ' ' || c > '~') {
			return false
		}
	}
	return len(content) == 0 || content[0] > ' '
}

// marshal encodes v as YAML after head.
func marshal(head string, v any) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(head)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func unmarshal(data []byte) (userData, error) {
	var ud userData
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(&ud)
	return ud, err
}

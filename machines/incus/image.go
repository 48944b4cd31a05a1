package incus

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"time"

	"imagegen/internal/ext4"
	"imagegen/machines"
)

// writeImage writes the root file system of a role's disk, unchanged, as an image for Incus: a compressed tar archive that begins with
// Incus' metadata. Equal input gives equal output.
func writeImage(ctx context.Context, w io.Writer, disk string, properties map[string]string) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := ext4.Open(f)
	if err != nil {
		return fmt.Errorf("%s cannot become a container: %w", disk, err)
	}
	buffered := bufio.NewWriterSize(w, 1<<20)
	packed, err := gzip.NewWriterLevel(buffered, gzip.BestSpeed)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(packed)
	metadata, err := json.Marshal(map[string]any{"architecture": "x86_64", "creation_date": 1, "properties": properties}) // JSON is YAML
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&tar.Header{Name: "metadata.yaml", Mode: 0o644, Size: int64(len(metadata))}); err != nil {
		return err
	}
	if _, err := archive.Write(metadata); err != nil {
		return err
	}
	names := map[uint32]string{} // first names of files that have several
	if err := root.Walk(func(path string, n *ext4.Node) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := add(archive, path, n, names); err != nil {
			return fmt.Errorf("%s of %s: %w", path, disk, err)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, c := range []func() error{archive.Close, packed.Close, buffered.Flush} {
		if err := c(); err != nil {
			return err
		}
	}
	return nil
}

// add adds a file of the root file system to the archive.
func add(archive *tar.Writer, path string, n *ext4.Node, names map[uint32]string) error {
	h := &tar.Header{Name: "rootfs/" + path, Mode: int64(n.Mode & 0o7777), Uid: int(n.UID), Gid: int(n.GID), ModTime: n.Modified.Truncate(time.Second)}
	for name, value := range n.Attributes {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	switch n.Mode & ext4.TypeMask {
	case ext4.Regular:
		if first, is := names[n.Inode]; is {
			h.Typeflag, h.Linkname, h.PAXRecords = tar.TypeLink, first, nil
			return archive.WriteHeader(h)
		}
		if n.Links > 1 {
			names[n.Inode] = h.Name
		}
		h.Typeflag, h.Size = tar.TypeReg, n.Size
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(archive, n.Open())
		return err
	case ext4.Directory:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case ext4.Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.Target
	case ext4.CharDev, ext4.BlockDev:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(n.Major), int64(n.Minor)
		if n.Mode&ext4.TypeMask == ext4.BlockDev {
			h.Typeflag = tar.TypeBlock
		}
	case ext4.FIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil // sockets are made by the programs that listen on them
	}
	return archive.WriteHeader(h)
}

// use keeps an image from being dropped until release is called.
func (p *Provider) use(identity string) (release func()) {
	add := func(n int) {
		p.images.Lock()
		defer p.images.Unlock()
		p.making[identity] += n
	}
	add(1)
	return func() { add(-1) }
}

// dropOldImages removes a role's images of earlier builds that no machine uses any more. One that cannot be removed, for example because
// a host is down, is tried again next time.
func (p *Provider) dropOldImages(ctx context.Context, role string) error {
	p.images.Lock()
	defer p.images.Unlock()
	images, err := p.ownImages(ctx)
	if err != nil {
		return err
	}
	images = slices.DeleteFunc(images, func(i image) bool {
		return i.Properties["description"] != description(role) || i.Properties[imageKey] == "" || p.making[i.Properties[imageKey]] > 0
	})
	if len(images) == 0 {
		return nil
	}
	instances, err := p.instances(ctx)
	if err != nil {
		return err
	}
	for _, i := range images {
		if slices.ContainsFunc(instances, func(in instance) bool { return in.unreachable() || in.Config[imageKey] == i.Properties[imageKey] }) {
			continue
		}
		if err := p.change(); err != nil {
			return err
		}
		if err := p.client.query(ctx, "DELETE", p.client.path(nil, "images", i.Fingerprint), nil, nil); err != nil {
			p.config.Log("an earlier image of %s is left in Incus: %v", role, err)
		}
	}
	return nil
}

// description is that of a role's images.
func description(role string) string { return "imagegen " + role }

// ensureImage makes sure that Incus has a machine's image, and returns its fingerprint there.
func (p *Provider) ensureImage(ctx context.Context, m *machines.Machine) (fingerprint string, err error) {
	p.images.Lock()
	defer p.images.Unlock()
	for range 2 { // the second finds what the first has imported
		all, err := p.ownImages(ctx)
		if err != nil {
			return "", err
		}
		unfinished := ""
		for _, i := range all {
			switch i.Properties[imageKey] {
			case m.Image.Identity:
				return i.Fingerprint, nil
			case "":
				unfinished = i.Fingerprint
			}
		}
		if unfinished != "" { // it may be incomplete
			if err := p.do(ctx, "DELETE", p.client.path(nil, "images", unfinished), nil); err != nil {
				return "", fmt.Errorf("remove an incomplete image: %w", err)
			}
		}
		if err := p.change(); err != nil {
			return "", err
		}
		p.config.Log("Incus imports the image of %s", m.Role)
		if err := p.client.importImage(ctx, clusterKey+"="+p.config.ClusterID, func(w io.Writer) error {
			return writeImage(ctx, w, m.Image.Path, map[string]string{"description": description(m.Role), clusterKey: p.config.ClusterID, "image": m.Image.Identity})
		}); err != nil {
			return "", fmt.Errorf("import the image %s: %w", m.Image.Path, err)
		}
		all, err = p.ownImages(ctx)
		if err != nil {
			return "", err
		}
		for _, i := range all {
			if i.Properties["image"] == m.Image.Identity && i.Properties[imageKey] == "" {
				if err := p.do(ctx, "PATCH", p.client.path(nil, "images", i.Fingerprint), object{"properties": map[string]string{imageKey: m.Image.Identity}}); err != nil {
					return "", fmt.Errorf("import the image %s: %w", m.Image.Path, err)
				}
			}
		}
	}
	return "", fmt.Errorf("the image %s was imported, but Incus does not list it", m.Image.Path)
}

func (p *Provider) ownImages(ctx context.Context) ([]image, error) {
	var all []image
	if err := p.client.query(ctx, "GET", p.client.path(url.Values{"recursion": {"1"}}, "images"), nil, &all); err != nil {
		return nil, fmt.Errorf("list the images of the Incus project %s: %w", p.client.project, err)
	}
	return slices.DeleteFunc(all, func(i image) bool { return !p.ours(i.Properties) }), nil
}

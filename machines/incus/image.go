package incus

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"imagegen/internal/ext4"
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

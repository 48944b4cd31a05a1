package images

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"imagegen/internal/ctxio"
	"imagegen/roles"
)

// unpack puts what is below the one folder at the top of an archive into the folder that d names. Its files belong to root and
// can be read by everyone, whatever the archive says.
func (b *bake) unpack(ctx context.Context, root *os.Root, d roles.Download) error {
	archive := filepath.Join(b.Work, "archive.tar.gz")
	// The copy is what is unpacked, for it is what was checked.
	if err := b.config.cache().store().Take(ctx, d.SHA256, archive, d.URL); err != nil {
		return err
	}
	defer os.Remove(archive)
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := untar(ctxio.Reader(ctx, f), root, strings.TrimPrefix(d.Path, "/")); err != nil {
		return fmt.Errorf("unpack %s: %w", d.URL, err)
	}
	return nil
}

// untar unpacks a compressed archive below dir in root.
func untar(r io.Reader, root *os.Root, dir string) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	top := ""
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if err == io.EOF {
			if top == "" {
				return fmt.Errorf("it is empty")
			}
			_, err := io.Copy(io.Discard, z) // the end has a checksum
			return err
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("%s leads out of it", h.Name)
		}
		first, name, below := strings.Cut(filepath.Clean(h.Name), "/")
		if top == "" {
			top = first
		}
		if first != top || !below && h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%s is not below %s: one folder must hold everything", h.Name, top)
		}
		path := filepath.Join(dir, name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(path, 0o755)
		case tar.TypeReg:
			if err = root.MkdirAll(filepath.Dir(path), 0o755); err == nil {
				err = writeBelow(root, path, t)
			}
		default:
			err = fmt.Errorf("%s is neither a file nor a folder", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

func writeBelow(root *os.Root, path string, r io.Reader) error {
	f, err := root.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

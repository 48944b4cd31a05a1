package format

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"

	"imagegen/internal/ctxio"
	"imagegen/internal/program"
	"imagegen/internal/xz"
)

// Unpack writes the disk in the file at from to a new raw file. The format is detected from the first bytes: qcow2 or
// raw, optionally packed with gzip, xz or tar, or with several of them.
func Unpack(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return unpackStream(ctx, f, from, to, 0)
}

// maxWraps is the maximum number of nested gzip, xz and tar layers.
const maxWraps = 4

// unpackStream is Unpack for a stream. from is the file whose content the stream is, or empty.
func unpackStream(ctx context.Context, stream io.Reader, from, to string, wraps int) error {
	if wraps > maxWraps {
		return errors.New("it has too many layers of packing")
	}
	r := bufio.NewReaderSize(ctxio.Reader(ctx, stream), 1<<20)
	head, err := r.Peek(512)
	if err != nil && err != io.EOF {
		return err
	}
	switch {
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		if from == "" {
			from = to + ".qcow2"
			defer os.Remove(from)
			if err := writeStream(ctx, r, from); err != nil {
				return err
			}
		}
		return program.Run(ctx, "qemu-utils", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", from, to)
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		return errors.Join(unpackStream(ctx, z, "", to, wraps+1), z.Close())
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return xz.Read(ctx, r, func(out io.Reader) error { return unpackStream(ctx, out, "", to, wraps+1) })
	case len(head) == 512 && string(head[257:262]) == "ustar":
		archive := tar.NewReader(r)
		for {
			h, err := archive.Next()
			if err == io.EOF {
				return errors.New("the archive contains no disk")
			}
			if err != nil {
				return err
			}
			if h.Typeflag == tar.TypeReg && h.Size >= 1<<20 { // skip checksums and notes
				return unpackStream(ctx, archive, "", to, wraps+1)
			}
		}
	case len(head) == 512 && head[510] == 0x55 && head[511] == 0xaa:
		return writeStream(ctx, r, to)
	}
	return errors.New("it is neither a qcow2 nor a raw disk with a boot sector, nor one of them packed with gzip, xz or tar")
}

// writeStream writes a new file. Blocks of zeros become holes.
func writeStream(ctx context.Context, r io.Reader, path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var size int64
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		if err := ctx.Err(); err != nil { // a small packed file may expand to a lot
			return err
		}
		// Not io.ReadFull: it returns ErrUnexpectedEOF for a short read, as the decompressors do for a truncated file.
		n, err := 0, error(nil)
		for n < len(buf) && err == nil {
			var m int
			m, err = r.Read(buf[n:])
			n += m
		}
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := f.WriteAt(buf[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		switch err {
		case nil:
		case io.EOF:
			return f.Truncate(size)
		default:
			return err
		}
	}
}

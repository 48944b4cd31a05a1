package nocloud

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	sector       = 2048
	volumeSector = 16
	volumeLabel  = "cidata"
	dirFlag      = 2

	// maxFile limits what is read into memory, in bytes. A seed has some 50 KiB.
	maxFile = 8 << 20
)

// ErrNoSeed means that a device does not contain a volume for cloud-init.
var ErrNoSeed = errors.New("no ISO 9660 volume labelled " + volumeLabel)

// ReadISO reads a seed from an ISO 9660 image as written by package cloudinit. It validates everything. A device may be
// longer than the image.
func ReadISO(r io.ReaderAt) (Seed, error) {
	volume, err := extent(r, volumeSector, sector)
	if err != nil {
		return Seed{}, err
	}
	if string(volume[:7]) != "\x01CD001\x01" || !strings.EqualFold(strings.TrimRight(string(volume[40:72]), " "), volumeLabel) {
		return Seed{}, ErrNoSeed
	}
	_, at, length, _, err := readRecord(volume[156:190])
	if err != nil {
		return Seed{}, fmt.Errorf("root directory: %w", err)
	}
	dir, err := extent(r, at, min(length, sector)) // four files fit into one
	if err != nil {
		return Seed{}, fmt.Errorf("root directory: %w", err)
	}
	var s Seed
	seen := map[string]bool{}
	for len(dir) > 0 && dir[0] != 0 {
		n := int(dir[0])
		if n > len(dir) {
			return Seed{}, errors.New("root directory: an entry leaves its sector")
		}
		name, at, length, flags, err := readRecord(dir[:n])
		if err != nil {
			return Seed{}, fmt.Errorf("root directory: %w", err)
		}
		dir = dir[n:]
		for _, f := range s.files() {
			if name != f.name+";1" || flags&dirFlag != 0 {
				continue
			}
			if seen[f.name] {
				return Seed{}, fmt.Errorf("%s is there twice", f.name)
			}
			seen[f.name] = true
			if *f.data, err = extent(r, at, length); err != nil {
				return Seed{}, fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	for _, f := range s.files() {
		if !seen[f.name] && f.name != GenerationFile {
			return Seed{}, fmt.Errorf("no %s", f.name)
		}
	}
	return s, nil
}

// extent returns length bytes starting at a sector.
func extent(r io.ReaderAt, at, length uint32) ([]byte, error) {
	if length > maxFile {
		return nil, fmt.Errorf("%d bytes are too many for a seed", length)
	}
	data := make([]byte, length)
	if n, err := r.ReadAt(data, int64(at)*sector); n < len(data) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return data, nil
}

// readRecord decodes a directory record.
func readRecord(b []byte) (name string, at, length uint32, flags byte, err error) {
	const fixed = 33 // bytes before the name
	if len(b) < fixed || fixed+int(b[32]) > len(b) {
		return "", 0, 0, 0, errors.New("an entry's length is wrong")
	}
	return string(b[fixed : fixed+int(b[32])]), binary.LittleEndian.Uint32(b[2:]), binary.LittleEndian.Uint32(b[10:]), b[25], nil
}

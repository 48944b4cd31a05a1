package cloudinit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kdomanski/iso9660"

	"imagegen/cloudinit/nocloud"
	"imagegen/internal/atomicfile"
)

// We lay out the image ourselves; the iso9660 library encodes and decodes the records. Its ImageWriter is unusable for
// seeds: it embeds the current time and the host's OS, and stages files (secrets!) in $TMPDIR.
//
//	sector 0   system area, empty
//	      16   primary volume descriptor
//	      17   volume descriptor set terminator
//	      18   path table, little-endian; 19: the same, big-endian
//	      20   root directory
//	      21…  the files, one after the other
const (
	sector       = 2048
	volumeSector = 16
	pathSector   = 18
	rootSector   = 20
	fileSector   = 21

	volumeLabel = "cidata"
	dirFlag     = 2 // of DirectoryEntry.FileFlags

	// maxISO limits what is read into memory, in bytes. A seed has some 50 KiB.
	maxISO = 16 << 20
)

// epoch is the date in every image. It must not be zero, because blkid derives the volume's UUID from it.
var epoch = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// content is a file on the ISO.
type content struct {
	name string
	data *[]byte
}

// contents returns the seed's files by their names on the ISO, sorted by name as ISO 9660 requires.
func (s *Seed) contents() []content {
	return []content{
		{nocloud.GenerationFile, &s.Generation},
		{"meta-data", &s.MetaData},
		{"network-config", &s.NetworkConfig},
		{"user-data", &s.UserData},
	}
}

// present is contents without a generation that is not there.
func (s *Seed) present() []content {
	if s.Generation == nil {
		return s.contents()[1:]
	}
	return s.contents()
}

// FilesOnISO returns the names and contents of the files on the ISO, for machines that get them in a folder.
func (s Seed) FilesOnISO() map[string][]byte {
	files := map[string][]byte{}
	for _, c := range s.present() {
		files[c.name] = *c.data
	}
	return files
}

// WriteISO writes the seed to path, as an ISO 9660 image labelled cidata with mode 0600. The file is written to a
// temporary name, synced, read back and compared, and then renamed; after an error, path is unchanged. Equal seeds give
// equal files.
func (s Seed) WriteISO(path string) (err error) {
	image, err := s.encode()
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, base+".tmp*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err := f.Chmod(0o600); err != nil { // whatever the umask
		return err
	}
	if err := atomicfile.OwnFile(f); err != nil {
		return err
	}
	if _, err := f.Write(image); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	written := make([]byte, len(image))
	if _, err := f.ReadAt(written, 0); err != nil {
		return fmt.Errorf("reading it back: %w", err)
	}
	back, err := decode(written)
	if err != nil {
		return fmt.Errorf("reading it back: %w", err)
	}
	if !back.equal(s) {
		return errors.New("reading it back: the content is not what was written")
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// IsAt reports whether path contains exactly this seed and is readable only by its owner.
func (s Seed) IsAt(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != 0o600 {
		return false
	}
	have, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	want, err := s.encode()
	return err == nil && bytes.Equal(have, want)
}

// ReadISO reads a seed written by WriteISO. Any other image is an error, even one with additional files.
func ReadISO(path string) (Seed, error) {
	f, err := os.Open(path)
	if err != nil {
		return Seed{}, fmt.Errorf("read the seed: %w", err)
	}
	defer f.Close()
	s, err := readISO(f)
	if err != nil {
		return Seed{}, fmt.Errorf("%s is not a seed: %w", path, err)
	}
	return s, nil
}

func readISO(r io.Reader) (Seed, error) {
	image, err := io.ReadAll(io.LimitReader(r, maxISO+1))
	if err != nil {
		return Seed{}, err
	}
	if len(image) > maxISO {
		return Seed{}, fmt.Errorf("larger than %d MiB", maxISO>>20)
	}
	return decode(image)
}

func (s *Seed) equal(other Seed) bool {
	return bytes.Equal(s.UserData, other.UserData) && bytes.Equal(s.MetaData, other.MetaData) &&
		bytes.Equal(s.NetworkConfig, other.NetworkConfig) && bytes.Equal(s.Generation, other.Generation)
}

// encode returns the ISO image.
func (s Seed) encode() ([]byte, error) {
	root := record("\x00", rootSector, sector, dirFlag)
	parent := record("\x01", rootSector, sector, dirFlag)
	records := []*iso9660.DirectoryEntry{root, parent}
	next := fileSector
	for _, c := range s.present() {
		if len(*c.data) > maxISO/2 {
			return nil, fmt.Errorf("%s has %d bytes: too much for a seed", c.name, len(*c.data))
		}
		records = append(records, record(c.name+";1", next, len(*c.data), 0))
		next += (len(*c.data) + sector - 1) / sector
	}
	if next*sector > maxISO {
		return nil, fmt.Errorf("%d MiB is too much for a seed", next*sector>>20)
	}

	image := make([]byte, next*sector)
	at := func(n int) []byte { return image[n*sector:] }

	// The root's entry: lengths of name and attributes, sector, number of the parent (itself), name, padding.
	little := []byte{1, 0, rootSector, 0, 0, 0, 1, 0, 0, 0}
	big := []byte{1, 0, 0, 0, 0, rootSector, 0, 1, 0, 0}
	copy(at(pathSector), little)
	copy(at(pathSector+1), big)

	date := iso9660.VolumeDescriptorTimestampFromTime(epoch)
	volume, err := iso9660.PrimaryVolumeDescriptorBody{
		SystemIdentifier:              "LINUX",
		VolumeIdentifier:              volumeLabel,
		VolumeSpaceSize:               int32(next),
		VolumeSetSize:                 1,
		VolumeSequenceNumber:          1,
		LogicalBlockSize:              sector,
		PathTableSize:                 int32(len(little)),
		TypeLPathTableLoc:             pathSector,
		TypeMPathTableLoc:             pathSector + 1,
		RootDirectoryEntry:            root,
		ApplicationIdentifier:         "IMAGEGEN",
		VolumeCreationDateAndTime:     date,
		VolumeModificationDateAndTime: date,
		VolumeEffectiveDateAndTime:    date,
		FileStructureVersion:          1,
	}.MarshalBinary()
	if err != nil {
		return nil, err
	}
	copy(volume, "\x01CD001\x01")
	copy(at(volumeSector), volume)
	copy(at(volumeSector+1), "\xffCD001\x01")

	dir := at(rootSector)[:0:sector]
	for _, r := range records {
		b, err := r.MarshalBinary()
		if err != nil {
			return nil, err
		}
		dir = append(dir, b...)
	}
	// A zero marks the end of a directory; some readers miss the end if a directory fills its sectors exactly.
	if len(dir) >= sector {
		return nil, errors.New("too many files for the directory")
	}
	for i, c := range s.present() {
		copy(at(int(records[2+i].ExtentLocation)), *c.data)
	}
	return image, nil
}

func record(name string, at, size int, flags byte) *iso9660.DirectoryEntry {
	return &iso9660.DirectoryEntry{
		ExtentLocation:       int32(at),
		ExtentLength:         uint32(size),
		RecordingDateTime:    iso9660.RecordingTimestamp(epoch),
		FileFlags:            flags,
		VolumeSequenceNumber: 1,
		Identifier:           name,
	}
}

// decode returns the files on an ISO image, as slices of it. It validates everything, because the image may be damaged.
func decode(image []byte) (Seed, error) {
	volume, err := extent(image, volumeSector, sector)
	if err != nil || string(volume[:7]) != "\x01CD001\x01" {
		return Seed{}, errors.New("no ISO 9660 image")
	}
	if label := strings.TrimRight(string(volume[40:72]), " "); label != volumeLabel {
		return Seed{}, fmt.Errorf("the label is %q, want %q", label, volumeLabel)
	}
	root, err := readRecord(volume[156:190])
	if err != nil {
		return Seed{}, fmt.Errorf("root directory: %w", err)
	}
	if root.FileFlags&dirFlag == 0 || root.ExtentLength != sector {
		return Seed{}, errors.New("root directory: want a directory of one sector")
	}
	dir, err := extent(image, int64(root.ExtentLocation), int64(root.ExtentLength))
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
		r, err := readRecord(dir[:n])
		if err != nil {
			return Seed{}, fmt.Errorf("root directory: %w", err)
		}
		dir = dir[n:]
		if r.Identifier == "\x00" || r.Identifier == "\x01" {
			continue
		}
		into := s.named(r.Identifier)
		if into == nil || r.FileFlags != 0 {
			return Seed{}, fmt.Errorf("%q does not belong on a seed", r.Identifier)
		}
		if seen[r.Identifier] {
			return Seed{}, fmt.Errorf("%q is there twice", r.Identifier)
		}
		seen[r.Identifier] = true
		content, err := extent(image, int64(r.ExtentLocation), int64(r.ExtentLength))
		if err != nil {
			return Seed{}, fmt.Errorf("%q: %w", r.Identifier, err)
		}
		*into = content
	}
	for _, c := range s.contents()[1:] {
		if !seen[c.name+";1"] {
			return Seed{}, fmt.Errorf("no %s", c.name)
		}
	}
	return s, nil
}

// named returns the field for the file with this ISO 9660 name, or nil.
func (s *Seed) named(identifier string) *[]byte {
	for _, c := range s.contents() {
		if identifier == c.name+";1" {
			return c.data
		}
	}
	return nil
}

// extent returns length bytes starting at a sector.
func extent(image []byte, at, length int64) ([]byte, error) {
	if at < 0 || length < 0 || at*sector+length > int64(len(image)) {
		return nil, errors.New("is outside the image, which may be truncated")
	}
	return image[at*sector:][:length], nil
}

// readRecord decodes a directory record. It first checks the lengths that the library relies on.
func readRecord(b []byte) (*iso9660.DirectoryEntry, error) {
	const fixed = 33 // bytes before the name
	if len(b) <= fixed || int(b[0]) != len(b) {
		return nil, errors.New("an entry's length is wrong")
	}
	if name := int(b[32]); name == 0 || fixed+name+(name+1)%2 > len(b) {
		return nil, errors.New("a name's length is wrong")
	}
	var r iso9660.DirectoryEntry
	if err := r.UnmarshalBinary(b); err != nil {
		return nil, err
	}
	return &r, nil
}

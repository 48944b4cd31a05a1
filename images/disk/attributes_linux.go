package disk

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"imagegen/internal/xattr"
)

// attribute is an extended attribute in ext4's representation.
type attribute struct {
	index byte // stands for the prefix of the name
	name  string
	value []byte
}

// attributes reads a file's user attributes, capabilities and ACLs. It ignores all others: they belong to the build
// host.
func attributes(path string) ([]attribute, error) {
	buf := make([]byte, 4096)
	n, err := xattr.Llist(path, buf)
	if errors.Is(err, syscall.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attributes of %s: %w", path, err)
	}
	var all []attribute
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		a := attribute{}
		switch rest, user := strings.CutPrefix(name, "user."); {
		case user && !strings.HasPrefix(name, "user.overlay."):
			a.index, a.name = 1, rest
		case name == "system.posix_acl_access":
			a.index = 2
		case name == "system.posix_acl_default":
			a.index = 3
		case name == "security.capability":
			a.index, a.name = 6, "capability"
		default:
			continue
		}
		value := make([]byte, 4096)
		n, err := xattr.Lget(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		if a.value = value[:n]; a.index == 2 || a.index == 3 {
			a.value = accessList(a.value)
		}
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b attribute) int {
		if a.index != b.index {
			return int(a.index) - int(b.index)
		}
		if len(a.name) != len(b.name) {
			return len(a.name) - len(b.name)
		}
		return strings.Compare(a.name, b.name)
	})
	return all, nil
}

// accessList converts an ACL from the system call's format to ext4's, which stores IDs only for named users and groups.
func accessList(v []byte) []byte {
	out := le.AppendUint32(nil, 1)
	for i := 4; i+8 <= len(v); i += 8 {
		out = append(out, v[i:i+4]...)
		if tag := le.Uint16(v[i:]); tag == 0x02 || tag == 0x08 {
			out = append(out, v[i+4:i+8]...)
		}
	}
	return out
}

// putAttributes writes attributes to the space after an inode's fields.
func putAttributes(room []byte, all []attribute) error {
	if len(all) == 0 {
		return nil
	}
	le.PutUint32(room, 0xea020000)
	room = room[4:]
	at, end := 0, len(room)
	for _, a := range all {
		size := (16 + len(a.name) + 3) &^ 3
		end -= (len(a.value) + 3) &^ 3
		if at+size+4 > end {
			return errors.New("its extended attributes do not fit into the inode, and imagegen writes no others")
		}
		x := room[at:]
		x[0], x[1] = byte(len(a.name)), a.index
		le.PutUint16(x[2:], uint16(end))
		le.PutUint32(x[8:], uint32(len(a.value)))
		copy(x[16:], a.name)
		copy(room[end:], a.value)
		at += size
	}
	return nil
}

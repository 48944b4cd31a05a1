// Package xattr reads the extended attributes of a symbolic link itself. Package syscall reads only those of what it leads to.
package xattr

import (
	"syscall"
	"unsafe"
)

// Lget reads an attribute into value and returns its size in bytes: lgetxattr(2).
func Lget(path, name string, value []byte) (int, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	q, err := syscall.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	n, _, errno := syscall.Syscall6(syscall.SYS_LGETXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(q)), uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Llist reads the names of all attributes, each of which ends with a zero, and returns their size in bytes: llistxattr(2).
func Llist(path string, names []byte) (int, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	n, _, errno := syscall.Syscall(syscall.SYS_LLISTXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&names[0])), uintptr(len(names)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

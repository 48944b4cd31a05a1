package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// sudoUser returns the user who called sudo, if this process is root through sudo.
func sudoUser() (uid, gid int, ok bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	uid, err1 := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, err2 := strconv.Atoi(os.Getenv("SUDO_GID"))
	return uid, gid, err1 == nil && err2 == nil && uid > 0 && gid >= 0
}

// Own gives a file or folder to the user who called sudo, so that the output of sudo imagegen build can be used and
// removed without sudo. Without sudo it does nothing. It does not follow symbolic links.
func Own(path string) error {
	uid, gid, ok := sudoUser()
	if !ok {
		return nil
	}
	return os.Lchown(path, uid, gid)
}

// OwnFile is [Own] of an open file.
func OwnFile(f *os.File) error {
	uid, gid, ok := sudoUser()
	if !ok {
		return nil
	}
	return f.Chown(uid, gid)
}

// MakeDirs creates a folder with mode 0755 and its missing parents. New folders belong to the user who called sudo;
// existing ones keep their owner.
func MakeDirs(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return nil
	}
	if err == nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	}
	if above := filepath.Dir(path); above != path {
		if err := MakeDirs(above); err != nil {
			return err
		}
	}
	err = os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrExist) { // created by a concurrent run
		return nil
	}
	if err != nil {
		return err
	}
	return Own(path)
}

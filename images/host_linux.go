package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"imagegen/images/disk"
	"imagegen/internal/filelock"
)

// tools are the programs that a bake runs on this machine, the Debian packages that have them, and the distro that needs
// them, if not all do.
var tools = []struct{ program, pkg, distro string }{
	{"mmdebstrap", "mmdebstrap", "debian12"},
	{"extlinux", "extlinux", "debian12"},
	{"sfdisk", "fdisk", "centos7"},
	{"mkfs.ext4", "e2fsprogs", "debian12"},
	{"e2fsck", "e2fsprogs", ""},
	{"resize2fs", "e2fsprogs", "centos7"},
	{"unshare", "util-linux", ""},
	{"losetup", "mount", ""},
	{"mount", "mount", ""},
	{"apt-get", "apt", "debian12"},
	{"dpkg-deb", "dpkg", "debian12"},
	{"blkid", "util-linux", "centos7"},
	{"xfs_growfs", "xfsprogs", "centos7"},
	{"xfs_repair", "xfsprogs", "centos7"},
	{"qemu-img", "qemu-utils", "centos7"},
}

// checkTools makes sure that a distro's images can be baked here, with the programs in path, and names all that is
// missing at once.
func checkTools(path, distro string) error {
	if os.Geteuid() != 0 {
		return errors.New("baking mounts disks and changes root, which only root may: run it with sudo")
	}
	var missing, packages []string
	add := func(what, pkg string) {
		missing = append(missing, what)
		if !strings.Contains(" "+strings.Join(packages, " ")+" ", " "+pkg+" ") {
			packages = append(packages, pkg)
		}
	}
	for _, t := range tools {
		if t.distro != "" && t.distro != distro {
			continue
		}
		if !slices.ContainsFunc(filepath.SplitList(path), func(dir string) bool {
			_, err := exec.LookPath(filepath.Join(dir, t.program))
			return err == nil
		}) {
			add(t.program, t.pkg)
		}
	}
	if _, err := os.Stat(disk.BootSector); err != nil && distro == "debian12" {
		add(disk.BootSector, "syslinux-common")
	}
	if len(missing) > 0 {
		return fmt.Errorf("baking needs %s: apt-get install %s", strings.Join(missing, ", "), strings.Join(packages, " "))
	}
	return nil
}

// checkMounting makes sure that this process may mount, by doing what a bake does first: root in a container may not.
func checkMounting() error {
	if out, err := exec.Command("unshare", "--mount", "--propagation", "private", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("no right to mount (CAP_SYS_ADMIN): run the container with --privileged (%s)", strings.TrimSpace(string(out)))
	}
	return nil
}

// Bytes that making the base and an image take at most. A base that is downloaded is there packed as well.
var (
	baseSpace  = map[string]int64{"debian12": 2 << 30, "centos7": 4 << 30}
	imageSpace = map[string]int64{"debian12": 1600 << 20, "centos7": 3 << 30}
	vmSpace    = map[string]int64{"debian12": 2 << 30, "centos7": 0} // beside that: the disks of a VM
)

// checkSpace refuses to begin what cannot end.
func (c *Config) checkSpace(plans []*plan, by builder) error {
	each := imageSpace[c.Spec.Distro]
	if _, ok := by.(vmBuilder); ok {
		each += vmSpace[c.Spec.Distro]
	}
	need := int64(len(plans)) * each
	what := fmt.Sprintf("%d images", len(plans))
	if len(plans) == 1 {
		what = "an image"
	}
	if _, err := os.Stat(c.baseDir(plans[0].inputs.Base)); err != nil {
		need += baseSpace[c.Spec.Distro]
	}
	if free, ok := freeBytes(c.CacheDir); ok && free < need {
		return fmt.Errorf("baking %s takes about %d MiB in %s, and %d MiB are free: free some space there, or name another folder with --cache", what, need>>20, c.CacheDir, free>>20)
	}
	return nil
}

func freeBytes(dir string) (int64, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * st.Bsize, true
}

// A bake works in a folder of its own below work/, which it keeps locked. All its mounts are in a private mount
// namespace, so a bake that is killed leaves nothing but that folder, and a loop device if it was killed in the moment
// between attaching and mounting it.

// workDir makes and locks a folder for a bake; release removes it.
func (c *Config) workDir(ctx context.Context) (dir string, release func(), err error) {
	making, err := c.lockWork(ctx)
	if err != nil {
		return "", nil, err
	}
	defer making.Close()
	dir, err = os.MkdirTemp(filepath.Join(c.CacheDir, "work"), "bake-")
	if err != nil {
		return "", nil, err
	}
	lock, err := filelock.Lock(ctx, filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, func() {
		os.RemoveAll(dir)
		lock.Close()
	}, nil
}

// lockWork is held while folders are made and looked through, so that none is seen before it is locked.
func (c *Config) lockWork(ctx context.Context) (*os.File, error) {
	return filelock.Lock(ctx, filepath.Join(c.CacheDir, "work", "lock"), syscall.LOCK_EX)
}

// removeLeftovers removes the folders of bakes that are no more.
func (c *Config) removeLeftovers(ctx context.Context) error {
	looking, err := c.lockWork(ctx)
	if err != nil {
		return err
	}
	defer looking.Close()
	dirs, err := filepath.Glob(filepath.Join(c.CacheDir, "work", "bake-*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		lock, err := filelock.Lock(ctx, filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // somebody else's, at work
		}
		if err != nil {
			return fmt.Errorf("remove what a killed bake left: %w", err)
		}
		err = detach(dir)
		if _, statErr := os.Stat(filepath.Join(dir, vboxFolder)); statErr == nil && (virtualBox{}).check() == nil {
			err = errors.Join(err, virtualBox{}.forget(ctx, dir))
		}
		err = errors.Join(err, os.RemoveAll(dir))
		lock.Close()
		if err != nil {
			return fmt.Errorf("remove what a killed bake left: %w", err)
		}
	}
	return nil
}

// detach frees the loop devices whose files are below dir.
func detach(dir string) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, f := range files {
		backing, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(backing), dir+"/") {
			continue // freed meanwhile, or another's
		}
		loop := "/dev/" + strings.Split(f, "/")[3]
		if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
			return fmt.Errorf("free %s: %w: %s", loop, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

package images

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
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

// toolPath is where the programs are looked for: sudo and su may leave a path without sbin.
const toolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// bootSector is the boot loader's first part; Debian has it in syslinux-common.
const bootSector = "/usr/lib/syslinux/mbr/mbr.bin"

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
	if _, err := os.Stat(bootSector); err != nil && distro == "debian12" {
		add(bootSector, "syslinux-common")
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
	lock, err := lockFile(ctx, filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
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
	return lockFile(ctx, filepath.Join(c.CacheDir, "work", "lock"), syscall.LOCK_EX)
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
		lock, err := lockFile(ctx, filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
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

// lockFile locks a file, which it makes, as flock(2) has it; the lock ends with the process or when the file is closed. If
// another has it, lockFile waits for it, or returns EWOULDBLOCK with LOCK_NB.
func lockFile(ctx context.Context, path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- syscall.Flock(int(f.Fd()), how) }()
	select {
	case err = <-locked:
	case <-ctx.Done():
		go func() {
			<-locked
			f.Close()
		}()
		return nil, ctx.Err()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// command is a program that ends with ctx, with all that it has started: APT's methods, say, would hold its output open.
// A Ctrl-C is for imagegen, which ends the program.
func command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// flush brings a file to the disk, a piece at a time: fsync of all at once may take many seconds, in which nobody can be
// interrupted.
func flush(ctx context.Context, f *os.File) error {
	const waitBefore, write, waitAfter = 1, 2, 4 // sync_file_range(2)
	err := eachExtent(f, func(start, end int64) error {
		for ; start < end; start += copyPiece {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := syscall.SyncFileRange(int(f.Fd()), start, min(end-start, copyPiece), waitBefore|write|waitAfter)
			if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ESPIPE) {
				return nil // fsync does it all
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.Sync()
}

// eachExtent calls do for each part of a sparse file that holds data.
func eachExtent(f *os.File, do func(start, end int64) error) error {
	const seekData, seekHole = 3, 4 // lseek(2)
	for pos := int64(0); ; {
		start, err := f.Seek(pos, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return err
		}
		if err := do(start, end); err != nil {
			return err
		}
		pos = end
	}
}

// lastLines returns the last n lines of what r holds.
func lastLines(r io.Reader, n int) string {
	var lines []string
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if strings.TrimSpace(s.Text()) == "" {
			continue
		}
		if lines = append(lines, s.Text()); len(lines) > n {
			lines = lines[1:]
		}
	}
	return strings.Join(lines, "\n")
}

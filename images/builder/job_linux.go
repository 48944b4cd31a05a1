package builder

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"imagegen/images/disk"
	"imagegen/internal/program"
)

// Job is the work of a builder: to run the script bake/script, whose input is in the same folder, on a base. The script writes the list
// of installed packages to bake/packages.
type Job struct {
	Work    string            // folder of this bake
	Log     *os.File          // output of programs
	Begin   func(what string) // called at each step
	Note    func(text string) // called with information for the end of the build
	Network bool              // the script may use this machine's network
	ID      string            // of the image
	Bytes   int64             // size of the disk
	// Enter is the script that prepares the base and runs bake/script in it.
	Enter string
	// Base is the file tree that the image is a layer on. It is nil if the base is a disk; then Disk is a copy of it.
	Base *Base
}

// Base is a base that is a file tree.
type Base struct {
	Root  string     // folder of the tree
	Disk  disk.Image // how to make a bootable disk from it
	Below string     // file system UUID of the second such disk, on which a VM makes the image's layer
}

// Disk returns the path of the image's disk.
func (j *Job) Disk() string { return filepath.Join(j.Work, "result", "disk.raw") }

// Upper returns the folder of the image's layer.
func (j *Job) Upper() string { return filepath.Join(j.Work, "upper") }

// Input returns the path of an input of the script.
func (j *Job) Input(name string) string { return filepath.Join(j.Work, "bake", name) }

// Script runs a script with variables in its environment, in mount and process namespaces of its own: no mount and no process outlives
// the script or imagegen. It has no network unless the job says so. Lines "step: …" on file descriptor 3 are reported as progress; all
// other output goes to the log.
func (j *Job) Script(ctx context.Context, text string, vars map[string]string) error {
	// The kernel kills the child when the thread that started it ends, so the thread must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	args := []string{"--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"}
	env := []string{"LC_ALL=C.UTF-8", "HOME=/root", "PATH=" + program.Path, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", disk.Newest)}
	if j.Network {
		env = append(env, program.ProxyEnv()...)
	} else {
		args = append(args, "--net")
	}
	cmd := exec.CommandContext(ctx, "unshare", append(args, "sh", "-c", text)...)
	cmd.Env = env
	for k, v := range vars {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = j.Log, j.Log
	// Ctrl-C must reach only imagegen, which then stops the script. The script would report a failure.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	progress, report, err := os.Pipe()
	if err != nil {
		return err
	}
	defer progress.Close()
	cmd.ExtraFiles = []*os.File{report}
	if err := cmd.Start(); err != nil {
		report.Close()
		return err
	}
	report.Close()
	for s := bufio.NewScanner(progress); s.Scan(); {
		if what, ok := strings.CutPrefix(s.Text(), "step: "); ok {
			j.Begin(what)
		}
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return j.withLog(err)
	}
	return nil
}

// withLog adds the last lines of the log to an error.
func (j *Job) withLog(err error) error {
	if _, err := j.Log.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if tail := program.LastLines(j.Log, 8); tail != "" {
		return fmt.Errorf("%w; the log %s ends in\n%s", err, j.Log.Name(), tail)
	}
	return err
}

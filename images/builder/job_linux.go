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

// Job is what a builder is to do: run a script, laid as bake/script in a folder with all that the script reads, on a base. The script
// leaves the list of installed packages there.
type Job struct {
	Work    string            // folder of this bake alone
	Log     *os.File          // what programs print
	Begin   func(what string) // is told of each step
	Note    func(text string) // is told what is worth knowing afterwards
	Network bool              // the script may use this machine's network
	ID      string            // of the image
	Bytes   int64             // size of the disk
	// Enter is the script that makes the base ready, and runs the laid script in it.
	Enter string
	// Base is the tree that the image's files are laid over; nil: the base is a disk, and Disk is a copy of it.
	Base *Base
}

// Base is a base that is a tree.
type Base struct {
	Root  string     // the tree's folder
	Disk  disk.Image // what a disk is to be that boots with it
	Below string     // UUID of a second such disk's file system, which a VM lays the image's files over
}

// Disk is the path of the image's disk.
func (j *Job) Disk() string { return filepath.Join(j.Work, "result", "disk.raw") }

// Upper is the folder for what the image's tree has besides the base's.
func (j *Job) Upper() string { return filepath.Join(j.Work, "upper") }

// Input is the path of one of the things that the script in the image is given.
func (j *Job) Input(name string) string { return filepath.Join(j.Work, "bake", name) }

// Script runs one of the embedded scripts with the variables in its environment, in namespaces that end with it: no
// mount and no process of it outlives it, or imagegen, however either ends. There is no network, unless the bake says so.
// Lines that it writes to descriptor 3 as "step: …" are shown as progress; all else goes to the log.
func (j *Job) Script(ctx context.Context, text string, vars map[string]string) error {
	// The kernel ends the child when the thread that started it ends, so that has to be one that stays.
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
	// A Ctrl-C is for imagegen, which ends the script: the script would report it as a fault of its own.
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

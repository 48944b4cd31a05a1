// Package program finds and runs external programs.
package program

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
)

// Path is where programs that need root are looked for: sudo and su may leave a path without sbin.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// LastLines returns the last n lines of r that are not blank.
func LastLines(r io.Reader, n int) string {
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

// Find returns a command for a program of the Debian package pkg.
func Find(ctx context.Context, pkg, program string, args ...string) (*exec.Cmd, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("there is no %s on this machine: apt-get install %s", program, pkg)
	}
	return Command(ctx, path, args...), nil
}

// Run runs such a program. An error contains its output.
func Run(ctx context.Context, pkg, program string, args ...string) error {
	cmd, err := Find(ctx, pkg, program, args...)
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Output runs a program and returns its standard output. An error contains what the program wrote to standard error; if it was stopped by
// ctx, the error is that of ctx.
func Output(ctx context.Context, program string, args ...string) ([]byte, error) {
	out, err := Command(ctx, program, args...).Output()
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return nil, fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(exit.Stderr)))
	}
	return nil, fmt.Errorf("%s: %w", program, err)
}

// ProxyEnv returns the environment's proxy variables.
func ProxyEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasSuffix(strings.ToLower(name), "_proxy") {
			env = append(env, kv)
		}
	}
	return env
}

// Tool is a program, or an absolute path, of a Debian package.
type Tool struct{ Name, Package string }

// Missing returns the tools that are not installed, searching programs in path, and the packages that contain them.
func Missing(path string, tools []Tool) (names, packages []string) {
	for _, t := range tools {
		if filepath.IsAbs(t.Name) {
			if _, err := os.Stat(t.Name); err == nil {
				continue
			}
		} else if slices.ContainsFunc(filepath.SplitList(path), func(dir string) bool {
			_, err := exec.LookPath(filepath.Join(dir, t.Name))
			return err == nil
		}) {
			continue
		}
		names = append(names, t.Name)
		if !slices.Contains(packages, t.Package) {
			packages = append(packages, t.Package)
		}
	}
	return names, packages
}

// Package php72 gives tests CentOS 7's PHP version: PHP 7.2.34 as WebAssembly, from an npm package.
package php72

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Package is the npm package that contains it.
const Package = "@php-wasm/node@0.9.20"

//go:embed php72.mjs
var script []byte

// install installs the package into the cache once per process; other processes wait.
var install = sync.OnceValues(func() (string, error) {
	for _, p := range []string{"node", "npm"} {
		if _, err := exec.LookPath(p); err != nil {
			return "", fmt.Errorf("no %s on this machine (make checkers installs it)", p)
		}
	}
	cache := "/var/cache" // as root, a folder that other users can read
	if os.Geteuid() != 0 {
		var err error
		if cache, err = os.UserCacheDir(); err != nil {
			return "", err
		}
	}
	cache = filepath.Join(cache, "imagegen-php72")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "0.9.20")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	work, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--prefix", work, Package)
	cmd.Dir = work
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm install %s: %w\n%s", Package, err, out)
	}
	return dir, os.Rename(work, dir)
})

// Program returns the path of a program that runs the PHP script on standard input or in a file or, with -l, compiles
// files. Other users can run it, too. It skips the test if the package cannot be installed.
func Program(t *testing.T) string {
	t.Helper()
	dir, err := install()
	if err != nil {
		t.Skipf("NOT TESTED: needs PHP 7.2: %v", err)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	// Beside the package, because node resolves modules relative to the script.
	tmp, err := os.MkdirTemp(dir, "test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	program := filepath.Join(tmp, "php")
	for path, text := range map[string][]byte{
		filepath.Join(tmp, "php72.mjs"): script,
		program:                         fmt.Appendf(nil, "#!/bin/sh\nexec '%s' '%s/php72.mjs' \"$@\"\n", node, tmp),
	} {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{tmp, program} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return program
}

package testkit

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
)

// Program returns the path of a program, or skips the test if it is missing. pkg is its Debian package; empty: one of those
// that make checkers installs.
func Program(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && pkg == "" {
		t.Skipf("needs %s: make checkers installs it", name)
	}
	if err != nil {
		t.Skipf("needs %s: apt-get install %s", name, pkg)
	}
	return path
}

// Run is [Must] for a program and its arguments.
func Run(t testing.TB, program string, args ...string) string {
	t.Helper()
	return Must(t, exec.Command(program, args...))
}

// Write writes a file and creates its folders.
func Write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Blocks returns a file's disk usage in units of 512 bytes.
func Blocks(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return reflect.Indirect(reflect.ValueOf(info.Sys())).FieldByName("Blocks").Int()
}

// Noise returns n incompressible bytes, the same each time.
func Noise(n int) []byte {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

// SHA256 returns the SHA-256 of data in hexadecimal.
func SHA256(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// Disk returns a small disk with a boot sector, holes, and a size that is not a multiple of the block size.
func Disk() []byte {
	data := make([]byte, 5<<20+512)
	copy(data[510:], "\x55\xaa")
	copy(data[1<<20:], Noise(1<<20))
	copy(data[len(data)-9:], "the end\r\n")
	return data
}

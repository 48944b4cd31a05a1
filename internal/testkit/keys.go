package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Must runs a program that must not fail, and returns what it printed.
func Must(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args[:min(4, len(cmd.Args))], err, out)
	}
	return string(out)
}

// NewKeys makes two keys to sign packages with: keys/right and keys/wrong in dir. It returns GnuPG's folder.
func NewKeys(t testing.TB, dir string) string {
	t.Helper()
	home := filepath.Join(dir, "gnupg")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() })
	for _, name := range []string{"right", "wrong"} {
		Must(t, exec.Command("gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", name, "rsa2048", "sign", "never"))
		Write(t, filepath.Join(dir, "keys", name), Must(t, exec.Command("gpg", "--homedir", home, "--armor", "--export", name)))
	}
	return home
}

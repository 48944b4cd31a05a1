package builder

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/internal/accel"
	"imagegen/internal/testkit"
)

func speaker(t *testing.T, text string) string { return speakerAt(t, testkit.COM1, text) }

func speakerAt(t *testing.T, port uint16, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a,disk.raw") // a comma separates QEMU's options
	testkit.Write(t, path, string(testkit.Speaker(1<<20, port, text)))
	return path
}

func needQEMU(t *testing.T) {
	t.Helper()
	if err := (&qemu{}).check(); err != nil {
		t.Skipf("VMs are NOT tested: %v", err)
	}
}

// bareVM returns a VM that boots from a disk. Its other disks contain only zeros.
func bareVM(t *testing.T, disk string) vm {
	t.Helper()
	dir := t.TempDir()
	m := vm{work: dir, disks: []string{disk, filepath.Join(dir, "inputs,tar")}, made: filepath.Join(dir, "made"), seed: filepath.Join(dir, "seed.iso"), memory: 64}
	for _, path := range []string{m.disks[1], m.made, m.seed} {
		testkit.Write(t, path, strings.Repeat("\x00", 1<<20))
	}
	return m
}

// TestRunQEMU: a real QEMU passes on the output of both serial ports, and its end is reported.
func TestRunQEMU(t *testing.T) {
	needQEMU(t)
	q := &qemu{accel: "tcg"}
	stop := errors.New("enough")
	for _, tt := range []struct{ port, disk string }{{"console", speaker(t, "hello\n")}, {"bake", speakerAt(t, testkit.COM2, "hello\n")}} {
		ctx, end := context.WithCancelCause(t.Context())
		defer end(nil)
		ends := &accel.Sign{Text: "hello\n", Seen: func() { end(stop) }}
		ports := map[string]io.Writer{"console": io.Discard, "bake": io.Discard}
		ports[tt.port] = ends
		if err := q.run(ctx, bareVM(t, tt.disk), ports["console"], ports["bake"]); err != stop {
			t.Errorf("%s: %v", tt.port, err)
		}
	}
	if err := q.run(t.Context(), bareVM(t, "/nonexistent/disk"), io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("a disk that is not there: %v", err)
	}
}

// TestInputs: tar reads the archive for the VM, and it begins with the mark that the script in the VM looks for.
func TestInputs(t *testing.T) {
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, "bake", "archive", "a_1%3a2~x+y_all.deb"), "deb")
	testkit.Write(t, filepath.Join(dir, "bake", "script"), "echo")
	path := filepath.Join(dir, "inputs.tar")
	size, err := writeTar(t.Context(), filepath.Join(dir, "bake"), path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil || int64(len(data)) != size || size%512 != 0 || !strings.HasPrefix(string(data), inputsMark+"\x00") {
		t.Errorf("%d bytes, said to be %d: %v", len(data), size, err)
	}
	for _, mark := range []string{inputsMark, madeMark} {
		if !strings.Contains(VMScript, "find_disk "+mark+")") || len(mark) != 13 {
			t.Errorf("the script in the VM does not look for %s", mark)
		}
	}
	var names []string
	for r := tar.NewReader(strings.NewReader(string(data))); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
	}
	if want := []string{inputsMark, "archive/", "archive/a_1%3a2~x+y_all.deb", "script"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// TestPackingIsInterrupted: packing the VM's inputs, which may be large, ends with its context.
func TestPackingIsInterrupted(t *testing.T) {
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, "bake/file"), string(testkit.Noise(8<<20)))
	out := filepath.Join(dir, "out")
	testkit.Interrupt(t, out, func(ctx context.Context) error {
		_, err := writeTar(ctx, filepath.Join(dir, "bake"), out)
		return err
	})
}

// TestFromVM: proxies on this machine's loopback address get the address that the VM reaches them at; others are not
// changed.
func TestFromVM(t *testing.T) {
	for _, tt := range []struct{ name, value, want string }{
		{"http_proxy", "http://127.0.0.1:3128/", "http://10.0.2.2:3128/"},
		{"https_proxy", "http://[::1]:3128", "http://10.0.2.2:3128"},
		{"HTTPS_PROXY", "http://proxy.example.org:1/", "http://proxy.example.org:1/"},
		{"no_proxy", "localhost,127.0.0.1", "localhost,127.0.0.1"},
	} {
		if got := fromVM(tt.name, tt.value); got != tt.want {
			t.Errorf("%s=%s: %s, want %s", tt.name, tt.value, got, tt.want)
		}
	}
}

// TestVMScript: sh can parse the script in the VM.
func TestVMScript(t *testing.T) {
	for _, argv := range [][]string{{"sh", "-n"}, {"bash", "-n"}, {"shellcheck", "-s", "sh", "-"}} {
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Skipf("SKIPPED: %s is missing: make checkers", argv[0])
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader(VMScript)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", argv[0], err, out)
		}
	}
}

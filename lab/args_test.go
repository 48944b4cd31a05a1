//go:build linux

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPowerOnArgs(t *testing.T) {
	l := &Lab{spec: testSpec("otus"), network: "imagegen-otus"}
	nodes := l.spec.Nodes()
	for i, want := range []string{
		"balancer1 02:00:5e:00:00:28 imagegen-otus port-balancer1 /dev/loop3 ",
		"store1 02:00:5e:00:00:2c imagegen-otus port-store1 /dev/loop3 /dev/loop4",
	} {
		data := strings.Fields(want + " x")[5:][0]
		if data == "x" {
			data = ""
		}
		if got := strings.Join(nspawn{l}.powerOnArgs(nodes[i], "/dev/loop3", data), " "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestExecArgs(t *testing.T) {
	got := strings.Join(execArgs(4711, 0b1001, []string{"ls", "-l", "a b"}), "|")
	want := "--bounding-set=-all,+cap_0,+cap_3|nsenter|--target=4711|--all|--root|--wd|--|ls|-l|a b"
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if env := execEnv(""); slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		t.Errorf("a terminal from nowhere: %q", env)
	}
}

func TestBridgeSetup(t *testing.T) {
	address, err := operatorAddress(testSpec("otus"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(bridgeSetup(address)), "\n")
	if len(lines) != 4 || lines[3] != "link set br0 up" || !strings.Contains(lines[2], "192.168.10.254/24") {
		t.Errorf("up must come last: %q", lines)
	}
}

func TestGrowFile(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "data.img")
	for _, c := range []struct{ ask, want int64 }{{1 << 20, 1 << 20}, {4 << 20, 4 << 20}, {1 << 20, 4 << 20}} {
		if err := growFile(disk, c.ask); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(disk); err != nil || info.Size() != c.want || info.Mode() != 0o600 {
			t.Errorf("%d bytes asked for: %v, %v", c.ask, info, err)
		}
	}
}

func TestPowerOnScript(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("SKIPPED: shellcheck is missing: make checkers")
	}
	if out, err := exec.Command("shellcheck", "poweron.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

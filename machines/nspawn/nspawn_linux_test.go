package nspawn

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"imagegen/machines"
)

func TestPowerOnArgs(t *testing.T) {
	d := driver{"imagegen-otus", func(node string) string { return "port-" + node }}
	got := d.powerOnArgs(machines.Machine{Node: "store1", MAC: "02:00:5e:00:00:2c"}, "/dev/loop3", "")
	want := []string{"store1", "02:00:5e:00:00:2c", "imagegen-otus", "port-store1", "br0", "/dev/loop3", ""}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
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

func TestPowerOnScript(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("SKIPPED: shellcheck is missing: make checkers")
	}
	if out, err := exec.Command("shellcheck", "poweron.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

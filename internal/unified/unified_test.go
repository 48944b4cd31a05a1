package unified

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	for _, c := range []struct{ old, now, want string }{
		{"", "", ""},
		{"a\nb\n", "a\nb\n", ""},
		{"", "a\n", "@@ -0,0 +1 @@\n+a\n"},
		{"a\n", "", "@@ -1 +0,0 @@\n-a\n"},
		{"a\nb\nc\n", "a\nx\nc\n", "@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n"},
		{"a", "a\n", "@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a\n"},
		{"1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\n5\n6\n7\n8\n", "@@ -6,4 +6,3 @@\n 6\n 7\n 8\n-9\n"},
		{"x\n1\n2\n3\n4\n5\n6\n7\ny\n", "1\n2\n3\n4\n5\n6\n7\n", "@@ -1,4 +1,3 @@\n-x\n 1\n 2\n 3\n@@ -6,4 +5,3 @@\n 5\n 6\n 7\n-y\n"},
	} {
		if got := Diff(c.old, c.now); got != c.want {
			t.Errorf("%q, %q:\n%swant\n%s", c.old, c.now, got, c.want)
		}
	}
}

// TestPatch: the program patch makes the new text of the old one.
func TestPatch(t *testing.T) {
	if _, err := exec.LookPath("patch"); err != nil {
		t.Skip("needs patch: package patch")
	}
	dir := t.TempDir()
	text := func(r *rand.Rand, lines int) string {
		var b strings.Builder
		for range r.IntN(lines + 1) {
			fmt.Fprintln(&b, r.IntN(6))
		}
		return b.String()
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		old, now := text(r, 3+i), text(r, 3+i)
		diff := Diff(old, now)
		if (diff == "") != (old == now) {
			t.Fatalf("%q, %q: %q", old, now, diff)
		}
		if diff == "" {
			continue
		}
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("patch", "--fuzz=0", "--no-backup-if-mismatch", "f")
		cmd.Dir, cmd.Stdin = dir, strings.NewReader("--- f\n+++ f\n"+diff)
		out, err := cmd.CombinedOutput()
		got, err2 := os.ReadFile(path)
		if os.IsNotExist(err2) && now == "" { // patch removes a file that becomes empty
			err2 = nil
		}
		if err != nil || err2 != nil || string(got) != now || strings.Contains(string(out), "offset") {
			t.Fatalf("%v, %v, %s\n%q\n%q\n%s\nbecame %q", err, err2, out, old, now, diff, got)
		}
	}
}

// FuzzDiff: both texts can be read from the comparison.
func FuzzDiff(f *testing.F) {
	f.Add("a\nb\n", "b\nc")
	f.Fuzz(func(t *testing.T, old, now string) {
		if len(old)+len(now) > 2000 {
			return
		}
		var a, b strings.Builder
		for _, l := range compare(split(old), split(now)) {
			if l.op != '+' {
				a.WriteString(l.text)
			}
			if l.op != '-' {
				b.WriteString(l.text)
			}
		}
		if a.String() != old || b.String() != now {
			t.Errorf("%q, %q: %q, %q", old, now, a.String(), b.String())
		}
		Diff(old, now)
	})
}

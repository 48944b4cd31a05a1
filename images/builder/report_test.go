package builder

import (
	"errors"
	"strings"
	"testing"
)

const goodReport = "noise\r\n\r\nimagegen-bake: step make users\r\napt says\r\n\nimagegen-bake: done\n"

// said writes to a report in small pieces, and returns its result, steps and log.
func said(text string, size int) (result, steps, log string) {
	var out strings.Builder
	var all []string
	r := newReport(&out, func(what string) { all = append(all, what) })
	w := &lines{pass: r.bakeLine}
	for rest := text; rest != ""; {
		n := min(size, len(rest))
		w.Write([]byte(rest[:n]))
		rest = rest[n:]
	}
	if err := r.end(nil); err != nil {
		result = err.Error()
	}
	return result, strings.Join(all, ","), out.String()
}

func TestReport(t *testing.T) {
	for name, tt := range map[string]struct{ text, want, steps, log string }{
		"done":              {goodReport, "", "make users", "noise\napt says\n"},
		"nothing":           {"[  OK  ] Reached target\n", errNoResult.Error(), "", "[  OK  ] Reached target\n"},
		"cut short":         {strings.TrimSuffix(goodReport, "\n"), errNoResult.Error(), "make users", "noise\napt says\n"},
		"failed":            {"imagegen-bake: step seal\n\nimagegen-bake: failed 100\n", "exit status 100", "seal", ""},
		"done after failed": {"imagegen-bake: failed 1\n" + goodReport, "exit status 1", "", "noise\napt says\n"},
		"no mark":           {"x\n imagegen-bake: done\n", errNoResult.Error(), "", "x\n imagegen-bake: done\n"},
	} {
		for size := 1; size < len(tt.text); size += 7 {
			if result, steps, log := said(tt.text, size); result != tt.want || steps != tt.steps || log != tt.log {
				t.Errorf("%s, %d bytes at a time: %q, steps %q, log %q; want %q, %q, %q", name, size, result, steps, log, tt.want, tt.steps, tt.log)
			}
		}
	}
}

// TestReportConsole: the log has the console before the bake begins, and its last lines if the VM reports no result.
func TestReportConsole(t *testing.T) {
	for name, tt := range map[string]struct{ bake, want, log string }{
		"never begun":  {"", "killed", "kernel\nlater\nlast\n"},
		"failed":       {"apt\nimagegen-bake: failed 1\n", "exit status 1", "kernel\napt\n"},
		"ended early":  {"apt\n", "killed", "kernel\napt\nlater\nlast\n"},
		"done, killed": {"imagegen-bake: done\n", "", "kernel\n"},
	} {
		var out strings.Builder
		r := newReport(&out, func(string) {})
		console, bake := &lines{pass: r.consoleLine}, &lines{pass: r.bakeLine}
		console.Write([]byte("\x1b[0;32mker\x1b[0mnel\r\n"))
		bake.Write([]byte(tt.bake))
		console.Write([]byte("later\r\nlast\r\n"))
		got := ""
		if err := r.end(errors.New("killed")); err != nil {
			got = err.Error()
		}
		if got != tt.want || out.String() != tt.log {
			t.Errorf("%s: %q, log %q; want %q, %q", name, got, out.String(), tt.want, tt.log)
		}
	}
}

// FuzzReport: the result does not depend on how the output is split, and only a line that says so ends a bake
// successfully.
func FuzzReport(f *testing.F) {
	f.Add([]byte(goodReport), 3)
	f.Add([]byte("imagegen-bake: failed \xff\n"), 1)
	f.Add([]byte(strings.Repeat("x", maxLine)+"\nimagegen-bake: done\n"), 100)
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		if size < 1 || len(text) == 0 {
			return
		}
		result, steps, log := said(string(text), len(text))
		if r, s, l := said(string(text), size); r != result || s != steps || l != log {
			t.Fatalf("at once: %q, %q, %q; %d bytes at a time: %q, %q, %q", result, steps, log, size, r, s, l)
		}
		if result == "" && !strings.Contains(string(text), "imagegen-bake: done") {
			t.Error("done without a word")
		}
	})
}

package words

import "testing"

// TestNearest: suggestions are probable, and there is none if no word is close.
func TestNearest(t *testing.T) {
	commands := []string{"init", "validate", "seed", "plan", "lock", "fetch", "build", "inspect", "up", "status", "logs", "exec", "kill", "start",
		"replace", "roll", "decide", "cut", "mend", "down", "web1", "percona1"}
	for text, want := range map[string]string{
		"buld": "build", "biuld": "build", "sed": "seed", "stat": "status", "tatus": "status", "start1": "start", "valdate": "validate", "valid": "validate",
		"replcae": "replace", "exek": "exec", "ub": "up", "Status": "status", "log": "logs", "logfile": "",
		"run": "", "stop": "", "ps": "", "ssh": "", "login": "", "halt": "", "delete": "", "destroy": "", "frobnicate": "", "web9": "", "precona1": "percona1", "": "", "x": "", "-": "",
	} {
		if got := Nearest(text, commands); got != want {
			t.Errorf("%q: %q is suggested, want %q", text, got, want)
		}
	}
}

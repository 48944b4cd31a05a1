package roles

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/internal/php72"
)

// centosPHP returns every PHP file that nodes of centos7 run, by a name: rendered files, for each kind of spec that
// makes a difference, and the agent's.
func centosPHP(t *testing.T) map[string]string {
	t.Helper()
	c := mustLoad(t, "")
	files := map[string]string{}
	reference := string(cluster.Reference("centos7"))
	for kind, spec := range map[string]string{
		"reference": reference,
		"balancer":  strings.Replace(reference, "\nsql: proxysql", "\nsql: balancer", 1),
		"url":       strings.Replace(reference, "\nsite:\n", "\nsite:\n  url: https://www.example.org\n", 1),
	} {
		if kind != "reference" && spec == reference {
			t.Fatalf("the reference has changed: there is no spec for %s", kind)
		}
		s := parse(t, c, spec)
		for _, n := range s.Nodes() {
			r, err := c.Render(s, testSecrets(c, s), n.Name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Files {
				if text := string(f.Content); strings.HasPrefix(text, "<?php") || filepath.Ext(f.Path) == ".php" {
					files[kind+"-"+n.Name+"-"+filepath.Base(f.Path)] = text
				}
			}
		}
	}
	for name, path := range map[string]string{"site.php": "../agent/site.php"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	for _, want := range []string{"site.php", "reference-backend1-db.php", "reference-backend1-wp-config.php"} {
		if files[want] == "" {
			t.Fatalf("no %s among the files", want)
		}
	}
	return files
}

// TestPHP72Compiles: PHP 7.2 compiles every file that centos7 nodes run, and rejects newer features.
func TestPHP72Compiles(t *testing.T) {
	t.Parallel()
	files := centosPHP(t)
	program := php72.Program(t)
	compile := func(files map[string]string) (string, error) {
		dir := t.TempDir()
		args := []string{"-l"}
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			args = append(args, path)
		}
		out, err := exec.Command(program, args...).CombinedOutput()
		return string(out), err
	}
	out, err := compile(files)
	if err != nil || strings.Count(out, ": compiles\n") != len(files) {
		t.Errorf("%v: %d files\n%s", err, len(files), out)
	}
	for _, newer := range []string{"$a ??= 1;", "$f = fn () => 1;", "class A { public int $n; }", "$a?->b();", "function f(): static {}", "echo match (1) { 1 => 2 };"} {
		if out, err := compile(map[string]string{"newer.php": "<?php\n" + newer}); err == nil || !strings.Contains(out, "on line 2") {
			t.Errorf("%s: %v: %s", newer, err, out)
		}
	}
}

// TestPHP72KnowsSettings asks PHP 7.2 for every setting of php.ini in the rendered files; opcache's, which this build
// lacks, are only in the table.
func TestPHP72KnowsSettings(t *testing.T) {
	t.Parallel()
	program := php72.Program(t)
	c := mustLoad(t, "")
	s := reference(t, c, "centos7")
	r, err := c.Render(s, testSecrets(c, s), "backend1")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range r.Files {
		if f.Check != "php-ini" {
			continue
		}
		for line := range strings.Lines(string(f.Content)) {
			name, _, ok := strings.Cut(line, " =")
			if ok && !strings.HasPrefix(line, ";") && !strings.HasPrefix(name, "opcache.") {
				names = append(names, name)
			}
		}
	}
	if len(names) < 10 {
		t.Fatalf("only %d settings: %v", len(names), names)
	}
	ask := func(names []string) string {
		cmd := exec.Command(program)
		cmd.Stdin = strings.NewReader("<?php $all = ini_get_all(null, false); foreach (explode(',', '" + strings.Join(names, ",") +
			"') as $name) { if (!array_key_exists($name, $all)) { echo $name, ' '; } } echo 'asked';")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := ask(names); got != "asked" {
		t.Errorf("PHP 7.2 does not know: %s", got)
	}
	if got := ask(append(names, "zend.exception_ignore_args")); got != "zend.exception_ignore_args asked" {
		t.Errorf("a setting of PHP 7.4: %s", got)
	}
}

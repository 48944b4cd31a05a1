package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"imagegen/cloudinit"
	"imagegen/internal/testkit"
)

// TestCertificateOfTheSite goes through the life of a certificate: mistakes, seeds, its end coming near, its renewal, and
// operators who do not have it.
func TestCertificateOfTheSite(t *testing.T) {
	inNewFolder(t)
	done(t, "init")
	spec, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, "cluster.yaml", strings.Replace(string(spec), "\nsite:\n", "\nsite:\n  url: https://www.example.com\n  tls:\n    certificate: tls/fullchain.pem\n    key: tls/privkey.pem\n", 1))
	put := func(host string, end time.Time) (chain, key string) {
		_, c, k := testkit.Certificate(t, host, end)
		writeFile(t, "tls/fullchain.pem", string(c))
		writeFile(t, "tls/privkey.pem", string(k))
		return string(c), string(k)
	}
	wrong := func(want string, commands ...string) {
		t.Helper()
		before := contents(t)
		for _, command := range commands {
			r := imagegen(strings.Fields(command)...)
			if r.code != exitWrong || r.stdout != "" || !regexp.MustCompile(`^cluster\.yaml:\d+:\d+: site\.tls\.`+want).MatchString(r.stderr) {
				t.Errorf("%s: %+v, want %s", command, r, want)
			}
		}
		unchanged(t, strings.Join(commands, ", "), before)
	}
	wrong(`certificate: there is no file tls/fullchain\.pem; .*\ncluster\.yaml:\d+:\d+: site\.tls\.key: there is no file`, "validate", "seed --print", "seed")
	put("www.example.org", time.Now().AddDate(0, 2, 0))
	wrong(`certificate: tls/fullchain\.pem is for www\.example\.org, not for www\.example\.com, the host in site\.url\n`, "validate", "seed")
	if r := imagegen("validate", "--json"); r.code != exitWrong || !strings.Contains(r.stdout, `"path": "site.tls.certificate"`) {
		t.Errorf("validate --json: %+v", r)
	}

	// A good one. Its key is on the balancers' seeds alone, and is shown nowhere.
	chain, key := put("www.example.com", time.Now().AddDate(0, 2, 0))
	inKey := strings.Split(key, "\n")[1]
	if out := done(t, "validate"); !strings.Contains(out, "no errors\n") || strings.Contains(out, "comes without that of its authority") {
		t.Errorf("validate: %s", out)
	}
	for range 2 { // before and after it was rendered
		if out := done(t, "seed", "--print"); strings.Contains(out, inKey) || !strings.Contains(out, strings.Split(chain, "\n")[1]) {
			t.Error("seed --print shows the key, or not the certificate")
		}
		done(t, "seed")
	}
	holds := map[string]string{}
	for _, node := range []string{"balancer1", "balancer2", "balancer3", "web1", "backend1"} {
		s, err := cloudinit.ReadISO("dist/seeds/" + node + ".iso")
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.Files()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			if bytes.Contains(f.Content, []byte(inKey)) {
				holds[node] += f.Path
				if f.Mode != 0o600 || f.Owner != "root:root" || string(f.Content) != chain+key {
					t.Errorf("%s: %s %04o %s", node, f.Path, f.Mode, f.Owner)
				}
			}
		}
	}
	if len(holds) != 2 || holds["balancer1"] != "/etc/imagegen/site.pem" || holds["balancer2"] != holds["balancer1"] {
		t.Errorf("the key is on %v", holds)
	}

	// Its end is seen coming, also without the files.
	end := time.Now().AddDate(0, 0, 20)
	put("www.example.com", end)
	done(t, "seed")
	said := "imagegen: the site's certificate expires on " + end.UTC().Format(time.DateOnly) + "; once it has been renewed, imagegen apply brings it to the nodes\n"
	for command, code := range map[string]int{"validate": exitDone, "status": exitFailed} { // no node answers
		if r := imagegen(command); r.code != code || !strings.Contains(r.stderr, said) {
			t.Errorf("%s: %+v", command, r)
		}
	}
	if err := os.Rename("tls", "away"); err != nil {
		t.Fatal(err)
	}
	if r := imagegen("status"); r.code != exitFailed || !strings.Contains(r.stderr, said) || strings.Contains(r.stderr, "site.tls") {
		t.Errorf("status without the files: %+v", r)
	}
	// Renewed, it makes other seeds for the balancers alone.
	put("www.example.com", time.Now().AddDate(0, 0, 80))
	if out := done(t, "seed"); !strings.Contains(out, "wrote 2 seeds (balancer1, balancer2), 15 up to date\n") {
		t.Errorf("seed: %s", out)
	}
	if r := imagegen("status"); strings.Contains(r.stderr, "site's certificate") {
		t.Errorf("status after the renewal: %+v", r)
	}
	// The authority's certificate is missing.
	_, c, k := testkit.Certificate(t, "www.example.com", time.Now().AddDate(0, 0, 80))
	one, _, _ := strings.Cut(string(c), "-----END CERTIFICATE-----\n")
	writeFile(t, "tls/fullchain.pem", one+"-----END CERTIFICATE-----\n")
	writeFile(t, "tls/privkey.pem", string(k))
	if out := done(t, "validate"); !strings.Contains(out, "\nnote: the site's certificate comes without that of its authority, \"CN=test intermediate\": ") {
		t.Errorf("validate: %s", out)
	}
}

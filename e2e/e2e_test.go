// Package e2e runs the reference cluster as its users do: with the imagegen command, from an empty folder to a
// WordPress page through the virtual address, and then through faults. It needs root, a Debian host and some minutes,
// so it runs only with IMAGEGEN_E2E=1 (make e2e).
package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

// bench is a cluster under test, operated through the command line.
type bench struct {
	dir   string // contains cluster.yaml, secrets and dist
	site  string // loopback address that is forwarded to the site
	https bool   // what is forwarded is HTTPS, with a certificate from the cluster's authority

	// command and shell run imagegen and a shell line on a node if the nodes are not in the lab; nil: in the lab.
	command func(args ...string) *exec.Cmd
	shell   func(node, script string) *exec.Cmd

	mu     sync.Mutex
	output bytes.Buffer // everything that the commands printed, to be searched for secrets
}

const clusterName = "e2e"

const readyIn = 4 * time.Minute // for a whole cluster on two slow cores

func newBench(t *testing.T) *bench {
	t.Helper()
	return newBenchOf(t, clusterName)
}

// newBenchOf gives the cluster its own name, so that it can run beside a demo.
func newBenchOf(t *testing.T, cluster string) *bench {
	t.Helper()
	if os.Getenv("IMAGEGEN_E2E") == "" {
		t.Skip("end-to-end tests run with IMAGEGEN_E2E=1, as root: make e2e")
	}
	dir, err := os.MkdirTemp("", "imagegen-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{dir: dir, site: testkit.FreeAddress(t)}
	b.run(t, "init", "--distro", "debian12", dir)
	spec, err := os.ReadFile(b.spec())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.spec(), bytes.Replace(spec, []byte("cluster: otus"), []byte("cluster: "+cluster), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b.explain(t)
		}
		b.run(t, "down", "-f", b.spec(), "-o", b.dist())
		os.RemoveAll(dir)
	})
	return b
}

func (b *bench) spec() string { return filepath.Join(b.dir, "cluster.yaml") }
func (b *bench) dist() string { return filepath.Join(b.dir, "dist") }

// program returns a command that runs imagegen.
func (b *bench) program(args ...string) *exec.Cmd {
	if b.command != nil {
		return b.command(args...)
	}
	return exec.Command("../bin/imagegen", args...)
}

// try runs imagegen and returns its standard output.
func (b *bench) try(args ...string) (string, error) {
	out, err := b.capture(b.program(args...))
	if err != nil {
		err = fmt.Errorf("imagegen %s: %w", strings.Join(args, " "), err)
	}
	return out, err
}

// capture runs a command and returns its standard output; an error contains all of its output.
func (b *bench) capture(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	b.mu.Lock()
	b.output.Write(out.Bytes())
	b.output.Write(errs.Bytes())
	b.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("%w\n%s%s", err, out.Bytes(), errs.Bytes())
	}
	return out.String(), err
}

func (b *bench) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := b.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// lab runs a command on the running cluster.
func (b *bench) lab(t *testing.T, command string, args ...string) string {
	t.Helper()
	return b.run(t, append([]string{command, "-f", b.spec(), "-o", b.dist()}, args...)...)
}

// in runs a shell line on a node.
func (b *bench) in(node, script string) (string, error) {
	if b.shell != nil {
		return b.capture(b.shell(node, script))
	}
	return b.try("exec", "-f", b.spec(), "-o", b.dist(), node, "--", "sh", "-c", script)
}

// inNetwork returns a command of a computer that is no node, in the network of a cluster in the lab.
func inNetwork(cluster string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/imagegen-" + cluster}, args...)...)
}

// on is in for a fixed node.
func (b *bench) on(node string) func(script string) (string, error) {
	return func(script string) (string, error) { return b.in(node, script) }
}

func (b *bench) up(t *testing.T, nodes ...string) {
	t.Helper()
	b.lab(t, "up", append([]string{"--site", b.site}, nodes...)...)
}

func (b *bench) waitReady(t *testing.T) {
	t.Helper()
	b.lab(t, "status", "--wait", "--timeout", readyIn.String())
}

// explain prints what is needed to understand a failure.
func (b *bench) explain(t *testing.T) {
	out, _ := b.try("status", "-f", b.spec(), "-o", b.dist())
	t.Logf("the cluster at the end:\n%s", out)
	logs, _ := filepath.Glob(filepath.Join(b.dist(), "lab", "nodes", "*", "console.log"))
	for _, l := range logs {
		data, _ := os.ReadFile(l)
		var lines []string
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "imagegen: ") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		t.Logf("%s:\n%s", l, strings.Join(lines[max(0, len(lines)-12):], "\n"))
	}
}

type nodeStatus struct {
	Node, Role, Address, Host, Power, State, Detail string
}

func (b *bench) nodes(t *testing.T) []nodeStatus {
	t.Helper()
	var status struct{ Nodes []nodeStatus }
	if err := json.Unmarshal([]byte(b.lab(t, "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	return status.Nodes
}

// built returns the nodes that build has made seeds for, whether they run or not.
func (b *bench) built(t *testing.T) []nodeStatus {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, "dist", "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var expected struct{ Nodes []nodeStatus }
	if err := json.Unmarshal(data, &expected); err != nil {
		t.Fatal(err)
	}
	return expected.Nodes
}

// expected returns the names of the nodes that build has made seeds for.
func (b *bench) expected(t *testing.T) (names []string) {
	t.Helper()
	for _, n := range b.built(t) {
		names = append(names, n.Node)
	}
	return names
}

// secret returns a generated password.
func (b *bench) secret(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, "secrets", "passwords.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]string
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	if all[name] == "" {
		t.Fatalf("no password %s", name)
	}
	return all[name]
}

// origin is what the addresses of the site's pages begin with.
func (b *bench) origin() string {
	if b.https {
		return "https://" + b.site
	}
	return "http://" + b.site
}

// visitor returns a client that uses a new connection for each request, and trusts the cluster's authority.
func (b *bench) visitor(limit time.Duration) *http.Client {
	return &http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			trusts, err := b.trusts()
			if err != nil {
				return nil, err
			}
			d := tls.Dialer{Config: trusts}
			return d.DialContext(ctx, network, address)
		},
	}}
}

// get fetches a page of the site.
func (b *bench) get(c *http.Client, path string) (string, error) {
	resp, err := c.Get(b.origin() + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("%s: %s: %.200s", path, resp.Status, body)
	}
	return string(body), nil
}

// frontPage succeeds if the site's front page with its title comes through the virtual address.
func (b *bench) frontPage() error { return b.titled(siteTitle, pageLimit) }

const pageLimit = 20 * time.Second

// titled succeeds if the site's front page has a title.
func (b *bench) titled(title string, limit time.Duration) error {
	body, err := b.get(b.visitor(limit), "/")
	if err == nil && !strings.Contains(body, "<title>"+title) {
		err = fmt.Errorf("the front page has no title %q: %.300s", title, body)
	}
	return err
}

const siteTitle = "A site that stays up" // of the reference cluster

// login returns a client with a session of the site's administrator.
func (b *bench) login(t *testing.T) *http.Client {
	t.Helper()
	jar, _ := cookiejar.New(nil)
	c := &http.Client{Jar: jar, Timeout: 30 * time.Second}
	if _, err := b.get(c, "/wp-login.php"); err != nil {
		t.Fatal(err)
	}
	resp, err := c.PostForm(b.origin()+"/wp-login.php", url.Values{
		"log": {"admin"}, "pwd": {b.secret(t, "wordpress_admin")}, "testcookie": {"1"},
		"redirect_to": {b.origin() + "/wp-admin/profile.php"},
	})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !strings.HasSuffix(resp.Request.URL.Path, "/profile.php") {
		t.Fatalf("login ended at %s", resp.Request.URL)
	}
	return c
}

// publish writes a post and returns its address on the site.
func (b *bench) publish(t *testing.T, c *http.Client, title string) string {
	t.Helper()
	nonce, err := b.get(c, "/wp-admin/admin-ajax.php?action=rest-nonce")
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{"title": {title}, "content": {"text of " + title}, "status": {"publish"}}
	req, _ := http.NewRequest(http.MethodPost, b.origin()+"/index.php?rest_route=/wp/v2/posts", strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("X-WP-Nonce", nonce)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	var post struct{ ID int }
	if json.Unmarshal(body, &post); resp.StatusCode != http.StatusCreated || post.ID == 0 {
		t.Fatalf("publish %q: %s: %.300s", title, resp.Status, body)
	}
	return fmt.Sprintf("/?p=%d", post.ID)
}

// nothingDiffers: the nodes run what was built, and know which generation that is.
func (b *bench) nothingDiffers(t *testing.T) {
	out := b.lab(t, "diff")
	if !strings.HasPrefix(out, "generation ") || !strings.HasSuffix(out, "\n0 of 17 nodes differ from the spec\n") || strings.Count(out, "\n") != 2 {
		t.Errorf("diff says\n%s", out)
	}
}

// TestReferenceCluster tests one cluster from the build to its end; its parts build on each other.
func TestReferenceCluster(t *testing.T) {
	b := newBench(t)
	start := time.Now()
	b.lab(t, "build")
	t.Logf("built in %s", time.Since(start).Round(time.Second))

	before := testkit.ProcessorTime(t)
	if out := b.lab(t, "build"); !strings.Contains(out, "up to date") {
		t.Errorf("a second build does not say that it had nothing to do:\n%s", out)
	}
	if used := testkit.ProcessorTime(t) - before; used > 500*time.Millisecond {
		t.Errorf("a build with nothing to do took %s of processor time", used)
	} else {
		t.Logf("a build with nothing to do took %s of processor time", used.Round(time.Millisecond))
	}

	names := b.expected(t)
	if len(names) != 17 {
		t.Fatalf("%d nodes: %v", len(names), names)
	}
	seed := uint64(time.Now().UnixNano())
	shuffled := slices.Clone(names)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	reversed := slices.Clone(names)
	slices.Reverse(reversed)

	var total time.Duration
	orders := []struct {
		name  string
		nodes []string
		halt  bool // a minute between the halves
		https bool
	}{
		{fmt.Sprintf("shuffled with seed %d, a minute between the halves", seed), shuffled, true, false},
		{"reversed, with HTTPS", reversed, false, true},
		{"as listed", names, false, false},
	}
	for i, o := range orders {
		if i > 0 {
			b.lab(t, "down")
		}
		if o.https != b.https {
			b.switchHTTPS(t)
		}
		t.Logf("boot %s: %s", o.name, strings.Join(o.nodes, " "))
		if o.halt {
			b.up(t, o.nodes[:len(names)/2]...)
			time.Sleep(time.Minute) // late nodes are what is tested
			o.nodes = o.nodes[len(names)/2:]
		}
		start := time.Now()
		b.up(t, o.nodes...)
		page := testkit.Eventually(t, readyIn, "front page, nodes "+o.name, b.frontPage)
		b.waitReady(t)
		t.Logf("nodes %s: page after %s, all ready after %s", o.name, page.Round(100*time.Millisecond), time.Since(start).Round(100*time.Millisecond))
		total += page
		if o.https {
			t.Run("people see the site over HTTPS", b.peopleSeeHTTPS)
		}
	}
	t.Logf("mean time from power-on to the page: %s", (total / time.Duration(len(orders))).Round(100*time.Millisecond))

	t.Run("packages' files are as relied on", b.packagesAreAsReliedOn)
	t.Run("nothing differs from the spec", b.nothingDiffers)
	t.Run("people see the site", b.peopleSee)
	t.Run("files are fresh", b.filesAreFresh)
	t.Run("themes are fresh", b.themesAreFresh)
	t.Run("VIP moves", b.vipMoves)
	t.Run("a post outlives every tier", b.postOutlives)
	t.Run("sessions outlive the Redis master", b.sessionsOutlive)
	t.Run("ports are locked down", b.lockedDown)
	t.Run("random faults", func(t *testing.T) { b.soak(t, soakInE2E, newSeed()) })
	t.Run("no secret leaks", b.noSecretLeaks)
	t.Run("down leaves nothing", b.downLeavesNothing)
	t.Run("Redis in virtual machines", b.redisInVMs)
}

func (b *bench) vipMoves(t *testing.T) {
	holder := b.holder(t, "192.168.10.39", "balancer1", "balancer2")
	b.lab(t, "kill", holder)
	took := testkit.Eventually(t, time.Minute, "front page through the other balancer", b.frontPage)
	t.Logf("killed %s; the page was back after %s", holder, took.Round(100*time.Millisecond))
	b.lab(t, "start", holder)
	b.waitReady(t)
}

func (b *bench) postOutlives(t *testing.T) {
	admin := b.login(t)
	title := fmt.Sprintf("Written at %d", time.Now().Unix())
	post := b.publish(t, admin, title)
	there := func() error {
		body, err := b.get(&http.Client{Timeout: 20 * time.Second}, post)
		if err == nil && !strings.Contains(body, title) {
			err = fmt.Errorf("%s does not hold %q", post, title)
		}
		return err
	}
	seen := map[string]bool{}
	for _, n := range b.nodes(t) {
		if seen[n.Role] {
			continue
		}
		seen[n.Role] = true
		b.lab(t, "kill", n.Node)
		took := testkit.Eventually(t, time.Minute, "the post without "+n.Node, there)
		b.lab(t, "start", n.Node)
		start := time.Now()
		b.waitReady(t)
		t.Logf("killed %s (%s): the post was there after %s; ready %s after its start", n.Node, n.Role,
			took.Round(100*time.Millisecond), time.Since(start).Round(100*time.Millisecond))
	}
	if err := there(); err != nil {
		t.Error(err)
	}
}

// redisCLI starts a shell line that asks a node's Redis or, with -p 26379, its Sentinel, with the node's certificate.
const redisCLI = `REDISCLI_AUTH=$(sed -n 's/.*"redis": *"\([^"]*\)".*/\1/p' /etc/imagegen/secrets.json) redis-cli --tls --cacert /etc/imagegen/pki/ca.crt --cert /etc/imagegen/pki/node.crt --key /etc/imagegen/pki/node.key `

// redisRole is a shell line that prints the role of a node's Redis.
const redisRole = redisCLI + "role | head -n 1"

// redisMaster returns the one node whose Redis is the master.
func (b *bench) redisMaster(t *testing.T) string {
	t.Helper()
	master := ""
	for _, n := range []string{"redis1", "redis2", "redis3"} {
		if out, _ := b.in(n, redisRole); strings.TrimSpace(out) == "master" {
			if master != "" {
				t.Fatalf("two masters: %s and %s", master, n)
			}
			master = n
		}
	}
	if master == "" {
		t.Fatal("no Redis master")
	}
	return master
}

func (b *bench) sessionsOutlive(t *testing.T) {
	admin := b.login(t)
	page := `<?php session_start(); $_SESSION["n"] = ($_SESSION["n"] ?? 0) + 1; echo "visit ", $_SESSION["n"], ".";`
	if _, err := b.in("backend1", "echo '"+page+"' >/mnt/gluster/wordpress/wp-content/visits.php"); err != nil {
		t.Fatal(err)
	}
	visit := func(want string) func() error {
		return func() error {
			body, err := b.get(admin, "/wp-content/visits.php")
			if err == nil && body != want {
				err = fmt.Errorf("got %q, want %q", body, want)
			}
			return err
		}
	}
	testkit.Eventually(t, 30*time.Second, "first visit", visit("visit 1."))
	testkit.Eventually(t, 10*time.Second, "second visit", visit("visit 2."))

	master := b.redisMaster(t)
	b.lab(t, "kill", master)
	took := testkit.Eventually(t, time.Minute, "the session after the Redis master's death", func() error {
		body, err := b.get(admin, "/wp-content/visits.php")
		if err == nil && (!strings.HasPrefix(body, "visit ") || body == "visit 1.") {
			err = fmt.Errorf("the session is lost: %q", body)
		}
		return err
	})
	t.Logf("killed %s, the Redis master: the session was back after %s", master, took.Round(100*time.Millisecond))
	if _, err := b.get(admin, "/wp-admin/profile.php"); err != nil {
		t.Errorf("the login: %v", err)
	}
	b.lab(t, "start", master)
	b.waitReady(t)
}

func (b *bench) downLeavesNothing(t *testing.T) {
	b.lab(t, "down")
	if left := b.leftovers(t); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// leftovers lists what is left of this cluster's lab on the machine.
func (b *bench) leftovers(t *testing.T) []string {
	t.Helper()
	var left []string
	for _, c := range []string{"ip netns list", "ip -o link", "losetup -a -O NAME,BACK-FILE", "cat /proc/mounts", "ls /sys/fs/cgroup"} {
		argv := strings.Fields(c)
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "imagegen-"+clusterName) || strings.Contains(line, b.dir) {
				left = append(left, c+": "+strings.TrimSpace(line))
			}
		}
	}
	for pid, cmdline := range processes() {
		if strings.Contains(cmdline, b.dir) || strings.Contains(cmdline, "imagegen-"+clusterName) {
			left = append(left, "process "+pid+": "+cmdline)
		}
	}
	return left
}

var numeric = regexp.MustCompile(`^[0-9]+$`)

// processes returns the command line of every process of the machine, the lab's containers included.
func processes() map[string]string {
	m := map[string]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if !numeric.MatchString(e.Name()) {
			continue
		}
		if data, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil {
			m[e.Name()] = string(bytes.ReplaceAll(data, []byte{0}, []byte{' '}))
		}
	}
	return m
}

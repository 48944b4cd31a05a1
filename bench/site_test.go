package bench

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

//go:embed local.sh
var localSite string

// A cookie that makes nginx ask PHP for each page, and that WordPress itself does not look at.
const knownVisitor = "visitor=known"

// site measures what visitors get, with ApacheBench in the lab's network. The local disk is that of backend1: the same WordPress,
// plug-ins and settings, with the volume's files beside it, and one nginx in front of PHP. Everything else is idle meanwhile.
func site(t *testing.T, repeat int) {
	if os.Geteuid() != 0 {
		t.Skip("the lab needs root: NOT measured")
	}
	spec := baked(t)
	defer imagegen(t, "down", "-f", spec).Run()
	must(t, imagegen(t, "up", "-f", spec, "--site", freeAddress(t), "--wait"))
	inNode := func(node, script string) string {
		t.Helper()
		out, err := imagegen(t, "exec", "-f", spec, node, "--", "sh", "-ec", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", node, err, out)
		}
		return string(out)
	}
	idle, memory := idleCost(t)
	for to, from := range map[string]string{"/run/local-nginx.conf": "/etc/nginx/nginx.conf", "/etc/nginx/imagegen-mime.types": "/etc/nginx/imagegen-mime.types"} {
		inNode("backend1", "cat >"+to+" <<'END'\n"+inNode("web1", "cat "+from)+"END\n")
	}
	inNode("backend1", localSite)
	const local, cluster = "http://192.168.10.47:8080", "http://192.168.10.39"
	style := "/wp-includes/css/dashicons.min.css"

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "\tlocal disk\tcluster\tratio")
	both := func(name string, value func(benched) float64, format string, path string, args ...string) {
		t.Helper()
		var a, b []benched
		for range repeat { // in turns
			a, b = append(a, apacheBench(t, local+path, args...)), append(b, apacheBench(t, cluster+path, args...))
		}
		x, y := medianOf(a, value), medianOf(b, value)
		fmt.Fprintf(w, "%s\t"+format+"\t"+format+"\t%.2f\n", name, x, y, y/x)
	}
	one := func(name string, format string, values ...any) {
		fmt.Fprintf(w, "%s\t\t"+format+"\t\n", append([]any{name}, values...)...)
	}

	apacheBench(t, local+"/", "-n", "20", "-c", "4", "-C", knownVisitor) // fills the caches of PHP
	apacheBench(t, cluster+"/", "-n", "40", "-c", "4", "-C", knownVisitor)
	both("front page by PHP, one client: median", benched.milliseconds, "%.0f ms", "/", "-n", "60", "-c", "1", "-C", knownVisitor)
	both("front page by PHP, 4 clients", benched.rate, "%.1f/s", "/", "-n", "120", "-c", "4", "-C", knownVisitor)
	cached := apacheBench(t, cluster+"/", "-n", "20000", "-c", "8", "-k")
	one("front page from nginx' cache, 8 clients", "%.0f/s", cached.rate())
	both("a style sheet, 8 clients", benched.rate, "%.0f/s", style, "-n", "20000", "-c", "8", "-k")
	many := overload(t, cluster+"/", "-t", "40", "-n", "1000000", "-c", "200", "-C", knownVisitor, "-s", "60")
	one("front page by PHP, 200 clients for 40 s: the longest answer", "%.1f s", float64(many.longest)/1000)
	one("of its answers, no page (a 503 from the queue, or any other that is not 2xx)", "%d of %d", many.refused, many.requests)
	start := time.Now()
	apacheBench(t, cluster+"/", "-n", "1", "-C", knownVisitor)
	one("the first page afterwards", "%.1f s", time.Since(start).Seconds())
	one("17 idle nodes", "%.3f of a core", idle.all)
	one("of these, the agents, each", "%.2f %% of a core", 100*idle.agents/17)
	one("memory of the largest agent", "%d MiB", memory>>20)
	w.Flush()
	t.Logf("medians of %d:\n%s", repeat, table.String())
}

// benched is what ApacheBench reports.
type benched struct {
	requests, refused int
	perSecond         float64
	median, longest   int // ms
}

func (b benched) rate() float64         { return b.perSecond }
func (b benched) milliseconds() float64 { return float64(b.median) }

func medianOf(all []benched, value func(benched) float64) float64 {
	var values []float64
	for _, b := range all {
		values = append(values, value(b))
	}
	return middle(values)
}

// apacheBench asks for a page. An answer that is not 2xx ends the test.
func apacheBench(t *testing.T, url string, args ...string) benched {
	t.Helper()
	b := overload(t, url, args...)
	if b.refused > 0 {
		t.Fatalf("ab %s: %d of %d answers are not 2xx", url, b.refused, b.requests)
	}
	return b
}

// overload is apacheBench for more visitors than the site serves. ApacheBench counts answers that are not 2xx, and does not say which
// they are.
func overload(t *testing.T, url string, args ...string) benched {
	t.Helper()
	argv := append([]string{"netns", "exec", "imagegen-bench", "ab", "-q", "-l", "-H", "Host: 192.168.10.39"}, args...)
	out, err := exec.Command("ip", append(argv, url)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ab %s: %v: %s", url, err, out)
	}
	number := func(pattern string) float64 {
		m := regexp.MustCompile(`(?m)^\s*` + pattern).FindSubmatch(out)
		if m == nil {
			return 0
		}
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			t.Fatalf("ab %s: %v: %s", url, err, out)
		}
		return v
	}
	b := benched{
		requests: int(number(`Complete requests:\s+(\d+)`)), refused: int(number(`Non-2xx responses:\s+(\d+)`)),
		perSecond: number(`Requests per second:\s+([\d.]+)`), median: int(number(`50%\s+(\d+)`)), longest: int(number(`100%\s+(\d+)`)),
	}
	if failed := number(`Failed requests:\s+(\d+)`); failed > 0 || b.requests == 0 {
		t.Fatalf("ab %s: %s", url, out)
	}
	return b
}

// cores are shares of a core.
type cores struct{ all, agents float64 }

const (
	settleIn   = time.Minute // after the start of the last node
	idleFor    = time.Minute
	clockTicks = 100 // a second: USER_HZ
)

// idleCost measures the processor time of the cluster's processes, including their children that have ended, and the memory of the
// largest agent.
func idleCost(t *testing.T) (idle cores, memory int64) {
	t.Helper()
	time.Sleep(settleIn)
	sum := func() (all, agents float64) {
		files, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			group, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cgroup"))
			stat, err2 := os.ReadFile(f)
			if err != nil || err2 != nil || !strings.Contains(string(group), "imagegen-bench") {
				continue // it has ended, or is another's
			}
			name, rest, _ := strings.Cut(string(stat), ") ")
			fields := strings.Fields(rest)
			ticks := 0.0
			for _, field := range fields[11:15] { // utime, stime, cutime, cstime of proc(5)
				v, _ := strconv.ParseFloat(field, 64)
				ticks += v
			}
			all += ticks
			if strings.HasSuffix(name, "(imagegen-node") {
				agents += ticks
				pages, _ := strconv.ParseInt(fields[21], 10, 64) // rss
				memory = max(memory, pages*int64(os.Getpagesize()))
			}
		}
		return all, agents
	}
	all, agents := sum()
	start := time.Now()
	time.Sleep(idleFor)
	all2, agents2 := sum()
	took := time.Since(start).Seconds() * clockTicks
	return cores{(all2 - all) / took, (agents2 - agents) / took}, memory
}

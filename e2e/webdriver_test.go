package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

// browser is a Chromium with its own profile: a person who has never visited the site. It is driven over the WebDriver
// protocol.
type browser struct {
	session string // its URL at the driver
	origin  string // scheme://host:port that all requests must go to
}

// webDriver limits each request; a page on two slow cores takes seconds.
var webDriver = &http.Client{Timeout: 2 * time.Minute}

// startChromedriver returns the address of a WebDriver server that ends with the test.
func startChromedriver(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"chromium", "chromedriver"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs a browser: packages chromium and chromium-driver")
		}
	}
	cmd := exec.Command("chromedriver", "--port=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	said := bufio.NewScanner(out)
	for said.Scan() {
		if m := regexp.MustCompile(`successfully on port (\d+)`).FindStringSubmatch(said.Text()); m != nil {
			go io.Copy(io.Discard, out)
			return "http://127.0.0.1:" + m[1]
		}
	}
	t.Fatal("chromedriver ended without saying its port")
	return ""
}

// newBrowser opens a browser that can reach only this machine. more are further arguments of Chromium.
func newBrowser(t *testing.T, driver, origin string, more ...string) *browser {
	t.Helper()
	profile, err := os.MkdirTemp("", "imagegen-browser-")
	if err != nil {
		t.Fatal(err)
	}
	br := &browser{origin: origin}
	t.Cleanup(func() {
		if br.session != "" {
			if err := br.call(http.MethodDelete, "", nil, nil); err != nil {
				t.Error(err)
			}
		}
		os.RemoveAll(profile)
	})
	args := append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		"--window-size=1280,1600", "--user-data-dir=" + profile,
	}, more...)
	if os.Geteuid() != 0 {
		args = slices.DeleteFunc(args, func(a string) bool { return a == "--no-sandbox" })
	}
	first := &browser{session: driver}
	var created struct{ SessionID string }
	err = first.call(http.MethodPost, "/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"browserName":             "chrome",
		"timeouts":                map[string]any{"pageLoad": 60000, "script": 60000},
		"unhandledPromptBehavior": "accept",
		"goog:loggingPrefs":       map[string]any{"performance": "ALL", "browser": "ALL"},
		"goog:chromeOptions":      map[string]any{"args": args},
	}}}, &created)
	if err != nil {
		t.Fatalf("open a browser: %v", err)
	}
	br.session = driver + "/session/" + created.SessionID
	// No cache: each visit requests everything from the site.
	for cmd, params := range map[string]any{"Network.enable": map[string]any{}, "Network.setCacheDisabled": map[string]any{"cacheDisabled": true}} {
		if err := br.call(http.MethodPost, "/goog/cdp/execute", map[string]any{"cmd": cmd, "params": params}, nil); err != nil {
			t.Fatal(err)
		}
	}
	return br
}

// call makes one call of the protocol; the value of its answer is decoded into out.
func (br *browser) call(method, path string, in, out any) error {
	var body io.Reader
	if method == http.MethodPost {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, br.session+path, body)
	if err != nil {
		return err
	}
	resp, err := webDriver.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("browser %s: %s: %w", path, resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK {
		var fault struct{ Error, Message string }
		json.Unmarshal(answer.Value, &fault)
		message, _, _ := strings.Cut(fault.Message, "\n")
		return fmt.Errorf("browser %s: %s: %s", path, fault.Error, message)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, out)
}

// open opens a page of the site and returns when it has loaded.
func (br *browser) open(path string) error {
	return br.call(http.MethodPost, "/url", map[string]any{"url": br.origin + path}, nil)
}

// script runs JavaScript in the page.
func (br *browser) script(js string, out any, args ...any) error {
	if args == nil {
		args = []any{}
	}
	return br.call(http.MethodPost, "/execute/sync", map[string]any{"script": js, "args": args}, out)
}

// element returns the path of the first element that matches a CSS selector.
func (br *browser) element(css string) (string, error) {
	var found map[string]string
	err := br.call(http.MethodPost, "/element", map[string]any{"using": "css selector", "value": css}, &found)
	for _, id := range found {
		return "/element/" + id, err
	}
	return "", errors.Join(err, fmt.Errorf("no element %s", css))
}

// click and write act on an element as a mouse and a keyboard do, as soon as it exists and accepts it.
func (br *browser) click(t *testing.T, css string) {
	t.Helper()
	br.do(t, css, "/click", map[string]any{})
}

func (br *browser) write(t *testing.T, css, text string) {
	t.Helper()
	br.do(t, css, "/value", map[string]any{"text": text})
}

const elementIn = 60 * time.Second // an editor on two slow cores, its scripts from a shared volume

func (br *browser) do(t *testing.T, css, what string, in any) {
	t.Helper()
	testkit.Eventually(t, elementIn, css, func() error {
		e, err := br.element(css)
		if err != nil {
			return err
		}
		return br.call(http.MethodPost, e+what, in, nil)
	})
}

// until waits for a condition in the page, a JavaScript expression.
func (br *browser) until(t *testing.T, what, condition string) {
	t.Helper()
	testkit.Eventually(t, elementIn, what, func() error {
		var ok bool
		if err := br.script("return !!("+condition+")", &ok); err != nil || ok {
			return err
		}
		return errors.New("not yet: " + condition)
	})
}

// log returns the new entries of one of the browser's logs.
func (br *browser) log(kind string) ([]string, error) {
	var entries []struct{ Level, Message string }
	if err := br.call(http.MethodPost, "/se/log", map[string]any{"type": kind}, &entries); err != nil {
		return nil, err
	}
	var messages []string
	for _, e := range entries {
		// A page that requests something without encryption may be only warned of.
		if kind != "browser" || e.Level == "SEVERE" || strings.Contains(e.Message, "Mixed Content") {
			messages = append(messages, e.Message)
		}
	}
	return messages, nil
}

// request is a request made by a page.
type request struct {
	url, kind string
	status    int
	failed    string
	done      bool
}

// requests adds the browser's new requests to seen.
func (br *browser) requests(seen map[string]*request) error {
	messages, err := br.log("performance")
	if err != nil {
		return err
	}
	for _, m := range messages {
		var event struct {
			Message struct {
				Method string
				Params struct {
					RequestID string
					Type      string
					ErrorText string
					Request   struct{ URL string }
					Response  struct{ Status int }
				}
			}
		}
		if err := json.Unmarshal([]byte(m), &event); err != nil {
			return err
		}
		p := event.Message.Params
		r := seen[p.RequestID]
		switch event.Message.Method {
		case "Network.requestWillBeSent": // again for each redirect
			if u, err := url.Parse(p.Request.URL); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
				seen[p.RequestID] = &request{url: p.Request.URL, kind: p.Type}
			}
		case "Network.responseReceived":
			if r != nil {
				r.status = p.Response.Status
			}
		case "Network.loadingFinished":
			if r != nil {
				r.done = true
			}
		case "Network.loadingFailed":
			if r != nil {
				r.done, r.failed = true, p.ErrorText
			}
		}
	}
	return nil
}

// visit opens a page, scrolls to its end and returns its requests once all have been answered. Anything that a visitor
// would miss is an error: a request that failed or went elsewhere, a style sheet without rules, an image that is not
// shown, a script error.
func (br *browser) visit(path string) ([]*request, error) {
	seen := map[string]*request{}
	if err := errors.Join(br.requests(seen), discard(br.log("browser"))); err != nil {
		return nil, err
	}
	clear(seen)
	if err := br.open(path); err != nil {
		return nil, err
	}
	if err := br.script("window.scrollTo(0, document.body.scrollHeight)", nil); err != nil {
		return nil, err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := br.requests(seen); err != nil {
			return nil, err
		}
		open := 0
		for _, r := range seen {
			if !r.done {
				open++
			}
		}
		var shown bool
		if err := br.script("return document.readyState == 'complete' && [...document.images].every(i => i.complete)", &shown); err != nil {
			return nil, err
		}
		if open == 0 && shown || time.Now().After(end) {
			break
		}
	}
	var faults []error
	var requests []*request
	for _, r := range seen {
		requests = append(requests, r)
		u, _ := url.Parse(r.url)
		switch {
		case u.Scheme+"://"+u.Host != br.origin:
			faults = append(faults, fmt.Errorf("%s %s: not on %s", r.kind, r.url, br.origin))
		case r.status >= 400:
			faults = append(faults, fmt.Errorf("%s %s: status %d", r.kind, r.url, r.status))
		case r.failed != "":
			faults = append(faults, fmt.Errorf("%s %s: %s", r.kind, r.url, r.failed))
		case !r.done:
			faults = append(faults, fmt.Errorf("%s %s: no answer", r.kind, r.url))
		}
	}
	if len(requests) == 0 {
		faults = append(faults, errors.New("the browser has logged no request"))
	}
	var page struct {
		Sheets, Pictures []string
	}
	if err := br.script(`window.scrollTo(0, 0)
	const rules = l => { try { return l.sheet.cssRules.length } catch { return 0 } }
	return {
		sheets: [...document.querySelectorAll('link[rel=stylesheet]')].filter(l => !rules(l)).map(l => l.href),
		pictures: [...document.images].filter(i => !i.naturalWidth).map(i => i.src)}`, &page); err != nil {
		return requests, err
	}
	for _, s := range page.Sheets {
		faults = append(faults, fmt.Errorf("the style sheet %s has no rules", s))
	}
	for _, p := range page.Pictures {
		faults = append(faults, fmt.Errorf("the picture %s is not shown", p))
	}
	said, err := br.log("browser")
	for _, s := range said {
		faults = append(faults, errors.New("the browser says: "+s))
	}
	if err := errors.Join(append(faults, err)...); err != nil {
		return requests, fmt.Errorf("%s: %w", path, err)
	}
	return requests, nil
}

func discard(_ []string, err error) error { return err }

// picture writes what the browser shows to a PNG file.
func (br *browser) picture(file string) error {
	var encoded string
	if err := br.call(http.MethodGet, "/screenshot", nil, &encoded); err != nil {
		return err
	}
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

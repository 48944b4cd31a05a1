package e2e

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

// failedPictures is the folder for screenshots of failed runs.
const failedPictures = "failed"

// TestBrowserSeesFaults shows a browser pages with one fault each, which visit must report.
func TestBrowserSeesFaults(t *testing.T) {
	if os.Getenv("IMAGEGEN_E2E") == "" {
		t.Skip("end-to-end tests run with IMAGEGEN_E2E=1, as root: make e2e")
	}
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	defer elsewhere.Close()
	pages := map[string]struct{ body, fault string }{
		"/whole":      {`<link rel="stylesheet" href="/a.css"><img src="/a.svg">`, ""},
		"/sheet":      {`<link rel="stylesheet" href="/missing.css">`, "/missing.css has no rules"},
		"/empty":      {`<link rel="stylesheet" href="/empty.css">`, "/empty.css has no rules"},
		"/type":       {`<!doctype html><link rel="stylesheet" href="/text.css">`, "/text.css has no rules"},
		"/picture":    {`<img src="/missing.png">`, "/missing.png: status 404"},
		"/broken":     {`<img src="/a.css">`, "a.css is not shown"},
		"/port":       {`<img src="` + elsewhere.URL + `/a.svg">`, "not on http://127.0.0.1:"},
		"/refused":    {`<link rel="stylesheet" href="http://127.0.0.1:1/a.css">`, "not on http://127.0.0.1:"},
		"/unknown":    {`<img src="http://www.example.com/a.png">`, "not on http://127.0.0.1:"},
		"/script":     {`<script>missing()</script>`, "missing is not defined"},
		"/cut":        {`<img src="/cut.png">`, "/cut.png: net::ERR_"},
		"/status":     {"", "/status: status 500"},
		"/redirected": {"", ""},
	}
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch p, ok := pages[r.URL.Path]; {
		case r.URL.Path == "/status":
			w.WriteHeader(http.StatusInternalServerError)
		case r.URL.Path == "/redirected":
			http.Redirect(w, r, "/whole", http.StatusFound)
		case ok:
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, p.body)
		case r.URL.Path == "/a.css":
			w.Header().Set("Content-Type", "text/css")
			fmt.Fprint(w, "body { color: red }")
		case r.URL.Path == "/empty.css":
			w.Header().Set("Content-Type", "text/css")
		case r.URL.Path == "/text.css":
			w.Header().Set("Content-Type", "text/plain")
			fmt.Fprint(w, "body { color: red }")
		case r.URL.Path == "/a.svg":
			w.Header().Set("Content-Type", "image/svg+xml")
			fmt.Fprint(w, `<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>`)
		case r.URL.Path == "/cut.png":
			panic(http.ErrAbortHandler)
		case r.URL.Path == "/favicon.ico":
		default:
			http.NotFound(w, r)
		}
	})
	site := httptest.NewServer(answer)
	defer site.Close()
	driver := startChromedriver(t)
	br := newBrowser(t, driver, site.URL)
	for path, p := range pages {
		requests, err := br.visit(path)
		if p.fault == "" && err != nil || p.fault != "" && (err == nil || !strings.Contains(err.Error(), p.fault)) {
			t.Errorf("%s: %v; want %q", path, err, p.fault)
		}
		if path == "/whole" && len(requests) < 3 {
			t.Errorf("%s: %d requests", path, len(requests))
		}
	}
	file := filepath.Join(t.TempDir(), "picture.png")
	if err := br.picture(file); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if p, err := png.DecodeConfig(f); err != nil || p.Width < 1000 {
		t.Errorf("screenshot: %+v, %v", p, err)
	}

	// Over HTTPS, a page must not request anything without.
	secure := httptest.NewUnstartedServer(answer)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // a browser that does not trust it says so
	secure.StartTLS()
	defer secure.Close()
	br = newBrowser(t, driver, secure.URL, trusting(secure.Certificate()))
	for path, fault := range map[string]string{"/whole": "", "/port": "not on https://127.0.0.1:", "/unknown": "Mixed Content"} {
		if _, err := br.visit(path); fault == "" && err != nil || fault != "" && (err == nil || !strings.Contains(err.Error(), fault)) {
			t.Errorf("%s over HTTPS: %v; want %q", path, err, fault)
		}
	}
	root, _, _ := testkit.Certificate(t, "127.0.0.1", time.Now().Add(time.Hour))
	if _, err := newBrowser(t, driver, secure.URL, trusting(certificateIn(t, root))).visit("/whole"); err == nil || !strings.Contains(err.Error(), "ERR_CERT_AUTHORITY_INVALID") {
		t.Errorf("a certificate of nobody whom the browser trusts: %v", err)
	}
}

// person opens a browser on the site. If the test fails, a screenshot is kept.
func (b *bench) person(t *testing.T, driver, who string, more ...string) *browser {
	t.Helper()
	br := newBrowser(t, driver, b.origin(), more...)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		file, err := filepath.Abs(filepath.Join(failedPictures, who+".png"))
		if err == nil {
			err = br.picture(file)
		}
		t.Logf("what the browser of the %s shows: %s (error: %v)", who, file, err)
	})
	return br
}

// logsIn logs in at /wp-admin/ as an administrator does who has read the README.
func (br *browser) logsIn(t *testing.T, password string) {
	t.Helper()
	if err := br.open("/wp-admin/"); err != nil {
		t.Fatal(err)
	}
	// The page's script moves the cursor there shortly after loading, away from where a user may already be typing.
	br.until(t, "cursor in the login form", "document.activeElement.id == 'user_login'")
	br.write(t, "#user_login", "admin")
	br.write(t, "#user_pass", password)
	br.click(t, "#wp-submit")
	br.until(t, "dashboard after the login", "location.origin == '"+br.origin+"' && location.pathname == '/wp-admin/' && document.querySelector('#wpadminbar')")
}

const enter = "\ue007"

// publishes writes a post in the block editor, with a picture from a file, and returns its path on the site.
func (br *browser) publishes(t *testing.T, title, picture string) string {
	t.Helper()
	if err := br.open("/wp-admin/post-new.php"); err != nil {
		t.Fatal(err)
	}
	br.click(t, ".edit-post-welcome-guide .components-modal__header button")
	// The dialog slides in, so a click may miss on a slow machine; while it is open, it takes the focus.
	br.until(t, "editor without its welcome", "(() => { const b = document.querySelector('.edit-post-welcome-guide .components-modal__header button'); b?.click(); return !b })()")
	br.write(t, ".wp-block-post-title", title+enter)
	br.write(t, "p.block-editor-rich-text__editable", "Text of "+title+enter)
	br.write(t, "p.block-editor-rich-text__editable:focus", "/image")
	br.until(t, "offer of an image block", "document.querySelector('.components-autocomplete__result.is-selected')?.textContent == 'Image'")
	br.write(t, "p.block-editor-rich-text__editable:focus", enter)
	br.write(t, ".wp-block-image input[type=file]", picture)
	br.until(t, "uploaded picture", "[...document.querySelectorAll('.wp-block-image img')].some(i => i.src.startsWith(location.origin) && i.naturalWidth && i.src.includes('/wp-content/uploads/'))")
	br.click(t, ".editor-post-publish-panel__toggle:not([aria-disabled=true])")
	br.click(t, ".editor-post-publish-panel .editor-post-publish-button:not([aria-disabled=true])")
	br.until(t, "word that the post is published", "document.querySelector('.post-publish-panel__postpublish-buttons a')")
	var path string
	if err := br.script("const u = new URL(document.querySelector('.post-publish-panel__postpublish-buttons a').href); return u.pathname + u.search", &path); err != nil {
		t.Fatal(err)
	}
	return path
}

// sees checks that a page shows the post with its text and its picture.
func (br *browser) sees(path, title string) error {
	if _, err := br.visit(path); err != nil {
		return err
	}
	var page struct {
		Title, Text string
		Pictures    int
	}
	err := br.script(`return {
		title: document.querySelector('.wp-block-post-title')?.textContent,
		text: document.querySelector('.wp-block-post-content')?.textContent,
		pictures: [...document.querySelectorAll('.wp-block-post-content .wp-block-image img')].filter(i => i.naturalWidth == 640).length}`, &page)
	if err == nil && (page.Title != title || !strings.Contains(page.Text, "Text of "+title) || page.Pictures != 1) {
		err = fmt.Errorf("%s does not show the post %q: %+v", path, title, page)
	}
	return err
}

// frontPage checks that the front page looks right.
func (br *browser) frontPage() error {
	requests, err := br.visit("/")
	if err != nil {
		return err
	}
	sheets := 0
	for _, r := range requests {
		if r.kind == "Stylesheet" {
			sheets++
		}
	}
	if sheets == 0 {
		return fmt.Errorf("the front page has requested no style sheet: %d requests", len(requests))
	}
	// From the theme, from a block's style sheet, and the browser's defaults.
	var styles map[string]string
	err = br.script(`const style = (css, property) => getComputedStyle(document.querySelector(css))[property]
	return {
		"the title's line": style('.wp-block-site-title a', 'textDecorationLine'),
		"the menu's dots": style('.wp-block-navigation ul, .wp-block-navigation li', 'listStyleType'),
		"the menu's layout": style('.wp-block-navigation', 'display'),
		"the page's edges": style('body', 'margin')}`, &styles)
	want := map[string]string{"the title's line": "none", "the menu's dots": "none", "the menu's layout": "flex", "the page's edges": "0px"}
	if err == nil && !maps.Equal(styles, want) {
		err = fmt.Errorf("styles of the front page are %v, want %v", styles, want)
	}
	return err
}

// holder returns the node of a role that has the virtual address.
func (b *bench) holder(t *testing.T, vip string, nodes ...string) string {
	t.Helper()
	holder := ""
	for _, n := range nodes {
		if out, err := b.in(n, "ip -o -4 addr show"); err == nil && strings.Contains(out, vip+"/") {
			if holder != "" {
				t.Fatalf("both %s and %s hold %s", holder, n, vip)
			}
			holder = n
		}
	}
	if holder == "" {
		t.Fatalf("nobody holds %s", vip)
	}
	return holder
}

// photo writes a picture to upload: 640 pixels wide, and larger than one packet.
func photo(t *testing.T) string {
	t.Helper()
	p := image.NewRGBA(image.Rect(0, 0, 640, 480))
	for y := range 480 {
		for x := range 640 {
			p.Set(x, y, color.RGBA{uint8(x ^ y), uint8(x * y), uint8(x + y), 255})
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "photo.png"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(png.Encode(f, p), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// peopleSee tests what people see of the cluster: an administrator who publishes a post with a picture, and a visitor
// who views it through one balancer, through the other after the first has died, and with one node of every other tier
// dead as well.
func (b *bench) peopleSee(t *testing.T) {
	driver := startChromedriver(t)
	visitor, admin := b.person(t, driver, "visitor"), b.person(t, driver, "administrator")
	start := time.Now()
	if err := visitor.frontPage(); err != nil {
		t.Fatal(err)
	}
	if _, err := visitor.visit("/no-such-page"); err == nil || !strings.Contains(err.Error(), "/no-such-page: status 404") {
		t.Errorf("a page that does not exist: %v", err)
	}
	admin.logsIn(t, b.secret(t, "wordpress_admin"))
	title := fmt.Sprintf("Seen at %d", time.Now().Unix())
	post := admin.publishes(t, title, photo(t))
	sees := func() error { return visitor.sees(post, title) }
	if err := sees(); err != nil {
		t.Fatal(err)
	}
	t.Logf("logged in, published %s and seen it after %s", post, time.Since(start).Round(time.Second))

	holder := b.holder(t, "192.168.10.39", "balancer1", "balancer2")
	b.lab(t, "kill", holder)
	took := testkit.Eventually(t, time.Minute, "the post through the other balancer", sees)
	t.Logf("killed %s: seen after %s", holder, took.Round(100*time.Millisecond))

	dead := []string{b.holder(t, "192.168.10.53", "balancer3", "balancer4"), b.redisMaster(t)}
	seen := map[string]bool{"balancer": true, "databalancer": true, "redis": true}
	for _, n := range b.nodes(t) {
		if !seen[n.Role] {
			seen[n.Role] = true
			dead = append(dead, n.Node)
		}
	}
	b.lab(t, "kill", dead...)
	dead = append(dead, holder)
	took = testkit.Eventually(t, time.Minute, "the post without "+strings.Join(dead, ", "), sees)
	t.Logf("without %s: seen after %s", strings.Join(dead, ", "), took.Round(100*time.Millisecond))
	testkit.Eventually(t, time.Minute, "the front page with the post", func() error {
		if err := visitor.frontPage(); err != nil {
			return err
		}
		var titles []string
		err := visitor.script("return [...document.querySelectorAll('.wp-block-post-title')].map(e => e.textContent)", &titles)
		if err == nil && !slices.Contains(titles, title) {
			err = fmt.Errorf("the front page has %q", titles)
		}
		return err
	})
	testkit.Eventually(t, time.Minute, "the administrator's list of posts", func() error {
		if err := admin.open("/wp-admin/edit.php"); err != nil {
			return err
		}
		var titles []string
		err := admin.script("return [...document.querySelectorAll('.row-title')].map(e => e.textContent)", &titles)
		if err == nil && !slices.Contains(titles, title) {
			err = fmt.Errorf("the list has %q", titles)
		}
		return err
	})
	b.lab(t, "start", dead...)
	start = time.Now()
	b.waitReady(t)
	t.Logf("ready %s after their start", time.Since(start).Round(100*time.Millisecond))
	if err := sees(); err != nil {
		t.Error(err)
	}
}

package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagegen/internal/testkit"
	"imagegen/lab"
)

const (
	siteVIP = "192.168.10.39"
	// ourAddress is this machine's in the nodes' network, where the forwarded site is visited from.
	ourAddress = "192.168.10.254"
)

// How the spec begins to describe the site.
const (
	plainSite = "\nsite:\n"
	httpsSite = "\nsite:\n  tls: self-signed\n"
)

// switchHTTPS gives the site of the reference cluster HTTPS, or takes it away. The cluster must be down.
func (b *bench) switchHTTPS(t *testing.T) {
	t.Helper()
	from, to := plainSite, httpsSite
	if b.https {
		from, to = to, from
	}
	replaceIn(t, b.spec(), from, to)
	b.lab(t, "build")
	b.https = !b.https
}

func (b *bench) authority() string { return filepath.Join(b.dir, "secrets", "ca.crt") }

// trusts is how a visitor connects who trusts the cluster's authority, and no other.
func (b *bench) trusts() (*tls.Config, error) {
	data, err := os.ReadFile(b.authority())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, errors.New(b.authority() + " has no certificate")
	}
	return &tls.Config{RootCAs: roots}, nil
}

// trusting is the argument with which Chromium accepts one certificate that no authority of its own has issued.
func trusting(cert *x509.Certificate) string {
	key := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "--ignore-certificate-errors-spki-list=" + base64.StdEncoding.EncodeToString(key[:])
}

// certificateIn parses the first certificate of a PEM file.
func certificateIn(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("there is no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// peopleSeeHTTPS tests what people see of a site with HTTPS: an administrator who publishes a post with a picture, and a visitor who
// views it.
func (b *bench) peopleSeeHTTPS(t *testing.T) {
	trusts, err := b.trusts()
	if err != nil {
		t.Fatal(err)
	}
	// The certificate is checked here, for the browser trusts its key alone.
	conn, err := tls.Dial("tcp", b.site, trusts)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	trust := trusting(conn.ConnectionState().PeerCertificates[0])

	t.Run("protocols", b.protocols)
	inside := b.inside(t)
	b.leadsToHTTPS(t, inside)
	b.knowsVisitors(t, inside)

	driver := startChromedriver(t)
	visitor, admin := b.person(t, driver, "visitor over HTTPS", trust), b.person(t, driver, "administrator over HTTPS", trust)
	start := time.Now()
	if err := visitor.frontPage(); err != nil {
		t.Fatal(err)
	}
	var protocol string
	if err := visitor.script("return performance.getEntriesByType('navigation')[0].nextHopProtocol", &protocol); err != nil || protocol != "h2" {
		t.Errorf("the browser got the front page by %q: %v", protocol, err)
	}
	admin.logsIn(t, b.secret(t, "wordpress_admin"))
	title := fmt.Sprintf("Seen over HTTPS at %d", time.Now().Unix())
	post := admin.publishes(t, title, photo(t))
	if err := visitor.sees(post, title); err != nil {
		t.Fatal(err)
	}
	t.Logf("logged in, published %s and seen it after %s", post, time.Since(start).Round(time.Second))
}

// protocols connects to the virtual address with a client that accepts anything, and trusts the cluster's authority.
func (b *bench) protocols(t *testing.T) {
	testkit.Program(t, "openssl", "openssl")
	for args, wants := range map[string][]string{
		"-tls1_3":                         {"New, TLSv1.3, Cipher is TLS_", "Verify return code: 0 (ok)"},
		"-tls1_2":                         {"New, TLSv1.2, Cipher is ECDHE-ECDSA-", "Verify return code: 0 (ok)"},
		"-tls1_1 -cipher ALL:@SECLEVEL=0": {"alert protocol version"},
		"-alpn h2,http/1.1":               {"ALPN protocol: h2"},
		"-alpn http/1.1":                  {"ALPN protocol: http/1.1"},
	} {
		argv := append([]string{"openssl", "s_client", "-connect", siteVIP + ":443", "-CAfile", b.authority(), "-verify_ip", siteVIP, "-verify_return_error"},
			strings.Fields(args)...)
		out, _ := inNetwork(clusterName, argv...).CombinedOutput() // which says how it ended
		for _, want := range wants {
			if !strings.Contains(string(out), want) {
				t.Errorf("openssl s_client %s does not say %q:\n%s", args, want, out)
			}
		}
	}
}

// inside is a visitor who uses the virtual address itself, and follows no redirect.
func (b *bench) inside(t *testing.T) *http.Client {
	t.Helper()
	trusts, err := b.trusts()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]string{}
	for _, address := range []string{siteVIP + ":80", siteVIP + ":443"} {
		at[address] = forward(t, inNetwork(clusterName, "../bin/imagegen", lab.ForwardCommand, address))
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, at[address])
	}
	return &http.Client{
		Timeout:       pageLimit,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DialContext: dial, TLSClientConfig: trusts, DisableKeepAlives: true},
	}
}

// leadsToHTTPS: plain HTTP leads to the same page over HTTPS.
func (b *bench) leadsToHTTPS(t *testing.T, visitor *http.Client) {
	t.Helper()
	resp, err := visitor.Get("http://" + siteVIP + "/a/?b=c")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if to := resp.Header.Get("Location"); resp.StatusCode != http.StatusMovedPermanently || to != "https://"+siteVIP+"/a/?b=c" {
		t.Errorf("plain HTTP: %s, to %q", resp.Status, to)
	}
}

// whoVisits is a page that says what WordPress knows of its visitor.
const whoVisits = `<?php
require dirname(__DIR__) . '/wp-load.php';
echo $_SERVER['REMOTE_ADDR'], is_ssl() ? ' over HTTPS' : ' over HTTP', ' at ', home_url();
`

// knowsVisitors: WordPress and the web nodes' logs have the visitor's address, whatever the visitor says, and WordPress knows that the
// visit is encrypted.
func (b *bench) knowsVisitors(t *testing.T, visitor *http.Client) {
	t.Helper()
	if _, err := b.in("backend1", "cat >/mnt/gluster/wordpress/wp-content/who.php <<'PHP'\n"+whoVisits+"PHP\n"); err != nil {
		t.Fatal(err)
	}
	const claimed = "203.0.113.6"
	page := fmt.Sprintf("/wp-content/who.php?n=%d", time.Now().UnixNano())
	want := ourAddress + " over HTTPS at https://" + siteVIP
	testkit.Eventually(t, time.Minute, "the visitor's address in WordPress", func() error {
		req, err := http.NewRequest(http.MethodGet, "https://"+siteVIP+page, nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-Forwarded-For", claimed)
		req.Header.Set("X-Forwarded-Proto", "http")
		resp, err := visitor.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != want {
			return fmt.Errorf("%s: %.200q, want %q: %v", resp.Status, body, want, err)
		}
		return nil
	})
	testkit.Eventually(t, time.Minute, "the visitor's address in the log of a web node", func() error {
		logged := ""
		for _, n := range []string{"web1", "web2"} {
			out, err := b.in(n, "journalctl -q --no-pager -o cat -t nginx | grep -F '"+page+"'; true")
			if err != nil {
				return err
			}
			logged += out
		}
		for line := range strings.Lines(logged) {
			if !strings.HasPrefix(line, ourAddress+" - ") || strings.Contains(line, claimed) {
				t.Errorf("the visitor is %s, and the log has %q", ourAddress, line)
			}
		}
		if logged == "" {
			return errors.New("nothing is logged")
		}
		return nil
	})
}

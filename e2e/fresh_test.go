package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// freshWithin is how late one backend may see what another has changed on the volume.
const freshWithin = 2 * time.Second

// filesAreFresh: what one client of the volume writes, another one sees soon, even if it asks for the file all the time, as PHP does. The
// second client is a mount of its own, with the same options: the next change comes as soon as the one before was seen, because only then
// did clients keep old content for good.
func (b *bench) filesAreFresh(t *testing.T) {
	limit := strconv.FormatInt(freshWithin.Milliseconds(), 10)
	out, err := b.in("backend1", `set -e
mkdir -p /run/second
mount -t glusterfs -o "$(sed -n 's/^Options=//p' /etc/systemd/system/mnt-gluster.mount)" "$(sed -n 's/^What=//p' /etc/systemd/system/mnt-gluster.mount)" /run/second
trap 'umount /run/second' EXIT
d=wordpress/wp-content/fresh; f=/mnt/gluster/$d/file; g=/run/second/$d/file
mkdir -p /mnt/gluster/$d; echo start >$f
ms() { echo $(($(date +%s%N) / 1000000)); }
for i in $(seq 1001 1030); do
	case $((i % 3)) in
	0) echo $i >$f.new; mv $f.new $f; how=replaced;;
	1) echo $i >$f; how=written;;
	2) echo $i | dd of=$f conv=notrunc status=none; how=overwritten;;
	esac
	start=$(ms)
	until [ "$(cat $g 2>/dev/null)" = $i ]; do [ $(($(ms) - start)) -lt `+limit+` ] || break; done
	echo "$how $(($(ms) - start))"
done
new=/mnt/gluster/$d/new
for i in 1 2 3; do
	echo >$new; start=$(ms)
	until [ -e /run/second/$d/new ]; do [ $(($(ms) - start)) -lt `+limit+` ] || break; done
	echo "made $(($(ms) - start))"
	rm $new; start=$(ms)
	while [ -e /run/second/$d/new ]; do [ $(($(ms) - start)) -lt `+limit+` ] || break; done
	echo "removed $(($(ms) - start))"
done
`)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for line := range strings.Lines(out) {
		var how string
		var ms int64
		if _, err := fmt.Sscan(line, &how, &ms); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if seen[how]++; ms >= freshWithin.Milliseconds() {
			t.Errorf("a file that one client has %s is not seen by another within %s", how, freshWithin)
		}
	}
	if len(seen) != 5 {
		t.Errorf("not everything was tried: %v", seen)
	}
}

// themesAreFresh: what is changed in the theme through one backend is in every page that is asked for later than freshWithin, whichever
// backend makes it. No web node keeps pages for a visitor with this cookie.
func (b *bench) themesAreFresh(t *testing.T) {
	page := func() string {
		t.Helper()
		req, err := http.NewRequest("GET", b.origin()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Cookie", "visitor=known")
		resp, err := b.visitor(pageLimit).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s, %v: %.300s", resp.Status, err, body)
		}
		return string(body)
	}
	change := func(node, script string) {
		t.Helper()
		if out, err := b.in(node, "set -e; cd /mnt/gluster/wordpress/wp-content/themes/twentytwentythree/parts; "+script); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	change("backend1", "cp footer.html /run/footer.html")
	defer change("backend1", "cp /run/footer.html footer.html")
	for i, how := range []string{"cat >footer.html", "cat >footer.new; mv footer.new footer.html", "cat >footer.html"} {
		mark := fmt.Sprintf("footer number %d", i)
		change(fmt.Sprintf("backend%d", i%2+1), "echo '<!-- wp:html -->"+mark+"<!-- /wp:html -->' | { "+how+"; }")
		start := time.Now()
		for after := 0; after < 10; {
			asked := time.Since(start)
			if fresh := strings.Contains(page(), mark); asked > freshWithin {
				if after++; !fresh {
					t.Fatalf("%s: a page that was asked for %s later has the old footer", how, asked)
				}
			}
		}
	}
}
